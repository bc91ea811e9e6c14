"""What is noted of an episode beside its steps: the recorder's own meta fields, the user's, and ``on_episode``."""

import json
import time
import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from internals import generator_state, small_sizes
from wrappers.scripted import Scripted, full_disk, play

import gym_replay
from gym_replay import EpisodeStateError, FieldError, RecordToBuffer, ReplayBuffer, StorageError, check_buffer
from gym_replay.wrappers.vector import RecordToBuffer as VectorRecordToBuffer

CHUNKS = {"short": 1 << 14, "written early": 3}
LIMITS = {"linear": {}, "ring": {"circular": True, "max_steps": 60}}


def recorded(folder, env=None, *, episodes=1, reset=None, **options):
    env = RecordToBuffer(env or Scripted(), folder, **options)
    for _ in range(episodes):
        env.reset(**(reset or {}))
        while not env.step(1)[2]:
            pass
    env.close()
    return [episode.meta for episode in env.buffer]


@pytest.mark.parametrize(
    ("seed", "stored"), [(None, -1), (0, 0), (7, 7), ((1 << 63) - 1, (1 << 63) - 1), (1 << 63, -1)]
)
def test_seeds(tmp_path, seed, stored):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        (meta,) = recorded(tmp_path, reset={"seed": seed})
    assert meta["episode_seed"] == stored
    assert [warning.filename for warning in caught] == ([__file__] if stored == -1 and seed else [])


class Liberal(Scripted):
    """Takes anything for a seed."""

    def reset(self, *, seed=None, options=None):
        return super().reset()


@pytest.mark.parametrize("seed", ["seven", [1, 2], -5, 2.5])
def test_what_is_no_seed_is_for_the_environment_to_refuse(tmp_path, seed):
    with pytest.warns(UserWarning, match="seed"):
        (meta,) = recorded(tmp_path / "a", Liberal(), reset={"seed": seed})
    assert meta["episode_seed"] == -1
    env = RecordToBuffer(gym.make("CartPole-v1"), tmp_path / "b")
    with pytest.warns(UserWarning, match="seed"), pytest.raises((gym.error.Error, TypeError)):
        env.reset(seed=seed)
    env.close()


class Unspeakable:
    def __repr__(self):
        raise RuntimeError("no")


CIRCLE = {}
CIRCLE["again"] = CIRCLE
OPTIONS = {
    "none": (None, ""),
    "empty": ({}, {}),
    "plain": ({"a": [1, 2.5, None, True], "ä": {"b": "c"}}, {"a": [1, 2.5, None, True], "ä": {"b": "c"}}),
    "NumPy": ({"x": np.float32(0.5), "y": np.arange(3), "z": np.bool_(True)}, {"x": 0.5, "y": [0, 1, 2], "z": True}),
    "object": ({"a": 1, "b": {3}}, {"a": 1, "b": {"not_kept": "{3}"}}),
    "object that raises": ({"a": 1, "b": Unspeakable()}, {"a": 1, "b": {"not_kept": "Unspeakable"}}),
    "long": ({"b": range(10)}, {"b": {"not_kept": "range(0, 10)"}}),
    "keys": ({("a", 1): 2}, {"not_kept": "{('a', 1): 2}"}),
    "circle": (CIRCLE, {"not_kept": "{'again': {...}}"}),
    "long double": ({"x": np.longdouble(0.5)}, {"not_kept": "{'x': np.longdouble('0.5')}"}),
    "surrogate": ({"x": "\ud800"}, {"x": "\ud800"}),
}


@pytest.mark.parametrize("kind", OPTIONS)
def test_options(tmp_path, kind):
    options, stored = OPTIONS[kind]
    (meta,) = recorded(tmp_path, reset={"options": options})
    assert (json.loads(meta["episode_options"]) if meta["episode_options"] else "") == stored


def test_options_are_kept_as_they_were_before_the_reset(tmp_path):
    class Changing(Scripted):
        def reset(self, *, seed=None, options=None):
            options["map"].clear()
            return super().reset(seed=seed)

    (meta,) = recorded(tmp_path, Changing(), reset={"options": {"map": [1, 2]}})
    assert json.loads(meta["episode_options"]) == {"map": [1, 2]}


