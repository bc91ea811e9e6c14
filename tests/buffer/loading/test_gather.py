"""Rows of one buffer and of several, against plain NumPy over copies of them."""

import multiprocessing
import pickle
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from internals import maps

from gym_replay import ConcatReplayBuffer, Field, ReplayBuffer
from gym_replay.buffer.loading import gather
from gym_replay.buffer.loading.gather import Column
from gym_replay.buffer.loading.source import Source

FIELDS = {
    "state": Field("float32", (3,), state=True),
    "pixels": Field("uint8", (5, 4)),
    "reward": "float64",
    "done": "bool",
    "nothing": Field("float32", (0, 2)),
    "words": Field("int16", (2,), ragged=True),
    "frames": Field("uint8", (5, 4), default=3, state=True, codec="zstd"),
}
PLAIN = [name for name, field in FIELDS.items() if not getattr(field, "ragged", False)]


def fill(folder, lengths, seed, **options):
    generator = np.random.default_rng(seed)
    buffer = ReplayBuffer(folder, fields=FIELDS, **options)
    for length in lengths:
        buffer.store_episode(
            state=generator.standard_normal((length + 1, 3)),
            pixels=generator.integers(0, 256, (length, 5, 4), np.uint8),
            reward=generator.standard_normal(length),
            done=generator.random(length) < 0.5,
            nothing=np.empty((length, 0, 2)),
            frames=generator.integers(0, 256, (length + 1, 5, 4), np.uint8),
            words=[generator.integers(-99, 99, (k, 2)) for k in generator.integers(0, 4, length)],
        )
    return buffer


def rows_of(buffers, source):
    """Every recorded row that all fields have: its number, and its values one field at a time."""
    numbers, values = [], {name: [] for name in FIELDS}
    for place, episode in enumerate(episode for buffer in buffers for episode in buffer):
        for t in range(len(episode)):
            numbers.append(int(source.starts[place]) + t)
            for name in FIELDS:
                values[name].append(episode[name][t])
    return np.array(numbers), values


def check(buffers, source, generator):
    numbers, values = rows_of(buffers, source)
    picked = generator.integers(0, len(numbers), (4, 7))
    for name in PLAIN:
        expected = np.stack(values[name])[picked]
        found = source.rows.take(name, numbers[picked])
        np.testing.assert_array_equal(found, expected, err_msg=name)
        assert found.dtype == expected.dtype
        assert found.flags.owndata or found.base.flags.owndata
        assert found.flags.writeable
        assert found.flags.c_contiguous
    present = generator.random((4, 7)) < 0.7
    padded, lengths = source.rows.take_ragged("words", numbers[picked], present)
    for index in np.ndindex(4, 7):
        row = values["words"][picked[index]] if present[index] else np.empty((0, 2))
        assert lengths[index] == len(row)
        np.testing.assert_array_equal(padded[index][: len(row)], row)
        assert not padded[index][len(row) :].any()
    for width in (int(source.lengths.min()), int(source.lengths.max())):
        counts = np.minimum(source.lengths, width)
        for name in PLAIN:
            found = source.rows.take_slices(name, source.starts, counts, width)
            for place, episode in enumerate(episode for buffer in buffers for episode in buffer):
                count = counts[place]
                np.testing.assert_array_equal(found[place, :count], episode[name][:count])
                assert not found[place, count:].any()
    length = int(source.lengths.min())
    for name in PLAIN:
        runs = source.rows.take_runs(name, source.starts, length)
        np.testing.assert_array_equal(runs, source.rows.take(name, source.starts[:, None] + np.arange(length)))
        assert runs.flags.writeable


lengths_of_parts = st.lists(st.lists(st.integers(1, 6), max_size=5), min_size=1, max_size=4).filter(
    lambda parts: any(parts)
)


@settings(max_examples=12)
@given(parts=lengths_of_parts, ring=st.booleans(), separate=st.booleans(), seed=st.integers(0, 99))
def test_rows_equal_those_of_the_episodes(tmp_path_factory, parts, ring, separate, seed):
    options = {"circular": True, "max_episodes": 2} if ring else {}
    folder = tmp_path_factory.mktemp("b")
    buffers = [fill(folder / str(k), lengths, seed + k, **options) for k, lengths in enumerate(parts)]
    with pytest.MonkeyPatch.context() as patch:
        if separate:  # as where files cannot be mapped as one array
            patch.setattr(gather, "join", lambda *_: None)
        with ConcatReplayBuffer(buffers) as both:
            source = Source(both.snapshots())
            assert (source.rows.column("state") is None) == (separate and len(buffers) > 1)
            check(buffers, source, np.random.default_rng(seed))
            check(buffers, pickle.loads(pickle.dumps(source)), np.random.default_rng(seed))
    for buffer in buffers:
        buffer.close()


