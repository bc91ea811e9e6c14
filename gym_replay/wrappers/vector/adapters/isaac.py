"""Isaac Lab and mjlab: environments of torch tensors on a device that are described by managers or written directly.

What has ended is reset within the step, and the step returns the observations after that: the last ones are lost,
unless the environment puts them into the extras as ``final_obs``. mjlab with ``auto_reset=False`` resets nothing until
``reset(env_ids=...)``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from gym_replay.wrappers.vector.adapters.adapter import attribute_of
from gym_replay.wrappers.vector.adapters.batched import BatchedAdapter
from gym_replay.wrappers.vector.adapters.envpool import mask_of_indices
from gym_replay.wrappers.vector.autoreset import Autoreset, Mask


class IsaacAdapter(BatchedAdapter):
    """Environments with the interface of Isaac Lab's ``ManagerBasedRLEnv`` and ``DirectRLEnv``."""

    is_trusted = True
    honours_masks = True
    without_last = (
        "the environment resets in the step that ends an episode and does not return the last observation: episodes "
        "are stored without theirs. To have them, put what is observed before the reset into extras['final_obs'], or "
        "reset by hand (of mjlab: auto_reset=False)"
    )

    @classmethod
    def takes(cls, envs: Any) -> bool:
        names = "episode_length_buf", "max_episode_length", "cfg"
        return super().takes(envs) and all(attribute_of(envs, name, None) is not None for name in names)

    def __init__(self, envs: Any) -> None:
        super().__init__(envs)
        does_reset = getattr(attribute_of(envs, "cfg"), "auto_reset", True)
        self.documented_mode = Autoreset.SAME_STEP if does_reset else Autoreset.DISABLED

    def mask_of(self, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> Mask | None:
        """Which sub-environments a reset resets: those in ``env_ids``."""
        given = keywords.get("env_ids")
        if given is None and len(arguments) > 1:  # reset(seed, env_ids, options)
            given = arguments[1]
        return None if given is None else mask_of_indices(given, self.count, "env_ids")

    def seeds(self, seed: Any, mask: Mask) -> npt.NDArray[np.int64]:
        """None: one seed is that of a generator that all sub-environments share."""
        return np.full(self.count, -1, np.int64)
