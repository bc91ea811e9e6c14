"""Reading the state of a PCG64 generator where it lies in memory.

NumPy builds Python integers and two dicts to tell a state, which takes longer than a step of a small environment. Its
``BitGenerator.ctypes.state_address`` is where the state is; how it lies there is not documented, so that it is found
out by writing a known state and looking for it. Where it lies otherwise, nothing is read in this way.
"""

from __future__ import annotations

import ctypes
import functools
import struct
import sys
from collections.abc import Callable

import numpy as np

# A pointer to the numbers and what is left of the last 64 bits drawn; the numbers, each with its lower half first.
_POINTER, _REST = struct.Struct("@P"), struct.Struct("=iI")
_NUMBERS = struct.Struct("=4Q")
_PACK = struct.Struct("<5Q").pack


def make_state_reader(generator: np.random.BitGenerator) -> Callable[[], bytes] | None:
    """A function that gives a generator's present state, in the bytes of five numbers as they are stored.

    To make it takes longer than to ask NumPy a few times. None where this NumPy keeps states in another way.
    """
    return _reader(generator) if _lies_as_expected() else None


def _reader(generator: np.random.BitGenerator) -> Callable[[], bytes] | None:
    begin, end = id(generator), id(generator) + sys.getsizeof(generator)
    address = generator.ctypes.state_address
    if not begin <= address <= end - _POINTER.size - _REST.size:
        return None
    (numbers,) = _POINTER.unpack(_memory(address, _POINTER.size))
    if not begin <= numbers <= end - _NUMBERS.size:  # nothing but the object's own memory is ever looked at
        return None
    read_numbers, at_numbers = _NUMBERS.unpack_from, _memory(numbers, _NUMBERS.size)
    read_rest, at_rest = _REST.unpack_from, _memory(address + _POINTER.size, _REST.size)

    def read_state(_owner: np.random.BitGenerator = generator) -> bytes:
        low, high, low_increment, high_increment = read_numbers(at_numbers)
        has_uint32, uinteger = read_rest(at_rest)
        return _PACK(high, low, high_increment, low_increment, has_uint32 << 32 | uinteger)

    return read_state


def _memory(address: int, nbytes: int) -> memoryview:
    return memoryview((ctypes.c_char * nbytes).from_address(address)).cast("B")


@functools.cache
def _lies_as_expected() -> bool:
    """Whether a state that is known reads as it should."""
    number, increment, rest = 0x0123456789ABCDEF_FEDCBA9876543210, 0x1122334455667788_99AABBCCDDEEFF01, 0xCAFEF00D
    generator = np.random.PCG64()
    generator.state = {
        "bit_generator": "PCG64",
        "state": {"state": number, "inc": increment},
        "has_uint32": 1,
        "uinteger": rest,
    }
    read, low = _reader(generator), (1 << 64) - 1
    known = _PACK(number >> 64, number & low, increment >> 64, increment & low, 1 << 32 | rest)
    return read is not None and read() == known
