"""RLDS data sets. ``rlds_data`` was written by TensorFlow Datasets 4.9.10 (TensorFlow 2.21) from :func:`steps_of`."""

import json
import shutil
import struct
import sys
from pathlib import Path

import numpy as np
import pytest

from gym_replay import (
    BufferNotFoundError,
    CorruptBufferError,
    EmptyBufferError,
    FieldError,
    MissingExtraError,
    NotABufferError,
    ReplayBuffer,
    UnsupportedFormatError,
    check_buffer,
    from_rlds,
)

google_crc32c = pytest.importorskip("google_crc32c")
pytest.importorskip("google.protobuf")
pytest.importorskip("PIL")
pytest.importorskip("numcodecs")

WRITTEN = Path(__file__).with_name("rlds_data")
CUT, LENGTHS = 2, [3, 4, 5, 6, 7, 8]
"""The episode that does not end in ``is_last``, and how many steps each one has."""


def steps_of(number):
    """The values of an episode, by field, of all of its steps."""
    rng, count = np.random.default_rng(number), LENGTHS[number]
    rows = [
        {
            "observation.image": rng.integers(0, 255, (8, 10, 3), np.uint8),
            "observation.state": rng.random(3, np.float32),
            "observation.depth": rng.random((2, 2), np.float32),
            "observation.any": rng.integers(0, 255, (4, 6, 3), np.uint8),
            "action": rng.random(2).astype(np.float32).astype(np.float64),  # float64 is kept as float32
            "reward": np.float32(step),
            "discount": np.float32(1),
            "gripper": step % 3,
        }
        for step in range(count)
    ]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def copied(tmp_path, change=None):
    """The data set, with another ``features.json`` or ``dataset_info.json``."""
    folder = tmp_path / "copy"
    shutil.copytree(WRITTEN, folder)
    if change is not None:
        for name in ("features", "dataset_info"):
            document = json.loads((folder / f"{name}.json").read_text())
            change(name, document)
            (folder / f"{name}.json").write_text(json.dumps(document))
    return folder


def steps_in(document):
    return document["featuresDict"]["features"]["steps"]["sequence"]["feature"]["featuresDict"]["features"]


def test_every_value_of_every_episode(tmp_path):
    report = from_rlds(WRITTEN, tmp_path / "new", progress=False)
    assert (report.num_episodes, report.num_steps) == (6, sum(LENGTHS) - 5)
    assert report.left_out == ("points: features of the kind Sequence are not read",)
    assert [line.split(":")[0] for line in report.not_known] == [
        "the last observation of 1 episodes",
        "how 1 episodes ended",
    ]
    assert not report.doubtful
    assert not check_buffer(tmp_path / "new", progress=False).faults
    with ReplayBuffer.from_folder(tmp_path / "new", read_only=True) as buffer:
        assert buffer.meta["episode_metadata.number"].tolist() == [0, 3, 1, 2, 5, 4]  # as they lie in the files
        assert buffer.meta["split"] == ["train"] * 4 + ["val"] * 2
        assert buffer.metadata.environment["rlds"] == {"name": "tiny", "version": "1.0.0"}
        for episode in buffer:
            number = int(episode.meta["episode_metadata.number"])
            expected, is_cut = steps_of(number), number == CUT
            length = LENGTHS[number] - (not is_cut)
            assert (len(episode), episode.complete) == (length, not is_cut)
            for name, values in expected.items():
                is_state = name.startswith("observation")
                found = np.asarray(episode[name])
                assert found.dtype == values.dtype
                assert np.array_equal(found, values if is_state else values[:length]), name
            assert episode["terminated"].tolist() == [False] * (length - 1) + [number % 2 == 0 and not is_cut]
            assert episode["truncated"].tolist() == [False] * (length - 1) + [number % 2 == 1 or is_cut]
            texts = {"language_instruction": f"pick {number}", "observation.note": f"n{number}"}
            assert {name: episode.meta[name] for name in texts} == texts
            assert episode.meta["episode_metadata.file_path"] == f"/a/{number}"


def test_one_split_and_other_codecs(tmp_path):
    report = from_rlds(WRITTEN, tmp_path / "a", split="val", codecs={"observation.any": "raw"}, progress=False)
    assert report.num_episodes == 2
    with ReplayBuffer.from_folder(tmp_path / "a", read_only=True) as buffer:
        assert set(buffer.meta["split"]) == {"val"}
        found = {name: info.codec and info.codec["id"] for name, info in buffer.metadata.fields.items()}
        assert (found["observation.any"], found["observation.image"]) == (None, "zstd")
    with pytest.raises(FieldError, match=r"split='test': the data set has \['train', 'val'\]"):
        from_rlds(WRITTEN, tmp_path / "b", split="test")
    with pytest.raises(FieldError, match="'nothing' is no field"):
        from_rlds(WRITTEN, tmp_path / "b", codecs={"nothing": "zstd"})
    with pytest.raises(NotABufferError):
        from_rlds(WRITTEN, tmp_path / "a")
    assert not (tmp_path / "b").exists()


