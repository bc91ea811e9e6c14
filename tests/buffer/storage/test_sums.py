"""Checksums that are computed beside the recording: the same ones, of live episodes only, and never in the way."""

import threading

import numpy as np
import pytest
from buffer_helpers import add, contents, make_plain
from format_helpers import read_counters
from internals import checksums, small_sizes

from gym_replay import ReplayBuffer, StorageError, check_buffer


@pytest.fixture(autouse=True)
def beside(monkeypatch):
    """Every run of episodes is summed in a thread."""
    small_sizes(monkeypatch, large_episode=0, checksum_run=100)


def join_threads():
    """Wait for what is summed beside the recording."""
    for thread in threading.enumerate():
        if thread.name == checksums.THREAD:
            thread.join()


def summed(folder):
    return read_counters(folder)["summed"]


@pytest.mark.parametrize("options", [{}, {"circular": True, "max_episodes": 3}, {"circular": True, "max_steps": 20}])
def test_the_sums_are_right(tmp_path, options):
    buffer = make_plain(tmp_path, **options)
    for length in (3, 9, 1, 20, 5, 7, 2, 13, 8, 8, 8):
        add(buffer, length)
    expected = contents(buffer)
    buffer.close()
    report = check_buffer(tmp_path, progress=False)
    assert report.verified, str(report)
    with ReplayBuffer.from_folder(tmp_path, read_only=True) as buffer:
        assert contents(buffer) == expected


def test_they_are_written_by_the_next_run(tmp_path):
    buffer = make_plain(tmp_path)
    add(buffer, 20)
    join_threads()
    assert summed(tmp_path) == 0
    add(buffer, 20)
    assert summed(tmp_path) == 1
    buffer.close()
    assert summed(tmp_path) == 2


def test_recording_does_not_wait_for_them(tmp_path, monkeypatch):
    go_on = threading.Event()
    real = checksums.field_checksums
    monkeypatch.setattr(checksums, "field_checksums", lambda *a: go_on.wait(20) and real(*a))
    buffer = make_plain(tmp_path)
    add(buffer, *[20] * 10)
    assert len(buffer) == 10
    assert summed(tmp_path) == 0
    go_on.set()
    buffer.close()
    assert summed(tmp_path) == 10
    assert check_buffer(tmp_path, progress=False).verified


def test_episodes_that_left_meanwhile_give_no_sums_to_those_that_came(tmp_path, monkeypatch):
    go_on = threading.Event()
    real = checksums.field_checksums

    def late(*arguments):
        found = real(*arguments)
        go_on.wait(20)
        return found

    buffer = make_plain(tmp_path, circular=True, max_episodes=2)
    monkeypatch.setattr(checksums, "field_checksums", late)
    add(buffer, 20)
    add(buffer, 15, 16, 17)
    go_on.set()
    buffer.close()
    assert check_buffer(tmp_path, progress=False).verified
    assert check_buffer(tmp_path, progress=False).num_checked == 2


def test_what_fails_in_the_thread_is_told_at_the_flush(tmp_path, monkeypatch):
    buffer = make_plain(tmp_path)

    def refuse(*arguments):
        raise StorageError(5, "the disk does not answer")

    with monkeypatch.context() as patch:
        patch.setattr(checksums, "field_checksums", refuse)
        add(buffer, 20)
        join_threads()
        with pytest.raises(StorageError, match="does not answer"):
            buffer.flush()
    assert summed(tmp_path) == 0
    buffer.close()
    assert check_buffer(tmp_path, progress=False).verified


def test_changes_wait_for_them(tmp_path):
    buffer = make_plain(tmp_path)
    add(buffer, 20, 20, 20)
    buffer.update(1, x=np.arange(20))
    buffer.add_field("y", "float", [[1.0] * 20] * 3)
    buffer.delete(0)
    add(buffer, 20)
    buffer.clear()
    add(buffer, 20)
    buffer.close()
    assert check_buffer(tmp_path, progress=False).verified


def step_by_step(buffer, length):
    with buffer.one_episode():
        for t in range(length):
            buffer.store(x=t)


@pytest.mark.parametrize("options", [{}, {"circular": True, "max_steps": 90}])
def test_an_episode_that_was_in_memory_brings_its_own(tmp_path, monkeypatch, options):
    small_sizes(monkeypatch, large_episode=100, checksum_run=1 << 30)
    buffer = make_plain(tmp_path, **options)
    step_by_step(buffer, 20)
    assert summed(tmp_path) == 1
    assert checksums.THREAD not in [thread.name for thread in threading.enumerate()]
    step_by_step(buffer, 2)  # too short
    assert summed(tmp_path) == 1
    step_by_step(buffer, 20)  # the one before has none
    assert summed(tmp_path) == 1
    buffer.flush()
    step_by_step(buffer, 20)
    assert summed(tmp_path) == 4
    buffer.close()
    assert check_buffer(tmp_path, progress=False).verified


def test_where_sums_are_synced_they_are_written_in_runs(tmp_path, monkeypatch):
    small_sizes(monkeypatch, checksum_run=1 << 30)
    with make_plain(tmp_path, durability="power") as buffer:
        for _ in range(9):
            step_by_step(buffer, 20)
        assert summed(tmp_path) == 0
    assert check_buffer(tmp_path, progress=False).verified


def test_where_the_disk_refuses_its_sums_the_episode_is_committed(tmp_path, monkeypatch):
    small_sizes(monkeypatch, checksum_run=1 << 30)
    buffer = make_plain(tmp_path)
    step_by_step(buffer, 20)

    def refuse(*arguments):
        raise StorageError(28, "no space")

    with monkeypatch.context() as patch:
        patch.setattr(buffer._writer._files.sums, "write", refuse)
        step_by_step(buffer, 20)
    assert len(buffer) == 2
    assert summed(tmp_path) == 1
    buffer.close()
    assert summed(tmp_path) == 2
    assert check_buffer(tmp_path, progress=False).verified
