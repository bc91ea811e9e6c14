"""Curves of an episode: values of its fields over time, thinned to what a screen shows, and all values of a step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gym_replay.buffer.door import Ragged
from gym_replay.buffer.episode import Episode
from gym_replay.errors import GymReplayError
from gym_replay.schema.fields import Field
from gym_replay.schema.pictures import is_image
from gym_replay.viewing.episodes import FLAGS
from gym_replay.viewing.text import short

RETURN = "return so far"
"""The panel of the sums of rewards."""

MOST_LINES = 6
_MOST_POINTS = 1200
_LARGEST_TEXT = 4096
_FIRST = ("reward", RETURN, "action", "observation")


@dataclass(frozen=True)
class Line:
    """One curve.

    Attributes:
        label: which element of the field it is; empty where there is one only.
        t, values: its points, int64 and float64 ``(points,)``; what is not finite is NaN.
    """

    label: str
    t: npt.NDArray[np.int64]
    values: npt.NDArray[np.float64]


@dataclass(frozen=True)
class Panel:
    """The curves of one field.

    Attributes:
        name: the field's.
        lines: of its first elements.
        elements: how many elements the field has.
        holds: whether a value holds until the next one, as those of whole numbers and flags do.
    """

    name: str
    lines: list[Line]
    elements: int
    holds: bool


def panel_names(episode: Episode) -> list[str]:
    """What there are curves of: rewards, their sum, actions, observations, and then every other field of numbers."""
    fields = episode.snapshot.metadata.fields
    names = [name for name, info in fields.items() if _has_curves(name, info)]
    if "reward" in names and math.prod(fields["reward"].shape) == 1:
        names.append(RETURN)

    def rank(name: str) -> int:
        return next(
            (at for at, first in enumerate(_FIRST) if name == first or name.startswith(f"{first}.")), len(_FIRST)
        )

    return sorted(names, key=rank)


def _has_curves(name: str, info: Field) -> bool:
    drawn = not info.ragged and info.dtype.kind in "biuf" and math.prod(info.shape) > 0
    return drawn and name not in FLAGS and not name.startswith("info_present.") and not is_image(info)


def panel(episode: Episode, name: str) -> Panel:
    """The curves of one field, those of its first six elements.

    Raises:
        EpisodeEvictedError: the episode left the circular buffer.
    """
    rows = np.asarray(episode["reward" if name == RETURN else name])
    flat = rows.reshape(len(rows), -1)
    values = flat[:, :MOST_LINES].astype(np.float64)
    episode.snapshot.require_live(episode.id)
    if name == RETURN:
        values = np.cumsum(values, axis=0)
    shape = rows.shape[1:] if flat.shape[1] > 1 else ()
    elements = list(np.ndindex(shape))[:MOST_LINES]
    return Panel(
        name,
        [
            Line(",".join(map(str, element)), *thinned(values[:, at]))
            for at, element in enumerate(elements if len(rows) else [])
        ],
        flat.shape[1],
        rows.dtype.kind in "biu",
    )


def thinned(values: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """At most 1200 points of a curve, that look as all of them do: the least and the largest value of equal stretches.

    Args:
        values: one for each t, float64 ``(T,)``.

    Returns:
        The t of the points, int64, ascending, and their values, float64, NaN where one is not finite.

    Example:
        >>> t, y = thinned(np.sin(np.arange(100_000.0)))
        >>> len(t) <= 1200, float(y.max() - y.min()) > 1.99
        (True, True)
    """
    values = np.where(np.isfinite(values), values, np.nan)
    if len(values) <= _MOST_POINTS:
        return np.arange(len(values)), values
    edges = np.linspace(0, len(values), _MOST_POINTS // 2 + 1).astype(np.int64)
    lows = np.where(np.isnan(values), np.inf, values)
    highs = np.where(np.isnan(values), -np.inf, values)
    found: list[int] = []
    for begin, end in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        found += sorted({begin + int(lows[begin:end].argmin()), begin + int(highs[begin:end].argmax())})
    t = np.array(found, np.int64)
    return t, values[t]


def last_t(episode: Episode) -> int:
    """The last t that there is something to see of: T where the last observation is there, else T-1."""
    has_last = episode.snapshot.metadata.has_state and episode.has_final
    return len(episode) if has_last else len(episode) - 1


@dataclass(frozen=True)
class Mark:
    """A row that is marked.

    Attributes:
        t: which.
        kind: ``"terminated"``, ``"truncated"``, ``"cut"`` or ``"missing"`` (the last observation is).
        text: what it means.
    """

    t: int
    kind: str
    text: str


_MOST_MARKS = 200


def marks(episode: Episode) -> list[Mark]:
    """The rows in which an episode says that it ended, in their order, 200 at most."""
    found: list[Mark] = []
    last = len(episode) - 1
    for name in FLAGS:
        if name not in episode or isinstance(episode[name], Ragged) or episode[name].ndim != 1:
            continue
        for t in np.flatnonzero(episode[name])[:_MOST_MARKS].tolist():
            if name == "truncated" and t == last and not episode.complete:
                continue
            found.append(Mark(t, name, f"{name} by step {t}"))
    if not episode.complete:
        found.append(Mark(last, "cut", f"cut after step {last}: a reset or a close came before the episode's end"))
    if episode.snapshot.metadata.has_state and not episode.has_final:
        found.append(Mark(last, "missing", "the last observation was not stored"))
    return sorted(found, key=lambda mark: mark.t)


def values_at(episode: Episode, names: Sequence[str], t: int) -> Iterator[tuple[str, str]]:
    """The names of fields and their values in row t, as texts; strings as strings."""
    for name in names:
        try:
            rows = episode[name]
            text = "—" if t >= len(rows) else shown_value(rows[t], isinstance(rows, Ragged))
            episode.snapshot.require_live(episode.id)
        except (GymReplayError, IndexError) as error:
            text = f"({error})"
        yield name, text


def shown_value(value: Any, ragged: bool) -> str:
    """A value as a text; of a ragged field, bytes that are text as the text."""
    array = np.asarray(value)
    if ragged and array.dtype == np.uint8 and array.ndim == 1 and 0 < array.size <= _LARGEST_TEXT:
        try:
            text = array.tobytes().decode()
        except UnicodeDecodeError:
            return short(array)
        if text.isprintable():
            return f"“{short(text)}”"
    return short(array)