def test_a_joined_array_is_read_only_and_outlives_its_buffers(tmp_path):
    with fill(tmp_path / "a", [3], 0) as first, fill(tmp_path / "b", [4], 1) as second:
        expected = np.concatenate((first.episode(0)["state"], second.episode(0)["state"]))
        source = Source(ConcatReplayBuffer([first, second]).snapshots())
        array = source.rows.column("state").array
    numbers = np.concatenate((np.arange(4), source.rows.firsts[1] + np.arange(5)))
    del source, first, second
    np.testing.assert_array_equal(array[numbers], expected)
    assert not array[4:100].any()  # between the parts
    assert not array.flags.writeable


def test_closed_files_are_read_where_they_are_mapped(tmp_path):
    first, second = fill(tmp_path / "a", [3], 0), fill(tmp_path / "b", [4], 1)
    source = Source(ConcatReplayBuffer([first, second]).snapshots())
    expected = [first.episode(0)["reward"].copy(), second.episode(0)["reward"].copy()]
    first.close()
    second.close()
    found = source.rows.take("reward", np.concatenate((np.arange(3), source.rows.firsts[1] + np.arange(4))))
    np.testing.assert_array_equal(found, np.concatenate(expected))


def test_first_rows_leave_room_for_a_header():
    firsts = maps.first_rows([0, 1, maps.PAGE, maps.PAGE + 1])
    assert (firsts % maps.PAGE == 0).all()
    assert (np.diff(firsts) >= np.array([0, 1, maps.PAGE, maps.PAGE + 1]) + maps.PAGE).all()
    assert maps.first_rows([7]).tolist() == [0, 7]


@pytest.mark.parametrize("shape", [(), (17,), (300, 3)])
def test_threads_give_what_one_gives(monkeypatch, shape):
    monkeypatch.setattr(gather, "THREADED_BYTES", 1)
    monkeypatch.setattr(gather, "PIECE_BYTES", 64)
    monkeypatch.setattr(gather, "threads", lambda: 3)
    array = np.random.default_rng(0).standard_normal((500, *shape))
    rows = np.random.default_rng(1).integers(0, 500, (40, 5))
    column = Column(array)
    for _ in range(20):
        np.testing.assert_array_equal(column.take(rows), array[rows])
    for wrong in (-1, 500):
        with pytest.raises(IndexError):
            column.take(np.array([0, wrong]))


def test_a_forked_process_has_threads_of_its_own(monkeypatch):
    monkeypatch.setattr(gather, "THREADED_BYTES", 1)
    monkeypatch.setattr(gather, "threads", lambda: 2)
    column, rows = Column(np.arange(1000.0)), np.arange(1000)[::-1]
    column.take(rows)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer versions of Python warn of forks where there are threads
        child = multiprocessing.get_context("fork").Process(target=column.take, args=(rows,))
        child.start()
    child.join(60)
    assert child.exitcode == 0


def test_runs_must_lie_inside():
    column = Column(np.arange(20.0).reshape(10, 2))
    np.testing.assert_array_equal(column.take_runs(np.array([6, 0]), 4)[0], np.arange(12.0, 20).reshape(4, 2))
    for first in (-1, 7):
        with pytest.raises(IndexError):
            column.take_runs(np.array([0, first]), 4)
    for length in range(1, 40):  # more lengths than are kept
        if length <= 10:
            assert column.take_runs(np.array([0]), length).shape == (1, length, 2)


def test_a_loader_over_many_buffers_gives_what_one_gives(tmp_path):
    lengths = [3, 1, 5, 2, 4, 1]
    with fill(tmp_path / "one", lengths, 0) as one:
        parts = []
        for k, episode in enumerate(one):
            parts.append(ReplayBuffer(tmp_path / str(k), fields=FIELDS))
            parts[-1].store_episode(**{name: list(episode[name]) for name in FIELDS})
        many = ConcatReplayBuffer(parts)
        for options in ({"n_steps": 2}, {"timestep_level": True}, {}):
            pairs = zip(
                one.dataloader(4, shuffle=True, seed=3, **options),
                many.dataloader(4, shuffle=True, seed=3, **options),
                strict=True,
            )
            for mine, theirs in pairs:
                assert mine.keys() == theirs.keys()
                for name in mine:
                    assert torch.equal(mine[name], theirs[name]), name
        for part in parts:
            part.close()
