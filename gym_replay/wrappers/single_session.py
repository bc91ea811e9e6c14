"""The session of a single recorder: one open episode, whose rows are bytes in a stage of the buffer's storage."""

from __future__ import annotations

import weakref
from array import array
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt

from gym_replay.buffer.door import Block, Encoders, Metadata, OpenRows, Piece, Stage, StagedRows, decoded_meta
from gym_replay.buffer.replay_buffer import ReplayBuffer
from gym_replay.errors import EpisodeStateError
from gym_replay.schema.fields import Field, to_array
from gym_replay.wrappers.bounds import BoundsCheck
from gym_replay.wrappers.episode_meta import FLAG_BYTES, meta_of_end
from gym_replay.wrappers.session import FinishedEpisode, OnEpisode, Session

_NUMBERS: Mapping[str, Callable[[list[Any]], Any]] = {"reward": partial(array, "d")}
"""Rewards are kept as they are until the commit, buffers of their bytes: to take these costs more."""

_FEW = 60
"""Rewards up to which they are summed faster one by one than as an array."""


class Episode:
    """An episode of a single environment, from its reset to its commit.

    Args:
        initial: row 0 of the state fields, as bytes.
        meta: the recorder's meta fields, as bytes.

    Attributes:
        noted: the user's meta fields.
        stage: the rows; None before the first step.
        ended_at: its length, where a step ended it.
        is_broken: a step was lost, so none may follow.
        is_complete: at its end, whether it was not cut.
        verdicts: whether it is kept, once ``on_episode`` has seen it.
        first_id: its id, once a commit was begun.
    """

    def __init__(self, initial: dict[str, bytes], meta: dict[str, bytes]) -> None:
        self.initial, self.meta = initial, meta
        self.noted: dict[str, Any] = {}
        self.stage: Stage | None = None
        self.ended_at, self.is_broken, self.is_complete = -1, False, False
        self.verdicts: list[bool] = []
        self.first_id: int | None = None
        self._pieces: Sequence[Piece] = ()

    def __len__(self) -> int:
        return 1

    @property
    def has_ended(self) -> bool:
        """Whether the last transition ended the episode."""
        return self.stage is not None and self.ended_at == len(self.stage)

    def finished(self, index: int, metadata: Metadata) -> FinishedEpisode:
        """The episode, as ``on_episode`` sees it."""
        assert self.stage is not None
        return FinishedEpisode(
            len(self.stage),
            self.stage.format.fields,
            self.stage.column,
            meta=self.noted,
            episode_return=_return_of(self.stage),
            complete=self.is_complete,
        )

    def set_meta(self, index: int, meta: Mapping[str, Any], encoders: Encoders) -> None:
        """Set meta fields of the user's."""
        encoders.meta(meta)
        self.noted.update(meta)

    def only(self, kept: Sequence[bool]) -> Episode:
        """The episode, which is kept."""
        return self

    def block(self, encoders: Encoders) -> Block:
        """What is committed."""
        stage, complete = self.stage, self.is_complete
        assert stage is not None
        self._pieces = pieces = stage.pieces()
        end = meta_of_end(self.meta, _return_of(stage, pieces), complete=complete)
        meta = {**self.meta, **end}
        if self.noted:
            meta |= encoders.meta(self.noted)
        return stage.block(pieces, meta, complete=complete)

    def show_to(self, bounds: BoundsCheck) -> None:
        """Let the rows, if they are committed, be compared with the bounds of their spaces."""
        if self.stage is not None and self.first_id is not None:
            bounds.add(self.first_id, self._pieces, self.stage.format.has_state)


