"""Which fields a codec is for, as a user names them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gym_replay import Field, FieldError
from gym_replay.schema.codec_choice import plain_codecs, with_codecs

FIELDS = {
    "observation.camera.rgb": Field("uint8", (8, 8, 3), state=True),
    "observation.camera.depth": Field("float32", (8, 8), state=True),
    "observation.mask": Field("uint8", (4, 4), state=True),
    "observation.bytes": Field("uint8", (16,), state=True),
    "observation.words": Field("uint8", (4, 4), ragged=True),
    "action": Field("float32", (2,)),
}
ZSTD, LZ4 = {"id": "zstd", "level": 1}, {"id": "lz4", "acceleration": 1}


def chosen(codecs):
    """The codec ids by the last component of the names of the fields that have one."""
    found = with_codecs(FIELDS, codecs)
    assert list(found) == list(FIELDS)
    assert [
        info.codec is None or info == Field(**{**_arguments(FIELDS[name]), "codec": info.codec})
        for name, info in found.items()
    ] == [True] * len(FIELDS)
    return {name.rpartition(".")[2]: info.codec["id"] for name, info in found.items() if info.codec}


def _arguments(info):
    return {"dtype": info.dtype_name, "shape": info.shape, "state": info.state, "ragged": info.ragged}


@pytest.mark.parametrize(
    ("codecs", "expected"),
    [
        ({}, {}),
        ({"images": "zstd"}, {"rgb": "zstd", "mask": "zstd"}),
        ({"observation": "zstd"}, {"rgb": "zstd", "mask": "zstd"}),
        ({"observation.camera": "zstd"}, {"rgb": "zstd"}),
        ({"observation.mask": {"id": "zstd", "level": 9}}, {"mask": "zstd"}),
        ({"action": "lz4", "observation.camera.depth": "zstd"}, {"action": "lz4", "depth": "zstd"}),
        ({"observation.mask": "raw", "images": "zstd"}, {"rgb": "zstd"}),
        ({"observation.camera": "lz4", "images": "zstd"}, {"rgb": "lz4", "mask": "zstd"}),
        ({"observation.camera.rgb": "zstd", "observation.camera": "lz4", "observation": None}, {"rgb": "zstd"}),
    ],
)
def test_a_field_a_group_and_all_images(codecs, expected):
    assert chosen(codecs) == expected
    assert chosen(dict(reversed(codecs.items()))) == expected


def test_raw_takes_a_codec_away():
    encoded = with_codecs(FIELDS, {"images": "zstd"})
    assert with_codecs(encoded, {"images": "raw"}) == FIELDS
    assert with_codecs(encoded, {}) == encoded


def test_a_field_that_is_called_as_the_group_is_meant_itself():
    fields = {"images": Field("float", (9,)), "observation": Field("uint8", (3, 3))}
    assert [info.codec for info in with_codecs(fields, {"images": "zstd"}).values()] == [ZSTD, None]


@pytest.mark.parametrize(
    ("codecs", "message"),
    [
        ({"observation.camera.rbg": "zstd"}, "'observation.camera.rbg' is no field or group.*'observation.camera.rgb'"),
        ({"observaton": "zstd"}, "did you mean 'observation'"),
        ({"image": "zstd"}, "did you mean 'images'"),
        ({"x": "zstd"}, "there are .*observation.mask"),
        ({7: "zstd"}, "7 is no field"),
        ({"images": "zst"}, "'images': codec 'zst'"),
        ({"observation.words": "zstd"}, "'observation.words': .*ragged"),
        ("zstd", "expected a mapping"),
    ],
)
def test_what_is_wrong_is_named(codecs, message):
    with pytest.raises(FieldError, match=message):
        with_codecs(FIELDS, codecs)


def test_a_group_without_images_is_refused():
    fields = {"observation.a": Field("float", (2, 2)), "observation.b": Field("uint8", (2,))}
    for group in ("images", "observation"):
        with pytest.raises(FieldError, match=r"has no image.*observation\.a, observation\.b"):
            with_codecs(fields, {group: "zstd"})


@given(st.dictionaries(st.sampled_from([*FIELDS, "observation", "images"]), st.sampled_from(["zstd", "lz4", "raw"])))
def test_plain_codecs_mean_the_same(codecs):
    codecs.pop("observation.words", None)
    plain = plain_codecs(codecs)
    assert plain_codecs(plain) == plain
    assert with_codecs(FIELDS, plain) == with_codecs(FIELDS, codecs)
