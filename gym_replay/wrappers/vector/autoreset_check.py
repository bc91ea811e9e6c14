"""Whether a vector environment resets its sub-environments as it says, or as is assumed of it.

Only the modes of Gymnasium's own and ale-py's vector environments, and one that the user names, are taken at their
word. Of any other one the first episode that ends is looked at. Where it turns out that sub-environments are reset
inside the step that ends their episodes, that mode is taken, as long as the infos bring the last observations; where
what comes fits no mode, recording stops with an error that asks for ``autoreset_mode``.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from gym_replay.errors import FieldError
from gym_replay.wrappers.vector.adapters.adapter import Adapter
from gym_replay.wrappers.vector.adapters.gymnasium import KNOWN_PACKAGES
from gym_replay.wrappers.vector.autoreset import Autoreset, EnvIndices, Mask, declared_mode
from gym_replay.wrappers.vector.batched_infos import OTHER_NAMES, final_observations
from gym_replay.wrappers.vector.batches import BatchEncoder, Column


class AutoresetCheck:
    """The autoreset mode of a vector environment, and what speaks against it.

    Args:
        adapter: of the environment.
        given: the mode that the user names; None to look for it.

    Attributes:
        mode: the mode.
        is_certain: whether nothing needs to be looked at any more.
        is_declared: whether the user or the environment names it, or it is that of a family.
    """

    def __init__(self, adapter: Adapter, given: Any = None) -> None:
        self._envs: Any = adapter.envs
        self._count = adapter.count
        named = adapter.mode() if given is None else declared_mode(adapter.envs, given)
        has_modes = hasattr(gym.vector, "AutoresetMode")
        self.mode = named or Autoreset.NEXT_STEP
        self.is_declared = named is not None
        self.is_certain = given is not None or adapter.is_trusted
        self._is_inferred = self._has_passed = False
        self._changes_rewards = _changes_rewards(self._envs)
        self._start: bytes | None = None  # of all sub-environments, where each is reset to the same observation
        self._pending: Mask | None = None  # which ended in same-step mode without a last observation
        if not self.is_declared and has_modes:
            warnings.warn(
                f"{self._envs} is missing `autoreset_mode` in its metadata, so it is taken to reset a sub-environment "
                "in the step after the one that ended its episode, unless what it returns shows another mode; name it "
                "with autoreset_mode=; see https://farama.org/Vector-Autoreset-Mode",
                stacklevel=4,
            )

    @property
    def holds_commits(self) -> bool:
        """Whether episodes that end are committed only after the next step, which shows if the mode is right."""
        return self.mode is Autoreset.NEXT_STEP and not self.is_certain and not self._has_passed

    @property
    def is_pending(self) -> bool:
        """Whether the step after one that ended episodes in same-step mode is to be looked at."""
        return self._pending is not None

    @property
    def has_finals(self) -> bool:
        """Whether entries such as ``final_obs`` are no infos of the sub-environments' own."""
        return self.mode is Autoreset.SAME_STEP or not self.is_declared

    def with_known_names(self, infos: Any) -> Any:
        """The infos, with last observations under the name that Gymnasium gives them."""
        return _renamed(infos) if self.has_finals else infos

    def note_start(self, columns: Mapping[str, Column]) -> None:
        """Observations of an explicit reset of all sub-environments."""
        each = _rows_of(columns)
        self._start = each[0] if len(each) > 1 and len(set(each)) == 1 else None

    def look_at_end(self, env_indices: EnvIndices, infos: Any, observations: Any, encoder: BatchEncoder) -> None:
        """Look at a step in which episodes ended, and take the mode that it shows.

        Args:
            env_indices: the sub-environments whose episodes ended.
            infos, observations: what the step returned.
            encoder: of the observations.

        Raises:
            FieldError: the infos tell of a reset in the same step and bring no last observations.
        """
        count = self._count
        given, there = final_observations(_renamed(infos), count, env_indices.tolist())
        if self.mode is Autoreset.SAME_STEP:
            missing = env_indices[~np.array(there, bool)]
            if self._is_inferred and len(missing):
                self._stop(f"the infos of sub-environment {missing[0]} bring no last observation")
            if len(missing):
                self._pending = np.zeros(count, bool)
                self._pending[missing] = True
            else:
                self.is_certain = not self._is_inferred
            return
        shows_reset = any(there) and _differ(given, there, env_indices, observations, encoder)
        if shows_reset and self._has_passed:
            self._stop("the last observations in its infos differ from the observations that it returned")
        elif shows_reset:
            warnings.warn(
                f"{self._envs} resets sub-environments in the step that ends their episodes: the last observations in "
                "its infos differ from the observations that it returns. It is recorded in the same-step mode; name "
                "the mode with autoreset_mode=",
                stacklevel=6,
            )
            self.mode, self._is_inferred = Autoreset.SAME_STEP, True
        elif not self.is_declared and not any(there) and _has_final_info(infos, env_indices):
            self._stop("the infos bring 'final_info' but no last observation")
        elif self.mode is Autoreset.DISABLED:
            self.is_certain = True

    def look_after(
        self,
        waiting: Mask,
        rewards: npt.NDArray[Any],
        done: Mask,
        before: Mapping[str, Column],
        after: Mapping[str, Column],
    ) -> None:
        """Look at the step after one in which episodes ended.

        Args:
            waiting: the sub-environments that this step resets in next-step mode.
            rewards, done: what the step returned.
            before, after: the observations that the step before returned, and those of this step.

        Raises:
            FieldError: it does not fit the mode.
        """
        is_paid: Any = rewards.reshape(len(rewards), -1).any(axis=1)
        start, last, first = self._start, _rows_of(before), _rows_of(after)
        if self.mode is Autoreset.SAME_STEP:
            pending, self._pending = self._pending, None
            for env_index in [] if pending is None or start is None else np.flatnonzero(pending & ~done & ~is_paid):
                if last[env_index] != start == first[env_index]:
                    self._stop(
                        f"sub-environment {env_index} was reset in the step after the one that ended its episode"
                    )
            return
        for env_index in np.flatnonzero(waiting).tolist():
            if done[env_index]:
                self._stop(f"sub-environment {env_index} was done in the step that was to reset it")
            if is_paid[env_index] and not self._changes_rewards:
                self._stop(f"sub-environment {env_index} had a reward in the step that was to reset it")
            if start is not None and last[env_index] == start != first[env_index]:
                self._stop(
                    f"what sub-environment {env_index} returned at the end of its episode is what a reset returns, and "
                    "what it returned after that is not"
                )
        self._has_passed = True
        self.is_certain = self.is_declared

    def _stop(self, what: str) -> None:
        says = f"its metadata say {self.mode.value!r}" if self.is_declared else "its metadata name no autoreset mode"
        taken = f", and {self.mode.value!r} was taken" if not self.is_declared else ""
        late = "; episodes before this one may have a wrong last observation" if self._has_passed else ""
        raise FieldError(
            f"autoreset mode of {self._envs}: {says}{taken}, but {what}. Pass autoreset_mode='NextStep', 'SameStep' or "
            f"'Disabled', as the environment does it{late}"
        )


