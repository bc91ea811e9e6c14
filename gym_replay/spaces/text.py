"""Text: strings."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from gymnasium import Space, spaces

from gym_replay.errors import CorruptBufferError, FieldError, UnsupportedSpaceError
from gym_replay.schema.fields import encode_text
from gym_replay.spaces.checked_json import Json, SpaceReader, brief, member
from gym_replay.spaces.columns import Column, read_spans
from gym_replay.spaces.leaf import LeafMaker, Place
from gym_replay.spaces.node import SpaceNode

_SURROGATE_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")


class TextNode(SpaceNode, of=spaces.Text):
    """The UTF-8 bytes of a string; of items those of all, and the number of bytes of each."""

    is_shared = False

    def __init__(self, space: Any, place: Place, maker: LeafMaker) -> None:
        self.name = place.name
        lengths = [maker.other(place.lengths(), space, np.int64)] if place.has_items else []
        self.leaves = [*lengths, maker.other(place, space, np.uint8)]

    def flatten(self, value: Any) -> list[Column]:
        return [np.frombuffer(encode_text(self.name, value), np.uint8)]

    def unflatten(self, values: Iterator[Any]) -> str:
        return decode_text(next(values))

    def split(self, values: Sequence[Any]) -> list[Column]:
        encoded = [encode_text(self.name, value) for value in values]
        return [np.array([len(text) for text in encoded], np.int64), np.frombuffer(b"".join(encoded), np.uint8)]

    def join(self, count: int, columns: Iterator[Column]) -> list[str]:
        lengths, data = next(columns), next(columns)
        return [decode_text(data[begin:end]) for begin, end in read_spans(count, lengths, data)]

    @classmethod
    def to_json(cls, space: spaces.Text, place: str) -> dict[str, Json]:
        characters = list(space.character_list)
        if any(len(character) != 1 for character in characters):
            raise UnsupportedSpaceError(
                f"{place}: Text needs a charset of single characters, got {space.character_list}"
            )
        if _SURROGATE_PAIR.search("".join(characters)):
            characters.sort(key=lambda character: not "\udc00" <= character <= "\udfff")  # JSON would make one of two
        return {
            "type": "Text",
            "min_length": space.min_length,
            "max_length": space.max_length,
            "charset": "".join(characters),
        }

    @classmethod
    def from_json(cls, reader: SpaceReader, value: Json, place: str) -> Space[Any]:
        shortest, longest = member(value, "min_length", int, place), member(value, "max_length", int, place)
        if not 0 <= shortest <= longest < 2**63:
            raise CorruptBufferError(f"{place}: lengths {brief(shortest)} to {brief(longest)} are no range")
        charset = member(value, "charset", str, place)
        return spaces.Text(longest, min_length=shortest, charset=charset)


def decode_text(data: Column) -> str:
    """The string of these UTF-8 bytes."""
    try:
        return np.asarray(data, np.uint8).tobytes().decode("utf-8", "surrogatepass")
    except UnicodeDecodeError as error:
        raise FieldError(f"unflatten: a string is damaged ({error}); check the buffer") from None
