"""Creating a buffer's files: in an empty folder, instead of an older buffer, or anew to clear it."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path

from gym_replay.buffer.storage.columns import ColumnWriter
from gym_replay.buffer.storage.counters import COUNTERS, Counters
from gym_replay.buffer.storage.layout import (
    METADATA,
    NEW,
    STEPS,
    TOP_FILES,
    Metadata,
    finish_switch,
    foreign_files,
    read_metadata,
    remove_leftovers,
    switch_files,
)
from gym_replay.buffer.storage.reader import has_buffer
from gym_replay.errors import CorruptBufferError, FieldError, GymReplayError, NotABufferError
from gym_replay.files.directory import Directory
from gym_replay.files.folders import entries_beneath, is_too_deep
from gym_replay.files.lock import LOCK_NAME, WriterLock
from gym_replay.schema.fields import parse_fields, require_codecs

_STATISTICS = "statistics.json"


def check_config(metadata: Metadata) -> None:
    """Raise FieldError where a buffer of this config cannot be created."""
    if not metadata.fields:
        raise FieldError("a new buffer needs fields=..., for example fields={'state': ('float', 4), 'reward': 'float'}")
    parse_fields(metadata.fields)
    parse_fields(metadata.meta_fields, "meta field")
    metadata.check_sizes()
    if texts := [name for name, info in metadata.fields.items() if info.is_text]:
        raise FieldError(
            f"field {texts[0]!r}: only meta fields can be strings; for one at each step use "
            "Field('uint8', ragged=True) and the string's UTF-8 bytes"
        )
    if ragged := [name for name, info in metadata.meta_fields.items() if info.has_elements]:
        raise FieldError(f"meta field {ragged[0]!r}: only fields of the steps can be ragged or have a codec")
    require_codecs(metadata.fields)
    if metadata.circular and metadata.table_capacity is None:
        raise FieldError("circular=True needs max_episodes or max_steps: a ring has a size")
    for name in ("max_episodes", "max_timesteps", "max_steps"):
        limit = getattr(metadata, name)
        if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 1):
            raise FieldError(f"{name}: expected a positive integer or None, got {limit!r}")
    if both := sorted(set(metadata.fields) & set(metadata.meta_fields)):
        raise FieldError(f"{both[0]!r} is both a field and a meta field; rename one of them")


def check_target(folder: Path, *, overwrite: bool) -> None:
    """Raise NotABufferError where creating a buffer would touch files that are not a buffer's."""
    if folder.exists() and not folder.is_dir():
        raise NotABufferError(errno.EEXIST, "expected a folder, found a file", str(folder))
    if not folder.is_dir() or has_buffer(folder):
        return
    foreign = foreign_files(folder)
    if foreign and not has_buffer(folder):  # it may have been created while its files were looked at
        raise NotABufferError(
            errno.EEXIST,
            f"the folder holds no buffer but other files ({', '.join(foreign[:3])}); nothing was "
            f"{'overwritten' if overwrite else 'created'}: choose another folder, or empty this one yourself",
            str(folder),
        )


def check_replaceable(folder: Path, *, overwrite: bool) -> None:
    """Raise an error where a complete buffer, made elsewhere, cannot take the place of what is in a folder.

    It can where there is nothing, an empty folder or, with ``overwrite``, a buffer and nothing else.

    Raises:
        NotABufferError: something is in the way.
        BufferLockedError: somebody is creating a buffer there.
        CorruptBufferError: it cannot be told which files are those of the buffer that is there.
    """
    check_target(folder, overwrite=overwrite)
    reason, is_buffer = "", has_buffer(folder)
    if inside := next((parent for parent in folder.parents if has_buffer(parent)), None):
        reason = f"inside of the buffer at {inside}; choose a folder beside it"
    elif is_buffer and not overwrite:
        reason = "there is a buffer already; choose another folder, or overwrite=True to replace it"
    elif folder.is_symlink():
        reason = "expected a folder or nothing, found a link; name its target"
    elif is_buffer and (others := _beside_buffer(folder)):
        reason = f"beside the buffer, the folder holds other files ({', '.join(others[:3])}); move them away"
    elif not is_buffer and folder.is_dir() and (found := sorted(os.listdir(folder))):
        if LOCK_NAME in found:
            WriterLock(folder).release()  # BufferLockedError where somebody is just creating a buffer
        reason = f"the folder is not empty: it holds {found[0]!r}"  # may be what an interrupted creation left
    if reason:
        raise NotABufferError(errno.EEXIST, reason, str(folder))


def _beside_buffer(folder: Path) -> list[str]:
    """Files in a buffer's folder that are not the buffer's."""
    try:
        metadata = read_metadata(folder)
    except GymReplayError as error:
        raise CorruptBufferError(f"{error}; delete the folder yourself to put a copy in its place") from error
    own = {*TOP_FILES, _STATISTICS, *metadata.columns, *metadata.obsolete}
    own |= {LOCK_NAME, *(path + NEW for path in own)}
    others = []
    for relative, entry in entries_beneath(folder):
        is_room = entry.is_dir(follow_symlinks=False) and relative.partition("/")[0] == STEPS
        if entry.is_symlink() or is_too_deep(relative) or not (is_room or relative in own):
            others.append(relative)
    return sorted(others)


def create_files(folder: Directory, metadata: Metadata, *, first_id: int = 0, sync: bool) -> Metadata:
    """Create an empty buffer, replacing the one that may be there. The caller holds the lock.

    Until the new metadata is in place the old buffer stands whole, and from then on the new one does; with ``sync``
    also after a power loss. Readers keep the old files until they refresh.

    Args:
        metadata: of the new buffer; that of the old one where it is cleared, which goes on with its ``first_id``.

    Returns:
        The metadata as written.
    """
    obsolete: set[str] = set()
    if folder.exists(METADATA):
        try:
            old = read_metadata(folder)
        except GymReplayError as error:
            raise CorruptBufferError(f"{error}; delete the folder yourself to create a buffer in its place") from error
        old = finish_switch(folder, old)
        obsolete = set(old.columns) - set(metadata.columns)
    else:
        remove_leftovers(folder)
    try:
        for path, (dtype, shape) in metadata.columns.items():
            ColumnWriter.create(folder, path + NEW, dtype, shape).close()
        # Two revisions on: one for the switch, one for the metadata without its list.
        Counters.create(folder, COUNTERS + NEW, metadata.uuid, first_id=first_id, revision=metadata.revision + 2)
    except BaseException:
        remove_leftovers(folder)
        raise
    clean = replace(metadata, pending=(), obsolete=())
    return switch_files(folder, clean, [*metadata.columns, COUNTERS], obsolete=sorted(obsolete), sync=sync)
