"""What Minari's formats cannot hold, and what becomes of it: an error, or it is left out."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from gym_replay.errors import FieldError

GROUP = "gym_replay"
"""The entry that holds what Minari has no place for: in the infos of each step, and in metadata."""

IMPORTED = "minari"
"""The member of a buffer's environment that holds the metadata of the dataset that it was imported from."""

ROOTS = ("observation", "action")
"""The fields, or groups of fields, that are of the environment's spaces."""

LONGEST_ARROW = (1 << 15) - 1
"""T of the longest episode that Minari reads back from Arrow and Parquet: more than 32768 rows are written in
pieces, of which it gives the last."""

_LARGEST_ATTRIBUTE = 60_000
"""Bytes; HDF5 has at most 64 KiB for an attribute."""

MODES = ("error", "drop")


class CannotHold(Exception):
    """One episode that a format cannot hold; the message names what and why."""


class Limits:
    """What a storage format holds.

    Args:
        data_format: of Minari's.
        jpeg_encoding: whether images are to be encoded.
        on_unsupported: ``"error"``, or ``"drop"`` to leave out what it does not hold.

    Attributes:
        dropped: what was left out so far, as lines for people.
    """

    def __init__(self, data_format: str, *, jpeg_encoding: bool, on_unsupported: str) -> None:
        if on_unsupported not in MODES:
            raise FieldError(f"on_unsupported={on_unsupported!r}: expected one of {MODES}")
        self.data_format = data_format
        self.is_hdf5 = data_format == "hdf5"
        self.jpeg_encoding = jpeg_encoding
        self.drops = on_unsupported == "drop"
        self.dropped: list[str] = []

    def refuse(self, what: str, why: str, error: type[Exception] = FieldError) -> None:
        """Leave out a field or part of a space, or raise ``error`` that names it."""
        message = f"{what}: Minari's {self.data_format} format cannot hold it: {why}"
        if not self.drops:
            raise error(f"{message}; on_unsupported='drop' leaves it out")
        self.dropped.append(message)

    def refuse_episode(self, index: int, why: str) -> None:
        """Leave out an episode, or raise FieldError that names it."""
        self.refuse(f"episode {index}", why)

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