@pytest.mark.parametrize("vectorized", [False, True])
@pytest.mark.parametrize("set_by", [0.0, -3600.0, 7200.0])
def test_start_and_duration(tmp_path, monkeypatch, set_by, vectorized):
    """What an episode took does not depend on a clock that is set meanwhile."""
    now = {"time": 1000.0, "monotonic": 7.0}
    for clock in now:
        monkeypatch.setattr(time, clock, lambda clock=clock: now[clock])

    def wait(seconds):
        for clock in now:
            now[clock] += seconds

    class Slow(Scripted):
        def reset(self, **options):
            wait(5)
            return super().reset(**options)

        def step(self, action):
            wait(0.25)
            return super().step(action)

    if vectorized:
        env = VectorRecordToBuffer(gym.vector.SyncVectorEnv([lambda: Slow(4)]), tmp_path)
        actions = env.action_space.sample()
    else:
        env, actions = RecordToBuffer(Slow(4), tmp_path), 1
    env.reset()
    for t in range(4):
        now["time"] += set_by if t == 2 else 0
        env.step(actions)
    now["time"] = 90_000.0
    env.reset()
    env.step(actions)
    env.close()
    times = [(float(meta["episode_start"]), float(meta["episode_duration"])) for meta in (e.meta for e in env.buffer)]
    assert [took for _, took in times] == [6.0, 5.25]
    assert times[1][0] == 90_000.0
    assert times[0][0] in (1000.0, 1000.0 + set_by)


def test_the_run(tmp_path):
    before = time.time()
    first, second = recorded(tmp_path, episodes=2)
    third = recorded(tmp_path)[-1]
    assert first["episode_run"] == second["episode_run"]
    run, other = json.loads(first["episode_run"]), json.loads(third["episode_run"])
    assert set(run) == {"run", "began", "versions"}
    assert run["run"] != other["run"]
    assert before <= run["began"] <= first["episode_start"] <= second["episode_start"] <= other["began"] <= time.time()
    assert run["versions"]["gymnasium"] == gym.__version__
    assert run["versions"]["numpy"] == np.__version__
    assert run["versions"]["gym-replay"] == gym_replay.__version__
    assert first["env_index"] == 0


def test_the_generator_before_a_reset_without_a_seed(tmp_path):
    env = RecordToBuffer(gym.make("CartPole-v1"), tmp_path)
    states = []
    for seed in (None, 7, None):
        states.append(generator_state(env))
        env.reset(seed=seed)
        env.step(0)
    env.close()
    stored = [episode.meta["episode_rng"] for episode in env.buffer]
    assert stored[0].any()  # it was made for the reset, and not known before
    assert not stored[1].any()
    assert (stored[2] == states[2]).all()


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("length", [1, 4, 99, 100, 250])
def test_the_return_is_the_sum_one_after_another(tmp_path, monkeypatch, chunk, length):
    small_sizes(monkeypatch, chunk_rows=CHUNKS[chunk])
    rewards = np.random.default_rng(length).normal(size=length + 1) * 10.0 ** np.arange(length + 1).clip(0, 17)
    (meta,) = recorded(tmp_path, Scripted(length, reward=lambda env, t: rewards[t]))
    total = 0.0
    for reward in rewards[1:].tolist():
        total += reward
    assert meta["episode_return"] == total


@pytest.mark.parametrize("chunk", CHUNKS)
def test_the_return_of_several_rewards(tmp_path, monkeypatch, chunk):
    small_sizes(monkeypatch, chunk_rows=CHUNKS[chunk])
    env = Scripted(9, reward=lambda env, t: np.float32([t, 0.1]))
    env.reward_space = spaces.Box(-9, 9, (2,))
    (meta,) = recorded(tmp_path, env)
    np.testing.assert_array_equal(
        meta["episode_return"], np.cumsum([[t, np.float32(0.1)] for t in range(1, 10)], 0)[-1]
    )


# --- the user's own ---

META = {"task": "str", "skill": "int", "goal": ("float64", 2)}


def test_annotations_at_any_time(tmp_path):
    env = RecordToBuffer(Scripted(3), tmp_path, meta_fields=META)
    for number in range(4):
        env.reset()
        if number == 0:
            env.annotate(task="früh", skill=1)
        env.step(1)
        if number == 1:
            env.annotate(skill=2)
            env.annotate(task="mid", skill=3)
        env.step(1)
        if number == 2:
            env.annotate(goal=[1, 2])
        env.step(1)
        with pytest.raises(EpisodeStateError, match="between a reset and"):
            env.annotate(skill=9)
    env.reset()
    env.annotate(task="no step follows")
    env.reset()
    env.step(1)
    env.annotate(task="cut")
    env.close()
    found = [(e.meta["task"], int(e.meta["skill"]), e.meta["goal"].tolist()) for e in env.buffer]
    assert found == [
        ("früh", 1, [0, 0]),
        ("mid", 3, [0, 0]),
        ("", 0, [1, 2]),
        ("", 0, [0, 0]),
        ("cut", 0, [0, 0]),
    ]


