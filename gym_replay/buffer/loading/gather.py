"""From rows to one contiguous array per field, in one call per field.

How rows are taken was decided by measurement (NumPy 2.4, torch 2.13, two cores). ``numpy.take`` is the fastest for
rows of less than a few hundred bytes, and as fast as any for larger ones in one thread. Of a megabyte and more, several
threads take a part each. ``torch.index_select`` is as fast in one thread, and with several wherever no other process
wants the processor. ``tensor[index]`` is two to eight times slower than either, and ``array[index]`` twice for rows
that are not single numbers. All of them are within a fifth of copying as many bytes where rows have kilobytes.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from gym_replay.buffer.loading import threads
from gym_replay.buffer.loading.lookup import Lookup
from gym_replay.buffer.storage import maps
from gym_replay.buffer.storage.columns import Column as FileColumn
from gym_replay.buffer.storage.maps import first_rows, join, require_mappable
from gym_replay.buffer.storage.reader import Snapshot

Ints = npt.NDArray[np.int64]
Array = npt.NDArray[Any]

Padded: TypeAlias = tuple[Array, Ints]
"""Elements of ragged rows, padded with zeros, and how many each row has."""

THREADED_BYTES = 1 << 20
"""From so many bytes on, rows are taken by several threads, where there are."""

_LARGE_ROW = 1 << 10
_MOST_WINDOWS = 16
_LARGEST_RUN = 1 << 30
_ALL = slice(None)


class Column:
    """The rows of one field over all parts.

    Args:
        array: ``(rows, *field.shape)``.

    Attributes:
        array: the same.
        nbytes: of a row.
    """

    __slots__ = ("_windows", "array", "nbytes")

    def __init__(self, array: Array) -> None:
        self.array = array
        self.nbytes = array.dtype.itemsize * math.prod(array.shape[1:])
        self._windows: dict[int, Array] = {}

    def take(self, rows: Ints) -> Array:
        """``array[rows]`` in memory of its own: ``(*rows.shape, *field.shape)``."""
        if rows.size * self.nbytes < THREADED_BYTES or threads.threads() == 1:
            return self.array.take(rows, 0)
        return threads.take(self.array, rows.reshape(-1)).reshape(*rows.shape, *self.array.shape[1:])

    def take_runs(self, firsts: Ints, length: int) -> Array:
        """``length`` consecutive rows from each of ``firsts``: ``(len(firsts), length, *field.shape)``.

        Half the time of :meth:`take` for small rows: each run is one copy.

        Raises:
            IndexError: a run reaches outside of the rows.
        """
        array, nbytes = self.array, self.nbytes * length
        # Of large rows each is a long copy anyway, and several threads take them.
        are_for_threads = self.nbytes >= _LARGE_ROW and len(firsts) * nbytes >= THREADED_BYTES and threads.threads() > 1
        if nbytes == 0 or nbytes > _LARGEST_RUN or len(array) < length or are_for_threads:
            return self.take(firsts[:, None] + np.arange(length))
        if (windows := self._windows.get(length)) is None:
            if len(self._windows) >= _MOST_WINDOWS:
                self._windows.clear()
            windows = self._windows[length] = _windows(array, length)
        # A third of the time of min(), which is a part of that of a batch.
        if len(firsts) and firsts[firsts.argmin()] < 0:  # which NumPy would count from the end
            raise IndexError(f"a run begins at row {firsts.min()}")
        found: Array = windows[firsts].view(array.dtype).reshape(len(firsts), length, *array.shape[1:])
        return found

    def slice(self, start: int, end: int) -> Array:
        """Read-only view of consecutive rows."""
        return self.array[start:end]


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
        self._owners: Lookup | None = None
        self._used = np.arange(len(self._parts))
        self._of_blocks = False

    def expect_blocks(self) -> None:
        """Have maps of its own from now on, of which only what :meth:`will_need` asks for is read."""
        self._of_blocks, self._columns = True, {}

    def map(self, names: Iterable[str]) -> None:
        """Map these fields, but for ragged ones."""
        for name in names:
            if not self._fields[name].ragged:
                self.column(name)

    def will_need(self, names: Iterable[str], stretches: Sequence[tuple[int, int]]) -> None:
        """Ask for these rows of these fields to be in memory soon; all rows read so far may go first where it is short.

        Args:
            names: fields; ragged ones are passed over.
            stretches: rows, as ranges from the first to before the last.
        """
        columns = [self.column(name) for name in names if not self._fields[name].ragged]
        for column in columns:
            if column is None or not column.nbytes:
                continue
            begin = column.array.ctypes.data
            maps.let_go(begin, column.array.nbytes)
            for first, last in stretches:
                maps.will_need(begin + first * column.nbytes, (last - first) * column.nbytes)

    def _file_of(self, name: str, part: int) -> FileColumn:
        """The file of a part's rows, or spans."""
        found = self._parts[part]
        return found.columns[found.metadata.rows_path(name)]

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
        """A field that is not ragged, over all parts; None where its files cannot be mapped as one array."""
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
        if len(self._parts) == 1 and not self._of_blocks:
            return Column(self._parts[0].column(name))
        used = self._used.tolist()
        files = [self._file_of(name, part) for part in used]
        begins = np.append(self.firsts[self._used], self.firsts[-1])
        array = join(files, [self._parts[part].rows for part in used], begins)
        if array is None:
            return Column(self._parts[0].column(name)) if len(self._parts) == 1 else None
        if self._of_blocks:
            maps.expect_blocks(array)
        return Column(array)

    def _pieces(self, name: str, rows: Ints) -> Iterator[tuple[Column, Any, Ints | slice]]:
        """Columns that have these rows between them, each with the number of its first row, and which rows it has."""
        for part, mine in self._by_part(rows):
            yield Column(self._parts[part].column(name)), self.firsts[part], mine

    def take(self, name: str, rows: Ints) -> Array:
        """A field's values at rows of any shape: ``(*rows.shape, *field.shape)``, in memory of their own."""
        column = self._columns.get(name) or self.column(name)
        if column is not None:
            # The smallest batches are written out here: in them a call is a part of the time.
            if rows.size * column.nbytes < THREADED_BYTES:
                return column.array.take(rows, 0)
            return column.take(rows)
        field = self._fields[name]
        flat, out = rows.reshape(-1), np.empty((rows.size, *field.shape), field.dtype)
        for piece, first, mine in self._pieces(name, flat):
            out[mine] = piece.take(flat[mine] - first)
        return out.reshape(*rows.shape, *field.shape)

    def take_runs(self, name: str, firsts: Ints, length: int) -> Array:
        """``length`` consecutive rows from each of ``firsts``: ``(len(firsts), length, *field.shape)``."""
        column = self.column(name)
        if column is not None:
            return column.take_runs(firsts, length)
        field = self._fields[name]
        out = np.empty((len(firsts), length, *field.shape), field.dtype)
        for piece, first, mine in self._pieces(name, firsts):
            out[mine] = piece.take_runs(firsts[mine] - first, length)
        return out

    def take_slices(self, name: str, starts: Ints, counts: Ints, width: int) -> Array:
        """``counts[i]`` rows from ``starts[i]`` for each i, padded with zeros: ``(len(starts), width, *shape)``."""
        field, column = self._fields[name], self.column(name)
        out = np.empty((len(starts), width, *field.shape), field.dtype)
        pieces = self._pieces(name, starts) if column is None else iter([(column, 0, _ALL)])
        numbers = np.arange(len(starts))
        for piece, base, mine in pieces:
            for place, start, count in zip(
                numbers[mine].tolist(), (starts[mine] - base).tolist(), counts[mine].tolist(), strict=True
            ):
                out[place, :count] = piece.slice(start, start + count)
                if count < width:
                    out[place, count:] = 0
        return out

    def take_ragged(self, name: str, rows: Ints, present: npt.NDArray[np.bool_] | None = None) -> Padded:
        """The elements of a ragged field at rows of any shape, padded, and how many there are.

        Args:
            name: the field.
            rows: int64, of any shape.
            present: of the same shape: False where a row is not to be taken, and counts as empty.

        Returns:
            ``(*rows.shape, longest, *field.shape)``, padded with zeros on the right, and int64 ``rows.shape``.
        """
        flat = rows.reshape(-1)
        wanted = None if present is None else present.reshape(-1)
        taken = []
        for part, mine in self._by_part(flat, wanted):
            elements = self._parts[part].ragged(name)[flat[mine] - self.firsts[part]]
            elements.check()  # before anything of the size that they claim is allocated
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

    def _owner(self, rows: Ints) -> Ints:
        """The part of each row."""
        if self._owners is None:
            self._owners = Lookup(self.firsts)
        return self._owners.find(rows)

    def _by_part(self, rows: Ints, wanted: npt.NDArray[np.bool_] | None = None) -> list[tuple[int, Ints]]:
        """The parts that have any of these rows, each with the places of its rows."""
        places = np.arange(len(rows)) if wanted is None else np.flatnonzero(wanted)
        if len(self._parts) == 1:
            return [(0, places)] if len(places) else []
        owner = self._owner(rows[places])
        order = np.argsort(owner, kind="stable")
        parts, begins = np.unique(owner[order], return_index=True)
        return list(zip(parts.tolist(), np.split(places[order], begins[1:]), strict=True)) if len(parts) else []
