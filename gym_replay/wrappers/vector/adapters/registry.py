"""Which adapter an environment has: of those that were registered, and of the families that are known."""

from __future__ import annotations

from typing import Any, TypeVar

import gymnasium as gym

from gym_replay.wrappers.other_kinds import refuse_other_kinds
from gym_replay.wrappers.vector.adapters.adapter import Adapter, attribute_of
from gym_replay.wrappers.vector.adapters.batched import BatchedAdapter, is_batched, missing_of_batched
from gym_replay.wrappers.vector.adapters.envpool import EnvPoolAdapter
from gym_replay.wrappers.vector.adapters.gymnasium import GymnasiumAdapter
from gym_replay.wrappers.vector.adapters.isaac import IsaacAdapter
from gym_replay.wrappers.vector.adapters.maniskill import ManiSkillAdapter
from gym_replay.wrappers.vector.adapters.sb3 import StableBaselinesAdapter

AdapterClass = TypeVar("AdapterClass", bound=type[Adapter])

_FAMILIES: list[type[Adapter]] = [
    StableBaselinesAdapter,
    EnvPoolAdapter,
    ManiSkillAdapter,
    IsaacAdapter,
    GymnasiumAdapter,
    BatchedAdapter,
]
_registered: list[type[Adapter]] = []


def register_adapter(adapter: AdapterClass) -> AdapterClass:
    """Have the vector recorder take environments of one more family.

    Adapters that are registered are asked before those that come with the package, the last one first. The adapter is
    returned, so that this can be a class decorator.

    Args:
        adapter: a subclass of :class:`Adapter`.

    Raises:
        TypeError: it is none.

    Example:
        See :class:`Adapter`.
    """
    if not (isinstance(adapter, type) and issubclass(adapter, Adapter)):
        raise TypeError(f"register_adapter: expected a subclass of Adapter, got {adapter!r:.80}")
    if adapter in _registered:
        _registered.remove(adapter)
    _registered.insert(0, adapter)
    return adapter


def find_adapter(envs: Any) -> Adapter | None:
    """The adapter of an environment; None where it is no batched environment that is known."""
    for adapter in (*_registered, *_FAMILIES):
        if adapter.takes(envs):
            return adapter(envs)
    return None


def adapter_for(envs: Any) -> Adapter:
    """The adapter of an environment.

    Raises:
        TypeError: it is no batched environment; the message says what to use, or what it lacks.
    """
    adapter = find_adapter(envs)
    if adapter is not None:
        return adapter
    name = type(envs).__name__
    if isinstance(envs, gym.Env) and not is_batched(envs):
        count = attribute_of(envs, "num_envs", None)
        why = "" if count is None else f" (num_envs={count}, but its spaces are those of one)"
        raise TypeError(
            f"expected a batched environment, got the single environment {name}{why}; wrap it in "
            "gym_replay.RecordToBuffer"
        )
    refuse_other_kinds(envs)
    raise TypeError(
        f"expected a batched environment, got {name}, which lacks {', '.join(missing_of_batched(envs))}; give it what "
        "it lacks, or write an adapter for it: gym_replay.wrappers.vector.register_adapter"
    )
