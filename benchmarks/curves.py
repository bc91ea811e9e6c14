"""Curves: what was measured at each of several sizes, as JSON and as plots with logarithmic axes."""

from __future__ import annotations

import io
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.report import command, machine, versions
from gym_replay.errors import MissingExtraError

PACKAGES = ("python", "gym-replay", "numpy", "torch", "gymnasium")


@dataclass
class Panel:
    """One plot.

    Args:
        title: what is measured.
        x, y: the axes, with their units.
        curves: by name, and by size, what was measured each time.
        is_log: whether the axis of sizes is logarithmic; the other one always is.
    """

    title: str
    x: str
    y: str
    curves: dict[str, dict[float, list[float]]] = field(default_factory=dict)
    is_log: bool = True

    def add(self, curve: str, size: float, values: Sequence[float]) -> None:
        """Add what was measured at a size."""
        self.curves.setdefault(curve, {}).setdefault(size, []).extend(values)

    def table(self) -> str:
        """``median (lowest .. highest)`` of each curve at each size."""
        lines = [f"{self.title}; {self.y}"]
        sizes = sorted({size for points in self.curves.values() for size in points})
        lines.append(f"{self.x:>30}" + "".join(f"  {name:<32}" for name in self.curves))
        for size in sizes:
            cells = [spread(points[size]) if size in points else "" for points in self.curves.values()]
            lines.append(f"{size:>30,.0f}" + "".join(f"  {cell:<32}" for cell in cells))
        return "\n".join(lines)


@dataclass
class Study:
    """The panels of one question, drawn side by side.

    Args:
        title: the question.
        panels: by name.
        notes: what else there is to know.
    """

    title: str
    panels: dict[str, Panel]
    notes: list[str] = field(default_factory=list)


def spread(values: Sequence[float]) -> str:
    """``median (lowest .. highest)``, with three digits each."""
    low, middle, high = (f"{value:.3g}" for value in (min(values), statistics.median(values), max(values)))
    return f"{middle} ({low} .. {high})"


def circumstances() -> dict[str, Any]:
    """Where, when, how and with what something was measured."""
    found = versions()
    return {
        "date": date.today().isoformat(),
        "command": command(),
        "machine": machine(),
        "versions": {name: found.get(name, "not installed") for name in PACKAGES},
    }


def save(studies: Mapping[str, Study], path: Path) -> None:
    """Write studies to a file of them; others that are in it stay."""
    found = json.loads(path.read_text()) if path.exists() else {}
    for name, study in studies.items():
        found[name] = {"measured": circumstances(), **asdict(study)}
    path.write_text(json.dumps(found, indent=1))


def load(path: Path, name: str) -> Study:
    """A study of such a file."""
    found = json.loads(path.read_text())[name]
    panels = {}
    for key, panel in found["panels"].items():
        panels[key] = Panel(panel["title"], panel["x"], panel["y"], is_log=panel["is_log"])
        for curve, points in panel["curves"].items():
            for size, values in points.items():
                panels[key].add(curve, float(size), values)
    return Study(found["title"], panels, found["notes"])


def require_matplotlib() -> Any:
    """Matplotlib's pyplot, which draws to files.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise MissingExtraError(
            'plots need matplotlib: pip install -c constraints.txt -e ".[bench]", or pass --no-plots'
        ) from error
    matplotlib.use("agg")
    import matplotlib.pyplot

    return matplotlib.pyplot


def draw(study: Study, path: Path) -> None:
    """Draw the panels of a study, two beside one another: medians, and a band from the lowest to the highest."""
    pyplot = require_matplotlib()
    columns = min(len(study.panels), 2)
    rows = -(-len(study.panels) // columns)
    size = 5 * columns, 3.7 * rows
    figure, axes = pyplot.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    for panel, axis in zip(study.panels.values(), axes.flat, strict=False):
        _draw_panel(panel, axis)
    for axis in axes.flat[len(study.panels) :]:
        axis.remove()
    figure.suptitle(study.title, fontsize=11)
    written = io.BytesIO()
    figure.savefig(written, dpi=110)
    pyplot.close(figure)
    from PIL import Image  # matplotlib needs it

    # Few colours take half of the bytes.
    Image.open(written).convert("RGB").quantize(64).save(path, optimize=True)


def _draw_panel(panel: Panel, axis: Any) -> None:
    for name, points in panel.curves.items():
        sizes = sorted(points)
        middle = [statistics.median(points[size]) for size in sizes]
        (line,) = axis.plot(sizes, middle, marker="o", markersize=3, linewidth=1.4, label=name)
        low, high = ([choose(points[size]) for size in sizes] for choose in (min, max))
        axis.fill_between(sizes, low, high, color=line.get_color(), alpha=0.18, linewidth=0)
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter("{x:,g}")
    low, high = axis.get_ylim()
    if high < 50 * low:
        axis.yaxis.set_minor_formatter("{x:,g}")
    if panel.is_log:
        axis.set_xscale("log")
    else:
        axis.set_xticks(sorted({size for points in panel.curves.values() for size in points}))
    axis.set_title(panel.title, fontsize=10)
    axis.set_xlabel(panel.x, fontsize=9)
    axis.set_ylabel(panel.y, fontsize=9)
    axis.tick_params(which="both", labelsize=8)
    axis.grid(which="major", alpha=0.3)
    axis.legend(fontsize=8, framealpha=0.6)
