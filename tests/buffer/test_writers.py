"""ReplayBuffer, one writer: the lock, other processes, and forked children."""

import contextlib
import gc
import json
import os
import signal

import numpy as np
import pytest
from buffer_helpers import WRITE_ONE, WRITES, add, contents, files_of, make_plain, run_script
from format_helpers import read_counters
from internals import small_sizes

from gym_replay import BufferClosedError, BufferLockedError, ReadOnlyError, ReplayBuffer, check_buffer

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def in_fork(work):
    """Run ``work`` in a forked child; returns its JSON result, or the name of the error that it raised."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            answer = work()
        except BaseException as error:
            answer = type(error).__name__
        with contextlib.suppress(BaseException):
            os.write(writing, json.dumps(answer).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        content = stream.read()
    os.waitpid(pid, 0)
    return json.loads(content)


def name_of_error(work):
    try:
        work()
    except Exception as error:
        return type(error).__name__
    return "none"


def test_the_lock_may_be_taken_before_there_is_anything_to_write(tmp_path):
    make_plain(tmp_path).close()
    with ReplayBuffer.from_folder(tmp_path) as one, ReplayBuffer.from_folder(tmp_path) as other:
        one.acquire()
        with pytest.raises(BufferLockedError):
            other.acquire()
        one.acquire()  # it has it already
        one.release()
        other.acquire()
    with pytest.raises(ReadOnlyError):
        ReplayBuffer.from_folder(tmp_path, read_only=True).acquire()
    other.close()
    with pytest.raises(BufferClosedError):
        other.acquire()


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_a_second_writer_in_this_process_is_refused(tmp_path, write):
    with make_plain(tmp_path) as writer, ReplayBuffer.from_folder(tmp_path) as other:
        add(writer, 2, 3)
        other.refresh()
        with pytest.raises(BufferLockedError, match=rf"this process|{os.getpid()}") as caught:
            write(other)
        assert isinstance(caught.value, OSError)
        assert str(tmp_path) in str(caught.value)
        add(writer, 1)
        other.refresh()
        assert contents(other) == contents(writer) == [[0, 1], [100, 101, 102], [200]]


def test_a_second_writer_in_another_process_is_told_who_writes(tmp_path):
    with make_plain(tmp_path) as writer:
        add(writer, 2)
        status, answer = run_script(WRITE_ONE, tmp_path)
        assert status == 0
        assert f"process {os.getpid()} is writing" in answer
    status, answer = run_script(WRITE_ONE, tmp_path)
    assert (status, answer) == (0, "stored")
    with ReplayBuffer.from_folder(tmp_path) as buffer:
        assert contents(buffer) == [[0, 1], [7]]


def test_creating_takes_the_lock_at_once(tmp_path):
    with make_plain(tmp_path), ReplayBuffer.from_folder(tmp_path) as other, pytest.raises(BufferLockedError):
        add(other, 1)


def test_a_forked_child_is_no_writer_but_reads(tmp_path):
    with make_plain(tmp_path) as buffer:
        add(buffer, 2, 3)

        def child():
            errors = {name: name_of_error(lambda write=write: write(buffer)) for name, write in WRITES.items()}
            return [errors, contents(buffer), len(buffer), buffer.num_steps]

        errors, content, count, steps = in_fork(child)
        assert errors == dict.fromkeys(WRITES, "BufferLockedError")
        assert content == [[0, 1], [100, 101, 102]]
        assert (count, steps) == (2, 5)
        add(buffer, 1)
        assert contents(buffer) == [[0, 1], [100, 101, 102], [200]]
    assert check_buffer(tmp_path, progress=False).ok


@pytest.mark.parametrize("circular", [False, True])
def test_a_forked_child_cannot_store_into_the_long_episode_of_its_parent(tmp_path, monkeypatch, circular):
    small_sizes(monkeypatch, chunk_rows=4)
    with make_plain(tmp_path, max_episodes=9, circular=circular) as buffer:
        add(buffer, 2)
        with buffer.one_episode():
            for t in range(7):
                buffer.store(x=t)

            def child():
                def store_many():
                    for _ in range(20):
                        buffer.store(x=-1)

                def commit():
                    buffer.slot.holder.__exit__(None)

                return [name_of_error(store_many), name_of_error(commit)]

            assert in_fork(child) == ["BufferLockedError", "BufferLockedError"]
            for t in range(7, 15):
                buffer.store(x=t)
        assert contents(buffer) == [[0, 1], list(range(15))]
    assert check_buffer(tmp_path, progress=False).ok


def test_a_forked_child_sees_what_its_parent_commits_later(tmp_path):
    with make_plain(tmp_path) as buffer:
        add(buffer, 2)
        assert (buffer.num_episodes, buffer.num_steps, contents(buffer)) == (1, 2, [[0, 1]])
        start, stop = os.pipe()

        def child():
            os.read(start, 1)
            return [buffer.num_episodes, buffer.num_steps, len(buffer), len(buffer.episode_lens), contents(buffer)]

        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                os.write(writing, json.dumps(child()).encode())
            finally:
                os._exit(0)
        add(buffer, 3)
        os.write(stop, b"x")
        os.close(writing)
        with os.fdopen(reading) as stream:
            answer = json.loads(stream.read())
        os.waitpid(pid, 0)
        os.close(start)
        os.close(stop)
        assert answer == [2, 5, 2, 2, [[0, 1], [100, 101, 102]]]


@pytest.mark.parametrize("end", ["close", "del", "release", "finalize"])
def test_a_forked_child_that_ends_leaves_the_lock_to_the_parent(tmp_path, end):
    buffer = make_plain(tmp_path)
    add(buffer, 2)

    def child():
        nonlocal buffer
        if end == "close":
            buffer.close()
        elif end == "release":
            buffer.release()
        elif end == "finalize":
            buffer._finalizer()
        del buffer
        gc.collect()

    in_fork(child)
    before = files_of(tmp_path)
    _, answer = run_script(WRITE_ONE, tmp_path)
    assert f"process {os.getpid()} is writing" in answer
    assert files_of(tmp_path) == before
    add(buffer, 1)
    buffer.close()
    assert read_counters(tmp_path)["summed"] == 2


def test_a_forked_child_may_open_a_buffer_of_its_own(tmp_path):
    with make_plain(tmp_path / "a") as buffer:

        def child():
            with make_plain(tmp_path / "b") as own:
                add(own, 2)

        assert in_fork(child) is None
        add(buffer, 1)
    with ReplayBuffer.from_folder(tmp_path / "b") as own:
        assert contents(own) == [[0, 1]]


@pytest.mark.parametrize("end", ["close", "with", "del", "del in an episode", "release"])
def test_the_lock_is_let_go(tmp_path, end):
    buffer = make_plain(tmp_path)
    add(buffer, 2)
    if end == "with":
        with buffer:
            pass
    elif end == "close":
        buffer.close()
    elif end == "release":
        buffer.release()
    else:
        if end == "del in an episode":
            buffer.one_episode().__enter__()
            buffer.store(x=9)
        del buffer
        gc.collect()
    with ReplayBuffer.from_folder(tmp_path) as other:
        add(other, 1)
        assert contents(other) == [[0, 1], [100]]
    if end == "release":  # reading goes on, and so does writing
        buffer.refresh()
        assert contents(buffer) == [[0, 1], [100]]
        add(buffer, 1)
        buffer.close()


@pytest.mark.parametrize("end", ["exit", "os._exit", "kill", "uncaught"])
def test_the_lock_dies_with_its_process(tmp_path, end):
    ending = {
        "exit": "",
        "os._exit": "os._exit(0)",
        "kill": "os.kill(os.getpid(), signal.SIGKILL)",
        "uncaught": "raise RuntimeError",
    }[end]
    script = f"""
