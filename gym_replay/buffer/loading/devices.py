"""Batches on a device, copied ahead of their use."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from gym_replay.errors import FieldError

_T = TypeVar("_T")

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


def to_device(batch: _T, device: Any, *, non_blocking: bool = False) -> _T:
    """The batch with every tensor on the device; also tensors in the lists, tuples and dicts in it."""
    moved: _T = pytree.tree_map_only(Tensor, lambda one: one.to(device, non_blocking=non_blocking), batch)
    return moved


def on_device(batches: Iterator[_T], device: torch.device | None) -> Iterator[_T]:
    """The batches, each with its tensors on the device. To a CUDA device they are copied ahead of their use."""
    if device is None or device.type == "cpu":
        return batches
    if device.type == "cuda":
        return _ahead_on_cuda(batches, device)
    return (to_device(batch, device) for batch in batches)


def _ahead_on_cuda(batches: Iterator[_T], device: torch.device) -> Iterator[_T]:
    """Copy on a stream of its own, ``AHEAD`` batches before they are asked for.

    Three things keep a copy from being read too early or overwritten too early. The stream in use waits for the
    batch's own event before the batch is handed out. Each tensor is recorded on that stream, so that the allocator
    does not give its memory to a later copy while kernels may still read it. And pinned memory comes from torch's
    pinned allocator, which reuses a block only after the copies from it are done.
    """
    copies: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    waiting: deque[tuple[_T, torch.cuda.Event]] = deque()

    def send(batch: _T) -> None:
        with torch.cuda.stream(copies):
            moved = to_device(_pinned(batch), device, non_blocking=True)
            waiting.append((moved, copies.record_event()))

    def receive() -> _T:
        batch, done = waiting.popleft()
        current = torch.cuda.current_stream(device)
        current.wait_event(done)
        for value in pytree.tree_leaves(batch):
            if isinstance(value, Tensor) and value.is_cuda:
                value.record_stream(current)
        return batch

    for batch in batches:
        send(batch)
        if len(waiting) > AHEAD:
            yield receive()
    while waiting:
        yield receive()


def _pinned(batch: _T) -> _T:
    """The batch in memory that is copied from without the processor; as it is where it is there already."""
    pinned: _T = pytree.tree_map_only(
        Tensor, lambda one: one if one.is_cuda or one.is_pinned() else one.pin_memory(), batch
    )
    return pinned
