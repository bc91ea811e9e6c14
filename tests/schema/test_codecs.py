"""Codecs of fields: how they are written down, what they take, and what they refuse."""

import json
import zlib
from types import SimpleNamespace

import numpy as np
import pytest

from gym_replay import Field, FieldError

numcodecs = pytest.importorskip("numcodecs")

SHAPES = {"zstd": (5, 7), "lz4": (5, 7), "png": (5, 7, 3), "jpeg": (8, 8, 3)}


def test_short_names_and_configurations():
    assert Field("uint8", (4,), codec="zstd").codec == {"id": "zstd", "level": 1}
    assert Field("uint8", (4,), codec={"id": "zstd", "level": 3}).codec == {"id": "zstd", "level": 3}
    assert Field("uint8", (4,), codec=numcodecs.Zstd(level=2)).codec == {"id": "zstd", "level": 2}
    assert Field("uint8", (4,), codec=numcodecs.LZ4()).codec == {"id": "lz4", "acceleration": 1}
    assert Field("uint8", (4, 4), codec="jpeg").codec == {"id": "imagecodecs_jpeg", "level": 95}
    assert Field("uint8", (4, 4), codec={"id": "imagecodecs_png", "level": None}).codec == {"id": "imagecodecs_png"}
    for name, shape in SHAPES.items():
        assert (
            json.loads(json.dumps(Field("uint8", shape, codec=name).codec)) == Field("uint8", shape, codec=name).codec
        )


def test_a_field_with_a_codec_is_another_field():
    plain, encoded = Field("uint8", (4,)), Field("uint8", (4,), codec="zstd")
    assert plain != encoded
    assert encoded == Field("uint8", (4,), codec={"id": "zstd", "level": 1})
    assert "zstd" in repr(encoded)
    assert (Field("uint8", (4, 4), codec="jpeg").is_lossy, encoded.is_lossy, plain.is_lossy) == (True, False, False)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"codec": "gzip"}, "'gzip'.*'zstd'"),
        ({"codec": {"id": "pickle"}}, "'pickle'"),
        ({"codec": 3}, "expected one of"),
        ({"codec": {"level": 3}}, "expected one of"),
        ({"codec": {"id": ["zstd"]}}, "expected one of"),
        ({"codec": {"id": "zstd", "level": 23}}, "level=23 is out of"),
        ({"codec": {"id": "zstd", "level": "1"}}, "level='1'"),
        ({"codec": {"id": "zstd", "path": "/etc"}}, "'path'"),
        ({"codec": {"id": "zstd", "checksum": True}}, "'checksum'"),
        ({"codec": "zstd", "shape": ()}, "needs a shape"),
        ({"codec": "zstd", "shape": (3, 0)}, "needs a shape"),
        ({"codec": "zstd", "shape": (1 << 20, 1 << 11)}, "at most"),
        ({"codec": "zstd", "ragged": True}, "ragged"),
        ({"codec": "jpeg", "shape": (3, 84, 84)}, "takes images"),
        ({"codec": "jpeg", "shape": (84, 84, 3), "dtype": "float32"}, "takes images"),
        ({"codec": "png", "shape": (84,)}, "takes images"),
        ({"codec": "zstd", "dtype": "str", "shape": ()}, "str"),
    ],
)
def test_what_is_no_codec_of_a_field(arguments, named):
    with pytest.raises(FieldError, match=named):
        Field(**{"dtype": "uint8", "shape": (4, 4), **arguments})


def encoded_with(name):
    """A codec, a row, and the row encoded."""
    if name in ("png", "jpeg"):
        pytest.importorskip("imagecodecs")
    field = Field("uint8", SHAPES[name], codec=name)
    row = np.random.default_rng(0).integers(0, 255, field.shape).astype(np.uint8)
    if name == "jpeg":
        row[:] = np.arange(8)[:, None, None] * 20
    codec = field.codec_of_rows()
    return codec, row, codec.encode(row)


@pytest.mark.parametrize("name", SHAPES)
def test_a_row_comes_back(name):
    codec, row, encoded = encoded_with(name)
    out = np.empty_like(row)
    codec.decode(encoded, codec.targets(out[None])[0])
    if name == "jpeg":
        assert np.abs(out.astype(int) - row).mean() < 3
    else:
        assert out.tobytes() == row.tobytes()
    assert codec.encode(row.tobytes()) == encoded


