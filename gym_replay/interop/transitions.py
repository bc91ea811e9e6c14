"""The transitions of a buffer, read in blocks: what every exporter to flat arrays goes through."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gym_replay.buffer.door import require_buffer, snapshots_of
from gym_replay.buffer.episode import Episode
from gym_replay.errors import EmptyBufferError, EpisodeEvictedError, FieldError
from gym_replay.interop.old_data import as_flags, as_steps
from gym_replay.notices import did_you_mean
from gym_replay.schema.arrays import Array, Bools, Ints
from gym_replay.schema.fields import Field

if TYPE_CHECKING:
    from gym_replay.buffer.loading.selection import Episodes
    from gym_replay.buffer.loading.source import Source
    from gym_replay.buffer.reading import Readable

NamesLike = Mapping[str, str | None]

_STEPS_AT_ONCE = 1 << 14
_BYTES_AT_ONCE = 1 << 23


_NAMES: dict[str, str | None] = {name: name for name in ("observation", "action", "reward", "terminated", "truncated")}


@dataclass(frozen=True)
class Roles:
    """Which fields are the parts of a transition.

    Args:
        observations, actions: names of fields by the rest of the name below the part's; ``""`` of a field that is the
            whole part.
        reward: name of a field.
        terminated, truncated: names of fields; None of a flag that is False everywhere.
    """

    observations: dict[str, str]
    actions: dict[str, str]
    reward: str
    terminated: str | None
    truncated: str | None

    @property
    def names(self) -> list[str]:
        """All fields that are read."""
        flags = [name for name in (self.terminated, self.truncated) if name is not None]
        return [*self.observations.values(), *self.actions.values(), self.reward, *flags]

    @classmethod
    def find(cls, schema: Mapping[str, Field], given: NamesLike | None) -> Roles:
        """The fields of a schema.

        Args:
            schema: the fields.
            given: what parts are called that are not called as the recorder does it. A name stands for one field, or
                for all that are below: ``observation.camera``.

        Raises:
            FieldError: a name is given for something else, a part is missing, is ragged, or a flag is no single value.
        """
        if unknown := [name for name in given or () if name not in _NAMES]:
            raise FieldError(f"names: unknown part {unknown[0]!r}{did_you_mean(unknown[0], _NAMES)}")
        names: dict[str, Any] = {**_NAMES, **(given or {})}
        observations, actions = (_leaves_below(schema, names[root]) for root in ("observation", "action"))
        check_flags(schema, names["terminated"], names["truncated"])
        only_one(_leaves_below(schema, names["reward"]), "reward", "a transition")
        return cls(observations, actions, names["reward"], names["terminated"], names["truncated"])


def _leaves_below(schema: Mapping[str, Field], root: str) -> dict[str, str]:
    found = {name.removeprefix(root).removeprefix("."): name for name in schema if f"{name}.".startswith(f"{root}.")}
    if not found:
        near = did_you_mean(root, schema)
        raise FieldError(f"there is no field {root!r} (names={{...}} says what it is called here){near}")
    if ragged := [name for name in found.values() if schema[name].ragged]:
        raise FieldError(f"field {ragged[0]!r} is ragged; arrays of one shape cannot hold it")
    return found


def only_one(leaves: Mapping[str, str], root: str, what: str) -> str:
    """The one field of a part.

    Raises:
        FieldError: it has several.
    """
    names = list(leaves.values())
    if len(names) != 1:
        raise FieldError(f"{what} takes one array of {root}s, this buffer has {names}; name one with names={{...}}")
    return names[0]


def check_flags(schema: Mapping[str, Field], *names: str | None) -> None:
    """Raise FieldError where a flag is no field of one value a step; None is no flag."""
    for name in names:
        if name is not None:
            field = schema[only_one(_leaves_below(schema, name), name, "a transition")]
            if math.prod(field.shape) != 1:
                raise FieldError(f"field {name!r}: expected one flag a step, got shape {field.shape}")


def recorded_space(buffer: Readable, kind: str) -> Any:
    """The recorded observation or action space.

    Raises:
        FieldError: none is stored.
    """
    from gym_replay.spaces import space_from_json

    stored = (buffer.metadata.environment or {}).get(f"{kind}_space")
    if stored is None:
        raise FieldError(f"no {kind} space is stored, since the buffer was not recorded; pass {kind}_space=...")
    return space_from_json(stored)


class ChosenEpisodes(Sequence[Episode]):
    """The chosen episodes, each made when it is asked for; of a ring, whose rows are overwritten, each is a copy.

    Args:
        buffer: a ReplayBuffer or ConcatReplayBuffer.
        episodes: as in ``buffer.dataloader``.

    Attributes:
        indices: int64 ``(episodes,)``: their indices in the buffer.

    Raises:
        EmptyBufferError: there is none.
    """

    def __init__(self, buffer: Readable, episodes: Episodes | None) -> None:
        from gym_replay.buffer.loading.selection import EpisodeValues, selected  # Source would import torch

        self._parts = snapshots_of(buffer)
        self._firsts = np.cumsum([0, *map(len, self._parts)])
        self.indices = np.flatnonzero(selected(EpisodeValues(self._parts), episodes))
        if not len(self.indices):
            raise EmptyBufferError("there is no episode to take; record some, or choose others")

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, item: Any) -> Any:
        index = int(self.indices[item])
        owner = int(np.searchsorted(self._firsts, index, side="right")) - 1
        episode = Episode(self._parts[owner], index - int(self._firsts[owner]))
        return episode.copy() if episode.snapshot.metadata.circular else episode


@dataclass(frozen=True)
class Block:
    """Some of the transitions, in arrays ``(transitions, *field.shape)``.

    Args:
        index: where they are among all of them, or which rows of an order they are.
        observations, next_observations, actions: by what is below the part's name. There are no next observations
            where they are not needed. Integer actions of shape (1,) are single numbers where no space was recorded.
        reward: ``(transitions,)``, or ``(transitions, *shape)`` of several numbers each.
        terminated, truncated: bool ``(transitions,)``.
    """

    index: slice
    observations: dict[str, Array]
    next_observations: dict[str, Array]
    actions: dict[str, Array]
    reward: Array
    terminated: Bools
    truncated: Bools


class Transitions:
    """The transitions of the chosen episodes, one after another.

    Args:
        buffer: a ReplayBuffer or ConcatReplayBuffer.
        names: what the parts are called here.
        episodes: as in ``buffer.dataloader``.
        need_next: leave out transitions whose next observation is not recorded, and warn of it.

    Attributes:
        schema: the fields.
        roles: which of them are what.
        rows: int64 ``(transitions,)``, over all parts of ``source``.
        owners: int64 ``(transitions,)``, ascending: the episode of each, counted over the chosen ones.
    """

    def __init__(
        self, buffer: Readable, *, names: NamesLike | None, episodes: Episodes | None, need_next: bool = True
    ) -> None:
        from gym_replay.buffer.loading.source import Source

        require_buffer(buffer)
        self.schema = buffer.metadata.fields
        self.roles = Roles.find(self.schema, names)
        self._need_next = need_next
        self._has_action_space = (buffer.metadata.environment or {}).get("action_space") is not None
        observations = self.roles.observations.values()
        if need_next and (wrong := [name for name in observations if not self.schema[name].state]):
            raise FieldError(
                f"field {wrong[0]!r} is no state field, so next observations are not known; declare it with "
                "Field(..., state=True)"
            )
        self.source: Source = Source(buffer.snapshots(), episodes=episodes)
        self.source.require_up_to_date(self.roles.names)
        counts = self.source.lengths - (~self.source.has_final if need_next else 0)
        self.rows = np.repeat(self.source.starts - np.cumsum(counts) + counts, counts) + np.arange(counts.sum())
        self.owners = np.repeat(np.arange(len(counts)), counts)
        if missing := int(self.source.lengths.sum() - counts.sum()):
            warnings.warn(
                f"{missing} transitions are left out: they are the last of episodes whose last observation was not "
                "stored, so there is no next observation",
                stacklevel=3,
            )
        if not len(self.rows):
            raise EmptyBufferError("the chosen episodes have no transition with a next observation")

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def is_last(self) -> Bools:
        """Which ones are the last of their episode that are here, bool ``(transitions,)``."""
        return np.append(np.diff(self.owners) != 0, True)

    def blocks(self, order: Ints | None = None) -> Iterator[Block]:
        """Transitions, so many at once that little memory is needed.

        Args:
            order: int64 ``(count, width)``: numbers of transitions, row after row; ``index`` of a block then counts
                these rows, and its arrays have ``width`` transitions for each. None: all transitions in their order.

        Raises:
            EpisodeEvictedError: an episode left its circular buffer before it was read.
        """
        largest = max(field.nbytes for field in self.schema.values() if not field.ragged)
        count, width = (len(self), 1) if order is None else order.shape
        at_once = max(1, min(_STEPS_AT_ONCE, _BYTES_AT_ONCE // max(1, largest)) // width)
        for low in range(0, count, at_once):
            index = slice(low, min(low + at_once, count))
            numbers = index if order is None else order[index].reshape(-1)
            yield self._block(index, self.rows[numbers])
            if not self.source.are_live(np.unique(self.owners[numbers])):
                raise EpisodeEvictedError(
                    "an episode was evicted from the circular buffer while it was read; try again"
                )

    def _block(self, index: slice, rows: Ints) -> Block:
        roles = self.roles

        def take(leaves: Mapping[str, str], later: int = 0) -> dict[str, Array]:
            return {part: self.source.rows.take(name, rows + later) for part, name in leaves.items()}

        actions = take(roles.actions)
        flags = [
            np.zeros(len(rows), np.bool_) if name is None else as_flags(name, take({"": name})[""], len(rows))
            for name in (roles.terminated, roles.truncated)
        ]
        return Block(
            index,
            take(roles.observations),
            take(roles.observations, 1) if self._need_next else {},
            actions if self._has_action_space else {part: as_steps("action", each) for part, each in actions.items()},
            as_steps("reward", take({"": roles.reward})[""]),
            *flags,
        )
