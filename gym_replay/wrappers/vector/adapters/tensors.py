"""Tensors as arrays: those of the CPU share their memory, those of a device come in one copy a step.

With CUDA the copy goes into pinned memory and nobody waits for it: the recorder takes the arrays when the next step
begins, by which time they have mostly arrived.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch


def is_tensor(value: Any) -> bool:
    """Whether a value is one of torch's tensors; of any other package's, arrays are made where they are stored."""
    return type(value) is not np.ndarray and hasattr(value, "detach") and hasattr(value, "is_cuda")


def mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """A value with each leaf, which is no dict, tuple or list, replaced by what ``change`` makes of it."""
    if isinstance(value, dict):
        return {key: mapped(part, change) for key, part in value.items()}
    if isinstance(value, (tuple, list)):
        parts = [mapped(part, change) for part in value]
        return parts if isinstance(value, list) else tuple(parts)
    return change(value)


def arrays_of(value: Any) -> Any:
    """A value with arrays instead of tensors, at once; those of the CPU share their memory."""
    return mapped(value, lambda leaf: _array_of(leaf) if is_tensor(leaf) else leaf)


def tensors_in(value: Any) -> list[Any]:
    """The tensors of a value."""
    leaves: list[Any] = []
    mapped(value, leaves.append)
    return [leaf for leaf in leaves if is_tensor(leaf)]


def held(value: Any) -> Any:
    """A value as it is now, whatever becomes of its arrays and tensors; those stay on their device."""
    return mapped(value, lambda leaf: leaf.detach().clone() if is_tensor(leaf) else np.copy(leaf))


class HostCopies:
    """Copies of whole steps from a device into host memory, one after another into the same place."""

    def __init__(self) -> None:
        self._room: torch.Tensor | None = None

    def begin(self, value: Any) -> Callable[[], Any]:
        """Begin to copy a value's tensors; what is returned waits for them, and gives the value with arrays.

        The tensors may change at once, in the order of their device's stream. The arrays are there until the next copy
        is begun.
        """
        import torch

        leaves: list[Any] = []
        mapped(value, leaves.append)
        device = next((leaf.device for leaf in leaves if is_tensor(leaf) and leaf.is_cuda), torch.device("cpu"))
        here = {id(leaf): _plain(leaf) for leaf in leaves if is_tensor(leaf) and leaf.device == device}
        # The widest first: then each begins at a multiple of its own width.
        order = sorted(here, key=lambda key: -here[key].element_size())
        others = {
            id(leaf): np.array(_array_of(leaf)) if is_tensor(leaf) else np.copy(leaf)
            for leaf in leaves
            if id(leaf) not in here and (is_tensor(leaf) or isinstance(leaf, np.ndarray))
        }
        room, event = self._copied([here[key].reshape(-1).view(torch.uint8) for key in order], device)

        def finish() -> Any:
            if event is not None:
                event.synchronize()
            arrays, offset = dict(others), 0
            for key in order:
                tensor = here[key]
                nbytes = tensor.numel() * tensor.element_size()
                dtype = np.dtype(str(tensor.dtype).rpartition(".")[2])
                arrays[key] = room[offset : offset + nbytes].view(dtype).reshape(tuple(tensor.shape))
                offset += nbytes
            return mapped(value, lambda leaf: arrays.get(id(leaf), leaf))

        return finish

    def _copied(self, parts: list[torch.Tensor], device: torch.device) -> tuple[npt.NDArray[np.uint8], Any]:
        """All bytes in host memory, and what says that they are there; None where they are already."""
        import torch

        if not parts:
            return np.zeros(0, np.uint8), None
        count = sum(part.numel() for part in parts)
        is_cuda = device.type == "cuda"
        if self._room is None or self._room.numel() < count:
            self._room = torch.empty(count, dtype=torch.uint8, pin_memory=is_cuda)
        room = self._room[:count]
        room.copy_(torch.cat(parts), non_blocking=is_cuda)
        event = None
        if is_cuda:
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record(torch.cuda.current_stream(device))
        return room.numpy(), event


def _plain(tensor: Any) -> Any:
    """A tensor of a dtype that NumPy has, contiguous, without what gradients need."""
    tensor = tensor.detach()
    return (tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor).contiguous()


def _array_of(tensor: Any) -> npt.NDArray[Any]:
    array: npt.NDArray[Any] = _plain(tensor).cpu().numpy()
    return array
