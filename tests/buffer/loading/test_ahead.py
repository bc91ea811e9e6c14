"""Blocks of a shuffle that are asked for before they are needed, and let go of after."""

import sys
from itertools import chain, repeat

import numpy as np
import pytest
from internals import datasets, maps

from gym_replay import ConcatReplayBuffer, EpisodeEvictedError, Field, ReplayBuffer

ROW = 4096


def fill(folder, rows=2500):
    generator = np.random.default_rng(0)
    fields = {"x": Field("uint8", (ROW,)), "n": "int", "words": Field("int16", ragged=True)}
    buffer = ReplayBuffer(folder, fields=fields)
    for begin in range(0, rows, 100):
        numbers = np.arange(begin, begin + 100)
        words = [np.arange(k % 3) for k in range(100)]
        buffer.store_episode(x=generator.integers(0, 256, (100, ROW), np.uint8), n=numbers, words=words)
    buffer.flush()
    return buffer


class Told:
    """What the system is told about the only field that a loader reads, as rows, and what it may let go of."""

    def __init__(self, monkeypatch, loader):
        self.asked, self.let_go = [], 0
        column = loader.dataset.samples.source.rows.column("x")
        self._begin, self._nbytes, self._whole = column.array.ctypes.data, column.nbytes, column.array.nbytes
        monkeypatch.setattr(maps, "will_need", self._note)
        monkeypatch.setattr(maps, "let_go", self._note_end)
        monkeypatch.setattr(datasets, "_thread", lambda process: AtOnce())

    def _note(self, address, size):
        first = (address - self._begin) // self._nbytes
        self.asked += range(first, first + size // self._nbytes)

    def _note_end(self, address, size):
        assert (address, size) == (self._begin, self._whole)
        self.let_go += 1


class AtOnce:
    """Does in this thread what is for another one."""

    def submit(self, work, *arguments):
        work(*arguments)


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("parts", [1, 3])
def test_the_next_pool_is_asked_for_once(tmp_path, monkeypatch, ranks, parts):
    folders = [tmp_path / str(part) for part in range(parts)]
    for folder in folders:
        fill(folder, 1200 // parts).close()
    options = {"shuffle": "block", "block_size": 40, "pool_size": 200, "fields": ("x",), "return_indices": True}
    with ConcatReplayBuffer(folders) as buffer:
        for rank in range(ranks):
            loader = buffer.dataloader(20, timestep_level=True, seed=3, rank=rank, world_size=ranks, **options)
            told = Told(monkeypatch, loader)
            firsts = loader.dataset.samples.source.starts
            seen = 0
            for batch in loader:
                rows = firsts[batch["_indices"][:, 0]] + batch["_indices"][:, 1].numpy()
                assert set(rows.tolist()) <= set(told.asked)
                seen += ranks * len(rows)
                assert len(told.asked) - seen <= 3 * 200  # this pool, the next, and what of one is gathered together
            assert len(told.asked) == len(set(told.asked)) == 1200  # each once
            assert told.let_go == 6  # where each pool is asked for, what was read before it


@pytest.mark.skipif(sys.platform != "linux", reason="Linux knows the advice")
def test_advice_is_taken(tmp_path):
    with fill(tmp_path, 1000) as buffer:
        rows = buffer.dataset(timestep_level=True).source.rows
        rows.without_read_ahead()
        expected = np.load(tmp_path / "steps" / "x.npy", mmap_mode="r")
        for first, last in ((0, 1000), (3, 4), (999, 1000), (500, 500)):
            rows.will_need(("x", "n", "words"), [(first, last)])
            np.testing.assert_array_equal(rows.take("x", np.arange(first, last)), expected[first:last])


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("memory", [0, 1 << 40])
def test_random_rows_are_read_alone_where_memory_does_not_take_them_all(tmp_path, monkeypatch, parts, memory):
    folders = [tmp_path / str(part) for part in range(parts)]
    for folder in folders:
        fill(folder, 200).close()
    told = []
    monkeypatch.setattr(maps, "memory_bytes", lambda: memory)
    monkeypatch.setattr(maps, "without_read_ahead", lambda array: told.append(array.nbytes))
    expected = np.concatenate([np.load(folder / "steps" / "x.npy") for folder in folders])
    with ConcatReplayBuffer(folders) as buffer:
        for shuffled in ({"shuffle": True}, {"replacement": True}, {}):
            loader = buffer.dataloader(32, timestep_level=True, return_indices=True, fields=("x", "words"), **shuffled)
            for batch in loader:
                rows = batch["_indices"][:, 0].numpy() * 100 + batch["_indices"][:, 1].numpy()
                np.testing.assert_array_equal(batch["x"], expected[rows])
            assert len(told) == (1 if shuffled and not memory else 0)
            told.clear()


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("workers", [0, 2])
def test_blocks_hold_what_was_stored(tmp_path, parts, workers):
    folders = [tmp_path / str(part) for part in range(parts)]
    for folder in folders:
        fill(folder, 1000).close()
    expected = np.concatenate([np.load(folder / "steps" / "x.npy") for folder in folders])
    with ConcatReplayBuffer(folders) as buffer:
        options = {"num_workers": workers, "multiprocessing_context": "fork" if workers else None}
        loader = buffer.dataloader(
            48, timestep_level=True, shuffle="block", block_size=70, pool_size=210, return_indices=True, **options
        )
        for _ in range(2):
            seen = []
            for batch in loader:
                rows = batch["_indices"][:, 0].numpy() * 100 + batch["_indices"][:, 1].numpy()
                np.testing.assert_array_equal(batch["x"], expected[rows])
                assert batch["words_lens"].tolist() == (rows % 100 % 3).tolist()
                seen += rows.tolist()
            assert sorted(seen) == list(range(1000 * parts))


def test_no_batch_is_torn_while_a_ring_is_overwritten(tmp_path):
    length = 50

    def store(buffer, number):
        each = np.full(length, number)
        buffer.store_episode(x=np.broadcast_to(each[:, None], (length, 1000)), n=each)

    fields = {"x": Field("int16", (1000,)), "n": "int"}
    with ReplayBuffer(tmp_path, fields=fields, circular=True, max_steps=2000) as ring:
        for number in range(60):
            store(ring, number)
        seen = []
        loader = ring.dataloader(16, timestep_level=True, shuffle="block", block_size=40, pool_size=200)

        def load():
            for count, batch in enumerate(chain.from_iterable(repeat(loader))):
                assert (batch["x"].numpy() == batch["n"].numpy()[:, None]).all()
                seen.append(int(batch["n"].min()))
                if count % 3 == 2:
                    store(ring, 60 + count // 3)

        with pytest.raises(EpisodeEvictedError, match="make a new loader"):  # once all that it had has gone
            load()
        assert len(seen) > 60
        assert min(seen[-3:]) > 50


def test_short_stretches_are_read_as_one(tmp_path):
    with ReplayBuffer(tmp_path, fields={"x": "float", "o": Field("float", (100,), state=True)}) as buffer:
        for _ in range(40):
            buffer.store_episode(x=np.zeros(9), o=np.zeros((10, 100)))
        dataset = buffer.dataset(timestep_level=True, episodes=np.arange(0, 40, 2))
        assert dataset.stretches(0, len(dataset)) == [(0, 390)]
        dataset = buffer.dataset(timestep_level=True, episodes=[0, 30, 39])  # 16 KiB are 40 rows of the wider field
        assert dataset.stretches(0, len(dataset)) == [(0, 10), (300, 310), (390, 400)]
