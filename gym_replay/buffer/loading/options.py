"""The options of loaders: their types, what they mean, and which of torch's DataLoader are taken."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import numpy.typing as npt
import torch
from typing_extensions import TypedDict

from gym_replay.buffer.loading.collate import Transform
from gym_replay.buffer.loading.formats import BatchFormat
from gym_replay.buffer.loading.goals import GoalSampler
from gym_replay.buffer.loading.prioritized import PrioritizedSampler
from gym_replay.buffer.loading.samples import Boundaries
from gym_replay.buffer.loading.selection import Condition, Episodes
from gym_replay.buffer.loading.statistics import Normalize
from gym_replay.errors import FieldError
from gym_replay.schema.arguments import checked_integer

FormatName: TypeAlias = Literal["d4rl", "decision_transformer", "diffusion_policy", "lerobot", "ogbench", "robomimic"]
Axes: TypeAlias = Literal["CHW", "HWC"]


class DatasetOptions(TypedDict, total=False):
    """The keywords of datasets and loaders of all kinds of samples.

    Attributes:
        episodes: which episodes: an index, indices or a slice, a mask over all of them, a condition such as
            ``"episode_return > 300 and not truncated"`` (see :class:`~gym_replay.buffer.loading.where.Where`), or a
            function that is given a mapping from meta fields to the values of all episodes and returns a mask. They are
            served in the buffer's order.
        filter_meta: conditions on meta fields that choose episodes: a value, a set of values, or a function from all
            values to a boolean mask. Float fields are compared in their own precision.
        filter_fields: conditions on scalar fields at a sample's step, that choose samples.
        fieldname_map: entry name to new name.
        dtype: None: float64 is delivered in torch's default dtype; a torch dtype: all floats in it; ``"stored"``: as
            stored.
        image_layout: ``"CHW"`` or ``"HWC"``, or one of them for each field.
        normalize: names of fields, or :func:`gym_replay.statistics`.
        transform: a function of the batch, called in the worker; it sees nested parts under their dotted names.
        nested: True: the parts of Dict and Tuple spaces as ``batch["observation"]["camera"]["rgb"]``, what belongs to
            them as ``batch["observation_is_pad"]`` with the same parts; named tuples have ``"observation"`` as one
            entry.
        batch_format: the names and the layout of other training code: ``"d4rl"`` and ``"ogbench"`` with n-step loading,
            ``"lerobot"``, ``"robomimic"`` and ``"diffusion_policy"`` with windows, ``"decision_transformer"`` with
            crops, see docs/interop.md.
    """

    episodes: Episodes | None
    filter_meta: Mapping[str, Condition] | None
    filter_fields: Mapping[str, Condition] | None
    fieldname_map: Mapping[str, str] | None
    dtype: torch.dtype | Literal["stored"] | None
    image_layout: Axes | Mapping[str, Axes] | None
    normalize: Normalize
    transform: Transform | None
    nested: bool
    batch_format: BatchFormat | FormatName | None


class TorchOptions(TypedDict, total=False):
    """The options of torch's DataLoader that a loader hands on: none changes which batches come, or their order.

    docs/semantics.md says of each of torch's options what it does here.
    """

    num_workers: int
    prefetch_factor: int | None
    persistent_workers: bool
    pin_memory: bool
    pin_memory_device: str
    timeout: float
    worker_init_fn: Callable[[int], None] | None
    multiprocessing_context: Any
    generator: torch.Generator | None


class LoaderOptions(DatasetOptions, TorchOptions, total=False):
    """The keywords of loaders of all kinds of samples.

    Samples are drawn with replacement, each batch full and the same number of batches on every rank, with
    ``replacement``, ``weights``, ``buffer_weights``, ``sampler`` or ``refresh="batch"``. An epoch is then
    ``samples_per_epoch`` draws, by default as many as there are samples, rounded up to full batches on all ranks.

    Attributes:
        shuffle: whether the order is random; else it is that of the buffer. ``"block"`` is for data larger than memory:
            blocks of consecutive samples in random order go through a shuffle pool, see
            :class:`~gym_replay.buffer.loading.blocks.BlockOrder`.
        drop_last: leave out the last batch where it is not full, and those that not every rank has.
        seed: of the order; None draws one from torch's default generator, and takes that of rank 0 on all ranks of a
            process group, where every rank must then make the loader, or begin its first iteration.
        rank, world_size: which part of each epoch is for this process; by default those of torch.distributed when an
            iteration begins, else 0 and 1. ``rank=0, world_size=1`` loads everything in one process of a group.
        block_size, pool_size: for ``shuffle="block"``, in samples: what is read together, and what is mixed. By default
            about 8 MiB and 256 MiB of rows.
        replacement: draw with replacement, uniformly.
        weights: of episodes, ``(num_episodes,)`` by index in the buffer, or the name of a scalar meta field: in
            proportion to its weight, a draw is of this episode; among its samples it is uniform.
        buffer_weights: of the buffers of a concatenation: in proportion to its weight, a draw is of this buffer; within
            it, uniform over the samples, or by ``weights``.
        samples_per_epoch: draws with replacement in an epoch, over all ranks.
        sampler: a PrioritizedSampler. Batches then have ``_samples`` and ``_weights``.
        refresh: ``"epoch"`` takes a new snapshot of a live buffer at the start of each epoch; ``"batch"`` before each
            batch is drawn (with workers, or to a CUDA device, that is some batches ahead), and needs ``shuffle=True``
            or a ``sampler``. Where something was committed, this costs time in proportion to the number of episodes.
            Statistics of ``normalize`` are those of when the loader was made.
        device: where the tensors go; to a CUDA device they are copied through pinned memory, ahead of their use.
        to_named_tuple: deliver named tuples of these entries, in this order; leading underscores are dropped in the
            tuple's own names.
        in_order: True, as torch has it; False is refused.
    """

    shuffle: bool | Literal["block"]
    drop_last: bool
    seed: int | None
    rank: int | None
    world_size: int | None
    block_size: int | None
    pool_size: int | None
    replacement: bool
    weights: str | npt.ArrayLike | None
    buffer_weights: npt.ArrayLike | None
    samples_per_epoch: int | None
    sampler: PrioritizedSampler | None
    refresh: Literal["epoch", "batch"] | None
    device: torch.device | str | int | None
    to_named_tuple: Sequence[str] | None
    in_order: bool


class SampleOptions(TypedDict, total=False):
    """The keywords that say what a sample is, of all kinds together; each kind's own function says what they mean."""

    fields: Sequence[str] | None
    current_fields: Sequence[str] | None
    next_fields: Sequence[str] | None
    sequence_fields: Sequence[str] | None
    discount: float | None
    reward_field: str
    terminated_field: str
    goal_sampler: GoalSampler | None
    length: int | None
    offsets: Mapping[str, Iterable[int]] | None
    boundary: Boundaries | tuple[Boundaries, Boundaries]
    stride: int | None
    crop: int | Sequence[int] | None
    burn_in: int
    pad: Literal["right", "left"]
    return_mask: bool
    return_indices: bool
    return_episode_lens: bool
    slice_by_episode_len: bool


