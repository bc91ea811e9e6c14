"""A file that is written beside its place, and takes its name when it is complete and on the disk."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gym_replay.errors import StorageError
from gym_replay.files.directory import refusal, sync_descriptor, sync_entry

_LONGEST_NAME = 200


@contextmanager
def new_file(target: Path, *, overwrite: bool) -> Iterator[Path]:
    """The path of an empty file, which takes the name of ``target`` at the end, or goes where there was an error.

    Args:
        target: where the file will be.
        overwrite: replace a file that is there.

    Raises:
        StorageError: there is a file already and ``overwrite`` is False, or a folder; or the operating system refused.
    """
    _require_free(target, overwrite)
    made = target.parent / f".{target.name[:_LONGEST_NAME]}.{secrets.token_hex(4)}.gym-replay-new"
    try:
        os.close(os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    except OSError as error:
        raise refusal(error, target, "no file was written") from error
    try:
        yield made
        _require_free(target, overwrite)
        try:
            descriptor = os.open(made, os.O_RDONLY)
            try:
                sync_descriptor(descriptor, made)
            finally:
                os.close(descriptor)
            os.replace(made, target)
        except OSError as error:
            raise refusal(error, target, "the file was not put there") from error
    except BaseException:
        with suppress(OSError):
            made.unlink()
        raise
    sync_entry(target)


def _require_free(target: Path, overwrite: bool) -> None:
    if target.is_dir():
        raise StorageError(errno.EISDIR, "expected the name of a file, found a folder", str(target))
    if not overwrite and os.path.lexists(target):
        text = "there is a file already; choose another name, or overwrite=True to replace it"
        raise StorageError(errno.EEXIST, text, str(target))
