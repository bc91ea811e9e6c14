"""Gymnasium's vector environments: what they tell of their sub-environments, and which arrays they overwrite."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv

from gym_replay.errors import FieldError
from gym_replay.spaces.node import standard_node
from gym_replay.wrappers.generator_state import generator_states
from gym_replay.wrappers.vector.adapters.adapter import Adapter, spec_of_all
from gym_replay.wrappers.vector.autoreset import Autoreset, Mask, declared_mode

_MOST_WORK = 10_000
KNOWN_PACKAGES = ("gymnasium", "ale_py")
_OF_VECTORS = ("num_envs", "vectorization_mode", "vector_kwargs", "wrappers")
"""Arguments that ``gymnasium.make_vec`` adds to the spec, and ``gymnasium.make`` does not take."""


class GymnasiumAdapter(Adapter):
    """Gymnasium's vector environments, ale-py's, and those that others derive from Gymnasium's class.

    Their sub-environments are asked, as far as they are in this process.
    """

    forwards = False

    @classmethod
    def takes(cls, envs: Any) -> bool:
        return isinstance(envs, gym.vector.VectorEnv)

    def __init__(self, envs: gym.vector.VectorEnv[Any, Any, Any]) -> None:
        super().__init__(envs)
        self._base: Any = envs.unwrapped
        self.can_be_asked = isinstance(self._base, SyncVectorEnv)
        self._async = isinstance(self._base, AsyncVectorEnv)
        batch = getattr(self._base, "batch_size", None)
        self._is_native_atari = batch is not None and type(self._base).__name__ == "AtariVectorEnv"
        if batch not in (None, self.count):
            raise FieldError(
                f"batch_size={batch} of {self.count} sub-environments: a step must be one of each, or nothing says "
                "which rows follow one another; leave batch_size out"
            )
        self.joins_infos = (self.can_be_asked or self._async) and self.count > 1
        self.honours_masks = self.can_be_asked or self._async or self._is_native_atari
        is_known = type(self._base).__module__.partition(".")[0] in KNOWN_PACKAGES
        has_modes = hasattr(gym.vector, "AutoresetMode")
        self.is_trusted = is_known and (not has_modes or declared_mode(envs) is not None)

    def spec(self) -> EnvSpec | None:
        """That of a single sub-environment."""
        if self.can_be_asked:
            return spec_of_all([env.spec for env in self._base.envs])
        if self._async:
            return self._spec_of_another()
        spec = super().spec()
        if spec is None:
            return None
        kwargs = {name: value for name, value in spec.kwargs.items() if name not in _OF_VECTORS}
        longest = kwargs.pop("max_episode_steps", spec.max_episode_steps)  # a wrapper's, of a single environment
        return dataclasses.replace(spec, kwargs=kwargs, max_episode_steps=longest)

    def _spec_of_another(self) -> EnvSpec | None:
        """The spec of one more sub-environment, made as an AsyncVectorEnv makes one to see its spaces.

        To ask a worker for its spec ends the worker where the spec cannot be pickled.
        """
        try:
            env = self._base.env_fns[0]()
        except Exception as error:
            warnings.warn(
                f"no spec is kept in the buffer: to have one, a sub-environment was made, which raised {error!r:.200}",
                stacklevel=4,
            )
            return None
        try:
            return env.spec  # type: ignore[no-any-return]
        finally:
            env.close()

    # --- resets ---

    def seeds(self, seed: Any, mask: Mask) -> npt.NDArray[np.int64]:
        """The seed of each sub-environment that is reset; ale-py counts only those that are reset."""
        env_indices = np.flatnonzero(mask)
        counted = np.arange(len(env_indices)) if self._is_native_atari else env_indices
        return self._seeds_of(seed, env_indices, counted.tolist())

    def forgets_resets(self, mode: Autoreset) -> bool:
        """Whether an explicit reset leaves open if what was waiting for its reset is reset by the next step once more.

        The workers of an AsyncVectorEnv without shared memory do so, in Gymnasium 1.4 for one.
        """
        return self._async and not self._base.shared_memory and mode is Autoreset.NEXT_STEP

    def generators(self, mask: Mask, *, create: bool) -> npt.NDArray[np.uint64] | None:
        """The generators' states of the sub-environments in a mask, zeros for others; None where none can be asked."""
        if not self.can_be_asked:
            return None
        return generator_states(self._base.envs, mask, create=create)

    def loses_strings(self) -> bool:
        """Whether strings in observations stay those of the beginning, as of an AsyncVectorEnv with shared memory."""
        return self._async and bool(self._base.shared_memory) and has_strings(self.space("observation_space"))

    def first_observation(self, env_index: int) -> Any:
        """What the last reset of a sub-environment returned itself; None where it cannot be asked."""
        return self._base._env_obs[env_index] if self.can_be_asked else None

    # --- infos that a wrapper adds ---

    def statistics(self) -> tuple[str, ...]:
        """The entries of Gymnasium's RecordEpisodeStatistics for vector environments: of episodes that have ended."""
        keys, envs = [], self.envs
        while isinstance(envs, gym.vector.VectorWrapper):
            if isinstance(envs, gym.wrappers.vector.RecordEpisodeStatistics):
                keys.append(envs._stats_key)
            envs = envs.env
        return tuple(keys)


def has_strings(space: Any) -> bool:
    """Whether a space has parts that Gymnasium reads from shared memory once and for all."""
    kind = standard_node(space)
    parts = kind.parts_of(space) or ()
    return not kind.is_shared or any(map(has_strings, parts.values() if isinstance(parts, dict) else parts))


def share_memory(one: Any, other: Any) -> bool:
    """Whether two observations have memory in common, unless that takes too long to say: then it counts as such.

    It walks over the values as they are: their fields may be copies.
    """
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        try:
            return np.shares_memory(one, other, max_work=_MOST_WORK)  # type: ignore[arg-type]
        except np.exceptions.TooHardError:
            return True
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return any(share_memory(value, other[key]) for key, value in one.items() if key in other)
    if isinstance(one, (tuple, list)) and isinstance(other, (tuple, list)):
        return any(map(share_memory, one, other))
    return False


def are_same_arrays(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether the values of all fields are the same arrays, none of them empty."""
    return bool(one) and all(value.size > 0 and value.tobytes() == other[name].tobytes() for name, value in one.items())
