"""What every importer asks of old data, and in which shapes and dtypes it takes it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from gym_replay.errors import FieldError

Array = npt.NDArray[Any]

FLAGS = ("terminated", "truncated")


def step_shape(name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a field for old values ``(rows, *shape)``.

    Rewards, flags and integer actions of one number a step are single numbers, also where they come as ``(rows, 1)``:
    beside the ``(batch,)`` of other values, ``(batch, 1)`` broadcasts to ``(batch, batch)``.
    """
    is_number = name in ("reward", *FLAGS) or (f"{name}.".startswith("action.") and dtype.kind in "biu")
    return () if is_number and math.prod(shape) == 1 else shape


def as_steps(name: str, values: Array) -> Array:
    """Old values ``(rows, ...)`` of a field in its :func:`step_shape`."""
    return values.reshape(len(values), *step_shape(name, values.dtype, values.shape[1:])) if values.ndim else values


def as_flags(name: str, values: Any, count: int) -> npt.NDArray[np.bool_]:
    """One flag a step, bool ``(count,)``, from booleans or from the numbers 0 and 1.

    Raises:
        FieldError: there are not so many, or one of them is something else.
    """
    array = np.asarray(values)
    if array.shape[:1] != (count,) or math.prod(array.shape[1:]) != 1:
        raise FieldError(f"{name!r}: expected {count} rows, as rewards have, of one flag each, got shape {array.shape}")
    array = array.reshape(count)
    if array.dtype.kind not in "biuf":
        raise FieldError(f"{name!r}: expected booleans, or 0 and 1, got {array.dtype}")
    flags: npt.NDArray[np.bool_] = array == 1
    if (wrong := np.flatnonzero(~flags & (array != 0))).size:
        raise FieldError(f"{name!r}: expected booleans, or 0 and 1, got {array[wrong[0]]} at row {wrong[0]}")
    return flags


def rows_differ(own: Array, other: Array) -> npt.NDArray[np.bool_]:
    """Which rows of two arrays of one shape differ, bool ``(rows,)``; NaN is as good as NaN.

    Floats of two dtypes are compared in the narrower one, since the others were rounded to it somewhere.
    """
    if own.dtype.kind == other.dtype.kind == "f":
        narrow = min(own.dtype, other.dtype, key=lambda dtype: dtype.itemsize)
        with np.errstate(all="ignore"):
            own, other = own.astype(narrow, copy=False), other.astype(narrow, copy=False)
    differs = (own != other) & ~((own != own) & (other != other))
    found: npt.NDArray[np.bool_] = differs.reshape(len(own), -1).any(axis=1)
    return found


def check_next(name: str, own: Any, following: Any) -> None:
    """Raise FieldError where next observations cannot be rows of the field that their observations are in."""
    if following.shape != own.shape:
        raise FieldError(f"{name!r}: expected shape {own.shape}, as observations have, got {following.shape}")
    if following.dtype.kind == "f" and own.dtype.kind != "f":
        raise FieldError(
            f"{name!r} holds {following.dtype}, observations hold {own.dtype}: one of both was converted, so they do "
            "not tell where an episode goes on; convert both alike, or leave the next ones out"
        )


def check_ends(values: Mapping[str, Any], length: int) -> None:
    """Raise FieldError where a flag of an episode is set before its last step: loaders take T steps as one episode."""
    for name in FLAGS:
        flags = np.asarray(values.get(name, ()))
        if flags.size != length or flags.dtype.kind not in "biuf":
            continue
        if (early := np.flatnonzero(flags.reshape(length)[:-1])).size:
            raise FieldError(
                f"{name!r} is set at step {early[0]} of {length}, so this is more than one episode; split it after "
                "each step that ends one"
            )
