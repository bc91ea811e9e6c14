"""What the benchmarks share: where they write, what they report to, and their command lines."""

from __future__ import annotations

import argparse
import dataclasses
import platform
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import gymnasium as gym
import numpy as np

from benchmarks.peers import Use, installed
from benchmarks.report import Report, Table, Target
from benchmarks.timing import take_turns

T = TypeVar("T")
Measure = Callable[["Suite", Any], None]
"""Adds the tables of a benchmark in a size."""


class Suite:
    """One benchmark's share of a report, and a folder for its files.

    Args:
        name: of the benchmark.
        folder: where to write.
        report: takes the tables.
    """

    def __init__(self, name: str, folder: Path, report: Report) -> None:
        self.name, self.folder, self._report = name, folder, report

    def peers(self, uses: Mapping[str, Use[T]]) -> tuple[dict[str, T], list[str]]:
        """Those that are installed, and the notes for the tables on all of them."""
        found, notes, left_out = installed(uses)
        for line in left_out:
            self._report.leave_out(line)
        return found, notes

    def leave_out(self, line: str) -> None:
        """Say what is not measured, in the JSON too."""
        self._report.leave_out(line)

    def compare(
        self,
        title: str,
        unit: str,
        contenders: Mapping[str, Callable[[], float]],
        repeats: int,
        *,
        targets: Sequence[Target] = (),
        notes: Sequence[str] = (),
        extras: Mapping[str, Mapping[str, Sequence[float]]] | None = None,
    ) -> None:
        """Let the contenders take turns; the first one is the baseline."""
        measured = take_turns(contenders, repeats)
        self.add(Table(title, unit, next(iter(contenders)), measured, targets, notes, extras or {}))

    def add(self, table: Table) -> None:
        self._report.add(self.name, table)


def option(default: Any, text: str) -> Any:
    """A field of a benchmark's ``Size`` that its command line can set; several numbers where it is a tuple."""
    return dataclasses.field(default=default, metadata={"help": text})


def add_common(parser: argparse.ArgumentParser) -> None:
    """Options of every benchmark."""
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, which measure nothing but that it runs")
    parser.add_argument("--folder", type=Path, help="where the data lies meanwhile (default: temporary)")
    parser.add_argument("--out", type=Path, help="a folder for benchmarks.json")


def run_all(
    benchmarks: Mapping[str, tuple[Measure, Any]],
    *,
    folder: Path | None,
    out: Path | None,
    write: Callable[[str], None],
) -> Report:
    """Run benchmarks, each given with its size, one after the other."""
    report = Report(write)
    write(f"Python {platform.python_version()}, NumPy {np.__version__}, Gymnasium {gym.__version__}")
    write("median (lowest .. highest); the contenders take turns, and ratios are between runs of one round")
    for name, (measure, size) in benchmarks.items():
        begin = time.perf_counter()
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            measure(Suite(name, Path(temporary), report), size)
        write(f"\n{name} took {time.perf_counter() - begin:.0f} s")
    if out is not None:
        report.save(out)
    return report


def show(line: str) -> None:
    print(line, flush=True)


def command(name: str, description: str | None, measure: Measure, size: Any, smoke: Any) -> None:
    """The command line of one benchmark, with an option for each field of its size."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for entry in dataclasses.fields(size):
        several = {"nargs": "+"} if isinstance(entry.default, tuple) else {}
        of = type(entry.default[0]) if several else type(entry.default)
        text = f"{entry.metadata['help']} (default {entry.default})"
        flag: dict[str, Any] = {"action": "store_true"} if of is bool else {"type": of, **several}
        parser.add_argument(f"--{entry.name.replace('_', '-')}", default=None, help=text, **flag)
    add_common(parser)
    options = vars(parser.parse_args())
    chosen = {
        entry.name: tuple(value) if isinstance(value, list) else value
        for entry in dataclasses.fields(size)
        if (value := options[entry.name]) is not None
    }
    base = smoke if options["smoke"] else size
    size = dataclasses.replace(base, **chosen)
    run_all({name: (measure, size)}, folder=options["folder"], out=options["out"], write=show)
