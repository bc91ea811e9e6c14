"""Taking the episodes that have ended out of the staging."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import repeat
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gym_replay.buffer.replay_buffer import ReplayBuffer
from gym_replay.buffer.storage.fields import Field
from gym_replay.buffer.storage.layout import Metadata
from gym_replay.buffer.storage.records import COMPLETE, HAS_FINAL
from gym_replay.buffer.storage.writer import FolderWriter
from gym_replay.wrappers.episode_facts import FLAG_BYTES
from gym_replay.wrappers.recorded_schema import FLAGS
from gym_replay.wrappers.vector.autoreset import Mask
from gym_replay.wrappers.vector.batches import Column
from gym_replay.wrappers.vector.blocks import Block, Ended, FewEpisodes
from gym_replay.wrappers.vector.facts import EpisodeFacts
from gym_replay.wrappers.vector.ring import Numbers
from gym_replay.wrappers.vector.staging import Staging

BLOCK_BYTES = 1 << 26
"""Bytes of rows that are taken out of the staging at once, unless a single episode has more."""

FEW = 4
"""Episodes, at most, that are faster taken one by one."""

_FEW_BYTES = 1 << 20


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
        episodes, steps = writer.largest_block()
        self.most_episodes, self.most_rows = episodes, min(steps, BLOCK_BYTES // row_nbytes)
        self.most_of_few = 0 if metadata.ragged_fields else min(_FEW_BYTES // row_nbytes, self.most_rows)
        self.last_flags = [flag + bytes(self.has_state) for flag in (FLAG_BYTES[False], FLAG_BYTES[True])]
        defaults = {name: info.default_value() for name, info in staged.items()}
        self.bytes_without_row_t = [
            (name, defaults[name].tobytes()) for name, info in staged.items() if metadata.has_state and not info.state
        ]
        self.without_row_t: list[tuple[str, Any]] = [
            (name, repeat(defaults[name]) if info.ragged else defaults[name])
            for name, info in staged.items()
            if not info.state
        ]


class TakeOut:
    """Makes blocks of episodes that have ended.

    Args:
        buffer: where they go.
        open_writer: its writer.
        staging, facts: what there is of them.
        one_by_one: whether few of them may be taken as bytes.
    """

    def __init__(
        self,
        buffer: ReplayBuffer,
        open_writer: Callable[[], FolderWriter],
        staging: Staging,
        facts: EpisodeFacts,
        *,
        one_by_one: bool,
    ) -> None:
        self._buffer, self._open_writer, self._staging, self._facts = buffer, open_writer, staging, facts
        self._few = FEW if one_by_one else 0
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
    ) -> list[Ended]:
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
        if len(numbers) <= self._few and finals is None and len(numbers) <= plan.most_episodes:
            few = self._take_few(plan, numbers, until, returns, ends, complete=complete)
            if few is not None:
                return [few]
        starts = self._facts.start[numbers]
        lengths = until - starts
        edges = _edges(lengths + 1 if plan.has_state else lengths)
        if len(numbers) <= plan.most_episodes and edges[-1] - len(numbers) * plan.has_state <= plan.most_rows:
            return [self._take_block(plan, numbers, starts, lengths, edges, returns, ends, complete, finals)]
        blocks: list[Ended] = []
        for part in _parts(plan, lengths):
            chosen = finals
            if finals is not None:
                columns = {name: column[part] for name, column in finals.columns.items()}
                chosen = Finals(columns, finals.has_final[part])
            some = numbers[part], starts[part], lengths[part], _edges(lengths[part] + plan.has_state)
            blocks.append(self._take_block(plan, *some, returns, ends, complete, chosen))
        return blocks

    def _take_few(
        self,
        plan: _Plan,
        numbers: Numbers,
        until: int,
        returns: npt.NDArray[Any],
        ends: tuple[Mask, Mask],
        *,
        complete: bool,
    ) -> FewEpisodes | None:
        """The episodes as bytes, unless some are long or not in memory any more."""
        all_rows, lengths, total = [], [], 0
        bytes_of, last_flags = self._staging.bytes_of, plan.last_flags
        start_of, terminated, truncated = self._facts.start.item, ends[0].item, ends[1].item
        for number in (listed := numbers.tolist()):
            start = start_of(number)
            total += (length := until - start)
            rows = bytes_of(number, start, until) if total <= plan.most_of_few else None
            if rows is None:
                return None
            for name, default in plan.bytes_without_row_t:
                rows[name] += default
            before = bytes(length - 1)
            rows["terminated"] = before + last_flags[terminated(number)]
            rows["truncated"] = before + last_flags[truncated(number)]
            all_rows.append(rows)
            lengths.append(length)
        metas = self._facts.of_each(listed, returns, complete=complete)
        return FewEpisodes(numbers, lengths, _flags(plan, complete=complete), all_rows, metas)

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
    ) -> Block:
        has_state, count = plan.has_state, int(edges[-1])
        last_row = edges[1:] - 1
        last_step = last_row - 1 if has_state else last_row
        rows = self._staging.columns(numbers, starts, edges)
        if has_state:
            for name, default in plan.without_row_t:
                _put(rows[name], last_row, default)
        flags: npt.NDArray[np.uint8] | bytes = bytes((_flags(plan, complete=complete),))
        if finals is not None:
            for name, column in finals.columns.items():
                if name in rows:
                    _put(rows[name], last_row, column)
            if has_state and not finals.has_final.all():
                flags = np.full(len(numbers), flags[0], np.uint8)
                flags[~finals.has_final] &= np.uint8(255 - HAS_FINAL)
        for name, of_all in zip(FLAGS, ends, strict=True):
            rows[name] = column = np.zeros(count, bool)
            if of_all.tobytes() != bytes(of_all.size):  # mostly one of the flags is nowhere
                column[last_step] = of_all[numbers] & True  # others may have any number for True
        meta = self._facts.columns(numbers, returns[numbers], complete=complete)
        block = Block(numbers, lengths, flags, rows, meta, edges)
        block.noted = self._facts.noted(numbers)
        return block


def _edges(rows: Numbers) -> Numbers:
    """The first row of each episode, and the end, where they lie one after another."""
    edges = np.empty(len(rows) + 1, np.int64)
    edges[0] = 0
    np.add.accumulate(rows, out=edges[1:])
    return edges


def _flags(plan: _Plan, *, complete: bool) -> int:
    return (COMPLETE if complete else 0) | (HAS_FINAL if plan.has_state else 0)


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
