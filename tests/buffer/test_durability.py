"""ReplayBuffer, durability: the files, syncs, power loss, damage, and a full disk."""

import json
import os
import subprocess
import warnings
from pathlib import Path

import numpy as np
import pytest
from buffer_helpers import FIELDS, add, contents, files_of, ids, make, make_plain, run_script
from internals import ColumnWriter, Counters, small_sizes

from gym_replay import ReplayBuffer, StorageError, check_buffer


@pytest.mark.parametrize("circular", [False, True])
def test_no_file_holds_a_pickle(tmp_path, circular):
    with make(tmp_path, max_episodes=2, circular=circular) as buffer:
        for _ in range(2):
            buffer.store_episode(state=np.ones((3, 3)), action=[1, 2], seed=1)
        buffer.add_field("added", "float")
        buffer.update(0, seed=9)
        buffer.delete(1)
        buffer.flush()
        for closing in (False, True):
            names = set()
            for path in tmp_path.rglob("*"):
                if path.suffix == ".npy":
                    array = np.load(path, allow_pickle=False)
                    assert array.dtype.kind in "biufV"
                    assert not array.dtype.hasobject
                    assert np.load(path, mmap_mode="r", allow_pickle=False).shape == array.shape
                elif path.is_file():
                    names.add(path.name)
            assert names == {"metadata.json", "writer.lock"}
            if closing:
                break
            buffer.close()
    json.loads((tmp_path / "metadata.json").read_text())


class _Syncs:
    """A double of the calls that bring bytes to the disk, and of those that write them."""

    def __init__(self, monkeypatch, folder):
        self.events = []
        self._wrap(
            monkeypatch, ColumnWriter, "write_reserved", lambda column, *_: ("write", self._name(folder, column))
        )
        self._wrap(monkeypatch, ColumnWriter, "sync", lambda column: ("sync", self._name(folder, column)))
        self._wrap(monkeypatch, Counters, "sync", lambda counters: ("sync", "commit.npy"))
        self._wrap(monkeypatch, Counters, "put", lambda counters, name, value: ("put", name))

    @staticmethod
    def _name(folder, column):
        return column.path.relative_to(folder).as_posix()

    def _wrap(self, monkeypatch, owner, name, describe):
        real = getattr(owner, name)

        def wrapped(*arguments):
            result = real(*arguments)
            self.events.append(describe(*arguments))
            return result

        monkeypatch.setattr(owner, name, wrapped)

    def places(self, *kinds):
        return [at for at, event in enumerate(self.events) if any(kind(event) for kind in kinds)]


COMMITS = {
    "store_episode": lambda buffer: buffer.store_episode(action=[1, 2], seed=3),
    "one_episode": lambda buffer: _one_episode(buffer),
    "batched_episode": lambda buffer: _batched_episode(buffer),
}


def _one_episode(buffer):
    with buffer.one_episode(seed=1):
        for t in range(7):
            buffer.store(action=t)


def _batched_episode(buffer):
    with buffer.batched_episode(2, seed=1):
        buffer.store_batch(action=[1, 2])


@pytest.mark.parametrize("commit", COMMITS.values(), ids=COMMITS)
def test_a_durable_commit_syncs_rows_then_record_then_counter(tmp_path, monkeypatch, commit):
    small_sizes(monkeypatch, chunk_rows=2)
    with make(tmp_path, durability="power") as buffer:
        buffer.store_episode(action=[1])
        syncs = _Syncs(monkeypatch, tmp_path)
        commit(buffer)
        events = list(syncs.events)
        assert events[-1] == ("sync", "commit.npy")
        assert events[-2] == ("put", "next")
        rows = syncs.places(lambda e: e[0] == "write" and e[1].startswith("steps/"))
        row_syncs = syncs.places(lambda e: e[0] == "sync" and e[1].startswith("steps/"))
        records = syncs.places(lambda e: e[0] == "write" and e[1] == "episodes.npy")
        record_syncs = syncs.places(lambda e: e[0] == "sync" and e[1] == "episodes.npy")
        assert rows
        assert max(rows) < min(row_syncs) <= max(row_syncs) < min(records)
        assert max(records) < min(record_syncs) <= max(record_syncs) < len(events) - 2
        assert {events[at][1] for at in row_syncs} == {f"steps/{name}.npy" for name in FIELDS}


@pytest.mark.parametrize("commit", COMMITS.values(), ids=COMMITS)
def test_a_commit_syncs_nothing_unless_asked_to(tmp_path, monkeypatch, commit):
    with make(tmp_path) as buffer:
        buffer.store_episode(action=[1])
        synced = []
        monkeypatch.setattr(os, "fsync", synced.append)
        syncs = _Syncs(monkeypatch, tmp_path)
        commit(buffer)
        assert synced == []
        assert syncs.places(lambda event: event[0] == "sync") == []
        buffer.flush()
        assert len(syncs.places(lambda event: event[0] == "sync")) == len(list(tmp_path.rglob("*.npy")))


