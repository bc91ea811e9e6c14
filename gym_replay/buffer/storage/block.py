"""Whole episodes on their way into the files: what a commit takes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from gym_replay.buffer.storage.ragged import Ragged, spans_of
from gym_replay.buffer.storage.records import MetaColumn
from gym_replay.schema.fields import Field

Piece: TypeAlias = tuple[str, bool, int, bytes]
"""Bytes of one file of an episode: the field, whether these are elements of a ragged field, the first row (or element)
of the episode, and the bytes. The rows of a ragged field are spans that count from the episode's first element.
"""

BlockPiece: TypeAlias = tuple[str, bool, int, "bytes | memoryview"]
"""A piece of one episode, or of several, whose rows lie one episode after another."""


class Spill(Protocol):
    """Where rows of the open episode go before its commit."""

    def write(self, piece: Piece) -> None:
        """Keep a piece."""

    def read(self, name: str, rows: int) -> bytes:
        """The bytes of the first rows of a field, kept before."""

    def pieces(self) -> Iterator[Piece]:
        """What the commit has to write of what is kept."""

    def add_fields(self, fields: Mapping[str, Field]) -> None:
        """Take pieces of these fields from now on: of new ones, and of others in a wider dtype."""

    def check(self, fields: Mapping[str, Field]) -> None:
        """Raise FieldError where a value that is kept would change in the wider dtype of a field."""

    def close(self) -> None:
        """The episode has ended: what is kept only for the commit can go."""


def _ignore(first_id: int) -> None:
    """Nobody asks whether the commit came through."""


class Block(NamedTuple):
    """Whole episodes, one or many, that become visible together.

    Attributes:
        pieces: the rows of each field, row T of each episode included. They can be gone through more than once.
        lengths: T of each episode, at least one.
        flags: of all episodes, or of each.
        meta: a value for all episodes, or one for each, of every meta field.
        elements: by ragged field, how many elements each episode has.
        begin: is told the first episode's id before anything is written. The commit is through once the counter
            ``next`` is past it, whatever exception came then.
        spill: of a single episode, what keeps the rows that come before the pieces.
        sums: by field the checksums of each episode, where they are known once the pieces were gone through.
        sums_may_wait: whether the checksums of short episodes are left to flush and close.
    """

    pieces: Iterable[BlockPiece]
    lengths: list[int] | npt.NDArray[np.int64]
    flags: int | npt.NDArray[np.uint8]
    meta: Mapping[str, MetaColumn]
    elements: Mapping[str, Sequence[int]] = MappingProxyType({})
    begin: Callable[[int], None] = _ignore
    spill: Spill | None = None
    sums: Mapping[str, npt.NDArray[np.uint32]] | None = None
    sums_may_wait: bool = False

    @classmethod
    def of_rows(
        cls,
        rows: Mapping[str, npt.NDArray[Any] | Ragged],
        lengths: list[int] | npt.NDArray[np.int64],
        flags: int | npt.NDArray[np.uint8],
        meta: Mapping[str, MetaColumn],
        begin: Callable[[int], None] = _ignore,
        *,
        sums_may_wait: bool = False,
    ) -> Block:
        """Episodes whose rows, one episode after another, are a contiguous array for each field."""
        pieces: list[BlockPiece] = []
        elements: dict[str, Sequence[int]] = {}
        for name, values in rows.items():
            if isinstance(values, Ragged):
                counts, whole = values.compact()
                pieces += [(name, True, 0, whole.data), (name, False, 0, spans_of(counts).data)]
                has_row_t = (len(counts) - int(np.sum(lengths))) // len(lengths)
                ends = np.cumsum(np.add(lengths, has_row_t))
                elements[name] = np.add.reduceat(counts, [0, *ends[:-1]]).tolist()
            else:
                pieces.append((name, False, 0, values.data))
        return cls(pieces, lengths, flags, meta, elements, begin, sums_may_wait=sums_may_wait)
