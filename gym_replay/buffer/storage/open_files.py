"""The files of a folder that is written to, and what is live in them, as they belong together at one moment."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from gym_replay.buffer.storage.block import BlockPiece
from gym_replay.buffer.storage.columns import ColumnWriter
from gym_replay.buffer.storage.counters import Counters
from gym_replay.buffer.storage.layout import STEPS, Metadata, values_path
from gym_replay.buffer.storage.ragged import moved_spans
from gym_replay.buffer.storage.reader import FolderReader
from gym_replay.buffer.storage.records import CHECKSUMS, DELETED, EPISODES, meta_column, slots_of
from gym_replay.buffer.storage.ring import RowRing
from gym_replay.buffer.storage.strings import STRINGS, StringWriter

STRINGS_RUN = 1 << 20
"""Bytes of strings from which on those of a ring's episodes that have left are removed."""


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

    def take(self, start: int, rows: int, episodes: int, steps: int) -> None:
        """Episodes have come, whose rows begin at ``start``."""
        self.ring.take(start, rows)
        self.num_episodes += episodes
        self.num_steps += steps
        self.table_steps += steps

    def take_elements(self, name: str, base: int, counts: Sequence[int], *, is_ring: bool) -> None:
        """The episodes that have come have these numbers of elements of a ragged field, from ``base`` on."""
        if is_ring:
            self.element_counts[name].extend(counts)
        if count := sum(counts):
            self.element_rings[name].take(base, count)

    def release(self, steps: int, has_state: bool, *, is_deleted: bool) -> None:
        """The oldest episode, of ``steps`` transitions, has left a ring."""
        for name, counts in self.element_counts.items():
            if count := counts.popleft():
                self.element_rings[name].release(count)
        self.ring.release(steps + has_state)
        self.table_steps -= steps
        if not is_deleted:
            self.num_episodes -= 1
            self.num_steps -= steps


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
    def sums(self) -> ColumnWriter:
        """The checksums of each episode."""
        return self.columns[CHECKSUMS]

    @cached_property
    def table(self) -> ColumnWriter:
        """The record of each episode."""
        return self.columns[EPISODES]

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

    @property
    def end(self) -> tuple[int, dict[str, int]]:
        """One past the last row, and the last element of each ragged field, of all that is live."""
        live = self.live
        return live.ring.end, {name: ring.end for name, ring in live.element_rings.items()}

    def write(self, pieces: Iterable[BlockPiece], start: int, bases: Mapping[str, int]) -> None:
        """Write pieces of episodes with this first row, and this first element of each ragged field."""
        steps = self.steps
        for name, is_elements, first, data in pieces:
            if is_elements:
                self.elements[name].write(bases[name] + first, data)
            else:
                steps[name].write(start + first, moved_spans(data, bases[name]) if name in bases else data)

    def rows_used(self) -> dict[str, int]:
        """By path, how many rows have been committed to each file."""
        slots = self.counters.next - self.base
        slots = slots if self.capacity is None else min(slots, self.capacity)
        used = {path: self.live.ring.highest if path.startswith(STEPS) else slots for path in self.columns}
        used |= {values_path(name): ring.highest for name, ring in self.live.element_rings.items()}
        return used if self.strings is None else used | {STRINGS: self.strings.end}

    def close(self) -> None:
        """Close the files."""
        for column in self.columns.values():
            column.close()


def count_live(
    metadata: Metadata, counters: Counters, columns: Mapping[str, ColumnWriter], reader: FolderReader
) -> OpenFiles:
    """Open files, with what is live in them.

    Args:
        metadata, counters, columns: of the same files.
        reader: of the folder.
    """
    snapshot = reader.refresh()
    ids = np.arange(counters.first, counters.next, dtype=np.int64)
    records = columns[EPISODES].read_scattered(slots_of(ids, counters.base, metadata.table_capacity))
    starts, lengths, flags = records["start"], records["length"], records["flags"]
    rows = lengths + metadata.has_state
    live = LiveEpisodes(
        RowRing.of_episodes(starts, rows),
        num_episodes=len(snapshot),
        num_steps=snapshot.num_steps,
        table_steps=int(lengths.sum()),
    )
    for name in metadata.ragged_fields:
        begins, counts = reader.elements_of(name, starts, rows, (flags & DELETED) != 0)
        live.element_rings[name] = RowRing.of_episodes(begins[counts > 0], counts[counts > 0])
        if metadata.circular:
            live.element_counts[name] = deque(counts.tolist())
    strings, most_strings = None, 0
    if metadata.text_fields:
        end = reader.end_of_strings(np.concatenate([records[meta_column(name)] for name in metadata.text_fields]))
        strings, most_strings = StringWriter(columns[STRINGS], end), max(2 * end, STRINGS_RUN)
    return OpenFiles(metadata, counters, columns, strings, live, most_strings)
