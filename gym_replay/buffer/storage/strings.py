"""The strings of meta fields: one file of them, in which each record holds the offset of its own."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gym_replay.buffer.storage.columns import Column, ColumnWriter
from gym_replay.errors import CorruptBufferError
from gym_replay.schema.fields import LARGEST_TEXT, NO_TEXT

STRINGS = "strings.npy"
STRINGS_DTYPE = np.dtype("u1")

_OFFSET = struct.Struct("<q")
_HEAD = struct.Struct("<II")
"""Before each string: its number of bytes, and their CRC-32."""

_REMEMBERED = 1024


def read_strings(column: Column, offsets: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    """The strings at these offsets, as an array of Python strings; raises as :func:`read_string` does."""
    distinct, inverse = np.unique(offsets, return_inverse=True)
    texts = np.array([read_string(column, offset) for offset in distinct.tolist()], object)
    return texts[inverse.reshape(-1)]


def read_string(column: Column, offset: int) -> str:
    """The string at an offset, compared with its check value.

    Raises:
        CorruptBufferError: there is none, or it does not match its check value.
    """
    if offset == NO_TEXT:
        return ""
    if not 0 <= offset < 1 << 60:
        raise CorruptBufferError(f"{column.path}: no string can be at {offset}")
    size, crc = _HEAD.unpack(column.view(offset + _HEAD.size)[offset:].tobytes())
    if not 0 < size <= LARGEST_TEXT:  # the empty string is never written: zeros are no string
        raise CorruptBufferError(f"{column.path}: the string at {offset} would have {size} bytes")
    content = column.view(offset + _HEAD.size + size)[offset + _HEAD.size :].tobytes()
    if zlib.crc32(content) != crc:
        raise CorruptBufferError(f"{column.path}: the string at {offset} does not match its check value")
    try:
        return content.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError as error:
        raise CorruptBufferError(f"{column.path}: the string at {offset} is no UTF-8 ({error.reason})") from None


class StringWriter:
    """Appends strings; one that was written lately is not written again.

    Args:
        column: the file.
        end: one past the last byte that a live record points to.

    Attributes:
        offsets: those written lately, and the bytes of their offsets.
    """

    def __init__(self, column: ColumnWriter, end: int) -> None:
        self._column = column
        self.end = end
        self.offsets = {b"": _OFFSET.pack(NO_TEXT)}

    @staticmethod
    def end_of(column: Column, offsets: npt.NDArray[np.int64]) -> int:
        """One past the last byte of the strings at these offsets, apart from those that are not there whole."""
        held = column.rows_held(int(offsets.max(initial=0)) + _HEAD.size)
        offsets = offsets[(offsets >= 0) & (offsets <= held - _HEAD.size)]
        sizes = column.view(held)[offsets[:, None] + np.arange(4)].view("<u4").astype(np.int64).reshape(-1)
        ends = offsets + _HEAD.size + sizes
        held = column.rows_held(int(ends.max(initial=0)))
        return int(ends[ends <= held].max(initial=0))

    def put(self, content: bytes) -> bytes:
        """The bytes of a string's offset (as int64); the string is in the file when this returns."""
        return self.offsets.get(content) or self._append(content)

    def put_each(self, texts: Sequence[bytes] | npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        """The offsets of strings, which are in the file when this returns."""
        offsets = {text: self.put(text) for text in dict.fromkeys(texts)}
        return np.frombuffer(b"".join([offsets[text] for text in texts]), np.int64)

    def _append(self, content: bytes) -> bytes:
        offset = _OFFSET.pack(self.end)
        self._column.write(self.end, _HEAD.pack(len(content), zlib.crc32(content)) + content)
        self.end += _HEAD.size + len(content)
        if len(self.offsets) >= _REMEMBERED:
            self.offsets.clear()
            self.offsets[b""] = _OFFSET.pack(NO_TEXT)
        self.offsets[content] = offset
        return offset