class SingleSession(Session[Episode]):
    """The open episode of one recorder of a single environment.

    Args:
        owner, buffer, keep, bounds, on_episode: as of :class:`Session`.
        names: the fields of which each step brings an item, besides those of infos.
        forgotten: a method of ``owner`` that is called where no episode is open any more.

    Attributes:
        episode: the open episode; None where there is none.
    """

    def __init__(
        self,
        owner: object,
        buffer: ReplayBuffer,
        *,
        names: Sequence[str],
        keep: bool,
        bounds: BoundsCheck,
        on_episode: OnEpisode | None,
        forgotten: Callable[[], None],
    ) -> None:
        super().__init__(owner, buffer, keep=keep, bounds=bounds, on_episode=on_episode)
        self._step_names = self._names = tuple(names)
        self._forgotten = weakref.WeakMethod(forgotten)
        self.ended: Sequence[Episode] = []
        self.episode: Episode | None = None
        self._rows: StagedRows | None = None

    @property
    def stage(self) -> Stage | None:
        """The rows of the open episode; None before its first step."""
        return None if self.episode is None else self.episode.stage

    @property
    def fields(self) -> Mapping[str, Field]:
        return self.buffer.metadata.fields if (stage := self.stage) is None else stage.format.fields

    # --- the episode ---

    def begin(self, episode: Episode, info_names: Sequence[str] = ()) -> Stage:
        """Claim the buffer for the episode that a reset opened, and give it a stage for its rows.

        Args:
            episode: the episode.
            info_names: the fields of infos, of which each step brings an item behind the others.
        """
        if (names := (*self._step_names, *info_names)) != self._names:
            self._names = names
        self.claim.open()
        has_numbers = not self.buffer.metadata.fields["reward"].shape
        episode.stage = stage = self.claim.stage(episode.initial, self._names, _NUMBERS if has_numbers else {})
        stage.watch = self._watch
        return stage

    def _watch(self, pieces: Sequence[Piece]) -> None:
        self.bounds.add(self.claim.next_id, pieces, False)

    def annotate(self, meta: Mapping[str, Any]) -> None:
        """Set meta fields of the user's in the open episode."""
        self.buffer.encoders().meta(meta)
        if self.episode is None:
            raise EpisodeStateError("annotate: no episode is running; call it between a reset and the episode's end")
        for name, value in meta.items():
            is_plain = isinstance(value, (str, bool, int, float))
            self.episode.noted[name] = value if is_plain else np.array(to_array(value, name))

    def note_end(self, *, terminated: bool, truncated: bool) -> None:
        """The transition that is added next ends the episode; where an interrupt keeps it away, nothing does."""
        episode = self.episode
        if episode is not None and episode.stage is not None:  # and was not given up inside the step
            episode.stage.last = {"terminated": FLAG_BYTES[terminated], "truncated": FLAG_BYTES[truncated]}
            episode.ended_at = len(episode.stage) + 1

    def note_lost_step(self) -> None:
        """A step was begun and did not end: the episode ends with the one before."""
        if self.episode is not None and self.episode.stage is not None:
            self.episode.is_broken = True

    # --- what a session does ---

    def _check_fields(self, fields: Mapping[str, Field]) -> None:
        if (stage := self.stage) is not None:
            stage.write_early()

    def _take_fields(self, names: Collection[str]) -> None:
        if (stage := self.stage) is None:
            return
        before, known = stage.format.fields, self.buffer.metadata.fields
        changed = {name: info for name, info in known.items() if before.get(name) != info}
        for brings in (True, False):
            if fields := {name: info for name, info in changed.items() if (name in names) is brings}:
                stage.change_format(stage.format.with_fields(fields, bring_items=brings))

    def _has_rewards(self) -> bool:
        return (stage := self.stage) is None or bool(len(stage))

    def _restage(self) -> None:
        assert self.episode is not None
        self.begin(self.episode, self._names[len(self._step_names) :])

    @property
    def has_open(self) -> bool:
        return self.stage is not None

    def open_rows(self) -> OpenRows | None:
        episode, rows = self.episode, self._rows
        if episode is None or (stage := episode.stage) is None:
            return None
        if rows is None or rows.stage is not stage:
            noted = partial(_noted, episode.noted, self.buffer)
            rows = self._rows = StagedRows(stage, noted)
        # One that has ended is about to be committed, with flags that its last transition does not have yet.
        return rows.follow(None if episode.ended_at < 0 else episode.ended_at - 1)

    def _cut_all(self) -> None:
        self.catch_up()
        episode, stage = self.episode, self.stage
        if episode is None or stage is None:
            return
        episode.is_complete = episode.has_ended
        if len(stage) and (episode.is_complete or self._keep):
            if not episode.is_complete:
                stage.last = {"truncated": FLAG_BYTES[True]}
            self.ended = [episode]
            try:
                self.commit()
            finally:
                if not self.ended:
                    self.episode = None
        self.episode = None

    def forget(self) -> None:
        self.claim.close()
        self.episode, self.ended, self._rows = None, [], None
        if (forgotten := self._forgotten()) is not None:
            forgotten()


def _noted(noted: Mapping[str, Any], buffer: ReplayBuffer) -> Mapping[str, npt.NDArray[Any]]:
    """What the user noted of an open episode."""
    encoders = buffer.encoders()
    return decoded_meta(encoders.metadata, encoders.meta(noted)) if noted else {}


def _return_of(stage: Stage, pieces: Sequence[Piece] = ()) -> Any:
    """The sum of the rewards, one after another: a float, or an array for rewards of several values.

    ``pieces`` are those of the whole stage, where they are made already.
    """
    length = len(stage)
    if stage.format.fields["reward"].shape:
        total: npt.NDArray[np.float64] = np.cumsum(stage.column("reward"), axis=0)[-1]
        return total + 0.0  # as if summed from 0.0 on: no -0.0
    if length <= _FEW and stage.early is None:
        return float(deque(accumulate(stage.items("reward"), initial=0.0), 1)[0])
    if pieces and stage.early is None:
        data = next(data for name, _, _, data in pieces if name == "reward")
        rewards = np.frombuffer(data, np.float64, length)
    else:
        rewards = stage.column("reward")
    return float(np.cumsum(rewards)[-1]) + 0.0
