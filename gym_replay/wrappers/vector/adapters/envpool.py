"""EnvPool: one object that is an environment and a vector environment, and steps its pool in C++.

It resets what has ended in the next step, so that the step that ends an episode returns its last observation. Seeds are
those of the making, of which the first episodes come. A reset of some returns the rows of those alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from gym_replay.errors import FieldError
from gym_replay.wrappers.vector.adapters.adapter import Adapter, ResetCall, attribute_of
from gym_replay.wrappers.vector.autoreset import Autoreset, Mask

_OF_POOLS = ("send", "recv", "async_reset", "config")


class EnvPoolAdapter(Adapter):
    """A synchronous pool with Gymnasium's interface."""

    documented_mode = Autoreset.NEXT_STEP
    is_trusted = True
    honours_masks = True

    @classmethod
    def takes(cls, envs: Any) -> bool:
        return isinstance(envs, (gym.Env, gym.vector.VectorEnv)) and all(
            attribute_of(envs, name, None) is not None for name in _OF_POOLS
        )

    def __init__(self, envs: Any) -> None:
        self.envs = envs
        self._config: dict[str, Any] = dict(attribute_of(envs, "config"))
        self.count = int(self._config["num_envs"])
        if self._config.get("batch_size") not in (None, 0, self.count):
            raise FieldError(
                f"batch_size={self._config['batch_size']} of {self.count} sub-environments: a step must be one of "
                "each, or nothing says which rows follow one another; make the pool without batch_size"
            )
        if self._config.get("max_num_players", 1) > 1:
            raise FieldError(
                f"max_num_players={self._config['max_num_players']}: a pool of environments with several players has "
                "rows of players, not of environments, and cannot be recorded"
            )
        self._ids = np.arange(self.count, dtype=np.int32).tobytes()
        self._was_reset = np.zeros(self.count, bool)

    def mask_of(self, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> Mask | None:
        """Which sub-environments a reset resets: those in ``env_id``, or in ``options["reset_mask"]``."""
        env_id = arguments[0] if arguments else keywords.get("env_id")
        if env_id is None:
            return super().mask_of(arguments, keywords)
        return mask_of_indices(env_id, self.count, "env_id")

    def seeds(self, seed: Any, mask: Mask) -> npt.NDArray[np.int64]:
        """The seeds of the pool, for those whose first episode begins: ``reset(seed=...)`` changes nothing."""
        begins = mask & ~self._was_reset
        self._was_reset = self._was_reset | mask
        given = self._config.get("env_seed")
        if given is None or len(given) != self.count:
            given = self._config.get("seed")
        return super().seeds(given, begins)

    def reset_result(self, result: Any, call: ResetCall) -> tuple[Any, Any]:
        """Observations and infos, those of a reset of some put where the sub-environments are."""
        observations, infos = super().reset_result(result, call)
        if call.mask is None or call.mask.all():
            return observations, infos
        env_indices = np.flatnonzero(call.mask)
        return (_spread(value, env_indices, self.count) for value in (observations, infos))  # type: ignore[return-value]

    def step_result(self, result: Any) -> tuple[Any, Any, Any, Any, Any]:
        """What a step returned.

        Raises:
            FieldError: it is not one row of each sub-environment in their order.
        """
        found = super().step_result(result)
        env_id = found[4].get("env_id") if type(found[4]) is dict else None
        if env_id is not None and env_id.tobytes() != self._ids:
            raise FieldError(
                f"infos['env_id']: expected one row of each of {self.count} sub-environments in their order, got "
                f"{env_id!r:.80}; step all of them"
            )
        return found


def mask_of_indices(given: Any, count: int, name: str) -> Mask:
    """The mask of sub-environments that are named by index, as an array, a list or a tensor.

    Raises:
        FieldError: they are none.
    """
    array = np.asarray(given.detach().cpu() if hasattr(given, "detach") else given)
    if array.dtype == np.bool_ and array.shape == (count,):
        array = np.flatnonzero(array)
    env_indices = np.atleast_1d(array)
    is_right = env_indices.dtype.kind in "iu" and env_indices.ndim == 1 and len(env_indices) > 0
    if not is_right or env_indices.min() < -count or env_indices.max() >= count:
        raise FieldError(f"{name}: expected indices of sub-environments, 0 to {count - 1}, got {given!r:.80}")
    mask = np.zeros(count, bool)
    mask[env_indices] = True
    return mask


def _spread(value: Any, env_indices: npt.NDArray[Any], count: int) -> Any:
    """Rows of some sub-environments, in the places of those among all."""
    if isinstance(value, Mapping):
        return {key: _spread(part, env_indices, count) for key, part in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(_spread(part, env_indices, count) for part in value)
    if not isinstance(value, np.ndarray) or value.shape[:1] != env_indices.shape:
        return value
    spread = np.zeros((count, *value.shape[1:]), value.dtype)
    spread[env_indices] = value
    return spread
