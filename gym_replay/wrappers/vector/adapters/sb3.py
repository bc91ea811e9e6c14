"""Stable-Baselines3: its vector environments, around which a recorder is one as well.

They reset what has ended in the same step. The last observation is ``infos[i]["terminal_observation"]``, the rest of
that info belongs to it, and the info of the reset is in ``reset_infos``. One flag says that an episode ended, and
``infos[i]["TimeLimit.truncated"]`` that it was truncated and did not terminate
(``stable_baselines3/common/vec_env/dummy_vec_env.py``, ``subproc_vec_env.py``).
"""

from __future__ import annotations

import dataclasses
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium.envs.registration import EnvSpec

from gym_replay.wrappers.generator_state import generator_states
from gym_replay.wrappers.recorder import values_of
from gym_replay.wrappers.vector.adapters.adapter import Adapter, ResetCall, spec_of_all
from gym_replay.wrappers.vector.autoreset import Autoreset, Mask

LAST, TRUNCATED = "terminal_observation", "TimeLimit.truncated"
_PACKAGE = "stable_baselines3.common.vec_env.base_vec_env"


class StableBaselinesAdapter(Adapter):
    """A ``VecEnv``: ``DummyVecEnv``, ``SubprocVecEnv``, what ``make_vec_env`` makes, and wrappers around them."""

    documented_mode = Autoreset.SAME_STEP
    is_trusted = True
    without_last = (
        f"there is no infos[i][{LAST!r}] of some episodes that ended: they are stored without their last observation"
    )
    forwards = False

    @classmethod
    def takes(cls, envs: Any) -> bool:
        package = sys.modules.get(_PACKAGE)  # which whoever made a VecEnv has imported
        return package is not None and isinstance(envs, package.VecEnv)

    def __init__(self, envs: Any) -> None:
        super().__init__(envs)
        base, kind = envs, sys.modules[_PACKAGE].VecEnv
        while isinstance(getattr(base, "venv", None), kind):
            base = base.venv
        self._base: Any = base
        # Another library's wrapper around something that is none has these attributes, and does not keep them up.
        self._is_whole = not hasattr(base, "venv")
        self._are_here: Sequence[Any] = getattr(base, "envs", ()) if self._is_whole else ()
        self._has_warned = False

    def face(self) -> type[Any]:
        from gym_replay.wrappers.vector.adapters.sb3_face import StableBaselinesFace

        return StableBaselinesFace

    def mode(self) -> Autoreset:
        """That of the family, whatever the metadata of a sub-environment say."""
        return Autoreset.SAME_STEP

    def spec(self) -> EnvSpec | None:
        """That of a sub-environment in this process, without ``Monitor``, which changes nothing that is played.

        A worker that is asked for a spec that cannot be pickled dies.
        """
        spec = spec_of_all([env.spec for env in self._are_here]) if len(self._are_here) else None
        if spec is None:
            return None
        others = [one for one in spec.additional_wrappers if not one.entry_point.startswith("stable_baselines3.")]
        return dataclasses.replace(spec, additional_wrappers=tuple(others))

    # --- resets ---

    def reset_call(self, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> ResetCall:
        """A reset takes no arguments: ``seed`` and ``set_options`` of before say what it does."""
        every = np.ones(self.count, bool)
        seeds = self.seeds(getattr(self._base, "_seeds", None), every)
        first, *others = getattr(self._base, "_options", None) or [{}]
        options = first if first and all(other == first for other in others) else None
        return ResetCall(None, seeds, options, arguments, keywords)

    def reset_result(self, result: Any, call: ResetCall) -> tuple[Any, Any]:
        """The observations, which are all that a reset returns, and the infos."""
        return result, self._reset_infos()

    def _reset_infos(self) -> Sequence[Any]:
        infos = self._base.reset_infos if self._is_whole else ()
        return infos if len(infos) == self.count else [{}] * self.count

    def generators(self, mask: Mask, *, create: bool) -> npt.NDArray[np.uint64] | None:
        """The generators' states of the sub-environments in a mask, where they are in this process."""
        if not len(self._are_here):
            return None
        return generator_states(self._are_here, mask, create=create)

    # --- steps ---

    def step_result(self, result: Any) -> tuple[Any, Any, Any, Any, Any]:
        """What a step returned, with the infos of the last observation and of the reset apart."""
        observations, rewards, dones, infos = values_of("step", result, "observations", "rewards", "dones", "infos")
        infos = values_of("step", infos, *(f"info {i}" for i in range(self.count)))
        done = np.asarray(dones)
        if not done.any():
            return observations, rewards, done, np.zeros(done.shape, bool), [_own(info) for info in infos]
        truncated = done & np.array([bool(info.get(TRUNCATED, False)) for info in infos])
        if not self._has_warned and any(TRUNCATED not in infos[i] for i in np.flatnonzero(done).tolist()):
            self._has_warned = True
            warnings.warn(
                f"{type(self._base).__name__} ends episodes without infos[i][{TRUNCATED!r}], so all count as "
                "terminated: have it say which were truncated",
                stacklevel=5,
            )
        resets = self._reset_infos()
        parted = [_parted(info, resets[i]) if done[i] else _own(info) for i, info in enumerate(infos)]
        return observations, rewards, done & ~truncated, truncated, parted


def _own(info: Mapping[Any, Any]) -> dict[Any, Any]:
    """The info of a sub-environment as it returned it."""
    return {key: value for key, value in info.items() if key not in (LAST, TRUNCATED)}


def _parted(info: Mapping[Any, Any], reset_info: Mapping[Any, Any]) -> dict[Any, Any]:
    """The info of a step in which an episode ended, as Gymnasium has it."""
    last = {"final_obs": info[LAST]} if LAST in info else {}
    return {**reset_info, **last, "final_info": _own(info)}
