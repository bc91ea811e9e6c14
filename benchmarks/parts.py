"""Where the time goes: the parts of something that is run many times, next to the whole without any clock inside."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from types import ModuleType
from typing import Any, TypeAlias

Parts: TypeAlias = dict[str, tuple[float, float]]
"""By name, microseconds in a run, and how often the part comes in it."""

WITH_CLOCKS = "the whole with clocks inside, their cost included"


@dataclass
class Breakdown:
    """Parts of a whole.

    Args:
        title: what is run.
        how: how the parts were measured.
        whole: microseconds of each run of it, without clocks inside.
        parts: by name: microseconds per run, and how often the part comes in a run.
        beside: by name, microseconds of what the whole is to be compared with.
    """

    title: str
    how: str
    whole: list[float]
    parts: Parts
    beside: dict[str, float] = field(default_factory=dict)

    @property
    def total(self) -> float:
        """The sum of the parts."""
        return sum(taken for taken, _ in self.parts.values())

    def table(self) -> str:
        """A Markdown table of the parts, their sum, and what is not accounted for."""
        low, middle, high = min(self.whole), statistics.median(self.whole), max(self.whole)
        lines = ["| part | times | us | % |", "|---|---:|---:|---:|"]

        def line(name: str, times: str, taken: float) -> str:
            return f"| {name} | {times} | {taken:.3g} | {100 * taken / middle:.0f} |"

        lines += [line(name, f"{times:.3g}", taken) for name, (taken, times) in self.parts.items()]
        lines.append(line("sum of the parts", "", self.total))
        lines.append(line("not accounted for", "", middle - self.total))
        lines.append(f"| **the whole**, measured beside | | **{middle:.3g}** ({low:.3g} .. {high:.3g}) | 100 |")
        lines += [line(name, "", taken) for name, taken in self.beside.items()]
        return "\n".join(lines)


class Clocks:
    """Reads the clock before and after chosen calls while something runs; what a call within a call takes is its own.

    A clock costs about a seventh of a microsecond a call. This is measured, and taken off: the part of it that falls
    between the two readings from the part, and the rest from the part around it.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._taken: dict[str, list[float]] = {}
        self._inner = [0.0]
        self._patches: list[tuple[Any, str, Any]] = []
        self._own = self._outer = 0.0

    def on(self, owner: Any, name: str, part: str | Mapping[Any, str]) -> None:
        """Measure the calls of ``owner.name``, a method, a function of a module, or an object that is called.

        Args:
            owner: an object, a class or a module.
            name: what of it is called.
            part: what the calls belong to, or that by the call's first argument.
        """
        function = getattr(owner, name)  # where there is none, a part would silently be missing
        self._patches.append((owner, name, self._timed(function, part)))

    def on_items(self, owner: Any, name: str, part: str) -> None:
        """Measure what it takes to get each item of the iterator that ``owner.name`` returns."""
        function = getattr(owner, name)
        self._taken.setdefault(part, [0.0, 0])

        def iterate(*arguments: Any, **named: Any) -> Iterator[Any]:
            take = self._timed(partial(next, function(*arguments, **named), None), part)
            while (item := take()) is not None:
                yield item

        self._patches.append((owner, name, iterate))

    def _timed(self, function: Callable[..., Any], part: str | Mapping[Any, str]) -> Callable[..., Any]:
        taken, inner, clock = self._taken, self._inner, self._clock
        for name in [part] if isinstance(part, str) else part.values():
            taken.setdefault(name, [0.0, 0])

        def call(*arguments: Any, **named: Any) -> Any:
            before, inner[0] = inner[0], 0.0
            begin = clock()
            try:
                return function(*arguments, **named)
            finally:
                spent = clock() - begin
                entry = taken[part if isinstance(part, str) else part[arguments[0]]]
                entry[0] += spent - inner[0] - self._own
                entry[1] += 1
                inner[0] = before + spent + self._outer

        return call

    @contextmanager
    def running(self) -> Iterator[None]:
        """Have the clocks in their places."""
        self._calibrate()
        places = [(owner, name, vars(owner).get(name, self)) for owner, name, _ in self._patches]
        for owner, name, timed in self._patches:
            _put(owner, name, timed)
        try:
            yield
        finally:
            for owner, name, before in reversed(places):
                if before is self:  # it was found in the class
                    object.__delattr__(owner, name)
                else:
                    _put(owner, name, before)

    def _calibrate(self, calls: int = 20_000) -> None:
        """Find out what a clock costs, between its readings and around them."""

        def nothing(value: int) -> None:
            return None

        self._own = self._outer = 0.0
        timed = self._timed(nothing, "")
        best = []
        for function in (nothing, timed):
            times = []
            for _ in range(5):
                begin = self._clock()
                for _ in range(calls):
                    function(1)
                times.append((self._clock() - begin) / calls)
            best.append(min(times))
        inside = self._taken.pop("")[0] / (5 * calls)
        self._own = max(inside - best[0], 0.0)
        self._outer = max(best[1] - best[0] - self._own, 0.0)
        self._inner[0] = 0.0

    def parts(self, runs: int) -> Parts:
        """Microseconds and calls of each part that was there, per run, since they were last asked for."""
        found = {name: (1e6 * taken / runs, calls / runs) for name, (taken, calls) in self._taken.items() if calls}
        for entry in self._taken.values():
            entry[:] = 0.0, 0
        return found

    def measure(self, run: Callable[[], float], runs: int, repeats: int) -> tuple[list[float], Parts, float]:
        """Run without clocks and with them, in turns.

        Args:
            run: returns the microseconds of each of ``runs`` runs.
            runs: how many runs that are.
            repeats: how many turns count; one more goes before them.

        Returns:
            The whole without clocks, of each turn; of each part the median over the turns, and how often it comes; and
            the median of the whole with clocks, which is not corrected for what they cost.
        """
        whole, clocked, found = [], [], []
        for turn in range(repeats + 1):
            alone = run()
            with self.running():
                slowed = run()
            parts = self.parts(runs)
            if turn:
                whole.append(alone)
                clocked.append(slowed)
                found.append(parts)
        names = [name for name in self._taken if any(name in parts for parts in found)]
        each = {name: [parts.get(name, (0.0, 0.0)) for parts in found] for name in names}
        medians = {
            name: (statistics.median([taken for taken, _ in values]), statistics.fmean([times for _, times in values]))
            for name, values in each.items()
        }
        return whole, medians, statistics.median(clocked)


def _put(owner: Any, name: str, value: Any) -> None:
    if isinstance(owner, (ModuleType, type)):
        setattr(owner, name, value)
    else:
        object.__setattr__(owner, name, value)  # frozen dataclasses too