@pytest.mark.parametrize("make", [np.array, list, torch.tensor], ids=["array", "list", "tensor"])
@pytest.mark.parametrize("steps", [0, 1])
def test_annotations_are_kept_as_they_were(tmp_path, make, steps):
    env = RecordToBuffer(Scripted(2), tmp_path, meta_fields=META)
    env.reset()
    goal = make([1.0, 2.0])
    for _ in range(steps):
        env.step(1)
    env.annotate(goal=goal)
    goal[0] = 9.0
    env.step(1)
    env.close()
    assert env.buffer.episode(0).meta["goal"].tolist() == [1, 2]


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ({"task": 3}, "task.*string"),
        ({"skill": 0.5}, "skill"),
        ({"goal": [1]}, "goal"),
        ({"never": 1}, "never"),
        ({"episode_start": 1.0}, "recorder itself"),
        ({"env_index": 1}, "recorder itself"),
    ],
    ids=str,
)
def test_annotations_that_do_not_fit_change_nothing(tmp_path, meta, message):
    env = RecordToBuffer(Scripted(2), tmp_path, meta_fields=META)
    env.reset()
    env.annotate(skill=5)
    with pytest.raises(FieldError, match=message):
        env.annotate(**{"skill": 7, **meta})
    env.step(1)
    env.step(1)
    env.close()
    assert env.buffer.episode(0).meta["skill"] == 5


def test_annotating_an_episode_that_waits_for_room(tmp_path, monkeypatch):
    env = RecordToBuffer(Scripted(2), tmp_path, meta_fields=META)
    env.reset()
    env.step(1)
    with full_disk(monkeypatch), pytest.raises(StorageError):
        env.step(1)
    env.annotate(task="late")
    env.reset()
    assert [(episode.meta["task"], episode.complete) for episode in env.buffer] == [("late", True)]
    env.close()


# --- on_episode ---


@pytest.mark.parametrize("limits", LIMITS)
@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("is_cut", [False, True])
def test_what_it_sees(tmp_path, monkeypatch, chunk, limits, is_cut):
    small_sizes(monkeypatch, chunk_rows=CHUNKS[chunk])
    seen = []

    def look(episode):
        arrays = {name: episode[name].copy() for name in episode}
        seen.append((len(episode), episode.complete, episode.episode_return, dict(episode.meta), arrays))

    inner = Scripted(12, info={t: {"late": t} for t in range(8, 99)})
    env = RecordToBuffer(
        inner,
        tmp_path,
        on_episode=look,
        meta_fields=META,
        extra_fields={"value": "int"},
        record_info=True,
        **LIMITS[limits],
    )
    for _ in range(2):
        env.reset()
        env.annotate(task="first")
        for t in range(11 if is_cut else 12):
            env.annotate_step(value=t)
            env.step(t % 3)
            if t == 4:
                env.annotate(skill=4)
        env.reset()  # of no steps, so nobody is asked
    env.close()
    assert len(seen) == len(env.buffer) == 2
    for episode, (length, complete, total, meta, arrays) in zip(env.buffer, seen, strict=True):
        assert length == len(episode) == 12 - is_cut
        assert complete == episode.complete == (not is_cut)
        assert total == episode.meta["episode_return"]
        assert meta == {"task": "first", "skill": 4}
        assert list(arrays) == list(env.buffer.fieldnames)
        for name, array in arrays.items():
            assert array.dtype == episode[name].dtype
            np.testing.assert_array_equal(array, episode[name])
        assert arrays["value"].tolist() == list(range(length))
        assert np.flatnonzero(arrays["truncated"] | arrays["terminated"]).tolist() == [length - 1]
    assert check_buffer(tmp_path, progress=False).ok


def test_it_sees_no_ragged_fields_and_no_others(tmp_path):
    inner = Scripted(2, observation=lambda env, t: "x" * t)
    inner.observation_space = spaces.Text(5, min_length=0)
    refused = []

    def look(episode):
        for name in ("observation", "never"):
            with pytest.raises(FieldError, match=name):
                episode[name]
            refused.append(name)

    recorded(tmp_path, inner, on_episode=look)
    assert refused == ["observation", "never"]


