"""A recording session: the episodes that a recorder has open, from their reset to their commit.

A session knows the buffer, and not the environment: it can end its episodes after the recorder is garbage. The single
and the vector recorder have one each, which differ in how a step is staged. What is the same is here: claiming the
buffer, adding and widening fields while episodes are open, showing ended episodes to ``on_episode``, the commit, the
end, and giving up where the buffer is released.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from gym_replay.buffer.door import Block, Encoders, Metadata, OpenRows, Turns
from gym_replay.buffer.replay_buffer import ReplayBuffer
from gym_replay.errors import EpisodeStateError, FieldError, GymReplayError, StorageError
from gym_replay.schema.fields import Field
from gym_replay.spaces import Leaf
from gym_replay.wrappers.bounds import BoundsCheck
from gym_replay.wrappers.infos import is_info
from gym_replay.wrappers.recorded_schema import refuse_own_meta


class FinishedEpisode:
    """An episode that has ended and is about to be committed.

    ``len(episode)`` is T and ``episode["reward"]`` a field's rows, ``(T, *field.shape)``, T+1 for state fields; not for
    ragged fields.

    Attributes:
        complete: False where it was cut by a reset or a close.
        episode_return: the sum of its rewards.
        meta: the meta values set by ``annotate`` so far.
        env_index: the sub-environment of a vector environment; 0 of a single one.
    """

    def __init__(
        self,
        length: int,
        fields: Mapping[str, Field],
        column: Callable[[str], npt.NDArray[Any]],
        *,
        meta: Mapping[str, Any],
        episode_return: Any,
        complete: bool,
        env_index: int = 0,
    ) -> None:
        self._length, self._fields, self._column = length, fields, column
        self.meta, self.episode_return = dict(meta), episode_return
        self.complete, self.env_index = complete, env_index

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        field = self._fields.get(name)
        if field is None or field.ragged:
            raise FieldError(f"{name!r}: expected one of {list(self)}, and no ragged one")
        return self._column(name)


OnEpisode: TypeAlias = Callable[[FinishedEpisode], "Mapping[str, Any] | bool | None"]
"""Looks at an episode before its commit: meta values to set, False to discard it, anything else to keep it."""


_E = TypeVar("_E", bound="Ended")


class Ended(Protocol):
    """Episodes that have ended and are committed together.

    Attributes:
        verdicts: whether each one is kept, of those that ``on_episode`` has seen.
        first_id: the id of the first episode, once a commit was begun.
    """

    verdicts: list[bool]
    first_id: int | None

    def __len__(self) -> int: ...

    def finished(self, index: int, metadata: Metadata) -> FinishedEpisode:
        """One of the episodes, as ``on_episode`` sees it."""

    def set_meta(self, index: int, meta: Mapping[str, Any], encoders: Encoders) -> None:
        """Set meta fields of the user's in one of the episodes."""

    def only(self: _E, kept: Sequence[bool]) -> _E:
        """The episodes that are kept, of which there are some."""

    def block(self, buffer: ReplayBuffer) -> Block:
        """What is committed to the buffer."""


