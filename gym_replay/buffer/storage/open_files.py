"""The files of a folder that is written to, and what is live in them, as they belong together at one moment."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from gym_replay.buffer.storage.columns import ColumnGroup, ColumnWriter
from gym_replay.buffer.storage.counters import Counters
from gym_replay.buffer.storage.layout import Metadata, values_path
from gym_replay.buffer.storage.records import CHECKSUMS, EPISODES
from gym_replay.buffer.storage.ring import RowRing
from gym_replay.buffer.storage.strings import StringWriter


@dataclass
class LiveEpisodes:
    """What is live; follows each commit.

    Attributes:
        ring: the rows that live episodes own, deleted ones included.
        element_rings: the elements of each ragged field that they own.
        element_counts: in a ring, how many elements of each ragged field each of them owns.
        num_episodes, num_steps: without deleted ones.
        table_steps: with deleted ones.
    """

    ring: RowRing
    element_rings: dict[str, RowRing] = field(default_factory=dict)
    element_counts: dict[str, deque[int]] = field(default_factory=dict)
    num_episodes: int = 0
    num_steps: int = 0
    table_steps: int = 0


@dataclass(frozen=True)
class OpenFiles:
    """The open files of one revision, never changed but replaced by another one as a whole.

    Attributes:
        metadata: of that revision.
        columns: the writers of all array files, by path.
        strings: takes the strings of meta fields, where there are any.
        live: what is live in these files.
        most_strings: bytes of strings from which on those of a ring's episodes that have left are to be removed.
    """

    metadata: Metadata
    counters: Counters
    columns: Mapping[str, ColumnWriter]
    strings: StringWriter | None
    live: LiveEpisodes
    most_strings: int

    @cached_property
    def steps(self) -> dict[str, ColumnWriter]:
        """The rows of each field, or its spans."""
        return {name: self.columns[self.metadata.rows_path(name)] for name in self.metadata.fields}

    @cached_property
    def elements(self) -> dict[str, ColumnWriter]:
        """The elements of each ragged field."""
        return {name: self.columns[values_path(name)] for name in self.metadata.ragged_fields}

    @cached_property
    def rows(self) -> ColumnGroup:
        """The rows of all fields."""
        return ColumnGroup(self.steps.values())

    @cached_property
    def sums(self) -> ColumnWriter:
        """The checksums of each episode."""
        return self.columns[CHECKSUMS]

    @cached_property
    def table(self) -> ColumnWriter:
        """The record of each episode."""
        return self.columns[EPISODES]

    @cached_property
    def text_indices(self) -> list[int]:
        """Which of the meta fields are strings."""
        return [index for index, info in enumerate(self.metadata.meta_fields.values()) if info.is_text]

    @cached_property
    def sizeless(self) -> list[ColumnWriter]:
        """Those of the fields whose rows have no bytes."""
        return [column for column in self.steps.values() if column.row_nbytes == 0]

    @cached_property
    def row_nbytes(self) -> int:
        """Bytes of one row of all fields."""
        return sum(column.row_nbytes for column in self.steps.values())

    @cached_property
    def is_plain(self) -> bool:
        """Whether episodes follow one another, with rows of one size."""
        return not self.metadata.circular and not self.elements

    @cached_property
    def is_limited(self) -> bool:
        """Whether the buffer can be full, or evict."""
        metadata = self.metadata
        return (metadata.max_episodes, metadata.max_timesteps, metadata.max_steps) != (None, None, None)

    @cached_property
    def base(self) -> int:
        """Id of the episode in slot 0 of the table."""
        return self.counters.base

    @cached_property
    def capacity(self) -> int | None:
        """Slots of the episode table; None where it grows."""
        return self.metadata.table_capacity

    def slot(self, episode_id: int) -> int:
        """The slot of an episode's record."""
        slot = episode_id - self.base
        return slot if self.capacity is None else slot % self.capacity

    def close(self) -> None:
        """Close the files."""
        for column in self.columns.values():
            column.close()
