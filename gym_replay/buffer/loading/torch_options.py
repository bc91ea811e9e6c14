"""The options of torch's DataLoader: which of them a loader takes, and why it refuses the others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from gym_replay.errors import FieldError

HANDED_ON = (
    "num_workers",
    "prefetch_factor",
    "persistent_workers",
    "pin_memory",
    "pin_memory_device",
    "timeout",
    "worker_init_fn",
    "multiprocessing_context",
    "generator",
)
"""What torch is given as it is: none of it changes which batches come, or in which order."""

REFUSED = {
    "dataset": "the dataset is made from the buffer; use buffer.dataset(...) with a DataLoader of your own",
    "batch_sampler": "the order is decided by batch_size, shuffle, drop_last and seed",
    "collate_fn": "batches are gathered whole; pass transform=, a function of the batch that runs in the worker",
    "in_order": "state_dict counts batches, so they must come in their order; to wait less for a slow worker, raise "
    "prefetch_factor",
    "snapshot_every_n_steps": "state_dict is exact after every batch",
}
"""Other options that torch's DataLoader or torchdata's StatefulDataLoader have, and what to do without them."""

_FLAGS = ("persistent_workers", "pin_memory")


def check_torch_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that torch is given.

    Raises:
        FieldError: an option would change the order of the batches, or has a value that torch cannot work with.
        TypeError: there is no such option.
    """
    given = {name: value for name, value in options.items() if value is not None}
    for name, remedy in REFUSED.items():
        if name in given and not (name == "in_order" and given[name] is True):
            raise FieldError(f"{name}={given[name]!r:.60} is not taken: {remedy}")
    given.pop("in_order", None)
    if unknown := [name for name in given if name not in HANDED_ON]:
        raise TypeError(f"unexpected keyword {unknown[0]!r}; of torch's DataLoader a loader takes {list(HANDED_ON)}")
    for name in _FLAGS:
        if not isinstance(given.get(name, False), bool):
            raise FieldError(f"{name}={given[name]!r}: expected True or False")
    workers = _checked_integer("num_workers", given.get("num_workers", 0), 0)
    if workers == 0:
        for name in ("prefetch_factor", "persistent_workers", "timeout", "multiprocessing_context"):
            if given.get(name):
                raise FieldError(f"{name}={given[name]!r} is for worker processes; add num_workers=1 or more")
    elif "prefetch_factor" in given:
        _checked_integer("prefetch_factor", given["prefetch_factor"], 1)
    generator = given.get("generator")
    if generator is not None and not (isinstance(generator, torch.Generator) and generator.device.type == "cpu"):
        raise FieldError(f"generator={generator!r}: expected a torch.Generator on the CPU, or pass seed=")
    return given


def _checked_integer(name: str, value: Any, lowest: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < lowest:
        raise FieldError(f"{name}={value!r}: expected an integer from {lowest} on")
    return value
