"""ReplayBuffer and its recorders where a signal handler or a finalizer writes or closes in the middle of a write."""

import gc
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import gymnasium as gym
import numpy as np
import pytest
from buffer_helpers import add, contents, make_plain, run_script

from gym_replay import BufferClosedError, BufferLockedError, RecordToBuffer, ReplayBuffer, check_buffer
from gym_replay.wrappers import vector
from tests.faults.refused_calls import CHANGES, start, state_of, store

CALLS = [("pwrite", 1), ("pwrite", 3), ("pwrite", 8), ("replace", 1), ("replace", 3), ("open", 2), ("ftruncate", 1)]


@pytest.fixture
def after_call(monkeypatch):
    """A signal comes just after the n-th call of one kind of the operating system, and its handler does this."""

    def install(call, first, work):
        real, seen = getattr(os, call), 0

        def signalled(*arguments, **options):
            nonlocal seen
            result = real(*arguments, **options)
            seen += 1
            if seen == first:
                monkeypatch.setattr(os, call, real)
                signal.raise_signal(signal.SIGUSR1)
            return result

        signal.signal(signal.SIGUSR1, lambda *_: work())
        monkeypatch.setattr(os, call, signalled)

    before = signal.getsignal(signal.SIGUSR1)
    yield install
    signal.signal(signal.SIGUSR1, before)


def sound(folder):
    report = check_buffer(folder, progress=False)
    assert report.verified, str(report)
    with ReplayBuffer.from_folder(folder, read_only=True) as buffer:
        return state_of(buffer)


@pytest.mark.parametrize(("call", "first"), CALLS)
@pytest.mark.parametrize("name", ["store_episode", "add_field", "delete", "clear", "update of meta fields", "flush"])
@pytest.mark.parametrize("end", ["close", "release"])
def test_a_handler_that_closes_in_the_middle_of_a_write_closes_at_its_end(tmp_path, after_call, end, name, call, first):
    with start(tmp_path / "changed", circular=first % 2 == 0) as buffer:
        CHANGES[name](buffer)
        changed = state_of(buffer)
    buffer = start(tmp_path / "data", circular=first % 2 == 0)
    before = state_of(buffer)
    after_call(call, first, getattr(buffer, end))
    try:
        CHANGES[name](buffer)
    except BufferClosedError:  # the signal came before the write
        changed = before
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    buffer.close()
    assert sound(tmp_path / "data") == changed
    with ReplayBuffer.from_folder(tmp_path / "data") as other:
        store(other, 11)
    assert len(sound(tmp_path / "data")[1]) == len(changed[1]) + 1


@pytest.mark.parametrize(("call", "first"), [("pwrite", 1), ("pwrite", 3), ("replace", 2)])
@pytest.mark.parametrize("name", ["store_episode", "add_field", "delete", "clear", "update of meta fields"])
def test_a_handler_that_writes_in_the_middle_of_a_write_is_refused(tmp_path, after_call, name, call, first):
    with start(tmp_path / "changed", circular=False) as plain:
        CHANGES[name](plain)
        changed = state_of(plain)
    said = []

    def write():
        for change in (lambda: store(buffer, 9), lambda: buffer.put_file("notes", b"1"), buffer.clear, buffer.flush):
            with pytest.raises(BufferLockedError, match="in the middle of a write") as caught:
                change()
            said.append(str(caught.value))

    buffer = start(tmp_path / "data", circular=False)
    after_call(call, first, write)
    CHANGES[name](buffer)
    buffer.close()
    assert len(said) in (0, 4)
    assert all(str(tmp_path) in text for text in said)
    assert sound(tmp_path / "data") == changed


class Counting(gym.Env):
    """Observes how often it was reset, and how often stepped since."""

    observation_space, action_space = gym.spaces.Box(-1e9, 1e9, (2,)), gym.spaces.Discrete(2)
    episodes = closed = 0

    def __init__(self, length=5):
        self.length = length

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps, self.episodes = 0, self.episodes + 1
        return np.array([self.episodes, 0], np.float32), {}

    def step(self, action):
        self.steps += 1
        return np.array([self.episodes, self.steps], np.float32), 1.0, self.steps >= self.length, False, {}

    def close(self):
        self.closed += 1


@pytest.mark.parametrize("kind", ["single", "vector"])
@pytest.mark.parametrize("first", [1, 2, 3, 4])
def test_a_recorder_closed_by_a_handler_in_the_middle_of_a_commit_keeps_each_episode_once(
    tmp_path, after_call, first, kind
):
    inner = [Counting(), Counting()]
    if kind == "single":
        env, action = RecordToBuffer(inner[0], tmp_path), 0
    else:
        env = vector.RecordToBuffer(gym.vector.SyncVectorEnv([lambda: inner[0], lambda: inner[1]]), tmp_path)
        action = np.zeros(2, int)
    env.reset(seed=0)
    for _ in range(4):
        env.step(action)
    after_call("pwrite", first, env.close)
    env.step(action)
    assert inner[0].closed
    with ReplayBuffer.from_folder(tmp_path) as buffer:
        assert [episode["observation"][:, 1].tolist() for episode in buffer] == [[0, 1, 2, 3, 4, 5]] * len(buffer)
        assert len(buffer) == (1 if kind == "single" else 2)
    assert check_buffer(tmp_path, progress=False).verified


def test_a_vector_recorder_closed_inside_of_a_step_stores_nothing_of_it(tmp_path):
    class Closing(Counting):
        def step(self, action):
            if self.steps == 2:
                env.close()
            return super().step(action)

    env = vector.RecordToBuffer(gym.vector.SyncVectorEnv([lambda: Closing(3), lambda: Counting(3)]), tmp_path)
    env.reset(seed=0)
    for _ in range(3):
        env.step(np.zeros(2, int))
    with ReplayBuffer.from_folder(tmp_path, read_only=True) as buffer:
        assert [(len(episode), bool(episode.meta["episode_complete"])) for episode in buffer] == [(2, False)] * 2
    assert check_buffer(tmp_path, progress=False).verified


