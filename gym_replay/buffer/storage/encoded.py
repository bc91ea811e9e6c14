"""The rows of a field with a codec: encoded one by one on their way into the files, and decoded where they are read."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from numpy.lib.mixins import NDArrayOperatorsMixin

from gym_replay.buffer.storage.ragged import Ragged
from gym_replay.buffer.storage.threads import share, storage_threads
from gym_replay.errors import CorruptBufferError, StorageError
from gym_replay.schema.codecs import Codec, UndecodableError
from gym_replay.schema.fields import Field

Array: TypeAlias = npt.NDArray[Any]
Ints: TypeAlias = npt.NDArray[np.int64]

THREADED_BYTES = 1 << 20
"""Decoded bytes from which on several threads encode or decode them."""

_AT_ONCE = 8
"""Rows that a thread encodes at a time, at most."""

_PIECE_NBYTES = 1 << 20
"""Decoded bytes that a thread takes at a time, at most, unless a row has more: what is decoded in one call leaves the
other threads the interpreter (the frames of 84x84 of ``benchmarks.frames``)."""


def encode_rows(field: Field, rows: Sequence[bytes] | Array) -> list[bytes]:
    """Each row as it is stored: encoded, or no bytes where it is the field's default.

    Args:
        field: one with a codec.
        rows: ``(rows, *field.shape)``, or the bytes of each; of those without any no bytes come.

    Raises:
        MissingExtraError: the package that has the codec is not installed.
    """
    default = field.default_value().tobytes()
    beginning, encoded = default[:64], [b""] * len(rows)
    codec = field.codec_of_rows() if len(rows) else None

    def work(pieces: Iterator[tuple[int, int]]) -> None:
        assert codec is not None
        for begin, end in pieces:
            for index in range(begin, end):
                row = rows[index]
                head = row[:64] if isinstance(row, bytes) else row.reshape(-1)[:64].tobytes()[:64]
                if head == beginning:
                    row = row if isinstance(row, bytes) else row.tobytes()
                    if row == default:
                        continue
                if len(row):
                    encoded[index] = codec.encode(row)

    share(work, _pieces(len(rows)), workers_for(len(rows) * field.nbytes))
    return encoded


def as_stored(field: Field, rows: Sequence[bytes] | Array) -> Ragged:
    """The rows as ragged bytes."""
    encoded = encode_rows(field, rows)
    lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
    return Ragged.of_lengths(lengths, np.frombuffer(b"".join(encoded), np.uint8))


def _pieces(count: int) -> list[tuple[int, int]]:
    step = max(1, min(_AT_ONCE, count // 8))
    return [(begin, min(begin + step, count)) for begin in range(0, count, step)]


def workers_for(nbytes: int, most: int | None = None) -> int:
    """How many threads encode or decode so many bytes: one for few, otherwise ``most``."""
    if nbytes < THREADED_BYTES:
        return 1
    return storage_threads() if most is None else most


class Encoded(NDArrayOperatorsMixin):
    """The rows of a field with a codec, decoded when they are asked for: an array ``(rows, *field.shape)`` to look at.

    ``rows[t]`` is one decoded row, ``rows[a:b]`` and ``rows[[3, 5]]`` are several, ``numpy.asarray(rows)`` all of them,
    each in memory of its own. Operators, NumPy's functions and the methods of arrays, such as ``astype``, take it as
    the array of all rows, which is read-only, and give arrays.

    Args:
        stored: the encoded rows.
        field: dtype, shape, default and codec of a row.

    Attributes:
        stored: the encoded rows, ragged bytes.
        field: dtype, shape, default and codec of a row.

    Example:
        >>> field = Field("uint8", (2, 2), codec="zstd")
        >>> rows = Encoded(as_stored(field, np.arange(12, dtype=np.uint8).reshape(3, 2, 2)), field)
        >>> rows.shape, rows[1].tolist(), rows[1:, 0].tolist()
        ((3, 2, 2), [[4, 5], [6, 7]], [[4, 5], [8, 9]])
    """

    def __init__(self, stored: Ragged, field: Field) -> None:
        self.stored, self.field = stored, field

    @property
    def shape(self) -> tuple[int, ...]:
        """``(rows, *field.shape)``."""
        shape: tuple[int, ...] = (len(self.stored), *self.field.shape)
        return shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the decoded values."""
        dtype: np.dtype[Any] = self.field.dtype
        return dtype

    @property
    def ndim(self) -> int:
        """How many axes there are, that of the rows included."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """How many values there are."""
        return self.nbytes // self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of all rows when they are decoded."""
        return len(self) * self.field.nbytes

    def __len__(self) -> int:
        return len(self.stored)

    def part(self, rows: slice) -> Encoded:
        """Some of the rows, not decoded yet."""
        return Encoded(self.stored[rows], self.field)

    def __getitem__(self, index: Any) -> Any:
        first, *others = index if isinstance(index, tuple) and index else (index,)
        if isinstance(first, (int, np.integer)) and not isinstance(first, bool):
            within: tuple[Any, ...] = (0, *others)
            return self.take(np.arange(len(self))[first, None])[within]
        if isinstance(first, slice):
            within = (slice(None), *others)
            return self.take(np.arange(len(self))[first])[within]
        if isinstance(first, (list, np.ndarray)) and not others:
            rows = np.arange(len(self))[first]
            return self.take(rows.reshape(-1)).reshape(*rows.shape, *self.field.shape)
        return np.asarray(self)[index]

    def __iter__(self) -> Iterator[Array]:
        for index in range(len(self)):
            yield self[index]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        if copy is False:
            raise ValueError("the rows are decoded into memory of their own: copy=False cannot be")
        found = self.copy()
        return found if dtype is None else found.astype(dtype, copy=False)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        arrays = [np.asarray(one) if isinstance(one, Encoded) else one for one in inputs]
        return getattr(ufunc, method)(*arrays, **options)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or not hasattr(np.ndarray, name):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        rows = self.copy()
        rows.flags.writeable = False
        return getattr(rows, name)

    def copy(self) -> Array:
        """All rows, decoded."""
        return self.take(np.arange(len(self)))

    def take(self, rows: Ints) -> Array:
        """Some rows, decoded: ``(len(rows), *field.shape)``.

        Raises:
            CorruptBufferError: one does not decode; the message names it.
            StorageError: they do not fit into memory.
        """
        out = empty_rows(len(rows), self.field)
        distinct, slots = np.unique(rows, return_inverse=True)
        decode_rows(self.field, [(self.stored, distinct)], out, slots.reshape(-1), workers_for(out.nbytes))
        return out

    def __repr__(self) -> str:
        return f"Encoded({len(self)} rows of {self.dtype.name} {self.field.shape}, {self.field.codec['id']})"


