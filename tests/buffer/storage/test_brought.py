"""Stretches of mapped files in memory of the process's own: the same bytes before, while and after."""

import errno
import os
import sys
import threading

import numpy as np
import pytest

from gym_replay import Field, ReplayBuffer
from gym_replay.buffer.loading.source import Source
from gym_replay.buffer.storage import brought, memory
from gym_replay.buffer.storage.brought import Memory

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="only Linux moves maps"),
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
]


@pytest.mark.parametrize("is_direct", [True, False])
def test_rows_are_the_same_before_and_after(tmp_path, monkeypatch, is_direct):
    if not is_direct:
        monkeypatch.setattr(brought, "_DIRECT", 0)
    own = Memory()
    with ReplayBuffer(tmp_path, fields={"x": Field("uint8", (999,)), "n": "int"}) as buffer:
        values = np.random.default_rng(0).integers(0, 256, (9000, 999), np.uint8)
        buffer.store_episode(x=values, n=np.arange(9000))
        rows = Source(buffer.snapshots()).rows
        rows.expect_blocks(100)
        assert rows.can_bring(["x", "n"])
        everything = np.arange(9000)
        # Of one page, of several large pages, side by side, over one another, and to the end of the file.
        held = [
            rows.bring("x", 0, first, last, own)
            for first, last in ((0, 2), (10, 6000), (6000, 6010), (6005, 7000), (8990, 9000), (6990, 7100))
        ]
        held.append(rows.bring("n", 0, 3, 9000, own))
        assert None not in held
        assert rows.bring("x", 0, 100, 200, own) is None  # it is there
        held.append(rows.bring("x", 0, 7500, 7510, own))
        assert rows.bring("x", 0, 7200, 8000, own) is None  # some of it is, in the middle
        held.append(rows.bring("x", 0, 6900, 7300, own))  # of which the first half is there
        assert None not in held
        np.testing.assert_array_equal(rows.take("x", everything), values)
        np.testing.assert_array_equal(rows.take("n", everything), everything)
        for put_back in held:
            put_back()
            np.testing.assert_array_equal(rows.take("x", everything), values)
        np.testing.assert_array_equal(rows.take("n", everything), everything)


def test_what_is_brought_is_in_memory_of_its_own(tmp_path):
    own = Memory()
    with ReplayBuffer(tmp_path, fields={"n": "int"}) as buffer:
        buffer.store_episode(n=np.arange(4096))
        rows = Source(buffer.snapshots()).rows
        rows.expect_blocks(100)
        put_back = rows.bring("n", 0, 0, 4096, own)
        with open(tmp_path / "steps" / "n.npy", "r+b") as file:
            file.seek(128 + 8 * 4095)
            file.write(b"\7" + bytes(7))
        assert rows.take("n", np.array([4095])).tolist() == [4095]
        put_back()
        assert rows.take("n", np.array([4095])).tolist() == [7]


def test_readers_see_the_rows_at_any_time(tmp_path):
    """With the guard, which keeps them from reading while something is put back."""
    own = Memory()
    with ReplayBuffer(tmp_path, fields={"n": "int"}) as buffer:
        buffer.store_episode(n=np.arange(1, 400_001))
        rows = Source(buffer.snapshots()).rows
        rows.expect_blocks(100)
        column, wrong, ended = rows.column("n").array, [], threading.Event()

        def read():
            while not ended.is_set():
                with rows.guard:
                    if not np.array_equal(column[::499], np.arange(1, 400_001, 499)):
                        wrong.append(True)

        reader = threading.Thread(target=read)
        reader.start()
        try:
            for turn in range(100):
                rows.bring("n", 0, 1000 + turn, 390_000, own)()
        finally:
            ended.set()
            reader.join()
        assert not wrong