@pytest.mark.parametrize("limits", [{"max_episodes": 3}, {"max_steps": 15}], ids=repr)
def test_power_loss_at_a_durable_commit_of_a_ring_loses_the_evicted_episode_only(tmp_path, monkeypatch, limits):
    """The disk may hold the new rows and records, and of the counters only what was synced last."""
    folder = tmp_path / "data"
    synced = {}
    real = Counters.sync

    def sync(counters):
        if off:
            raise OSError("power off")
        real(counters)
        synced["commit"] = (folder / "commit.npy").read_bytes()

    off = False
    monkeypatch.setattr(Counters, "sync", sync)
    with make_plain(folder, circular=True, durability="power", **limits) as buffer:
        add(buffer, 5, 5, 5)
        real_put = Counters.put

        def put(counters, name, value):
            nonlocal off
            real_put(counters, name, value)
            off = off or name == "next"

        monkeypatch.setattr(Counters, "put", put)
        with pytest.raises(OSError, match="power off"):
            buffer.store_episode(x=np.full(5, -1))
        off = False
        monkeypatch.undo()
        after = tmp_path / "after"
        subprocess.run(["cp", "-r", folder, after], check=True)
        (after / "commit.npy").write_bytes(synced["commit"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with ReplayBuffer.from_folder(after) as survivor:
            found = {episode.id: episode["x"].tolist() for episode in survivor}
    assert found.get(0, [0, 1, 2, 3, 4]) == [0, 1, 2, 3, 4]
    assert found[1] == [100, 101, 102, 103, 104]
    assert found[2] == [200, 201, 202, 203, 204]


@pytest.mark.parametrize("paths", [["steps/x.npy"], ["checksums/x.npy", "steps/y/z.npy"], ["*"]], ids=repr)
def test_a_header_that_speaks_of_more_rows_than_there_are_is_put_right_by_the_next_writer(tmp_path, paths):
    """As a power loss leaves it where the header reached the disk, and the size of the file did not."""
    with ReplayBuffer(tmp_path, fields={"x": "int", "y.z": ("float32", 2)}) as buffer:
        for number in range(3):
            buffer.store_episode(**{"x": [number], "y.z": [[1, 2]]})
    found = {path for name in paths for path in tmp_path.rglob("*.npy") if path.match(name) and path.parent != tmp_path}
    for path in found:
        content = path.read_bytes()
        assert content.count(b"'shape': (3,") == 1
        path.write_bytes(content.replace(b"'shape': (3,", b"'shape': (7,"))
        with pytest.raises(ValueError, match="mmap length is greater"):
            np.load(path, mmap_mode="r")
    assert not check_buffer(tmp_path, progress=False).ok
    with ReplayBuffer.from_folder(tmp_path, read_only=True) as buffer:
        assert contents(buffer) == [[0], [1], [2]]
    with ReplayBuffer.from_folder(tmp_path) as buffer:
        buffer.acquire()
        assert all(len(np.load(path, mmap_mode="r")) == 3 for path in found)
        buffer.store_episode(**{"x": [3], "y.z": [[1, 2]]})
        assert contents(buffer) == [[0], [1], [2], [3]]
    assert check_buffer(tmp_path, progress=False).verified


def flip(path, offset, bit=0):
    with open(path, "r+b") as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ (1 << bit)]))


def damaged(folder, episode=3, count=6):
    """A buffer of ``count`` episodes in which one record is damaged."""
    with make_plain(folder) as buffer:
        add(buffer, *[5] * count)
    table = np.load(folder / "episodes.npy", mmap_mode="r")
    flip(folder / "episodes.npy", table.offset + episode * table.itemsize + table.dtype.fields["length"][1])


@pytest.mark.parametrize("read_only", [False, True])
def test_a_damaged_record_and_all_after_it_are_left_out_with_a_warning(tmp_path, read_only):
    damaged(tmp_path)
    before = files_of(tmp_path)
    with pytest.warns(UserWarning, match="record of episode 3 does not match.* 2 after it"):
        buffer = ReplayBuffer.from_folder(tmp_path, read_only=read_only)
    assert ids(buffer) == [0, 1, 2]
    assert contents(buffer)[2] == [200, 201, 202, 203, 204]
    buffer.close()
    assert files_of(tmp_path) == before


