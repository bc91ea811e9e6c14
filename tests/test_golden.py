"""Buffers that were written when version 1 of the format was fixed: they open for ever, and are still written so."""

import json
import shutil

import format_helpers
import numpy as np
import pytest
from golden import make

import gym_replay
from gym_replay import RecordToBuffer, ReplayBuffer, check_buffer

GOLDEN = make.HERE


def tree(folder):
    """Every file's content and times, and every folder's."""
    found = {}
    for path in sorted([folder, *folder.rglob("*")]):
        status = path.stat()
        content = path.read_bytes() if path.is_file() else None
        found[path.relative_to(folder).as_posix()] = (content, status.st_mtime_ns, status.st_ino, status.st_mode)
    return found


def metadata_of(folder):
    return json.loads((folder / "metadata.json").read_text())


def change_metadata(folder, **values):
    format_helpers.change_metadata(folder, **values)


@pytest.fixture(params=make.KINDS)
def kind(request):
    return request.param


@pytest.fixture
def copied(kind, tmp_path):
    return shutil.copytree(GOLDEN / kind, tmp_path / kind)


def assert_golden(buffer, kind, more=0):
    numbers = list(make.live(kind))
    assert [episode.id for episode in buffer][: len(numbers)] == numbers
    assert len(buffer) == len(numbers) + more
    for number, episode in zip(numbers, buffer, strict=False):
        fields, meta, complete = make.expected(number)
        assert list(episode) == list(fields)
        assert (len(episode), episode.complete, episode.has_final) == (make.length_of(number), complete, True)
        for name, values in fields.items():
            assert episode[name].dtype == values.dtype, name
            assert episode[name].shape == values.shape, name
            assert episode[name].tobytes() == values.tobytes(), (number, name)
        assert list(episode.meta) == list(meta)
        for name, value in meta.items():
            assert np.array_equal(episode.meta[name], value), (number, name)


def test_every_value(kind):
    before = tree(GOLDEN / kind)
    with ReplayBuffer.from_folder(GOLDEN / kind, read_only=True) as buffer:
        assert_golden(buffer, kind)
        assert buffer.observation_space == make.Golden.observation_space
        assert buffer.action_space == make.Golden.action_space
        batch = buffer.dataset(n_steps=2)[np.arange(buffer.num_steps)]
        assert batch["reward"].numpy().tolist() == [
            make.reward(number, t) for number in make.live(kind) for t in range(make.length_of(number))
        ]
    report = check_buffer(GOLDEN / kind, progress=False)
    assert report.ok, str(report)
    assert report.num_checked == len(list(make.live(kind)))
    assert not report.without_checksum
    assert not report.notes
    with ReplayBuffer(GOLDEN / kind) as buffer:  # opened to write, but nothing is written
        assert_golden(buffer, kind)
    assert tree(GOLDEN / kind) == before


def test_numpy_alone_can_read_it(kind):
    for path in (GOLDEN / kind).rglob("*.npy"):
        np.load(path, mmap_mode="r", allow_pickle=False)


def test_the_ring_has_lost_some():
    assert next(make.live("ring")) > 0
    assert next(make.live("plain")) == 0