@pytest.mark.parametrize("name", ["zstd", "lz4"])
@pytest.mark.parametrize(
    "field", [Field("float32", (3, 2)), Field("bool", (9,)), Field("int64", (2, 1, 2)), Field("uint8", (70000,))]
)
def test_any_dtype_and_shape(name, field):
    field = Field(field.dtype, field.shape, codec=name)
    row = np.frombuffer(np.random.default_rng(0).bytes(field.nbytes), field.dtype).reshape(field.shape)
    if field.dtype == bool:
        row = row.view(np.uint8) > 127
    out, codec = np.empty_like(row), field.codec_of_rows()
    codec.decode(codec.encode(row), codec.targets(out[None])[0])
    assert out.tobytes() == row.tobytes()


@pytest.mark.parametrize("name", ["png", "jpeg"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (1, 9, 1), (9, 1, 1), (1, 9, 3), (9, 1, 3), (1, 1, 3)])
def test_images_of_one_row_or_column(name, shape):
    pytest.importorskip("imagecodecs")
    codec = Field("uint8", shape, codec=name).codec_of_rows()
    row, out = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape), np.zeros((1, *shape), np.uint8)
    codec.decode(codec.encode(row), codec.targets(out)[0])
    assert np.abs(out[0].astype(int) - row).max() <= (20 if name == "jpeg" else 0)


def large_claims(name, encoded):
    """Encoded rows that say of themselves that they are far larger, or nothing."""
    large = np.zeros((1 << 24,), np.uint8)
    if name == "zstd":
        return [numcodecs.Zstd().encode(large), b"\x28\xb5\x2f\xfd\x00\x58" + encoded[6:], encoded[:4]]
    if name == "lz4":
        return [numcodecs.LZ4().encode(large), (1 << 31).to_bytes(4, "little") + encoded[4:], encoded[:3]]
    if name == "png":
        header = b"IHDR" + (60000).to_bytes(4, "big") * 2 + encoded[24:29]
        return [encoded[:12] + header + zlib.crc32(header).to_bytes(4, "big") + encoded[33:], encoded[:20]]
    at = encoded.index(b"\xff\xc0")
    return [encoded[: at + 5] + b"\xff\xf0\xff\xf0" + encoded[at + 9 :], encoded[:at], encoded[:3], b"\xff\xd8\xff\xd9"]


@pytest.mark.parametrize("name", SHAPES)
def test_a_row_that_claims_another_size_is_refused_before_it_is_decoded(name, monkeypatch):
    codec, row, encoded = encoded_with(name)
    out = np.full_like(row, 7)
    less = np.zeros((4, *row.shape[1:]), np.uint8)
    smaller = Field("uint8", less.shape, codec=name).codec_of_rows().encode(less)
    monkeypatch.setattr(codec, "_codec", SimpleNamespace(decode=None))  # whatever decodes would fail otherwise
    for hostile in [*large_claims(name, encoded), smaller, b"", b"\x00" * 40, row.tobytes()]:
        with pytest.raises(ValueError, match=r"says|no (frame|PNG|JPEG)"):
            codec.decode(hostile, codec.targets(out[None])[0])
    assert (out == 7).all()


@pytest.mark.parametrize("name", ["zstd", "lz4", "png"])
def test_damaged_rows_raise_and_write_nowhere_else(name):
    codec, row, encoded = encoded_with(name)
    memory = np.full((3, *row.shape), 7, np.uint8)
    rng, refused = np.random.default_rng(0), 0
    for _ in range(200):
        content = bytearray(encoded)
        for at in rng.integers(0, len(content), 3):
            content[at] = rng.integers(256)
        damaged = bytes(content[: rng.integers(1, len(content) + 1)]) + rng.bytes(rng.integers(3))
        try:
            codec.decode(damaged, codec.targets(memory)[1])
        except ValueError:
            refused += 1
        assert (memory[[0, 2]] == 7).all()
    assert refused > 100
    with pytest.raises(ValueError, match="decode"):
        codec.decode(encoded[:40], codec.targets(memory)[1])
