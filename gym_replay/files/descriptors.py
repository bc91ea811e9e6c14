"""The operating system's limit on open files: looked at before many are opened, and named where it was met."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path

from gym_replay.errors import StorageError

OUT_OF_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)

_RESERVE = 24
"""Descriptors that are left to the rest of the process, such as to what an environment opens in its next step."""


def _limit() -> int:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 1 << 62 if limit == resource.RLIM_INFINITY else limit


def too_many_files() -> str:
    """What the limit of this process is, and what can be done about it."""
    return (
        f"this process may have {_limit()} files open, and a buffer keeps up to two open for each of its fields; raise "
        "the limit (ulimit -n), close other buffers, or record fewer fields, such as entries of infos"
    )


def require_descriptors(folder: Path, count: int) -> None:
    """Raise StorageError where this process may not open so many files more, and a few in reserve."""
    try:
        used = len(os.listdir("/dev/fd"))
    except OSError as error:
        used = 0 if error.errno not in OUT_OF_DESCRIPTORS else _limit()
    if used + count + _RESERVE > _limit():
        reason = f"{count} more files are needed, and {used} are open; {too_many_files()}"
        raise StorageError(errno.EMFILE, f"{reason}. Committed episodes are intact", str(folder))
