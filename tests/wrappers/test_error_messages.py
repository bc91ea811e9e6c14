"""What errors say: the cause, and not the next best thing."""

import errno
import os
import sys
import threading

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import SyncVectorEnv
from wrappers.scripted import Scripted, play

from gym_replay import EpisodeStateError, FieldError, MakeEnvError, RecordToBuffer, ReplayBuffer, StorageError, replay
from gym_replay.wrappers.vector import RecordToBuffer as VectorRecorder


def vector(length=4, count=2, **answers):
    return SyncVectorEnv([lambda: Scripted(length, **answers)] * count)


# --- what step and reset return ---

RESULTS = {
    "four": ((np.zeros(2), 1.0, False, {}), "got 4 values: ndarray, float, bool, dict; wrap.*old gym.*shimmy"),
    "six": ((np.zeros(2), 1.0, False, False, {}, {}), "got 6 values.*; return these 5 values, and put.*into the info"),
    "three": ((np.zeros(2), 1.0, {}), "got 3 values.*; return these 5 values$"),
    "a list of two": ([np.zeros(2), {}], "got 2 values.*; return these 5 values$"),
    "None": (None, "got NoneType None; return these 5 values$"),
    "an array": (np.zeros(2), "got ndarray.*; return these 5 values$"),
}


@pytest.mark.parametrize("is_vector", [False, True])
@pytest.mark.parametrize("kind", RESULTS)
def test_a_step_that_returns_something_else(tmp_path, kind, is_vector):
    result, message = RESULTS[kind]
    inner = vector() if is_vector else Scripted()
    env = (VectorRecorder if is_vector else RecordToBuffer)(inner, tmp_path)
    env.reset()
    inner.step = lambda action: result
    with pytest.raises(FieldError, match=message) as caught:
        env.step(env.action_space.sample())
    assert ("shimmy" in str(caught.value)) == (kind == "four")
    env.close()


@pytest.mark.parametrize("is_vector", [False, True])
@pytest.mark.parametrize(
    ("result", "message"),
    [
        (np.zeros(2), "shimmy"),
        (None, "shimmy"),
        ((np.zeros(2), {}, {}), "got 3 values.*put what is more into the info"),
        ((np.zeros(2),), "got 1 values.*; return these 2 values$"),
    ],
    ids=["bare", "None", "three", "one"],
)
def test_a_reset_that_returns_something_else(tmp_path, result, message, is_vector):
    inner = vector() if is_vector else Scripted()
    env = (VectorRecorder if is_vector else RecordToBuffer)(inner, tmp_path)
    inner.reset = lambda **options: result
    with pytest.raises(FieldError, match=rf"reset: expected \(observations?, infos?\).*{message}"):
        env.reset()
    env.close()


# --- spaces that change ---


class Changing(Scripted):
    """Its spaces are others from the second reset on, or from step 2 of the first episode on.

    Args:
        name: which space changes.
        space: what it becomes.
        in_step: whether it changes in a step.
    """

    def __init__(self, name, space, *, in_step=False):
        super().__init__(4, observation=self._other)
        self.name, self.space, self.in_step = name, space, in_step

    def _other(self, env, t):
        if self.t == 2 if self.in_step else self.number == 1:
            setattr(self, self.name, self.space)
        return np.zeros(self.observation_space.shape, np.float32)


@pytest.mark.parametrize("in_step", [False, True])
@pytest.mark.parametrize("shape", [(3,), (), (2, 2)])
def test_an_observation_space_that_changes(tmp_path, shape, in_step):
    env = RecordToBuffer(Changing("observation_space", spaces.Box(-9, 9, shape), in_step=in_step), tmp_path)
    with pytest.raises(
        FieldError, match=r"observation_space changed after it was wrapped, from Box\(.*\(2,\)"
    ) as caught:
        play(env, 2)
    assert "declare the field" not in str(caught.value).partition("(field")[0]
    env.close()


@pytest.mark.parametrize(
    "space", [spaces.Box(-1, 1, (2,)), spaces.MultiDiscrete([3, 3]), spaces.Dict({"a": spaces.Discrete(2)})]
)
def test_an_action_space_that_changes(tmp_path, space):
    env = RecordToBuffer(Changing("action_space", space), tmp_path)
    play(env)
    env.reset()
    with pytest.raises(FieldError, match=r"action_space changed after it was wrapped, from Discrete\(3\) to"):
        env.step(space.sample())
    env.step(1)  # the episode goes on
    env.close()
    assert [len(episode) for episode in env.buffer] == [4, 1]


@pytest.mark.parametrize("call", ["reset", "step"])
def test_a_vector_environment_whose_space_changes(tmp_path, call):
    class Wide(gym.vector.VectorWrapper):
        def _change(self, result):
            self.single_observation_space = spaces.Box(-9, 9, (3,))
            return np.zeros((2, 3), np.float32), *result[1:]

        def reset(self, **options):
            result = self.env.reset(**options)
            return self._change(result) if call == "reset" else result

        def step(self, actions):
            return self._change(self.env.step(actions))

    envs = VectorRecorder(Wide(vector()), tmp_path)
    with pytest.raises(FieldError, match=r"observation_space changed after it was wrapped, from Box\(.*\(2,\)"):  # noqa: PT012
        envs.reset()
        envs.step(envs.action_space.sample())
    envs.close()


def test_what_does_not_fit_a_space_that_stayed_is_said_as_before(tmp_path):
    env = RecordToBuffer(Scripted(observation={1: np.zeros(3)}), tmp_path)
    env.reset()
    with pytest.raises(FieldError, match=r"^field 'observation': expected shape \(2,\), got \(3,\)"):
        env.step(0)
    env.close()


