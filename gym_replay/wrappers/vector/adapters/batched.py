"""Environments that are no vector environments of Gymnasium, and step several sub-environments all the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np

from gym_replay.wrappers.vector.adapters.adapter import Adapter, attribute_of

_NEEDED = ("reset", "step", "num_envs", "single_observation_space", "single_action_space")


class BatchedAdapter(Adapter):
    """Any object that says how many sub-environments it has, and what the spaces of one are."""

    @classmethod
    def takes(cls, envs: Any) -> bool:
        return not missing_of_batched(envs) and is_batched(envs)

    def space(self, name: str) -> gym.Space[Any]:
        """``observation_space`` or ``action_space`` of one sub-environment, as a space of Gymnasium's."""
        return as_gymnasium(super().space(name))


def missing_of_batched(envs: Any) -> list[str]:
    """What an object would need to be a batched environment, and has not."""
    return [name for name in _NEEDED if attribute_of(envs, name, None) is None]


def is_batched(envs: Any) -> bool:
    """Whether the spaces of an object are those of a batch; a wrapper that unpacks a batch of one has single ones."""
    count = attribute_of(envs, "num_envs", None)
    if not isinstance(count, (int, np.integer)):
        return False
    for name in ("observation_space", "action_space"):
        single, space = attribute_of(envs, f"single_{name}", None), getattr(envs, name, None)
        if single is not None and (space is None or _is_batch_of(space, single, int(count))):
            return True
    return False


def _is_batch_of(space: Any, single: Any, count: int) -> bool:
    """Whether a space has one more axis than another one, over the sub-environments."""
    parts, single_parts = (getattr(each, "spaces", None) for each in (space, single))
    if isinstance(parts, Mapping) and isinstance(single_parts, Mapping):
        pairs = [(part, single_parts[key]) for key, part in parts.items() if key in single_parts]
        return any(_is_batch_of(part, single_part, count) for part, single_part in pairs)
    if isinstance(parts, (tuple, list)) and isinstance(single_parts, (tuple, list)):
        return any(_is_batch_of(part, other, count) for part, other in zip(parts, single_parts, strict=False))
    shape, single_shape = (getattr(each, "shape", None) for each in (space, single))
    return shape is not None and single_shape is not None and tuple(shape) == (count, *single_shape)


def as_gymnasium(space: Any) -> gym.Space[Any]:
    """A space of one sub-environment that may be of a class like Gymnasium's, such as mjlab's."""
    if isinstance(space, gym.Space):
        return space
    parts = getattr(space, "spaces", None)
    if isinstance(parts, Mapping):
        return gym.spaces.Dict({key: as_gymnasium(part) for key, part in parts.items()})
    dtype = str(getattr(space, "dtype", np.float32)).rpartition(".")[2]  # torch's dtypes too
    low, high = (np.asarray(getattr(space, name), np.float64) for name in ("low", "high"))
    dtype = dtype if dtype in np.sctypeDict else "float32"
    shape = tuple(space.shape)
    low, high = (np.broadcast_to(bound, shape).astype(dtype) for bound in (low, high))
    return gym.spaces.Box(low, high, shape, np.dtype(dtype).type)
