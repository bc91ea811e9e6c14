"""ManiSkill: environments of torch tensors on a device, with or without their wrapper for vector environments.

The wrapper resets what has ended in the same step, and returns the last observations of all sub-environments as
``infos["final_observation"]``; with ``auto_reset=False``, and without the wrapper, nothing is reset until
``reset(options={"env_idx": indices})``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from gym_replay.wrappers.vector.adapters.adapter import Adapter, ResetCall, attribute_of
from gym_replay.wrappers.vector.adapters.batched import is_batched
from gym_replay.wrappers.vector.adapters.envpool import mask_of_indices
from gym_replay.wrappers.vector.autoreset import Autoreset, Mask

ENV_IDX = "env_idx"


class ManiSkillAdapter(Adapter):
    """ManiSkill's environments, and its vector environment around them."""

    is_trusted = True
    honours_masks = True

    @classmethod
    def takes(cls, envs: Any) -> bool:
        has_parts = all(
            attribute_of(envs, name, None) is not None for name in ("elapsed_steps", "reconfiguration_freq")
        )
        return has_parts and is_batched(envs)

    def __init__(self, envs: Any) -> None:
        super().__init__(envs)
        does_reset = bool(attribute_of(envs, "auto_reset", False))
        self.documented_mode = Autoreset.SAME_STEP if does_reset else Autoreset.DISABLED
        single, space = (attribute_of(envs, name) for name in ("single_action_space", "action_space"))
        self.acts_on_one = self.count == 1 and single.shape == space.shape

    def mode(self) -> Autoreset | None:
        """The mode that ``auto_reset`` tells; metadata do not: all environments of a class share those of the last."""
        return self.documented_mode

    def reset_call(self, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> ResetCall:
        call = super().reset_call(arguments, keywords)
        if call.options is None:
            return call
        seen = {key: value for key, value in call.options.items() if key != ENV_IDX}
        return call._replace(options=seen or None if call.mask is not None else seen)

    def mask_of(self, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> Mask | None:
        """Which sub-environments a reset resets: those in ``options["env_idx"]``."""
        options = keywords.get("options")
        given = options.get(ENV_IDX) if isinstance(options, Mapping) else None
        return None if given is None else mask_of_indices(given, self.count, "options['env_idx']")

    def seeds(self, seed: Any, mask: Mask) -> npt.NDArray[np.int64]:
        """The seeds of a list, one for each sub-environment; of an integer that of the first one alone is known."""
        if isinstance(seed, (int, np.integer)) and self.count > 1:
            seed = [int(seed), *[None] * (self.count - 1)]
        return super().seeds(seed, mask)

    def step_result(self, result: Any) -> tuple[Any, Any, Any, Any, Any]:
        """What a step returned, without the masks that are none: infos are of all sub-environments."""
        observations, rewards, terminated, truncated, infos = super().step_result(result)
        if isinstance(infos, Mapping) and "_elapsed_steps" in infos:
            infos = {key: value for key, value in infos.items() if key != "_elapsed_steps"}
        return observations, rewards, terminated, truncated, infos
