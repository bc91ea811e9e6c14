"""Blocks of a shuffle that are asked for before they are needed, and let go of after."""

import os
import sys
import threading
from itertools import chain, repeat

import numpy as np
import pytest

from gym_replay import ConcatReplayBuffer, EpisodeEvictedError, Field, ReplayBuffer
from gym_replay.buffer.loading import ahead
from gym_replay.buffer.storage import maps

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


def cold(folder):
    """Take a folder out of the page cache; skip where that cannot be, as on a file system in memory."""
    for path in (folder / "steps").rglob("*.npy"):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


class AtOnce:
    """Does in this thread what is for another one."""

    def submit(self, work):
        work()


class Told:
    """What the system is told about the only field that a loader reads, as rows."""

    def __init__(self, monkeypatch, loader):
        self.events = []
        column = loader.dataset.source.rows.column("x")
        for name in ("will_need", "done_with"):
            monkeypatch.setattr(maps, name, self._note(name, column.array.ctypes.data, column.nbytes))
        monkeypatch.setattr(ahead, "_thread", lambda process: AtOnce())

    def _note(self, name, begin, nbytes):
        def note(address, size):
            first = (address - begin) // nbytes
            self.events.append((name, first, first + size // nbytes))

        return note

    def rows(self, name):
        return [row for what, first, last in self.events if what == name for row in range(first, last)]


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("parts", [1, 3])
def test_the_next_pool_is_asked_for_and_the_one_before_is_done_with(tmp_path, monkeypatch, ranks, parts):
    folders = [tmp_path / str(part) for part in range(parts)]
    for folder in folders:
        fill(folder, 1200 // parts).close()
    options = {"shuffle": "block", "block_size": 40, "pool_size": 200, "fields": ("x",), "return_indices": True}
    with ConcatReplayBuffer(folders) as buffer:
        for rank in range(ranks):
            loader = buffer.dataloader(20, timestep_level=True, seed=3, rank=rank, world_size=ranks, **options)
            told = Told(monkeypatch, loader)
            firsts = loader.dataset.source.starts
            for batch in loader:
                rows = firsts[batch["_indices"][:, 0]] + batch["_indices"][:, 1].numpy()
                asked = told.rows("will_need")
                assert set(rows.tolist()) <= set(asked)
                current = set(told.rows("will_need")) - set(told.rows("done_with"))
                assert set(rows.tolist()) <= current
                assert len(current) <= 3 * 200  # a pool, the next one, and what lies between their stretches
            assert len(asked) == len(set(asked)) == 1200  # each once


def test_what_was_asked_for_in_another_epoch_is_done_with(tmp_path, monkeypatch):
    with fill(tmp_path, 600) as buffer:
        loader = buffer.dataloader(
            20, timestep_level=True, shuffle="block", block_size=40, pool_size=200, fields=("x",), seed=3
        )
        told = Told(monkeypatch, loader)
        iterator = iter(loader)
        next(iterator)
        assert len(told.rows("will_need")) == 400
        assert told.rows("done_with") == []
        next(iter(loader))
        assert sorted(told.rows("done_with")) == sorted(told.rows("will_need")[:400])


def test_an_iterator_that_is_given_up_asks_for_no_more(tmp_path, monkeypatch):
    begun, asked, go_on = threading.Event(), [], threading.Event()

    def slow(address, nbytes):
        asked.append(address)
        begun.set()
        go_on.wait(20)

    with fill(tmp_path, 1000) as buffer:
        options = {"shuffle": "block", "block_size": 20, "pool_size": 100, "fields": ("x",), "seed": 0}
        loader = buffer.dataloader(100, timestep_level=True, **options)
        monkeypatch.setattr(maps, "will_need", slow)
        iterator = iter(loader)
        next(iterator)
        assert begun.wait(20)
        for _ in range(3):
            next(iterator)
        iterator.close()
        go_on.set()
        ahead._thread(os.getpid()).submit(int).result(20)  # after all that is still to be done
        assert len(asked) < 35  # of 50 blocks


@pytest.mark.skipif(sys.platform != "linux", reason="Linux knows the advice")
def test_advice_is_taken(tmp_path):
    with fill(tmp_path, 1000) as buffer:
        rows = buffer.dataset(timestep_level=True).source.rows
        rows.expect_blocks()
        expected = np.load(tmp_path / "steps" / "x.npy", mmap_mode="r")
        for first, last in ((0, 1000), (3, 4), (999, 1000), (500, 500)):
            rows.will_need("x", first, last)
            rows.done_with("x", first, last)
            for name in ("n", "words"):
                rows.will_need(name, first, last)
            np.testing.assert_array_equal(rows.take("x", np.arange(first, last)), expected[first:last])


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
