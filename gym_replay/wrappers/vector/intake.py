"""What resets and steps of a batch of environments returned, on its way into the rows of a session."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from gym_replay.errors import FieldError
from gym_replay.schema.fields import describe, to_array
from gym_replay.wrappers.recorder import outside_level
from gym_replay.wrappers.rewards import Rewards
from gym_replay.wrappers.vector.adapters.adapter import Adapter
from gym_replay.wrappers.vector.adapters.gymnasium import are_same_arrays, share_memory
from gym_replay.wrappers.vector.adapters.tensors import arrays_of, is_tensor
from gym_replay.wrappers.vector.autoreset import Autoreset, EnvIndices, Mask, transition_kinds
from gym_replay.wrappers.vector.autoreset_check import AutoresetCheck
from gym_replay.wrappers.vector.batched_infos import (
    FINAL,
    LAST_OBSERVATIONS,
    BatchInfos,
    InfoColumn,
    final_observations,
    lacks_final_infos,
    split_final_infos,
    split_infos,
)
from gym_replay.wrappers.vector.batches import BatchEncoder, Column, default_of
from gym_replay.wrappers.vector.ended import Finals
from gym_replay.wrappers.vector.session import VectorSession

_FLOATS, _BOOL = (np.dtype(np.float64), np.dtype(np.float32)), np.dtype(np.bool_)


class Intake:
    """Takes what resets and steps returned apart, finds what each step was, and tells the session.

    Args:
        adapter: of the environment.
        check: its autoreset mode.
        session: has the rows.
        encoder: of observations.
        rewards: of one sub-environment.
        infos: what is recorded of infos; None where nothing is.

    Attributes:
        warned: what is not warned of any more.
    """

    def __init__(
        self,
        adapter: Adapter,
        check: AutoresetCheck,
        session: VectorSession,
        encoder: BatchEncoder,
        rewards: Rewards,
        infos: BatchInfos | None,
    ) -> None:
        self._adapter, self._check, self._session = adapter, check, session
        self._observations, self._rewards, self._infos = encoder, rewards, infos
        self._names = [leaf.name for leaf in encoder.leaves]
        self._flags_shape = (adapter.count,)
        self._statistics = adapter.statistics()
        self.warned: set[str] = set()
        self._use_mode()
        self._use_rewards()

    def _use_mode(self) -> None:
        mode = self._mode = self._check.mode
        self._is_same_step, self._is_disabled = mode is Autoreset.SAME_STEP, mode is Autoreset.DISABLED

    def _use_rewards(self) -> None:
        self._rewards_shape = (self._adapter.count, *self._rewards.field.shape)

    def warn_once(self, what: str, message: str) -> None:
        """Warn of something the first time."""
        if what not in self.warned:
            self.warned.add(what)
            warnings.warn(message, stacklevel=outside_level())

    # --- a reset ---

    def take_reset(self, observations: Any, infos: Any, mask: Mask | None, unsure: Mask) -> Mask:
        """Stage what a reset returned; whose episodes it opens.

        Args:
            observations, infos: what it returned.
            mask: which sub-environments were to be reset; None where it is all of them.
            unsure: those that the next step may reset once more.

        Raises:
            FieldError: what it returned does not fit.
        """
        adapter, session = self._adapter, self._session
        columns = self._observations.encode(observations)
        if mask is None and not self._check.is_certain:
            self._check.note_start(columns)
        if mask is not None and not adapter.honours_masks:
            mask = self._really_reset(mask, columns)
        opened: Mask = ~unsure if mask is None else mask & ~unsure
        now, env_indices = session.state.now, np.flatnonzero(opened)
        # Those that are running keep what is in the row of now.
        some = {name: column[env_indices] for name, column in columns.items()}
        session.staging.put_some(now, some, env_indices)
        self._stage_infos(now, infos, env_indices)
        return opened

    def _really_reset(self, mask: Mask, columns: Mapping[str, Column]) -> Mask:
        """Which sub-environments a reset with a mask changed that may not have known of the mask."""
        session = self._session
        changed: Mask = mask.copy()
        for name, column in columns.items():
            before = session.staging.read(session.state.now, name)
            changed |= np.array([_bytes(one) != _bytes(two) for one, two in zip(before, column, strict=True)], bool)
        if (changed & ~mask).any():
            self.warn_once(
                "mask",
                f"{self._adapter.envs} does not know options['reset_mask']: it reset other sub-environments too, whose "
                "episodes are cut",
            )
            session.cut(changed & ~mask, may_go_on=False)
        return changed

    # --- a step ---

    def take_step(
        self, step: tuple[Any, Any, Any, Any, Any], generators: npt.NDArray[np.uint64] | None, began: float
    ) -> None:
        """Stage what a step returned, and commit what ended.

        Args:
            step: what it returned, as Gymnasium has it.
            generators: the generators' states before the resets that it did, where they are known.
            began: when it began.

        Raises:
            FieldError: what it returned does not fit.
        """
        observations, rewards, terminations, truncations, infos = step
        session = self._session
        if type(rewards) is not np.ndarray and is_tensor(rewards):
            observations, rewards, terminations, truncations, infos = arrays_of(self.wanted(step))
        if type(rewards) is not np.ndarray or rewards.dtype not in _FLOATS or rewards.shape != self._rewards_shape:
            rewards = np.ascontiguousarray(self._rewards.fit(rewards, self._flags_shape))
            self._use_rewards()
        now, staging = session.state.now, session.staging
        staging.put(now + 1, self._observations.encode(observations))
        terminated, truncated = self._flag("terminated", terminations), self._flag("truncated", truncations)
        staging.put(now, {"reward": rewards})
        done = terminated | truncated
        if not self._check.is_certain:
            self._look(infos, observations, rewards, done)
        state, kinds, finals = session.state, None, None
        has_done = 1 in done.tobytes()  # in a quarter of the time that NumPy takes to count them
        if has_done or self._infos is not None:
            infos = self._check.with_known_names(infos)
        if has_done or state.has_waiting or state.ended:
            kinds = transition_kinds(self._mode, state.running, state.waiting, done)
            if self._is_same_step and 1 in kinds.ended.tobytes():
                finals = self._finals(np.flatnonzero(kinds.ended), infos, observations)
        if self._infos is not None:
            ended = None if kinds is None else kinds.ended
            recorded = state.running if kinds is None else kinds.running | kinds.ended
            self._stage_infos(now + 1, infos, np.flatnonzero(recorded), ended)
            if finals is not None:
                # Fields may have been found since in what the resets returned: there they have no values.
                none = self._infos.encode_columns([{}] * len(finals.has_final))
                finals = Finals({**none, **finals.columns}, finals.has_final)
        if self._is_disabled:
            self._warn_of_unreset(state.running)
        flags = terminated, truncated
        session.advance(kinds, rewards, flags, finals=finals, generators=generators, began=began)

    def _look(self, infos: Any, observations: Any, rewards: npt.NDArray[Any], done: Mask) -> None:
        """Look whether a step fits the autoreset mode."""
        session, state, check = self._session, self._session.state, self._check
        try:
            if state.has_waiting or check.is_pending:
                before, after = (
                    {name: session.staging.read(time, name) for name in self._names}
                    for time in (state.now, state.now + 1)
                )
                check.look_after(state.waiting, rewards, done, before, after)
                session.on_hold = False
            ended = np.flatnonzero(state.running & done)
            if len(ended):
                check.look_at_end(ended, infos, observations, self._observations)
        except FieldError:
            session.trusts_last = False
            raise
        self._use_mode()
        if len(ended) and check.holds_commits:
            session.on_hold, session.trusts_last = True, check.is_declared

    def _flag(self, name: str, values: Any) -> Mask:
        """A flag of each sub-environment.

        Raises:
            FieldError: they are no booleans, or another number of them.
        """
        array: npt.NDArray[Any] = values if type(values) is np.ndarray else to_array(values, name)
        if array.dtype == _BOOL and array.shape == self._flags_shape:
            return array
        if array.dtype == np.uint8 and array.shape == self._flags_shape and (array <= 1).all():
            return array.astype(bool)  # as SuperSuit has them
        expected = f"a bool array of shape {self._flags_shape}"
        raise FieldError(f"field {name!r}: expected {expected}, got {describe(values)}")

    def _warn_of_unreset(self, running: Mask) -> None:
        if not running.all():
            self.warn_once(
                "unreset",
                f"sub-environments {np.flatnonzero(~running).tolist()} have ended and were not reset; until they are, "
                "with reset(options={'reset_mask': mask}), their steps are not recorded",
            )

    # --- last observations, where the next episode has begun in the same step ---

    def _finals(self, env_indices: EnvIndices, infos: Any, observations: Any) -> Finals:
        """The last observations, and infos, of the episodes that ended."""
        count = self._adapter.count
        given, there = final_observations(infos, count, env_indices.tolist())
        has_final = np.array(there, bool)
        if not isinstance(given, list):  # dense arrays over all sub-environments
            finals = {name: column[env_indices] for name, column in self._observations.encode(given).items()}
        else:
            for index in np.flatnonzero(has_final).tolist():
                # That a part holds what it held in all rows before proves nothing: a flag may change in the last row.
                if share_memory(given[index], self._adapter.first_observation(int(env_indices[index]))):
                    has_final[index] = False
                    self._warn_of_reused_arrays()
            finals = self._fill_final(given, has_final, env_indices)
        if not all(there):
            self.warn_once("final", self._adapter.without_last)
        if self._infos is not None:
            finals |= self._infos.encode_columns(self._final_infos(infos, env_indices))
        if not self._adapter.can_be_asked and isinstance(given, list):
            self._look_for_reused_arrays(given, finals, observations, env_indices)
        return Finals(finals, has_final)

    def _fill_final(
        self, given: list[Any], has_final: npt.NDArray[np.bool_], env_indices: EnvIndices
    ) -> dict[str, Column]:
        """The columns of last observations, with defaults where there is none."""
        indices = np.flatnonzero(has_final)
        values = [given[index] for index in indices.tolist()]
        found = self._observations.encode_each(values, env_indices[indices].tolist()) if values else {}
        columns: dict[str, Column] = {}
        for leaf in self._observations.leaves:
            default = default_of(leaf.field)
            columns[leaf.name] = np.broadcast_to(default, (len(given), *default.shape)).copy()
            if found:
                columns[leaf.name][indices] = found[leaf.name]
        return columns

    def _look_for_reused_arrays(
        self, given: list[Any], finals: Mapping[str, Column], observations: Any, env_indices: EnvIndices
    ) -> None:
        """Warn where last observations are what the next episodes begin with, as reused arrays look from outside."""
        encoded = self._observations.encode(observations)
        for index, env_index in enumerate(env_indices.tolist()):
            last = {name: finals[name][index] for name in encoded}
            first = {name: encoded[name][env_index] for name in encoded}
            if isinstance(given[index], (np.ndarray, Mapping, tuple)) and are_same_arrays(last, first):
                self._warn_of_reused_arrays(is_certain=False)
                return

    def _warn_of_reused_arrays(self, *, is_certain: bool = True) -> None:
        if is_certain:
            what = "the last observations are overwritten before anybody sees them, and are not stored"
        else:
            what = "last observations may have been overwritten: some equal the first ones of the next episodes"
        self.warn_once(
            "arrays",
            "an environment that returns one array again and again does not go with same-step autoreset: "
            + what
            + "; return copies, or use the next-step mode",
        )

    # --- infos ---

    def _stage_infos(self, time: int, infos: Any, env_indices: EnvIndices, ended: Mask | None = None) -> None:
        """Put the infos of some sub-environments into the row of a time; ``ended`` is where an episode has ended."""
        if self._infos is None:
            return
        is_same_step, has_finals = self._is_same_step, self._check.has_finals
        # Those that a wrapper adds in a step of this mode are of the episodes that have ended in it.
        removed = dict.fromkeys(self._statistics, ended) if is_same_step and ended is not None else {}
        batch = self._infos.columns(infos, self._adapter.count, FINAL if has_finals else (), removed)
        if batch is not None:
            self._stage_batch(time, batch, env_indices)
            return
        is_of_step = time > self._session.state.now
        if is_of_step and self._adapter.joins_infos and isinstance(infos, Mapping):
            for name in self._infos.cut_entries(infos):
                self.warn_once(
                    "cut",
                    f"{name} came as integers, though it is a float: Gymnasium gives an entry of all sub-environments "
                    "the type of the first one's, and may have cut the others' fractions off; have the environment "
                    "always return a float",
                )
        found = split_infos(infos, self._adapter.count, env_indices.tolist(), has_finals=has_finals)
        for key, mask in removed.items():
            for info, env_index in zip(found, env_indices.tolist(), strict=True):
                if mask[env_index]:
                    info.pop(key, None)
        self._session.staging.put_some(time, self._infos.encode_columns(found), env_indices)

    def _stage_batch(self, time: int, batch: list[InfoColumn], env_indices: EnvIndices) -> None:
        """Put values of all sub-environments, of which some are asked for, into the row of a time."""
        staging, fields = self._session.staging, self._session.fields  # not the presence of what was added by hand
        columns = {name: values for name, values in batch if name in fields}
        if len(env_indices) == self._adapter.count:
            staging.put(time, columns)
            return
        are_of_each = {name: values.ndim > len(fields[name].shape) for name, values in columns.items()}
        some = {name: values[env_indices] if are_of_each[name] else values for name, values in columns.items()}
        staging.put_some(time, some, env_indices)

    def _final_infos(self, infos: Any, env_indices: EnvIndices) -> list[dict[Any, Any]]:
        """The infos of the last rows of the episodes that ended."""
        count, chosen = self._adapter.count, env_indices.tolist()
        found = split_final_infos(infos, count, chosen)
        if self._statistics:
            for info, of_step in zip(found, split_infos(infos, count, chosen), strict=True):
                info |= {key: of_step[key] for key in self._statistics if key in of_step}
        if "final_info" not in self.warned and lacks_final_infos(infos, count, chosen, self._statistics):
            self.warn_once(
                "final_info",
                "there is no infos['final_info'], though the autoreset mode is same-step: the infos that came with "
                "last observations are lost, and the rows of those have none",
            )
        return found

    # --- tensors ---

    def wanted(self, step: tuple[Any, Any, Any, Any, Any]) -> tuple[Any, Any, Any, Any, Any]:
        """What a step returned, of the infos only what is stored."""
        *values, infos = step
        if self._infos is None and isinstance(infos, Mapping):
            infos = {name: infos[name] for name in LAST_OBSERVATIONS if name in infos}
        return (*values, infos)


def _bytes(value: Any) -> bytes:
    return np.asarray(value).tobytes()
