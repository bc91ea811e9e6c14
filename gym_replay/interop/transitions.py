"""The transitions of a buffer, read in blocks: what every exporter to flat arrays goes through."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gym_replay.buffer.episode import Episode
from gym_replay.errors import EmptyBufferError, EpisodeEvictedError, FieldError
from gym_replay.interop.old_data import as_flags, as_steps
from gym_replay.schema.fields import Field

if TYPE_CHECKING:
    from gym_replay.buffer.loading.selection import Episodes
    from gym_replay.buffer.loading.source import Source
    from gym_replay.buffer.reading import Readable

Ints = npt.NDArray[np.int64]
Array = npt.NDArray[Any]
NamesLike = Mapping[str, str | None]

_STEPS_AT_ONCE = 1 << 14
_BYTES_AT_ONCE = 1 << 23


@dataclass(frozen=True)
class Names:
    """What a buffer calls the parts of a transition; the defaults are those of the recorder.

    ``observation`` and ``action`` stand for one field, or for all that are below: ``observation.camera``. A flag that
    is None is False everywhere.
    """

    observation: str = "observation"
    action: str = "action"
    reward: str = "reward"
    terminated: str | None = "terminated"
    truncated: str | None = "truncated"

    @classmethod
    def of(cls, given: NamesLike | None) -> Names:
        """The defaults, with those replaced that are given.

        Raises:
            FieldError: a name is given for something else.
        """
        known = [field.name for field in fields(cls)]
        if unknown := [name for name in given or () if name not in known]:
            raise FieldError(f"names: unknown part {unknown[0]!r}; the parts of a transition are {known}")
        return replace(cls(), **(given or {}))  # type: ignore[arg-type]


def leaves_below(schema: Mapping[str, Field], root: str) -> dict[str, str]:
    """The fields of a part: ``{"": root}``, or the rest of the name by the whole of it.

    Raises:
        FieldError: there is none, or one of them is ragged.
    """
    found = {name.removeprefix(root).removeprefix("."): name for name in schema if f"{name}.".startswith(f"{root}.")}
    if not found:
        raise FieldError(f"there is no field {root!r}; there are {list(schema)}: say which it is with names={{...}}")
    if ragged := [name for name in found.values() if schema[name].ragged]:
        raise FieldError(f"field {ragged[0]!r} is ragged; arrays of one shape cannot hold it")
    return found


def only_leaf(schema: Mapping[str, Field], root: str, what: str) -> str:
    """The one field of a part.

    Raises:
        FieldError: it has several.
    """
    leaves = list(leaves_below(schema, root).values())
    if len(leaves) != 1:
        raise FieldError(f"{what} takes one array of {root}s, this buffer has {leaves}; name one with names={{...}}")
    return leaves[0]


def check_flags(schema: Mapping[str, Field], names: Names) -> None:
    """Raise FieldError where a flag is no field of one value a step."""
    for name in (names.terminated, names.truncated):
        if name is not None and math.prod(schema[only_leaf(schema, name, "a transition")].shape) != 1:
            raise FieldError(f"field {name!r}: expected one flag a step, got shape {schema[name].shape}")


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

        self._parts = buffer.snapshots()
        self._firsts = np.cumsum([0, *map(len, self._parts)])
        self.indices = np.flatnonzero(selected(EpisodeValues(self._parts), episodes))
        if not len(self.indices):
            raise EmptyBufferError("there is no episode to export; record some, or choose others")

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, place: Any) -> Any:
        index = int(self.indices[place])
        owner = int(np.searchsorted(self._firsts, index, side="right")) - 1
        episode = Episode(self._parts[owner], index - int(self._firsts[owner]))
        return episode.copy() if episode.snapshot.metadata.circular else episode


class Transitions:
    """The transitions of the chosen episodes, one after another.

    Args:
        buffer: a ReplayBuffer or ConcatReplayBuffer.
        names: what the parts are called here.
        episodes: as in ``buffer.dataloader``.
        need_next: leave out transitions whose next observation is not recorded, and warn of it.

    Attributes:
        schema: the fields.
        observations, actions: names of the fields by what is below the root.
        rows: int64 ``(transitions,)``, over all parts of ``source``.
        ends: bool ``(transitions,)``: True at each episode's last one.
        has_action_space: whether the space that actions are of was recorded.
    """

    def __init__(
        self, buffer: Readable, *, names: NamesLike | None, episodes: Episodes | None, need_next: bool = True
    ) -> None:
        from gym_replay.buffer.loading.source import Source

        self.names = Names.of(names)
        self.schema = buffer.metadata.fields
        self.observations = leaves_below(self.schema, self.names.observation)
        self.actions = leaves_below(self.schema, self.names.action)
        only_leaf(self.schema, self.names.reward, "a transition")
        check_flags(self.schema, self.names)
        self.has_action_space = (buffer.metadata.environment or {}).get("action_space") is not None
        if need_next and (wrong := [name for name in self.observations.values() if not self.schema[name].state]):
            raise FieldError(
                f"field {wrong[0]!r} is no state field, so next observations are not known; declare it with "
                "Field(..., state=True)"
            )
        self.source: Source = Source(buffer.snapshots(), episodes=episodes)
        counts = self.source.lengths - (~self.source.has_final if need_next else 0)
        self.rows = np.repeat(self.source.starts - np.cumsum(counts) + counts, counts) + np.arange(counts.sum())
        self.owners = np.repeat(np.arange(len(counts)), counts)
        steps = self.rows - self.source.starts[self.owners]
        self.ends: npt.NDArray[np.bool_] = steps == self.source.lengths[self.owners] - 1
        missing = int(self.source.lengths.sum() - counts.sum())
        if missing:
            warnings.warn(
                f"{missing} transitions are left out: they are the last of episodes whose last observation was not "
                "stored, so there is no next observation",
                stacklevel=3,
            )
        if not len(self.rows):
            raise EmptyBufferError("the chosen episodes have no transition with a next observation")

    def __len__(self) -> int:
        return len(self.rows)

    def blocks(self) -> Iterator[Block]:
        """All transitions, so many at once that little memory is needed.

        Raises:
            EpisodeEvictedError: an episode left its circular buffer before it was read.
        """
        largest = max(field.nbytes for field in self.schema.values() if not field.ragged)
        at_once = max(1, min(_STEPS_AT_ONCE, _BYTES_AT_ONCE // max(1, largest)))
        for low in range(0, len(self), at_once):
            block = Block(self, slice(low, min(low + at_once, len(self))))
            yield block
            if not self.source.are_live(np.unique(self.owners[block.place])):
                raise EpisodeEvictedError(
                    "an episode was evicted from the circular buffer while it was read; try again"
                )


class Block:
    """Some of the transitions.

    Attributes:
        place: where they are among all of them.
    """

    def __init__(self, whole: Transitions, place: slice) -> None:
        self._whole = whole
        self.place = place
        self._rows = whole.rows[place]

    def take(self, name: str) -> Array:
        """A field's values, ``(transitions, *field.shape)``."""
        return self._whole.source.rows.take(name, self._rows)

    def following(self, name: str) -> Array:
        """A state field's values one row later."""
        return self._whole.source.rows.take(name, self._rows + 1)

    def flag(self, name: str | None) -> npt.NDArray[np.bool_]:
        """A flag, bool ``(transitions,)``; of None all False."""
        if name is None:
            return np.zeros(len(self._rows), np.bool_)
        return as_flags(name, self.take(name), len(self._rows))

    def action(self, name: str) -> Array:
        """An action's values; integers of shape (1,) are single numbers where no space was recorded."""
        values = self.take(name)
        return values if self._whole.has_action_space else as_steps("action", values)

    @property
    def action_names(self) -> list[str]:
        """The names of the action's fields."""
        return list(self._whole.actions.values())

    @property
    def terminated(self) -> npt.NDArray[np.bool_]:
        """Whether each one's step terminated."""
        return self.flag(self._whole.names.terminated)

    @property
    def truncated(self) -> npt.NDArray[np.bool_]:
        """Whether each one's step was truncated."""
        return self.flag(self._whole.names.truncated)

    @property
    def reward(self) -> Array:
        """Their rewards ``(transitions,)``, or ``(transitions, *shape)`` of several numbers each."""
        return as_steps("reward", self.take(self._whole.names.reward))


def named(prefix: str, part: str) -> str:
    """The key of an array in a flat file: ``observations``, or ``observations/camera/rgb`` below a nested space."""
    return f"{prefix}/{part.replace('.', '/')}" if part else prefix
