"""The keywords of loaders, for type checkers and editors, and for whoever has to name the one that was meant."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import numpy.typing as npt
import torch

from gym_replay.buffer.loading.collate import Transform
from gym_replay.buffer.loading.formats import BatchFormat
from gym_replay.buffer.loading.goals import GoalSampler
from gym_replay.buffer.loading.prioritized import PrioritizedSampler
from gym_replay.buffer.loading.samples import Boundaries
from gym_replay.buffer.loading.selection import Condition, Episodes
from gym_replay.buffer.loading.statistics import Normalize

if sys.version_info >= (3, 11):
    from typing import TypedDict
else:
    from typing_extensions import TypedDict

FormatName: TypeAlias = Literal["d4rl", "decision_transformer", "diffusion_policy", "lerobot", "ogbench", "robomimic"]
Axes: TypeAlias = Literal["CHW", "HWC"]


class DatasetOptions(TypedDict, total=False):
    """The keywords of datasets of all kinds of samples; see :meth:`gym_replay.ReplayBuffer.dataloader`."""

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


class LoaderOptions(DatasetOptions, total=False):
    """The keywords of loaders of all kinds of samples; see :meth:`gym_replay.ReplayBuffer.dataloader`."""

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
    num_workers: int
    prefetch_factor: int | None
    persistent_workers: bool
    pin_memory: bool
    pin_memory_device: str
    timeout: float
    worker_init_fn: Callable[[int], None] | None
    multiprocessing_context: Any
    generator: torch.Generator | None
    in_order: bool


class SampleOptions(TypedDict, total=False):
    """The keywords that say what a sample is, of all kinds together."""

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


OF_DATASETS = frozenset(DatasetOptions.__annotations__)
OF_LOADERS = frozenset(LoaderOptions.__annotations__)
