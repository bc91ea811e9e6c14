"""The operating system's limit on open files: said as what it is, and looked at before many are opened."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gym_replay.errors import StorageError

OUT_OF_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)

_RESERVE = 24
"""Descriptors that are left to the rest of the process, such as to what an environment opens in its next step."""


def _limit() -> int:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 1 << 62 if limit == resource.RLIM_INFINITY else limit


def _too_many(folder: Path, number: int, reason: str) -> StorageError:
    return StorageError(
        number,
        f"{reason}; this process may have {_limit()} files open, and a buffer keeps up to two open for each of its "
        "fields; raise the limit (ulimit -n), close other buffers, or record fewer fields, such as entries of infos. "
        "Committed episodes are intact",
        str(folder),
    )


@contextmanager
def naming_the_limit(folder: Path) -> Iterator[None]:
    """Turn the system's refusal to open one more file for a buffer into an error that says so.

    Raises:
        StorageError: too many files are open.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in OUT_OF_DESCRIPTORS:
            raise
        reason = os.strerror(error.errno or errno.EMFILE)
        raise _too_many(folder, error.errno or errno.EMFILE, reason) from error


def require_descriptors(folder: Path, count: int) -> None:
    """Raise StorageError where this process may not open so many files more, and a few in reserve."""
    try:
        used = len(os.listdir("/dev/fd"))
    except OSError as error:
        used = 0 if error.errno not in OUT_OF_DESCRIPTORS else _limit()
    if used + count + _RESERVE > _limit():
        raise _too_many(folder, errno.EMFILE, f"{count} more files are needed, and {used} are open")