class _Job(NamedTuple):
    """Some rows that one thread decodes.

    Attributes:
        elements: the elements of the field.
        where: the file, for messages.
        first: the number of the first of the rows.
        spans: where each is among the elements.
        rows: their names, for messages.
    """

    elements: Array
    where: str
    first: int
    spans: list[list[int]]
    rows: list[int]


def undecodable(field: Field, stored: Ragged) -> list[tuple[int, str]]:
    """Which rows of a field with a codec cannot be decoded, in ascending order, each with the reason.

    Raises:
        CorruptBufferError: the elements are not where the spans say.
        MissingExtraError: the package that has the codec is not installed.
    """
    codec, elements, spans = field.codec_of_rows(), stored.elements(), stored.spans.tolist()
    found: list[tuple[int, str]] = []

    def work(pieces: Iterator[tuple[int, int]]) -> None:
        target = codec.targets(empty_rows(1, field))[0]
        for begin, end in pieces:
            for row, (first, count) in enumerate(spans[begin:end], begin):
                if count and (reason := _fault_of(codec, elements[first : first + count].tobytes(), target)):
                    found.append((row, reason))

    share(work, _pieces(len(spans)), workers_for(len(spans) * field.nbytes))
    return sorted(found)


def _fault_of(codec: Codec, content: bytes, target: Array) -> str | None:
    try:
        codec.decode(content, target)
    except UndecodableError as error:
        return str(error)
    return None


def empty_rows(count: int, field: Field) -> Array:
    """Memory for so many decoded rows.

    Raises:
        StorageError: there is no such memory.
    """
    try:
        return np.empty((count, *field.shape), field.dtype)
    except MemoryError:
        what = f"{count} rows of {field.nbytes} bytes do not fit into memory; take fewer at a time"
        raise StorageError(errno.ENOMEM, what) from None


def decode_rows(field: Field, parts: Sequence[tuple[Ragged, Ints]], out: Array, slots: Ints, workers: int) -> None:
    """Decode distinct rows, each once, into all slots that they belong to.

    Args:
        field: one with a codec.
        parts: encoded rows, and which of them; counted through all parts, the distinct rows have the numbers 0, 1, ...
        out: ``(slots, *field.shape)``.
        slots: of each slot of ``out`` the number of its row; -1 where zeros are to be.
        workers: how many threads take part.

    Raises:
        CorruptBufferError: a row does not decode, or is not where its span says.
    """
    codec, default = field.codec_of_rows(), field.default_value()
    targets = codec.targets(out)
    order = np.argsort(slots, kind="stable")
    begins = np.searchsorted(slots[order], np.arange(sum(len(rows) for _, rows in parts) + 1))
    out[order[: begins[0]]] = 0
    order_list, begin_list = order.tolist(), begins.tolist()
    jobs: list[_Job] = []
    number = 0
    for stored, rows in parts:
        some = stored[rows]
        elements, spans, named = some.elements(), some.spans.tolist(), rows.tolist()
        step = max(1, min(_PIECE_NBYTES // field.nbytes, len(rows) // (4 * workers)))
        for begin in range(0, len(named), step):
            end = begin + step
            jobs.append(_Job(elements, stored.where, number + begin, spans[begin:end], named[begin:end]))
        number += len(named)

    def work(pieces: Iterator[_Job]) -> None:
        for elements, where, first, spans, rows in pieces:
            # Copies, which a ring's writer cannot change any more.
            contents = [elements[begin : begin + count].tobytes() for begin, count in spans]
            slots_of = [order_list[begin_list[at] : begin_list[at + 1]] for at in range(first, first + len(rows))]
            present = [index for index, content in enumerate(contents) if content]
            try:
                codec.decode_each([contents[index] for index in present], [targets[slots_of[i][0]] for i in present])
            except UndecodableError as error:
                row = rows[present[error.index]]
                raise CorruptBufferError(f"{where}row {row} cannot be decoded: {error}") from None
            for content, (slot, *others) in zip(contents, slots_of, strict=True):
                if not content:
                    out[slot] = default
                for other in others:
                    out[other] = out[slot]

    share(work, jobs, workers)
