"""The statistics of one field, and what fields are normalized with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gym_replay.schema.fields import Field

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class FieldStatistics:
    """The statistics of one field, all of one shape: the field's, or ``(1, 1, channels)`` of images.

    Attributes:
        count: int64: how many values there are, not counting NaN.
        mean, std, min, max: float64. ``std`` is that of the population, and at least the floor.
        quantiles: float64, by probability.
    """

    count: Ints
    mean: Floats
    std: Floats
    min: Floats
    max: Floats
    quantiles: Mapping[float, Floats]


class Resolved(dict[str, FieldStatistics]):
    """The statistics that fields are normalized with, of whatever dtype they are."""


def to_state(statistics: Resolved | None) -> dict[str, Any] | None:
    """What fields are normalized with, as dicts and lists of numbers, exactly."""
    if statistics is None:
        return None
    return {
        str(name): {what: np.asarray(getattr(found, what), np.float64).tolist() for what in ("mean", "std")}
        for name, found in statistics.items()
    }


def from_state(state: Mapping[str, Any] | None) -> Resolved | None:
    """The same again; nothing else is known of the fields."""
    if state is None:
        return None
    found = {}
    for name, values in state.items():
        mean, std = (np.asarray(values[what], np.float64) for what in ("mean", "std"))
        unknown = np.full_like(mean, np.nan)
        found[name] = FieldStatistics(np.zeros(mean.shape, np.int64), mean, std, unknown, unknown, {})
    return Resolved(found)


def is_image(field: Field) -> bool:
    """Whether a field is an image: uint8, height, width and 1, 3 or 4 channels."""
    if field.ragged or field.dtype != np.uint8 or len(field.shape) != 3:
        return False
    height, width, channels = field.shape
    return channels in (1, 3, 4) and min(height, width) > channels


def statistics_shape(field: Field) -> tuple[int, ...]:
    """The shape of a field's statistics."""
    return (1, 1, field.shape[-1]) if is_image(field) else field.shape
