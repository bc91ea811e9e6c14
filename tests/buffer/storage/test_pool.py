"""Maps that are held up to a bound, and files that are opened later than their snapshot."""

import os
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gym_replay import BufferChangedError, CorruptBufferError, EpisodeEvictedError, Field, ReplayBuffer
from gym_replay.buffer.storage import pool as pools
from gym_replay.buffer.storage.pool import MapPool, Maps, PooledFiles, default_bound, shared_pool
from gym_replay.buffer.storage.pooled import PooledReader

FIELDS = {"x": "int64", "y": "int64", "words": Field("uint8", ragged=True)}
linux = pytest.mark.skipif(sys.platform != "linux", reason="counts maps in /proc")


def fill(folder, numbers, **options):
    buffer = ReplayBuffer(folder, fields=FIELDS, meta_fields={"task": "int", "name": "str"}, **options)
    for number in numbers:
        store(buffer, number)
    return buffer


def store(buffer, number):
    values = 10 * number + np.arange(4)
    buffer.store_episode(x=values, y=-values, words=[[number]] * 4, task=number, name=f"episode {number}")


def reader_of(folder, bound=100):
    return PooledReader(Path(folder), Maps(MapPool(bound)))


def open_files(folder):
    found = [os.path.realpath(f"/proc/self/fd/{entry}") for entry in os.listdir("/proc/self/fd")]
    return [path for path in found if str(folder) in path]


def maps_of(folder):
    return sum(str(folder) in line for line in Path("/proc/self/maps").read_text().splitlines())


@given(st.integers(1, 12), st.lists(st.tuples(st.integers(0, 9), st.integers(1, 5)), max_size=60))
def test_a_pool_holds_what_was_used_last(bound, uses):
    pool = MapPool(bound)
    held = []  # the oldest first
    for key, maps in uses:
        found = pool.get(key)
        assert (found is not None) == (key in [each for each, _ in held])
        if found is None:
            pool.put(key, f"value {key}", maps)
            held.append((key, maps))
            while sum(each for _, each in held) > bound and len(held) > 1:
                held.pop(0)
        else:
            assert found == f"value {key}"
            held.append(held.pop([each for each, _ in held].index(key)))
        assert pool.maps == sum(each for _, each in held)
        assert pool.maps <= bound or len(held) == 1


def test_what_a_set_of_buffers_holds_goes_with_it():
    pool = MapPool(10)
    one, other = Maps(pool), Maps(pool)
    assert one.get("key", lambda: "mine", 2) == "mine"
    assert other.get("key", lambda: "theirs", 3) == "theirs"
    assert pool.maps == 5
    del one
    assert pool.maps == 3
    other.discard()
    assert pool.maps == 0


def test_another_process_has_pools_of_its_own():
    one, other = pickle.loads(pickle.dumps((Maps(shared_pool()), Maps(shared_pool()))))
    assert one.pool is other.pool is shared_pool()
    mine = Maps(MapPool(7))
    first, second = pickle.loads(pickle.dumps((mine, mine)))
    assert first is second
    assert first.pool.bound == 7
    assert first.pool is not mine.pool
    assert 1 <= default_bound() <= 32_000


@linux
def test_nothing_stays_open_and_few_maps_stay(tmp_path):
    with fill(tmp_path / "a", range(3)):
        pass
    reader = reader_of(tmp_path / "a", bound=2)
    snapshot = reader.snapshot()
    assert maps_of(tmp_path / "a") == 0
    for _ in range(2):
        assert snapshot.column("x").tolist() == [10 * k + t for k in range(3) for t in range(4)]
        assert snapshot.meta("name").tolist() == ["episode 0", "episode 1", "episode 2"]
        assert snapshot.ragged("words")[5].tolist() == [1]
        assert snapshot.meta_of(2) == {"task": 2, "name": "episode 2"}
        assert maps_of(tmp_path / "a") <= 2
        assert not open_files(tmp_path / "a")
    kept = snapshot.column("x")
    for name in ("task", "name"):
        snapshot.meta(name)
    assert kept[0] == 0  # a view keeps its map
    reader.close()
    assert kept[-1] == 23


@linux
def test_a_closed_buffer_has_no_file_open_while_views_are_held(tmp_path):
    with fill(tmp_path / "a", range(3)):
        pass
    buffer = ReplayBuffer.from_folder(tmp_path / "a", read_only=True)
    views = [buffer.episode(1)[name] for name in ("x", "y")]
    snapshots = buffer.snapshots()
    assert len(open_files(tmp_path / "a")) == len(snapshots[0].columns)  # each once
    buffer.close()
    assert not open_files(tmp_path / "a")
    assert views[0].tolist() == [10, 11, 12, 13]
    assert snapshots[0].column("y").tolist()[:4] == [0, -1, -2, -3]


