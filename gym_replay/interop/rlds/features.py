"""What an RLDS data set has in each step and of each episode: ``features.json``, as TensorFlow Datasets writes it."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gym_replay.errors import CorruptBufferError, FieldError
from gym_replay.extras import require
from gym_replay.interop.encoded_images import pixels_of
from gym_replay.interop.old_data import about
from gym_replay.interop.rlds.records import EXTRA
from gym_replay.schema.arrays import Array
from gym_replay.schema.codecs import LARGEST_ROW
from gym_replay.schema.fields import parse_dtype

STEPS = "steps"

_TEXTS = ("string", "str", "bytes", "object")


@dataclass(frozen=True)
class Feature:
    """One value of each step, or of an episode.

    Args:
        path: its name, below ``steps`` or below nothing, such as ``observation/image``.
        kind: ``"numbers"``, ``"image"`` or ``"text"``.
        dtype: of numbers.
        shape: of one value; of images None where they say it themselves.
        encoding: ``"none"`` for numbers in a list, ``"bytes"`` or ``"zlib"`` for those of each value in a string.
    """

    path: str
    kind: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...] | None = ()
    encoding: str = "none"

    def rows(self, values: Any, count: int, where: str) -> Any:
        """The values of so many steps: an array ``(count, *shape)``, or a list of strings.

        Raises:
            CorruptBufferError: there are others, or not so many.
        """
        if self.kind == "numbers" and self.encoding == "none":
            return self._numbers(values, count, where)
        if not isinstance(values, list) or len(values) != count:
            raise self._fault(where, f"{count} strings of bytes", values)
        if self.kind == "text":
            return [value.decode("utf-8", "replace") for value in values]
        if self.kind == "image":
            what = f"{where}: {self.path!r}"
            return np.stack(_of_one_shape([decoded(value, what, self.shape) for value in values], what))
        return np.stack([self._unpacked(value, where) for value in values])

    def _numbers(self, values: Any, count: int, where: str) -> Array:
        assert self.shape is not None
        shape = (count, *self.shape)
        if not isinstance(values, np.ndarray) or values.size != np.prod(shape, dtype=np.int64):
            raise self._fault(where, f"numbers of shape {shape}", values)
        return values.astype(self.dtype).reshape(shape)

    def _unpacked(self, value: bytes, where: str) -> Array:
        assert self.shape is not None
        nbytes = self.dtype.itemsize * int(np.prod(self.shape, dtype=np.int64))
        if self.encoding == "zlib":
            try:
                value = zlib.decompressobj().decompress(value, nbytes + 1)
            except zlib.error as error:
                raise CorruptBufferError(f"{where}: {self.path!r} cannot be decoded: {error}") from None
        if len(value) != nbytes:
            raise self._fault(where, f"{nbytes} bytes", value)
        return np.frombuffer(value, self.dtype).reshape(self.shape)

    def _fault(self, where: str, expected: str, values: Any) -> CorruptBufferError:
        size = values.size if isinstance(values, np.ndarray) else len(values)
        return CorruptBufferError(f"{where}: {self.path!r}: expected {expected}, got {size} {type(values).__name__}")


def _of_one_shape(images: Sequence[Array], where: str) -> Sequence[Array]:
    shapes = {image.shape for image in images}
    if len(shapes) > 1:
        raise CorruptBufferError(f"{where}: expected images of one size, got {sorted(shapes)[:9]}")
    return images


def decoded(content: bytes, where: str, shape: tuple[int, ...] | None) -> Array:
    """The pixels of an image, uint8 ``(height, width, channels)``.

    Args:
        content: the encoded image.
        where: for messages.
        shape: what it has; None where the image says it.

    Raises:
        MissingExtraError: Pillow is not installed.
        CorruptBufferError: it is none, has another size, or more than 8 bits a channel.
    """
    pillow = require("PIL.Image", EXTRA, "an RLDS data set with images")
    with about(where):
        return pixels_of(pillow, content, shape)


class Features:
    """All features of a data set.

    Args:
        document: of ``features.json``.

    Attributes:
        of_steps, of_episodes: by path.
        left_out: lines about those that are not read.

    Raises:
        FieldError: the data set has no steps.
    """

    def __init__(self, document: Mapping[str, Any]) -> None:
        self.left_out: list[str] = []
        episode = _children(document)
        steps = _children(_child(episode.get(STEPS), "sequence", "feature")) if STEPS in episode else {}
        if not steps:
            raise FieldError(f"it is no RLDS data set: expected a sequence {STEPS!r}, got the features {[*episode]}")
        self.of_steps = {each.path: each for each in self._walk(steps, "")}
        rest = {name: feature for name, feature in episode.items() if name != STEPS}
        self.of_episodes = {each.path: each for each in self._walk(rest, "")}

    def _walk(self, features: Mapping[str, Any], root: str) -> Iterator[Feature]:
        for name, feature in features.items():
            path = f"{root}{name}"
            if children := _children(feature):
                yield from self._walk(children, f"{path}/")
                continue
            try:
                yield _parsed(path, feature)
            except ValueError as error:
                self.left_out.append(f"{path}: {error}")


def _children(feature: Any) -> Mapping[str, Any]:
    found = _child(feature, "featuresDict", "features")
    return found if isinstance(found, Mapping) else {}


def _child(feature: Any, *names: str) -> Any:
    for name in names:
        feature = feature.get(name) if isinstance(feature, Mapping) else None
    return feature


def _parsed(path: str, feature: Any) -> Feature:
    """One feature; ValueError, with the reason, where it is not read."""
    if _child(feature, "text") is not None:
        return Feature(path, "text", np.dtype(object))
    if (image := _child(feature, "image")) is not None:
        shape = _shape(image)
        if image.get("dtype", "uint8") != "uint8":
            raise ValueError(f"images of {image['dtype']} are not read")
        return Feature(path, "image", np.dtype(np.uint8), shape if shape and -1 not in shape else None)
    if _child(feature, "classLabel") is not None:
        return Feature(path, "numbers", np.dtype(np.int64))
    tensor = _child(feature, "tensor")
    if not isinstance(tensor, Mapping):
        raise ValueError(
            f"features of the kind {str(_child(feature, 'pythonClassName')).rpartition('.')[2]} are not read"
        )
    shape, dtype = _shape(tensor), str(tensor.get("dtype"))
    if -1 in shape:
        raise ValueError(f"its shape {shape} differs from value to value")
    if dtype in _TEXTS:
        if shape:
            raise ValueError(f"strings of shape {shape} are not read")
        return Feature(path, "text", np.dtype(object))
    try:
        numbers = parse_dtype(dtype)
    except (FieldError, TypeError):
        raise ValueError(f"no field has the dtype {dtype}") from None
    return Feature(path, "numbers", numbers, shape, str(tensor.get("encoding", "none")).lower())


def _shape(feature: Mapping[str, Any]) -> tuple[int, ...]:
    sizes: Sequence[Any] = _child(feature, "shape", "dimensions") or ()
    shape = tuple(int(size) for size in sizes)
    if any(not -1 <= size <= LARGEST_ROW for size in shape):
        raise ValueError(f"expected a shape, got {shape}")
    return shape
