"""The codecs that rows are stored with: which there are, how one is written down, and one row encoded and decoded.

They are those of the package numcodecs, of which a few are known here by name: a folder of a stranger must not make a
reader run whatever it names. Each of them says at the beginning of an encoded row how large the decoded one is, and
that is compared with the field before anything is decoded.
"""

from __future__ import annotations

import math
import struct
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from gym_replay.errors import FieldError
from gym_replay.extras import require

CodecConfig: TypeAlias = dict[str, Any]
"""A codec as numcodecs writes it down: its ``id`` and its arguments, JSON values all of them."""

_IMAGE_PREFIX = "imagecodecs_"
LARGEST_ROW = 1 << 30
"""Bytes of a decoded row, at most: a few stored bytes may stand for as many."""


_MOST_HEADS = 64
_LEAST_WINDOW = 1 << 23


class UndecodableError(ValueError):
    """An encoded row is not what its field is; the message says why.

    Attributes:
        index: of several rows, which one it is.
    """

    index = 0


class UnknownCodecError(FieldError):
    """A codec has a name that this version of the package does not know."""


class _Kind(NamedTuple):
    """One of the codecs.

    Attributes:
        defaults: the arguments that are always written down.
        known: by argument, whether it takes a value.
        claimed: gives the bytes, or the pixels' shape, that an encoded row says of the decoded one; None where it says
            nothing. May raise IndexError or struct.error, where the row ends before.
        head: how many bytes ``claimed`` looks at, at most; 0 for those that have no such number.
        is_lossy: whether what is decoded may differ from what was encoded.
        channels: for codecs of images, how many channels there may be.
        dtypes: likewise, of the pixels.
    """

    defaults: Mapping[str, Any]
    known: Mapping[str, Callable[[Any], bool]]
    claimed: Callable[[bytes], Any]
    head: int = 0
    is_lossy: bool = False
    channels: tuple[int, ...] = ()
    dtypes: tuple[str, ...] = ("uint8",)


