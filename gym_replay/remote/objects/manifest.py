"""Which objects are a revision of a data set: its files, cut into parts that are named by their checksums.

```
gym_replay.json               which revision is the newest, and which there are
revisions/<id>.json           the files of a revision, by path: size, and the names of its parts
objects/ab/abcd...            a part of a file, named by the SHA-256 of its bytes
```

An object never changes, and a part that two revisions or files have in common is there once. ``gym_replay.json`` is
written last: a push that was killed before it has changed nothing, and its objects are found by the next one.
"""

from __future__ import annotations

import errno
import hashlib
import json
import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np
import numpy.typing as npt

from gym_replay.errors import BufferNotFoundError, CorruptBufferError, FieldError, UnsupportedFormatError
from gym_replay.files.documents import LARGEST, parse_json, size_fault
from gym_replay.files.folders import DEEPEST
from gym_replay.remote.objects.store import Store

HEAD = "gym_replay.json"
OBJECTS = "objects"
REVISIONS = "revisions"

BLOCK = 1 << 18
"""Bytes that a range request has at least: each block has a checksum of its own, so that a range is verified too."""

PART = 1 << 23
"""Bytes of a part, where nobody says."""

_LARGEST_PART = 1 << 30
_LARGEST_FILE = 1 << 60
_FORMAT = {"format": "gym_replay data set", "version": 1}
_NAME = re.compile(r"[0-9a-f]{64}")
_REVISION = re.compile(r"[0-9a-f]{32}")
_LONGEST_COMPONENT = 255
_SUM = np.dtype("<u4")


def object_of(name: str) -> str:
    """Where the object with this checksum lies."""
    return f"{OBJECTS}/{name[:2]}/{name}"


def name_of(content: bytes | memoryview) -> str:
    """The name of an object with this content: its SHA-256."""
    return hashlib.sha256(content).hexdigest()


def block_sums(content: bytes | memoryview) -> npt.NDArray[np.uint32]:
    """The CRC-32 of each block of a part."""
    view = memoryview(content)
    return np.array([crc32(view[begin : begin + BLOCK]) for begin in range(0, len(view), BLOCK)], _SUM)


@lru_cache(maxsize=1024)
def cuts(size: int, part_size: int) -> tuple[int, ...]:
    """Where the parts of a file begin, and where the last one ends.

    A file of rows grows at its end, and its header, in the first bytes, changes then. So the first block is a part of
    its own, and what lies behind the last multiple of ``part_size`` is cut into halves, quarters and so on, as many as
    fit: where the file has grown by little, the large ones among these are the same as before.

    Example:
        >>> [at // BLOCK for at in cuts(19 * BLOCK, 8 * BLOCK)]
        [0, 1, 8, 16, 18, 19]
    """
    found = [0, BLOCK, *range(part_size, size + 1, part_size)]
    found = sorted({at for at in found if at < size} | {0})
    step = part_size // 2 // BLOCK * BLOCK
    while step >= BLOCK:
        if size - found[-1] > step:
            found.append(found[-1] + step)
        step = step // 2 // BLOCK * BLOCK
    return (*found, size) if size else (0,)


class FileParts(NamedTuple):
    """A file of a revision.

    Attributes:
        size: its bytes.
        parts: the names of its parts, in their order.
    """

    size: int
    parts: tuple[str, ...]