class AnyDatasetOptions(DatasetOptions, SampleOptions, total=False):
    """The keywords of :meth:`gym_replay.ReplayBuffer.dataset`."""


class AnyLoaderOptions(LoaderOptions, SampleOptions, total=False):
    """The keywords of :meth:`gym_replay.ReplayBuffer.dataloader`."""


class RandomOptions(DatasetOptions, total=False):
    """The keywords of :meth:`gym_replay.ReplayBuffer.sample` that :func:`gym_replay.n_step_loader` has too."""

    current_fields: Sequence[str] | None
    next_fields: Sequence[str] | None
    sequence_fields: Sequence[str] | None
    reward_field: str
    terminated_field: str
    goal_sampler: GoalSampler | None
    return_indices: bool
    device: torch.device | str | int | None


OF_DATASETS = frozenset(DatasetOptions.__annotations__)
OF_TORCH = frozenset(TorchOptions.__annotations__)
OF_LOADERS = frozenset(LoaderOptions.__annotations__)

REFUSED = {
    "dataset": "the dataset is made from the buffer; use buffer.dataset(...) with a DataLoader of your own",
    "batch_sampler": "the order is decided by batch_size, shuffle, drop_last and seed",
    "collate_fn": "batches are gathered whole; pass transform=, a function of the batch that runs in the worker",
    "in_order": "state_dict counts batches, so they must come in their order; to wait less for a slow worker, raise "
    "prefetch_factor",
    "snapshot_every_n_steps": "state_dict is exact after every batch",
}
"""Other options that torch's DataLoader or torchdata's StatefulDataLoader have, and what to do without them."""


def check_torch_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that torch is given.

    Raises:
        FieldError: an option would change the order of the batches, or has a value that torch cannot work with.
    """
    given = {name: value for name, value in options.items() if value is not None}
    for name, remedy in REFUSED.items():
        if name in given and not (name == "in_order" and given[name] is True):
            raise FieldError(f"{name}={given[name]!r:.60} is not taken: {remedy}")
    given.pop("in_order", None)
    for name in ("persistent_workers", "pin_memory"):
        if not isinstance(given.get(name, False), bool):
            raise FieldError(f"{name}={given[name]!r}: expected True or False")
    workers = checked_integer("num_workers", given.get("num_workers", 0))
    if workers == 0:
        for name in ("prefetch_factor", "persistent_workers", "timeout", "multiprocessing_context"):
            if given.get(name):
                raise FieldError(f"{name}={given[name]!r} is for worker processes; add num_workers=1 or more")
    elif "prefetch_factor" in given:
        checked_integer("prefetch_factor", given["prefetch_factor"], 1)
    generator = given.get("generator")
    if generator is not None and not (isinstance(generator, torch.Generator) and generator.device.type == "cpu"):
        raise FieldError(f"generator={generator!r}: expected a torch.Generator on the CPU, or pass seed=")
    return given
