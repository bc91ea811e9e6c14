"""Fields with a codec: what is read of them, how copies convert them, and what damaged ones cost."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from format_helpers import change_metadata
from internals import codecs, small_sizes

from gym_replay import (
    ConcatReplayBuffer,
    ConfigMismatchError,
    CorruptBufferError,
    EpisodeEvictedError,
    Field,
    FieldError,
    ReplayBuffer,
    UnsupportedFormatError,
    check_buffer,
    merge,
    select,
    split_into,
    statistics,
    window_loader,
)

pytest.importorskip("numcodecs")

FIELDS = {
    "image": Field("uint8", (6, 5, 3), state=True, codec="zstd"),
    "depth": Field("float32", (4, 4), default=1.5, codec="lz4"),
    "x": Field("int64"),
}
RAW = {name: replace(info, codec=None) for name, info in FIELDS.items()}


def episode(seed, length=5, *, final=True):
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 4, (length + final, 6, 5, 3)).astype(np.uint8),
        "depth": rng.normal(size=(length, 4, 4)).astype(np.float32),
        "x": np.arange(length) + 100 * seed,
    }


def filled(folder, episodes=4, fields=FIELDS, **limits):
    buffer = ReplayBuffer(folder, fields=fields, **limits)
    for seed in range(episodes):
        buffer.store_episode(**episode(seed, 3 + seed))
    return buffer


def assert_same(buffer, others):
    assert len(buffer) == len(others)
    for one, other in zip(buffer, others, strict=True):
        for name in other:
            found, wanted = np.asarray(one[name]), np.asarray(other[name])
            assert (found.dtype, found.shape, found.tobytes()) == (wanted.dtype, wanted.shape, wanted.tobytes())


# --- reading ---


@pytest.mark.parametrize(
    "index",
    [0, -1, np.int64(2), slice(None), slice(1, 3), slice(None, None, -2), [0, 3, 3], np.array([[1, 0]]), ...]
    + [np.array([True, False] * 3), (0, 2), (-1, slice(1), 2), (slice(2), 1), ([0, 1], 2), (..., 0), (slice(9, 4),)],
)
def test_it_is_indexed_as_an_array(tmp_path, index):
    rows, wanted = filled(tmp_path).episode(2)["image"], episode(2, 5)["image"]
    found = rows[index]
    assert (found.dtype, found.shape) == (wanted[index].dtype, wanted[index].shape)
    assert np.array_equal(found, wanted[index])


def test_it_looks_like_an_array(tmp_path):
    rows, wanted = filled(tmp_path).episode(2)["image"], episode(2, 5)["image"]
    assert (rows.shape, rows.dtype, rows.ndim) == (wanted.shape, wanted.dtype, wanted.ndim)
    assert (rows.size, rows.nbytes, len(rows)) == (wanted.size, wanted.nbytes, len(wanted))
    assert rows.tolist() == wanted.tolist()
    assert rows.tobytes() == wanted.tobytes()
    assert all(map(np.array_equal, rows, wanted))
    assert np.asarray(rows, np.float32).dtype == np.float32
    assert (wanted == rows).all()
    again = pickle.loads(pickle.dumps(rows))  # another object with the same rows is equal, element by element
    assert (rows == again).shape == wanted.shape
    assert (rows == again).all()
    assert np.array_equal(255 - rows, 255 - wanted)
    assert np.array_equal(np.maximum(rows, 9) / 255, np.maximum(wanted, 9) / 255)
    assert np.array_equal(pickle.loads(pickle.dumps(rows)), wanted)
    assert rows.astype(np.float32).dtype == np.float32
    assert (rows.mean(), rows.max(axis=0).tolist()) == (wanted.mean(), wanted.max(axis=0).tolist())
    with pytest.raises(ValueError, match="read-only"):
        rows.sort()
    with pytest.raises(AttributeError, match="no attribute 'pixels'"):
        rows.pixels  # noqa: B018
    assert "zstd" in repr(rows)
    with pytest.raises(IndexError, match=f"index {len(rows)} is out of bounds"):
        rows[len(rows)]


def test_what_was_not_given_takes_no_bytes(tmp_path):
    with filled(tmp_path, 0) as buffer:
        buffer.store_episode(x=[1, 2, 3])
        assert (np.asarray(buffer.episode(0)["depth"]) == 1.5).all()
        assert not np.asarray(buffer.episode(0)["image"]).any()
    assert np.load(tmp_path / "steps/depth.values.npy").shape == (0,)
    assert np.load(tmp_path / "steps/depth.spans.npy").tolist() == [[0, 0]] * 4


def test_copies_stay_when_the_ring_goes_on(tmp_path):
    buffer = filled(tmp_path, 3, circular=True, max_episodes=3)
    copied, snapshot = buffer.episode(0).copy(), buffer.snapshots()[0]
    assert isinstance(copied["image"], np.ndarray)
    for seed in range(10):
        buffer.store_episode(**episode(seed, 7))
    assert np.array_equal(copied["image"], episode(0, 3)["image"])
    with pytest.raises(EpisodeEvictedError):
        snapshot.require_live(0)


def test_statistics_and_head_are_those_of_raw_rows(tmp_path):
    encoded, raw = filled(tmp_path / "a"), filled(tmp_path / "b", fields=RAW)
    for name, found in statistics(encoded, progress=False).items():
        wanted = statistics(raw, progress=False)[name]
        assert np.array_equal(found.mean, wanted.mean)
        assert np.array_equal(found.max, wanted.max)


@pytest.mark.parametrize("workers", [1, 3])
def test_rows_that_a_batch_has_twice_and_threads(tmp_path, monkeypatch, workers):
    """Each distinct row is decoded once, into every entry that has it; several threads give what one gives."""
    small_sizes(monkeypatch, threaded_bytes=1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: workers)
    decoded, decode = [], codecs.Codec.decode_each

    def counting(codec, rows, targets):
        decoded.extend(rows)
        decode(codec, rows, targets)

    monkeypatch.setattr(codecs.Codec, "decode_each", counting)
    with filled(tmp_path / "a", 3) as encoded, filled(tmp_path / "b", 3, RAW) as raw:
        samples = np.array([0, 1, 1, 7, 2, 2, 11])
        options = {"offsets": {"image": (-2, -1, 0, 1), "depth": (0,)}, "boundary": ("zero", "edge")}
        parts = [filled(tmp_path / name, 3, fields) for name, fields in (("c", FIELDS), ("d", RAW))]
        both = [ConcatReplayBuffer(pair) for pair in zip((encoded, raw), parts, strict=True)]
        for one, other in ((encoded, raw), both):
            found, wanted = (window_loader(buffer, 4, **options).dataset[samples] for buffer in (one, other))
            assert all(torch.equal(found[name], wanted[name]) for name in wanted)
        decoded.clear()
        batch = encoded.dataset(n_steps=1, current_fields=["image"], next_fields=["image"])[np.array([0, 1, 2, 1])]
        assert set(batch) >= {"image", "next_image"}
        assert len(decoded) == 4


def test_both_packages_of_zstd_read_one_anothers_rows(monkeypatch):
    pytest.importorskip("zstandard")
    made = FIELDS["image"].codec, np.dtype("uint8"), (6, 5, 3)
    one = codecs.Codec(*made)
    monkeypatch.setattr(codecs, "find_spec", lambda name: None)
    other, row = codecs.Codec(*made), episode(0)["image"][1]
    for writer, reader in ((one, other), (other, one), (other, other)):
        rows, encoded = np.zeros((1, 6, 5, 3), np.uint8), writer.encode(row)
        reader.decode(encoded, reader.targets(rows)[0])
        assert np.array_equal(rows[0], row)
        for hostile in (encoded[:-3], encoded[:5] + b"\xff" + encoded[6:], b""):
            with pytest.raises(ValueError, match=r"decode|says|no frame"):
                reader.decode(hostile, reader.targets(rows)[0])
            several = np.ones((3, 6, 5, 3), np.uint8)
            with pytest.raises(ValueError, match=r"decode|says|no frame") as caught:
                reader.decode_each([encoded, encoded, hostile], reader.targets(several))
            assert caught.value.index == 2
            assert np.array_equal(several[:2], [row, row])
        reader.decode_each([encoded] * 3, reader.targets(several))
        assert np.array_equal(several, [row] * 3)


# --- changes ---


def test_update_and_add_field(tmp_path):
    with filled(tmp_path) as buffer:
        fresh = episode(9, 4)
        buffer.update(1, image=fresh["image"], depth=fresh["depth"])
        buffer.add_field("mask", Field("bool", (9,), default=True, codec="zstd"))
        assert np.array_equal(buffer.episode(1)["image"], fresh["image"])
        assert np.array_equal(buffer.episode(1)["depth"], fresh["depth"])
        assert np.array_equal(buffer.episode(2)["image"], episode(2, 5)["image"])
        assert np.asarray(buffer.episode(3)["mask"]).all()
        with buffer.one_episode(), pytest.raises(ValueError, match="with a codec"):
            buffer.update(0, depth=episode(0, 3)["depth"])
    assert check_buffer(tmp_path, progress=False).verified


def test_a_value_that_does_not_fit_loses_nothing(tmp_path):
    with filled(tmp_path) as buffer:
        with buffer.one_episode():
            buffer.store(image=np.ones((6, 5, 3), np.uint8))
            with pytest.raises(FieldError, match="image"):
                buffer.store(image=np.zeros((6, 5, 4), np.uint8))
        assert np.asarray(buffer.episode(4)["image"]).all()
        with pytest.raises(FieldError, match="depth"):
            buffer.store_episode(depth=np.zeros((3, 4, 5)))
        assert len(buffer) == 5


# --- copies ---


def test_copies_of_the_same_codec_copy_the_bytes(tmp_path):
    with filled(tmp_path / "a") as source:
        merged = merge([source, source], tmp_path / "b", progress=False)
        chosen = select(source, tmp_path / "c", episodes=[1, 3], progress=False)
        split_into(source, {tmp_path / "d": 0.5, tmp_path / "e": 0.5}, progress=False)
        assert_same(merged, [*source, *source])
        assert_same(chosen, [source.episode(1), source.episode(3)])
        stored = [one["image"].stored[t].tobytes() for one in source for t in range(len(one))]
        assert [one["image"].stored[t].tobytes() for one in merged for t in range(len(one))] == stored * 2
    for name in "bcde":
        assert check_buffer(tmp_path / name, progress=False).verified


@pytest.mark.parametrize(
    "codecs",
    [{"image": None}, {"image": "lz4", "depth": None}, {"image": {"id": "zstd", "level": 9}}, {"depth": "zstd"}, {}],
)
def test_select_converts(tmp_path, codecs):
    with filled(tmp_path / "a") as source:
        source.delete(1)
        copied = select(source, tmp_path / "b", codecs=codecs, progress=False)
        assert_same(copied, source)
        back = select(copied, tmp_path / "c", codecs={"image": "zstd", "depth": "lz4"}, progress=False)
        assert_same(back, source)
        assert back.metadata.fields == source.metadata.fields
    for folder in (tmp_path / "b", tmp_path / "c"):
        assert check_buffer(folder, progress=False).verified


def test_what_select_cannot_convert(tmp_path):
    with filled(tmp_path / "a") as source:
        for codecs, named in [({"y": "zstd"}, "'y'"), ({"x": "zstd"}, "'x'"), ({"depth": "jpeg"}, "'depth'")]:
            with pytest.raises(FieldError, match=named):
                select(source, tmp_path / "b", codecs=codecs, progress=False)
    assert not (tmp_path / "b").exists()


def test_raw_and_encoded_buffers_are_told_apart(tmp_path):
    encoded, raw = filled(tmp_path / "a"), filled(tmp_path / "b", fields=RAW)
    for together in (lambda: merge([encoded, raw], tmp_path / "c"), lambda: ConcatReplayBuffer([encoded, raw])):
        with pytest.raises(ConfigMismatchError, match=r"(?s)'image'.*zstd.*select\(.*codecs="):
            together()


# --- damage ---


def damage(folder, episode_index, row, content):
    """Have other bytes, as many, where the encoded image of a row lies."""
    with ReplayBuffer.from_folder(folder, read_only=True) as buffer:
        begin, count = buffer.episode(episode_index)["image"].stored.spans[row].tolist()
    values = np.load(folder / "steps/image.values.npy", mmap_mode="r+")
    values[begin : begin + count] = np.frombuffer(content(values[begin : begin + count].tobytes()), np.uint8)
    values.flush()


HOSTILE = {
    "no frame": lambda row: bytes(len(row)),
    "claims more": lambda row: row[:5] + b"\xff" + row[6:],
    "is cut": lambda row: row[: len(row) // 2] + bytes(len(row) - len(row) // 2),
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_a_damaged_frame_is_named_and_costs_its_episode(tmp_path, content):
    filled(tmp_path / "a").close()
    damage(tmp_path / "a", 2, 3, content)
    with ReplayBuffer.from_folder(tmp_path / "a", read_only=True) as buffer:
        for read in (lambda: np.asarray(buffer.episode(2)["image"]), lambda: buffer.dataset(n_steps=1)[np.arange(18)]):
            with pytest.raises(CorruptBufferError, match=r"image.*row \d+ cannot be decoded"):
                read()
        assert np.array_equal(buffer.episode(2)["image"][2], episode(2, 5)["image"][2])
        with pytest.raises(CorruptBufferError, match="episode 2"):
            select(buffer, tmp_path / "b", codecs={"image": None}, progress=False)
        with pytest.raises(CorruptBufferError, match="episode 2"):
            select(buffer, tmp_path / "b", progress=False)
    faults = [(fault.rule, fault.episode, fault.field) for fault in check_buffer(tmp_path / "a", progress=False).faults]
    assert (15, 2, "image") in faults
    assert "row 3 of episode 2" in str(check_buffer(tmp_path / "a", progress=False))
    check_buffer(tmp_path / "a", repair=True, progress=False)
    assert check_buffer(tmp_path / "a", progress=False).ok
    with ReplayBuffer.from_folder(tmp_path / "a", read_only=True) as buffer:
        assert [one.id for one in buffer] == [0, 1, 3]
        assert np.array_equal(buffer.episode(2)["image"], episode(3, 6)["image"])


@pytest.mark.parametrize(
    ("codec", "error"),
    [
        ({"id": "pickle"}, UnsupportedFormatError),
        ({"id": "blosc", "cname": "zstd"}, UnsupportedFormatError),
        ({"id": "zstd", "level": 1, "path": "x"}, CorruptBufferError),
        ({"id": "zstd", "level": 1 << 40}, CorruptBufferError),
        ({}, CorruptBufferError),
        ("zstd", CorruptBufferError),
        (None, CorruptBufferError),
        ({"id": "imagecodecs_jpeg"}, None),
    ],
)
def test_only_codecs_that_are_known_are_taken_from_a_folder(tmp_path, codec, error):
    with filled(tmp_path) as buffer:
        fields = json.loads((tmp_path / "metadata.json").read_text())["fields"]
        assert fields[0]["codec"] == buffer.metadata.fields["image"].codec
    fields[0]["codec"] = codec
    change_metadata(tmp_path, fields=fields)
    if error is None:
        assert ReplayBuffer.from_folder(tmp_path, read_only=True).metadata.fields["image"].is_lossy
        return
    with pytest.raises(error):
        ReplayBuffer.from_folder(tmp_path, read_only=True)


WITHOUT = """
import sys
for name in ("numcodecs", "zstandard"):
    sys.modules[name] = None
