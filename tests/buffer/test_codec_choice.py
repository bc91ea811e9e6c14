"""Which fields a codec is for, as a user names them."""

import numpy as np
import pytest

from gym_replay import Field, FieldError, ReplayBuffer, select

pytest.importorskip("numcodecs")

FIELDS = {
    "observation.camera.rgb": Field("uint8", (8, 8, 3), state=True),
    "observation.camera.depth": Field("float32", (8, 8), state=True),
    "observation.mask": Field("uint8", (4, 4), state=True),
    "observation.bytes": Field("uint8", (16,), state=True),
    "observation.words": Field("uint8", (4, 4), ragged=True),
    "action": Field("float32", (2,)),
}


def stored(folder, fields):
    """A buffer of one short episode with these fields."""
    buffer = ReplayBuffer(folder, fields=fields)
    rows = {name: np.ones((2 + info.state, *info.shape), info.dtype) for name, info in fields.items()}
    words = {name: [np.ones((1, *info.shape), np.uint8)] * 2 for name, info in fields.items() if info.ragged}
    buffer.store_episode(**{**rows, **words})
    buffer.release()
    return buffer


@pytest.fixture(scope="module")
def buffer(tmp_path_factory):
    return stored(tmp_path_factory.mktemp("choice") / "raw", FIELDS)


def chosen(buffer, codecs, folder):
    """The codec ids by the last component of the names of the fields that have one."""
    with select(buffer, folder, codecs=codecs, progress=False) as copied:
        fields = copied.metadata.fields
        assert list(fields) == list(buffer.metadata.fields)
        return {name.rpartition(".")[2]: info.codec["id"] for name, info in fields.items() if info.codec}


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
def test_a_field_a_group_and_all_images(tmp_path, buffer, codecs, expected):
    assert chosen(buffer, codecs, tmp_path / "a") == expected
    assert chosen(buffer, dict(reversed(codecs.items())), tmp_path / "b") == expected


def test_raw_takes_a_codec_away(tmp_path, buffer):
    with select(buffer, tmp_path / "a", codecs={"images": "zstd"}, progress=False) as encoded:
        assert chosen(encoded, {"observation.mask": "raw"}, tmp_path / "b") == {"rgb": "zstd"}
        assert chosen(encoded, {"images": None}, tmp_path / "c") == {}


def test_a_field_that_is_called_as_the_group_is_meant_itself(tmp_path):
    fields = {"images": Field("float", (9,)), "observation": Field("uint8", (3, 3))}
    assert chosen(stored(tmp_path / "a", fields), {"images": "zstd"}, tmp_path / "b") == {"images": "zstd"}


@pytest.mark.parametrize(
    ("codecs", "message"),
    [
        ({"observation.camera.rbg": "zstd"}, r"'observation.camera.rbg' is no field or .*'observation.camera.rgb'"),
        ({"observaton": "zstd"}, "did you mean 'observation'"),
        ({"image": "zstd"}, "did you mean 'images'"),
        ({"x": "zstd"}, r"there are .*observation\.mask"),
        ({7: "zstd"}, "7 is no field"),
        ({"images": "zst"}, "'images': codec 'zst'"),
        ({"observation.words": "zstd"}, r"'observation\.words': .*ragged"),
        ("zstd", "expected a mapping"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, buffer, codecs, message):
    with pytest.raises(FieldError, match=message):
        select(buffer, tmp_path / "a", codecs=codecs, progress=False)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("group", ["images", "observation"])
def test_a_group_without_images_is_refused(tmp_path, group):
    made = stored(tmp_path / "a", {"observation.a": Field("float", (2, 2)), "observation.b": Field("uint8", (2,))})
    with pytest.raises(FieldError, match=r"has no image.*observation\.a, observation\.b"):
        select(made, tmp_path / "b", codecs={group: "zstd"}, progress=False)
