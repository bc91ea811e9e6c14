"""What a benchmark found: tables of single measurements, printed with the ratios first and kept as JSON."""

from __future__ import annotations

import json
import os
import platform
import shlex
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from benchmarks.timing import spread

OURS = "gym_replay"


@dataclass(frozen=True)
class Target:
    """What is to be reached.

    Args:
        contender: who is to reach it.
        limit: at most this, or at least this.
        of: a contender that the medians of ratios are taken of; None: the limit is in the unit of the table.
        at_least: reached from above; for peers, which are to take longer.
    """

    contender: str
    limit: float
    of: str | None = None
    at_least: bool = False

    def reached(self, value: float) -> bool:
        return value >= self.limit if self.at_least else value <= self.limit


@dataclass(frozen=True)
class Table:
    """Contenders that did the same work in turns.

    Args:
        title: what they did.
        unit: of the measurements.
        baseline: the contender that the others are divided by, round by round.
        measured: by contender, one measurement per round, all above 0.
        targets: those of contenders that are not there are not judged.
        notes: how the contenders are set up, and who is left out.
        extras: further columns, each by contender; shown by their medians.
    """

    title: str
    unit: str
    baseline: str
    measured: Mapping[str, Sequence[float]]
    targets: Sequence[Target] = ()
    notes: Sequence[str] = ()
    extras: Mapping[str, Mapping[str, Sequence[float]]] = field(default_factory=dict)

    def ratios(self, contender: str, of: str | None = None) -> list[float]:
        """A contender's measurements by those of another one, by default the baseline, round by round."""
        base = self.measured[self.baseline if of is None else of]
        return [mine / other for mine, other in zip(self.measured[contender], base, strict=True)]

    def ratio(self, contender: str, of: str | None = None) -> float:
        """The median of :meth:`ratios`."""
        return statistics.median(self.ratios(contender, of))

    def judged(self) -> list[tuple[Target, float]]:
        """The targets of contenders that are there, each with what was found."""
        found = []
        for target in self.targets:
            if target.contender in self.measured:
                values = self.measured[target.contender]
                of = target.of
                found.append((target, statistics.median(values) if of is None else self.ratio(target.contender, of)))
        return found

    def verdict(self, target: Target, value: float) -> str:
        """One line about a target."""
        unit = self.unit if target.of is None else f"x of {target.of}"
        side = "at least" if target.at_least else "at most"
        verdict = "met" if target.reached(value) else "missed"
        return f"target {target.limit:g}: {verdict}, {value:.3g} ({target.contender}, {side}, {unit})"

    def lines(self) -> list[str]:
        """The table as text; without the notes."""
        with_ours = self.baseline != OURS and OURS in self.measured
        head = ["", f"x of {self.baseline}", *([f"x of {OURS}"] if with_ours else []), self.unit, *self.extras]
        rows = [head]
        for name, values in self.measured.items():
            row = [name, spread(self.ratios(name))]
            row += [f"{self.ratio(name, OURS):.2f}"] if with_ours else []
            row.append(spread(values))
            for column in self.extras.values():
                row.append(f"{statistics.median(column[name]):.2f}" if name in column else "")
            rows.append(row)
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        padded = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
        return [self.title, *(line.rstrip() for line in padded), *(self.verdict(*pair) for pair in self.judged())]

    def as_json(self) -> dict[str, Any]:
        contenders = {}
        for name, values in self.measured.items():
            ratios = self.ratios(name)
            contenders[name] = {
                "ratio": {"median": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios)},
                "median": statistics.median(values),
                "measured": list(values),
            }
        targets = [
            {
                "contender": target.contender,
                "limit": target.limit,
                "of": target.of,
                "at_least": target.at_least,
                "value": value,
                "met": target.reached(value),
            }
            for target, value in self.judged()
        ]
        extras = {what: {name: list(values) for name, values in column.items()} for what, column in self.extras.items()}
        return {
            "title": self.title,
            "unit": self.unit,
            "baseline": self.baseline,
            "contenders": contenders,
            "targets": targets,
            "extras": extras,
            "notes": list(self.notes),
        }


class Report:
    """The tables of a run, which are printed as they come.

    Args:
        write: takes each line that is to be shown.
    """

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._noted: set[str] = set()
        self._begin = datetime.now(timezone.utc)
        self.tables: list[tuple[str, Table]] = []
        self.left_out: list[str] = []

    def add(self, benchmark: str, table: Table) -> None:
        """Show a table; a note that was shown before is not repeated."""
        self.tables.append((benchmark, table))
        fresh = [note for note in dict.fromkeys(table.notes) if note not in self._noted]
        self._noted.update(fresh)
        for line in ["", *table.lines(), *fresh]:
            self._write(line)

    def leave_out(self, line: str) -> None:
        """Keep what is missing; the notes of the tables show it."""
        if line not in self.left_out:
            self.left_out.append(line)

    def as_json(self) -> dict[str, Any]:
        return {
            "command": command(),
            "date": self._begin.isoformat(timespec="seconds"),
            "seconds": (datetime.now(timezone.utc) - self._begin).total_seconds(),
            "machine": machine(),
            "versions": versions(),
            "left_out": self.left_out,
            "tables": [{"benchmark": benchmark, **table.as_json()} for benchmark, table in self.tables],
        }

    def save(self, folder: Path) -> None:
        """Write ``benchmarks.json``."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "benchmarks.json").write_text(json.dumps(self.as_json(), indent=1) + "\n")
        self._write(f"\nwrote {folder / 'benchmarks.json'}")


def command() -> str:
    """What was called."""
    return shlex.join([Path(sys.executable).name, *sys.orig_argv[1:]])


def machine() -> dict[str, Any]:
    """What the measurements were made on."""
    model = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        names = [
            line.split(":", 1)[1] for line in information.read_text().splitlines() if line.startswith("model name")
        ]
        model = names[0].strip() if names else model
    affinity = getattr(os, "sched_getaffinity", None)
    return {
        "processor": model,
        "cores": len(affinity(0)) if affinity else os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": platform.platform(),
    }


def versions() -> dict[str, str]:
    """Of Python and of every package that is installed."""
    packages = {one.metadata["Name"]: one.version for one in distributions() if one.metadata["Name"]}
    return {"python": platform.python_version(), **dict(sorted(packages.items(), key=lambda pair: pair[0].lower()))}