# --- the buffer ---


@pytest.mark.parametrize(
    "ask", [lambda buffer: buffer.env_spec, lambda buffer: buffer.make_env(), lambda buffer: replay(buffer, 0)]
)
def test_an_environment_that_had_no_spec(tmp_path, ask):
    env = RecordToBuffer(Scripted(), tmp_path)
    play(env)
    env.close()
    with pytest.raises(
        MakeEnvError, match=r"environment was not made by gymnasium.make|no environment spec was recorded"
    ):
        ask(env.buffer)


def test_a_buffer_that_no_recorder_made(tmp_path):
    with (
        ReplayBuffer(tmp_path, fields={"x": "float"}) as buffer,
        pytest.raises(FieldError, match="not made by RecordToBuffer"),
    ):
        buffer.env_spec  # noqa: B018


def test_a_second_recorder_of_one_buffer(tmp_path):
    first = RecordToBuffer(Scripted(), tmp_path)
    second = RecordToBuffer(Scripted(), first.buffer)
    vectors = VectorRecorder(vector(), first.buffer)
    first.reset()
    first.step(0)
    for other, action in ((second, 0), (vectors, np.zeros(2, int))):
        other.reset()
        with pytest.raises(
            EpisodeStateError, match=r"a recorder has an episode open.*one recorder at a time.*a folder of its own"
        ):
            other.step(action)
    with pytest.raises(EpisodeStateError, match=r"clear while a recorder has an episode open.*close the recorder"):
        first.buffer.clear()
    first.close()


@pytest.mark.parametrize(
    "number", [errno.EACCES, errno.EPERM, errno.ENOENT, errno.EROFS, errno.ENOTDIR, errno.EMFILE, errno.EIO]
)
def test_what_the_system_refuses_is_not_a_lack_of_bytes(tmp_path, monkeypatch, number):
    def refuse(*arguments):
        raise OSError(number, os.strerror(number))

    env = RecordToBuffer(Scripted(), tmp_path)
    env.reset()
    for _ in range(3):
        env.step(0)
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", refuse)
        with pytest.raises(StorageError) as caught:
            env.step(0)
    assert caught.value.errno == number
    assert os.strerror(number) in str(caught.value)
    assert "bytes were needed" not in str(caught.value)
    env.close()
    assert [len(episode) for episode in env.buffer] == [4]


@pytest.mark.parametrize("where", ["file", "below a file"])
def test_a_folder_that_cannot_be_made(tmp_path, where):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file") as caught:
        RecordToBuffer(Scripted(), tmp_path / "file" / ("" if where == "file" else "more"))
    assert "bytes were needed" not in str(caught.value)


# --- threads ---


class Slow(Scripted):
    """Its steps and resets wait until they are let on, from when ``pause`` is set."""

    def __init__(self, length=4):
        super().__init__(length)
        self.is_inside, self.may_go_on = threading.Event(), threading.Event()
        self.pause = False

    def _wait(self):
        if self.pause:
            self.is_inside.set()
            assert self.may_go_on.wait(20)

    def reset(self, **options):
        self._wait()
        return super().reset(**options)

    def step(self, action):
        self._wait()
        return super().step(action)


@pytest.mark.parametrize("inside", ["step", "reset"])
@pytest.mark.parametrize("second", ["step", "reset"])
@pytest.mark.parametrize("is_vector", [False, True])
def test_a_second_thread_is_refused_and_the_first_one_is_not_disturbed(tmp_path, inside, second, is_vector):
    slow = Slow()
    env = VectorRecorder(SyncVectorEnv([lambda: slow]), tmp_path) if is_vector else RecordToBuffer(slow, tmp_path)
    action = env.action_space.sample()
    call = {"step": lambda: env.step(action), "reset": env.reset}

    def first():
        env.reset()
        env.step(action)
        slow.pause = True
        call[inside]()
        slow.pause = False
        for _ in range(4 if inside == "reset" else 2):
            env.step(action)
        env.close()

    thread = threading.Thread(target=first)
    thread.start()
    assert slow.is_inside.wait(20)
    for _ in range(2):
        with pytest.raises(EpisodeStateError, match=r"another thread is inside.*one recorder belongs to one thread"):
            call[second]()
    slow.may_go_on.set()
    thread.join()
    assert [(len(e), e.complete) for e in env.buffer] == ([(1, False), (4, True)] if inside == "reset" else [(4, True)])


@pytest.mark.parametrize("is_vector", [False, True])
def test_threads_that_take_turns(tmp_path, is_vector):
    env = VectorRecorder(vector(), tmp_path) if is_vector else RecordToBuffer(Scripted(), tmp_path)
    action = env.action_space.sample()
    calls = [env.reset, *[lambda: env.step(action)] * 4]
    for call in calls:
        thread = threading.Thread(target=call)
        thread.start()
        thread.join()
    env.close()
    assert [len(episode) for episode in env.buffer] == [4] * (2 if is_vector else 1)


def test_four_threads_that_step_one_environment(tmp_path):
    """Whoever comes in between is told so, and no episode has a row too many, too few, or in another order."""
    env = RecordToBuffer(Scripted(50), tmp_path)
    messages = []

    def work():
        try:
            env.reset()
            for _ in range(3000):
                if env.step(1)[2]:
                    env.reset()
        except EpisodeStateError as error:
            messages.append(str(error))

    threads = [threading.Thread(target=work) for _ in range(4)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    env.close()
    assert messages
    assert all("belongs to one thread" in message for message in messages)
    for episode in env.buffer:
        assert episode["observation"][:, 0].tolist() == list(range(len(episode) + 1))
