"""Reading ahead and letting go: what is in memory, when, and that it is the same data."""

import mmap
import os
import resource
import sys
import threading
from itertools import chain, repeat

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gym_replay import ConcatReplayBuffer, EpisodeEvictedError, Field, ReplayBuffer
from gym_replay.buffer.loading.ahead import READERS, Kept, ReadAhead, _Beside
from gym_replay.buffer.loading.source import Source
from gym_replay.buffer.storage import advice, columns

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


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux what is in memory")
def test_rows_come_and_go(tmp_path):
    fill(tmp_path).close()
    expected = np.load(tmp_path / "steps" / "x.npy")
    cold(tmp_path)
    with ReplayBuffer.from_folder(tmp_path, read_only=True) as buffer:
        rows = Source(buffer.snapshots()).rows
        rows.expect_blocks(700)
        if not rows.column("x").has_huge_pages:
            pytest.skip("no large pages")
        if rows.are_held("x", 2000):
            pytest.skip("this file system keeps what it is told to let go of")
        rows.read_ahead("x", 0, 800, 1500)
        assert all(rows.are_held("x", row) for row in range(800, 1500))
        assert not rows.are_held("x", 2400)
        np.testing.assert_array_equal(rows.take("x", np.arange(800, 1500)), expected[800:1500])
        rows.let_go("x", 0, 800, 1500, (None, None))
        assert not any(rows.are_held("x", row) for row in range(801, 1499))  # pages at the ends have other rows too
        np.testing.assert_array_equal(rows.take("x", np.arange(700, 1600)), expected[700:1600])
        rows.let_go("x", 0, 2000, 2500, (None, None))  # to the end of the file, which no page ends with


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux what is in memory")
def test_what_is_in_use_beside_it_stays(tmp_path):
    """Blocks part large pages between them, and of the smaller fields none: neither takes the other's."""
    fill(tmp_path).close()
    cold(tmp_path)
    with ReplayBuffer.from_folder(tmp_path, read_only=True) as buffer:
        rows = Source(buffer.snapshots()).rows
        rows.expect_blocks(700)
        if not rows.column("x").has_huge_pages or rows.are_held("x", 2000):
            pytest.skip("no large pages, or a file system that keeps what it is told to let go of")
        assert not rows.column("n").has_huge_pages
        for name in ("x", "n"):  # all of "n" is on a few pages
            for first, last in ((100, 700), (700, 1700), (1700, 2300)):
                rows.read_ahead(name, 0, first, last)
            rows.let_go(name, 0, 700, 1700, (700, 1700))
            assert all(rows.are_held(name, row) for row in (*range(100, 700), *range(1700, 2300)))
            assert name == "n" or not any(rows.are_held(name, row) for row in range(1024, 1535))
            rows.let_go(name, 0, 1700, 2300, (700, None))  # with the page that the two shared
            assert all(rows.are_held(name, row) for row in range(100, 700))
            assert name == "n" or not any(rows.are_held(name, row) for row in range(1536, 2300))


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux what is in memory")
def test_what_is_read_needs_no_page_fault(tmp_path):
    fill(tmp_path).close()
    with ReplayBuffer.from_folder(tmp_path, read_only=True) as buffer:
        rows = Source(buffer.snapshots()).rows
        rows.expect_blocks(300)  # too few for large pages
        column = rows.column("x")
        if not column.is_populated:
            pytest.skip("the system knows no such advice")
        rows.read_ahead("x", 0, 1000, 1300)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for row in range(1000, 1300):
            int(column.array[row, 0])
        assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 100


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("workers", [0, 2])
def test_blocks_hold_what_was_stored(tmp_path, monkeypatch, known, parts, workers):
    """Where the system knows the advice and where not; with memory short all the time."""
    monkeypatch.setattr(advice, "_has_huge_pages", lambda: known)
    monkeypatch.setattr("gym_replay.buffer.loading.gather.is_held", lambda address: False)
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


