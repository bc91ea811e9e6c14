"""The counters that make episodes visible, in ``commit.npy``.

Each counter is one aligned 64-bit word, so that a store is seen whole or not at all: the low 48 bits are its value, the
high 16 bits a CRC-16 of the value that also depends on the buffer's uuid and on which counter it is. A word that was
damaged, or that belongs to another buffer, is found out when it is read.
"""

from __future__ import annotations

import mmap
import os
from binascii import crc_hqx
from collections.abc import Callable, Sequence
from pathlib import Path
from zlib import crc32

import numpy as np

from gym_replay.buffer.storage.columns import ColumnWriter, encode_header
from gym_replay.buffer.storage.maps import Stretch
from gym_replay.errors import CorruptBufferError
from gym_replay.files.directory import Directory, Folder, open_beneath, storage_error, sync_descriptor

COUNTERS = "commit.npy"

NAMES = ("revision", "base", "first", "next", "summed", "deletions")
LARGEST = (1 << 48) - 1
"""The largest value of a counter."""

_INDEX = {name: index for index, name in enumerate(NAMES)}
_DTYPE = np.dtype("<u8")
_HEADER = encode_header(_DTYPE, (), len(NAMES))
_SIZE = len(_HEADER) + _DTYPE.itemsize * len(NAMES)


class CheckValueError(CorruptBufferError):
    """Something does not match its check value, or belongs to another buffer."""


def _seeds(uuid: str) -> tuple[int, ...]:
    """What the CRC-16 of each counter begins with."""
    return tuple(crc32(f"{uuid}/{name}".encode("utf-8", "surrogatepass")) & 0xFFFF for name in NAMES)


def _word(value: int, seed: int) -> int:
    if not 0 <= value <= LARGEST:
        raise ValueError(f"expected a counter from 0 to {LARGEST}, got {value}")
    return crc_hqx(value.to_bytes(6, "little"), seed) << 48 | value


def encode_counters(uuid: str, values: Sequence[int]) -> bytes:
    """The content of the file with these values of the counters, in the order of ``NAMES``."""
    words = [_word(value, seed) for value, seed in zip(values, _seeds(uuid), strict=True)]
    return _HEADER + np.array(words, _DTYPE).tobytes()


def _check_file(descriptor: int, path: Path | str) -> None:
    content = os.pread(descriptor, _SIZE + 1, 0)
    if len(content) != _SIZE or not content.startswith(_HEADER):
        raise CorruptBufferError(f"{path}: expected {len(NAMES)} 64-bit counters in {_SIZE} bytes")


class _Counter:
    """Reads one of the counters.

    Args:
        index: among ``NAMES``.
    """

    def __init__(self, index: int) -> None:
        self._index = index

    def __get__(self, counters: Counters, owner: type) -> int:
        return counters.value(self._index)


class Counters:
    """The counters of a buffer, shared by all processes through a map.

    Args:
        folder: the buffer's.
        relative: the file's path below it.
        uuid: the buffer's.
        writable: whether they are going to be stored.
        opener: opens the file; by default by its path.

    Raises:
        CorruptBufferError: the file is missing, or is no file of counters.
    """

    def __init__(
        self, folder: Folder, relative: str, uuid: str, *, writable: bool, opener: Callable[[], int] | None = None
    ) -> None:
        self._folder, self._relative = folder, relative
        self._seeds = _seeds(uuid)
        try:
            flags = os.O_RDWR if writable else os.O_RDONLY
            descriptor = open_beneath(folder, relative, flags) if opener is None else opener()
        except FileNotFoundError:
            raise CorruptBufferError(f"{self.path}: the file is missing") from None
        try:
            _check_file(descriptor, self.path)
            self.inode = os.fstat(descriptor).st_ino
            if writable:
                self._map = mmap.mmap(descriptor, _SIZE, access=mmap.ACCESS_WRITE)
                whole = memoryview(self._map)
            else:  # nothing stays open for it
                whole = Stretch(_SIZE, descriptor).array(0, np.dtype("u1"), (_SIZE,)).data
        except OSError as error:
            raise storage_error(error, self.path, 0) from error
        finally:
            os.close(descriptor)
        # A view of 64-bit numbers stores each with one instruction; format 'Q' is little-endian where this runs.
        self._words = whole[len(_HEADER) :].cast("Q")
        self._checked = [-1] * len(NAMES)  # what was there when it was checked the last time

    @property
    def path(self) -> Path:
        """Of the file."""
        return self._folder / self._relative

    @staticmethod
    def create(folder: Directory, relative: str, uuid: str, *, first_id: int = 0, revision: int = 0) -> None:
        """Write the file whole, so that storing into its map can never run out of disk."""
        content = encode_counters(uuid, (revision, first_id, first_id, first_id, first_id, 0))
        writer = ColumnWriter.create(folder, relative, _DTYPE)
        try:
            writer.set_rows(len(NAMES))
            writer.write(0, content[len(_HEADER) :])
            writer.sync()
        finally:
            writer.close()

    revision = _Counter(0)
    """The metadata's revision that the files belong to."""
    base = _Counter(1)
    """Id of the episode in slot 0 of the table."""
    first = _Counter(2)
    """Id of the oldest live episode."""
    next = _Counter(3)
    """Id of the next episode; storing it is the commit."""
    summed = _Counter(4)
    """Episodes below this id have checksums."""
    deletions = _Counter(5)
    """How often episodes were deleted."""

    def put(self, name: str, value: int) -> None:
        """Store one counter."""
        index = _INDEX[name]
        self._words[index] = _word(value, self._seeds[index])

    def cut(self, episode_id: int) -> None:
        """Let go of an episode and all after it."""
        for name in ("summed", "first", "next"):
            self.put(name, min(getattr(self, name), episode_id))

    def sync(self) -> None:
        """Have the counters on the disk before returning.

        Raises:
            StorageError: they may not have reached it.
        """
        try:
            self._map.flush()
            descriptor = open_beneath(self._folder, self._relative, os.O_RDWR)
        except OSError as error:
            raise storage_error(error, self.path, 0) from error
        try:
            sync_descriptor(descriptor, self.path)
        finally:
            os.close(descriptor)

    def check(self) -> None:
        """Raise CorruptBufferError where a counter is damaged, or contradicts another."""
        values = {name: self.value(index) for name, index in _INDEX.items()}
        if any(not values["base"] <= values[name] <= values["next"] for name in ("first", "summed")):
            raise CorruptBufferError(f"{self.path}: the counters contradict one another: {values}")

    def words(self) -> bytes:
        """All counters as they are stored, unchecked: equal to those of before, nothing has changed since."""
        return self._words.tobytes()

    def value(self, index: int) -> int:
        """The counter at an index of ``NAMES``.

        Raises:
            CheckValueError: it was damaged, or is another buffer's.
        """
        word = self._words[index]
        if word != self._checked[index]:
            if _word(word & LARGEST, self._seeds[index]) != word:
                raise CheckValueError(
                    f"{self.path}: the counter {NAMES[index]!r} does not match its check value; "
                    "check_buffer(folder, repair=True) finds the episodes again"
                )
            self._checked[index] = word
        return word & LARGEST
