"""Whole episodes on their way into the files: what a commit takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from gym_replay.buffer.storage.records import MetaColumn

Rows: TypeAlias = Any
"""Rows of a field, those of one episode after another: a contiguous buffer. Of a ragged field ``Ragged``, an array of
arrays, or the bytes of each row; of a field with a codec an array, or the bytes of each row, none for the default.
"""


class EarlyRows(NamedTuple):
    """Rows that are in the buffer's files before their commit, where no reader looks.

    Attributes:
        row: the first of them, behind the last row that a live episode owns.
        elements: of fields that have elements, the first element.
        length: how many rows there are of each field.
        counts: how many elements there are of fields that have them.
    """

    row: int
    elements: Mapping[str, int]
    length: int = 0
    counts: Mapping[str, int] = {}

    @property
    def end(self) -> int:
        """One past the last row."""
        return self.row + self.length


class Block(NamedTuple):
    """Whole episodes, one or many, that become visible together.

    Attributes:
        rows: by field, row T of each episode included; fields that are missing hold their default.
        lengths: T of each episode, at least one.
        flags: of all episodes, or of each.
        meta: of meta fields a value for all episodes, or one for each; others hold their default.
        early: the rows that come before these, where some were written before: of a single episode, or all.
        sums: by field the checksums of each episode, where they are known.
        sums_may_wait: whether the checksums of short episodes are left to flush and close.
    """

    rows: Mapping[str, Rows]
    lengths: Sequence[int]
    flags: int | npt.NDArray[np.uint8]
    meta: Mapping[str, MetaColumn]
    early: EarlyRows | None = None
    sums: Mapping[str, npt.NDArray[np.uint32]] | None = None
    sums_may_wait: bool = False
