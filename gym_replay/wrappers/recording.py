"""The episode that a recorder has under way, apart from the environment: it can end after the wrapper is gone."""

from __future__ import annotations

import weakref
from array import array
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from itertools import accumulate
from typing import Any, NoReturn, TypeAlias

import numpy as np
import numpy.typing as npt

from gym_replay.buffer.door import FolderWriter, Packer, Piece, Stage
from gym_replay.buffer.open_episode import HeldEpisodes, raise_too_long
from gym_replay.buffer.replay_buffer import ReplayBuffer
from gym_replay.errors import EpisodeStateError, FieldError, GymReplayError, StorageError
from gym_replay.schema.fields import Field
from gym_replay.wrappers.bounds import BoundsCheck
from gym_replay.wrappers.episode_facts import FLAG_BYTES, facts_of_end
from gym_replay.wrappers.recorded_schema import refuse_own_meta
from gym_replay.wrappers.rewards import adopt_reward_shape

OnEpisode: TypeAlias = "Callable[[FinishedEpisode], Mapping[str, Any] | bool | None]"
"""Looks at an episode before its commit: meta values to set, False to discard it, anything else to keep it."""


_NUMBERS: Mapping[str, Packer] = {"reward": partial(array, "d")}
"""Rewards are kept as they are until the commit, buffers of their bytes: to take these costs more."""

_FEW = 60
"""Rewards up to which they are summed faster one by one than as an array."""


def change_fields(
    buffer: ReplayBuffer,
    fields: Mapping[str, Field],
    check: Callable[[Mapping[str, Field]], None],
    catch_up: Callable[[Collection[str]], None],
) -> GymReplayError | None:
    """Add fields to a buffer, or give fields a wider dtype, while episodes are open.

    Args:
        buffer: which buffer.
        fields: all of them change, or none.
        check: raises FieldError where a value of an open episode would change in a wider dtype.
        catch_up: lets the open episodes have the buffer's fields as they are then, with values of those that changed.

    Returns:
        What kept them from being changed, or None.
    """
    try:
        check(fields)
        known = buffer.metadata.fields
        changed = {name: info for name, info in fields.items() if known.get(name) != info}
        buffer.widen_schema(changed, while_open=True)
    except (FieldError, StorageError) as error:
        buffer.acquire()  # opens the files again, where also that was refused
        catch_up(fields.keys())
        known = buffer.metadata.fields
        if any(known.get(name) != info for name, info in fields.items()):
            return error.with_traceback(None)  # which would keep files open
        return None
    catch_up(fields.keys())
    return None


class FinishedEpisode:
    """An episode that has ended and is about to be committed.

    ``len(episode)`` is T and ``episode["reward"]`` a field's rows, ``(T, *field.shape)``, T+1 for state fields; not for
    ragged fields.

    Attributes:
        complete: False where it was cut by a reset or a close.
        episode_return: the sum of its rewards.
        meta: the meta values set by ``annotate`` so far.
    """

    def __init__(self, stage: Stage, meta: Mapping[str, Any], episode_return: Any, *, complete: bool) -> None:
        self._stage = stage
        self.complete = complete
        self.episode_return = episode_return
        self.meta = dict(meta)

    def __len__(self) -> int:
        return len(self._stage)

    def __iter__(self) -> Iterator[str]:
        return iter(self._stage.format.fields)

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        field = self._stage.format.fields.get(name)
        if field is None or field.ragged:
            raise FieldError(f"{name!r}: expected one of {list(self)}, and no ragged one")
        return self._stage.column(name)


