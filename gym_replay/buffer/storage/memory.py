"""How much memory this process may still fill, with what it holds itself or with the page cache of what it reads."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

_HIERARCHIES = Path("/sys/fs/cgroup")
_GROUPS = Path("/proc/self/cgroup")
_MEMINFO = Path("/proc/meminfo")
_LIMITS = (("memory", "memory.limit_in_bytes"), ("", "memory.max"))


def memory_room() -> int | None:
    """The lowest of the memory that the system has available and the limits of this process's control groups, in bytes.

    None where the system does not say.
    """
    found = [_available(), *_limits()]
    known = [one for one in found if one is not None]
    return min(known) if known else None


def _available() -> int | None:
    try:
        lines = _MEMINFO.read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError, IndexError, StopIteration):
        try:
            return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (OSError, ValueError):
            return None


def _limits() -> list[int]:
    """The limits of the groups that this process is in, and of those above them."""
    try:
        groups = dict(line.split(":", 2)[1:] for line in _GROUPS.read_text().splitlines())
    except (OSError, ValueError):
        return []
    limits = []
    for controller, name in _LIMITS:
        if controller not in groups:
            continue
        root = _HIERARCHIES / controller
        inner = root / groups[controller].lstrip("/")
        # Inside of a container the group's own name may not be visible: its limit is then that of the root.
        for folder in _above(inner, root):
            with suppress(OSError, ValueError):  # there is none ("max"), or no such group here
                limits.append(int((folder / name).read_text()))
    return limits


def _above(inner: Path, root: Path) -> list[Path]:
    """A folder and those above it, up to ``root``."""
    return [folder for folder in (inner, *inner.parents) if folder == root or root in folder.parents]
