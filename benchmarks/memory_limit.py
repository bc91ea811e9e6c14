"""A real limit on the memory of a process, page cache included: a control group of its own (Linux)."""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

_HIERARCHIES = Path("/sys/fs/cgroup")


class NoLimitError(OSError):
    """This process may not make a control group with a memory limit."""


class MemoryLimit:
    """A control group whose processes have so many bytes, anonymous memory and page cache together.

    A file's pages count for the group whose process read them first, so a file that is to count is taken out of the
    page cache before: see :func:`evict`.

    Attributes:
        kind: which controller holds the limit.
    """

    def __init__(self, folder: Path, kind: str) -> None:
        self._folder, self.kind = folder, kind

    def run(self, command: Sequence[str]) -> str:
        """Run a command in the group from its first instruction on, and return what it printed.

        Raises:
            subprocess.CalledProcessError: it failed, or needed more memory than there is.
        """
        joined = ["/bin/sh", "-c", 'echo $$ > "$0" && exec "$@"', str(self._folder / "cgroup.procs"), *command]
        return subprocess.run(joined, stdout=subprocess.PIPE, stderr=sys.stderr, text=True, check=True).stdout

    def call(self, module: str, function: str, *arguments: Any) -> Any:
        """What a function of a module returns in a process of its own in the group; all values are JSON's."""
        code = f"import json, sys; from {module} import {function} as f; print(json.dumps(f(*json.loads(sys.argv[1]))))"
        return json.loads(self.run([sys.executable, "-c", code, json.dumps(arguments, default=str)]))

    @property
    def peak(self) -> int | None:
        """The most bytes that were in use at any time; None where the kernel does not say."""
        for name in ("memory.max_usage_in_bytes", "memory.peak"):
            if (path := self._folder / name).exists():
                return int(path.read_text())
        return None


@contextmanager
def memory_limit(nbytes: int) -> Iterator[MemoryLimit]:
    """A control group below that of this process, gone at the end.

    Raises:
        NoLimitError: there is no memory controller that this process may use.
    """
    folder, name, kind = _made()
    try:
        (folder / name).write_text(str(nbytes))
        for swap in (
            "memory.memsw.limit_in_bytes",
            "memory.swap.max",
        ):  # memory that is not there is not on disk either
            if (folder / swap).exists():
                (folder / swap).write_text(str(nbytes if "memsw" in swap else 0))
        yield MemoryLimit(folder, kind)
    finally:
        folder.rmdir()


def _made() -> tuple[Path, str, str]:
    """An empty group with a memory limit, the limit's name, and what kind of group it is."""
    groups = dict(line.split(":", 2)[1:] for line in Path("/proc/self/cgroup").read_text().splitlines())
    tries = []
    if "memory" in groups:
        tries.append((_HIERARCHIES / "memory", groups["memory"], "memory.limit_in_bytes", "cgroup v1"))
    if "" in groups:
        # Version 2 gives controllers only to groups without processes of their own, so the new one may be a sibling.
        own = Path(groups[""])
        tries += [(_HIERARCHIES, str(group), "memory.max", "cgroup v2") for group in (own, own.parent)]
    reasons = []
    for root, group, limit, kind in tries:
        folder = root / group.lstrip("/") / f"gym_replay-{os.getpid()}"
        try:
            folder.mkdir()
        except OSError as error:
            reasons.append(f"{error}")
            continue
        if (folder / limit).exists():
            return folder, limit, kind
        folder.rmdir()
        reasons.append(f"{folder}: there is no {limit}")
    raise NoLimitError(
        f"no control group with a memory limit can be made: {'; '.join(reasons) or 'no memory controller'}. Run this "
        "as root, or below a delegated group: systemd-run --user --scope -p Delegate=yes"
    )


def in_turns(
    folder: Path, limit: int, contenders: Sequence[str], repeats: int, call: Callable[[MemoryLimit, str], T]
) -> dict[str, list[T]]:
    """What contenders measure, each in a limit of its own and with none of a folder's files in the page cache."""
    found: dict[str, list[T]] = {name: [] for name in contenders}
    for turn in range(repeats):
        first = turn % len(contenders)
        for name in [*contenders[first:], *contenders[:first]]:
            evict(path for path in folder.rglob("*") if path.is_file())
            with memory_limit(limit) as limited:
                found[name].append(call(limited, name))
    return found


def evict(paths: Iterable[Path]) -> None:
    """Take files out of the page cache.

    Raises:
        OSError: more than a hundredth of a file stays there, because it is in use.
    """
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)  # only what is on the disk can be let go of
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
        if (share := resident(path)) > 0.01:
            raise OSError(f"{path}: {share:.0%} of it stays in the page cache")


def resident(path: Path) -> float:
    """The share of a file's pages that are in the page cache, by ``mincore``."""
    nbytes = path.stat().st_size
    if nbytes == 0:
        return 0.0
    library = ctypes.CDLL(None, use_errno=True)
    library.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
    pages = (ctypes.c_ubyte * -(-nbytes // mmap.PAGESIZE))()
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), nbytes, access=mmap.ACCESS_COPY) as mapped:
        start = ctypes.c_char.from_buffer(mapped)
        try:
            if library.mincore(ctypes.addressof(start), nbytes, pages) != 0:
                raise OSError(ctypes.get_errno(), "mincore")
        finally:
            del start
    return sum(page & 1 for page in bytes(pages)) / len(pages)
