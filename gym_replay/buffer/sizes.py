"""What the rows of fields take, as they are stored and as they would be raw, and what a codec would save."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from gym_replay.buffer.storage.encoded import as_stored
from gym_replay.buffer.storage.ragged import SPAN
from gym_replay.buffer.storage.reader import Snapshot
from gym_replay.schema.codec_choice import with_codecs

SAMPLE = 100
"""Rows that are encoded to see what a codec would save."""


class FieldSize(NamedTuple):
    """Bytes of a field's rows in the live episodes, row T included.

    Attributes:
        raw: of all values; of a ragged field what is stored.
        stored: what they take in the files; of a field that has elements, where each row's begin is counted too.
    """

    raw: int
    stored: int


def field_size(snapshots: Sequence[Snapshot], name: str) -> FieldSize:
    """What the rows of a field take, of all snapshots together."""
    sizes = [_size_in(part, name) for part in snapshots]
    return FieldSize(sum(size.raw for size in sizes), sum(size.stored for size in sizes))


def _size_in(part: Snapshot, name: str) -> FieldSize:
    info, rows = part.metadata.fields[name], int((part.lengths + part.metadata.has_state).sum())
    raw = rows * info.nbytes
    if not info.has_elements:
        return FieldSize(raw, raw)
    stored = _elements(part, name) * info.stored.nbytes + rows * 2 * SPAN.itemsize
    return FieldSize(stored if info.ragged else raw, stored)


def _elements(part: Snapshot, name: str) -> int:
    """How many elements a field has in the live episodes, in each of which they follow one another."""
    if len(part) == 0:
        return 0
    spans, ends = part.stored(name).spans, part.starts + part.lengths - 1 + part.metadata.has_state
    return int((spans[ends].sum(axis=1) - spans[part.starts, 0]).sum())


def sampled_ratio(snapshots: Sequence[Snapshot], name: str, codec: str) -> float:
    """How many times smaller a raw field would be with a codec, by rows that lie evenly over all episodes.

    Raises:
        MissingExtraError: the package that has the codec is not installed.
    """
    total = sum(int(part.lengths.sum()) for part in snapshots)
    samples = np.linspace(0, total - 1, min(SAMPLE, total)).astype(np.int64)
    edges = np.cumsum([0, *(part.lengths.sum() for part in snapshots)])
    raw = encoded = 0
    for part, first, end in zip(snapshots, edges, edges[1:], strict=False):
        info = with_codecs(part.metadata.fields, {name: codec})[name]
        mine = samples[(samples >= first) & (samples < end)] - first
        steps = np.cumsum(part.lengths)
        episodes = np.searchsorted(steps, mine, side="right")
        rows = part.starts[episodes] + mine - (steps - part.lengths)[episodes]
        column = part.column(name)
        for row in rows.tolist():  # one by one: each may have megabytes
            raw, encoded = raw + info.nbytes, encoded + 2 * SPAN.itemsize
            encoded += len(as_stored(info, column[row : row + 1]).values())
    return raw / encoded