def open_damaged(folder, episode):
    with pytest.warns(UserWarning, match=f"record of episode {episode} does not match"):
        return ReplayBuffer.from_folder(folder)


@pytest.mark.filterwarnings("ignore:.*record of episode")
def test_the_next_writer_gives_up_what_follows_a_damaged_record(tmp_path):
    damaged(tmp_path)
    with open_damaged(tmp_path, 3) as buffer, pytest.warns(UserWarning, match="record of episode 3"):
        buffer.store_episode(x=[-1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with ReplayBuffer.from_folder(tmp_path) as buffer:
            assert contents(buffer)[:3] == [[k * 100 + t for t in range(5)] for k in range(3)]
            assert contents(buffer)[3:] == [[-1]]
    assert check_buffer(tmp_path, progress=False).ok


@pytest.mark.filterwarnings("ignore:.*record of episode")
def test_the_writer_that_gave_up_damaged_records_sees_what_it_stores(tmp_path):
    damaged(tmp_path)
    with open_damaged(tmp_path, 3) as buffer, ReplayBuffer.from_folder(tmp_path, read_only=True) as reader:
        buffer.store_episode(x=[-1])
        assert buffer.num_episodes == len(buffer.episode_lens) == 4
        assert contents(buffer)[3:] == [[-1]]
        reader.refresh()
        assert contents(reader)[3:] == [[-1]]


@pytest.mark.filterwarnings("ignore:.*record of episode")
def test_the_first_record_may_be_the_damaged_one(tmp_path):
    damaged(tmp_path, episode=0)
    with open_damaged(tmp_path, 0) as buffer:
        assert len(buffer) == 0
        buffer.store_episode(x=[-1])
    with ReplayBuffer.from_folder(tmp_path) as buffer:
        assert contents(buffer) == [[-1]]


def test_giving_up_damaged_records_cuts_nothing_under_a_reader(tmp_path):
    """The files are cut behind the last episode that is left: not while somebody may look at the others."""
    script = """
import sys, warnings
import numpy as np
from gym_replay import ReplayBuffer
warnings.simplefilter("ignore")
folder = sys.argv[1]
with ReplayBuffer(folder, fields={"x": ("uint8", 8192)}) as buffer:
    for number in range(10):
        buffer.store_episode(x=np.full((2, 8192), number))
reader = ReplayBuffer.from_folder(folder, read_only=True)
view = reader.episode(9)["x"]
np.load(folder + "/episodes.npy", mmap_mode="r+")["length"][3] = 7
with ReplayBuffer.from_folder(folder) as buffer:
    buffer.store_episode(x=np.zeros((1, 8192), np.uint8))
print(view[0, 0])
"""
    assert run_script(script, tmp_path) == (0, "9")


@pytest.mark.parametrize("circular", [False, True])
def test_a_step_refused_by_a_full_disk_was_not_stored(tmp_path, monkeypatch, circular):
    """What ``store`` raised for is not in the episode: the caller gives it again once there is room."""
    small_sizes(monkeypatch, chunk_rows=4)
    with make_plain(tmp_path, max_episodes=5, circular=circular) as buffer:
        real, full = os.pwrite, True

        def pwrite(*arguments):
            if full:
                raise OSError(28, "No space left on device")
            return real(*arguments)

        monkeypatch.setattr(os, "pwrite", pwrite)

        context = buffer.one_episode()
        context.__enter__()
        given = iter(range(10))
        refused = -1

        def store_until_refused():
            nonlocal refused
            for refused in given:
                buffer.store(x=refused)

        with pytest.raises(StorageError):
            store_until_refused()
        full = False
        buffer.store(x=refused)
        store_until_refused()
        context.__exit__(None, None, None)
        assert contents(buffer) == [list(range(10))]


def test_a_full_disk_at_a_commit_loses_nothing_committed(tmp_path, monkeypatch):
    with make_plain(tmp_path) as buffer:
        add(buffer, 2)
        with monkeypatch.context() as patch:
            real = os.pwrite

            def pwrite(descriptor, data, position):
                if os.readlink(f"/proc/self/fd/{descriptor}").endswith("episodes.npy"):
                    raise OSError(28, "No space left on device")
                return real(descriptor, data, position)

            if not Path("/proc/self/fd").exists():
                pytest.skip("needs /proc")
            patch.setattr(os, "pwrite", pwrite)
            with pytest.raises(StorageError, match="free some space") as caught:
                add(buffer, 3)
            assert isinstance(caught.value, OSError)
            assert caught.value.errno == 28
            assert contents(buffer) == [[0, 1]]
        add(buffer, 3)
        assert contents(buffer) == [[0, 1], [100, 101, 102]]
        assert ids(buffer) == [0, 1]