import numpy as np
from gym_replay import MissingExtraError, ReplayBuffer, check_buffer, select
folder = sys.argv[1]
buffer = ReplayBuffer.from_folder(folder)
assert len(buffer) == 4 and buffer.episode(1)["x"].tolist() == [100, 101, 102, 103]
assert buffer.episode(1)["image"].shape == (5, 6, 5, 3)
assert buffer.dataset(n_steps=1, current_fields=["x"], next_fields=["x"])[np.arange(3)]["x"].tolist() == [0, 1, 2]
select(buffer, folder + "-copy", progress=False)
report = check_buffer(folder, progress=False)
assert report.ok and "numcodecs" in report.notes[0], report
for use in (
    lambda: np.asarray(buffer.episode(1)["image"]),
    lambda: buffer.dataset(n_steps=1)[np.arange(3)],
    lambda: buffer.store_episode(x=[1]),
    lambda: buffer.one_episode().__enter__(),
    lambda: ReplayBuffer(folder, fields=dict(buffer.metadata.fields), overwrite=True),
):
    try:
        use()
    except MissingExtraError as error:
        assert "pip install 'gym-replay[codecs]'" in str(error)
    else:
        raise AssertionError
assert len(buffer) == 4
"""


def test_without_the_package_everything_else_is_read(tmp_path):
    filled(tmp_path / "a").close()
    done = subprocess.run([sys.executable, "-c", WITHOUT, str(tmp_path / "a")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
