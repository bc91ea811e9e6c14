"""One picture of all tables."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks.report import Table

MISSING = "pip install matplotlib"
COLUMNS = 2
COLOURS = {"ours": "tab:orange", "baseline": "tab:gray", "peer": "tab:blue", "target": "tab:red"}


def plot(tables: Sequence[Table], path: Path, ours: str) -> None:
    """A panel of horizontal bars per table: ratios to its baseline on a log axis, targets as lines.

    Args:
        tables: at least one.
        path: where to write the PNG.
        ours: what the contenders to be set apart begin with.

    Raises:
        ImportError: matplotlib is not installed.
    """
    figures = import_module("matplotlib.figure")
    lines = -(-len(tables) // COLUMNS)
    heights = [
        max(len(table.measured) for table in tables[row * COLUMNS : (row + 1) * COLUMNS]) + 3 for row in range(lines)
    ]
    figure = figures.Figure(figsize=(10 * COLUMNS, 0.32 * sum(heights)), layout="constrained")
    panels = figure.subplots(lines, COLUMNS, squeeze=False, height_ratios=heights).ravel()
    for panel, table in zip(panels, tables, strict=False):
        _panel(panel, table, ours)
    for panel in panels[len(tables) :]:
        panel.set_axis_off()
    figure.savefig(path, dpi=100)


def _panel(panel: Any, table: Table, ours: str) -> None:
    names = list(table.measured)
    medians = [table.ratio(name) for name in names]
    colours = [
        COLOURS["ours" if name.startswith(ours) else "baseline" if name == table.baseline else "peer"] for name in names
    ]
    places = range(len(names))
    # Bars begin at 1, the baseline: a logarithmic axis has no 0.
    panel.barh(places, [median - 1 for median in medians], left=1, color=colours)
    for place, name in zip(places, names, strict=True):
        ratios = table.ratios(name)
        panel.plot([min(ratios), max(ratios)], [place, place], color="black", linewidth=1)
        panel.annotate(f" {table.ratio(name):.3g}", (max(*ratios, 1), place), va="center", fontsize=8)
    base = statistics.median(table.measured[table.baseline])
    for target, _ in table.judged():
        at = target.limit / base if target.of is None else target.limit * table.ratio(target.of)
        place = names.index(target.contender)
        panel.plot([at, at], [place - 0.5, place + 0.5], color=COLOURS["target"], linewidth=2)
    panel.axvline(1, color="black", linewidth=0.8)
    panel.set_xscale("log")
    panel.margins(x=0.15)
    panel.xaxis.set_major_formatter("{x:g}")
    low, high = panel.get_xlim()
    if high < 8 * low:  # the powers of ten are too far apart to tell anything
        panel.xaxis.set_minor_formatter("{x:g}")
    panel.set_yticks(places, names, fontsize=8)
    panel.invert_yaxis()
    panel.set_title(table.title, fontsize=9, loc="left")
    panel.set_xlabel(f"x of {table.baseline} (red: target)", fontsize=8)
