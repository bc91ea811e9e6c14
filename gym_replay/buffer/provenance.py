"""Where episodes come from: when they were recorded, and by which runs of which versions."""

from __future__ import annotations

import math
from collections import Counter
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt

from gym_replay.buffer.loading.selection import EpisodeValues
from gym_replay.files.documents import parse_json


def numbers_of(episodes: EpisodeValues, name: str) -> npt.NDArray[Any] | None:
    """What is known of each episode as one number; None where there is no such number: a user may take any name."""
    if name not in episodes:
        return None
    values = episodes[name]
    return values if values.ndim == 1 and values.dtype.kind in "buif" else None


def when_recorded(episodes: EpisodeValues) -> dict[str, float] | None:
    """When the first episode began, when the last one ended, and how long all of them took, in seconds."""
    starts, durations = (numbers_of(episodes, name) for name in ("episode_start", "episode_duration"))
    if episodes.count == 0 or starts is None or durations is None:
        return None
    return {
        "first": float(starts.min()),
        "last": float((starts.astype(np.float64) + durations).max()),
        "duration": math.fsum(durations[np.isfinite(durations)].tolist()),
    }


def runs_of(episodes: EpisodeValues) -> list[dict[str, Any]]:
    """The recorders' runs in their order: id, when it began, versions, and how many episodes it made."""
    if "episode_run" not in episodes or episodes["episode_run"].dtype != np.dtype(object):
        return []
    found = []
    for text, count in Counter(episodes["episode_run"].tolist()).items():
        with suppress(ValueError):  # any string may be stored
            told = parse_json(text.encode(), finite=False)
            found += [{**told, "episodes": count}] if isinstance(told, dict) else []
    return found
