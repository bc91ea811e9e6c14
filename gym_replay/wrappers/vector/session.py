"""The session of a vector recorder: the open episodes of all sub-environments, one row of each for each vector step."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gym_replay.buffer.door import OpenRows
from gym_replay.buffer.replay_buffer import ReplayBuffer
from gym_replay.errors import EpisodeStateError, StorageError
from gym_replay.schema.fields import Field
from gym_replay.spaces import Leaf
from gym_replay.wrappers.infos import is_info
from gym_replay.wrappers.session import Session
from gym_replay.wrappers.vector.autoreset import EnvIndices, Mask, TransitionKinds
from gym_replay.wrappers.vector.ended import EndedEpisodes, Finals, extract_ended, parts_of
from gym_replay.wrappers.vector.episode_meta import EpisodeMeta
from gym_replay.wrappers.vector.open_rows import VectorRows
from gym_replay.wrappers.vector.staging import Staging


class State(NamedTuple):
    """Which episodes are open at one moment; it is replaced whole, so that an interrupt finds the old or the new one.

    Attributes:
        now: the time, counted in vector steps; its row holds the observations that are next acted on.
        running: the sub-environments with an open episode.
        waiting: those that the next step resets, whatever their action.
        has_waiting: whether there are any.
        is_recording: whether the next step can be a transition, or open an episode.
        ended: episodes that have ended and are not committed yet.
    """

    now: int
    running: Mask
    waiting: Mask
    has_waiting: bool
    is_recording: bool
    ended: Sequence[EndedEpisodes]

    @classmethod
    def of(cls, now: int, running: Mask, waiting: Mask, ended: Sequence[EndedEpisodes]) -> State:
        """The state with these episodes."""
        has_waiting = 1 in waiting.tobytes()  # in a quarter of the time that NumPy takes to count them
        return cls(now, running, waiting, has_waiting, has_waiting or 1 in running.tobytes(), ended)


class VectorSession(Session[EndedEpisodes]):
    """The open episodes of one recorder of a vector environment.

    Args:
        owner, buffer, leaves, extra_names, options: as of :class:`~gym_replay.wrappers.session.Session`.
        num_envs: how many sub-environments there are.
        run: the meta field ``episode_run``.

    Attributes:
        state: which episodes are open.
        staging: their rows.
        starts: of each sub-environment the time of the first observation.
        begun_at: the time at which the last step was begun. As long as it is that of now, the step has not ended; if
            another one is asked for then, the step was lost, and none may follow.
        on_hold: what has ended is committed after the next step, which shows whether its last observations are right.
        trusts_last: whether last observations on hold are taken for right where no step follows.
    """

    def __init__(
        self,
        owner: object,
        buffer: ReplayBuffer,
        leaves: Sequence[Leaf],
        extra_names: Sequence[str],
        options: Mapping[str, Any],
        *,
        num_envs: int,
        run: bytes,
    ) -> None:
        super().__init__(owner, buffer, leaves, extra_names, options)
        fields = buffer.metadata.fields
        infos = [name for name in fields if is_info(name)] if options["record_info"] else []
        self.staging = Staging({name: fields[name] for name in (*self.names, *infos)}, num_envs, buffer.folder)
        self._meta = EpisodeMeta(num_envs, run, buffer)
        self._num_envs = num_envs
        limits = buffer.max_episodes, buffer.max_timesteps, buffer.max_steps
        self._is_limited, self._has_state = limits != (None, None, None), buffer.metadata.has_state
        self._all, self._none = np.ones(num_envs, bool), np.zeros(num_envs, bool)
        self.state = State.of(0, self._none, self._none, ())
        self.starts = np.zeros(num_envs, np.int64)
        self.begun_at = -1
        self.on_hold, self.trusts_last = False, True
        self._clear_returns()

    def _clear_returns(self) -> None:
        # Sums of rewards at even and at odd times: those of now stay as they are until the next step is through.
        shape = self._num_envs, *self.buffer.metadata.fields["reward"].shape
        self._returns = np.zeros(shape), np.zeros(shape)

    @property
    def ended(self) -> Sequence[EndedEpisodes]:
        return self.state.ended

    @ended.setter
    def ended(self, ended: Sequence[EndedEpisodes]) -> None:
        self.state = State(*self.state[:-1], ended)

    @property
    def fields(self) -> Mapping[str, Field]:
        return self.staging.rows.fields

    @property
    def is_broken(self) -> bool:
        """Whether a step was begun and has not ended."""
        return self.begun_at == self.state.now

    # --- a step ---

    def prepare(self) -> bool:
        """Finish what was left of the step before, and have room in the buffer and in the staging for another one.

        Returns:
            Whether the step can be a transition, or open an episode.

        Raises:
            EpisodeTooLongError, BufferFullError: the buffer's limits leave no room for what is running.
            BufferLockedError: somebody else writes to the buffer, or this is a forked child.
            StorageError: the staging needs a file, or what had ended room in the buffer, and the disk refused.
        """
        state, claim = self.state, self.claim
        if self.begun_at == state.now or self._is_behind or (state.ended and not self.on_hold):
            self.settle()
            state = self.state
        if not state.is_recording:
            return False
        if not claim.is_open:
            claim.open()
        if self._is_limited:
            lengths = state.now + 1 - self.starts[state.running]
            if len(lengths):
                claim.require_room(lengths)
        if state.now >= self.staging.rows.full_at:
            claim.check_owner()
            self.staging.make_room(state.now, self._earliest)
        return True

    def _earliest(self) -> int:
        """The first time whose row is needed."""
        state = self.state
        return int(self.starts[state.running].min()) if state.running.any() else state.now

    def advance(
        self,
        kinds: TransitionKinds | None,
        rewards: npt.NDArray[Any],
        flags: tuple[Mask, Mask],
        *,
        finals: Finals | None,
        generators: npt.NDArray[np.uint64] | None,
        began: float,
    ) -> None:
        """A step was staged: its observations and infos in the row after now, all else in that of now.

        Args:
            kinds: what it was for each sub-environment; None where no episode ended or began.
            rewards, flags: what it returned.
            finals: the last rows of the episodes that ended, where the row after now has those of the next episodes.
            generators: the generators' states before the resets that the step did, where they are known.
            began: when the step began.
        """
        if not self.claim.is_open:  # it was closed or given up inside the step, as by a signal handler
            return
        state = self.state
        now, ended = state.now + 1, state.ended
        returns = np.add(self._returns[~now & 1], rewards, self._returns[now & 1])
        if kinds is None:
            self.state = State(now, state.running, state.waiting, state.has_waiting, state.is_recording, ended)
            return
        env_indices, opened = kinds.ended.nonzero()[0], kinds.opened.nonzero()[0]
        if len(env_indices):
            ended = [*ended, *self._extract(env_indices, now, returns, flags, finals)]
        if len(opened):
            if kinds.opened is not state.waiting:
                # What is noted of an episode that has just ended is needed until the step is done.
                self.state = State.of(now, kinds.running & ~kinds.opened, kinds.waiting, ended)
            self._begin(opened, now)
            self._meta.begin(opened, began, generators)
        self.state = State.of(now, kinds.running, kinds.waiting, ended)
        if ended and not self.on_hold:
            self.commit()
            if not self.state.is_recording:
                self.claim.close()

    def _begin(self, opened: EnvIndices, now: int) -> None:
        self.starts[opened] = now
        self._returns[now & 1][opened] = 0.0

    def _extract(
        self,
        env_indices: EnvIndices,
        until: int,
        returns: npt.NDArray[Any],
        flags: tuple[Mask, Mask],
        finals: Finals | None = None,
        *,
        complete: bool = True,
    ) -> list[EndedEpisodes]:
        """The episodes of some sub-environments, which have ended, in as many blocks as there must be."""
        staging, lengths, has_state = self.staging, until - self.starts[env_indices], self._has_state
        if has_state:
            staging.put_row_t(until)
        parts = parts_of(lengths.tolist(), *self.claim.largest_block()) if self._is_circular else (slice(None),)
        return [
            extract_ended(
                staging,
                self._meta,
                env_indices[part],
                lengths[part],
                until,
                returns,
                flags,
                None if finals is None else finals.only(part),
                complete=complete,
                has_state=has_state,
            )
            for part in parts
        ]

    # --- resets ---

    def open(
        self,
        mask: Mask,
        seeds: npt.NDArray[np.int64],
        generators: npt.NDArray[np.uint64] | None,
        options: bytes,
        began: float,
    ) -> None:
        """Begin the episodes whose first observations are in the row of now: those of an explicit reset."""
        state, opened = self.state, mask.nonzero()[0]
        self._begin(opened, state.now)
        self._meta.begin(opened, began, generators, seeds, options)
        self.state = State.of(state.now, state.running | mask, state.waiting & ~mask, state.ended)

    def settle(self) -> None:
        """Commit what has ended and could not be committed; cut what was running where a step was lost."""
        self.refuse_within_on_episode()
        self._prepare_ends()
        if self.is_broken:
            self._end_running(self._all)
            self.lose(self._all)
            self.begun_at = -1
        self.commit()

    def _prepare_ends(self) -> None:
        """Decide what fields, and which last observations, the episodes have that end or wait for their commit."""
        self.catch_up()
        if not self.on_hold:
            return
        self.on_hold = False
        if self.trusts_last or not self.ended:
            return
        for block in self.ended:
            block.drop_last_observations(self.buffer.metadata.fields)
        warnings.warn(
            "the last observations of the first episodes may be the first ones of the next episodes, and are left out: "
            "name with autoreset_mode= how the environment resets its sub-environments",
            stacklevel=4,
        )

    def expect(self, mask: Mask) -> None:
        """Any step may open an episode of those in a mask that are not running."""
        state = self.state
        self.state = State.of(state.now, state.running, mask & ~state.running, state.ended)

    def lose(self, mask: Mask) -> None:
        """Nothing is known of these sub-environments, none of which is running, until an episode of theirs begins."""
        state = self.state
        self.state = State.of(state.now, state.running, state.waiting & ~mask, state.ended)

    def cut(self, mask: Mask, *, may_go_on: bool = True) -> None:
        """End the running episodes of some sub-environments, before a reset or a close.

        Raises:
            StorageError: the disk refused. What could not be committed goes on where it was if it may, and else waits
                for the next commit.
        """
        running = self.state.running
        self._end_running(mask)
        try:
            self.commit()
        except StorageError:
            if may_go_on:
                now, rest, waiting, _, _, ended = self.state
                again = running & mask & (self.starts == now)  # no transition yet
                for block in ended:
                    if not block.is_complete:
                        again[block.env_indices] = True
                self.state = State.of(now, rest | again, waiting, [block for block in ended if block.is_complete])
            raise

    def _end_running(self, mask: Mask) -> None:
        now, running, waiting, _, _, ended = self.state
        env_indices = np.flatnonzero(running & mask & (self.starts < now))
        if len(env_indices) and self._keep:
            flags = self._none, self._all  # which truncates them
            ended = [*ended, *self._extract(env_indices, now, self._returns[now & 1], flags, complete=False)]
        self.state = State.of(now, running & ~mask, waiting, ended)

    def annotate(self, meta: Mapping[str, Any], mask: Mask | None = None) -> None:
        """Set meta fields of the user's in the running episodes, or in those of them that are in a mask."""
        columns = self.buffer.encoders().meta_columns(meta, self._num_envs)
        if not self.state.running.any():
            raise EpisodeStateError("annotate: no episode is running; call it between a reset and the episodes' ends")
        self._meta.annotate(columns, self.state.running if mask is None else self.state.running & mask)

    # --- what a session does ---

    def _check_fields(self, fields: Mapping[str, Field]) -> None:
        self.staging.check(fields)
        for block in self.ended:  # on hold until the autoreset mode is known
            block.widen(fields, is_trial=True)

    def _take_fields(self, names: Collection[str]) -> None:
        staged, known = self.staging.rows.fields, self.buffer.metadata.fields
        changed = {
            name: info for name, info in known.items() if (name in names or name in staged) and staged.get(name) != info
        }
        if changed:
            for block in self.ended:
                block.widen(changed)
            self.staging.change_fields(changed, self.state.now)

    def _has_rewards(self) -> bool:
        state = self.state
        return bool(state.ended) or bool((self.starts[state.running] < state.now).any())

    def _restage(self) -> None:
        self.staging.change_fields({"reward": self.buffer.metadata.fields["reward"]}, self.state.now)
        self._clear_returns()

    def open_rows(self) -> OpenRows | None:
        while True:
            state = self.state
            env_indices = np.flatnonzero(state.running & (self.starts < state.now))
            firsts = self.starts[env_indices]
            if self.state is state:  # or another thread has stepped meanwhile
                break
        if not len(env_indices):
            return None
        meta, now = partial(self._meta.noted_values, env_indices), state.now
        return VectorRows(self.staging, env_indices, firsts, now, meta=meta, are_running=self._are_running)

    def _are_running(self, env_indices: EnvIndices, firsts: npt.NDArray[np.int64]) -> bool:
        return bool((self.state.running[env_indices] & (self.starts[env_indices] == firsts)).all())

    @property
    def has_open(self) -> bool:
        return bool(self.ended) or bool(self.state.running.any())

    def _cut_all(self) -> None:
        self._prepare_ends()
        self.cut(self._all)

    def forget(self) -> None:
        self.claim.close()
        self.state = State.of(self.state.now, self._none, self._none, ())
        self.begun_at = -1
        self.staging.release()
