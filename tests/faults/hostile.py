"""Opening damaged and hostile folders: what may come of it, and a runner that tries each case in a process of its own.

A case passes where the buffer opens and every episode that it serves is the original one bit for bit (or its damage
is in rows, which only ``check_buffer`` notices and then names), or where one of the package's own errors names the
file. It fails with any other exception, a signal, a time or memory limit, or a touch of anything outside the folder
or of a user's file in it.
"""

from __future__ import annotations

import faulthandler
import gc
import itertools
import json
import os
import random
import re
import resource
import selectors
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from gym_replay import timestep_loader as _loader  # noqa: F401  its modules are imported before the memory limit

from .attacks import Case, catalogue, choose
from .guard import PACKAGE, Guard, difference, digest, users_files
from .trial import Trial
from .victims import Site, Victim, build

MEMORY = 400 << 20
"""Address space that a case may take beside what its parent has."""


@dataclass(frozen=True)
class Problem:
    """What went wrong in a case; problems that one change would mend share their ``cause``."""

    phase: str
    cause: str
    detail: str


@dataclass
class Result:
    """What came of a case. ``outcome`` is opened, refused, or skipped where the attack does not apply."""

    case: Case
    outcome: str = "lost"
    seconds: float = 0.0
    problems: list[Problem] = field(default_factory=list)


# --- inside the child ---


def prepare(case: Case, victim: Victim, root: Path, name: str = "buffer") -> Site:
    """Make the attacked copy of a victim at ``root / name``, with ``root / "outside"`` beside it."""
    folder, outside = root / name, root / "outside"
    if not outside.exists():
        outside.mkdir()
        for canary in ("canary.txt", "old.npy", "old.npy.new", "reward.npy"):
            (outside / canary).write_bytes(b"nobody touches this")
    shutil.copytree(victim.folder, folder, symlinks=True)
    site = Site(folder, outside, victim, random.Random(f"{case.name}"))
    case.attack(site)
    return site


