"""Episodes of a vector environment that have ended, from when they are taken out until they are committed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from gym_replay.buffer.door import COMPLETE, HAS_FINAL, Block, FolderWriter, MetaColumn, Metadata, Ragged
from gym_replay.errors import FieldError
from gym_replay.schema.fields import Field, widened
from gym_replay.wrappers.bounds import BoundsCheck
from gym_replay.wrappers.recording import FinishedEpisode
from gym_replay.wrappers.vector.batches import Column
from gym_replay.wrappers.vector.ring import Numbers


class EndedEpisodes:
    """Episodes of several sub-environments that have ended and are committed together, as arrays over all of them.

    Args:
        numbers: the sub-environment of each.
        lengths: T of each.
        flags: of each, as the table has them, or those of all.
        rows: by field, the rows of all of them, one episode after another; those of ragged fields as a list.
        meta: by meta field, the values of each, or the bytes of that of all.
        edges: the first row of each, and the end.

    Attributes:
        noted: by meta field of the user's, whether each has been given a value before its end.
        verdicts: whether each is kept, of those that were judged.
        first_id: the id under which a commit was begun.
        error: what looking at them raised; it is passed on once they are committed.
    """

    def __init__(
        self,
        numbers: Numbers,
        lengths: Numbers,
        flags: npt.NDArray[np.uint8] | int,
        rows: dict[str, Column],
        meta: dict[str, MetaColumn],
        edges: Numbers,
    ) -> None:
        self.numbers, self.lengths, self.flags = numbers, lengths, flags
        self.rows, self.meta, self.edges = rows, meta, edges
        self.noted: Mapping[str, npt.NDArray[np.bool_]] = {}
        self.verdicts: list[bool] | None = None
        self.first_id: int | None = None
        self.error: BaseException | None = None

    def __len__(self) -> int:
        return len(self.numbers)

    def flags_of(self, place: int) -> int:
        """The flags of one episode."""
        return self.flags if isinstance(self.flags, int) else int(self.flags[place])

    def _begin(self, first_id: int) -> None:
        self.first_id = first_id

    def is_committed(self, writer: FolderWriter) -> bool:
        """Whether a commit that was begun came through."""
        return self.first_id is not None and self.first_id < writer.counters.next

    def commit(self, writer: FolderWriter) -> None:
        """Write them.

        Raises:
            StorageError: the disk refused; it can be called again.
        """
        if not len(self):
            return
        metadata = writer.metadata
        rows: Mapping[str, Any] = self.rows
        if len(rows) < len(metadata.fields) or metadata.ragged_fields:
            rows = self._all_rows(metadata)
        # A call for the checksum of each field of each of them would take longer than to record them.
        writer.commit(Block.of_rows(rows, self.lengths, self.flags, self.meta, self._begin, sums_may_wait=True))

    def widen(self, before: Mapping[str, Field], wider: Mapping[str, Field], *, is_trial: bool = False) -> None:
        """Have the rows of some fields in a wider dtype; a trial changes nothing.

        Raises:
            FieldError: a value would change.
        """
        converted: dict[str, Column] = {}
        for name, info in wider.items():
            column = self.rows.get(name)
            if isinstance(column, np.ndarray):
                converted[name] = widened(name, column, info.dtype)
        if not is_trial:
            self.rows |= converted

    def _all_rows(self, metadata: Metadata) -> dict[str, npt.NDArray[Any] | Ragged]:
        rows: dict[str, npt.NDArray[Any] | Ragged] = {}
        for name, info in metadata.fields.items():
            column = self.rows.get(name)
            if column is None:  # of fields added since: the default
                column = [info.default_value()] * int(self.edges[-1])
            if info.ragged:
                rows[name] = Ragged.of_rows(list(column), info.dtype, info.shape)
            else:
                rows[name] = column if isinstance(column, np.ndarray) else np.array(column, info.dtype)
        return rows

    def drop_last_observations(self, fields: Mapping[str, Field]) -> None:
        """Have no last observations: they may be those of other episodes."""
        flags = self.flags
        self.flags = flags & ~HAS_FINAL if isinstance(flags, int) else flags & np.uint8(255 - HAS_FINAL)
        for name, column in self.rows.items():
            if fields[name].state:
                for row in (self.edges[1:] - 1).tolist():
                    column[row] = fields[name].default_value()

    def show_to(self, bounds: BoundsCheck) -> None:
        """Let it compare the rows, which were committed."""
        if self.first_id is not None:
            bounds.add_block(self.first_id, self.rows, self.edges, self.lengths)

    def without(self, kept: npt.NDArray[np.bool_]) -> EndedEpisodes:
        """Only the episodes that are kept."""
        rows = np.repeat(kept, np.diff(self.edges))
        of_kept = np.flatnonzero(kept).tolist()
        return EndedEpisodes(
            self.numbers[kept],
            self.lengths[kept],
            self.flags if isinstance(self.flags, int) else self.flags[kept],
            {
                name: column[rows] if isinstance(column, np.ndarray) else _chosen(column, rows)
                for name, column in self.rows.items()
            },
            {name: _of_episodes(value, kept, of_kept) for name, value in self.meta.items()},
            np.concatenate(([0], np.cumsum(np.diff(self.edges)[kept]))),
        )


def _chosen(column: list[npt.NDArray[Any]], rows: npt.NDArray[np.bool_]) -> list[npt.NDArray[Any]]:
    return [value for value, is_kept in zip(column, rows.tolist(), strict=True) if is_kept]


def _of_episodes(value: MetaColumn, kept: npt.NDArray[np.bool_], of_kept: list[int]) -> MetaColumn:
    if isinstance(value, np.ndarray):
        return value[kept]
    return value if isinstance(value, bytes) else [value[at] for at in of_kept]


class FinishedVectorEpisode(FinishedEpisode):
    """One of the episodes of a block.

    Attributes:
        env_index: the sub-environment.
    """

    def __init__(self, block: EndedEpisodes, place: int, fields: Mapping[str, Field], meta: Mapping[str, Any]) -> None:
        self._block, self._place, self._fields = block, place, fields
        self.env_index = int(block.numbers[place])
        self.complete = bool(block.flags_of(place) & COMPLETE)
        total = block.meta["episode_return"]
        assert isinstance(total, np.ndarray)
        self.episode_return = total[place] if total.ndim > 1 else float(total[place])
        self.meta = dict(meta)

    def __len__(self) -> int:
        return int(self._block.lengths[self._place])

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        field = self._fields.get(name)
        column = self._block.rows.get(name)
        if field is None or field.ragged or not isinstance(column, np.ndarray):
            raise FieldError(f"{name!r}: expected one of {list(self)}, and no ragged one")
        begin = int(self._block.edges[self._place])
        has_final = bool(self._block.flags_of(self._place) & HAS_FINAL)
        return np.array(column[begin : begin + len(self) + (field.state and has_final)])