@pytest.mark.parametrize("edit", ["update", "clear", "add_field", "gone"])
def test_a_column_that_was_replaced_is_refused_until_a_refresh(tmp_path, edit):
    with fill(tmp_path / "a", range(3)) as writer:
        reader = reader_of(tmp_path / "a")
        before = reader.snapshot()
        mapped = before.column("x")
        if edit == "update":
            writer.update(0, x=np.zeros(4, int), y=np.zeros(4, int))
        elif edit == "clear":
            writer.clear()
        elif edit == "add_field":
            writer.add_field("z", "float")
        else:
            (tmp_path / "a").rename(tmp_path / "b")
        assert before.column("x") is not None  # it is mapped, and shows what was
        assert mapped.tolist()[:5] == [0, 1, 2, 3, 10]
        with pytest.raises(BufferChangedError, match="refresh"):
            before.column("y")
        assert issubclass(BufferChangedError, EpisodeEvictedError)
        if edit == "gone":
            (tmp_path / "b").rename(tmp_path / "a")
            assert before.column("y").tolist()[:3] == [0, -1, -2]
            return
        after = reader.refresh()
        assert after.column("y").tolist()[:5] == {"update": [0] * 4 + [-10], "clear": []}.get(
            edit, [0, -1, -2, -3, -10]
        )


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("path", ["steps/x.npy", "steps/y.npy"])
def test_an_update_at_the_moment_of_opening_is_noticed(tmp_path, monkeypatch, moment, path):
    with fill(tmp_path / "a", range(3)) as writer:
        snapshot = reader_of(tmp_path / "a").snapshot()
        plain = PooledFiles._open

        def opened(self, wanted):
            if wanted == path and moment == "before":
                writer.update(x=[[7] * 4] * 3, y=[[-7] * 4] * 3)
            descriptor = plain(self, wanted)
            if wanted == path and moment == "after":
                writer.update(x=[[7] * 4] * 3, y=[[-7] * 4] * 3)
            return descriptor

        monkeypatch.setattr(PooledFiles, "_open", opened)
        with pytest.raises(BufferChangedError):
            assert snapshot.column("x").tolist() == [-value for value in snapshot.column("y").tolist()]


def test_a_table_that_is_replaced_while_it_is_read_is_read_again(tmp_path, monkeypatch):
    with fill(tmp_path / "a", range(3)) as writer:
        plain, times = pools.read_column, []

        def read(*arguments):
            if len(times) == 0:
                writer.update(task=[5, 6, 7])
            times.append(1)
            return plain(*arguments)

        monkeypatch.setattr(pools, "read_column", read)
        snapshot = reader_of(tmp_path / "a").snapshot()
        assert snapshot.meta("task").tolist() == [5, 6, 7]
        assert len(snapshot) == 3


def test_growth_is_followed_without_opening_anew(tmp_path):
    with fill(tmp_path / "a", range(2)) as writer:
        reader = reader_of(tmp_path / "a")
        first = reader.snapshot()
        assert reader.refresh() is first
        assert len(first.column("x")) == 8
        store(writer, 2)
        second = reader.refresh()
        assert second.column("x").tolist()[-4:] == [20, 21, 22, 23]
        assert first.column("x").tolist()[-1] == 13
        writer.delete(0)
        assert reader.refresh().ids.tolist() == [1, 2]


def test_rings_are_followed(tmp_path):
    with fill(tmp_path / "a", range(3), circular=True, max_episodes=3) as writer:
        reader = reader_of(tmp_path / "a", bound=1)
        first = reader.snapshot()
        assert first.is_live(0)
        store(writer, 3)
        assert not first.is_live(0)
        assert first.is_live(1)
        assert reader.refresh().ids.tolist() == [1, 2, 3]
        writer.clear()
        assert not first.is_live(2)  # its counters are gone


def test_a_snapshot_goes_to_another_process_by_its_path(tmp_path):
    with fill(tmp_path / "a", range(3)) as writer:
        reader = reader_of(tmp_path / "a", bound=5)
        snapshot = reader.snapshot()
        sent = pickle.dumps(snapshot)
        assert len(sent) < 8000
        copy = pickle.loads(sent)
        assert copy.column("y").tolist() == snapshot.column("y").tolist()
        assert copy.meta("name").tolist() == snapshot.meta("name").tolist()
        assert copy.is_live(0)
        store(writer, 3)
        assert len(copy.reader.refresh()) == 4
        late = pickle.loads(sent)
        writer.update(0, x=np.zeros(4, int))
        with pytest.raises(BufferChangedError):
            late.column("x")


def test_damage_is_named_when_it_is_met(tmp_path):
    with fill(tmp_path / "a", range(3)):
        pass
    reader = reader_of(tmp_path / "a")
    os.truncate(tmp_path / "a" / "steps" / "x.npy", 200)
    (tmp_path / "a" / "steps" / "y.npy").unlink()
    snapshot = reader.refresh()
    with pytest.raises(CorruptBufferError, match=r"x\.npy: expected at least 12 rows"):
        snapshot.column("x")
    with pytest.raises(CorruptBufferError, match=r"y\.npy: the file is missing"):
        snapshot.column("y")
    (tmp_path / "a" / "steps" / "y.npy").symlink_to("/etc/passwd")
    with pytest.raises(CorruptBufferError, match="plain file"):
        snapshot.column("y")
    (tmp_path / "a" / "episodes.npy").unlink()
    with pytest.raises(CorruptBufferError, match=r"episodes\.npy"):
        reader_of(tmp_path / "a")