def _limit_memory() -> None:
    with open("/proc/self/statm") as stream:
        used = int(stream.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _child(case: Case, victim: Victim, root: Path, pipe: int) -> None:
    """Prepare and try one case; everything is told to the parent line by line, as it may be the last word."""
    seen: set[tuple[str, ...]] = set()

    def report(*message: str) -> None:
        if message not in seen:
            seen.add(message)
            os.write(pipe, json.dumps(message).encode() + b"\n")

    crash = (root / "crash.txt").open("w")
    faulthandler.enable(crash)
    torch.set_num_threads(1)
    try:
        site = prepare(case, victim, root)
        copy = prepare(case, victim, root, "copy")
    except Exception as error:
        report("skipped", f"{type(error).__name__}: {error}")
        return
    (root / "modules").mkdir()
    (root / "modules" / "hostile_module.py").write_text("import os\nos.mkdir('/tmp/gym_replay_executed')\n")
    (root / "here").mkdir()
    os.chdir(root / "here")
    sys.path.append(str(root / "modules"))
    report("state", _states(root))
    _limit_memory()
    guard = Guard((site.folder, copy.folder), lambda cause, detail: report("problem", cause, detail))
    trial = Trial(case, site, copy, report, crash)
    guard.install()
    trial.run()
    report("done")


def _states(root: Path) -> str:
    """What no case may change, as JSON."""
    return json.dumps(
        {
            "something outside the folder": {**digest(root / "outside"), **digest(root / "here")},
            "a user's file": users_files(root / "buffer"),
            "a user's file of the copy": users_files(root / "copy"),
        },
        sort_keys=True,
    )


# --- in the parent ---


@dataclass
class _Running:
    case: Case
    root: Path
    pid: int
    began: float = field(default_factory=time.monotonic)
    output: bytes = b""


def _start(case: Case, victim: Victim, root: Path) -> tuple[_Running, int]:
    root.mkdir()
    reading, writing = os.pipe()
    sys.stdout.flush()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 on forks beside threads
        pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(reading)
            os.set_inheritable(writing, False)
            _child(case, victim, root, writing)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    os.close(writing)
    return _Running(case, root, pid), reading


def _finish(run: _Running) -> Result:
    _, status = os.waitpid(run.pid, 0)
    messages = [json.loads(line) for line in run.output.splitlines()]
    result = Result(run.case, seconds=time.monotonic() - run.began)
    phase, state, done = "preparation", None, False
    for kind, *values in messages:
        if kind == "phase":
            phase = values[0]
        elif kind == "problem":
            result.problems.append(Problem(phase, *values))
        elif kind in ("outcome", "skipped"):
            result.outcome = values[0] if kind == "outcome" else "skipped"
        elif kind == "state":
            state = values[0]
        done = done or kind == "done"
    if result.outcome == "skipped":
        return result
    crash = (run.root / "crash.txt").read_text() if (run.root / "crash.txt").exists() else ""
    if os.WIFSIGNALED(status):
        name = "out of time" if os.WTERMSIG(status) == signal.SIGALRM else signal.Signals(os.WTERMSIG(status)).name
        own = re.search(rf'File "{re.escape(str(PACKAGE))}/(.*)", line \d+ in (\w+)', crash)
        place = f"{Path(own[1]).name}:{own[2]}" if own else "the test itself"
        result.problems.append(Problem(phase, f"{name} in {place}", crash[-1500:]))
    elif not done:
        result.problems.append(Problem(phase, "the test failed by itself", str(status)))
    if state is not None:
        before, after = json.loads(state), json.loads(_states(run.root))
        result.problems += [
            Problem("in the end", f"{what} was touched", changes)
            for what in before
            if (changes := difference(before[what], after[what]))
        ]
    return result


def run_cases(
    cases: Iterable[Case],
    victims: dict[str, Victim],
    *,
    jobs: int | None = None,
    progress: Callable[[Result], None] = lambda result: None,
) -> list[Result]:
    """Try the cases, each in a forked child, several at a time."""
    jobs = jobs or 2 * len(os.sched_getaffinity(0))  # some sleep
    waiting, results = iter(cases), []
    root = Path(tempfile.mkdtemp(prefix="hostile-", dir=_scratch()))
    gc.collect()
    gc.freeze()  # so that children share these pages
    try:
        with selectors.DefaultSelector() as selector:
            for number in itertools.count():
                case = next(waiting, None) if len(selector.get_map()) < jobs else None
                if case is not None:
                    run, reading = _start(case, victims[case.victim], root / str(number))
                    selector.register(reading, selectors.EVENT_READ, run)
                    continue
                if not selector.get_map():
                    break
                for key, _ in selector.select():
                    piece = os.read(key.fd, 1 << 16)
                    key.data.output += piece
                    if not piece:
                        selector.unregister(key.fd)
                        os.close(key.fd)
                        results.append(_finish(key.data))
                        shutil.rmtree(key.data.root)
                        progress(results[-1])
    finally:
        shutil.rmtree(root, ignore_errors=True)
    return results


def _scratch() -> str | None:
    """Memory rather than a disk, where there is such a folder: cases are many and small."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def table(results: list[Result]) -> str:
    """How many cases of each kind were tried, and what came of them."""
    lines = [f"{'damage':<18} {'tried':>6} {'opened':>7} {'refused':>8} {'wrong':>6}"]
    for kind in dict.fromkeys(result.case.kind for result in results):
        group = [result for result in results if result.case.kind == kind and result.outcome != "skipped"]
        wrong = sum(1 for result in group if result.problems)
        counts = Counter(result.outcome for result in group if not result.problems)
        lines.append(f"{kind:<18} {len(group):>6} {counts['opened']:>7} {counts['refused']:>8} {wrong:>6}")
    return "\n".join(lines)


def causes(results: list[Result], examples: int = 3) -> str:
    """What went wrong, by cause, the most frequent first, with the names of cases to try again."""
    found: dict[str, list[tuple[Result, Problem]]] = defaultdict(list)
    for result in results:
        for problem in {(p.cause, p.phase): p for p in result.problems}.values():
            found[problem.cause].append((result, problem))
    lines = []
    for cause, group in sorted(found.items(), key=lambda item: -len(item[1])):
        phases = Counter(problem.phase for _, problem in group)
        tried = len({id(result) for result, _ in group})
        lines.append(f"{tried:>5}  {cause} ({', '.join(f'{phase} {n}' for phase, n in phases.most_common())})")
        lines += [f"         {result.case.name[:200]}" for result, _ in group[:examples]]
        lines += [f"         | {line}" for line in group[0][1].detail.strip().splitlines()[-12:]]
    return "\n".join(lines)


def trials(
    count: int,
    seed: int,
    *,
    slow: bool = True,
    only: str = "",
    jobs: int | None = None,
    progress: Callable[[Result], None] = lambda result: None,
) -> list[Result]:
    """Choose and try ``count`` cases; ``only`` keeps those whose name contains it."""
    with tempfile.TemporaryDirectory(prefix="victims-") as folder:
        victims = build(Path(folder))
        cases = catalogue(victims)
        if only:
            cases = {kind: [case for case in group if only in case.name] for kind, group in cases.items()}
            cases = {kind: group for kind, group in cases.items() if group}
        return run_cases(choose(cases, count, seed, slow=slow), victims, jobs=jobs, progress=progress)