CLOSED_AT_ANY_MOMENT = """
import random, signal, sys
from gym_replay import BufferClosedError, ReplayBuffer

def close(*_):
    buffer.close()
    signal.setitimer(signal.ITIMER_REAL, 3e-4 + 3e-3 * random.random())

signal.signal(signal.SIGALRM, close)
buffer = ReplayBuffer(sys.argv[1], fields={"x": "int64"})
closed = 0
close()
while closed < 150:
    try:
        for _ in range(3):
            buffer.store_episode(x=[len(buffer)] * 20)
        buffer.flush()
    except BufferClosedError:
        closed += 1
        buffer = ReplayBuffer.from_folder(sys.argv[1])
signal.setitimer(signal.ITIMER_REAL, 0)
buffer.close()
print("stored")
"""


def test_a_handler_may_close_at_any_moment(tmp_path):
    assert run_script(CLOSED_AT_ANY_MOMENT, tmp_path) == (0, "stored")
    with ReplayBuffer.from_folder(tmp_path) as buffer:
        assert contents(buffer) == [[number] * 20 for number in range(len(buffer))]
    assert check_buffer(tmp_path, progress=False).verified


# --- finalizers ---


def recorded_garbage(folder):
    """A recorder with an open episode of three steps, which only the collector can find; and its buffer."""
    env = RecordToBuffer(Counting(), folder)
    env.itself = env
    env.reset(seed=0)
    for _ in range(3):
        env.step(0)
    return env.buffer


@pytest.fixture
def no_collector():
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("keeps_buffer", [True, False])
def test_a_recorder_that_another_thread_finds_to_be_garbage_keeps_its_episode(tmp_path, keeps_buffer):
    buffer = recorded_garbage(tmp_path)
    if not keeps_buffer:
        del buffer
    with ThreadPoolExecutor(1) as pool:
        pool.submit(gc.collect).result()
    with ReplayBuffer.from_folder(tmp_path, read_only=True) as found:
        assert [len(episode) for episode in found] == [3]
    if keeps_buffer:
        buffer.flush()
        buffer.close()
    assert check_buffer(tmp_path, progress=False).verified


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize(("call", "first"), [("fsync", 1), ("pwrite", 1)])
def test_a_recorder_that_is_collected_in_the_middle_of_a_write_keeps_its_episode(tmp_path, after_call, call, first):
    buffer = recorded_garbage(tmp_path)
    after_call(call, first, gc.collect)
    buffer.update(episode_seed=np.full(buffer.num_episodes, 3)) if call == "pwrite" else buffer.flush()
    assert [len(episode) for episode in buffer] == [3]
    buffer.close()
    assert check_buffer(tmp_path, progress=False).verified


COLLECTED_BY_ITS_OWN_CHECKSUMS = """
import gc, sys, threading, zlib
import numpy as np

real, started, go = zlib.crc32, threading.Event(), threading.Event()

def slow(*arguments):
    if threading.current_thread() is not threading.main_thread():
        started.set()
        go.wait(60)
        gc.collect()
    return real(*arguments)

zlib.crc32 = slow
from gym_replay import ReplayBuffer
gc.disable()
buffer = ReplayBuffer(sys.argv[1], fields={"x": ("float32", 1000)})
buffer.itself = buffer
for k in range(2):
    buffer.store_episode(x=np.full((600, 1000), k))
started.wait(60)
del buffer
thread = next(each for each in threading.enumerate() if "checksums" in each.name)
go.set()
thread.join()
with ReplayBuffer(sys.argv[1]) as again:
    again.store_episode(x=np.full((5, 1000), 9))
    print(len(again))
"""


def test_a_buffer_that_is_collected_by_the_thread_of_its_checksums_lets_go(tmp_path):
    assert run_script(COLLECTED_BY_ITS_OWN_CHECKSUMS, tmp_path) == (0, "3")
    assert check_buffer(tmp_path, progress=False).verified


# --- which thread writes ---


def test_a_thread_that_has_ended_is_not_taken_for_a_new_one(tmp_path):
    over = threading.Event()
    with make_plain(tmp_path) as buffer:
        first = threading.Thread(target=add, args=(buffer, 2))
        first.start()
        first.join()
        others = [threading.Thread(target=over.wait) for _ in range(4)]  # one of them is given the ident of the first
        for other in others:
            other.start()
        try:
            add(buffer, 3)
        finally:
            over.set()
            for other in others:
                other.join()
        assert contents(buffer) == [[0, 1], [100, 101, 102]]


WHILE_A_DAEMON_RECORDS = """
import sys, threading
import gymnasium as gym
from gym_replay import RecordToBuffer
started = threading.Event()
def work():
    env = RecordToBuffer(gym.make("CartPole-v1"), sys.argv[1])
    for _ in range(1_000_000):
        env.reset()
        while not env.step(0)[2]:
            pass
        if len(env.buffer) == 20:
            started.set()
threading.Thread(target=work, daemon=True).start()
started.wait(60)
"""


def test_a_thread_that_records_while_the_process_ends_says_nothing_and_loses_no_committed_episode(tmp_path):
    assert run_script(WHILE_A_DAEMON_RECORDS, tmp_path) == (0, "")
    with ReplayBuffer.from_folder(tmp_path) as buffer:
        assert len(buffer) >= 20
        assert all(episode["terminated"].tolist() == [False] * (len(episode) - 1) + [True] for episode in buffer)
    assert check_buffer(tmp_path, progress=False).ok
