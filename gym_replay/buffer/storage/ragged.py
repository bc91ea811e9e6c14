"""Rows of different sizes: where each one's elements lie, and the elements."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gym_replay.errors import CorruptBufferError, StorageError

SPAN = np.dtype("<i8")
"""Of the two numbers in a span: the first element, and how many there are."""

Elements = npt.NDArray[Any]


def spans_of(counts: npt.NDArray[np.int64], first: int = 0) -> npt.NDArray[np.int64]:
    """The spans of rows with these numbers of elements, one after another from element ``first``: ``(rows, 2)``."""
    return np.stack((first + np.cumsum(counts) - counts, counts), axis=1)


def misplaced(spans: npt.NDArray[np.int64], heads: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Which episodes have spans that do not follow one another.

    Args:
        spans: of episodes, one after another: ``(rows, 2)``.
        heads: the first row of each episode.
    """
    first, counts = spans[:, 0], spans[:, 1]
    follows = np.zeros(len(spans), np.bool_)
    follows[1:] = first[1:] == first[:-1] + counts[:-1]
    follows[heads] = True
    wrong = ~follows | (spans < 0).any(axis=1) | (spans >= 1 << 60).any(axis=1)
    found: npt.NDArray[np.int64] = np.unique(np.searchsorted(heads, np.flatnonzero(wrong), side="right") - 1)
    return found


class Ragged:
    """The rows of a ragged field: ``rows[t]`` is an array ``(n, *field.shape)``, with another n for each t.

    Args:
        spans: int64 ``(rows, 2)``: the first element of each row, and the number of its elements.
        view: gives the elements up to a number, ``(end, *field.shape)``; raises CorruptBufferError where there are
            fewer.
        path: of the file of spans, for messages.

    Example:
        >>> rows = Ragged.of_rows([np.array([1, 2]), np.array([], int), np.array([3])], np.dtype(int), ())
        >>> rows[0], rows.lengths, rows.padded()
        (array([1, 2]), array([2, 0, 1]), array([[1, 2],
               [0, 0],
               [3, 0]]))
    """

    def __init__(self, spans: npt.NDArray[np.int64], view: Callable[[int], Elements], path: Path | None = None) -> None:
        self.spans = spans
        self._view = view
        self._path = path

    @classmethod
    def of_rows(cls, rows: Sequence[Elements], dtype: np.dtype[Any], shape: tuple[int, ...]) -> Ragged:
        """The rows given as one array each."""
        values = np.concatenate(rows) if rows else np.empty((0, *shape), dtype)
        return cls.of_lengths(np.fromiter(map(len, rows), np.int64, len(rows)), values)

    @classmethod
    def of_lengths(cls, lengths: npt.NDArray[np.int64], values: Elements) -> Ragged:
        """Rows that lie one after another in ``values``."""
        return cls.of_spans(spans_of(lengths), values)

    @classmethod
    def of_spans(cls, spans: npt.NDArray[np.int64], values: Elements) -> Ragged:
        """Rows that lie in ``values`` where the spans say."""
        return cls(spans, lambda end: values[:end])

    @classmethod
    def concatenate(cls, parts: Sequence[Ragged]) -> Ragged:
        """The rows of all parts, in memory of their own."""
        values = np.concatenate([part.values() for part in parts])
        return cls.of_lengths(np.concatenate([part.lengths for part in parts]), values)

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """How many elements each row has, int64 ``(rows,)``."""
        return self.spans[:, 1]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one element."""
        return self._view(0).shape[1:]

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the elements."""
        return self._view(0).dtype

    def __len__(self) -> int:
        return len(self.spans)

    def __getitem__(self, index: Any) -> Any:
        """One row's elements, read-only; for a slice or an array of rows, those rows."""
        spans = self.spans[index]
        if spans.shape != (2,):
            return Ragged(spans, self._view, self._path)
        begin, count = spans.tolist()
        row: Elements = self._upto(np.array([[begin, count]]))[begin : begin + count]
        return row

    def __iter__(self) -> Iterator[Elements]:
        for index in range(len(self)):
            yield self[index]

    def elements(self) -> Elements:
        """The elements of the field, as far as the rows reach.

        Raises:
            CorruptBufferError: the elements are not where the spans say.
        """
        return self._upto(self.spans)

    @property
    def where(self) -> str:
        """The file, as a message begins with it; nothing for rows that are in memory."""
        return "" if self._path is None else f"{self._path}: "

    def _upto(self, spans: npt.NDArray[np.int64]) -> Elements:
        """The elements, as far as these spans reach."""
        if len(spans) == 0:
            return self._view(0)
        if spans.min() < 0 or spans.max() >= 1 << 60:
            raise CorruptBufferError(f"{self.where}no row has its elements at {spans.min()}, or {spans.max()} of them")
        # Rows without elements may lie past the end, where a damaged episode's elements were given up.
        return self._view(int(spans.sum(axis=1).max(initial=0, where=spans[:, 1] > 0)))

    def values(self) -> Elements:
        """The elements of all rows, one row after another, in memory of their own: ``(elements, *shape)``."""
        spans = self.spans.copy()  # in a ring they may be overwritten meanwhile
        elements = self._upto(spans)
        begins, counts = spans[:, 0], spans[:, 1]
        with self.fitting_into_memory(counts):
            if len(spans) and (begins[1:] == begins[:-1] + counts[:-1]).all():  # as they lie in an episode
                return np.array(elements[begins[0] : begins[-1] + counts[-1]])
            taken: Elements = elements.take(_elements(begins, counts), axis=0)
        return taken

    def padded(self, width: int | None = None) -> Elements:
        """The rows side by side, padded with zeros on the right: ``(rows, width or longest, *shape)``."""
        counts, elements = self.compact()
        width = int(counts.max(initial=0)) if width is None else width
        with self.fitting_into_memory(counts):
            out = np.zeros((len(counts), width, *elements.shape[1:]), elements.dtype)
            out[np.arange(width) < counts[:, None]] = elements
        return out

    @contextmanager
    def fitting_into_memory(self, counts: npt.NDArray[np.int64]) -> Iterator[None]:
        """Turn a MemoryError, of rows with these numbers of elements, into a StorageError."""
        try:
            yield
        except MemoryError:
            longest, total = int(counts.max(initial=0)), sum(counts.tolist())
            raise StorageError(
                errno.ENOMEM,
                f"{len(counts)} rows of up to {longest} elements, {total} in all, do not fit into memory; take fewer "
                "at a time",
                None if self._path is None else str(self._path),
            ) from None

    def tolist(self) -> list[Any]:
        """Nested lists of the elements of each row."""
        return [row.tolist() for row in self]

    def compact(self) -> tuple[npt.NDArray[np.int64], Elements]:
        """How many elements each row has, and the elements of all rows, both in memory of their own."""
        rows = Ragged(self.spans.copy(), self._view, self._path)
        return rows.lengths, rows.values()

    def copy(self) -> Ragged:
        """The same rows with elements in memory of their own."""
        return Ragged.of_lengths(*self.compact())

    def __reduce__(self) -> tuple[Any, ...]:
        return Ragged.of_lengths, self.compact()

    def __repr__(self) -> str:
        return f"Ragged({len(self)} rows of {self.dtype.name} elements of shape {self.shape})"


def _elements(begins: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The numbers of all elements, row after row."""
    ends = np.cumsum(counts)
    numbers: npt.NDArray[np.int64] = np.repeat(begins - (ends - counts), counts)
    return numbers + np.arange(len(numbers))