class Session(ABC, Generic[_E]):
    """The open episodes of one recorder.

    Args:
        owner: the recorder; the session holds no reference to it.
        buffer: where the episodes go.
        leaves: the fields of observations and actions.
        extra_names: the fields that the user sets.
        options: the recorder's keywords.

    Attributes:
        claim: the buffer, kept for these episodes.
        bounds: compares what was committed with the bounds of the spaces.
        names: the fields of which each step brings a value, besides the flags and those of infos.
        ended: episodes that have ended and are not committed yet, the oldest first.
        turns: ends and commits, in the middle of which a signal handler may close the recorder.
    """

    ended: Sequence[_E]

    def __init__(
        self,
        owner: object,
        buffer: ReplayBuffer,
        leaves: Sequence[Leaf],
        extra_names: Sequence[str],
        options: Mapping[str, Any],
    ) -> None:
        self.buffer = buffer
        self.names = (*(leaf.name for leaf in leaves), "reward", *extra_names)
        self.claim = buffer.claim(owner, self.end, self._give_up, self.open_rows)
        fields, derived = buffer.metadata.fields, buffer.metadata.derived
        written = {name: info for name, info in fields.items() if not (is_info(name) or name in derived)}
        self.claim.require_fields({name: None if name == "reward" else info for name, info in written.items()})
        self.bounds = BoundsCheck([replace(leaf, field=fields[leaf.name]) for leaf in leaves])
        self._keep = options["on_incomplete"] == "keep"
        self._on_episode: OnEpisode | None = options["on_episode"]
        self._is_circular = buffer.circular
        self.turns = Turns()
        self._is_shown = False  # an episode is looked at just now
        self._error: BaseException | None = None  # of looking at episodes, until all that ended are committed
        self._is_behind = False  # the buffer's fields may have changed, and those of the open episodes not yet

    # --- what a step is staged in ---

    @property
    @abstractmethod
    def fields(self) -> Mapping[str, Field]:
        """The fields of the rows that come next; another object after each change."""

    @abstractmethod
    def annotate(self, meta: Mapping[str, Any]) -> None:
        """Set meta fields of the user's in the episodes that are running.

        Raises:
            FieldError: a field is unknown or its value does not fit.
            EpisodeStateError: no episode is running.
        """

    @abstractmethod
    def _check_fields(self, fields: Mapping[str, Field]) -> None:
        """Raise FieldError where a value of an open episode would change in the wider dtype of a field."""

    @abstractmethod
    def _take_fields(self, names: Collection[str]) -> None:
        """Give open episodes the buffer's fields; of those with these names each step brings an item."""

    @abstractmethod
    def _has_rewards(self) -> bool:
        """Whether a reward is staged, or waits for its commit."""

    @abstractmethod
    def _restage(self) -> None:
        """Give open episodes, which have no reward yet, the buffer's present reward field."""

    @abstractmethod
    def _cut_all(self) -> None:
        """End all that is running, and commit it; where it cannot be committed, it is not lost."""

    @property
    @abstractmethod
    def has_open(self) -> bool:
        """Whether there is anything that is not committed, or is not known to be."""

    @abstractmethod
    def open_rows(self) -> OpenRows | None:
        """The rows of the episodes that are running; None where there is no transition of them."""

    @abstractmethod
    def forget(self) -> None:
        """Forget all that is open."""

    def _give_up(self) -> None:
        """The buffer was released: somebody else may write to it now."""
        if not self._is_shown:
            self._error = None
        self.forget()

    # --- fields that change while episodes are open ---

    def change_fields(self, fields: Mapping[str, Field]) -> GymReplayError | None:
        """Add fields to the buffer, whose rows so far hold their defaults, or give fields a wider dtype.

        Args:
            fields: all of them change, or none.

        Returns:
            What kept them from being changed, or None. Some may have changed already: an interrupt came when they had.
        """
        self._is_behind = True
        failure: GymReplayError | None = None
        try:
            self._check_fields(fields)
            known = self.buffer.metadata.fields
            changed = {name: info for name, info in fields.items() if known.get(name) != info}
            self.buffer.widen_schema(changed, while_open=True)
        except (FieldError, StorageError) as error:
            self.buffer.acquire()  # opens the files again, where also that was refused
            failure = error.with_traceback(None)  # which would keep files open
        self._catch_up(fields.keys())
        known = self.buffer.metadata.fields
        return failure if any(known.get(name) != info for name, info in fields.items()) else None

    def _catch_up(self, names: Collection[str] = ()) -> None:
        self._take_fields(names)
        self._is_behind = False

    def catch_up(self) -> None:
        """Give open episodes the buffer's fields, where an interrupt came while those were changed."""
        if self._is_behind:
            self.buffer.acquire()
            self._catch_up()

    def adopt_reward_shape(self, shape: tuple[int, ...]) -> bool:
        """Let rewards have another shape; False where there are rewards already."""
        if self._has_rewards() or self.buffer.num_episodes:
            return False
        self.claim.close()
        metadata, rewards = self.buffer.metadata, Field("float64", shape)
        meta_fields = {**metadata.meta_fields, "episode_return": rewards}
        self.buffer.redefine({**metadata.fields, "reward": rewards}, meta_fields)
        self.claim.open()
        self._restage()
        return True

    # --- ended episodes ---

    def commit(self) -> None:
        """Commit all that has ended.

        Raises:
            EpisodeStateError: ``on_episode`` is looking at an episode.
            StorageError: the disk refused; what is left is kept, and committed by the next call that finds room.
            Exception: what ``on_episode`` raised first, once all is committed.
        """
        if self._is_shown:
            self.refuse_within_on_episode()
        self.turns.take(self._commit_ended)

    def _commit_ended(self) -> None:
        claim = self.claim
        while all_ended := self.ended:
            ended = all_ended[0]
            if not claim.is_open:
                claim.open()
            if self._on_episode is not None and not claim.is_committed(ended.first_id):
                try:
                    self._show(self._on_episode, ended)
                except BaseException:  # an interrupt: what was looked at is not lost to it
                    if self.ended and len(ended.verdicts) == len(ended):
                        self._write()
                    raise
                if not claim.is_open:  # on_episode released the buffer, and what had ended was forgotten
                    break
            self._write()
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _show(self, on_episode: OnEpisode, ended: _E) -> None:
        """Let ``on_episode`` see each episode, once; one that it fails at is kept."""
        encoders = self.buffer.encoders()
        for index in range(len(ended.verdicts), len(ended)):
            episode = ended.finished(index, encoders.metadata)
            ended.verdicts.append(True)
            self._is_shown = True
            try:
                said = on_episode(episode)
                meta = said if isinstance(said, Mapping) else {}
                refuse_own_meta(meta, encoders.metadata)
                ended.set_meta(index, meta, encoders)
                ended.verdicts[index] = not (isinstance(said, (bool, np.bool_)) and not said)
            except Exception as error:
                self._error = self._error or error
            finally:
                self._is_shown = False

    def _write(self) -> None:
        """Commit the oldest of what has ended, unless that was done before an interrupt, and have done with it."""
        ended, *others = self.ended
        if not all(ended.verdicts):
            if not any(ended.verdicts):
                self.ended = others
                return
            ended = ended.only(ended.verdicts)
            self.ended = [ended, *others]
        block, claim = ended.block(self.buffer), self.claim
        if ended.first_id is None or not claim.is_committed(ended.first_id):
            if self._is_circular:
                claim.open()  # which makes room for strings
            ended.first_id = claim.next_id
            claim.commit(block)
        self.ended = others
        self.bounds.add(ended.first_id, block.rows, block.lengths, block.early.length if block.early else 0)

    def refuse_within_on_episode(self) -> None:
        """Raise EpisodeStateError where ``on_episode`` is looking at an episode, which is not committed yet."""
        if self._is_shown:
            raise EpisodeStateError(
                "on_episode: the recorder cannot be stepped, reset or closed while an episode of it is looked at; do "
                "that after the step, reset or close that ended the episode"
            )

    # --- the end ---

    def end(self) -> None:
        """End and commit all that is open, and let the buffer take other episodes.

        Raises:
            EpisodeStateError: ``on_episode`` is looking at an episode.
            StorageError: the disk refused; it can be called again.
            Exception: what ``on_episode`` raised first, once all is committed.
        """
        self.refuse_within_on_episode()
        self.turns.take(self._end)

    def _end(self) -> None:
        try:
            if self.claim.is_open:
                self._cut_all()
        except BaseException:
            if not self.claim.is_open or not self.has_open:
                self.forget()
            raise
        self.forget()
