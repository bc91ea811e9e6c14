"""plot: returns and lengths over time, and the ranges of actions and observations, as a figure of matplotlib."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gym_replay.buffer.concat import opened
from gym_replay.buffer.reading import Readable
from gym_replay.errors import EmptyBufferError
from gym_replay.extras import require
from gym_replay.files.new_file import new_file
from gym_replay.schema.arrays import Floats
from gym_replay.schema.fields import Field
from gym_replay.viewing.film import EXTRA, target_of
from gym_replay.viewing.text import short

if TYPE_CHECKING:
    from gym_replay.buffer.loading.selection import Episodes
    from gym_replay.buffer.loading.statistics import FieldStatistics

_MOST_FIELDS = 12
_MOST_ELEMENTS = 64
_MOST_DOTS = 5000
_WIDTH, _HEIGHT = 10.0, 2.4
"""Inches of the figure, and of each of its plots."""

_QUANTILES = (0.05, 0.5, 0.95)
_BLUE, _DARK, _LIGHT = "#3b7dd8", "#1c3f73", "#c9dcf5"


def plot(
    source: str | os.PathLike[str] | Readable,
    path: str | os.PathLike[str],
    *,
    episodes: Episodes | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> Path:
    """Plot what is in a buffer: returns and lengths of its episodes over time, and ranges of actions and observations.

    Returns are drawn where rewards are one number each, with their mean over 2 % of the episodes. Of each element of
    an action or observation field, the first 64 of the first 12 fields, there are the range, the quantiles 0.05 to 0.95
    and the median; of an image, of each channel.

    Args:
        source: a buffer, or the folder of one, a folder of such folders, or a pattern.
        path: the new file, ``.png``, ``.svg`` or ``.pdf``.
        episodes: which episodes, as for the loaders; None for all.
        overwrite: replace a file that is there.
        progress: show a bar where it takes longer than a second.

    Returns:
        The file. It is written beside its place, and renamed when it is complete.

    Raises:
        EmptyBufferError: no episode is chosen.
        FieldError: an argument is wrong.
        IndexError: there is no such episode.
        MissingExtraError: the extra ``media`` is not installed.
        StorageError: there is a file already, or the operating system refused.

    Example:
        >>> plot("data/cartpole", "cartpole.png")  # doctest: +SKIP
    """
    from gym_replay.buffer.loading.selection import EpisodeValues, selected
    from gym_replay.buffer.loading.statistics import statistics

    target = target_of(path, (".png", ".svg", ".pdf"))
    figures = require("matplotlib.figure", EXTRA, "plot")
    agg = require("matplotlib.backends.backend_agg", EXTRA, "plot")
    with opened(source) as buffer:
        values = EpisodeValues(buffer.snapshots())
        indices = np.flatnonzero(selected(values, episodes))
        if not len(indices):
            raise EmptyBufferError("there is no episode to plot; record some, or choose others")
        with new_file(target, overwrite=overwrite) as made:
            names = list(_ranged(buffer.metadata.fields))[:_MOST_FIELDS]
            found: Mapping[str, FieldStatistics] = {}
            if names:
                chosen = None if episodes is None else indices
                found = statistics(
                    buffer, names, episodes=chosen, quantiles=_QUANTILES, std_floor=0, cache=False, progress=progress
                )
            series = {name: values[key][indices] for name, key in _series(values)}
            count = len(series) + len(names)
            figure = figures.Figure(figsize=(_WIDTH, _HEIGHT * count), layout="constrained")
            agg.FigureCanvasAgg(figure)
            axes = iter(figure.subplots(count, 1, squeeze=False)[:, 0])
            for name, numbers in series.items():
                _draw_series(next(axes), name, indices, np.asarray(numbers, np.float64))
            for name in names:
                _draw_ranges(next(axes), name, found[name])
            figure.savefig(made, format=target.suffix.lower()[1:], dpi=110)
    return target


def _series(values: Any) -> Iterator[tuple[str, str]]:
    """What there is of each episode: how it is called on the plot, and in the values."""
    if "episode_return" in values and np.ndim(values["episode_return"]) == 1:
        yield "return", "episode_return"
    yield "length", "length"


def _ranged(fields: Mapping[str, Field]) -> Iterator[str]:
    for root in ("action", "observation"):
        for name, info in fields.items():
            is_of = name == root or name.startswith(f"{root}.")
            if is_of and not info.ragged and not info.is_text and math.prod(info.shape) > 0:
                yield name


def _draw_series(axes: Any, name: str, indices: Any, numbers: Floats) -> None:
    dots = "." if len(numbers) <= _MOST_DOTS else ","
    axes.plot(indices, np.where(np.isfinite(numbers), numbers, np.nan), dots, color=_BLUE, alpha=0.5)
    window = max(1, len(numbers) // 50)
    if window > 1:
        finite = np.isfinite(numbers)
        sums = np.convolve(np.where(finite, numbers, 0), np.ones(window), "valid")
        counts = np.convolve(finite, np.ones(window), "valid")
        mean = np.divide(sums, counts, out=np.full(len(sums), np.nan), where=counts > 0)
        at = np.convolve(indices, np.ones(window), "valid") / window
        axes.plot(at, mean, color=_DARK, label=f"mean of {window}")
        axes.legend(loc="upper left", fontsize=8)
    _name(axes, name)
    axes.set_xlabel("episode")
    axes.xaxis.get_major_locator().set_params(integer=True)


def _draw_ranges(axes: Any, name: str, found: FieldStatistics) -> None:
    lows, highs = found.min.reshape(-1), found.max.reshape(-1)
    quantiles = {p: values.reshape(-1) for p, values in found.quantiles.items()}
    shape = found.min.shape
    elements = list(np.ndindex(shape[-1:] if shape[:-1] == (1, 1) else shape))
    shown = slice(0, _MOST_ELEMENTS)
    x = np.arange(len(lows[shown]))
    parts = [lows[shown], highs[shown], *(quantiles[p][shown] for p in _QUANTILES)]
    low, high, fifth, middle, last = (np.where(np.isfinite(part), part, np.nan) for part in parts)
    axes.vlines(x, low, high, color=_LIGHT, linewidth=6)
    axes.vlines(x, fifth, last, color=_BLUE, linewidth=6)
    axes.plot(x, middle, "_", color=_DARK, markersize=9)
    labels = [",".join(map(str, element)) for element in elements[shown]]
    every = max(1, len(labels) // 16)
    axes.set_xticks(x[::every], labels[::every])
    axes.set_xlim(-0.7, max(len(x) - 0.3, 3.3))
    more = f" (the first {_MOST_ELEMENTS} of {len(lows)})" if len(lows) > _MOST_ELEMENTS else ""
    _name(axes, f"{name}: range, quantiles 0.05 to 0.95, median{more}")


def _name(axes: Any, text: str) -> None:
    axes.set_title(short(text, 140), loc="left", fontsize=10, parse_math=False)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
