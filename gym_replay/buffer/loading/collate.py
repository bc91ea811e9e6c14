"""From gathered arrays to what the training code receives: tensors, dtypes, names, device."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gym_replay.errors import FieldError

Batch: TypeAlias = dict[str, Any]
"""Tensors by name, and lists of strings."""
Dtype: TypeAlias = torch.dtype | str | None


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


def to_tensor(array: npt.NDArray[Any], dtype: torch.dtype | None, *, only_float64: bool) -> Tensor:
    """An array that nobody else holds as a tensor over the same memory; floats are converted to ``dtype``."""
    if dtype is torch.float32 and array.dtype == np.float64:
        array = array.astype(np.float32)
    tensor = torch.from_numpy(array)
    if dtype is None or not tensor.is_floating_point() or (only_float64 and tensor.dtype != torch.float64):
        return tensor
    return tensor.to(dtype)


def named_tuple_class(names: Sequence[str]) -> type[tuple[Tensor, ...]]:
    """A named tuple for batches; leading underscores, which its names cannot have, are dropped.

    Raises:
        FieldError: a name is no Python identifier, or two become the same.
    """
    own = [name.lstrip("_") for name in names]
    try:
        made: type[tuple[Tensor, ...]] = namedtuple("Batch", own)  # type: ignore[misc]
    except ValueError as error:
        raise FieldError(f"to_named_tuple={tuple(names)}: {error}; use fieldname_map to choose other names") from None
    return made


def to_device(batch: Mapping[str, Any], device: Any, *, non_blocking: bool) -> Batch:
    """The batch with every tensor on the device, those in trees of dicts and tuples too."""

    def moved(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.to(device, non_blocking=non_blocking)
        if isinstance(value, dict):
            return {key: moved(part) for key, part in value.items()}
        return tuple(moved(part) for part in value) if isinstance(value, tuple) else value

    return {name: moved(value) for name, value in batch.items()}
