"""From rows to one contiguous array per field, in one call per field.

How rows are taken was decided by measurement (NumPy 2.4, torch 2.13, two cores). ``numpy.take`` is the fastest for
rows of less than a few hundred bytes, and as fast as any for larger ones in one thread. Of a megabyte and more, several
threads take a part each. ``torch.index_select`` is as fast in one thread, and with several wherever no other process
wants the processor. ``tensor[index]`` is two to eight times slower than either, and ``array[index]`` twice for rows
that are not single numbers. All of them are within a fifth of copying as many bytes where rows have kilobytes.
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any, TypeAlias

import numpy as np
import torch

from gym_replay.buffer.loading.plans import Lookup
from gym_replay.buffer.storage import maps
from gym_replay.buffer.storage.encoded import decode_rows, empty_rows, workers_for
from gym_replay.buffer.storage.layout import values_path
from gym_replay.buffer.storage.maps import first_rows, join, require_mappable
from gym_replay.buffer.storage.ragged import Ragged
from gym_replay.buffer.storage.reader import Snapshot
from gym_replay.buffer.storage.threads import share
from gym_replay.schema.arrays import Array, Bools, Ints

Padded: TypeAlias = tuple[Array, Ints]
"""Elements of ragged rows, padded with zeros, and how many each row has."""

THREADED_BYTES = 1 << 20
"""From so many bytes on, rows are taken by several threads, where there are."""

PIECE_BYTES = 1 << 18
"""No piece but the last is smaller: between two, a thread may wait for the interpreter as long as a piece takes."""

_MOST_THREADS = 4  # memory is what limits the speed, and a few threads reach it
_LARGE_ROW = 1 << 10
_MOST_WINDOWS = 16
_SPAN_NBYTES = 16
_LARGEST_RUN = 1 << 30


def threads() -> int:
    """How many threads a gather may use: as many as torch in this process, which in a loader's worker is one."""
    return min(torch.get_num_threads(), _MOST_THREADS)