class Recording:
    """Opens, watches and ends the episodes of one recorder.

    Args:
        buffer: where they go.
        names: the fields of which each step brings an item.
        keep: whether episodes that are cut are kept.
        bounds: looks at what was committed.
        on_episode: looks at what is about to be.
        given_up: a method that is called where the buffer gives the episode up.
    """

    def __init__(
        self,
        buffer: ReplayBuffer,
        *,
        names: Sequence[str],
        keep: bool,
        bounds: BoundsCheck,
        on_episode: OnEpisode | None,
        given_up: Callable[[], None],
    ) -> None:
        self.buffer = buffer
        self.bounds = bounds
        self._held = HeldEpisodes(buffer, self._give_up)
        self._given_up = weakref.WeakMethod(given_up)  # of who holds this
        self._first_names = self._names = tuple(names)
        self._keep = keep
        self._has_bounds = bool(bounds.names)
        self._on_episode = on_episode
        self._verdict: tuple[Mapping[str, Any], bool] | None = None
        self._facts: dict[str, bytes] = {}
        self.meta: dict[str, Any] = {}
        self.guarded: FolderWriter | None = None  # the one before whose end the recorder ends its episode
        self.stage: Stage | None = None
        self._opening: tuple[Mapping[str, bytes], Mapping[str, bytes], dict[str, Any]] = {}, {}, {}
        self._is_judging = False
        self.is_broken = False  # a step was lost, so none may follow
        self._is_behind = False  # the buffer's fields may have changed, and those of the episode not yet
        self._ended_at = -1

    @property
    def writer(self) -> FolderWriter | None:
        """The buffer's, while an episode is open."""
        return self._held.writer

    @property
    def has_ended(self) -> bool:
        """Whether the last transition ended the episode."""
        return self.stage is not None and self._ended_at == len(self.stage)

    def note_end(self, *, terminated: bool, truncated: bool) -> None:
        """The transition that is added next ends the episode; where an interrupt keeps it away, nothing does."""
        if self.stage is not None:  # and was not given up inside the step
            self.stage.last = {"terminated": FLAG_BYTES[terminated], "truncated": FLAG_BYTES[truncated]}
            self._ended_at = len(self.stage) + 1

    def begin(
        self,
        initial: Mapping[str, bytes],
        facts: Mapping[str, bytes],
        meta: dict[str, Any],
        *,
        more_names: Sequence[str] = (),
    ) -> Stage:
        """Open an episode.

        Args:
            initial: row 0 of the state fields.
            facts: the meta fields known from the reset.
            meta: those set by the user, which may be more until the end.
            more_names: fields of which each step brings an item behind the others: those of infos.
        """
        writer = self._held.open()
        if (names := (*self._first_names, *more_names)) != self._names:
            self._names = names
        packers = {} if self._has_several_rewards else _NUMBERS
        stage = writer.stage(initial, self._names, packers)
        self._opening = initial, facts, meta
        self.is_broken, self._ended_at = False, -1
        self._verdict = None
        self._facts, self.meta = {**self.buffer.encoders().meta_defaults, **facts}, meta
        if self._has_bounds:
            stage.watch = self._watch
        self.stage = stage
        return stage

    def adopt_reward_shape(self, shape: tuple[int, ...]) -> Stage | None:
        """Let rewards have another shape, and open the episode anew; None where there are rewards already."""
        if self.stage is None or len(self.stage) or self.buffer.num_episodes:
            return None
        self._held.end()
        self._forget()
        adopt_reward_shape(self.buffer, shape)
        return self.begin(*self._opening, more_names=self._names[len(self._first_names) :])

    @property
    def _has_several_rewards(self) -> bool:
        return bool(self.buffer.metadata.fields["reward"].shape)

    @property
    def fields(self) -> Mapping[str, Field]:
        """Those of the rows that come next."""
        return self.buffer.metadata.fields if self.stage is None else self.stage.format.fields

    def change_fields(self, fields: Mapping[str, Field]) -> GymReplayError | None:
        """Add fields to the buffer, of which each step from now on brings an item, or give fields a wider dtype.

        Returns:
            What kept them from being changed, or None. Some may have changed already: an interrupt came when they had.
        """
        self._is_behind = True
        return change_fields(self.buffer, fields, self._check_stage, self._catch_up)

    def _check_stage(self, fields: Mapping[str, Field]) -> None:
        if self.stage is not None:
            self.stage.check(fields)

    def _catch_up(self, names: Collection[str] = ()) -> None:
        """Let the open episode have the buffer's fields; those with these names get an item from each step."""
        stage, known = self.stage, self.buffer.metadata.fields
        if stage is not None:
            before = stage.format.fields
            changed = {name: info for name, info in known.items() if before.get(name) != info}
            some = [
                {name: info for name, info in changed.items() if (name in names) is brings} for brings in (True, False)
            ]
            for fields, brings in zip(some, (True, False), strict=True):
                if fields:
                    stage.add_fields(stage.format.with_fields(fields, bring_items=brings))
        self._is_behind = False

    def _watch(self, pieces: Sequence[Piece]) -> None:
        assert self.writer is not None
        self.bounds.add(self.writer.counters.next, pieces, False)

    def raise_too_long(self) -> NoReturn:
        """Say which limit one more transition would exceed."""
        assert self.stage is not None
        raise_too_long(self.buffer.metadata, self.stage.longest)

    def end(self) -> None:
        """Commit the episode, or discard it: where it was cut and cut ones are not kept, or ``on_episode`` says so.

        Raises:
            EpisodeStateError: ``on_episode`` is looking at the episode.
            StorageError: the disk refused; the episode goes on where it was cut, and can be ended again.
        """
        self.refuse_within_on_episode()
        stage = self.stage
        if stage is None:
            return
        length = len(stage)
        complete = self._ended_at == length
        # Where the buffer was released meanwhile, nothing is left to commit to.
        if length and (complete or self._keep) and self.writer is not None:
            if not complete:
                stage.last = {"truncated": b"\x01"}
            try:
                self._commit(stage, complete=complete)
            except BaseException:
                if self.writer is None:
                    self._forget()
                raise
        self._held.end()
        self._forget()

    def _give_up(self) -> None:
        """The buffer was released: somebody else may write to it now."""
        self._forget()
        if (given_up := self._given_up()) is not None:
            given_up()

    def _forget(self) -> None:
        if self.stage is not None:
            self.stage.close()
        self.stage = None
        self.is_broken, self._ended_at = False, -1

    def _commit(self, stage: Stage, *, complete: bool) -> None:
        if self._is_behind:  # an interrupt came while fields were changed
            self.buffer.acquire()
            self._catch_up()
        pieces = stage.pieces()
        total = self._return_of(stage, pieces)
        facts = self._facts
        facts.update(facts_of_end(facts, total, complete=complete))
        if self._on_episode is not None and not self._is_kept(self._on_episode, stage, total, complete=complete):
            return
        writer = self.writer
        if writer is None:  # on_episode released the buffer
            return
        if self.meta:
            facts.update(self.buffer.encoders().meta(self.meta))
        begun = stage.commit_id
        if begun is not None and begun < writer.counters.next:  # an interrupt came after it
            return
        try:
            writer.commit(stage.block(pieces, facts, complete=complete))
        finally:
            if self._has_bounds and stage.commit_id is not None and stage.commit_id < writer.counters.next:
                self.bounds.add(stage.commit_id, pieces, stage.format.has_state)

    def _is_kept(self, on_episode: OnEpisode, stage: Stage, total: Any, *, complete: bool) -> bool:
        """Whether ``on_episode`` keeps the episode, with its meta fields then; it is asked once for each."""
        if self._verdict is None:
            self._verdict = {}, True  # the episode is not lost to what looks at it
            try:
                self._is_judging = True
                try:
                    said = on_episode(FinishedEpisode(stage, self.meta, total, complete=complete))
                finally:
                    self._is_judging = False
                self._verdict = self._judged(said)
            except BaseException:
                self._commit(stage, complete=complete)
                self._held.end()
                raise
        meta, is_kept = self._verdict
        self.meta.update(meta)
        return is_kept

    def _judged(self, said: Any) -> tuple[Mapping[str, Any], bool]:
        meta = said if isinstance(said, Mapping) else {}
        refuse_own_meta(meta, self.buffer.metadata)
        self.buffer.encoders().meta(meta)
        return meta, not (isinstance(said, (bool, np.bool_)) and not said)

    def refuse_within_on_episode(self) -> None:
        """Raise EpisodeStateError where ``on_episode`` is looking at the episode, which is not committed yet."""
        if self._is_judging:
            raise EpisodeStateError(
                "on_episode: the recorder cannot be stepped, reset or closed while an episode of it is looked at; do "
                "that after the step, reset or close that ended the episode"
            )

    def _return_of(self, stage: Stage, pieces: Sequence[Piece]) -> Any:
        """The sum of the rewards, one after another: a float, or an array for rewards of several values."""
        if self._has_several_rewards:
            return np.cumsum(stage.column("reward"), axis=0)[-1] + 0.0  # as if summed from 0.0 on: no -0.0
        if stage.spill is not None:
            return float(np.cumsum(stage.column("reward"))[-1]) + 0.0
        length = len(stage)
        if length > _FEW:
            data = next(data for name, _, _, data in pieces if name == "reward")
            return float(np.cumsum(np.frombuffer(data, np.float64, length))[-1]) + 0.0
        return float(deque(accumulate(stage.items("reward"), initial=0.0), 1)[0])
