"""From gathered arrays to what the training code receives: tensors, dtypes, layout, scale, names."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache, reduce
from types import MappingProxyType
from typing import Any, TypeAlias, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from gym_replay.buffer.loading.statistics import FieldStatistics
from gym_replay.errors import FieldError
from gym_replay.schema.arrays import Array, Bools
from gym_replay.schema.fields import Field
from gym_replay.schema.pictures import is_frame


class Batch(dict[str, Any]):
    """A batch: tensors by name, and lists of strings. It prints as a line for each entry: name, dtype and shape.

    Example:
        >>> Batch(reward=torch.zeros(4), nested={"x": torch.ones(4, 2, dtype=torch.uint8)}, task=["a", "b"])
        Batch(
          reward: float32 (4,)
          nested.x: uint8 (4, 2)
          task: list of 2
        )
    """

    def _ipython_key_completions_(self) -> list[str]:
        return list(self)

    def __repr__(self) -> str:
        return "\n  ".join(["Batch(", *(f"{name}: {what}" for name, what in shapes_of(self).items())]) + "\n)"


def shapes_of(batch: Mapping[str, Any], within: str = "") -> dict[str, str]:
    """What each entry of a batch is, by its name: ``float32 (256, 17)``."""
    found: dict[str, str] = {}
    for name, value in batch.items():
        if isinstance(value, (Mapping, tuple)):
            inner = value if isinstance(value, Mapping) else {str(index): one for index, one in enumerate(value)}
            found |= shapes_of(inner, f"{within}{name}.")
        elif isinstance(value, Tensor):
            device = "" if value.device.type == "cpu" else f" on {value.device}"
            found[f"{within}{name}"] = f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}{device}"
        elif isinstance(value, list):
            found[f"{within}{name}"] = f"list of {len(value)}"
        else:
            found[f"{within}{name}"] = f"{value!r:.60}"
    return found


# Torch's trees of tensors know dicts, but not what derives from them.
pytree.register_pytree_node(
    Batch, lambda batch: ([*batch.values()], [*batch]), lambda v, k: Batch(zip(k, v, strict=True))
)

Dtype: TypeAlias = torch.dtype | str | None
Transform: TypeAlias = Callable[[dict[str, Any]], dict[str, Any]]
Layout: TypeAlias = str | Mapping[str, str] | None

LAYOUTS = ("HWC", "CHW")

_MOST_ROUNDED = 256
"""Means of up to so many standard deviations are subtracted in float32: the error is under 2e-5 deviations."""


class Arrays(dict[str, Array]):
    """The arrays of a batch, by entry.

    Attributes:
        valid: bool ``(batch, time)``, or ``(batch,)``, of entries that were padded with zeros: True where they
            were not. Padding is not normalized.
    """

    def __init__(self) -> None:
        self.valid: dict[str, Bools] = {}

    def part(self, begin: int, end: int) -> Arrays:
        """Samples ``begin`` to ``end - 1``, in memory of their own."""
        found = Arrays()
        for name, array in self.items():
            found[name] = array[begin:end].copy()
        if self.valid:
            found.valid = {name: mask[begin:end] for name, mask in self.valid.items()}
        return found


def check_dtype(dtype: Dtype) -> torch.dtype | None:
    """What floating-point fields are delivered as: None as stored, else the dtype. ``None`` asks for the default.

    Raises:
        FieldError: it is neither a floating-point torch dtype, nor None, nor ``"stored"``.
    """
    if dtype is None:
        return torch.get_default_dtype()
    if dtype == "stored":
        return None
    if isinstance(dtype, torch.dtype) and dtype.is_floating_point:
        return dtype
    raise FieldError(f"dtype={dtype!r}: expected a floating-point torch.dtype, 'stored' or None")


class Delivery:
    """What happens to each batch between the gather and the training code.

    In this order: fields are normalized, images are laid out, floats are converted, and the batch is transformed. Each
    tensor is contiguous, writable, and in memory that nothing else holds.

    Args:
        entries: the field that each entry of the batch shows, as name and declaration.
        dtype: of floats. None: float64 arrives in torch's default dtype, all others as stored. A torch dtype: all
            floats arrive in it. ``"stored"``: all as stored.
        image_layout: ``"CHW"`` delivers images ``(..., channels, height, width)``: the uint8 fields with three axes of
            which the last has 1, 3 or 4 and the others more. A mapping from field names to ``"CHW"`` or ``"HWC"`` says
            it for each field, which may have any dtype.
        normalize: statistics by field name; ``(x - mean) / std`` is delivered for these fields, also where an entry is
            at a later step. Integers become floats. Zeros that pad an entry stay zeros.
        transform: a function from the batch, a dict of tensors, to the dict to deliver instead. It runs where the
            batch is made: in the worker, if there are any.

    Raises:
        FieldError: an option is none of these, or statistics or a layout do not fit their field.

    Example:
        >>> delivery = Delivery({}, dtype=torch.float16, transform=lambda batch: batch | {"twice": 2 * batch["x"]})
        >>> delivery({"x": np.array([1.0, 2.0])})["twice"]
        tensor([2., 4.], dtype=torch.float16)
    """

    def __init__(
        self,
        entries: Mapping[str, tuple[str, Field]],
        *,
        dtype: Dtype = None,
        image_layout: Layout = None,
        normalize: Mapping[str, FieldStatistics] | None = None,
        transform: Transform | None = None,
    ) -> None:
        self._dtype = check_dtype(dtype)
        self._only_float64 = dtype is None
        self._layout = _checked_layout(image_layout)
        self._normalize = dict(normalize or {})
        if transform is not None and not callable(transform):
            raise FieldError(f"transform={transform!r:.60}: expected a function from a batch to a batch")
        self._transform = transform
        self._entries = dict(entries)
        self._finishers: dict[str, Callable[[Array], Any]] = {}
        for name, field in self._entries.values():
            if isinstance(self._layout, dict) and name in self._layout and len(field.shape) != 3:
                raise FieldError(
                    f"image_layout: field {name!r}: expected three axes (height, width, channels), got {field.shape}"
                )
            if name in self._normalize:
                _check_statistics(name, field, self._normalize[name])

    def __call__(self, arrays: Arrays, more: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Any]:
        """The batch: tensors of the arrays' shapes (but for images), and lists for arrays of objects.

        The arrays of an entry have the same dtype in every batch. The entries of ``more`` are in the batch as they are.
        """
        finishers = self._finishers
        batch = Batch()
        for name, array in arrays.items():
            if (finish := finishers.get(name)) is None:
                finish = finishers[name] = self._finisher(name, array.dtype)
            batch[name] = finish(array)
        if self._normalize:
            for name, mask in arrays.valid.items():
                if name in self._entries and self._entries[name][0] in self._normalize:
                    batch[name][torch.from_numpy(~mask)] = 0
        batch.update(more)
        if self._transform is None:
            return batch
        transformed = self._transform(batch)
        if not isinstance(transformed, dict):
            raise FieldError(f"transform: expected it to return a dict, got {type(transformed).__name__}")
        return transformed

    def _finisher(self, entry: str, dtype: np.dtype[Any]) -> Callable[[Array], Any]:
        """What turns the arrays of one entry into tensors."""
        if dtype.kind == "O":
            return np.ndarray.tolist
        name, field = self._entries.get(entry, (entry, None))
        scale = self._normalize.get(name) if field is not None else None
        finish = _converter(dtype if scale is None else None, self._target(dtype, normalized=scale is not None))
        steps: list[Callable[[Any], Any]] = [finish] if scale is None else [_normalizer(scale), finish]
        turned = self._layout.get(name) if isinstance(self._layout, dict) else self._layout
        if turned == "CHW" and field is not None and (isinstance(self._layout, dict) or is_frame(field)):
            steps.append(_channels_first)
        return steps[0] if len(steps) == 1 else lambda array: reduce(lambda value, step: step(value), steps, array)

    def _target(self, dtype: np.dtype[Any], *, normalized: bool) -> torch.dtype | None:
        """The dtype to deliver; None as it is."""
        if dtype.kind == "f":
            if self._dtype is None or (self._only_float64 and dtype != np.float64):
                return getattr(torch, dtype.name) if normalized else None
            return self._dtype
        return (self._dtype or torch.get_default_dtype()) if normalized else None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_finishers": {}}  # made anew where they are used


def _checked_layout(layout: Layout) -> str | dict[str, str] | None:
    chosen = layout if isinstance(layout, Mapping) else {"": layout}
    for name, value in chosen.items():
        if value not in LAYOUTS and (value is not None or name):
            which = f" of {name!r}" if name else ""
            raise FieldError(f"image_layout{which}: expected 'CHW' or 'HWC', got {value!r}")
    return dict(layout) if isinstance(layout, Mapping) else layout


def _check_statistics(name: str, field: Field, found: FieldStatistics) -> None:
    if field.ragged:
        raise FieldError(f"normalize: field {name!r} is ragged, which has no statistics; leave it out")
    try:
        fits = np.broadcast_shapes(np.shape(found.mean), np.shape(found.std), field.shape) == field.shape
    except ValueError:
        fits = False
    if not fits:
        raise FieldError(
            f"normalize: field {name!r}: expected statistics of shape {field.shape}, got {np.shape(found.mean)}"
        )
    if not (np.asarray(found.std) > 0).all():
        raise FieldError(f"normalize: field {name!r}: expected positive standard deviations; see std_floor")


def _normalizer(statistics: FieldStatistics) -> Callable[[Array], Array]:
    """``(x - mean) / std``, in float32 where the mean is near enough, else in float64."""
    mean, std = np.asarray(statistics.mean, np.float64), np.asarray(statistics.std, np.float64)
    largest = float(np.finfo(np.float32).max)
    near = np.abs(mean) <= np.minimum(_MOST_ROUNDED * std, largest)
    is_narrow = bool(near.all()) and bool((std <= largest).all())

    def normalized(array: Array) -> Array:
        narrow = is_narrow and array.dtype.itemsize <= 4 and array.dtype not in (np.int32, np.uint32)
        dtype = np.dtype(np.float32 if narrow else np.float64)
        scaled: Array = np.subtract(array, mean.astype(dtype, copy=False), dtype=dtype)
        scaled /= std.astype(dtype, copy=False)
        return scaled

    return normalized


def _converter(dtype: np.dtype[Any] | None, target: torch.dtype | None) -> Callable[[Array], Any]:
    """From an array, of this dtype where it is known, that nobody else holds to a tensor of the target dtype."""
    if target is None:
        return torch.from_numpy
    if target is torch.float32:
        if dtype == np.float32:
            return torch.from_numpy
        return lambda array: torch.from_numpy(array.astype(np.float32, copy=False))  # half the time of torch's own
    return lambda array: torch.from_numpy(array).to(target)


def _channels_first(images: Tensor) -> Tensor:
    return images.movedim(-1, -3).contiguous()


@lru_cache(maxsize=64)
def named_tuple_class(names: tuple[str, ...]) -> Callable[[Iterable[Any]], tuple[Any, ...]]:
    """Makes named tuples of a batch's values; leading underscores, which their names cannot have, are dropped.

    Raises:
        FieldError: a name is no Python identifier, or two become the same.
    """
    own, define = [name.lstrip("_") for name in names], cast(Any, namedtuple)
    try:
        made: Any = define("Batch", own)
    except ValueError as error:
        raise FieldError(f"to_named_tuple={names}: {error}; use fieldname_map to choose other names") from None
    # A worker's batches are pickled, and no module has the class.
    made.__reduce__ = lambda batch: (_named_tuple, (names, tuple(batch)))
    make: Callable[[Iterable[Any]], tuple[Any, ...]] = made._make
    return make


def _named_tuple(names: tuple[str, ...], values: tuple[Any, ...]) -> tuple[Any, ...]:
    return named_tuple_class(names)(values)