def take_by_threads(array: Array, rows: Ints) -> Array:
    """``array[rows]`` for rows of one axis, ``(len(rows), *array.shape[1:])``, by threads that take pieces of it.

    Torch's own threads wait for one another at the end of each call. Where the computer has other work, as it does
    while a model trains, one that waits for its turn holds up the rest, and ``index_select`` was measured at seven
    times the time of one thread. Here a thread that comes late finds less to do, or nothing.

    Raises:
        IndexError: there is no such row.
    """
    if rows.min() < 0 or rows.max() >= len(array):
        raise IndexError(f"rows {rows.min()} .. {rows.max()} of an array of {len(array)}")
    out = np.empty((len(rows), *array.shape[1:]), array.dtype)
    workers = threads()

    def work(pieces: Iterator[tuple[int, int]]) -> None:
        for begin, end in pieces:
            # NumPy lets go of the interpreter while it copies. "clip" copies straight into place; nothing is clipped.
            array.take(rows[begin:end], 0, out[begin:end], "clip")

    share(work, _pieces(len(rows), max(1, PIECE_BYTES * len(rows) // out.nbytes), workers), workers)
    return out


def _pieces(count: int, least: int, workers: int) -> list[tuple[int, int]]:
    """Where the pieces of so many rows begin and end: large ones first, small ones for whoever is done early."""
    pieces, begin = [], 0
    while begin < count:
        end = min(count, begin + max(least, (count - begin) // (workers + 1)))
        pieces.append((begin, end))
        begin = end
    return pieces


class Column:
    """The rows of one field over all parts.

    Args:
        array: ``(rows, *field.shape)``.

    Attributes:
        array: the same.
        nbytes: of a row.
    """

    def __init__(self, array: Array) -> None:
        self.array = array
        self.nbytes = array.dtype.itemsize * math.prod(array.shape[1:])
        self._windows: dict[int, Array] = {}

    def take(self, rows: Ints) -> Array:
        """``array[rows]`` in memory of its own: ``(*rows.shape, *field.shape)``."""
        if rows.size * self.nbytes < THREADED_BYTES or threads() == 1:
            return self.array.take(rows, 0)
        return take_by_threads(self.array, rows.reshape(-1)).reshape(*rows.shape, *self.array.shape[1:])

    def take_runs(self, firsts: Ints, length: int) -> Array:
        """``length`` consecutive rows from each of ``firsts``: ``(len(firsts), length, *field.shape)``.

        Half the time of :meth:`take` for small rows: each run is one copy (``benchmarks.load``, windows).

        Raises:
            IndexError: a run reaches outside of the rows.
        """
        array, nbytes = self.array, self.nbytes * length
        # Of large rows each is a long copy anyway, and several threads take them.
        are_for_threads = self.nbytes >= _LARGE_ROW and len(firsts) * nbytes >= THREADED_BYTES and threads() > 1
        if nbytes == 0 or nbytes > _LARGEST_RUN or len(array) < length or are_for_threads:
            return self.take(firsts[:, None] + np.arange(length))
        if (windows := self._windows.get(length)) is None:
            if len(self._windows) >= _MOST_WINDOWS:
                self._windows.clear()
            windows = self._windows[length] = _windows(array, length)
        # argmin takes a third of the time of min, which is a part of that of a batch.
        if len(firsts) and firsts[firsts.argmin()] < 0:  # which NumPy would count from the end
            raise IndexError(f"a run begins at row {firsts.min()}")
        found: Array = windows[firsts].view(array.dtype).reshape(len(firsts), length, *array.shape[1:])
        return found

    def take_slices(self, firsts: Ints, counts: Ints, width: int) -> Array:
        """``counts[i]`` rows from ``firsts[i]`` for each i, padded with zeros: ``(len(firsts), width, *shape)``."""
        out = np.empty((len(firsts), width, *self.array.shape[1:]), self.array.dtype)
        array = self.array
        for sample, (first, count) in enumerate(zip(firsts.tolist(), counts.tolist(), strict=True)):
            out[sample, :count] = array[first : first + count]
            if count < width:
                out[sample, count:] = 0
        return out


def _windows(array: Array, length: int) -> Array:
    """All runs of ``length`` rows as single elements of a type without a meaning, which overlap in memory."""
    nbytes = array.dtype.itemsize * math.prod(array.shape[1:])

    class _Runs:
        _kept = array
        __array_interface__ = array.__array_interface__ | {
            "shape": (len(array) - length + 1,),
            "strides": (nbytes,),
            "typestr": f"|V{nbytes * length}",
            "descr": [("", f"|V{nbytes * length}")],
        }

    return np.asarray(_Runs())


class Rows:
    """The rows of all fields over one or more snapshots of one schema, under one numbering.

    Row r of part p has the number ``firsts[p] + r``. Between the parts there are numbers without a row.

    The parts of a field are mapped as one array, where they can be, and otherwise one by one.

    Args:
        parts: the snapshots.

    Attributes:
        firsts: int64 ``(parts + 1,)``.
    """

    def __init__(self, parts: Sequence[Snapshot]) -> None:
        self._parts = list(parts)
        self._fields = self._parts[0].metadata.fields
        self.firsts = first_rows([part.rows for part in self._parts])
        self._columns: dict[str, Column | None] = {}
        self._encoded = frozenset(name for name, info in self._fields.items() if info.codec is not None)
        self._lookup = Lookup(self.firsts)
        self._used = np.arange(len(self._parts))
        self._are_own = False
        self.are_mirrored = any(part.reader.mirrored is not None for part in self._parts)
        self._process = os.getpid()

    @contextmanager
    def holding(self) -> Iterator[None]:
        """Keep rows that are fetched until the end of the context, where the parts are not all on this disk."""
        if not self.are_mirrored:
            yield
            return
        if self._process != os.getpid():  # a forked process has maps, and files, of its own
            self._process, self._columns = os.getpid(), {}
        with ExitStack() as stack:
            mirrored = [part.reader.mirrored for part in self._parts]
            for mirror in {id(one.mirror): one.mirror for one in mirrored if one is not None}.values():
                stack.enter_context(mirror.hold())
            yield

    def fetch(self, wanted: Iterable[tuple[str, Ints]]) -> None:
        """Have rows of fields fetched that are about to be taken, all at once; does nothing for parts on this disk."""
        if self.are_mirrored:
            for name, rows in wanted:
                self._ask(name, rows.reshape(-1), wait=False)

    def _ask(self, name: str, rows: Ints, *, wait: bool) -> None:
        """Have rows fetched, or those of a field that has elements, without its elements."""
        for part, mine in self._by_part(rows, np.arange(len(rows))):
            snapshot = self._parts[part]
            column, own = snapshot.columns[snapshot.metadata.rows_path(name)], rows[mine] - self.firsts[part]
            (column.need if wait else column.expect)(own, own + 1)

    def without_read_ahead(self) -> None:
        """Have maps of its own from now on, of which only what is taken or :meth:`will_need` asks for is read."""
        self._are_own, self._columns = True, {}

    def fit_into_memory(self, names: Iterable[str]) -> bool:
        """Whether the rows of these fields do, but for those that have elements, on this machine."""
        width = sum(self._fields[name].nbytes for name in names if not self._fields[name].has_elements)
        return int(self.firsts[-1]) * width <= maps.memory_bytes()

    def map(self, names: Iterable[str]) -> None:
        """Map these fields, but for those that have elements."""
        for name in names:
            if not self._fields[name].has_elements:
                self.column(name)

    def will_need(self, names: Iterable[str], stretches: Sequence[tuple[int, int]]) -> None:
        """Ask for these rows of these fields to be in memory soon; all rows read so far may go first where it is short.

        Args:
            names: fields; ragged ones are passed over.
            stretches: rows, as ranges from the first to before the last, each of one part.
        """
        if self.are_mirrored:
            with self.holding():
                self._expect_stretches(names, stretches)
            return
        for name in names:
            if name in self._encoded:
                self._will_need_encoded(name, stretches)
            column = None if self._fields[name].has_elements else self.column(name)
            if column is None or not column.nbytes:
                continue
            begin = column.array.ctypes.data
            maps.let_go(begin, column.array.nbytes)
            for first, last in stretches:
                maps.will_need(begin + first * column.nbytes, (last - first) * column.nbytes)

    def _expect_stretches(self, names: Iterable[str], stretches: Sequence[tuple[int, int]]) -> None:
        """Have stretches of rows fetched."""
        edges = np.array(stretches, np.int64).reshape(-1, 2)
        parts = [
            (self._parts[part], edges[mine] - self.firsts[part])
            for part, mine in self._by_part(edges[:, 0], np.arange(len(edges)))
        ]
        for name in names:
            for part, own in parts:
                part.columns[part.metadata.rows_path(name)].expect(own[:, 0], own[:, 1])
        for name in names:
            if self._fields[name].has_elements:
                for part, own in parts:
                    first, last = part.spans_of(name, own[:, 0]), part.spans_of(name, own[:, 1] - 1)
                    part.columns[values_path(name)].expect(first[:, 0], last.sum(axis=1))

    def _will_need_encoded(self, name: str, stretches: Sequence[tuple[int, int]]) -> None:
        """Ask for the elements of these rows; to find them, the spans at both ends are read."""
        edges = np.array(stretches, np.int64).reshape(-1, 2)
        for part, mine in self._by_part(edges[:, 0], np.arange(len(edges))):
            stored = self._parts[part].stored(name)
            for first, last in (edges[mine] - self.firsts[part]).tolist():
                ends = stored[[first, last - 1]]
                elements, (begin, end) = ends.elements(), (int(ends.spans[0, 0]), int(ends.spans[1].sum()))
                if 0 <= begin < end <= len(elements):
                    maps.will_need(elements.ctypes.data + begin, end - begin)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_columns": {}}  # maps are made anew where they are used

    def use(self, parts: Ints) -> None:
        """Map no other parts than these, ascending."""
        self._used = parts
        self._columns = {}

    def expect(self, names: Collection[str]) -> None:
        """Raise StorageError where these fields of all parts are more than the system can map."""
        if len(self._used) > 1:
            require_mappable(len(self._used), len(names))

    def column(self, name: str) -> Column | None:
        """A field without elements, over all parts; None where its files cannot be mapped as one array."""
        try:
            return self._columns[name]
        except KeyError:
            column = self._columns[name] = self._joined(name)
            return column

    def _joined(self, name: str) -> Column | None:
        """All parts that are used, as one array."""
        field = self._fields[name]
        if field.nbytes == 0:
            return Column(np.empty((int(self.firsts[-1]), *field.shape), field.dtype))
        if len(self._parts) == 1 and (self.are_mirrored or not self._are_own):
            return Column(self._mapped(0, name))
        used = [self._parts[part] for part in self._used.tolist()]
        files = [part.columns[part.metadata.rows_path(name)] for part in used]
        array = join(files, [part.rows for part in used], np.append(self.firsts[self._used], self.firsts[-1]))
        if array is None:
            return Column(self._mapped(0, name)) if len(self._parts) == 1 else None
        if self._are_own:
            maps.without_read_ahead(array)
        return Column(array)

    def _mapped(self, part: int, name: str) -> Array:
        """The rows of one part, of which those that were fetched are there."""
        snapshot = self._parts[part]
        return snapshot.columns[snapshot.metadata.rows_path(name)].mapped(snapshot.rows)

    def stored_nbytes(self, name: str, rows: Ints) -> float:
        """Bytes on the disk of a row of a field, of one with a codec the mean of these rows."""
        field = self._fields[name]
        if not field.has_elements:
            return field.nbytes
        found = [
            self._parts[part].spans_of(name, rows[mine] - self.firsts[part])[:, 1]
            for part, mine in self._by_part(rows, np.arange(len(rows)))
        ]
        mean = float(np.concatenate(found).clip(0, 2 * field.nbytes).mean()) if field.codec is not None else 0.0
        return _SPAN_NBYTES + mean

    def take(self, name: str, rows: Ints) -> Array:
        """A field's values at rows of any shape: ``(*rows.shape, *field.shape)``, in memory of their own."""
        column = None if self.are_mirrored else self._columns.get(name)
        if column is None:
            return self._taken(name, rows)
        if rows.size * column.nbytes < THREADED_BYTES:  # written out: of the smallest batches a call is a part
            return column.array.take(rows, 0)
        return column.take(rows)

    def _taken(self, name: str, rows: Ints) -> Array:
        """The values of a field that is mapped for the first time, or not as one array of all parts."""
        if name in self._encoded:
            return self.take_encoded(name, [(rows, None)])[0]
        with self.holding():
            if self.are_mirrored:
                self._ask(name, rows.reshape(-1), wait=True)
            column = self.column(name)
            if column is not None:
                return column.take(rows)
            field = self._fields[name]
            flat, out = rows.reshape(-1), np.empty((rows.size, *field.shape), field.dtype)
            for part, mine in self._by_part(flat, np.arange(len(flat))):
                out[mine] = self._mapped(part, name).take(flat[mine] - self.firsts[part], 0)
            return out.reshape(*rows.shape, *field.shape)

    def take_runs(self, name: str, firsts: Ints, length: int) -> Array:
        """``length`` consecutive rows from each of ``firsts``: ``(len(firsts), length, *field.shape)``."""
        column = None if name in self._encoded or self.are_mirrored else self.column(name)
        if column is None:
            return self.take(name, firsts[:, None] + np.arange(length))
        return column.take_runs(firsts, length)

    def take_slices(self, name: str, firsts: Ints, counts: Ints, width: int) -> Array:
        """``counts[i]`` rows from ``firsts[i]`` for each i, padded with zeros: ``(len(firsts), width, *shape)``."""
        offsets = np.arange(width)
        if name in self._encoded:
            return self.take_encoded(name, [(firsts[:, None] + offsets, offsets < counts[:, None])])[0]
        column = None if self.are_mirrored else self.column(name)
        if column is not None:
            return column.take_slices(firsts, counts, width)
        there = offsets < counts[:, None]
        values = self.take(name, firsts[:, None] + np.where(there, offsets, 0))
        values[~there] = 0
        return values

    def take_encoded(self, name: str, wanted: Sequence[tuple[Ints, Bools | None]]) -> list[Array]:
        """The values of a field with a codec at several arrays of rows, each distinct row decoded once.

        Args:
            name: the field.
            wanted: rows of any shape, and of the same shape False where zeros are to come; None for nowhere.

        Returns:
            For each of them ``(*rows.shape, *field.shape)``.

        Raises:
            CorruptBufferError: a row cannot be decoded.
        """
        with self.holding():
            return self._decoded(name, wanted)

    def _decoded(self, name: str, wanted: Sequence[tuple[Ints, Bools | None]]) -> list[Array]:
        field = self._fields[name]
        flat = np.concatenate([rows.reshape(-1) for rows, _ in wanted])
        there = np.concatenate([np.ones(r.size, bool) if some is None else some.reshape(-1) for r, some in wanted])
        distinct, numbers = np.unique(flat[there], return_inverse=True)
        slots = np.full(len(flat), -1, np.int64)
        slots[there] = numbers.reshape(-1)
        parts = [
            self._stored(part, name, distinct[mine] - self.firsts[part])
            for part, mine in self._by_part(distinct, np.arange(len(distinct)))
        ]
        out = empty_rows(len(flat), field)
        decode_rows(field, parts, out, slots, workers_for(len(distinct) * field.nbytes, torch.get_num_threads()))
        ends = np.cumsum([0, *(rows.size for rows, _ in wanted)]).tolist()
        return [
            out[begin:end].reshape(*rows.shape, *field.shape)
            for (rows, _), begin, end in zip(wanted, ends[:-1], ends[1:], strict=True)
        ]

    def _stored(self, part: int, name: str, rows: Ints) -> tuple[Ragged, Ints]:
        """Rows of a field that has elements, and which of them."""
        if self.are_mirrored:
            return self._parts[part].stored_rows(name, rows), np.arange(len(rows))
        return self._parts[part].stored(name), rows

    def take_ragged(self, name: str, rows: Ints, present: Bools | None = None) -> Padded:
        """The elements of a ragged field at rows of any shape, padded, and how many there are.

        Args:
            name: the field.
            rows: int64, of any shape.
            present: of the same shape: False where a row is not to be taken, and counts as empty.

        Returns:
            ``(*rows.shape, longest, *field.shape)``, padded with zeros on the right, and int64 ``rows.shape``.
        """
        with self.holding():
            return self._padded(name, rows, present)

    def _padded(self, name: str, rows: Ints, present: Bools | None) -> Padded:
        flat = rows.reshape(-1)
        taken = []
        wanted = np.arange(len(flat)) if present is None else np.flatnonzero(present)
        for part, mine in self._by_part(flat, wanted):
            elements = self._parts[part].stored_rows(name, flat[mine] - self.firsts[part])
            elements.elements()  # before anything of the size that they claim is allocated
            taken.append((mine, elements))
        lengths = np.zeros(len(flat), np.int64)
        for mine, elements in taken:
            lengths[mine] = elements.lengths
        width = int(lengths.max(initial=0))
        field = self._fields[name]
        with taken[0][1].fitting_into_memory(lengths) if taken else nullcontext():
            padded = np.zeros((len(flat), width, *field.shape), field.dtype)
        for mine, elements in taken:
            padded[mine] = elements.padded(width)
        return padded.reshape(*rows.shape, width, *field.shape), lengths.reshape(rows.shape)

    def _by_part(self, rows: Ints, wanted: Ints) -> Iterator[tuple[int, Ints]]:
        """The parts that have any of the wanted ones of these rows, each with the indices of its rows."""
        owners = self._lookup.find(rows[wanted])
        order = np.argsort(owners, kind="stable")
        parts, begins = np.unique(owners[order], return_index=True)
        if len(parts):
            yield from zip(parts.tolist(), np.split(wanted[order], begins[1:]), strict=True)
