"""What nobody may touch: an audit hook for paths outside a folder, and digests of what must stay as it is."""

from __future__ import annotations

import hashlib
import os
import re
import stat
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import gym_replay

from .victims import USER_FILES

PACKAGE = Path(gym_replay.__file__).parent
_READABLE = tuple(
    os.path.realpath(path) + "/" for path in {sys.prefix, sys.base_prefix, PACKAGE.parent, Path(os.__file__).parent}
)
_DEVICES = ("/dev/null", "/dev/urandom", "/proc/")
_PATH_EVENTS = {
    "os.remove": 1,
    "os.rename": 2,
    "os.mkdir": 1,
    "os.rmdir": 1,
    "os.truncate": 1,
    "os.chmod": 1,
    "os.chown": 1,
    "os.link": 2,
    "os.symlink": 2,
    "os.listdir": 1,
    "os.scandir": 1,
    "os.utime": 1,
    "os.chdir": 1,
    "shutil.rmtree": 1,
}
_FORBIDDEN = ("subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.fork", "socket.", "ctypes.", "pickle.")


class Guard:
    """An audit hook that reports every path opened or changed outside of what a case may touch."""

    def __init__(self, allowed: Iterable[Path], report: Callable[[str, str], None]) -> None:
        self._allowed = tuple(str(path) for path in allowed)
        self._report = report
        self._inside = False

    def install(self) -> None:
        sys.addaudithook(self)

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._inside:
            return
        self._inside = True
        try:
            self._look(event, arguments)
        finally:
            self._inside = False

    def _look(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            self._look_at_path(event, arguments[0], int(arguments[2] or 0))
        elif event in _PATH_EVENTS:
            for path in arguments[: _PATH_EVENTS[event]]:
                # What is removed, renamed or made is the entry itself: its last component is not followed.
                listing = event in ("os.listdir", "os.scandir", "os.truncate", "os.chmod", "os.utime", "os.chdir")
                self._look_at_path(event, path, 0 if listing else os.O_NOFOLLOW)
        elif event == "import" and str(arguments[0]).startswith("hostile_module"):
            self._say(event, str(arguments[0]))
        elif event.startswith(_FORBIDDEN) and event != "ctypes.get_errno":  # which tells why a map was refused
            self._say(event, repr(arguments)[:200])

    def _look_at_path(self, event: str, path: Any, flags: int) -> None:
        if isinstance(path, int) or path is None:
            return
        name = os.fsdecode(path)
        if name == "<unknown>":  # where Python looks for the line of a syntax error in a literal
            return
        if not os.path.isabs(name):
            # Relative to an open folder: then it must be one component that is not followed.
            if "/" in name or name == ".." or not flags & os.O_NOFOLLOW:
                self._say(event, name)
            return
        head, tail = os.path.split(name)
        real = os.path.join(os.path.realpath(head), tail) if flags & os.O_NOFOLLOW else os.path.realpath(name)
        real = os.path.normpath(real)
        if any(real == allowed or real.startswith(allowed + "/") for allowed in self._allowed):
            return
        reads = event in ("open", "os.listdir", "os.scandir")
        writes = not reads or flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        if real.startswith(_DEVICES) or (not writes and f"{real}/".startswith(_READABLE)):
            return
        self._say(event, f"{name} is {real}" if real != name else name)

    def _say(self, event: str, text: str) -> None:
        if not _shares_memory(sys._getframe()):
            self._report(f"{event} outside the folder in {_own_frame(sys._getframe())}", text)


def _shares_memory(frame: Any) -> bool:
    """Whether ``multiprocessing`` makes memory of its own that a loader shares with its workers."""
    while frame is not None:
        if frame.f_code.co_filename.endswith(os.path.join("multiprocessing", "sharedctypes.py")):
            return True
        frame = frame.f_back
    return False


def _own_frame(frame: Any) -> str:
    """The innermost function of the package on a stack of frames."""
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if PACKAGE in path.parents:
            return f"{path.name}:{frame.f_code.co_name}"
        frame = frame.f_back
    return "no function of the package"


def digest(root: Path) -> dict[str, str]:
    """What lies below a folder: kinds, links' targets, contents of small files."""
    found = {}
    for directory, folders, files in os.walk(root):
        for entry in (*folders, *files):
            path = os.path.join(directory, entry)
            status = os.lstat(path)
            if stat.S_ISLNK(status.st_mode):
                value = f"link to {os.readlink(path)}"
            elif not stat.S_ISREG(status.st_mode):
                value = f"mode {stat.S_IFMT(status.st_mode):o}"
            elif status.st_size > 1 << 20:
                value = f"{status.st_size} bytes, {status.st_mtime_ns}"
            else:
                value = hashlib.sha1(Path(path).read_bytes()).hexdigest()
            found[os.path.relpath(path, root)] = value
    return found


def users_files(folder: Path) -> dict[str, str]:
    """Of the folder, the files that are a user's."""
    own = re.compile(r"(^|/)(mine|notes|hidden)")
    return {path: value for path, value in digest(folder).items() if path in USER_FILES or own.search(path)}


def difference(before: dict[str, str], after: dict[str, str]) -> str:
    changed = [path for path in sorted({*before, *after}) if before.get(path) != after.get(path)]
    return ", ".join(
        f"{path} {'removed' if path not in after else 'made' if path not in before else 'changed'}" for path in changed
    )
