"""Buffers of which only what is read is on this disk: the same files, in which rows are fetched before they are read.

Everything that reads a buffer maps its files. A mirrored file is mapped too, and reads as zeros where nothing was
fetched. So its columns have the rule that no byte is looked at that was not asked for: :meth:`MirroredColumn.view`
fetches all that it shows, and whoever takes :meth:`MirroredColumn.mapped` says with ``need`` which rows it will read.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gym_replay.buffer.storage.columns import LONGEST_HEADER, Column
from gym_replay.buffer.storage.counters import COUNTERS
from gym_replay.buffer.storage.layout import LABELS, METADATA, Metadata, parse_metadata
from gym_replay.buffer.storage.revision import Opener
from gym_replay.errors import BufferNotFoundError, CorruptBufferError
from gym_replay.remote.objects.manifest import Published
from gym_replay.remote.objects.mirror import Ints, Mirror
from gym_replay.remote.objects.store import Store


@dataclass(frozen=True)
class MirroredFolder:
    """The files of one buffer in a mirror.

    Attributes:
        mirror: the files of a data set.
        prefix: what the paths of the buffer's files begin with: nothing, or a folder and a slash.
    """

    mirror: Mirror
    prefix: str = ""

    @property
    def folder(self) -> Path:
        """Where the files are in this process."""
        return self.mirror.folder / self.prefix

    @property
    def address(self) -> str:
        """Where they come from, for messages."""
        return f"{self.mirror.address}/{self.prefix}".rstrip("/")

    def hold(self) -> AbstractContextManager[None]:
        """As :meth:`Mirror.hold`."""
        return self.mirror.hold()

    def need(self, path: str, begins: Ints, ends: Ints) -> None:
        """As :meth:`Mirror.need`; a missing file is a CorruptBufferError."""
        try:
            self.mirror.need(self.prefix + path, begins, ends)
        except FileNotFoundError:
            raise CorruptBufferError(f"{self.address}/{path}: the file is missing") from None

    def expect(self, path: str, begins: Ints, ends: Ints) -> None:
        """As :meth:`Mirror.expect`."""
        self.mirror.expect(self.prefix + path, begins, ends)

    def open(self, path: str) -> int:
        """As :meth:`Mirror.open`."""
        return self.mirror.open(self.prefix + path)

    def keep(self, path: str, begin: int, end: int) -> None:
        """Have a range of bytes of a file there, for good."""
        with self.mirror.hold(for_good=True):
            self.need(path, np.array([begin]), np.array([end]))

    def keep_whole(self, path: str) -> None:
        """Have all of a file there, for good, where there is such a file."""
        info = self.mirror.published.manifest.files.get(self.prefix + path)
        if info is not None:
            self.keep(path, 0, info.size)

    def read_metadata(self) -> Metadata:
        """The metadata of the buffer.

        Raises:
            CorruptBufferError: they are damaged.
        """
        return parse_metadata(self.mirror.published.content(self.prefix + METADATA), Path(self.address))


class MirroredColumn(Column):
    """A column of a mirrored file.

    Args:
        source: the buffer's files.
        relative: the file's path below it.
        dtype, shape: of one row.
    """

    def __init__(
        self, source: MirroredFolder, relative: str, dtype: np.dtype[Any], shape: tuple[int, ...] = ()
    ) -> None:
        super().__init__(source.folder, relative, dtype, shape, opener=partial(source.open, relative))
        self._source = source
        self._process = os.getpid()

    @contextmanager
    def _file(self) -> Iterator[int]:
        self._source.keep(self._relative, 0, LONGEST_HEADER)
        with super()._file() as descriptor:
            yield descriptor

    def _follow_process(self) -> None:
        """Have no map of the files of the process that this one was forked from."""
        if self._process != os.getpid():
            self._process, self._rows = os.getpid(), -1
            self._folder = self._source.folder

    def rows_held(self, rows: int) -> int:
        self._follow_process()
        return super().rows_held(rows)

    def mapped(self, rows: int) -> npt.NDArray[Any]:
        self._follow_process()
        return super().view(rows)

    def view(self, rows: int) -> npt.NDArray[Any]:
        array = self.mapped(rows)
        self.need(np.zeros(1, np.int64), np.array([rows]))
        return array

    def need(self, firsts: Ints, lasts: Ints) -> None:
        if self.row_nbytes:
            self._source.need(self._relative, *self._bytes(firsts, lasts))

    def expect(self, firsts: Ints, lasts: Ints) -> None:
        if self.row_nbytes:
            self._source.expect(self._relative, *self._bytes(firsts, lasts))

    def _bytes(self, firsts: Ints, lasts: Ints) -> tuple[Ints, Ints]:
        self.rows_held(0)  # which finds out where the first row begins
        if len(firsts) and (firsts.min() < 0 or lasts.max() >= 1 << 60):
            raise CorruptBufferError(f"{self.path}: there are no rows {firsts.min()} to {lasts.max()}")
        return self._offset + firsts * self.row_nbytes, self._offset + lasts * self.row_nbytes


class MirrorOpener(Opener):
    """Opens the files of a mirrored buffer, whose revision is one for ever."""

    def __init__(self, source: MirroredFolder) -> None:
        self.folder = self.source = source.folder
        self._mirrored = source
        self.metadata = source.read_metadata()
        for path in (COUNTERS, LABELS):
            source.keep_whole(path)

    def column(self, path: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Column:
        return MirroredColumn(self._mirrored, path, dtype, shape)

    def keep(self, paths: Any) -> None:
        """Nothing: the files stay what they are."""

    def open(self, path: str) -> int:
        self._mirrored.keep_whole(path)
        try:
            return self._mirrored.open(path)
        except FileNotFoundError:
            raise CorruptBufferError(f"{self._mirrored.address}/{path}: the file is missing") from None

    def release(self) -> None:
        """Nothing is open."""

    def require_present(self) -> None:
        """It is."""

    def is_present(self) -> bool:
        return True


def buffers_in(published: Published) -> Mapping[str, Metadata]:
    """The metadata of each buffer of a data set, by what the paths of its files begin with, in natural order.

    Raises:
        BufferNotFoundError: there is none.
        CorruptBufferError: the files are not those of buffers, or metadata are damaged.
    """
    files, url = published.manifest.files, published.store.url
    prefixes = [path.removesuffix(METADATA) for path in files if path.rpartition("/")[2] == METADATA]
    if not prefixes:
        raise BufferNotFoundError(errno.ENOENT, "the data set has no buffer", url)
    found, known = {}, set()
    for prefix in prefixes:
        metadata = parse_metadata(published.content(prefix + METADATA), Path(f"{url}/{prefix}"))
        if metadata.pending or metadata.obsolete:
            raise CorruptBufferError(f"{url}/{prefix}{METADATA}: expected files that have their names")
        paths = {f"{prefix}{path}" for path in (METADATA, COUNTERS, *metadata.columns)}
        if missing := sorted(paths - files.keys()):
            raise CorruptBufferError(f"{url}/{missing[0]}: the file is missing")
        known |= paths | {prefix + LABELS}
        found[prefix] = metadata
    if foreign := sorted(files.keys() - known - set(BESIDE_BUFFERS)):
        raise CorruptBufferError(f"{url}: {foreign[0]!r:.200} is no file of a buffer")
    return found


BESIDE_BUFFERS = ("collect.json",)
"""Files of a data set that are no buffer's: what ``collect`` was called with."""


def mirrored_folders(
    url: str,
    revision: str | None,
    cache: str | os.PathLike[str] | None,
    cache_bytes: int,
    options: Mapping[str, Any] | None,
) -> list[MirroredFolder]:
    """The buffers of a data set at an address, of which nothing is on this disk yet.

    Raises:
        BufferNotFoundError: there is no data set, or no such revision.
        CorruptBufferError: it is damaged.
        StorageError: the store refused.
    """
    published = Published(Store(url, options), revision)
    prefixes = buffers_in(published)
    mirror = Mirror(published, cache, cache_bytes)
    return [MirroredFolder(mirror, prefix) for prefix in prefixes]
