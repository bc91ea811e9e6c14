"""push: a folder put at an address, whole or not at all, and only what is not there yet."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from gym_replay.buffer.concat import opened
from gym_replay.buffer.door import BESIDE_BUFFERS, LABELS, FrozenFile, Snapshot, frozen
from gym_replay.buffer.reading import Readable
from gym_replay.errors import ConfigMismatchError, EmptyBufferError, StorageError, printable
from gym_replay.files.directory import content_beneath
from gym_replay.files.documents import LARGEST
from gym_replay.files.folders import folder_of
from gym_replay.files.threads import submit
from gym_replay.notices import bar, names_nearest_keyword, tell
from gym_replay.remote.card import CARD, check_licence, make_card
from gym_replay.remote.objects.hub import place_at
from gym_replay.remote.objects.manifest import (
    HEAD,
    OBJECTS,
    PART,
    REVISIONS,
    FileParts,
    Head,
    Manifest,
    block_sums,
    check_part_size,
    cuts,
    name_of,
    object_of,
    read_manifest,
    revision_of,
)
from gym_replay.remote.objects.store import Store

_SENDERS = 8
"""Parts that are read, summed and sent at once."""


@dataclass(frozen=True)
class Pushed:
    """What a push has done.

    Attributes:
        url: the address.
        revision: the id of what is there now; ``pull(url, folder, revision=...)`` gets it whatever is pushed later.
        num_episodes, num_steps: how many the revision has.
        nbytes: bytes of its files.
        sent: bytes of those that were not there before.
    """

    url: str
    revision: str
    num_episodes: int
    num_steps: int
    nbytes: int
    sent: int


@names_nearest_keyword
def push(
    folder: str | os.PathLike[str] | Readable,
    url: str,
    *,
    licence: str | None = None,
    card: bool = True,
    overwrite: bool = False,
    part_size: int | None = None,
    storage_options: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> Pushed:
    """Put a folder at an address, from which :func:`pull` and :meth:`ReplayBuffer.from_url` read it.

    The files are cut into parts that are named by their SHA-256. Parts that are there already are not sent again: a
    push that was killed goes on where it was, and of a buffer that has grown only the end of each file is sent. What
    makes a new revision is one small file, written last, so that whoever reads meanwhile sees the old revision or the
    new one. Older revisions stay.

    Somebody may record into the folder meanwhile: the episodes that were committed when a buffer's turn came are
    pushed. Of a ring, those that are evicted while it is read are left out.

    Episodes that were deleted are hidden, and their rows are still in the files: ``select(folder, folder,
    overwrite=True)`` removes them before a push.

    Args:
        folder: the folder of a buffer, a folder with buffers in ``shards/``, a pattern, or a buffer.
        url: where to, with any protocol of fsspec: ``hf://datasets/me/name``, ``s3://bucket/name``,
            ``gs://bucket/name``, ``file:///data/name``, ``memory://name``. Nothing may be there but an older push of
            the same buffers.
        licence: such as ``"mit"``, for the card.
        card: write ``README.md``, a description for people. One that was changed there since is left alone.
        overwrite: push although other buffers were pushed there before, whose revisions stay.
        part_size: bytes of a part, a multiple of 262144; None for that of the push before, at first 8 MiB.
        storage_options: what fsspec's file system is made with, such as ``{"key": ..., "secret": ...}``.
        progress: show a bar where it takes longer than a second.

    Returns:
        What was done, with the id of the revision.

    Raises:
        BufferNotFoundError: there is no buffer in the folder.
        ConfigMismatchError: other buffers were pushed to the address before, or somebody else pushed meanwhile.
        CorruptBufferError: a file of the folder is damaged, or something else is at the address.
        MissingExtraError: a package is not installed; the message names it.
        StorageError: the store, or this machine's disk, refused. What was sent stays there for the next push.

    Example:
        >>> push("data/cartpole", "s3://lab/cartpole", licence="mit").revision  # doctest: +SKIP
        '0f3a...'
    """
    check_licence(licence)
    place = place_at(url, storage_options)
    head = Head.read(place)
    newest = None if head is None else read_manifest(place, head.revision)
    size = check_part_size(part_size if part_size is not None else newest.part_size if newest is not None else PART)
    with opened(folder) as buffer, ExitStack() as stack:
        parts = buffer.snapshots()
        _require_same(parts, newest, place.url, overwrite)
        root = _root_of(folder, [part.reader.folder for part in parts])
        total = sum(_size(part) for part in parts)
        shown = stack.enter_context(bar(total, "push", "B", progress=progress, unit_scale=True))
        sender = stack.enter_context(_Sender(place, size, shown))
        told = {"episodes": 0, "steps": 0}
        for part in parts:
            snapshot = sender.send_buffer(part.reader.folder, root)
            told["episodes"] += len(snapshot)
            told["steps"] += snapshot.num_steps
        sender.send_beside(root, "", BESIDE_BUFFERS)
        uuids = [part.metadata.uuid for part in parts]
        manifest = sender.manifest({**told, "uuids": uuids})
        content = manifest.encode()
        revision = revision_of(content)
        if head is None or head.revision != revision:
            entry = {"revision": revision, **told, "pushed": int(time.time())}
            revisions = (*(head.revisions if head is not None else ()), entry)
            files = make_card(buffer, place.url, licence) if card else {}
            sender.publish(head, revision, content, revisions, files)
        return Pushed(place.url, revision, told["episodes"], told["steps"], manifest.nbytes, sender.sent)


def _require_same(parts: list[Snapshot], newest: Manifest | None, url: str, overwrite: bool) -> None:
    if not parts:
        raise EmptyBufferError("there is no buffer to push")
    if newest is not None and not overwrite:
        before, now = newest.about.get("uuids"), [part.metadata.uuid for part in parts]
        if not isinstance(before, list) or not set(before) <= set(now):
            raise ConfigMismatchError(
                f"{url}: other buffers were pushed there before; choose another address, or overwrite=True to put "
                "these in their stead (their revisions stay)"
            )


def _root_of(folder: Any, folders: list[Path]) -> Path:
    """The folder below which the paths of a data set begin."""
    if len(folders) == 1:
        return folders[0]
    if isinstance(folder, (str, os.PathLike)):
        root = folder_of(folder)
        if root.is_dir() and all(root in each.parents for each in folders):
            return root
    return Path(os.path.commonpath(folders))


def _size(part: Snapshot) -> int:
    """About how many bytes the files of a buffer have."""
    return sum(
        info.nbytes * part.rows for info in part.metadata.fields.values() if not info.has_elements
    ) + part.metadata.record.nbytes * len(part)


class _Sender:
    """Sends files part by part, and knows what it has sent."""

    def __init__(self, place: Store, part_size: int, bar: Any) -> None:
        self._place, self._part_size, self._bar = place, part_size, bar
        self._there = {name.rpartition("/")[2]: size for name, size in place.sizes(OBJECTS).items()}
        self._files: dict[str, FileParts] = {}
        self._sums: list[Any] = []
        self._lock = threading.Lock()
        self.sent = 0

    def __enter__(self) -> _Sender:
        self._threads = ThreadPoolExecutor(_SENDERS, thread_name_prefix="gym_replay-push")
        return self

    def __exit__(self, *details: object) -> None:
        self._threads.shutdown(cancel_futures=True)
        self._place.forget()

    def send_buffer(self, folder: Path, root: Path) -> Snapshot:
        """Send the files of a buffer as they are at one moment; returns the episodes of the moment."""
        prefix = "" if folder == root else f"{folder.relative_to(root).as_posix()}/"
        with frozen(folder) as moment:
            for file in moment.files():
                self._send(prefix, file)
            self.send_beside(folder, prefix, (LABELS,))
            return moment.snapshot

    def send_beside(self, folder: Path, prefix: str, names: tuple[str, ...]) -> None:
        """Send files that may lie beside those of a buffer, or of a data set."""
        for name in names:
            content = content_beneath(folder, name, LARGEST)
            if content is not None and len(content) <= LARGEST and f"{prefix}{name}" not in self._files:
                self._send(prefix, FrozenFile.of_bytes(name, content))

    def _send(self, prefix: str, file: FrozenFile) -> None:
        found = list(self._each_part(file))
        self._files[f"{prefix}{file.path}"] = FileParts(file.size, tuple(name for name, _ in found))
        self._sums += [sums for _, sums in found]

    def _each_part(self, file: FrozenFile) -> Iterator[tuple[str, Any]]:
        """The names and checksums of the parts of a file, in their order, when they are there."""
        waiting: deque[Future[tuple[str, Any]]] = deque()
        for begin, end in pairwise(cuts(file.size, self._part_size)):
            waiting.append(submit(self._threads, self._send_part, file, begin, end))
            if len(waiting) > _SENDERS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def _send_part(self, file: FrozenFile, begin: int, end: int) -> tuple[str, Any]:
        content = file.read(begin, end)
        name = self._put(content)
        with self._lock:
            self._bar.update(len(content))
        return name, block_sums(content)

    def _put(self, content: bytes) -> str:
        """Send an object that is not there yet."""
        name = name_of(content)
        with self._lock:
            is_there = self._there.get(name) == len(content)
            self._there[name] = len(content)  # so that no other thread sends it too
        if not is_there:
            self._place.add(object_of(name), content)
            with self._lock:
                self.sent += len(content)
        return name

    def manifest(self, about: Mapping[str, Any]) -> Manifest:
        """What was sent, as a revision."""
        sums = np.concatenate(self._sums).tobytes() if self._sums else b""
        return Manifest(self._files, self._part_size, self._put(sums), about)

    def publish(
        self,
        before: Head | None,
        revision: str,
        manifest: bytes,
        revisions: tuple[Mapping[str, Any], ...],
        card: Mapping[str, bytes],
    ) -> None:
        """Make the revision the newest one.

        Raises:
            ConfigMismatchError: somebody has pushed since.
            StorageError: the store refused.
        """
        place, known = self._place, before.card if before is not None else None
        if card:
            found = _content_of(place, CARD)
            if found is not None and name_of(found) != known:
                tell(f"{place.url}/{CARD} was changed there, or is not from here, and is left as it is")
            else:
                for name, content in card.items():
                    place.add(name, content)
                known = name_of(card[CARD])
        place.add(f"{REVISIONS}/{revision}.json", manifest)
        now = Head.read(place)
        if (now.content if now is not None else b"") != (before.content if before is not None else b""):
            raise ConfigMismatchError(
                f"{place.url}: somebody else pushed there meanwhile; push once more, what was sent stays there"
            )
        try:
            place.publish(HEAD, Head(revision, revisions, known).encode(), f"Revision {revision[:12]}")
        except StorageError as error:
            raise StorageError(error.errno, printable(f"{error.strerror}; nothing was published"), place.url) from error


def _content_of(place: Store, name: str) -> bytes | None:
    try:
        return place.read_anew(name, LARGEST)
    except FileNotFoundError:
        return None