@dataclass(frozen=True)
class Manifest:
    """The files of a revision.

    Attributes:
        files: by path.
        part_size: bytes of a part, see :func:`cuts`.
        sums: the name of the object with the CRC-32 of each block of each file, uint32, in the order of the files.
        about: what somebody who looks for a revision wants to know: ``episodes``, ``steps``, and the ``uuids`` of the
            buffers.
    """

    files: Mapping[str, FileParts]
    part_size: int
    sums: str
    about: Mapping[str, Any]

    def part_range(self, path: str, index: int) -> tuple[int, int]:
        """Which bytes of a file a part has."""
        edges = cuts(self.files[path].size, self.part_size)
        return edges[index], edges[index + 1]

    @property
    def nbytes(self) -> int:
        """Of all files."""
        return sum(info.size for info in self.files.values())

    def blocks(self) -> dict[str, slice]:
        """Where the checksums of each file's blocks are among all of them."""
        found, begin = {}, 0
        for path, info in self.files.items():
            end = begin - (-info.size // BLOCK)
            found[path] = slice(begin, end)
            begin = end
        return found

    def encode(self) -> bytes:
        """The manifest as JSON.

        Raises:
            FieldError: there are too many parts.
        """
        files = [{"path": path, "size": info.size, "parts": list(info.parts)} for path, info in self.files.items()]
        document = {**_FORMAT, "part_size": self.part_size, "sums": self.sums, "about": self.about, "files": files}
        content = json.dumps(document, indent=0, allow_nan=False).encode()
        if fault := size_fault(content):
            raise FieldError(
                f"part_size={self.part_size}: the list of parts is too large ({fault}); take larger parts, and push to "
                "another address"
            )
        return content


def check_part_size(size: int) -> int:
    """Raise FieldError where parts cannot have this size."""
    if size % BLOCK or not BLOCK <= size <= _LARGEST_PART:
        raise FieldError(f"part_size={size}: expected a multiple of {BLOCK}, up to {_LARGEST_PART}")
    return size


def revision_of(content: bytes) -> str:
    """The id of the revision with this manifest."""
    return hashlib.sha256(content).hexdigest()[:32]


class _Fault(Exception):
    """What is wrong with a document; becomes a CorruptBufferError that names it."""


def _parsed(content: bytes, where: str) -> dict[str, Any]:
    try:
        document = parse_json(content)
    except ValueError as error:
        raise CorruptBufferError(f"{where}: {error}") from None
    if not isinstance(document, dict) or document.get("format") != _FORMAT["format"]:
        raise CorruptBufferError(f"{where}: this is no data set that gym_replay pushed")
    if document.get("version") != _FORMAT["version"]:
        raise UnsupportedFormatError(
            f"{where}: version {document.get('version')!r:.30} of a data set; this version of gym_replay reads version "
            f"{_FORMAT['version']}; pip install --upgrade gym-replay"
        )
    return document


def _decode(content: bytes, where: str) -> Manifest:
    document = _parsed(content, where)
    try:
        part_size = document.get("part_size")
        if type(part_size) is not int:
            raise _Fault("'part_size' is missing")
        check_part_size(part_size)
        files: dict[str, FileParts] = {}
        for entry in _list(document, "files"):
            if not isinstance(entry, dict):
                raise _Fault("'files': expected objects with a path, a size and parts")
            path, size = entry.get("path"), entry.get("size")
            if not isinstance(path, str) or not _is_path(path) or path in files:
                raise _Fault(f"'files': {path!r:.200} is no path of a file, or comes twice")
            if type(size) is not int or not 0 <= size < _LARGEST_FILE:
                raise _Fault(f"'files': {path!r:.200} has a size of {size!r:.30}")
            names = _names(entry.get("parts"))
            if not -(-size // part_size) <= len(names) <= size or len(names) != len(cuts(size, part_size)) - 1:
                raise _Fault(f"'files': {path!r:.200} has {len(names)} parts, which are not its {size} bytes")
            files[path] = FileParts(size, names)
        about, (sums,) = document.get("about"), _names([document.get("sums")])
        return Manifest(files, part_size, sums, about if isinstance(about, dict) else {})
    except (_Fault, FieldError) as fault:
        raise CorruptBufferError(f"{where}: {fault}") from None


def _list(document: Mapping[str, Any], key: str) -> list[Any]:
    found = document.get(key)
    if not isinstance(found, list):
        raise _Fault(f"{key!r}: expected a list")
    return found


def _names(found: Any) -> tuple[str, ...]:
    if not isinstance(found, list) or not all(isinstance(name, str) and _NAME.fullmatch(name) for name in found):
        raise _Fault("expected names of objects, of 64 hexadecimal digits each")
    return tuple(found)


def _is_path(path: str) -> bool:
    """Whether this is the path of a file below a folder, that leads nowhere else."""
    components = path.split("/")
    return len(components) < DEEPEST and all(
        component and not component.startswith(".") and "\0" not in component and len(component) <= _LONGEST_COMPONENT
        for component in components
    )


@dataclass(frozen=True)
class Head:
    """What ``gym_replay.json`` says.

    Attributes:
        revision: the id of the newest revision.
        revisions: all of them, the oldest first: ``revision``, ``episodes``, ``steps``, and when it was ``pushed``.
        card: the checksum of the card as it was written last.
        content: the document as it was read.
    """

    revision: str
    revisions: tuple[Mapping[str, Any], ...]
    card: str | None = None
    content: bytes = field(default=b"", compare=False)

    @classmethod
    def read(cls, store: Store) -> Head | None:
        """What there is at an address; None where there is nothing.

        Raises:
            CorruptBufferError: it is something else.
            StorageError: the store refused.
        """
        try:
            content = store.read_anew(HEAD, LARGEST + 1)
        except FileNotFoundError:
            return None
        where = f"{store.url}/{HEAD}"
        document = _parsed(content, where)
        revision, revisions = document.get("revision"), document.get("revisions")
        are_sound = isinstance(revisions, list) and all(
            isinstance(each, dict) and _is_revision(each.get("revision")) for each in revisions
        )
        if not _is_revision(revision) or not are_sound or not revisions:
            raise CorruptBufferError(f"{where}: expected the ids of revisions")
        card = document.get("card")
        return cls(str(revision), tuple(revisions), card if isinstance(card, str) else None, content)

    def encode(self) -> bytes:
        """The head as JSON."""
        document = {**_FORMAT, "revision": self.revision, "revisions": list(self.revisions), "card": self.card}
        return json.dumps(document, indent=1).encode()

    def find(self, revision: str | None, url: str) -> str:
        """The id of a revision that is given by its id, or by how that begins; of the newest one for None.

        Raises:
            BufferNotFoundError: there is none; the message has the last ones that there are.
            FieldError: there are several, or it is no text.
        """
        if revision is None:
            return self.revision
        if not isinstance(revision, str):
            raise FieldError(f"revision={revision!r:.80}: expected the id of a revision, or how that begins, as a str")
        known = [str(each["revision"]) for each in self.revisions]
        found = sorted({each for each in known if each.startswith(revision)}) if revision else []
        if len(found) > 1:
            raise FieldError(f"revision={revision!r:.80}: {len(found)} revisions begin like this; give more digits")
        if not found:
            last = ", ".join(each[:12] for each in known[-5:])
            raise BufferNotFoundError(
                errno.ENOENT, f"there is no revision {revision!r:.80}; the last ones are {last}", url
            )
        return found[0]


def _is_revision(revision: Any) -> bool:
    return isinstance(revision, str) and _REVISION.fullmatch(revision) is not None


def read_manifest(store: Store, revision: str) -> Manifest:
    """The files of a revision.

    Raises:
        CorruptBufferError: the manifest is missing or damaged.
        StorageError: the store refused.
    """
    name = f"{REVISIONS}/{revision}.json"
    try:
        content = store.read(name, 0, LARGEST + 1)
    except FileNotFoundError:
        raise CorruptBufferError(f"{store.url}/{name}: the object is missing") from None
    if revision_of(content) != revision:
        raise CorruptBufferError(f"{store.url}/{name}: it does not match its checksum")
    return _decode(content, f"{store.url}/{name}")


class Published:
    """A revision of a data set at an address. Whatever is pushed later, it stays what it is.

    Args:
        store: where.
        revision: its id, or how that begins; None for the newest.

    Attributes:
        revision: the id.
        manifest: its files.

    Raises:
        BufferNotFoundError: there is no data set, or no such revision.
        CorruptBufferError: what is there is damaged.
        StorageError: the store refused.
    """

    def __init__(self, store: Store, revision: str | None = None) -> None:
        self.store = store
        head = Head.read(store)
        if head is None:
            raise BufferNotFoundError(
                errno.ENOENT, "no data set here that gym_replay pushed; check the address", store.url
            )
        self.revision = head.find(revision, store.url)
        self.manifest = read_manifest(store, self.revision)

    def __reduce__(self) -> tuple[Any, ...]:
        return Published, (self.store, self.revision)

    def part(self, path: str, index: int) -> bytes:
        """A part of a file, compared with its checksum.

        Raises:
            CorruptBufferError: the object is missing, cut or changed.
            StorageError: the store refused.
        """
        begin, end = self.manifest.part_range(path, index)
        return self._object(self.manifest.files[path].parts[index], end - begin)

    def _object(self, name: str, nbytes: int) -> bytes:
        place = object_of(name)
        try:
            content = self.store.read(place, 0, nbytes) if nbytes else b""
        except FileNotFoundError:
            raise CorruptBufferError(f"{self.store.url}/{place}: the object is missing; {_AGAIN}") from None
        if len(content) != nbytes:
            what = f"expected {nbytes} bytes, got {len(content)}"
            raise CorruptBufferError(f"{self.store.url}/{place}: {what}; {_AGAIN}")
        if name_of(content) != name:
            raise CorruptBufferError(f"{self.store.url}/{place}: it does not match its checksum; {_AGAIN}")
        return content

    def content(self, path: str) -> bytes:
        """All bytes of a small file, such as one of JSON.

        Raises:
            CorruptBufferError: there is no such file, it is too large, or an object of it is damaged.
            StorageError: the store refused.
        """
        info = self.manifest.files.get(path)
        if info is None or info.size > LARGEST:
            what = "missing" if info is None else f"larger than {LARGEST} bytes"
            raise CorruptBufferError(f"{self.store.url}: the file {path} of revision {self.revision[:12]} is {what}")
        return b"".join(self.part(path, index) for index in range(len(info.parts)))

    def sums(self) -> dict[str, npt.NDArray[np.uint32]]:
        """The CRC-32 of each block, by file; raises as :meth:`part` does."""
        blocks = self.manifest.blocks()
        total = max((one.stop for one in blocks.values()), default=0)
        content = np.frombuffer(self._object(self.manifest.sums, total * _SUM.itemsize), _SUM)
        return {path: content[one] for path, one in blocks.items()}

    def run(self, path: str, first: int, last: int, sums: npt.NDArray[np.uint32]) -> bytes:
        """The blocks ``first`` to ``last - 1`` of a file, all of one part, compared with their checksums.

        Raises:
            CorruptBufferError: the object is missing, cut or changed.
            StorageError: the store refused.
        """
        info = self.manifest.files[path]
        begin, end = first * BLOCK, min(last * BLOCK, info.size)
        index = bisect_right(edges := cuts(info.size, self.manifest.part_size), begin) - 1
        place, before = object_of(info.parts[index]), edges[index]
        try:
            content = self.store.read(place, begin - before, end - before)
        except FileNotFoundError:
            raise CorruptBufferError(f"{self.store.url}/{place}: the object is missing; {_AGAIN}") from None
        if len(content) != end - begin:
            what = f"expected {end - begin} bytes from {begin - before} on, got {len(content)}"
            raise CorruptBufferError(f"{self.store.url}/{place}: {what}; {_AGAIN}")
        if not np.array_equal(block_sums(content), sums[first:last]):
            raise CorruptBufferError(f"{self.store.url}/{place}: a block does not match its checksum; {_AGAIN}")
        return content

    def runs(self, path: str, blocks: npt.NDArray[np.int64], most: int) -> Iterator[tuple[int, int]]:
        """Ascending blocks of a file as runs of up to ``most``, each in one part: the first, and past the last."""
        if len(blocks):
            edges_of_parts = np.array(cuts(self.manifest.files[path].size, self.manifest.part_size)) // BLOCK
            owners = np.searchsorted(edges_of_parts[:-1], blocks, side="right")
            apart = (np.diff(blocks) != 1) | (owners[1:] != owners[:-1])
            edges = [0, *(np.flatnonzero(apart) + 1).tolist(), len(blocks)]
            for low, high in pairwise(edges):
                for first in range(int(blocks[low]), int(blocks[high - 1]) + 1, most):
                    yield first, min(first + most, int(blocks[high - 1]) + 1)


_AGAIN = "delete it there, and push again from a folder that is whole"
