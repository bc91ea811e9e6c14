"""Each call of the operating system may be refused: the error says whether the change was made, and that is true."""

import errno
import os

import pytest

from gym_replay import ReplayBuffer, StorageError, check_buffer
from tests.faults.refused_calls import CALLS, CHANGES, ERRORS, Refusal, attempt, start, state_of, store

POINTS = {"open": [1, 19, 40, 75], "pwrite": [1, 5, 14], "replace": [1, 2, 4], "fsync": [1, 2, 3], "unlink": [1, 4]}


@pytest.mark.parametrize("once", [True, False], ids=["once", "until there is room"])
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("name", CHANGES)
def test_a_refused_call(tmp_path, name, call, once):
    for at, first in enumerate(POINTS.get(call, [1])):
        number = ERRORS[(len(name) + at) % len(ERRORS)]
        refusal = Refusal(call, first, number, once=once)
        assert attempt(tmp_path / str(first), name, refusal, circular=at % 2 == 1) == []
        if not refusal.refused:
            break


@pytest.mark.parametrize("name", ["store_episode", "one_episode", "update", "clear", "delete"])
@pytest.mark.parametrize("first", [1, 3, 9])
def test_a_refused_sync(tmp_path, name, first):
    refusal = Refusal("fsync", first, errno.EIO, once=True)
    assert attempt(tmp_path / "data", name, refusal, circular=False, durability="power") == []


@pytest.mark.parametrize("size", [0, 1, 7])
def test_writes_that_are_cut_short(tmp_path, monkeypatch, size):
    real = os.pwrite

    def short(descriptor, data, position):
        return real(descriptor, memoryview(data).cast("B")[:size] if len(data) else data, position)

    with start(tmp_path / "one", circular=False) as expected:
        store(expected, 9)
        state = state_of(expected)
    with start(tmp_path / "other", circular=False) as buffer:
        before = state_of(buffer)
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", short)
            if size == 0:  # as a device that takes nothing: an error, not an endless loop
                with pytest.raises(StorageError, match="nothing was committed"):
                    store(buffer, 9)
                assert state_of(buffer) == before
            else:
                store(buffer, 9)
        if size == 0:
            store(buffer, 9)
        assert state_of(buffer) == state
    assert check_buffer(tmp_path / "other", progress=False).verified


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("call", ["ftruncate", "pwrite", "open"])
def test_a_refused_close_lets_go(tmp_path, call, number):
    buffer = start(tmp_path, circular=False)
    before = state_of(buffer)
    refusal = Refusal(call, 1, number, once=False)
    with refusal.installed():
        if call == "open":  # nothing is opened to close
            buffer.close()
        else:
            with pytest.raises(StorageError, match="the next writer will do what is left"):
                buffer.close()
    buffer.close()
    with ReplayBuffer.from_folder(tmp_path) as again:
        assert state_of(again) == before
        store(again, 5)
    assert check_buffer(tmp_path, progress=False).verified
