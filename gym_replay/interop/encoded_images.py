"""Images that a data set has as the bytes of a file, read by Pillow: PNG, JPEG and their like."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from gym_replay.errors import CorruptBufferError
from gym_replay.schema.arrays import Array

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def pixels_of(pillow: Any, content: Any, shape: tuple[int, ...] | None) -> Array:
    """The pixels of an encoded image, uint8 ``(height, width, channels)``.

    Args:
        pillow: its module ``PIL.Image``.
        content: bytes.
        shape: what it has; None where the image says it.

    Raises:
        CorruptBufferError: it is no image, or one of another size or of more than 8 bits a channel; nothing of another
            size is decoded.
    """
    if not isinstance(content, bytes):
        raise CorruptBufferError(f"expected the bytes of an image, got {content!r:.60}; paths are not followed")
    try:
        with pillow.open(io.BytesIO(content)) as image:
            if shape is not None and image.size != (shape[1], shape[0]):
                raise CorruptBufferError(f"expected an image of {shape[1]}x{shape[0]} pixels, got {image.size}")
            if image.mode.startswith(("I", "F")):
                raise CorruptBufferError(f"expected an image of 8 bits a channel, got one of mode {image.mode}")
            channels = len(image.getbands()) if shape is None else shape[2]
            pixels = np.asarray(image.convert(_MODES[channels]))
    except CorruptBufferError:
        raise
    except Exception as error:  # Pillow raises many kinds of a damaged file
        raise CorruptBufferError(f"an image cannot be decoded: {error}") from None
    return pixels.reshape(*pixels.shape[:2], channels)