import os, signal, sys
from gym_replay import ReplayBuffer
buffer = ReplayBuffer(sys.argv[1], fields={{"x": "int64"}})
buffer.store_episode(x=[1, 2])
context = buffer.one_episode()
context.__enter__()
buffer.store(x=3)
{ending}
"""
    status, _ = run_script(script, tmp_path)
    assert status == {"exit": 0, "os._exit": 0, "kill": -signal.SIGKILL, "uncaught": 1}[end]
    with ReplayBuffer.from_folder(tmp_path) as buffer:
        assert contents(buffer) == [[1, 2]]
        summed = read_counters(tmp_path)["summed"]
        assert summed == (1 if end in ("exit", "uncaught") else 0)
        buffer.store_episode(x=[5])
        assert contents(buffer) == [[1, 2], [5]]
    assert check_buffer(tmp_path, progress=False).ok


def test_a_released_writer_never_writes_again(tmp_path):
    with ReplayBuffer(tmp_path, fields={"x": "float"}) as buffer:
        buffer.store_episode(x=np.zeros(3))
        writer = buffer.writing()
        buffer.release()
        with ReplayBuffer(tmp_path) as other:
            other.store_episode(x=np.ones(500))
            with pytest.raises(BufferClosedError, match="was released"):
                writer.check_owner()
            writer.close()  # which would cut the files to what there was
            assert other.episode(1)["x"].tolist() == [1.0] * 500
        assert check_buffer(tmp_path, progress=False).verified