def test_is_small():
    files = [path for kind in make.KINDS for path in (GOLDEN / kind).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 200 << 10
    assert not [path for path in files if path.suffix not in (".npy", ".json")]


def test_is_written_the_same_today(kind, tmp_path):
    make.record(tmp_path / kind, kind)
    today, then = tree(tmp_path / kind), tree(GOLDEN / kind)
    assert list(today) == list(then)
    for name, (content, *_) in then.items():
        if name.endswith(".npy"):
            assert today[name][0] == content, name
    assert metadata_of(tmp_path / kind) | {"uuid": ""} == metadata_of(GOLDEN / kind) | {"uuid": ""}


def test_words_are_every_value_and_written_the_same(tmp_path):
    with ReplayBuffer.from_folder(GOLDEN / "words", read_only=True) as buffer:
        for number, episode in enumerate(buffer):
            wanted = make.words_episode(number)
            assert episode["x"].tobytes() == wanted["x"].tobytes()
            assert (episode.meta["task"], episode.meta["score"]) == (wanted["task"], wanted["score"])
            for name in ("words", "points"):
                assert [row.tobytes() for row in episode[name]] == [row.tobytes() for row in wanted[name]]
                assert {(row.dtype, row.shape[1:]) for row in episode[name]} == {
                    (buffer.metadata.fields[name].dtype, buffer.metadata.fields[name].shape)
                }
    assert check_buffer(GOLDEN / "words", progress=False).verified
    make.record_words(tmp_path / "words")
    today, then = tree(tmp_path / "words"), tree(GOLDEN / "words")
    assert list(today) == list(then)
    assert all(today[name][0] == content for name, (content, *_) in then.items())


def test_frames_are_every_value_and_laid_out_the_same(tmp_path):
    """What a codec makes of a row may change with its package; what it decodes to may not."""
    make.record_frames(tmp_path / "frames")
    for folder in (GOLDEN / "frames", tmp_path / "frames"):
        with ReplayBuffer.from_folder(folder, read_only=True) as buffer:
            assert buffer.metadata.fields == make.FRAMES_FIELDS
            assert len(buffer) == 3
            for number, episode in enumerate(buffer):
                for name, values in make.frames_episode(number).items():
                    assert np.asarray(episode[name]).tobytes() == values.tobytes(), (number, name)
            assert (np.asarray(buffer.episode(1)["depth"]) == 0.5).all()
        assert check_buffer(folder, progress=False).verified
    today, then = tree(tmp_path / "frames"), tree(GOLDEN / "frames")
    assert list(today) == list(then)
    assert today["metadata.json"][0] == then["metadata.json"][0]
    spans = [np.load(folder / "steps/depth.spans.npy") for folder in (tmp_path / "frames", GOLDEN / "frames")]
    assert np.array_equal(spans[0][:, 1] == 0, spans[1][:, 1] == 0)


def test_is_recorded_to_further(kind, copied):
    env = RecordToBuffer(make.Golden(), copied, meta_fields=make.META, extra_fields=make.EXTRA, **make.KINDS[kind])
    env.reset()
    env.step(make.action(0, 0))
    env.close()
    numbers = [episode.id for episode in env.buffer]
    assert numbers[-1] == make.EPISODES[kind]
    assert numbers[0] >= next(make.live(kind))
    fields, _, _ = make.expected(0)
    for name, values in fields.items():
        assert env.buffer.episode(-1)[name].tobytes() == values.tobytes(), name
    if kind == "plain":
        assert_golden(env.buffer, kind, more=1)
    assert check_buffer(copied, progress=False).ok


def opening(folder):
    return [
        lambda: ReplayBuffer(folder),
        lambda: ReplayBuffer.from_folder(folder, read_only=True),
        lambda: RecordToBuffer(make.Golden(), folder),
        lambda: gym_replay.check_buffer(folder, repair=True, progress=False),
        lambda: ReplayBuffer(folder, fields={"reward": "float"}, overwrite=True),
    ]


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"format_version": 2}, "format version 2"),
        ({"format_version": 0}, "format version 0"),
        ({"features": ["teleport"]}, "'teleport'"),
        ({"format_version": 2, "features": ["teleport"], "fields": "of another kind"}, "format version 2"),
        ({"features": ["wings"]}, "'wings'"),
    ],
)
def test_the_future_is_refused_by_name(copied, values, named):
    change_metadata(copied, **values)
    before = {name: content for name, (content, *_) in tree(copied).items()}
    for open_it in opening(copied):
        with pytest.raises(gym_replay.GymReplayError, match=named):
            open_it()
    with pytest.raises(gym_replay.UnsupportedFormatError, match=named):
        ReplayBuffer(copied)
    report = check_buffer(copied, progress=False)
    assert [named in str(fault) for fault in report.faults] == [True]
    after = {name: content for name, (content, *_) in tree(copied).items() if name != "writer.lock"}
    assert after == before
