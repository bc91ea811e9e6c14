"""What a loader cannot do without: the same rows, copied by NumPy out of the files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt


def column(folder: Path, name: str) -> npt.NDArray[Any]:
    """A field's rows as a plain array over the file."""
    return np.load(folder / "steps" / f"{name}.npy", mmap_mode="r").view(np.ndarray)


def bare(columns: Mapping[str, tuple[npt.NDArray[Any], int]], rows: Iterator[Any]) -> Iterator[list[Any]]:
    """The columns at the rows, each shifted as its entry says, by ``numpy.take``."""
    pairs = list(columns.values())
    for some in rows:
        yield [array.take(some + shift if shift else some, axis=0) for array, shift in pairs]
