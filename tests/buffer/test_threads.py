"""ReplayBuffer and threads: one writes, any may read."""

import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from buffer_helpers import WRITES, add, contents, make_plain, run_script

from gym_replay import BufferLockedError, ReplayBuffer, check_buffer, merge, mix, push, select

OTHERS = {
    "acquire": lambda buffer: buffer.acquire(),
    "release": lambda buffer: buffer.release(),
    "close": lambda buffer: buffer.close(),
    "flush": lambda buffer: buffer.flush(),
    "put_file": lambda buffer: buffer.put_file("notes", b""),
}


@pytest.fixture
def other():
    """Another thread, which stays there between the calls."""
    with ThreadPoolExecutor(1) as pool:
        yield lambda work, *arguments: pool.submit(work, *arguments).result()


@pytest.mark.parametrize("write", [*WRITES.values(), *OTHERS.values()], ids=[*WRITES, *OTHERS])
@pytest.mark.parametrize("circular", [False, True])
def test_a_second_thread_is_refused_at_once(tmp_path, other, write, circular):
    with make_plain(tmp_path, circular=circular, max_episodes=9) as buffer:
        other(add, buffer, 2, 3)
        with pytest.raises(BufferLockedError, match="another thread") as caught:
            write(buffer)
        assert str(tmp_path) in str(caught.value)
        assert contents(buffer) == [[0, 1], [100, 101, 102]]
        other(add, buffer, 1)
        other(buffer.close)
    assert check_buffer(tmp_path, progress=False).verified


def test_a_second_thread_cannot_store_into_the_episode_of_another(tmp_path, other):
    with make_plain(tmp_path) as buffer:
        with buffer.one_episode():
            buffer.store(x=1)
            for call in (lambda: buffer.store(x=2), lambda: buffer.store_final(), buffer.release):
                with pytest.raises(BufferLockedError, match="another thread"):
                    other(call)
            buffer.store(x=3)
        with buffer.batched_episode(2):
            buffer.store_batch(x=[4, 5])
            with pytest.raises(BufferLockedError, match="another thread"):
                other(lambda: buffer.store_batch(x=[0, 0]))
            with pytest.raises(BufferLockedError, match="another thread"):
                other(lambda: buffer.store_final())
        assert contents(buffer) == [[1, 3], [4], [5]]


def test_many_threads_that_store_lose_nothing_that_was_said_to_be_stored(tmp_path):
    kept, refused = [], []

    def store(value):
        try:
            buffer.store_episode(x=[value])
        except BufferLockedError as error:
            refused.append(error)
        else:
            kept.append(value)

    def work(number):
        for k in range(20):
            store(number * 100 + k)
        done.wait(60)

    done = threading.Barrier(4)
    with make_plain(tmp_path) as buffer:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (len(kept), len(refused)) == (20, 60)
        assert [row for (row,) in contents(buffer)] == kept
    assert check_buffer(tmp_path, progress=False).verified


@pytest.mark.parametrize("between", [lambda buffer: None, ReplayBuffer.release], ids=["ends", "release"])
def test_another_thread_goes_on_where_one_has_ended(tmp_path, between):
    with make_plain(tmp_path) as buffer:
        for _ in range(3):
            thread = threading.Thread(target=lambda: (add(buffer, 1), between(buffer)))
            thread.start()
            thread.join()
        add(buffer, 1)
        assert contents(buffer) == [[0], [100], [200], [300]]


def test_released_by_its_thread_it_is_anybodys(tmp_path, other):
    with make_plain(tmp_path) as buffer:
        other(add, buffer, 1)
        other(buffer.release)
        add(buffer, 2)
        with pytest.raises(BufferLockedError, match="another thread"):
            other(add, buffer, 1)
        assert contents(buffer) == [[0], [100, 101]]


def test_creating_is_not_yet_writing(tmp_path, other):
    buffer = make_plain(tmp_path)
    other(add, buffer, 2)
    other(buffer.close)
    with ReplayBuffer.from_folder(tmp_path) as again:
        assert contents(again) == [[0, 1]]


