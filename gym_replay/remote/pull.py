"""pull: a data set, or chosen episodes of it, from an address into a folder, whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from gym_replay.buffer.agreement import Wanted
from gym_replay.buffer.concat import ConcatReplayBuffer
from gym_replay.buffer.copying import select
from gym_replay.buffer.door import MirroredFolder, buffers_in, check_replaceable, has_buffer
from gym_replay.buffer.loading.selection import Episodes
from gym_replay.buffer.replay_buffer import ReplayBuffer, open_lazily
from gym_replay.errors import CorruptBufferError, GymReplayError, NotABufferError, StorageError
from gym_replay.files.directory import Directory
from gym_replay.files.folders import bytes_beneath, entries_beneath, folder_of
from gym_replay.files.lock import WriterLock
from gym_replay.files.new_folder import NewFolder, folder_beside
from gym_replay.files.threads import submit
from gym_replay.files.writing import read_at, write_at
from gym_replay.notices import bar, names_nearest_keyword
from gym_replay.remote.objects.manifest import Published, name_of
from gym_replay.remote.objects.mirror import Mirror
from gym_replay.remote.objects.store import Store

_RECEIVERS = 16
"""Parts that are fetched, compared and written at once."""

_LEAST_CACHE = 1 << 28


@names_nearest_keyword
def pull(
    url: str,
    folder: str | os.PathLike[str],
    *,
    revision: str | None = None,
    episodes: Episodes | None = None,
    where: str | None = None,
    fields: Wanted = None,
    overwrite: bool = False,
    storage_options: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> ReplayBuffer | ConcatReplayBuffer:
    """Get what was pushed to an address into a new folder.

    Without conditions the folder is the one that was pushed, file by file. Each part is compared with its SHA-256. The
    folder appears under its name when it is complete and synced; until then it lies beside it as
    ``.<name>.gym-replay-new``. A pull that was cut goes on where it was: what is there already is compared, and not
    fetched again.

    With ``episodes``, ``where`` or ``fields`` only the rows that are needed are fetched, by range requests, and copied
    as :func:`select` does; the new buffer has ids of its own. What was fetched is compared with the checksums of its
    blocks, and then each episode with its own. It lies in ``.<name>.gym-replay-pull`` beside the folder until the
    buffer is complete, so that such a pull does not fetch again, either, what was there when it was cut.

    Whatever is pushed meanwhile, one revision is pulled.

    Args:
        url: the address that :func:`push` was given.
        folder: the new folder; nothing may be there, or an empty folder.
        revision: the id of a revision, or how that begins; None for the newest.
        episodes: which episodes, as for the loaders.
        where: a condition on episodes, such as ``"episode_return > 300"``.
        fields: names of the fields to get.
        overwrite: replace the buffer that is there, once the new one is complete.
        storage_options: what fsspec's file system is made with, such as credentials.
        progress: show a bar where it takes longer than a second.

    Returns:
        The new buffer; of a data set of several buffers, all of them as one.

    Raises:
        BufferNotFoundError: there is no data set at the address, or no such revision.
        CorruptBufferError: an object there is missing, cut or changed; the message names it.
        EmptyBufferError: no episode is chosen.
        FieldError: an argument is wrong.
        MissingExtraError: the package of the protocol is not installed.
        NotABufferError: there is something at the target.
        StorageError: the store, or this machine's disk, refused; what was fetched is kept for the next attempt.
        In each of these cases nothing is at the target but what was there.

    Example:
        >>> buffer = pull("hf://datasets/me/cartpole", "data/cartpole")  # doctest: +SKIP
        >>> pull("s3://lab/ant", "data/good", where="episode_return > 3000")  # doctest: +SKIP
    """
    target = folder_of(folder)
    check_replaceable(target, overwrite=overwrite)
    store = Store(url, storage_options)
    if episodes is None and where is None and fields is None:
        is_one = _pull_all(Published(store, revision), target, overwrite, progress)
        return ReplayBuffer.from_folder(target) if is_one else ConcatReplayBuffer(target)
    chosen = {"episodes": episodes, "where": where, "fields": fields}
    return _pull_some(Published(store, revision), target, overwrite=overwrite, progress=progress, **chosen)


def _pull_all(published: Published, target: Path, overwrite: bool, progress: bool) -> bool:
    """Pull a revision; whether it is one buffer."""
    buffers = buffers_in(published)
    is_one = list(buffers) == [""]
    if not is_one and has_buffer(target):
        raise NotABufferError(
            errno.EEXIST, f"the data set has {len(buffers)} buffers; choose a folder where nothing is", str(target)
        )
    new = NewFolder(target, resume=True)
    old = WriterLock(target) if is_one and overwrite and has_buffer(target) else None
    try:
        _fill(published, new.folder, progress)
        for prefix in buffers:
            with ReplayBuffer.from_folder(new.folder / prefix, read_only=True):
                pass  # which compares its files with one another
        new.publish(old)
    except (CorruptBufferError, StorageError, OSError) as error:
        new.leave()
        raise _failure(error, target, new.folder.parent) from error
    except BaseException:
        new.leave()
        raise
    else:
        new.discard()
        return is_one
    finally:
        if old is not None:
            old.release()


def _pull_some(published: Published, target: Path, **options: Any) -> ReplayBuffer:
    """Pull chosen episodes or fields; what was fetched stays beside the target until they are complete."""
    kept = folder_beside(target, "pull")
    kept.parent.mkdir(parents=True, exist_ok=True)
    room = shutil.disk_usage(kept.parent).free // 2  # the other half is for the new buffer
    mirror, keep = Mirror(published, cache_bytes=max(room, _LEAST_CACHE), kept=kept), True
    try:
        buffers = [open_lazily(MirroredFolder(mirror, prefix)) for prefix in buffers_in(published)]
        with ConcatReplayBuffer(buffers) as source:
            made = select(source, target, **options)
        keep = False
        return made
    except (CorruptBufferError, StorageError, OSError) as error:
        raise _failure(error, target, kept) from error
    except Exception:
        keep = False  # the same call would raise it again
        raise
    finally:
        mirror.close(keep=keep)


def _failure(error: Exception, target: Path, kept: Path) -> Exception:
    """An error that says what is left, and how to go on."""
    hint = f"nothing is at {target}; the same call goes on with what is in {kept}, which may be deleted"
    if isinstance(error, GymReplayError) and not isinstance(error, OSError):
        return type(error)(f"{error}; {hint}")
    if isinstance(error, StorageError) or not isinstance(error, GymReplayError):
        reason = (getattr(error, "strerror", None) or str(error)).partition(" (free some")[0]
        number = getattr(error, "errno", None) or errno.EIO
        return StorageError(number, f"{reason}; {hint}", getattr(error, "filename", None) or str(target))
    return error


def _fill(published: Published, folder: Path, progress: bool) -> None:
    """Have all files of a revision in a folder that may have some of them, and no others."""
    files = published.manifest.files
    with Directory(folder) as directory:
        for path, entry in list(entries_beneath(folder)):
            if path not in files and not entry.is_dir(follow_symlinks=False):
                directory.unlink(path)
        _require_room(published, folder)
        known = {path for path in files if _sized(directory, path, files[path].size)}
        with bar(published.manifest.nbytes, "pull", "B", progress=progress, unit_scale=True) as shown:
            for nbytes in _receive(published, directory, known):
                shown.update(nbytes)


def _require_room(published: Published, folder: Path) -> None:
    """Raise StorageError where the disk cannot take what is missing."""
    missing = published.manifest.nbytes - bytes_beneath(folder, on_disk=True)
    free = shutil.disk_usage(folder).free
    if missing > free:
        raise StorageError(
            errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: {missing} more bytes are needed, {free} are free", str(folder)
        )


def _sized(directory: Directory, path: str, size: int) -> bool:
    """Have a file of this size; whether there was something of it."""
    directory.make_parents(path)
    descriptor = directory.open(path, os.O_RDWR | os.O_CREAT)
    try:
        was_there = os.fstat(descriptor).st_size > 0
        os.ftruncate(descriptor, size)
        return was_there
    finally:
        os.close(descriptor)


def _receive(published: Published, directory: Directory, known: set[str]) -> Iterator[int]:
    """Fetch all parts, several at a time; how many bytes each has when it is there."""
    threads = ThreadPoolExecutor(_RECEIVERS, thread_name_prefix="gym_replay-pull")
    waiting: deque[Future[int]] = deque()
    try:
        for path, info in published.manifest.files.items():
            for index in range(len(info.parts)):
                waiting.append(submit(threads, _place, published, directory, path, index, path in known))
                if len(waiting) > 2 * _RECEIVERS:
                    yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        threads.shutdown(cancel_futures=True)


def _place(published: Published, directory: Directory, path: str, index: int, may_be_there: bool) -> int:
    """Have a part of a file in its place; returns its size."""
    begin, end = published.manifest.part_range(path, index)
    descriptor = directory.open(path, os.O_RDWR)
    try:
        is_there = may_be_there and _has(descriptor, begin, end, published.manifest.files[path].parts[index])
        if not is_there:
            write_at(descriptor, published.part(path, index), begin, directory / path)
    finally:
        os.close(descriptor)
    return end - begin


def _has(descriptor: int, begin: int, end: int, name: str) -> bool:
    """Whether a file has the bytes of this checksum in this place."""
    content = read_at(descriptor, end - begin, begin)
    return len(content) == end - begin and name_of(content) == name