def _integer(least: int, most: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _claimed_by_zstd(row: bytes) -> int | None:
    """The size in the header of the frame, as RFC 8878 has it in section 3.1.1.1."""
    if row[:4] != b"\x28\xb5\x2f\xfd":
        raise UndecodableError("no frame of zstd")
    descriptor = row[4]
    is_single, size_flag = bool(descriptor & 0x20), descriptor >> 6
    at = 5 + (not is_single) + (0, 1, 2, 4)[descriptor & 3]
    width = (int(is_single), 2, 4, 8)[size_flag]
    if width == 0 or len(row) < at + width:
        return None
    return int.from_bytes(row[at : at + width], "little") + (256 if width == 2 else 0)


def _claimed_by_lz4(row: bytes) -> int:
    size: int = struct.unpack_from("<I", row)[0]  # written by numcodecs, before LZ4's own block
    return size


def _claimed_by_png(row: bytes) -> tuple[tuple[int, ...], str]:
    """Height, width and channels, and the dtype, of the chunk IHDR."""
    if row[:8] != b"\x89PNG\r\n\x1a\n" or row[12:16] != b"IHDR":
        raise UndecodableError("no PNG")
    width, height, bits, color = struct.unpack_from(">IIBB", row, 16)
    channels = {0: 1, 2: 3, 4: 2, 6: 4}.get(color, 0)
    return (height, width, channels), {8: "uint8", 16: "uint16"}.get(bits, f"{bits} bits")


def _claimed_by_jpeg(row: bytes) -> tuple[tuple[int, ...], str] | None:
    """Height, width and channels, of the first frame header."""
    if row[:2] != b"\xff\xd8":
        raise UndecodableError("no JPEG")
    at = 2
    while row[at] == 0xFF:
        marker, length = struct.unpack_from(">xBH", row, at)
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            bits, height, width, channels = struct.unpack_from(">BHHB", row, at + 4)
            return (height, width, channels), "uint8" if bits == 8 else f"{bits} bits"
        if marker in (0xD9, 0xDA):
            return None
        at += 2 + length
    return None


_KINDS: dict[str, _Kind] = {
    "zstd": _Kind({"level": 1}, {"level": _integer(-(1 << 17), 22)}, _claimed_by_zstd, 18),
    "lz4": _Kind({"acceleration": 1}, {"acceleration": _integer(1, 65537)}, _claimed_by_lz4, 4),
    "imagecodecs_png": _Kind(
        {}, {"level": _integer(0, 9)}, _claimed_by_png, 29, channels=(1, 2, 3, 4), dtypes=("uint8", "uint16")
    ),
    "imagecodecs_jpeg": _Kind(
        {"level": 95},
        {"level": _integer(1, 100), "subsampling": lambda value: value in ("444", "422", "420")},
        _claimed_by_jpeg,
        is_lossy=True,
        channels=(1, 3),
    ),
}

CODECS = tuple(name.removeprefix(_IMAGE_PREFIX) for name in _KINDS)
"""The short names of all codecs."""


def parse_codec(codec: Any) -> CodecConfig:
    """A codec's configuration, of its short name, of a configuration of numcodecs, or of a codec of numcodecs.

    Example:
        >>> parse_codec("zstd"), parse_codec({"id": "zstd", "level": 3}), parse_codec("jpeg")["id"]
        ({'id': 'zstd', 'level': 1}, {'id': 'zstd', 'level': 3}, 'imagecodecs_jpeg')

    Raises:
        UnknownCodecError: there is no codec of this name.
        FieldError: it takes no such argument, or this is no configuration.
    """
    given = codec.get_config() if hasattr(codec, "get_config") else codec
    given = {"id": given} if isinstance(given, str) else given
    if not isinstance(given, Mapping) or not isinstance(given.get("id"), str):
        raise FieldError(
            f"codec {codec!r:.80}: expected one of {CODECS}, or a dict such as {{'id': 'zstd', 'level': 3}}"
        )
    name = given["id"] if given["id"] in _KINDS else _IMAGE_PREFIX + given["id"]
    if (kind := _KINDS.get(name)) is None:
        raise UnknownCodecError(f"codec {given['id']!r:.60}: expected one of {CODECS}")
    # numcodecs writes down all arguments, those that nobody gave as None or False.
    arguments = {key: value for key, value in given.items() if key != "id" and value is not None and value is not False}
    for key, value in arguments.items():
        if key not in kind.known:
            raise FieldError(f"codec {name!r}: {key!r:.60} is none of its arguments, {list(kind.known)}")
        if not kind.known[key](value):
            raise FieldError(f"codec {name!r}: {key}={value!r:.60} is out of its range")
    return {"id": name, **kind.defaults, **arguments}


def is_lossy(config: CodecConfig | None) -> bool:
    """Whether rows that were stored with a codec may differ from those that were given."""
    return config is not None and _KINDS[config["id"]].is_lossy


def short_name(config: CodecConfig) -> str:
    """A codec's name for people."""
    return str(config["id"]).removeprefix(_IMAGE_PREFIX)


def check_encodable(config: CodecConfig, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    """Raise FieldError where a codec does not take values of this dtype and shape."""
    kind = _KINDS[config["id"]]
    nbytes = dtype.itemsize * math.prod(shape)
    if nbytes == 0 or not shape:
        raise FieldError(f"a field with a codec needs a shape, none of its sizes 0, got {shape}; leave codec out")
    if nbytes > LARGEST_ROW:
        raise FieldError(
            f"a row of a field with a codec has at most {LARGEST_ROW} bytes, got {nbytes}; leave codec out"
        )
    if not kind.channels:
        return
    is_image = len(shape) == 2 or (len(shape) == 3 and shape[2] in kind.channels)
    if not is_image or dtype.name not in kind.dtypes or max(shape[:2]) >= 1 << 16:
        raise FieldError(
            f"codec {short_name(config)!r} takes images, {' or '.join(kind.dtypes)} of shape (height, width) or "
            f"(height, width, {' or '.join(map(str, kind.channels))}), got {dtype.name} {shape}; 'zstd' takes any"
        )


class Codec:
    """Encodes and decodes the rows of one field.

    Args:
        config: of :func:`parse_codec`.
        dtype, shape: of one row.

    Raises:
        MissingExtraError: the package that has the codec is not installed.

    Example:
        >>> codec = Codec(parse_codec("zstd"), np.dtype("uint8"), (210, 160, 3))
        >>> row, rows = codec.encode(np.zeros((210, 160, 3), np.uint8)), np.ones((2, 210, 160, 3), np.uint8)
        >>> codec.decode(row, codec.targets(rows)[1])
        >>> len(row) < 50, rows[0].any(), rows[1].any()
        (True, np.True_, np.False_)
    """

    def __init__(self, config: CodecConfig, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        self._kind, self._name = _KINDS[config["id"]], short_name(config)
        self._dtype, self._size = dtype, math.prod(shape)
        nbytes = dtype.itemsize * self._size
        self._codec = _made(config, nbytes)
        self._is_image = bool(self._kind.channels)
        # An image of one channel is encoded without the axis.
        self._seen = shape[:2] if self._is_image and shape[2:] == (1,) else shape
        pixels = (*shape[:2], *(shape[2:] or (1,))), dtype.name
        self._expected: Any = pixels if self._is_image else nbytes
        self._sound_heads: set[bytes] = set()

    def encode(self, row: npt.NDArray[Any] | bytes) -> bytes:
        """A row as it is stored, of an array ``(*shape)`` or its bytes."""
        if isinstance(row, bytes):
            row = np.frombuffer(row, self._dtype)
        return bytes(self._codec.encode(self.targets(np.ascontiguousarray(row)[None])[0]))

    def targets(self, rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Contiguous rows ``(rows, *shape)``, or of one axis each, as an array over the same memory.

        Each of its elements is what :meth:`decode` takes.
        """
        if self._is_image:
            return rows.reshape(len(rows), *self._seen)
        return rows.reshape(len(rows), self._size).view(np.uint8)

    def decode(self, row: bytes, target: npt.NDArray[Any]) -> None:
        """Decode a row into one of the :meth:`targets`.

        Raises:
            UndecodableError: it is damaged, or says that it is of another size; then nothing was decoded.
        """
        self.decode_each([row], [target])

    def decode_each(self, rows: Sequence[bytes], targets: Sequence[npt.NDArray[Any]]) -> None:
        """Decode several rows, each into one of the :meth:`targets`; in one call, where the codec has such a call.

        Raises:
            UndecodableError: as for :meth:`decode`.
        """
        if len(rows) > 1 and isinstance(self._codec, _KeptContexts) and self._decode_together(rows, targets):
            return
        check, decode, index = self._check_size, self._codec.decode, 0
        try:
            for index, (row, target) in enumerate(zip(rows, targets, strict=True)):  # noqa: B007
                check(row)
                decode(row, target)
        except Exception as error:  # each package raises others
            told = f"{self._name} cannot decode it ({error})"
            fault = error if isinstance(error, UndecodableError) else UndecodableError(told)
            fault.index = index
            raise fault from None

    def _decode_together(self, rows: Sequence[bytes], targets: Sequence[npt.NDArray[Any]]) -> bool:
        """Whether the rows could be decoded in one call; False where one of them is not sound."""
        try:
            for row in rows:
                self._check_size(row)
            decoded = self._codec.decode_together(rows, self._expected)
        except Exception:  # which row it is shows when each is decoded by itself
            return False
        for target, found in zip(targets, decoded, strict=True):
            target[...] = np.frombuffer(found, np.uint8)
        return True

    def _check_size(self, row: bytes) -> None:
        head = row[: self._kind.head]
        if head and head in self._sound_heads:
            return
        try:
            claimed = self._kind.claimed(row)
        except (IndexError, struct.error):
            claimed = None
        if claimed != self._expected:
            raise UndecodableError(
                f"{self._name} has rows of {_told(self._expected)} here, and this one says {_told(claimed)}"
            )
        if head and len(self._sound_heads) < _MOST_HEADS:
            self._sound_heads.add(head)


def _told(claimed: Any) -> str:
    """What a row says of itself, for messages."""
    if claimed is None:
        return "nothing of its size"
    return f"{claimed} bytes" if isinstance(claimed, int) else f"{claimed[1]} {claimed[0]}"


@lru_cache(maxsize=256)
def _codec_of(config: tuple[tuple[str, Any], ...], dtype: np.dtype[Any], shape: tuple[int, ...]) -> Codec:
    return Codec(dict(config), dtype, shape)


def codec_of(config: CodecConfig, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Codec:
    """The codec of a field, made once in a process; raises as :class:`Codec` does."""
    return _codec_of(tuple(config.items()), dtype, shape)


def _made(config: CodecConfig, nbytes: int) -> Any:
    """What encodes rows of so many bytes, and decodes them: ``encode(row)`` and ``decode(row, out)``, of numcodecs."""
    what = f"codec {short_name(config)!r}"
    numcodecs = require("numcodecs", "codecs", what)
    if config["id"] == "zstd" and find_spec("zstandard") is not None:
        return _KeptContexts(config["level"], nbytes)
    if config["id"] == "lz4":
        return _PlainLZ4(config["acceleration"])
    if config["id"].startswith(_IMAGE_PREFIX):
        require("imagecodecs", "codecs", what)
        import_module("imagecodecs.numcodecs").register_codecs([config["id"]], verbose=False)
        # Else it would take an image of one row or column for a grey one that lies on its side.
        return numcodecs.get_codec({**config, "squeeze": False})
    return numcodecs.get_codec(dict(config))


class _PlainLZ4:
    """LZ4 by the functions of numcodecs, without its checks of arrays, which take as long as a frame of 84x84."""

    def __init__(self, acceleration: int) -> None:
        module = import_module("numcodecs.lz4")
        self.encode = partial(module.compress, acceleration=acceleration)
        self.decode = module.decompress


class _KeptContexts(threading.local):
    """zstd by the package zstandard: the same frames as numcodecs', with contexts that each thread keeps.

    numcodecs makes a context for each row, which takes as long as a frame of 84x84 (``benchmarks.frames``).
    """

    def __init__(self, level: int, nbytes: int) -> None:
        zstandard = import_module("zstandard")
        self._compressor = zstandard.ZstdCompressor(level)
        # A frame that is cut off may ask for a window of any size.
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=max(nbytes, _LEAST_WINDOW))

    def encode(self, row: npt.NDArray[Any]) -> bytes:
        encoded: bytes = self._compressor.compress(row)
        return encoded

    def decode(self, row: bytes, out: npt.NDArray[Any]) -> None:
        with self._decompressor.stream_reader(row) as reader:
            if (found := reader.readinto(out)) != out.nbytes:
                raise ValueError(f"it has {found} bytes")

    def decode_together(self, rows: Sequence[bytes], nbytes: int) -> Any:
        """The bytes of rows that have so many each."""
        sizes = np.full(len(rows), nbytes, np.uint64).tobytes()
        return self._decompressor.multi_decompress_to_buffer(rows, decompressed_sizes=sizes)