def test_advice_comes_in_pieces_that_the_system_takes_whole(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(columns, "_most_advised", lambda device: 1 << 20)
    monkeypatch.setattr(os, "posix_fadvise", lambda descriptor, *piece: asked.append(piece), raising=False)
    monkeypatch.setattr(os, "POSIX_FADV_WILLNEED", 3, raising=False)
    with (tmp_path / "file").open("wb") as stream:
        columns._will_need(stream.fileno(), 100, 100 + (5 << 19))
        columns._will_need(stream.fileno(), 100, 100)
    assert asked == [(100, 1 << 20, 3), (100 + (1 << 20), 1 << 20, 3), (100 + (2 << 20), 1 << 19, 3)]


def test_what_the_system_takes_whole_is_at_least_what_every_system_takes(tmp_path):
    assert columns._most_advised(tmp_path.stat().st_dev) >= 1 << 17
    assert columns._most_advised(os.makedev(4095, 4095)) == 1 << 17  # there is no such device


class Told:
    """Rows that note what they are told, some of which the system has let go of."""

    def __init__(self):
        self.gone, self.told, self.used = set(), [], []

    def are_held(self, name, row):
        return row not in self.gone

    def let_go(self, name, part, first, last, used):
        self.told.append((name, first, last))
        self.used.append(used)


def is_done(kept, rows, names, first, last):
    kept.use(first, [(0, first, last)])
    kept.done(first, rows, names, 2000)


def test_nothing_is_let_go_of_while_there_is_memory():
    rows, kept = Told(), Kept()
    for first in range(0, 1000, 10):
        is_done(kept, rows, ("x", "y"), first, first + 10)
    assert rows.told == []
    rows.gone = {5, 15}  # the two oldest went by themselves: half of the other 98 may stay
    kept.make_room()
    assert rows.told == [(name, first, first + 10) for first in range(20, 510, 10) for name in ("x", "y")]
    rows.told.clear()
    is_done(kept, rows, ("x",), 1000, 1010)
    assert rows.told == [("x", 510, 520), ("y", 510, 520)]


def test_what_is_let_go_of_is_told_what_is_in_use_beside_it():
    rows, kept = Told(), Kept()
    kept.use("before", [(0, 10, 20), (1, 30, 99)])
    kept.use("after", [(0, 70, 80), (0, 55, 60)])
    is_done(kept, rows, ("x",), 20, 30)
    is_done(kept, rows, ("x",), 40, 50)
    rows.gone = {25}
    kept.make_room()  # half of the other one may stay: none does
    assert rows.told == [("x", 40, 50)]
    assert rows.used == [(20, 55)]


class Spans:
    """Samples that are rows."""

    read_fields = ("x",)
    firsts = (0, 1000)

    def __init__(self):
        self.read, self.finished = [], []
        self.source = self
        self.rows = self

    def stretches(self, first, last):
        return [(0, first, last)]

    def read_ahead(self, name, part, first, last):
        self.read.append((first, last))

    def are_held(self, name, row):
        self.finished.append(row)
        return True


def test_what_is_of_earlier_pools_or_epochs_is_done():
    spans, ahead = Spans(), ReadAhead()

    def held():
        ahead.wait()
        return sorted(first for _, _, (_, first, _) in ahead._kept._spans)

    ahead.serve(spans, 0, 0, 0, [(0, 10, 0), (10, 20, 0)])
    ahead.serve(spans, 0, 0, 0, [(20, 30, 1)])
    assert held() == []
    ahead.serve(spans, 0, 1, 1, [(30, 40, 2)])
    assert held() == [0, 10]
    ahead.wait()
    ahead.serve(spans, 1, 0, 0, [(40, 50, 0)])
    assert held() == [0, 10, 20, 30]
    assert sorted(spans.read) == [(0, 10), (10, 20), (20, 30), (30, 40), (40, 50)]
    assert list(ahead._kept._used) == [(1, (40, 50, 0))]


class Slow(Spans):
    """A disk that reads nothing until it may."""

    def __init__(self):
        super().__init__()
        self.may = threading.Event()

    def read_ahead(self, name, part, first, last):
        if first >= 20:
            assert self.may.wait(30)
        super().read_ahead(name, part, first, last)


@pytest.mark.parametrize("straddles", [False, True])
def test_nobody_waits_before_the_pool_that_is_read_is_entered(straddles):
    """All of the next pool is asked for while there are batches of this one, and then all of it is waited for."""
    spans, ahead = Slow(), ReadAhead()
    ahead.serve(spans, 0, 0, 0, [(0, 10, 0), (10, 20, 0)])
    assert sorted(spans.read) == [(0, 10), (10, 20)]  # the first pool is read before its first batch
    for begin in range(20, 420, 10):
        ahead.serve(spans, 0, 0, 0, [(begin, begin + 10, 1)])
    assert len(spans.read) == 2
    threading.Timer(0.2, spans.may.set).start()
    # A batch of the pool's last samples may have the next one's first.
    ahead.serve(spans, 0, 0 if straddles else 1, 1, [])
    assert set(spans.read) >= {(begin, begin + 10) for begin in range(20, 420, 10)}
    ahead.wait()


def test_what_a_jump_leaves_behind_holds_up_nothing_for_good():
    spans, ahead = Slow(), ReadAhead()
    ahead.serve(spans, 3, 5, 5, [(0, 10, 5)])
    ahead.serve(spans, 3, 5, 5, [(begin, begin + 10, 6) for begin in range(20, 220, 10)])
    threading.Timer(0.2, spans.may.set).start()
    ahead.serve(spans, 0, 0, 0, [(10, 20, 0)])
    ahead.wait()
    begun = len(spans.read) - 2  # in as many threads as read; the rest is not read
    assert begun <= READERS + 1
    assert (10, 20) in spans.read
    assert len(ahead._kept._spans) == 1 + begun
    assert list(ahead._kept._used) == [(0, (10, 20, 0))]


def test_an_iterator_that_is_given_up_reads_no_more():
    spans, ahead = Slow(), ReadAhead()
    ahead.serve(spans, 0, 0, 0, [(0, 10, 0)])
    ahead.serve(spans, 0, 0, 0, [(begin, begin + 10, 1) for begin in range(20, 420, 10)])
    ahead.cancel()
    spans.may.set()
    ahead.wait()
    assert len(spans.read) <= 1 + READERS + 1


def test_of_many_epochs_no_more_is_noted_than_there_are_rows():
    rows, kept = Told(), Kept()
    for key in range(1000):
        first = key % 20 * 100
        kept.use(key, [(0, first, first + 100)])
        kept.done(key, rows, ("x",), 2000)
    assert len(kept._spans) == 20
    assert rows.told == []


@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(1, 20)), min_size=1, max_size=30),
    st.integers(0, 60),
    st.integers(1, 20),
)
def test_the_nearest_rows_in_use(used, first, count):
    spans, last = [(low, low + length) for low, length in used], first + count
    before = max((high for low, high in spans if low < first), default=None)
    after = min((low for low, high in spans if high > last), default=None)
    assert _Beside(np.array(spans)).of(first, last) == (before, after)


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux what is in memory")
def test_what_lies_behind_the_rows_is_let_be(tmp_path, monkeypatch):
    """The file of a writer has room for more rows than the map of a reader."""
    done = []
    with fill(tmp_path, 600) as buffer:
        rows = Source(buffer.snapshots()).rows
        rows.expect_blocks(600)
        column = rows.column("x")
        file = rows._file_of("x", 0)
        assert file.rows_held(0) > 600
        monkeypatch.setattr(columns, "unmap", lambda *piece: done.append(piece))
        rows.let_go("x", 0, 300, 600, (None, None))
    ((begin, nbytes),) = done
    end = column.address + 600 * ROW
    assert begin < end <= begin + nbytes < end + 2 * mmap.PAGESIZE


def test_short_stretches_are_read_as_one(tmp_path):
    with ReplayBuffer(tmp_path, fields={"x": "float", "o": Field("float", (100,), state=True)}) as buffer:
        for _ in range(40):
            buffer.store_episode(x=np.zeros(9), o=np.zeros((10, 100)))
        dataset = buffer.dataset(timestep_level=True, episodes=np.arange(0, 40, 2))
        assert dataset.stretches(0, len(dataset)) == [(0, 0, 390)]
        dataset = buffer.dataset(timestep_level=True, episodes=[0, 30, 39])  # 16 KiB are 40 rows of the wider field
        assert dataset.stretches(0, len(dataset)) == [(0, 0, 10), (0, 300, 310), (0, 390, 400)]