def test_what_features_may_lack(tmp_path):
    def change(name, document):
        if name == "features":
            for gone in ("reward", "is_terminal", "is_last"):
                del steps_in(document)[gone]

    report = from_rlds(copied(tmp_path, change), tmp_path / "new", progress=False)
    assert report.num_steps == sum(LENGTHS)  # no step is known to be the last one
    assert report.not_known[:3] == (
        "rewards: there are none",
        "where episodes end: there is no is_last",
        "whether episodes terminated: there is no is_terminal",
    )


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda d: steps_in(d).pop("action"), FieldError, "no action that can be read"),
        (lambda d: steps_in(d).pop("observation"), FieldError, "no observation that can be read"),
        (lambda d: d["featuresDict"]["features"].pop("steps"), FieldError, "no RLDS data set"),
        (lambda d: steps_in(d)["action"]["tensor"]["shape"].update(dimensions=["3"]), CorruptBufferError, "'action'"),
        (lambda d: steps_in(d)["action"]["tensor"]["shape"].update(dimensions=["-2"]), FieldError, "no action"),
        (lambda d: steps_in(d)["action"]["tensor"]["shape"].update(dimensions=[str(1 << 70)]), FieldError, "no action"),
        (lambda d: steps_in(d)["action"]["tensor"].update(dtype="complex64"), FieldError, "no action"),
        (lambda d: steps_in(d)["action"]["tensor"].update(encoding="bytes"), CorruptBufferError, "strings of bytes"),
        (
            lambda d: steps_in(d)["observation"]["featuresDict"]["features"]["image"]["image"]["shape"].update(
                dimensions=["9", "10", "3"]
            ),
            CorruptBufferError,
            "expected an image of 10x9 pixels",
        ),
    ],
)
def test_features_that_are_not_those_of_the_files(tmp_path, change, error, message):
    folder = copied(tmp_path, lambda name, document: change(document) if name == "features" else None)
    with pytest.raises(error, match=message):
        from_rlds(folder, tmp_path / "new", progress=False)
    assert not (tmp_path / "new").exists()


def test_files_that_are_damaged_or_missing(tmp_path):
    def refused(message, error=CorruptBufferError):
        with pytest.raises(error, match=message):
            from_rlds(folder, tmp_path / "new", progress=False)
        assert not (tmp_path / "new").exists()

    folder = copied(tmp_path)
    path = folder / "tiny-val.tfrecord-00001-of-00002"
    content = path.read_bytes()
    for position in (0, 9, 40, len(content) - 1):
        path.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        refused("tiny-val.tfrecord-00001-of-00002: record 0 (does not match|is cut off)")
    for end in (5, 100, len(content) - 2):
        path.write_bytes(content[:end])
        refused("record 0 is cut off")
    path.write_bytes(content + content)
    refused("expected 1 episodes, got 2")
    path.write_bytes(record(b"\xff\xff no message"))
    refused("record 0 is no tf.train.Example")
    path.write_bytes(record(b""))
    refused("episode 0: it has no steps")
    path.unlink()
    refused("expected 2 files of the split 'val', got 1")
    (folder / "dataset_info.json").write_text("[]")
    refused("expected an object of JSON")
    (folder / "features.json").unlink()
    refused("no data set of TensorFlow Datasets here", BufferNotFoundError)


def record(content):
    """A record of TFRecord."""

    def checksum(part):
        crc = google_crc32c.value(part)
        return struct.pack("<I", (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)

    length = struct.pack("<Q", len(content))
    return length + checksum(length) + content + checksum(content)


def test_other_formats_and_empty_data_sets(tmp_path):
    def change(name, document):
        if name == "dataset_info":
            document.update({"fileFormat": "array_record"} if how == "format" else {"splits": []})

    how = "format"
    with pytest.raises(UnsupportedFormatError, match="tfrecord, got 'array_record'"):
        from_rlds(copied(tmp_path, change), tmp_path / "new", progress=False)
    shutil.rmtree(tmp_path / "copy")
    how = "none"
    with pytest.raises((EmptyBufferError, FieldError)):
        from_rlds(copied(tmp_path, change), tmp_path / "new", progress=False)
    assert not (tmp_path / "new").exists()


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "google_crc32c", None)
    with pytest.raises(MissingExtraError, match=r"google_crc32c.*gym-replay\[rlds\]"):
        from_rlds(WRITTEN, tmp_path / "new", progress=False)