def _renamed(infos: Any) -> Any:
    """Infos, or a list of them, with last observations under the name that Gymnasium gives them."""
    if isinstance(infos, (list, tuple)):
        return [_renamed(info) if isinstance(info, Mapping) else info for info in infos]
    for name in OTHER_NAMES if isinstance(infos, Mapping) else ():
        if name in infos and "final_obs" not in infos:
            names = {name: "final_obs", f"_{name}": "_final_obs"}
            return {names.get(key, key): value for key, value in infos.items()}
    return infos


def _has_final_info(infos: Any, env_indices: EnvIndices) -> bool:
    given = [infos[i] for i in env_indices.tolist()] if isinstance(infos, (list, tuple)) else [infos]
    return any(isinstance(info, Mapping) and "final_info" in info for info in given)


def _differ(
    given: Any, there: Sequence[bool], env_indices: EnvIndices, observations: Any, encoder: BatchEncoder
) -> bool:
    """Whether any last observation is another one than what the step returned for its sub-environment."""
    chosen = env_indices[np.array(there, bool)].tolist()
    try:
        returned = _rows_of(encoder.encode(observations))
        if isinstance(given, list):
            values = [value for value, is_there in zip(given, there, strict=True) if is_there]
            last = _rows_of(encoder.encode_each(values, chosen))
        else:
            of_all = _rows_of(encoder.encode(given))
            last = [of_all[env_index] for env_index in chosen]
    except FieldError:  # an entry of the sub-environments' own
        return False
    return last != [returned[env_index] for env_index in chosen]


def _rows_of(columns: Mapping[str, Column]) -> list[bytes]:
    """The bytes of each sub-environment's values."""
    return [b"".join(np.asarray(value).tobytes() for value in row) for row in zip(*columns.values(), strict=True)]


def _changes_rewards(envs: Any) -> bool:
    """Whether a wrapper may make a reward out of the zero that a reset gives."""
    while isinstance(envs, gym.vector.VectorWrapper):
        is_foreign = type(envs).__module__.partition(".")[0] not in KNOWN_PACKAGES
        overrides = is_foreign and type(envs).step is not gym.vector.VectorWrapper.step
        if overrides or isinstance(envs, gym.vector.VectorRewardWrapper):
            return True
        envs = envs.env
    return False