def test_memory_is_used_again(tmp_path):
    own = Memory()
    with ReplayBuffer(tmp_path, fields={"n": "int"}) as buffer:
        buffer.store_episode(n=np.arange(400_000))
        rows = Source(buffer.snapshots()).rows
        rows.expect_blocks(100)
        for turn in range(50):
            first, second = (rows.bring("n", 0, at + turn, at + 90_000 + turn, own) for at in (0, 100_000))
            other = rows.bring("n", 0, 300_000, 301_000 + 900 * turn, own)
            for put_back in (second, first, other):
                put_back()
        assert sum(own._sizes.values()) < 2 * 8 * 100_000 + 8 * 60_000
        assert sorted(own._free) == sorted(own._sizes)
        assert (rows.take("n", np.arange(400_000)) == np.arange(400_000)).all()


@pytest.mark.parametrize("what", ["read", "move", "map"])
def test_what_cannot_be_brought_stays_as_it_was(tmp_path, monkeypatch, what):
    own = Memory()
    with ReplayBuffer(tmp_path, fields={"n": "int"}) as buffer:
        buffer.store_episode(n=np.arange(5000))
        rows = Source(buffer.snapshots()).rows
        rows.expect_blocks(100)
        assert rows.column("n").address is not None

        def refuse(*_args, **_more):
            raise OSError(errno.EINVAL, "no")

        if what == "read":
            monkeypatch.setattr(brought.os, "preadv", refuse)
        else:
            monkeypatch.setattr(type(brought.libc()), what, refuse)
        assert rows.bring("n", 0, 0, 5000, own) is None
        monkeypatch.undo()
        assert rows.take("n", np.arange(5000)).tolist() == list(range(5000))


def test_room_is_the_lowest_limit(tmp_path, monkeypatch):
    inner = tmp_path / "fs" / "memory" / "a" / "b"
    inner.mkdir(parents=True)
    (inner / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    (inner.parent / "memory.limit_in_bytes").write_text("3000000\n")
    (tmp_path / "info").write_text("MemTotal: 9 kB\nMemAvailable:    4096 kB\n")
    (tmp_path / "groups").write_text("8:pids:/\n7:memory:/a/b\n0::/x\n")
    monkeypatch.setattr(memory, "_HIERARCHIES", tmp_path / "fs")
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "info")
    monkeypatch.setattr(memory, "_GROUPS", tmp_path / "groups")
    assert memory.memory_room() == 3_000_000
    (inner.parent / "memory.limit_in_bytes").write_text("max\n")
    assert memory.memory_room() == 4096 << 10
    (tmp_path / "fs" / "x").mkdir()
    (tmp_path / "fs" / "x" / "memory.max").write_text("1000\n")
    assert memory.memory_room() == 1000


def test_what_cannot_be_put_back_stays(tmp_path, monkeypatch):
    own = Memory()
    with ReplayBuffer(tmp_path, fields={"n": "int"}) as buffer:
        buffer.store_episode(n=np.arange(5000))
        rows = Source(buffer.snapshots()).rows
        rows.expect_blocks(100)
        put_back = rows.bring("n", 0, 0, 5000, own)

        def refuse(*_args, **_more):
            raise OSError(errno.ENOMEM, "no")

        with monkeypatch.context() as patched:
            patched.setattr(type(brought.libc()), "map", refuse)
            put_back()
        assert rows.take("n", np.arange(5000)).tolist() == list(range(5000))
        put_back()
        assert rows.take("n", np.arange(5000)).tolist() == list(range(5000))
        assert own._free


def test_a_forked_process_maps_the_files_itself(tmp_path):
    own = Memory()
    with ReplayBuffer(tmp_path, fields={"n": "int"}) as buffer:
        buffer.store_episode(n=np.arange(5000))
        rows = Source(buffer.snapshots()).rows
        rows.expect_blocks(100)
        put_back = rows.bring("n", 0, 0, 5000, own)
        with rows.guard:  # as a thread might, of which the child has none
            child = os.fork()
            if child == 0:
                with rows.guard:
                    is_right = rows.take("n", np.arange(5000)).tolist() == list(range(5000))
                os._exit(0 if is_right and rows.column("n").address is not None else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        put_back()
