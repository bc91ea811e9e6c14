"""Pulled plugs on real ext4 images: the file system stops at a call, forgets what it holds, and is mounted again.

Before it stops, now and then some pages are written early, or another file is synced, which brings the names of new
files to the disk before their bytes.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import random
import shutil
import struct
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from internals import Counters
from tqdm.auto import tqdm

from .power import MEMORY, PLACE, WAYS, State, Way, fault_of

MEGABYTES = 32
MOUNTS = ("defaults", "noauto_da_alloc", "data=writeback,noauto_da_alloc")
REPEATABLE = [name for name in WAYS if name not in ("recorder", "nested")]  # whose episodes note no times

_SHUTDOWN, _WITHOUT_THE_LOG = 0x8004587D, 2  # FS_IOC_SHUTDOWN
_WRITE_AND_WAIT = 7  # sync_file_range


@cache
def why_no_ext4() -> str | None:
    """Why no image can be mounted here; None where it can."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0 or not shutil.which("mkfs.ext4"):
        return "mounting an ext4 image needs root on Linux, and mkfs.ext4"
    try:
        with image() as disk, mounted(disk, MOUNTS[0]) as folder:
            _pull_the_plug(folder)
    except (OSError, subprocess.CalledProcessError) as error:
        return f"no ext4 image could be mounted and stopped: {error}"
    return None


@contextlib.contextmanager
def image() -> Iterator[Path]:
    """A file that holds an empty ext4 file system."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        disk = Path(folder) / "disk"
        with open(disk, "wb") as file:
            file.truncate(MEGABYTES << 20)
        subprocess.run(["mkfs.ext4", "-q", "-F", str(disk)], check=True, capture_output=True)
        yield disk


@contextlib.contextmanager
def mounted(disk: Path, options: str) -> Iterator[Path]:
    """The image, mounted for the time of the context."""
    folder = disk.parent / "mounted"
    folder.mkdir(exist_ok=True)
    command = ["mount", "-t", "ext4", "-o", f"loop,{options}", str(disk), str(folder)]
    subprocess.run(command, check=True, capture_output=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True, capture_output=True)


def _pull_the_plug(folder: Path) -> None:
    """Stop the file system as a power loss does: what it has not brought to the disk, its journal too, is lost."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.ioctl(descriptor, _SHUTDOWN, struct.pack("I", _WITHOUT_THE_LOG))
    finally:
        os.close(descriptor)


def _write_early(folder: Path, generator: random.Random) -> None:
    """Bring some pages of files to the disk, but neither their sizes nor their names."""
    libc = ctypes.CDLL(None, use_errno=True)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        if generator.random() < 0.5:
            descriptor = os.open(path, os.O_RDONLY)
            length = generator.choice((4096, 0))
            libc.sync_file_range(descriptor, ctypes.c_int64(0), ctypes.c_int64(length), _WRITE_AND_WAIT)
            os.close(descriptor)


def _commit_names(folder: Path) -> None:
    """Bring all names to the disk, as the journal does every few seconds, but no bytes that wait for their place."""
    (folder / "another").touch()
    descriptor = os.open(folder / "another", os.O_RDWR)
    os.write(descriptor, b"another file")
    os.fsync(descriptor)
    os.close(descriptor)


class _Fuse:
    """Counts the calls that change files, and does something before one of them."""

    def __init__(self, at: int, work: Callable[[], None]) -> None:
        self.count, self._at, self._work = 0, at, work

    @contextlib.contextmanager
    def installed(self) -> Iterator[_Fuse]:
        calls = [(os, name) for name in ("pwrite", "ftruncate", "rename", "replace", "unlink", "mkdir", "fsync")]
        replaced = [(owner, name, getattr(owner, name)) for owner, name in [*calls, (Counters, "put")]]
        for owner, name, real in replaced:
            setattr(owner, name, self._wrap(real))
        try:
            yield self
        finally:
            for owner, name, real in replaced:
                setattr(owner, name, real)

    def _wrap(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            self.count += 1
            if self.count == self._at:
                self._work()
            return real(*arguments, **options)

        return wrapped


def _states(way: Way) -> tuple[list[State | None], list[int]]:
    """What a buffer holds after each step, and how many calls there were until then."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as root, warnings.catch_warnings():
        folder = Path(root) / PLACE
        way.prepare(folder)
        states, calls = [State.of(folder)], [0]
        fuse = _Fuse(-1, lambda: None)
        steps = way.run(folder)
        while True:
            with fuse.installed():
                if next(steps, steps) is steps:
                    return states, [*calls, fuse.count]
            calls.append(fuse.count)
            states.append(State.of(folder))


def _write_until(way: Way, root: Path, progress: Path, at: int, generator: random.Random) -> None:
    """Write in a child until the plug is pulled at a call; ``progress`` tells how many steps were done."""
    pid = os.fork()
    if pid:
        os.waitpid(pid, 0)
        return
    early, committed = generator.random() < 0.5, generator.random() < 0.5

    def unplug() -> None:
        with contextlib.suppress(OSError):
            if early:
                _write_early(root, generator)
            if committed:
                _commit_names(root)
            _pull_the_plug(root)
        os._exit(0)

    try:
        with _Fuse(at, unplug).installed():
            for number, _ in enumerate(way.run(root / PLACE), 1):
                progress.write_text(str(number))
        unplug()
    finally:
        os._exit(1)


def trials(name: str, options: str, count: int, seed: int) -> Iterator[str | None]:
    """Pull plugs at random calls of a way of writing; what was wrong with each, or None."""
    generator = random.Random(f"{seed} {name} {options}")
    way = WAYS[name]
    states, calls = _states(way)
    for _ in range(count):
        at = generator.randrange(calls[way.promised] + 1, calls[-1] + 10)
        with image() as disk:
            progress = disk.parent / "progress"
            with mounted(disk, options) as root:
                way.prepare(root / PLACE)
                os.sync()
                _write_until(way, root, progress, at, generator)
            done = int(progress.read_text()) if progress.exists() else 0
            with mounted(disk, options) as root:
                fault = fault_of(root / PLACE, states[done], states[min(done + 1, len(states) - 1)], way)
        yield fault and f"{name} on ext4 ({options}), at call {at} after step {done}: {fault}"


def table(rounds: int, seed: int) -> tuple[list[str], list[str]]:
    """Pull a tenth of ``rounds`` plugs in each way of writing and of mounting: a line for each, and what was wrong."""
    if reason := why_no_ext4():
        return [f"ext4: left out, because {reason}"], []
    lines, wrong = [f"{'plug pulled on ext4 while':<31} {'tried':>6} {'survived':>9} {'lost':>5}"], []
    for name in tqdm(REPEATABLE, desc="ext4", file=sys.stderr):
        found = [each for options in MOUNTS for each in trials(name, options, max(rounds // 10, 1), seed)]
        lost = [each for each in found if each is not None]
        lines.append(f"{name:<31} {len(found):>6} {len(found) - len(lost):>9} {len(lost):>5}")
        wrong += lost
    return lines, wrong
