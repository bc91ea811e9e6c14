"""The episodes that a vector recorder has under way, apart from the environment: they can end after it is gone."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from gym_replay.buffer.door import FolderWriter
from gym_replay.buffer.open_episode import HeldEpisodes
from gym_replay.buffer.replay_buffer import ReplayBuffer
from gym_replay.errors import EpisodeStateError, GymReplayError, StorageError
from gym_replay.schema.fields import Field
from gym_replay.wrappers.bounds import BoundsCheck
from gym_replay.wrappers.recording import OnEpisode, change_fields
from gym_replay.wrappers.rewards import adopt_reward_shape
from gym_replay.wrappers.vector.autoreset import Mask, TransitionKinds
from gym_replay.wrappers.vector.ended import EndedEpisodes
from gym_replay.wrappers.vector.facts import EpisodeFacts
from gym_replay.wrappers.vector.judging import judge_block
from gym_replay.wrappers.vector.ring import Numbers
from gym_replay.wrappers.vector.staging import Staging
from gym_replay.wrappers.vector.take_out import Finals, TakeOut


class VectorRecording:
    """Stages, cuts and commits the episodes of one vector recorder.

    Args:
        buffer: where they go.
        names: the fields of which each step brings values, besides ``terminated`` and ``truncated``.
        num_envs: how many sub-environments there are.
        run: the meta field ``episode_run``.
        keep: whether episodes that are cut are kept.
        bounds: looks at what was committed.
        on_episode: looks at what is about to be.

    Attributes:
        now: the time, counted in vector steps and resets; its row holds the observations that are next acted on.
        running, waiting: as of :class:`~gym_replay.wrappers.vector.autoreset.TransitionKinds`.
        has_waiting: whether any sub-environment is waiting.
        is_recording: whether the next step can be a transition, or open an episode.
        is_broken: a step was begun and never ended, so none may follow.
        on_hold: what has ended is committed after the next step, which shows whether its last observations are right.
        trusts_last: whether last observations on hold are taken for right where no step follows.
    """

    def __init__(
        self,
        buffer: ReplayBuffer,
        names: list[str],
        num_envs: int,
        *,
        run: bytes,
        keep: bool,
        bounds: BoundsCheck,
        on_episode: OnEpisode | None,
    ) -> None:
        fields = buffer.metadata.fields
        self.buffer, self.bounds = buffer, bounds
        self.staging = Staging({name: fields[name] for name in names}, num_envs, buffer.folder)
        self._num_envs, self._keep, self._on_episode = num_envs, keep, on_episode
        self._held = HeldEpisodes(buffer, self._forget)
        self.facts = EpisodeFacts(num_envs, run, lambda: buffer.metadata.meta_fields)
        self._take_out = TakeOut(buffer, self._held.open, self.staging, self.facts)
        self.now = 0
        self.running: Mask = np.zeros(num_envs, bool)
        self.waiting: Mask = np.zeros(num_envs, bool)
        self.is_broken = self.is_recording = self.has_waiting = False
        self.on_hold, self.trusts_last = False, True
        # Sums of rewards at even and at odd times: those of now stay as they are until the next step is through.
        shape = num_envs, *fields["reward"].shape
        self._returns = np.zeros(shape), np.zeros(shape)
        self._finished: list[EndedEpisodes] = []
        self._error: BaseException | None = None  # of looking at episodes, until all that ended are committed
        self._is_judging = False
        self._is_behind = False  # the buffer's fields may have changed, and those of the staging not yet

    # --- what each step asks ---

    def _set(self, running: Mask, waiting: Mask, **others: Any) -> None:
        has_waiting = 1 in waiting.tobytes()  # in a quarter of the time that NumPy takes to count them
        is_recording = has_waiting or 1 in running.tobytes()
        # In one call: an interrupt comes before all of it or after it.
        self.__dict__.update(
            others, running=running, waiting=waiting, has_waiting=has_waiting, is_recording=is_recording
        )

    def settle(self) -> None:
        """Commit what has ended and could not be committed; cut what was running where a step was lost."""
        self.refuse_within_on_episode()
        if self._is_behind:  # an interrupt came while fields were changed
            self.buffer.acquire()
            self._catch_up()
        if self.on_hold:
            self._end_hold()
        if self.is_broken:
            self._publish_cut(self.running)
            self.lose(np.ones(self._num_envs, bool))
        self.commit()

    def _end_hold(self) -> None:
        self.on_hold = False
        if self.trusts_last or not self._finished:
            return
        for block in self._finished:
            block.drop_last_observations(self.buffer.metadata.fields)
        warnings.warn(
            "the last observations of the first episodes may be the first ones of the next episodes, and are left out: "
            "name with autoreset_mode= how the environment resets its sub-environments",
            stacklevel=4,
        )

    def prepare(self) -> FolderWriter | None:
        """See to what was left of the step before, and to the buffer, its limits, and the staging, before a step.

        Returns:
            The buffer's writer, where the step can be a transition, or open an episode.

        Raises:
            EpisodeTooLongError, BufferFullError: the buffer's limits leave no room for what is running.
            BufferLockedError: somebody else writes to the buffer, or this is a forked child.
            StorageError: the staging needs a file, or what had ended a place, and the disk refused.
        """
        if self.is_broken or self._is_behind or (self._finished and not self.on_hold):
            self.settle()
        if not self.is_recording:
            return None
        writer = self._held.writer or self._held.open()
        if writer.is_limited:
            lengths = self.now + 1 - self.facts.start[self.running]
            if len(lengths) and writer.metadata.circular:
                writer.room.require(1, int(lengths.max()))
            elif len(lengths):
                writer.room.require(len(lengths), int(lengths.max()), steps=int(lengths.sum()))
        if self.now >= self.staging.full_at:
            writer.check_owner()  # a forked child has the files of the process that it comes from
            self.staging.make_room(self.now, self._lowest)
        return writer

    def _lowest(self) -> int:
        return int(self.facts.start[self.running].min()) if self.running.any() else self.now

    def adopt_reward_shape(self, shape: tuple[int, ...]) -> bool:
        """Let rewards have another shape; False where there are rewards already."""
        has_rewards = self._finished or (self.facts.start[self.running] < self.now).any()
        if has_rewards or self.buffer.num_episodes:
            return False
        self._held.end()
        adopt_reward_shape(self.buffer, shape)
        self._held.open()
        rewards = self.buffer.metadata.fields["reward"]
        self.staging.redefine("reward", rewards, self.now)
        self._returns = np.zeros((self._num_envs, *shape)), np.zeros((self._num_envs, *shape))
        return True

    @property
    def fields(self) -> Mapping[str, Field]:
        """Those of the rows that come next."""
        return self.staging.fields

    def change_fields(self, fields: Mapping[str, Field]) -> GymReplayError | None:
        """Add fields to the buffer, of which rows so far hold their defaults, or give fields a wider dtype.

        Returns:
            What kept them from being changed, or None. Some may have changed already: an interrupt came when they had.
        """
        self._is_behind = True
        return change_fields(self.buffer, fields, self._check, self._catch_up)

    def _check(self, fields: Mapping[str, Field]) -> None:
        self.staging.check(fields)
        for block in self._finished:  # held back until the autoreset mode is known
            block.widen(self.staging.fields, _wider(self.staging.fields, fields), is_trial=True)

    def _catch_up(self, names: Collection[str] = ()) -> None:
        """Let the staging have the buffer's fields: those with these names, and those that it has with wider dtypes."""
        staged = self.staging.fields
        known = self.buffer.metadata.fields
        changed = {
            name: info for name, info in known.items() if (name in names or name in staged) and staged.get(name) != info
        }
        if changed:
            for block in self._finished:
                block.widen(staged, _wider(staged, changed))
            self.staging.add_fields(changed, self.now)
        self._is_behind = False

    # --- episodes begin and end ---

    def open(
        self, mask: Mask, seeds: Numbers, generators: npt.NDArray[np.uint64] | None, options: bytes, began: float
    ) -> None:
        """Let episodes begin whose first observations are in the row of now: those of an explicit reset."""
        self.facts.begin_reset(mask, self.now, began, seeds, generators, options)
        self._returns[self.now & 1][mask] = 0.0
        self._set(self.running | mask, self.waiting & ~mask)

    def step_on(self, rewards: npt.NDArray[Any]) -> None:
        """A step was staged in which no episode ended and none began."""
        now = self.now
        np.add(self._returns[now & 1], rewards, self._returns[~now & 1])
        self.now = now + 1  # before it the step is undone, after it done
        self.is_broken = False

    def open_waiting(
        self, rewards: npt.NDArray[Any], done: Mask, generators: npt.NDArray[np.uint64] | None, began: float
    ) -> None:
        """A step was staged that no episode ended in, and that was the first one of those that were waiting.

        It is what :meth:`advance` does then, in half of the time.

        Args:
            rewards, done: what it returned: nothing is done.
            generators, began: as of :meth:`advance`.
        """
        now, opened = self.now, self.waiting.nonzero()[0]
        returns = np.add(self._returns[now & 1], rewards, self._returns[~now & 1])
        self.facts.begin(opened, now + 1, began, generators)
        returns[opened] = 0.0
        # In one call: an interrupt comes before all of it or after it.
        self.__dict__.update(
            running=self.running | self.waiting,
            waiting=done,
            has_waiting=False,
            is_recording=True,
            now=now + 1,
            is_broken=False,
        )

    def advance(
        self,
        turn: TransitionKinds,
        rewards: npt.NDArray[Any],
        terminated: Mask,
        truncated: Mask,
        *,
        finals: Finals | None,
        generators: npt.NDArray[np.uint64] | None,
        began: float,
    ) -> None:
        """A step was staged: its observations and infos in the row after now, all else in that of now.

        Args:
            turn: what it was for each sub-environment.
            rewards, terminated, truncated: what it returned.
            finals: the last rows of the episodes that ended, where the row after now has those of the next episodes.
            generators: the generators' states before the resets that the step did, where they are known.
            began: when the step began.
        """
        now, finished = self.now, self._finished
        returns = np.add(self._returns[now & 1], rewards, self._returns[~now & 1])
        numbers, opened = turn.ended.nonzero()[0], turn.opened.nonzero()[0]
        if len(numbers):
            ends = terminated, truncated
            finished = [
                *finished,
                *self._take_out.take(numbers, now + 1, returns, ends, complete=True, finals=finals),
            ]
        if len(opened):
            if turn.opened is not self.waiting:
                # What is noted of an episode that has just ended is needed until the step is done.
                self._set(turn.running & ~turn.opened, turn.waiting, now=now + 1, _finished=finished)
            self.facts.begin(opened, now + 1, began, generators)
            returns[opened] = 0.0
        self._set(turn.running, turn.waiting, now=now + 1, _finished=finished, is_broken=False)
        if finished and not self.on_hold:
            self.commit()
            if not self.is_recording:
                self._held.end()

    def lose(self, mask: Mask) -> None:
        """Nothing is known of these sub-environments, none of which is running, until an episode of theirs begins."""
        self._set(self.running, self.waiting & ~mask)

    def cut(self, mask: Mask, *, may_go_on: bool = True) -> None:
        """End what is running, before a reset or a close.

        Raises:
            StorageError: the disk refused. What could not be committed goes on where it was if it may, and else waits
                for the next commit.
        """
        running = self.running
        self._publish_cut(mask)
        try:
            self.commit()
        except StorageError:
            if not may_go_on:
                raise
            lost = [block.numbers for block in self._finished]
            still = running & mask & (self.facts.start == self.now)  # no transition yet
            for numbers in lost:
                still[numbers] = True
            self._set(self.running | still, self.waiting, _finished=[])
            raise

    def _publish_cut(self, mask: Mask) -> None:
        finished = self._finished
        numbers = np.flatnonzero(self.running & mask & (self.facts.start < self.now))
        if len(numbers) and self._keep:
            ends = np.zeros(self._num_envs, bool), np.ones(self._num_envs, bool)
            returns = self._returns[self.now & 1]
            finished = [*finished, *self._take_out.take(numbers, self.now, returns, ends, complete=False)]
        self._set(self.running & ~mask, self.waiting, _finished=finished, is_broken=False)

    def end(self) -> None:
        """Cut and commit all that is running, and let the buffer go.

        Raises:
            StorageError: the disk refused; it can be called again.
            Exception: what ``on_episode`` raised first, once all is committed.
        """
        self.refuse_within_on_episode()
        error = None
        if self._held.writer is not None:
            # What looks at episodes keeps no others from being committed.
            error = _raised_by(self.settle)
            later = _raised_by(lambda: self.cut(np.ones(self._num_envs, bool)))
            error = error or later
        self._held.end()
        self._forget()
        if error is not None:
            raise error

    def _forget(self) -> None:
        nothing = np.zeros(self._num_envs, bool)
        self._set(nothing, nothing, _finished=[], _error=None, is_broken=False)
        self.staging.release()

    # --- the commit ---

    def commit(self) -> None:
        """Commit all that has ended.

        Raises:
            EpisodeStateError: ``on_episode`` is looking at an episode.
            StorageError: the disk refused; what is left is kept, and committed by the next call that finds room.
            Exception: what ``on_episode`` raised first, once all is committed.
        """
        if self._is_judging:
            self.refuse_within_on_episode()
        while self._finished:
            writer = self._held.writer
            if writer is None or writer.metadata.circular:  # whose strings are made room for when it is opened
                writer = self._held.open()
            block = self._finished[0]
            if block.first_id is None or not block.is_committed(writer):
                if self._on_episode is not None:
                    block = self._judge(self._on_episode, block)
                    if self._held.writer is not writer:  # it was released by on_episode, and all that had ended with it
                        self._error = self._error or block.error
                        break
                    self._finished = [block, *self._finished[1:]]
                block.commit(writer)
            self._error = self._error or block.error
            self._finished = self._finished[1:]
            block.show_to(self.bounds)
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _judge(self, on_episode: OnEpisode, block: EndedEpisodes) -> EndedEpisodes:
        self._is_judging = True
        try:
            return judge_block(on_episode, self.buffer, block)
        finally:
            self._is_judging = False

    def refuse_within_on_episode(self) -> None:
        """Raise EpisodeStateError where ``on_episode`` is looking at an episode, which has not been committed yet."""
        if self._is_judging:
            raise EpisodeStateError(
                "on_episode: the recorder cannot be stepped, reset or closed while an episode of it is looked at; do "
                "that after the step, reset or close that ended the episode"
            )


def _wider(before: Mapping[str, Field], fields: Mapping[str, Field]) -> dict[str, Field]:
    """Those fields that were there with another dtype."""
    return {name: info for name, info in fields.items() if name in before and before[name].dtype != info.dtype}


def _raised_by(function: Callable[[], None]) -> Exception | None:
    """What a function raised, apart from the disk's refusals, which are passed on."""
    try:
        function()
    except StorageError:
        raise
    except Exception as error:
        return error
    return None
