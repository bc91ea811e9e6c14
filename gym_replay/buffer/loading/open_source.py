"""What is gathered from where episodes are open: a table of them and their rows, as those of committed ones."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import numpy as np

from gym_replay.buffer.loading.gather import Column, Padded, Rows
from gym_replay.buffer.loading.plans import Anchors, Samples
from gym_replay.buffer.loading.source import Source
from gym_replay.buffer.storage.open_rows import OpenRows
from gym_replay.buffer.storage.reader import Snapshot
from gym_replay.errors import FieldError
from gym_replay.schema.arrays import Array, Bools, Ints
from gym_replay.schema.fields import Field


class RowsInMemory(Rows):
    """The rows of open episodes, under their own numbering.

    Args:
        fields: what a row is made of.
        rows: the rows.
    """

    def __init__(self, fields: dict[str, Field], rows: OpenRows) -> None:
        self._fields, self.open = fields, rows
        self._encoded, self.are_mirrored = frozenset(), False

    def expect(self, names: Collection[str]) -> None:
        """Nothing is mapped."""

    def column(self, name: str) -> Column | None:
        return None

    def take(self, name: str, rows: Ints) -> Array:
        field, values = self._fields[name], self.open.take(name, rows)
        if values is None:
            return np.broadcast_to(field.default_value(), (*rows.shape, *field.shape)).astype(field.dtype)
        return values.astype(field.dtype, copy=False)

    def take_encoded(self, name: str, wanted: Sequence[tuple[Ints, Bools | None]]) -> list[Array]:
        found = []
        for rows, there in wanted:
            values = self.take(name, rows)
            if there is not None:
                values[~there] = 0
            found.append(values)
        return found

    def take_ragged(self, name: str, rows: Ints, present: Bools | None = None) -> Padded:
        field, flat = self._fields[name], rows.reshape(-1)
        values = self.open.take(name, flat)
        wanted = range(len(flat)) if present is None else np.flatnonzero(present.reshape(-1)).tolist()
        lengths = np.zeros(len(flat), np.int64)
        if values is not None:
            lengths[wanted] = [len(values[index]) for index in wanted]
        padded = np.zeros((len(flat), int(lengths.max(initial=0)), *field.shape), field.dtype)
        if values is not None:
            for index in wanted:
                padded[index, : lengths[index]] = values[index]
        return padded.reshape(*rows.shape, *padded.shape[1:]), lengths.reshape(rows.shape)


class OpenSource(Source):
    """The episodes that are open: a table, and rows to gather from.

    It says what a sample is as the committed episodes of the same buffer do; which rows there are, :meth:`look` finds
    out each time.

    Args:
        parts: a snapshot of the buffer, for what it says of fields.
        rows: of the open episodes.
    """

    rows: RowsInMemory

    def __init__(self, parts: Sequence[Snapshot], rows: OpenRows) -> None:
        (part,) = self.parts = list(parts)
        metadata = part.metadata
        self.fields, self.meta_fields = metadata.fields, metadata.meta_fields
        self.user_meta = [name for name in metadata.meta_fields if name not in metadata.recorder_meta]
        self.max_timesteps = metadata.max_timesteps
        self.rows = RowsInMemory(self.fields, rows)
        self._oldest = {}
        self.look(rows)

    def look(self, rows: OpenRows) -> Anchors:
        """Serve the episodes that are open now; returns their samples, the steps whose next row is there."""
        self.rows.open, self._meta = rows, {}
        self.starts, self.lengths = rows.starts, rows.lengths
        count, has_state = len(self.starts), self.parts[0].metadata.has_state
        self.has_final = np.full(count, has_state)
        self.owners, self.index = np.zeros(count, np.int64), np.full(count, -1)
        self.ids = self.index
        vars(self).pop("last_rows", None)  # of the episodes that were open before
        return Anchors.of(self.starts, self.last_rows)

    def require_up_to_date(self, names: Iterable[str]) -> None:
        """Raise FieldError where one of the fields is computed from committed episodes."""
        if derived := sorted(self.parts[0].metadata.derived.keys() & names):
            raise FieldError(
                f"include_open: field {derived[0]!r} is computed from committed episodes, and open ones have no values "
                "of it; choose others with current_fields=..."
            )

    def meta(self, name: str) -> Array:
        if name not in self.user_meta:
            raise FieldError(f"include_open: {name!r} is known when an episode has ended; leave it out")
        if name not in self._meta:
            info, found = self.meta_fields[name], self.rows.open.meta().get(name)
            if found is None and info.is_text:
                found = np.full(len(self.starts), "", object)
            elif found is None:
                found = np.broadcast_to(info.default_value(), (len(self.starts), *info.shape)).copy()
            self._meta[name] = found
        return self._meta[name]


def samples_of(anchors: Anchors, numbers: Ints) -> Samples:
    """The episodes of samples; of anchors that serve one batch, for which a table to look them up would not pay."""
    return Samples(anchors, numbers, anchors.offsets.searchsorted(numbers, side="right") - 1)
