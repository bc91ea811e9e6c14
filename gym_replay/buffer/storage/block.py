"""Whole episodes on their way into the files: what a commit takes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from gym_replay.buffer.storage.encoded import as_stored
from gym_replay.buffer.storage.ragged import Ragged, spans_of
from gym_replay.buffer.storage.records import MetaColumn
from gym_replay.schema.fields import Field

Piece: TypeAlias = "tuple[str, bool, int, bytes | memoryview]"
"""Bytes of one file of an episode, or of several one after another: the field, whether these are elements of
it, the first row (or element) counted from the first one of the episode, and the bytes. The rows of a field that has
elements are spans that count from the episode's first element.
"""


@dataclass
class EarlyRows:
    """The rows of a long open episode that are in the buffer's files before its commit, where no reader looks.

    Attributes:
        row: the first of them, behind the last row that a live episode owns.
        elements: of ragged fields, the first element.
        counts: how many there are of a field: rows, and where the second part of the key is True, elements.
    """

    row: int
    elements: Mapping[str, int]
    counts: dict[tuple[str, bool], int] = field(default_factory=dict)

    @property
    def end(self) -> int:
        """One past the last row."""
        return self.row + max([count for (_, is_elements), count in self.counts.items() if not is_elements], default=0)


class Block(NamedTuple):
    """Whole episodes, one or many, that become visible together.

    Attributes:
        pieces: the rows of each field, row T of each episode included. They can be gone through more than once.
        lengths: T of each episode, at least one.
        flags: of all episodes, or of each.
        meta: of meta fields a value for all episodes, or one for each; others hold their default.
        elements: by field that has elements, how many elements each episode has.
        early: of a single episode, the rows that come before the pieces.
        sums: by field the checksums of each episode, where they are known once the pieces were gone through.
        sums_may_wait: whether the checksums of short episodes are left to flush and close.
    """

    pieces: Iterable[Piece]
    lengths: Sequence[int]
    flags: int | npt.NDArray[np.uint8]
    meta: Mapping[str, MetaColumn]
    elements: Mapping[str, Sequence[int]] = MappingProxyType({})
    early: EarlyRows | None = None
    sums: Mapping[str, npt.NDArray[np.uint32]] | None = None
    sums_may_wait: bool = False

    @classmethod
    def of_rows(
        cls,
        fields: Mapping[str, Field],
        rows: Mapping[str, npt.NDArray[Any] | Ragged],
        lengths: Sequence[int],
        flags: int | npt.NDArray[np.uint8],
        meta: Mapping[str, MetaColumn],
        *,
        sums_may_wait: bool = False,
    ) -> Block:
        """Episodes whose rows, one episode after another, are a contiguous array for each of these fields.

        Those of fields with a codec are encoded here.
        """
        pieces: list[Piece] = []
        elements: dict[str, Sequence[int]] = {}
        for name, values in rows.items():
            if not isinstance(values, Ragged) and fields[name].codec is not None:
                values = as_stored(fields[name], values)
            if isinstance(values, Ragged):
                counts, whole = values.compact()
                pieces += [(name, True, 0, whole.data), (name, False, 0, spans_of(counts).data)]
                has_row_t = (len(counts) - sum(lengths)) // len(lengths)
                ends = np.cumsum(np.add(lengths, has_row_t))
                elements[name] = np.add.reduceat(counts, [0, *ends[:-1]]).tolist()
            else:
                pieces.append((name, False, 0, values.data))
        return cls(pieces, lengths, flags, meta, elements, sums_may_wait=sums_may_wait)
