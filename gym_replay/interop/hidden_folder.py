"""A folder that takes its name when it is complete."""

from __future__ import annotations

import errno
import os
import re
import shutil
import socket
import uuid
from pathlib import Path
from typing import Any

from gym_replay.errors import GymReplayError, NotABufferError, StorageError


class HiddenFolder:
    """A context that makes a hidden folder for what will be at ``target``, and removes what is left of it at the end.

    What a killed process of this machine left for the same target is removed first.

    Args:
        target: where the complete folder will be.
        parent: where the hidden one is, on the same file system; beside the target where it is left out.
    """

    def __init__(self, target: Path, parent: Path | None = None) -> None:
        self._target = target
        self._parent = target.parent if parent is None else parent

    def __enter__(self) -> Path:
        head = f".{self._target.name[:100]}.gym-replay-{re.sub(r'[^0-9A-Za-z-]', '-', socket.gethostname())[:60]}-"
        try:
            self._parent.mkdir(parents=True, exist_ok=True)
            for path in self._parent.glob(f"{_literal(head)}*"):
                if not _is_running(path.name[len(head) :].partition("-")[0]):
                    shutil.rmtree(path, ignore_errors=True)
            self._path = self._parent / f"{head}{os.getpid()}-{uuid.uuid4().hex[:8]}"
            self._path.mkdir()
        except OSError as error:
            raise self._refused(error) from error
        return self._path

    def put_in_place(self) -> None:
        """Give the folder its name.

        Raises:
            NotABufferError: there is something now.
        """
        self._target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.rename(self._path, self._target)  # over an empty folder, too
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise NotABufferError(
                    errno.EEXIST, "another process has put something here meanwhile", str(self._target)
                ) from error
            raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        shutil.rmtree(self._path, ignore_errors=True)
        if isinstance(error, OSError) and not isinstance(error, GymReplayError):
            raise self._refused(error) from error

    def _refused(self, error: OSError) -> StorageError:
        return StorageError(
            error.errno or errno.EIO, f"{error.strerror or error}; nothing of it is left here", str(self._target)
        )


def _literal(name: str) -> str:
    """A pattern that only this name matches."""
    return re.sub(r"([*?[])", r"[\1]", name)


def _is_running(digits: str) -> bool:
    try:
        os.kill(int(digits), 0)
    except ProcessLookupError:
        return False
    except (ValueError, OSError):  # no process id, or a process of somebody else
        return True
    return True
