"""What a vector environment tells of its sub-environments: specs, seeds, generators, overwritten arrays."""

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
from gym_replay.wrappers.episode_meta import storable_seed
from gym_replay.wrappers.generator_state import NUMBERS, generator_state
from gym_replay.wrappers.vector.autoreset import Autoreset, Mask

RESET_MASK = "reset_mask"
_MOST_WORK = 10_000
_OF_VECTORS = ("num_envs", "vectorization_mode", "vector_kwargs", "wrappers")
"""Arguments that ``gymnasium.make_vec`` adds to the spec, and ``gymnasium.make`` does not take."""


class SubEnvironments:
    """The sub-environments of a vector environment, as far as it can be asked for them.

    Args:
        envs: the vector environment, wrapped or not.

    Attributes:
        count: how many there are.
        can_be_asked: whether they are in this process, and tell of their generators and observations.
        joins_infos: whether their infos are joined by Gymnasium, which may change their dtypes.
        honours_masks: whether a reset with a mask is known to reset only what is in it.
    """

    def __init__(self, envs: gym.vector.VectorEnv[Any, Any, Any]) -> None:
        self._envs = envs
        self._base: Any = envs.unwrapped
        self.count = envs.num_envs
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

    def spec(self) -> EnvSpec | None:
        """That of a single sub-environment."""
        if self.can_be_asked:
            specs = [env.spec for env in self._base.envs]
            if len(known := {None if spec is None else spec.id for spec in specs}) > 1:
                warnings.warn(
                    f"the sub-environments have different specs, {sorted(map(str, known))}; the buffer keeps that of "
                    f"the first one, {specs[0] and specs[0].id}",
                    stacklevel=4,
                )
            return specs[0]  # type: ignore[no-any-return]
        if self._async:
            return self._spec_of_another()
        spec = self._envs.spec
        if not isinstance(spec, EnvSpec):  # EnvPool's is something else
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

    def space(self, name: str) -> gym.Space[Any]:
        """``observation_space`` or ``action_space`` of one sub-environment.

        Some vector environments, such as SuperSuit's and EnvPool's, call it that of all of them.
        """
        single = getattr(self._envs, f"single_{name}", None)
        return getattr(self._envs, name) if single is None else single  # type: ignore[no-any-return]

    # --- resets ---

    def mask_of(self, options: Any) -> Mask | None:
        """Which sub-environments a reset with these options resets; None where it is all of them.

        Raises:
            FieldError: ``reset_mask`` is no mask.
        """
        if not isinstance(options, Mapping) or RESET_MASK not in options:
            return None
        mask = options[RESET_MASK]
        is_mask = isinstance(mask, np.ndarray) and mask.dtype == np.bool_ and mask.shape == (self.count,)
        if not is_mask or not mask.any():
            raise FieldError(
                f"options['reset_mask']: expected a bool array of shape ({self.count},) that is True somewhere, got "
                f"{mask!r:.80}"
            )
        return np.array(mask, bool)

    def seeds(self, seed: Any, mask: Mask) -> npt.NDArray[np.int64]:
        """The seed of each sub-environment that is reset: ``seed + i`` of an integer, or those of a list; else -1."""
        seeds = np.full(self.count, -1, np.int64)
        env_indices = np.flatnonzero(mask)
        if seed is None:
            return seeds
        if isinstance(seed, (int, np.integer)):
            counted = np.arange(len(env_indices)) if self._is_native_atari else env_indices  # only those that are reset
            given = [int(seed) + offset for offset in counted.tolist()]
        else:
            try:
                given = list(seed)
            except TypeError:
                raise FieldError(f"seed: expected an integer, a list of integers, or None, got {seed!r:.80}") from None
            if len(given) == self.count:
                given = [given[env_index] for env_index in env_indices.tolist()]
            if len(given) != len(env_indices):
                return seeds  # for the environment to refuse
        seeds[env_indices] = [storable_seed(each) for each in given]
        return seeds

    def forgets_resets(self, mode: Autoreset) -> bool:
        """Whether an explicit reset leaves open if what was waiting for its reset is reset by the next step once more.

        The workers of an AsyncVectorEnv without shared memory do so, in Gymnasium 1.4 for one.
        """
        return self._async and not self._base.shared_memory and mode is Autoreset.NEXT_STEP

    def generators(self, mask: Mask, *, create: bool) -> npt.NDArray[np.uint64] | None:
        """The generators' states of the sub-environments in a mask, zeros for others; None where none can be asked."""
        if not self.can_be_asked:
            return None
        states = np.zeros((self.count, NUMBERS), np.uint64)
        for env_index in np.flatnonzero(mask).tolist():
            states[env_index] = generator_state(self._base.envs[env_index], create=create)
        return states

    def loses_strings(self) -> bool:
        """Whether strings in observations stay those of the beginning, as of an AsyncVectorEnv with shared memory."""
        return self._async and bool(self._base.shared_memory) and has_strings(self._envs.single_observation_space)

    def first_observation(self, env_index: int) -> Any:
        """What the last reset of a sub-environment returned itself; None where it cannot be asked."""
        return self._base._env_obs[env_index] if self.can_be_asked else None

    # --- infos that a wrapper adds ---

    def statistics(self) -> tuple[str, ...]:
        """The entries of Gymnasium's RecordEpisodeStatistics for vector environments: of episodes that have ended."""
        keys, envs = [], self._envs
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
