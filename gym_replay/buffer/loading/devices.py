"""Batches on a device, copied ahead of their use."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from gym_replay.buffer.loading.collate import Batch
from gym_replay.errors import FieldError

AHEAD = 2
"""Batches that are on their way while another is in use."""


def check_device(device: Any) -> torch.device | None:
    """The device, or None where none is asked for.

    Raises:
        FieldError: torch knows no such device.
    """
    if device is None:
        return None
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise FieldError(f"device={device!r}: {str(error).splitlines()[0]}") from None
    if found.type == "cuda" and not torch.cuda.is_available():
        raise FieldError(
            f"device={device!r}: this torch ({torch.__version__}) finds no CUDA device; pass device='cpu', or leave it "
            "out"
        )
    return found


def to_device(batch: Mapping[str, Any], device: Any, *, non_blocking: bool = False) -> Batch:
    """The batch with every tensor on the device; also tensors in the lists, tuples and dicts in it."""
    return Batch(
        (name, _each(value, lambda one: one.to(device, non_blocking=non_blocking))) for name, value in batch.items()
    )


def _each(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The value with each tensor in it changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: _each(inner, change) for key, inner in value.items()}
    if isinstance(value, (list, tuple)) and any(isinstance(inner, (Tensor, dict, list, tuple)) for inner in value):
        changed = [_each(inner, change) for inner in value]
        if isinstance(value, tuple):
            return type(value)(*changed) if hasattr(value, "_fields") else tuple(changed)
        return changed
    return value


def on_device(batches: Iterator[Batch], device: torch.device | None) -> Iterator[Batch]:
    """The batches, each with its tensors on the device. To a CUDA device they are copied ahead of their use."""
    if device is None or device.type == "cpu":
        return batches
    if device.type == "cuda":
        return _ahead_on_cuda(batches, device)
    return (to_device(batch, device) for batch in batches)


def _ahead_on_cuda(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """Copy on a stream of its own, ``AHEAD`` batches before they are asked for.

    Three things keep a copy from being read too early or overwritten too early. The stream in use waits for the
    batch's own event before the batch is handed out. Each tensor is recorded on that stream, so that the allocator
    does not give its memory to a later copy while kernels may still read it. And pinned memory comes from torch's
    pinned allocator, which reuses a block only after the copies from it are done.
    """
    copies: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    waiting: deque[tuple[Batch, torch.cuda.Event]] = deque()

    def send(batch: Batch) -> None:
        with torch.cuda.stream(copies):
            moved = to_device(_pinned(batch), device, non_blocking=True)
            waiting.append((moved, copies.record_event()))

    def receive() -> Batch:
        batch, done = waiting.popleft()
        current = torch.cuda.current_stream(device)
        current.wait_event(done)

        def record(tensor: Tensor) -> Tensor:
            if tensor.is_cuda:
                tensor.record_stream(current)
            return tensor

        return Batch((name, _each(value, record)) for name, value in batch.items())

    for batch in batches:
        send(batch)
        if len(waiting) > AHEAD:
            yield receive()
    while waiting:
        yield receive()


def _pinned(batch: Batch) -> Batch:
    """The batch in memory that is copied from without the processor; as it is where it is there already."""
    return Batch(
        (name, _each(value, lambda one: one if one.is_cuda or one.is_pinned() else one.pin_memory()))
        for name, value in batch.items()
    )
