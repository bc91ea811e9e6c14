"""Where the next episodes go: what is live, the buffer's limits, and the oldest episodes, which leave a ring."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from gym_replay.buffer.storage.block import EarlyRows
from gym_replay.buffer.storage.columns import ColumnWriter
from gym_replay.buffer.storage.counters import Counters
from gym_replay.buffer.storage.layout import Metadata
from gym_replay.buffer.storage.records import DELETED, slots_of
from gym_replay.errors import BufferFullError, EpisodeTooLongError

UNLIMITED = 1 << 62
"""The transitions of an episode, or the episodes, where there is no limit."""

_SHARE_OF_RING = 8
"""Episodes that are committed at once take no more than this part of a ring, unless a single one does."""


class RowRing:
    """The rows that live episodes own, as runs in order of age.

    Episodes leave in the order in which they came, so the free rows before, between and behind the runs can be
    found without a free list, and there are few runs.

    Args:
        runs: ``(first row, end row)`` of each run, the oldest first.

    Attributes:
        end: one past the highest owned row.
        highest: one past the highest row that was ever owned.

    Example:
        >>> ring = RowRing([(10, 30)])
        >>> ring.place(10), ring.place(11), ring.place(11, end=30)
        (0, 30, None)
    """

    def __init__(self, runs: Iterable[tuple[int, int]] = ()) -> None:
        self._runs: deque[tuple[int, int]] = deque(runs)
        self.end = self.highest = self._find_end()

    @classmethod
    def of_episodes(cls, starts: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]) -> RowRing:
        """The ring of episodes given in order of age: their first rows and numbers of rows."""
        if len(starts) == 0:
            return cls()
        ends = starts + rows
        breaks = np.flatnonzero(starts[1:] != ends[:-1]) + 1
        first = starts[np.concatenate(([0], breaks))]
        last = ends[np.concatenate((breaks - 1, [len(ends) - 1]))]
        return cls(zip(first.tolist(), last.tolist(), strict=True))

    def _find_end(self) -> int:
        return max((end for _, end in self._runs), default=0)

    def place(self, rows: int, *, end: int | None = None) -> int | None:
        """The lowest row at which ``rows`` free rows begin, none of them at or past ``end``; None if there is none."""
        candidate = 0
        for start, stop in sorted(self._runs):
            if candidate + rows <= start:
                break
            candidate = max(candidate, stop)
        return candidate if end is None or candidate + rows <= end else None

    def take(self, start: int, rows: int) -> None:
        """Let the newest episode own ``rows`` rows from ``start``."""
        runs, stop = self._runs, start + rows
        if runs and runs[-1][1] == start:
            runs[-1] = (runs[-1][0], stop)
        else:
            runs.append((start, stop))
        if stop > self.end:
            self.end = stop
            self.highest = max(stop, self.highest)

    def release(self, rows: int) -> None:
        """Let the oldest episode, of ``rows`` rows, go."""
        start, end = self._runs[0]
        if start + rows < end:
            self._runs[0] = (start + rows, end)
        else:
            self._runs.popleft()
            self.end = self._find_end()


class Room:
    """What is live in the files of one revision, and the room beside it; follows each commit.

    Args:
        metadata, counters, table: of the files.
        records: of all episodes from the oldest one on, deleted ones included.
        elements: by ragged field, the first element of each of them, and how many it has.

    Attributes:
        rows: those that live episodes own, deleted ones included.
        elements: those of each ragged field.
        is_limited: whether the buffer can be full, or evict.
        num_episodes, num_steps: live episodes and their transitions, without deleted ones.
    """

    def __init__(
        self,
        metadata: Metadata,
        counters: Counters,
        table: ColumnWriter,
        records: npt.NDArray[np.void],
        elements: Mapping[str, tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]],
    ) -> None:
        self._metadata, self._counters, self._table = metadata, counters, table
        lengths, is_live = records["length"], (records["flags"] & DELETED) == 0
        self.rows = RowRing.of_episodes(records["start"], lengths + metadata.has_state)
        self.num_episodes = int(np.count_nonzero(is_live))
        self.num_steps = int(lengths[is_live].sum())
        self._all_steps = int(lengths.sum())  # with those of deleted episodes
        limits = metadata.max_episodes, metadata.max_timesteps, metadata.max_steps
        self.is_limited = limits != (None, None, None)
        self.elements: dict[str, RowRing] = {}
        self._counts: dict[str, deque[int]] = {}  # in a ring, how many elements each episode has
        for name, (begins, counts) in elements.items():
            self.elements[name] = RowRing.of_episodes(begins[counts > 0], counts[counts > 0])
            if metadata.circular:
                self._counts[name] = deque(counts.tolist())

    @property
    def end(self) -> tuple[int, dict[str, int]]:
        """One past the last row, and the last element of each ragged field, of all that is live."""
        return self.rows.end, {name: ring.end for name, ring in self.elements.items()} if self.elements else {}

    # --- limits ---

    def longest(self) -> int:
        """How many transitions the next episode may have."""
        metadata = self._metadata
        limits = [UNLIMITED]
        if metadata.max_timesteps is not None:
            limits.append(metadata.max_timesteps)
        if metadata.max_steps is not None:
            limits.append(metadata.max_steps - (0 if metadata.circular else self.num_steps))
        return min(limits)

    def largest_block(self) -> tuple[int, int]:
        """How many episodes, and transitions, to commit at once: in a ring, so few that not many others leave."""
        metadata = self._metadata
        if not metadata.circular:
            return UNLIMITED, UNLIMITED
        limits = (metadata.max_episodes, metadata.max_steps)
        episodes, steps = (UNLIMITED if limit is None else limit // _SHARE_OF_RING for limit in limits)
        return max(episodes, 1), steps

    def require(self, episodes: int, length: int, steps: int | None = None) -> None:
        """Raise where ``episodes`` episodes of ``length`` transitions, or of up to that and ``steps``, do not fit.

        Raises:
            EpisodeTooLongError: each one is longer than the buffer takes at all.
            BufferFullError: they do not fit beside what is stored.
        """
        metadata = self._metadata
        if metadata.max_timesteps is not None and length > metadata.max_timesteps:
            raise EpisodeTooLongError(
                f"an episode of {length} steps exceeds max_timesteps={metadata.max_timesteps}; create the buffer with "
                "a larger max_timesteps (or none)"
            )
        stored_episodes, stored_steps = (0, 0) if metadata.circular else (self.num_episodes, self.num_steps)
        steps = episodes * length if steps is None else steps
        if metadata.max_episodes is not None and stored_episodes + episodes > metadata.max_episodes:
            raise BufferFullError(
                f"{episodes} more episodes do not fit: the buffer holds {self.num_episodes} of "
                f"max_episodes={metadata.max_episodes}; create it with circular=True or a larger max_episodes"
            )
        if metadata.max_steps is not None and stored_steps + steps > metadata.max_steps:
            kind = EpisodeTooLongError if metadata.circular else BufferFullError
            raise kind(
                f"{steps} more steps do not fit: the buffer holds {self.num_steps} of "
                f"max_steps={metadata.max_steps}; create it with circular=True or a larger max_steps"
            )

    # --- the next episodes ---

    def find(
        self, lengths: Sequence[int], elements: Mapping[str, Sequence[int]], early: EarlyRows | None
    ) -> tuple[int, dict[str, int]]:
        """The first row in a ring, and the first element of each ragged field, of the next episodes.

        The oldest episodes leave for them. Rows that were written early are never given a part of the rows
        that they are in, so that they can be copied from there once more after an interrupt.

        Args:
            lengths: transitions of each episode.
            elements: by ragged field, how many each has.
            early: the rows that were written early.
        """
        episodes, steps = len(lengths), sum(lengths)
        rows = steps + episodes * self._metadata.has_state
        while self._is_over_limits(episodes, steps):
            self._evict()
        while (start := self.rows.place(rows, end=self._row_limit(episodes, rows))) is None:
            self._evict()
        counts = {name: sum(each) for name, each in elements.items()}
        bases = {name: self.elements[name].place(count) or 0 for name, count in counts.items()}
        if early is not None:
            start = early.row if start + rows > early.row else start
            for name, count in counts.items():
                if bases[name] + count > early.elements.get(name, 0):
                    bases[name] = early.elements.get(name, 0)
        return start, bases

    def _is_over_limits(self, episodes: int, steps: int) -> bool:
        metadata = self._metadata
        stored = self._counters.next - self._counters.first
        too_many = metadata.max_episodes is not None and stored + episodes > metadata.max_episodes
        too_long = metadata.max_steps is not None and self._all_steps + steps > metadata.max_steps
        return stored > 0 and (too_many or too_long)

    def _row_limit(self, episodes: int, rows: int) -> int | None:
        """Rows that the files may have: what max_steps takes, and one episode's worth where gaps are too short."""
        metadata, counters = self._metadata, self._counters
        if metadata.max_steps is None:
            return None
        return metadata.max_steps + (counters.next - counters.first + episodes) * metadata.has_state + rows

    def _evict(self) -> None:
        """Let the oldest episode leave."""
        counters, metadata = self._counters, self._metadata
        oldest = counters.first
        slot = slots_of(oldest, counters.base, metadata.table_capacity)
        record = self._table.read_array(slot, 1)[0]
        counters.put("first", oldest + 1)
        if counters.summed <= oldest:
            counters.put("summed", oldest + 1)
        for name, counts in self._counts.items():
            if count := counts.popleft():
                self.elements[name].release(count)
        length = int(record["length"])
        self.rows.release(length + metadata.has_state)
        self._all_steps -= length
        if not record["flags"] & DELETED:
            self.num_episodes -= 1
            self.num_steps -= length

    def take(self, start: int, rows: int, episodes: int, steps: int) -> None:
        """Episodes have come, whose rows begin at ``start``."""
        self.rows.take(start, rows)
        self.num_episodes += episodes
        self.num_steps += steps
        self._all_steps += steps

    def take_elements(self, name: str, base: int, counts: Iterable[int]) -> None:
        """The episodes that have come have these numbers of elements of a ragged field, from ``base`` on."""
        if name in self._counts:
            self._counts[name].extend(counts)
        if count := sum(counts):
            self.elements[name].take(base, count)
