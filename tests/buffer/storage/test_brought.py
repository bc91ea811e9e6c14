"""Stretches of mapped files in memory of the process's own: the same bytes before, while and after."""

import errno
import sys
import threading

import numpy as np
import pytest

from gym_replay import Field, ReplayBuffer
from gym_replay.buffer.loading.source import Source
from gym_replay.buffer.storage import brought, memory

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux moves maps")


@pytest.mark.parametrize("is_direct", [True, False])
def test_rows_are_the_same_before_and_after(tmp_path, monkeypatch, is_direct):
    if not is_direct:
        monkeypatch.setattr(brought, "_DIRECT", 0)
    with ReplayBuffer(tmp_path, fields={"x": Field("uint8", (999,)), "n": "int"}) as buffer:
        values = np.random.default_rng(0).integers(0, 256, (9000, 999), np.uint8)
        buffer.store_episode(x=values, n=np.arange(9000))
        rows = Source(buffer.snapshots()).rows
        rows.expect_blocks(100)
        assert rows.can_bring(["x", "n"])
        everything = np.arange(9000)
        # Of one page, of several large pages, side by side, over one another, and to the end of the file.
        held = [
            rows.bring("x", 0, first, last)
            for first, last in ((0, 2), (10, 6000), (6000, 6010), (6005, 7000), (8990, 9000))
        ]
        held.append(rows.bring("n", 0, 3, 9000))
        assert None not in held
        np.testing.assert_array_equal(rows.take("x", everything), values)
        np.testing.assert_array_equal(rows.take("n", everything), everything)
        for put_back in held:
            put_back()
            np.testing.assert_array_equal(rows.take("x", everything), values)
        np.testing.assert_array_equal(rows.take("n", everything), everything)


def test_what_is_brought_is_in_memory_of_its_own(tmp_path):
    with ReplayBuffer(tmp_path, fields={"n": "int"}) as buffer:
        buffer.store_episode(n=np.arange(4096))
        rows = Source(buffer.snapshots()).rows
        rows.expect_blocks(100)
        put_back = rows.bring("n", 0, 0, 4096)
        with open(tmp_path / "steps" / "n.npy", "r+b") as file:
            file.seek(128 + 8 * 4095)
            file.write(b"\7" + bytes(7))
        assert rows.take("n", np.array([4095])).tolist() == [4095]
        put_back()
        assert rows.take("n", np.array([4095])).tolist() == [7]


def test_readers_see_the_rows_at_any_time(tmp_path):
    with ReplayBuffer(tmp_path, fields={"n": "int"}) as buffer:
        buffer.store_episode(n=np.arange(1, 400_001))
        rows = Source(buffer.snapshots()).rows
        rows.expect_blocks(100)
        column, wrong, ended = rows.column("n").array, [], threading.Event()

        def read():
            while not ended.is_set():
                if not np.array_equal(column[::499], np.arange(1, 400_001, 499)):
                    wrong.append(True)

        reader = threading.Thread(target=read)
        reader.start()
        try:
            for _ in range(100):
                rows.bring("n", 0, 1000, 390_000)()
        finally:
            ended.set()
            reader.join()
        assert not wrong


@pytest.mark.parametrize("what", ["read", "move", "map"])
def test_what_cannot_be_brought_stays_as_it_was(tmp_path, monkeypatch, what):
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
        assert rows.bring("n", 0, 0, 5000) is None
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