def test_any_thread_reads_while_one_writes(tmp_path, other):
    stop = threading.Event()

    def read():
        looks = 0
        while not stop.is_set():
            for episode in list(buffer):
                first, count = int(episode["x"][0]), len(episode)
                assert episode["x"].tolist() == list(range(first, first + count))
                looks += 1
        return looks

    with make_plain(tmp_path) as buffer, ThreadPoolExecutor(2) as pool:
        add(buffer, 3)
        reading = [pool.submit(read) for _ in range(2)]
        for number in range(12):
            add(buffer, 2, 5)
            if number % 4 == 3:
                buffer.add_field(f"more_{number}", "float")
                buffer.delete([0])
        stop.set()
        assert all(each.result() > 0 for each in reading)


AT_THE_END = """
import sys, threading, time
from gym_replay import ReplayBuffer
buffer = ReplayBuffer(sys.argv[1], fields={"x": "int64"})
started = threading.Event()
def work():
    number = 0
    while True:
        buffer.store_episode(x=[number] * 50)
        number += 1
        if number == 100:
            started.set()
threading.Thread(target=work, daemon=True).start()
started.wait()
"""


def test_a_thread_that_writes_while_the_process_ends_loses_nothing(tmp_path):
    status, answer = run_script(AT_THE_END, tmp_path)
    assert (status, answer) == (0, "")
    with ReplayBuffer.from_folder(tmp_path) as buffer:
        assert len(buffer) >= 100
        rows = contents(buffer)
        assert rows == [[number] * 50 for number in range(len(rows))]
        buffer.store_episode(x=np.arange(3))
    assert check_buffer(tmp_path, progress=False).verified


MANY_THREADS_AND_MUCH_GARBAGE = """
import faulthandler, gc, os, sys, threading
from gym_replay import BufferLockedError, ReplayBuffer

class LetsAnotherThreadRun:
    def __init__(self):
        self.itself, self.number = self, os.open(os.devnull, os.O_RDONLY)

    def __del__(self):
        os.close(self.number)

def work():
    for _ in range(300):
        LetsAnotherThreadRun()
        try:
            buffer.store_episode(x=[1])
        except BufferLockedError:
            pass

faulthandler.dump_traceback_later(60, exit=True)
with ReplayBuffer(sys.argv[1], fields={"x": "int64"}) as buffer:
    gc.set_threshold(2, 1, 1)
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print("stored")
"""


def test_garbage_that_is_collected_meanwhile_does_not_hold_the_threads_up(tmp_path):
    assert run_script(MANY_THREADS_AND_MUCH_GARBAGE, tmp_path) == (0, "stored")


def test_a_refusal_while_another_thread_opens_a_folder(tmp_path):
    def trace(frame, event, _):
        """While locks of other folders are looked at, another thread takes one more, each time."""
        if event == "line" and frame.f_code.co_name == "__iter__":
            opened.append(pool.submit(make_plain, tmp_path / f"more_{len(opened)}").result())
        return trace

    opened = [make_plain(tmp_path / name) for name in ("data", "other")]
    with ThreadPoolExecutor(1) as pool:
        sys.settrace(trace)
        try:
            with pytest.raises(BufferLockedError, match="this process"):
                make_plain(tmp_path / "data", overwrite=True)
        finally:
            sys.settrace(None)
    for buffer in opened:
        buffer.close()


def test_nothing_turns_off_the_warnings_of_other_threads(tmp_path, monkeypatch):
    real = warnings.catch_warnings.__enter__

    def watched(self):
        callers.append(sys._getframe(1).f_globals["__name__"])
        return real(self)

    callers = []
    with make_plain(tmp_path / "data") as buffer, monkeypatch.context() as patch:
        add(buffer, 3, 4)
        patch.setattr(warnings.catch_warnings, "__enter__", watched)
        merge([buffer], tmp_path / "merged")
        push(buffer, f"file://{tmp_path}/pushed")
        assert len(select(buffer, tmp_path / "selected", where="length > 3")) == 1
        assert len(next(iter(mix(buffer, buffer, 2)))["x"]) == 2
    assert not [name for name in callers if name.startswith("gym_replay")]
