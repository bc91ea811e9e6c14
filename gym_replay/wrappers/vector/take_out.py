"""Taking the episodes that have ended out of the staging."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import repeat
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gym_replay.buffer.door import COMPLETE, HAS_FINAL, FolderWriter, Metadata
from gym_replay.buffer.replay_buffer import ReplayBuffer
from gym_replay.schema.fields import Field
from gym_replay.wrappers.recorded_schema import FLAGS
from gym_replay.wrappers.vector.autoreset import Mask
from gym_replay.wrappers.vector.batches import Column
from gym_replay.wrappers.vector.ended import EndedEpisodes
from gym_replay.wrappers.vector.facts import EpisodeFacts
from gym_replay.wrappers.vector.ring import Numbers
from gym_replay.wrappers.vector.staging import Staging

BLOCK_BYTES = 1 << 26
"""Bytes of rows that are taken out of the staging at once, unless a single episode has more."""


class Finals(NamedTuple):
    """The last rows of episodes, where the staging has those of the next episodes in their place.

    Attributes:
        columns: the last observations and infos by field.
        has_final: for which of them there is a last observation.
    """

    columns: Mapping[str, Column]
    has_final: npt.NDArray[np.bool_]


class _Plan:
    """What the schema says, asked once."""

    def __init__(self, metadata: Metadata, writer: FolderWriter, staged: Mapping[str, Field]) -> None:
        self.metadata, self.staged, self.has_state = metadata, staged, metadata.has_state
        row_nbytes = max(sum(info.nbytes for info in metadata.fields.values()), 1)
        episodes, steps = writer.room.largest_block()
        self.most_episodes, self.most_rows = episodes, min(steps, BLOCK_BYTES // row_nbytes)
        defaults = {name: info.default_value() for name, info in staged.items()}
        self.without_row_t: list[tuple[str, Any]] = [
            (name, repeat(defaults[name]) if info.ragged else defaults[name])
            for name, info in staged.items()
            if not info.state
        ]

    def flags(self, complete: bool) -> int:
        """Those of episodes with their last observations."""
        return (COMPLETE if complete else 0) | (HAS_FINAL if self.has_state else 0)


class TakeOut:
    """Makes blocks of episodes that have ended.

    Args:
        buffer: where they go.
        open_writer: its writer.
        staging, facts: what there is of them.
    """

    def __init__(
        self,
        buffer: ReplayBuffer,
        open_writer: Callable[[], FolderWriter],
        staging: Staging,
        facts: EpisodeFacts,
    ) -> None:
        self._buffer, self._open_writer, self._staging, self._facts = buffer, open_writer, staging, facts
        self._plan: _Plan | None = None

    def take(
        self,
        numbers: Numbers,
        until: int,
        returns: npt.NDArray[Any],
        ends: tuple[Mask, Mask],
        *,
        complete: bool,
        finals: Finals | None = None,
    ) -> list[EndedEpisodes]:
        """The episodes of some sub-environments.

        Args:
            numbers: the sub-environments.
            until: the time of their last observations.
            returns: of all sub-environments.
            ends: of all sub-environments, whether theirs was terminated, and truncated.
            complete: whether they were not cut.
            finals: their last rows, where those are not in the staging.
        """
        metadata, plan = self._buffer.metadata, self._plan
        staged = self._staging.fields
        if plan is None or plan.metadata is not metadata or plan.staged is not staged:
            plan = self._plan = _Plan(metadata, self._open_writer(), staged)
        if len(numbers) == 1 and finals is None:
            one = self._take_one(plan, numbers, until, returns, ends, complete=complete)
            if one is not None:
                return [one]
        starts = self._facts.start[numbers]
        lengths = until - starts
        edges = _edges(lengths + 1 if plan.has_state else lengths)
        if len(numbers) <= plan.most_episodes and edges[-1] - len(numbers) * plan.has_state <= plan.most_rows:
            return [self._take_block(plan, numbers, starts, lengths, edges, returns, ends, complete, finals)]
        blocks: list[EndedEpisodes] = []
        for part in _parts(plan, lengths):
            chosen = finals
            if finals is not None:
                columns = {name: column[part] for name, column in finals.columns.items()}
                chosen = Finals(columns, finals.has_final[part])
            some = numbers[part], starts[part], lengths[part], _edges(lengths[part] + plan.has_state)
            blocks.append(self._take_block(plan, *some, returns, ends, complete, chosen))
        return blocks

    def _take_one(
        self,
        plan: _Plan,
        numbers: Numbers,
        until: int,
        returns: npt.NDArray[Any],
        ends: tuple[Mask, Mask],
        *,
        complete: bool,
    ) -> EndedEpisodes | None:
        """The episode of one sub-environment, unless it is not in memory any more.

        "8" of benchmarks.record_vector, most of whose commits are of one episode, pays for it.
        """
        number, has_state = numbers.item(), plan.has_state
        start = self._facts.start.item(number)
        length, count = until - start, until - start + has_state
        rows = self._staging.columns_of_one(number, start, count)
        if rows is None:
            return None
        if has_state:
            for name, default in plan.without_row_t:
                rows[name][length] = default
        for name, of_all in zip(FLAGS, ends, strict=True):
            rows[name] = column = np.zeros(count, bool)
            column[length - 1] = of_all[number]
        meta = self._facts.columns(numbers, returns[numbers], complete=complete)
        ended = EndedEpisodes(numbers, np.array((length,)), plan.flags(complete), rows, meta, np.array((0, count)))
        ended.noted = self._facts.noted(numbers)
        return ended

    def _take_block(
        self,
        plan: _Plan,
        numbers: Numbers,
        starts: Numbers,
        lengths: Numbers,
        edges: Numbers,
        returns: npt.NDArray[Any],
        ends: tuple[Mask, Mask],
        complete: bool,
        finals: Finals | None,
    ) -> EndedEpisodes:
        has_state, count = plan.has_state, int(edges[-1])
        last_row = edges[1:] - 1
        last_step = last_row - 1 if has_state else last_row
        rows = self._staging.columns(numbers, starts, edges)
        if has_state:
            for name, default in plan.without_row_t:
                _put(rows[name], last_row, default)
        flags: npt.NDArray[np.uint8] | int = plan.flags(complete)
        if finals is not None:
            for name, column in finals.columns.items():
                if name in rows:
                    _put(rows[name], last_row, column)
            if has_state and not finals.has_final.all():
                flags = np.where(finals.has_final, flags, flags & ~HAS_FINAL).astype(np.uint8)
        for name, of_all in zip(FLAGS, ends, strict=True):
            rows[name] = column = np.zeros(count, bool)
            if of_all.tobytes() != bytes(of_all.size):  # mostly one of the flags is nowhere
                column[last_step] = of_all[numbers] & True  # others may have any number for True
        meta = self._facts.columns(numbers, returns[numbers], complete=complete)
        block = EndedEpisodes(numbers, lengths, flags, rows, meta, edges)
        block.noted = self._facts.noted(numbers)
        return block


def _edges(rows: Numbers) -> Numbers:
    """The first row of each episode, and the end, where they lie one after another."""
    edges = np.empty(len(rows) + 1, np.int64)
    edges[0] = 0
    np.add.accumulate(rows, out=edges[1:])
    return edges


def _parts(plan: _Plan, lengths: Numbers) -> list[slice]:
    """Which episodes to commit at once, where all of them are a large part of a ring or of the memory."""
    parts, first, taken = [], 0, 0
    for place, length in enumerate(lengths.tolist()):
        if place > first and (place - first >= plan.most_episodes or taken + length > plan.most_rows):
            parts.append(slice(first, place))
            first, taken = place, 0
        taken += length
    return [*parts, slice(first, len(lengths))]


def _put(column: Column, places: Numbers, values: Any) -> None:
    """Set some rows of a column."""
    if isinstance(column, np.ndarray):
        column[places] = values
    else:
        for place, value in zip(places.tolist(), values, strict=False):
            column[place] = value
