"""Parquet: rows of a dataset and its episodes, written in files of bounded size and read in bounded pieces."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gym_replay.errors import CorruptBufferError
from gym_replay.extras import require
from gym_replay.interop.lerobot.images import EXTRA
from gym_replay.interop.lerobot.layout import DATA_MB, RollingFiles, megabytes, naming
from gym_replay.schema.arrays import Array

_FILE_BYTES = megabytes(DATA_MB)
_ROWS = 1024
_PICTURES = 32
"""Rows that are read at a time, and where they have images."""


def find_pyarrow() -> Any:
    """The package pyarrow with its module for Parquet.

    Raises:
        MissingExtraError: it is not installed.
    """
    require("pyarrow.parquet", EXTRA, "a LeRobot dataset")
    return require("pyarrow", EXTRA, "a LeRobot dataset")


# --- NumPy and Arrow ---


def to_arrow(values: Array, shape: tuple[int, ...]) -> Any:
    """Rows ``(rows, *shape)`` as a column: of single numbers, or of lists of them, one level for each axis."""
    pa = find_pyarrow()
    column = pa.array(np.ascontiguousarray(values).reshape(-1))
    if shape == (1,):
        return column
    if len(shape) == 1:
        return pa.FixedSizeListArray.from_arrays(column, shape[0])
    for size in reversed(shape):
        offsets = np.arange(0, len(column) + 1, size, dtype=np.int32)
        column = pa.ListArray.from_arrays(pa.array(offsets), column)
    return column


def arrow_type(dtype: np.dtype[Any], shape: tuple[int, ...]) -> Any:
    """The type of the column that :func:`to_arrow` makes."""
    return to_arrow(np.zeros((1, *shape), dtype), shape).type


def picture_type() -> Any:
    """The type of a column of encoded images."""
    pa = find_pyarrow()
    return pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def from_arrow(column: Any, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
    """A column as rows ``(rows, *shape)``.

    Raises:
        CorruptBufferError: it holds something else, has rows of other sizes, or a row is missing.
    """
    pa = find_pyarrow()
    count, size = len(column), 1
    if isinstance(column, pa.ExtensionArray):  # of the package datasets, where it is imported
        column = column.storage
    while pa.types.is_nested(column.type) and not pa.types.is_struct(column.type):
        if column.null_count:
            raise CorruptBufferError("a row is missing")
        size *= _width(column)
        column = column.flatten()
    if column.null_count:
        raise CorruptBufferError("a value is missing")
    values = column.to_numpy(zero_copy_only=False)
    if values.dtype.kind not in "biuf" or not np.can_cast(values.dtype, dtype, "same_kind"):
        raise CorruptBufferError(f"expected {dtype.name}, got {column.type}")
    if count and (size != math.prod(shape) or len(values) != count * size):
        raise CorruptBufferError(f"expected rows of shape {shape}, got {size} numbers each")
    rows: Array = values.astype(dtype, copy=False).reshape(count, *shape)
    return rows


def _width(column: Any) -> int:
    """How many elements each of the lists of a column has."""
    types = find_pyarrow().types
    if types.is_fixed_size_list(column.type):
        return int(column.type.list_size)
    if not types.is_list(column.type) and not types.is_large_list(column.type):
        raise CorruptBufferError(f"expected numbers or lists of them, got {column.type}")
    lengths = np.diff(column.offsets.to_numpy())
    width = int(lengths[0]) if len(lengths) else 0
    if (lengths != width).any():
        raise CorruptBufferError("its rows have different sizes")
    return width


# --- writing ---


def rolling_table(root: Path, template: str, schema: Any) -> RollingFiles[Any]:
    """A table in numbered files, each a ``ParquetWriter``."""
    from pyarrow import parquet

    # A dictionary would take NaNs with different bits for one.
    make = partial(parquet.ParquetWriter, schema=schema, use_dictionary=False)
    return RollingFiles(root, template, _FILE_BYTES, make)


def write_tasks(path: Path, tasks: Mapping[int, str], what: str = "task") -> None:
    """Write the texts of tasks, or of subtasks, by number, with the texts as what pandas takes for the index."""
    pa = find_pyarrow()
    from pyarrow import parquet

    def column(name: str, kind: str, numpy_type: str) -> dict[str, Any]:
        return {"name": name, "field_name": name, "pandas_type": kind, "numpy_type": numpy_type, "metadata": None}

    about = {
        "index_columns": [what],
        "column_indexes": [],
        "columns": [column(f"{what}_index", "int64", "int64"), column(what, "unicode", "object")],
        "creator": {"library": "pyarrow", "version": pa.__version__},
        "pandas_version": "2.0.0",
    }
    texts = pa.array(list(tasks.values()), pa.string())
    table = pa.table({f"{what}_index": pa.array(list(tasks), pa.int64()), what: texts})
    parquet.write_table(table.replace_schema_metadata({"pandas": json.dumps(about)}), path)


# --- reading ---


def read_batches(path: Path, columns: Sequence[str], rows: int = _ROWS) -> Iterator[Any]:
    """The rows of a file in pieces.

    Raises:
        CorruptBufferError: it cannot be read, or lacks a column.
    """
    from pyarrow import parquet

    with naming(path), parquet.ParquetFile(path) as file:
        if missing := [name for name in columns if name not in file.schema_arrow.names]:
            raise CorruptBufferError(f"{path}: it has no column {missing[0]!r:.100}")
        for batch in file.iter_batches(batch_size=rows, columns=list(columns), use_threads=False):
            yield batch.select(list(columns))


def read_tasks(path: Path, what: str = "task") -> dict[int, str]:
    """The texts of tasks, or of subtasks, by number.

    Raises:
        CorruptBufferError: it is no table of them.
    """
    pa = find_pyarrow()
    from pyarrow import parquet

    with naming(path):
        schema = parquet.read_schema(path)
        texts = [each.name for each in schema if pa.types.is_string(each.type) or pa.types.is_large_string(each.type)]
        name = what if what in texts else texts[0] if texts else None
        if name is None or f"{what}_index" not in schema.names:
            raise CorruptBufferError(f"{path}: expected the columns {what} and {what}_index, got {schema.names}")
    tasks: dict[int, str] = {}
    for batch in read_batches(path, [f"{what}_index", name]):
        tasks.update(zip(*(batch.column(at).to_pylist() for at in range(2)), strict=True))
    return tasks


class RowReader:
    """The rows of episodes, which lie one after another in each file.

    Args:
        columns: those that are read, beside the number of the episode.
        has_pictures: whether one of them is of images.
    """

    def __init__(self, columns: Sequence[str], *, has_pictures: bool) -> None:
        self._columns = ["episode_index", *(name for name in columns if name != "episode_index")]
        self._rows = _PICTURES if has_pictures else _ROWS
        self._path: Path | None = None
        self._batches: Iterator[Any] = iter(())
        self._batch: Any = None
        self._is_fresh = False

    def take(self, path: Path, episode: int, length: int) -> Iterator[Mapping[str, Any]]:
        """The columns of an episode, in pieces.

        Raises:
            CorruptBufferError: the file is damaged, or has not so many rows of it, one after another.
        """
        if path != self._path:
            self._path, self._batches, self._batch = path, read_batches(path, self._columns, self._rows), None
            self._is_fresh = True
        found = 0
        while found < length:
            if self._batch is None or not self._batch.num_rows:
                self._batch = next(self._batches, None)
                if self._batch is None:
                    raise CorruptBufferError(f"{path}: expected {length} rows of episode {episode}, got {found}")
            with naming(path):
                owners = from_arrow(self._batch.column(0), np.dtype(np.int64), ())
            if self._is_fresh and (before := int((owners < episode).cumprod().sum())):
                self._batch = self._batch.slice(before)  # of a file that was read before, and is needed again
                continue
            self._is_fresh = False
            count = int((owners == episode).cumprod().sum())
            if count == 0 or found + count > length:
                raise CorruptBufferError(
                    f"{path}: expected {length} rows of episode {episode} one after another, got {found + count}, and "
                    f"then rows of episode {owners[count] if count < len(owners) else episode}"
                )
            piece = self._batch.slice(0, count)
            yield {name: piece.column(at) for at, name in enumerate(self._columns)}
            self._batch = self._batch.slice(count)
            found += count

    def close(self) -> None:
        """Close the present file."""
        batches, self._batches, self._batch, self._path = self._batches, iter(()), None, None
        close = getattr(batches, "close", None)
        if close is not None:
            close()