@pytest.mark.parametrize("answer", [False, np.False_, np.bool_(0)], ids=repr)
@pytest.mark.parametrize("limits", LIMITS)
@pytest.mark.parametrize("chunk", CHUNKS)
def test_it_discards(tmp_path, monkeypatch, answer, limits, chunk):
    small_sizes(monkeypatch, chunk_rows=CHUNKS[chunk])
    answers = iter([answer, None, answer, True])
    env = RecordToBuffer(
        Scripted(12, reward=lambda env, t: 100 * env.number + t),
        tmp_path,
        on_episode=lambda episode: next(answers),
        **LIMITS[limits],
    )
    play(env, 4)
    env.close()
    assert [(episode.id, int(episode["reward"][0])) for episode in env.buffer] == [(0, 101), (1, 301)]
    assert check_buffer(tmp_path, progress=False).ok


@pytest.mark.parametrize("answer", [None, True, np.True_, {}, 0, "", []], ids=repr)
def test_anything_else_keeps(tmp_path, answer):
    assert len(recorded(tmp_path, on_episode=lambda episode: answer)) == 1


def test_it_sets_meta(tmp_path):
    env = RecordToBuffer(
        Scripted(), tmp_path, meta_fields=META, on_episode=lambda e: {"skill": len(e), "task": f"{e.episode_return}"}
    )
    env.reset()
    env.annotate(skill=1, goal=[1, 2])
    env.step(1)
    env.close()
    meta = env.buffer.episode(0).meta
    assert (meta["skill"], meta["task"], meta["goal"].tolist()) == (1, "1.0", [1, 2])


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (RuntimeError("mine"), RuntimeError),
        (KeyboardInterrupt(), KeyboardInterrupt),
        ({"never": 1}, FieldError),
        ({"skill": "x"}, FieldError),
        ({"episode_return": 1.0}, FieldError),
    ],
    ids=str,
)
@pytest.mark.parametrize("ending", ["step", "reset", "close"])
def test_the_episode_is_kept_where_it_raises(tmp_path, answer, error, ending):
    asked = []

    def look(episode):
        asked.append(len(episode))
        if isinstance(answer, BaseException):
            raise type(answer)(*answer.args)
        return answer

    env = RecordToBuffer(Scripted(3), tmp_path, meta_fields=META, on_episode=look)
    env.reset()
    env.annotate(skill=5)
    env.step(1)
    env.step(1)
    with pytest.raises(error):
        env.step(1) if ending == "step" else getattr(env, ending)()
    expected = [(3 if ending == "step" else 2, ending == "step", 5)]
    assert [(len(e), e.complete, int(e.meta["skill"])) for e in env.buffer] == expected
    if ending != "close":
        env.reset()
        env.step(1)
        with pytest.raises(error):
            env.close()
    assert asked == [len(episode) for episode in env.buffer]
    with ReplayBuffer.from_folder(tmp_path) as other:
        other.delete(0)  # the folder is free


@pytest.mark.parametrize("answer", [None, {"skill": 4}, False, RuntimeError("mine")], ids=repr)
def test_it_is_asked_once_although_the_disk_is_full(tmp_path, monkeypatch, answer):
    asked = []

    def look(episode):
        asked.append(episode)
        if isinstance(answer, Exception):
            raise type(answer)(*answer.args)
        return answer

    env = RecordToBuffer(Scripted(2), tmp_path, meta_fields=META, on_episode=look)
    env.reset()
    env.step(1)
    with full_disk(monkeypatch):
        for _ in range(3):
            if answer is False:
                env.reset()  # nothing is written
                break
            with pytest.raises(StorageError):
                env.step(1) if env.unwrapped.t < 2 else env.reset()
    if isinstance(answer, Exception):
        with pytest.raises(RuntimeError, match="mine"):  # told once the episode is stored
            env.reset()
    env.reset()
    env.close()
    assert len(asked) == 1
    assert [int(e.meta["skill"]) for e in env.buffer] == (
        [] if answer is False else [4 if answer == {"skill": 4} else 0]
    )


def test_cut_episodes_that_are_not_kept_are_not_shown(tmp_path):
    asked = []
    env = RecordToBuffer(Scripted(2), tmp_path, on_incomplete="discard", on_episode=asked.append)
    env.reset()
    env.step(1)
    play(env, 1)
    env.reset()
    env.step(1)
    env.close()
    assert len(asked) == len(env.buffer) == 1
