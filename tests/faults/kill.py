"""Killing the writer: at random moments, and at every single call that changes a file."""

from __future__ import annotations

import os
import random
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from internals import Counters

from . import scenarios
from .scenarios import SCENARIOS, Scenario

VARIANTS = ("before", "half", "after")
PAGE = os.sysconf("SC_PAGE_SIZE")


def _in_child(work: Callable[[int], None]) -> tuple[int, int]:
    """Run ``work(pipe)`` in a forked child; returns its pid and the pipe's reading end."""
    reading, writing = os.pipe()
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(reading)
            work(writing)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    os.close(writing)
    return pid, reading


def _last_report(reading: int) -> int:
    content = b""
    while piece := os.read(reading, 1 << 16):
        content += piece
    os.close(reading)
    whole = len(content) // 8 * 8
    return struct.unpack("<q", content[whole - 8 : whole])[0] if whole else 0


def _reporter(pipe: int) -> Callable[[int], None]:
    return lambda value: (os.write(pipe, struct.pack("<q", value)), None)[1]


def kill_at_random(name: str, folder: Path, generator: random.Random) -> int:
    """One round; returns the progress that was reported before the kill."""
    scenario = SCENARIOS[name]
    scenario.prepare(folder)
    pid, reading = _in_child(lambda pipe: scenario.run(folder, _reporter(pipe)))
    time.sleep(generator.uniform(0.0, 0.12))
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, f"the writer failed by itself: {name}"
    reported = _last_report(reading)
    scenarios.verify_after(scenario, folder, reported)
    return reported


class _Fuse:
    """Counts the calls that change files, and kills the process at one of them."""

    def __init__(self, at: int, variant: str) -> None:
        self.count, self.at, self.variant = 0, at, variant

    def install(self) -> None:
        for name in ("pwrite", "ftruncate", "replace", "unlink", "mkdir"):
            setattr(os, name, self._wrap(getattr(os, name), half=name == "pwrite"))

        Counters.put = self._wrap(Counters.put)

    def _wrap(self, function: Callable, *, half: bool = False) -> Callable:
        def wrapped(*args, **kwargs):
            self.count += 1
            if self.count != self.at:
                return function(*args, **kwargs)
            try:
                if self.variant == "after":
                    function(*args, **kwargs)
                elif self.variant == "half" and half:
                    descriptor, data, position = args
                    # A killed write ends between two pages: one within a page happens whole or not at all.
                    whole_pages = (position + len(data) // 2) // PAGE * PAGE - position
                    function(descriptor, memoryview(data)[: max(whole_pages, 0)], position)
            finally:
                os.kill(os.getpid(), signal.SIGKILL)

        return wrapped


def kill_at_call(name: str, folder: Path, at: int, variant: str) -> int:
    """Kill at the ``at``-th call that changes a file: before it, after half of a write, or after it."""
    scenario = SCENARIOS[name]
    scenario.prepare(folder)

    def work(pipe: int) -> None:
        _Fuse(at, variant).install()
        scenario.run(folder, _reporter(pipe))

    pid, reading = _in_child(work)
    reported = _last_report(reading)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, f"the writer failed by itself: {name} at {at}"
    scenarios.verify_after(scenario, folder, reported)
    return reported


def rounds(name: str, count: int, seed: int, *, calls: bool) -> tuple[int, list[str]]:
    """Several rounds of one scenario; returns how many survived, and what went wrong in the others."""
    generator = random.Random(f"{seed} {name} {calls}")
    failures = []
    for number in range(count):
        folder = Path(tempfile.mkdtemp()) / "buffer"
        try:
            if calls:
                at, variant = generator.randrange(1, 400), generator.choice(VARIANTS)
                kill_at_call(name, folder, at, variant)
            else:
                kill_at_random(name, folder, generator)
        except Exception as error:
            where = f"call {at}, {variant}" if calls else f"round {number}"
            failures.append(f"{name}, {where}: {type(error).__name__}: {error}")
        finally:
            shutil.rmtree(folder.parent)
    return count - len(failures), failures


__all__ = ["SCENARIOS", "Scenario", "kill_at_call", "kill_at_random", "rounds"]
