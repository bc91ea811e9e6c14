"""Where the next episodes go: the buffer's limits, and the oldest episodes, which leave a ring for new ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gym_replay.buffer.storage.open_files import OpenFiles
from gym_replay.buffer.storage.records import DELETED
from gym_replay.errors import BufferFullError, EpisodeTooLongError

UNLIMITED = 1 << 62
"""The transitions of an episode, or the episodes, where there is no limit."""

_SHARE_OF_RING = 8
"""Episodes that are committed at once take no more than this part of a ring, unless a single one does."""


class Room:
    """The room in the files of one revision.

    Args:
        files: the files.
        power: whether the oldest episodes have left on the disk before their rows are overwritten.
    """

    def __init__(self, files: OpenFiles, *, power: bool) -> None:
        self._files, self._power = files, power
        self._metadata = files.metadata

    def longest(self) -> int:
        """How many transitions the next episode may have."""
        metadata = self._metadata
        limits = [UNLIMITED]
        if metadata.max_timesteps is not None:
            limits.append(metadata.max_timesteps)
        if metadata.max_steps is not None:
            limits.append(metadata.max_steps - (0 if metadata.circular else self._files.live.num_steps))
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
        if not self._files.is_limited:
            return
        metadata, live = self._metadata, self._files.live
        if metadata.max_timesteps is not None and length > metadata.max_timesteps:
            raise EpisodeTooLongError(
                f"an episode of {length} steps exceeds max_timesteps={metadata.max_timesteps}; create the buffer with "
                "a larger max_timesteps (or none)"
            )
        held_episodes, held_steps = (0, 0) if metadata.circular else (live.num_episodes, live.num_steps)
        steps = episodes * length if steps is None else steps
        if metadata.max_episodes is not None and held_episodes + episodes > metadata.max_episodes:
            raise BufferFullError(
                f"{episodes} more episodes do not fit: the buffer holds {live.num_episodes} of "
                f"max_episodes={metadata.max_episodes}; create it with circular=True or a larger max_episodes"
            )
        if metadata.max_steps is not None and held_steps + steps > metadata.max_steps:
            kind = EpisodeTooLongError if metadata.circular else BufferFullError
            raise kind(
                f"{steps} more steps do not fit: the buffer holds {live.num_steps} of "
                f"max_steps={metadata.max_steps}; create it with circular=True or a larger max_steps"
            )

    def find(
        self, episodes: int, steps: int, rows: int, elements: Mapping[str, Sequence[int]]
    ) -> tuple[int, dict[str, int]]:
        """The first row, and the first element of each ragged field, of the next episodes.

        In a ring the oldest episodes leave for them.
        """
        if not self._metadata.circular:
            return self._files.end
        start = self._find_rows(episodes, steps, rows)
        rings = self._files.live.element_rings
        return start, {name: rings[name].place(sum(counts)) or 0 for name, counts in elements.items()}

    def _find_rows(self, episodes: int, steps: int, rows: int) -> int:
        counters, live = self._files.counters, self._files.live
        first = counters.first
        while self._is_over_limits(episodes, steps):
            self._evict()
        while (start := live.ring.place(rows, end=self._row_limit(episodes, rows))) is None:
            self._evict()
        if self._power and counters.first != first:
            counters.sync()  # before the rows are overwritten
        return start

    def _is_over_limits(self, episodes: int, steps: int) -> bool:
        metadata, counters = self._metadata, self._files.counters
        held = counters.next - counters.first
        too_many = metadata.max_episodes is not None and held + episodes > metadata.max_episodes
        too_long = metadata.max_steps is not None and self._files.live.table_steps + steps > metadata.max_steps
        return held > 0 and (too_many or too_long)

    def _row_limit(self, episodes: int, rows: int) -> int | None:
        """Rows that the files may have: what max_steps takes, and one episode's worth where gaps are too short."""
        metadata, counters = self._metadata, self._files.counters
        if metadata.max_steps is None:
            return None
        held = counters.next - counters.first + episodes
        return metadata.max_steps + held * metadata.has_state + rows

    def _evict(self) -> None:
        """Let the oldest episode leave."""
        files = self._files
        counters, live = files.counters, files.live
        oldest = counters.first
        record = files.table.read_array(files.slot(oldest), 1)[0]
        counters.put("first", oldest + 1)
        if counters.summed <= oldest:
            counters.put("summed", oldest + 1)
        live.release(int(record["length"]), self._metadata.has_state, is_deleted=bool(record["flags"] & DELETED))
