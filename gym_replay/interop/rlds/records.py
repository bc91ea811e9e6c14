"""TFRecord files: their records, and the named lists of values that each ``tf.train.Example`` in them has.

The layout of a file is that of TensorFlow's documentation, "TFRecord and tf.train.Example": of each record its length,
a checksum of the length, the content, and a checksum of the content, where a checksum is a CRC-32C, rotated, plus a
constant. An Example is a message of Protocol Buffers (``tensorflow/core/example/example.proto``).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from gym_replay.errors import CorruptBufferError
from gym_replay.extras import require
from gym_replay.schema.arrays import Array

EXTRA, WHAT = "rlds", "from_rlds"

_HEAD = struct.Struct("<QI")
_CHECKSUM = struct.Struct("<I")


def examples(path: Path) -> Iterator[Mapping[str, Any]]:
    """The examples of a file, each as lists by name: arrays of numbers, or lists of bytes.

    Raises:
        MissingExtraError: protobuf or google-crc32c is not installed.
        CorruptBufferError: a record is cut off, or is not what its checksum says, or is no Example.
    """
    parse = _example_class()
    for number, content in enumerate(_contents(path)):
        try:
            example = parse.FromString(content)
        except Exception as error:  # protobuf's own kinds, which differ by version
            raise CorruptBufferError(f"{path}: record {number} is no tf.train.Example: {error}") from None
        yield {entry.key: _values(entry.value) for entry in example.features.feature}


def _contents(path: Path) -> Iterator[bytes]:
    """The records of a file."""
    crc = require("google_crc32c", EXTRA, WHAT).value
    left = path.stat().st_size
    with open(path, "rb") as file:
        number = 0
        while head := file.read(_HEAD.size):
            left -= len(head)
            length, checksum = _HEAD.unpack(head) if len(head) == _HEAD.size else (left + 1, 0)
            if length > left - _CHECKSUM.size:
                raise CorruptBufferError(f"{path}: record {number} is cut off; fetch the file again")
            content, tail = file.read(length), file.read(_CHECKSUM.size)
            if _masked(crc(head[:8])) != checksum or _masked(crc(content)) != _CHECKSUM.unpack(tail)[0]:
                raise CorruptBufferError(f"{path}: record {number} does not match its checksum; fetch the file again")
            yield content
            left -= length + _CHECKSUM.size
            number += 1


def _masked(crc: int) -> int:
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def _values(feature: Any) -> Array | list[bytes]:
    if feature.bytes_list.value:
        return list(feature.bytes_list.value)
    floats: Sequence[float] = feature.float_list.value
    if floats:
        return np.fromiter(floats, np.float32, len(floats))
    integers: Sequence[int] = feature.int64_list.value
    return np.fromiter(integers, np.int64, len(integers))


@lru_cache(maxsize=1)
def _example_class() -> Any:
    """The class of the message, of a pool of its own: TensorFlow may have the same in the common one."""
    descriptor = require("google.protobuf.descriptor_pb2", EXTRA, WHAT)
    pool = require("google.protobuf.descriptor_pool", EXTRA, WHAT).DescriptorPool()
    factory = require("google.protobuf.message_factory", EXTRA, WHAT)
    kinds = descriptor.FieldDescriptorProto
    file = descriptor.FileDescriptorProto(name="example.proto", package="gym_replay", syntax="proto3")
    # A map is a list of entries with a key and a value.
    messages: dict[str, list[tuple[str, int, Any, bool]]] = {
        "BytesList": [("value", 1, kinds.TYPE_BYTES, True)],
        "FloatList": [("value", 1, kinds.TYPE_FLOAT, True)],
        "Int64List": [("value", 1, kinds.TYPE_INT64, True)],
        "Feature": [
            ("bytes_list", 1, "BytesList", False),
            ("float_list", 2, "FloatList", False),
            ("int64_list", 3, "Int64List", False),
        ],
        "Entry": [("key", 1, kinds.TYPE_STRING, False), ("value", 2, "Feature", False)],
        "Features": [("feature", 1, "Entry", True)],
        "Example": [("features", 1, "Features", False)],
    }
    for name, fields in messages.items():
        message = file.message_type.add(name=name)
        for field_name, number, kind, is_repeated in fields:
            label = kinds.LABEL_REPEATED if is_repeated else kinds.LABEL_OPTIONAL
            field = message.field.add(name=field_name, number=number, label=label)
            if isinstance(kind, str):
                field.type, field.type_name = kinds.TYPE_MESSAGE, f".gym_replay.{kind}"
            else:
                field.type = kind
    pool.Add(file)
    return factory.GetMessageClass(pool.FindMessageTypeByName("gym_replay.Example"))
