"""What Minari's formats cannot hold, and what becomes of it: an error, or it is left out."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from gym_replay.errors import CorruptBufferError, FieldError, GymReplayError, UnsupportedSpaceError

GROUP = "gym_replay"
"""The entry that holds what Minari has no place for: in the infos of each step, and in metadata."""

IMPORTED = "minari"
"""The member of a buffer's environment that holds the metadata of the dataset that it was imported from."""

LONGEST_ARROW = (1 << 15) - 1
"""T of the longest episode that Minari reads back from Arrow and Parquet: more than 32768 rows are written in
pieces, of which it gives the last."""

_LARGEST_ATTRIBUTE = 60_000
"""Bytes; HDF5 has at most 64 KiB for an attribute."""

MODES = ("error", "drop")

_REMEDY = "; on_unsupported='drop' leaves it out"
_SHOWN = 10


class Losses:
    """What is lost on the way: an error, or left out and collected for a warning.

    Args:
        on_unsupported: ``"error"``, or ``"drop"`` to leave it out.
    """

    def __init__(self, on_unsupported: str) -> None:
        if on_unsupported not in MODES:
            raise FieldError(f"on_unsupported={on_unsupported!r}: expected one of {MODES}")
        self._drops = on_unsupported == "drop"
        self._found: Counter[str] = Counter()

    def refuse(self, what: str, error: type[GymReplayError] = FieldError) -> None:
        """Leave it out, or raise an error that names it."""
        if not self._drops:
            raise error(what if what.endswith(_REMEDY) else what + _REMEDY)
        self._found[what] += 1

    @contextmanager
    def episode(self, number: int) -> Iterator[None]:
        """Leave out an episode that is damaged or does not fit, or name it in the error."""
        try:
            yield
        except (FieldError, CorruptBufferError, UnsupportedSpaceError) as error:
            self.refuse(f"episode {number}: {error}", type(error))

    def empty_copy(self) -> Losses:
        """Another one that does the same and has lost nothing yet, for a first look at what is met again later."""
        return Losses(MODES[self._drops])

    def lines(self) -> list[str]:
        """What was left out, for people."""
        lines = [f"{what} ({times} times)" if times > 1 else what for what, times in self._found.items()]
        return lines[:_SHOWN] + ([f"and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else [])

    def warn(self, dataset_id: str) -> None:
        """Say what was left out of a dataset."""
        if self._found:
            warnings.warn("\n  ".join([f"{dataset_id}: left out:", *self.lines()]), stacklevel=3)


class Limits(Losses):
    """What a storage format holds, and what is lost where a buffer is written in it.

    Args:
        data_format: of Minari's.
        jpeg_encoding: whether images are to be encoded.
        on_unsupported: ``"error"``, or ``"drop"`` to leave out what it does not hold.
    """

    def __init__(self, data_format: str, *, jpeg_encoding: bool, on_unsupported: str) -> None:
        super().__init__(on_unsupported)
        self.data_format = data_format
        self.is_hdf5 = data_format == "hdf5"
        self.jpeg_encoding = jpeg_encoding

    def cannot_hold(self, what: str, why: str, error: type[GymReplayError] = FieldError) -> None:
        """Leave out a field, an episode or part of a space, or raise ``error`` that names it."""
        self.refuse(f"{what}: Minari's {self.data_format} format cannot hold it: {why}", error)

    def key_fault(self, key: Any) -> str | None:
        """Why a key of a Dict space cannot be kept, or None."""
        if not isinstance(key, str):
            return f"its key {key!r} is no string"
        fault = self.text_fault(key)
        if fault is not None:
            return f"its key {key!r} {fault}"
        if self.is_hdf5 and ("/" in key or key in ("", ".")):
            return f"HDF5 has no name {key!r}"
        return None

    def text_fault(self, text: str) -> str | None:
        """Why a string of the steps cannot be kept, or None."""
        if self.is_hdf5 and "\0" in text:
            return "has a NUL character"
        try:
            text.encode()
        except UnicodeEncodeError:
            return "has a surrogate without its other half"
        return None

    def holds_meta_text(self, text: str) -> bool:
        """Whether a string comes back as it is from an episode's metadata."""
        if self.is_hdf5:
            return self.text_fault(text) is None
        return bool(json.loads(json.dumps(text)) == text)  # of two surrogates it makes one character

    def holds_meta_array(self, array: np.ndarray[Any, Any]) -> bool:
        """Whether a number, or an array, comes back bit for bit from an episode's metadata."""
        if self.is_hdf5:
            return 0 < array.nbytes <= _LARGEST_ATTRIBUTE
        back = np.asarray(json.loads(json.dumps(array.tolist())), array.dtype)
        return back.shape == array.shape and back.tobytes() == array.tobytes()
