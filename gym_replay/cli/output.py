"""Text and JSON for the standard output: tables that fit, numbers, histograms."""

from __future__ import annotations

import argparse
import json
import math
import shutil
import textwrap
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gym_replay.errors import printable
from gym_replay.viewing.text import number

_BINS = 10
_LEAST_WIDTH = 6
_LEAST_FIRST = 24
"""To which a column of a table, and the first one, are cut before columns are left out."""


def width() -> int:
    """Columns of the terminal; 80 where there is none."""
    return max(shutil.get_terminal_size((80, 24)).columns, 40)


def write_json(value: Any) -> None:
    """Write one JSON document, in ASCII; what is NaN or infinite is null."""
    print(json.dumps(plain(value), indent=1, allow_nan=False))


def show(args: argparse.Namespace, document: Any, lines: Iterable[str]) -> int:
    """Write the result of a verb: as JSON where that is asked for, else as lines; the exit status for all is well."""
    if args.json:
        write_json(document)
    else:
        print("\n".join(map(printable, lines)))
    return 0


def plain(value: Any) -> Any:
    """A value with arrays, NumPy's numbers and paths as what JSON has."""
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, (np.ndarray, np.generic)):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def cut(text: str, longest: int) -> str:
    """A text of at most so many characters, with dots where it was cut."""
    return text if len(text) <= longest else text[: max(longest - 3, 0)] + "..."[:longest]


def nbytes(size: float) -> str:
    """A number of bytes with its unit."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def moment(seconds: float) -> str:
    """A time as it is written in UTC."""
    try:
        return time.strftime("%Y-%m-%d %H:%M", time.gmtime(seconds)) + " UTC"
    except (ValueError, OverflowError, OSError):  # any number may be stored
        return f"{seconds:g} s"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[str] = ()) -> list[str]:
    """Lines of a table that fits the terminal: wide columns of text are cut, then the last columns are left out.

    Args:
        header: the names of the columns.
        rows: cells.
        right: the columns to be aligned at the right; these are numbers, and not cut.
    """
    cells = [[printable(cell) for cell in row] for row in (header, *rows)]
    full = [max(map(len, column)) for column in zip(*cells, strict=True)]
    least = [
        size if name in right else min(size, _LEAST_WIDTH if place else _LEAST_FIRST)
        for place, (name, size) in enumerate(zip(header, full, strict=True))
    ]
    shown = len(header)
    while shown > 1 and sum(least[:shown]) + 2 * (shown - 1) > width():
        shown -= 1
    widths = full[:shown]
    while sum(widths) + 2 * (shown - 1) > width() and widths != least[:shown]:
        widest = max((place for place in range(shown) if widths[place] > least[place]), key=widths.__getitem__)
        widths[widest] -= 1
    lines = []
    for row in cells:
        parts = [
            cut(cell, size).rjust(size) if name in right else cut(cell, size).ljust(size)
            for name, cell, size in zip(header[:shown], row[:shown], widths, strict=True)
        ]
        lines.append(cut("  ".join(parts).rstrip(), width()))
    if shown < len(header):
        lines.append(cut(printable(f"(no room for: {', '.join(header[shown:])})"), width()))
    return lines


def wrapped(text: str) -> list[str]:
    """A text on as many lines as it needs."""
    return textwrap.wrap(printable(text), width(), subsequent_indent="  ")


def labelled(label: str, text: str) -> list[str]:
    """A label and a text beside it, on up to three lines."""
    indent = f"{label:<12}  "
    wrapped = textwrap.wrap(printable(text), width() - len(indent), max_lines=3, placeholder=" ...")
    return [f"{indent if not place else ' ' * len(indent)}{line}" for place, line in enumerate(wrapped)]


def distribution(values: npt.NDArray[Any]) -> dict[str, Any]:
    """Count, range, mean, median and a histogram of finite numbers."""
    from gym_replay.viewing.episodes import bin_edges

    finite = np.asarray(values, np.float64)
    finite = finite[np.isfinite(finite)]
    if len(finite) == 0:
        return {"count": 0}
    edges = bin_edges(finite, _BINS)
    counts, _ = np.histogram(finite, edges)
    return {
        "count": len(finite),
        "min": float(finite.min()),
        "mean": float(finite.mean()),
        "median": float(np.median(finite)),
        "max": float(finite.max()),
        "histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
    }


def histogram(name: str, found: Mapping[str, Any]) -> list[str]:
    """Lines that show a distribution as bars of text."""
    if not found["count"]:
        return []
    facts = "  ".join(f"{fact} {number(found[fact])}" for fact in ("min", "mean", "median", "max"))
    lines = ["", f"{name}  {facts}"]
    edges, counts = found["histogram"]["edges"], found["histogram"]["counts"]
    if len(counts) < 2:
        return lines
    labels = [number(edge) for edge in edges[:-1]]
    size, room = max(map(len, labels)), max(len(str(count)) for count in counts)
    longest = width() - size - room - 8
    for label, count in zip(labels, counts, strict=True):
        bar = "#" * -(-count * longest // max(counts))
        lines.append(f"  {label.rjust(size)}..  {str(count).rjust(room)} {bar}".rstrip())
    return lines
