"""The session of a single recorder: one open episode, whose rows are bytes in a stage of the buffer's storage."""

from __future__ import annotations

import weakref
from array import array
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from gym_replay.buffer.door import Block, Encoders, Metadata, OpenRows, Stage, StagedRows, decoded_meta
from gym_replay.buffer.replay_buffer import ReplayBuffer
from gym_replay.errors import EpisodeStateError
from gym_replay.schema.fields import Field, to_array
from gym_replay.spaces import Leaf
from gym_replay.wrappers.episode_meta import FLAG_BYTES, meta_of_end
from gym_replay.wrappers.session import FinishedEpisode, Session

_NUMBERS: Mapping[str, Callable[[list[Any]], Any]] = {"reward": partial(array, "d")}
"""Rewards are kept as they are until the commit, buffers of their bytes: to take these costs more."""

_TERMINATED, _TRUNCATED = {"terminated": FLAG_BYTES[True]}, {"truncated": FLAG_BYTES[True]}
_LAST = {(True, False): _TERMINATED, (False, True): _TRUNCATED, (True, True): {**_TERMINATED, **_TRUNCATED}}
"""Which flags the last transition of an episode has, where it is terminated, and truncated."""


class Episode:
    """An episode of a single environment, from its reset to its commit.

    Args:
        initial: row 0 of the state fields, as bytes.
        meta: the recorder's meta fields, as bytes.

    Attributes:
        noted: the user's meta fields.
        stage: the rows; None before the first step.
        is_broken: a step was lost, so none may follow.
        is_complete: at its end, whether it was not cut.
        verdicts: whether it is kept, once ``on_episode`` has seen it.
        first_id: its id, once a commit was begun.
    """

    def __init__(self, initial: dict[str, bytes], meta: dict[str, bytes]) -> None:
        self.initial, self.meta = initial, meta
        self.noted: dict[str, Any] = {}
        self.stage: Stage | None = None
        self.is_broken, self.is_complete = False, False
        self.verdicts: list[bool] = []
        self.first_id: int | None = None

    def __len__(self) -> int:
        return 1

    @property
    def has_ended(self) -> bool:
        """Whether the last transition ended the episode."""
        return self.stage is not None and self.stage.has_ended

    def finished(self, index: int, metadata: Metadata) -> FinishedEpisode:
        """The episode, as ``on_episode`` sees it."""
        assert self.stage is not None
        return FinishedEpisode(
            len(self.stage),
            self.stage.format.fields,
            self.stage.column,
            meta=self.noted,
            episode_return=_return_of(self.stage.column("reward")),
            complete=self.is_complete,
        )

    def set_meta(self, index: int, meta: Mapping[str, Any], encoders: Encoders) -> None:
        """Set meta fields of the user's."""
        encoders.meta(meta)
        self.noted.update(meta)

    def only(self, kept: Sequence[bool]) -> Episode:
        """The episode, which is kept."""
        return self

    def block(self, buffer: ReplayBuffer) -> Block:
        """What is committed to the buffer."""
        stage, complete = self.stage, self.is_complete
        assert stage is not None
        meta = dict(self.meta)
        block = stage.block(meta, complete=complete)
        total = _return_of(stage.column("reward", block.rows["reward"]))
        meta |= meta_of_end(meta, total, complete=complete)
        if self.noted:
            meta |= buffer.encoders().meta(self.noted)
        return block


class SingleSession(Session[Episode]):
    """The open episode of one recorder of a single environment.

    Args:
        owner, buffer, leaves, extra_names, options: as of :class:`Session`.
        forgotten: a method of ``owner`` that is called where the open episode was given up.

    Attributes:
        episode: the open episode; None where there is none.
    """

    def __init__(
        self,
        owner: object,
        buffer: ReplayBuffer,
        leaves: Sequence[Leaf],
        extra_names: Sequence[str],
        options: Mapping[str, Any],
        *,
        forgotten: Callable[[], None],
    ) -> None:
        super().__init__(owner, buffer, leaves, extra_names, options)
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
        self.claim.open()
        names = (*self.names, *info_names) if info_names else self.names
        episode.stage = stage = self.claim.stage(episode.initial, names, _NUMBERS)
        stage.watch, stage.cut = self._watch, _TRUNCATED
        return stage

    def _watch(self, rows: Mapping[str, Any], first: int, end: int) -> None:
        self.bounds.add(self.claim.next_id, rows, [end], first)

    def annotate(self, meta: Mapping[str, Any]) -> None:
        """Set meta fields of the user's in the open episode."""
        self.buffer.encoders().meta(meta)
        if self.episode is None:
            raise EpisodeStateError("annotate: no episode is running; call it between a reset and the episode's end")
        for name, value in meta.items():
            is_plain = isinstance(value, (str, bool, int, float))
            self.episode.noted[name] = value if is_plain else np.array(to_array(value, name))

    def add_last(self, items: Sequence[Any], *, terminated: bool, truncated: bool) -> None:
        """Add the transition that ends the episode."""
        if (stage := self.stage) is not None:  # it was not given up inside the step
            stage.end(items, _LAST[terminated, truncated])

    def note_lost_step(self) -> None:
        """A step was begun and did not end: the episode ends with the one before."""
        if self.episode is not None and self.episode.stage is not None:
            self.episode.is_broken = True

    # --- what a session does ---

    def _check_fields(self, fields: Mapping[str, Field]) -> None:
        if (stage := self.stage) is not None:
            stage.write_early()
            stage.check(fields)

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
        assert self.stage is not None
        self.begin(self.episode, self.stage.format.names[len(self.names) :])

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
        return rows.follow(len(stage) - 1 if stage.has_ended else None)

    def _cut_all(self) -> None:
        self.catch_up()
        episode = self.episode
        if episode is None or (stage := episode.stage) is None:
            return
        episode.is_complete = stage.has_ended
        if stage.has_ended or (self._keep and len(stage)):
            self.ended = [episode]
            try:
                self._commit_ended()
            finally:
                if not self.ended:
                    self.episode = None
        self.episode = None

    def forget(self) -> None:
        self.claim.close()
        self.episode, self.ended, self._rows = None, [], None

    def _give_up(self) -> None:
        super()._give_up()
        if (forgotten := self._forgotten()) is not None:
            forgotten()


def _noted(noted: Mapping[str, Any], buffer: ReplayBuffer) -> Mapping[str, npt.NDArray[Any]]:
    """What the user noted of an open episode."""
    encoders = buffer.encoders()
    return decoded_meta(encoders.metadata, encoders.meta(noted)) if noted else {}


def _return_of(rewards: npt.NDArray[np.float64]) -> Any:
    """The sum of rewards, one after another as if from 0.0 on: a float, or an array for rewards of several values."""
    total = np.add.accumulate(rewards)[-1] + 0.0  # no -0.0
    return total if total.shape else float(total)
