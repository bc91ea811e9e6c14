"""Rows that are pictures: which fields have them, and one row as an RGB array."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from gym_replay.errors import FieldError
from gym_replay.schema.fields import Field, describe

Rgb: TypeAlias = npt.NDArray[np.uint8]
"""A picture, ``(height, width, 3)``."""

_LEAST_SIDE = 16
_MOST_CHANNELS = 4
_MOST_STACKED = 16


def image_fields(fields: Mapping[str, Field]) -> list[str]:
    """The names of the fields whose rows can be shown as pictures, in their order.

    Rows are pictures where they have two sides of 16 or more numbers, with 1, 3 or 4 channels before or behind them or
    without, in a stack of up to 16 such pictures or alone; bytes, flags, or floats.
    """
    return [name for name, info in fields.items() if is_image(info)]


def is_image(info: Field) -> bool:
    """Whether the rows of a field can be shown as pictures."""
    if (
        info.ragged
        or info.is_text
        or info.dtype.name not in ("uint8", "uint16", "bool", "float16", "float32", "float64")
    ):
        return False
    return _layout(info.shape) is not None


def is_frame(field: Field) -> bool:
    """Whether a field's rows are images as training code takes them: uint8, height, width and 1, 3 or 4 channels."""
    if field.ragged or field.dtype != np.uint8 or len(field.shape) != 3:
        return False
    height, width, channels = field.shape
    return channels in (1, 3, 4) and min(height, width) > channels


def lerobot_key(name: str, field: Field) -> str:
    """The key that a field's values have in LeRobot; names that are LeRobot's own already stay."""
    if name == "observation":
        return "observation.image" if is_frame(field) else "observation.state"
    if name == "observation.image" or name.startswith("observation.images."):
        return name
    if name.startswith("observation.") and is_frame(field):
        return f"observation.images.{name.removeprefix('observation.')}"
    return {"reward": "next.reward", "truncated": "next.truncated"}.get(name, name)


class _Layout(NamedTuple):
    """How the axes of a row are those of a picture.

    Attributes:
        stacked: whether the first axis is one over pictures.
        channels: 0 where there is no axis of channels, 1 where it is the first of a picture, 2 where it is the last.
    """

    stacked: bool
    channels: int


def _layout(shape: tuple[int, ...]) -> _Layout | None:
    found = _plain_layout(shape)
    if found is not None:
        return _Layout(False, found)
    if len(shape) in (3, 4) and 1 <= shape[0] <= _MOST_STACKED:
        found = _plain_layout(shape[1:])
    return None if found is None else _Layout(True, found)


def _plain_layout(shape: tuple[int, ...]) -> int | None:
    if len(shape) == 2 and min(shape) >= _LEAST_SIDE:
        return 0
    if len(shape) != 3:
        return None
    if shape[2] in (1, 3, _MOST_CHANNELS) and min(shape[:2]) >= _LEAST_SIDE:
        return 2
    if shape[0] in (1, 3) and min(shape[1:]) >= _LEAST_SIDE:
        return 1
    return None


def to_rgb(row: npt.NDArray[Any]) -> Rgb:
    """A row of an image field as a picture, uint8 ``(height, width, 3)``.

    Of a stack the newest picture is taken, the last one. Four channels are RGBA where the last one is opaque
    everywhere, else four grey pictures. Numbers other than bytes are spread from their least to their largest; floats
    from 0 to 1 are taken as they are.

    Raises:
        ValueError: the row has another shape than pictures have.
    """
    row = np.asarray(row)
    layout = _layout(row.shape)
    if layout is None:
        raise ValueError(f"a row of shape {row.shape} is no picture")
    picture = row[-1] if layout.stacked else row
    if layout.channels == 1:
        picture = np.moveaxis(picture, 0, -1)
    if layout.channels and picture.shape[-1] == _MOST_CHANNELS:
        opaque = picture.dtype == np.uint8 and bool((picture[..., 3] == 255).all())
        picture = picture[..., :3] if opaque else picture[..., 3:]
    if layout.channels == 0:
        picture = picture[..., None]
    return np.ascontiguousarray(np.broadcast_to(_as_bytes(picture), (*picture.shape[:2], 3)))


def rendered_rgb(frame: Any) -> Rgb:
    """What an environment rendered, as a picture.

    Raises:
        FieldError: it is none.
    """
    picture = np.asarray(frame)
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or not picture.size:
        raise FieldError(
            f"render: expected an array uint8 (height, width, 3), got {describe(frame)}; make the environment with "
            "render_mode='rgb_array'"
        )
    return picture


def _as_bytes(picture: npt.NDArray[Any]) -> Rgb:
    if picture.dtype == np.uint8:
        return picture
    if picture.dtype == np.bool_:
        flags: Rgb = picture.astype(np.uint8) * np.uint8(255)
        return flags
    values = np.nan_to_num(picture.astype(np.float64), nan=0.0)
    low, high = float(values.min()), float(values.max())
    if picture.dtype.kind == "f" and low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    scaled: Rgb = np.round((values - low) * (255 / (high - low if high > low else 1))).astype(np.uint8)
    return scaled
