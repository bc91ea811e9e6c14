"""The recorder, against what the environments themselves returned."""

import json
import os
import subprocess
import sys
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env
from internals import small_sizes, space_tree, unflatten
from wrappers.scripted import Releasing, Scripted

from gym_replay import (
    BufferFullError,
    BufferLockedError,
    ConfigMismatchError,
    EpisodeStateError,
    EpisodeTooLongError,
    Field,
    FieldError,
    RecordToBuffer,
    ReplayBuffer,
    UnsupportedSpaceError,
    check_buffer,
)


class Nested(gym.Env):
    """An environment of nested spaces that ends after ``length`` steps and reuses one array."""

    observation_space = spaces.Dict(
        {
            "camera": spaces.Dict({"rgb": spaces.Box(0, 255, (4, 4, 3), np.uint8), "depth": spaces.Box(0, 1, (2,))}),
            "joints.raw": spaces.Tuple((spaces.Box(-1, 1, (3,), np.float64), spaces.MultiBinary(4))),
            "level": spaces.Discrete(5, start=-2),
        }
    )
    action_space = spaces.Tuple((spaces.Discrete(3), spaces.Dict({"force": spaces.Box(-1, 1, (2,), np.float32)})))

    def __init__(self, length=4, truncate=False):
        self.length, self.truncate = length, truncate
        self.joints = np.zeros(3)

    def _observation(self):
        value = self.np_random.random()
        self.joints[:] = value
        return {
            "camera": {
                "rgb": self.np_random.integers(0, 256, (4, 4, 3), np.uint8),
                "depth": self.np_random.random(2, np.float32),
            },
            "joints.raw": (self.joints, self.np_random.integers(0, 2, 4, np.int8)),
            "level": int(self.np_random.integers(-2, 3)),
        }

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self._observation(), {}

    def step(self, action):
        self.t += 1
        done = self.t >= self.length
        return self._observation(), self.t / 3, done and not self.truncate, done and self.truncate, {"t": self.t}


def frozen(value):
    """A deep copy that later steps cannot change."""
    if isinstance(value, dict):
        return {key: frozen(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(frozen(item) for item in value)
    return np.array(value)


class Witness(gym.Wrapper):
    """Keeps, beside the recorder, what the environment returned."""

    def __init__(self, env):
        super().__init__(env)
        self.episodes = []

    def reset(self, **kwargs):
        result = self.env.reset(**kwargs)
        self.episodes.append({"observations": [frozen(result[0])], "steps": []})
        return result

    def step(self, action):
        result = self.env.step(action)
        self.episodes[-1]["observations"].append(frozen(result[0]))
        self.episodes[-1]["steps"].append((frozen(action), *map(np.array, result[1:4])))
        return result


def assert_equal_episode(episode, witnessed, env):
    steps = witnessed["steps"]
    assert len(episode) == len(steps)
    for root, space, values in (
        ("observation", env.observation_space, witnessed["observations"]),
        ("action", env.action_space, [step[0] for step in steps]),
    ):
        tree = space_tree(space, root)
        columns = [np.asarray(column) for column in zip(*map(tree.flatten, values), strict=True)]
        for leaf, column in zip(tree.leaves, columns, strict=True):
            stored = episode[leaf.name]
            assert stored.dtype == leaf.space.dtype
            assert stored.shape == (len(values), *leaf.space.shape)
            assert stored.tobytes() == column.astype(leaf.space.dtype).tobytes(), leaf.name
        for t in range(len(values)):
            assert unflatten(tree, [episode[leaf.name][t] for leaf in tree.leaves]) in space
    np.testing.assert_array_equal(episode["reward"], [step[1] for step in steps])
    assert episode["reward"].dtype == np.float64
    np.testing.assert_array_equal(episode["terminated"], [step[2] for step in steps])
    total = 0.0
    for step in steps:
        total += float(step[1])
    assert episode.meta["episode_return"] == total


def play(env, episodes, *, seed=0, limit=10_000):
    env.action_space.seed(seed)
    for k in range(episodes):
        env.reset(seed=seed + k)
        for _ in range(limit):
            if any(env.step(env.action_space.sample())[2:4]):
                break


MAKERS = {
    "CartPole": lambda: gym.make("CartPole-v1"),
    "Pendulum": lambda: gym.make("Pendulum-v1", max_episode_steps=30),
    "FrozenLake": lambda: gym.make("FrozenLake-v1"),
    "Blackjack": lambda: gym.make("Blackjack-v1"),
    "Nested, terminated": lambda: Nested(),
    "Nested, truncated": lambda: Nested(truncate=True),
    "Nested, one step": lambda: Nested(length=1),
}


@pytest.mark.parametrize("name", MAKERS)
def test_every_row_is_what_the_environment_returned(tmp_path, name):
    witness = Witness(MAKERS[name]())
    env = RecordToBuffer(witness, tmp_path)
    play(env, 6)
    env.reset(seed=77)  # the last episode is cut, if it has a transition
    env.step(env.action_space.sample())
    env.close()
    expected = [episode for episode in witness.episodes if episode["steps"]]
    with ReplayBuffer.from_folder(tmp_path) as buffer:
        assert len(buffer) == len(expected) == 7
        for number, (episode, witnessed) in enumerate(zip(buffer, expected, strict=True)):
            assert_equal_episode(episode, witnessed, env)
            ended = bool(witnessed["steps"][-1][2] or witnessed["steps"][-1][3])
            assert episode.has_final
            assert episode.complete == episode.meta["episode_complete"] == ended
            assert episode.meta["episode_seed"] == (number if number < 6 else 77)
            truncated = [bool(step[3]) for step in witnessed["steps"]]
            truncated[-1] |= not ended
            assert episode["truncated"].tolist() == truncated
        assert len(buffer.dataset(n_steps=1)) == buffer.num_steps
        assert buffer.observation_space == env.observation_space
        assert buffer.action_space == env.action_space


def test_it_passes_on_the_very_objects(tmp_path):
    class Marked(gym.Env):
        observation_space = spaces.Box(-1, 1, (2,))
        action_space = spaces.Discrete(2)
        first = (np.zeros(2, np.float32), {"a": object()})
        other = (np.ones(2, np.float32), 1.5, False, False, {"b": object()})

        def reset(self, *, seed=None, options=None):
            assert (seed, options) == (3, {"x": 1})
            return self.first

        def step(self, action):
            return self.other

    env = RecordToBuffer(Marked(), tmp_path)
    assert env.reset(seed=3, options={"x": 1}) is Marked.first
    assert env.step(1) is Marked.other
    env.close()


@pytest.mark.parametrize("keep", [True, False])
def test_cut_episodes(tmp_path, keep):
    env = RecordToBuffer(Nested(length=5), tmp_path, on_incomplete="keep" if keep else "discard")
    action = env.action_space.sample()
    env.reset()
    env.reset()  # nothing was stepped: no episode
    env.step(action)
    env.step(action)
    assert len(env.buffer) == 0
    env.reset()
    assert len(env.buffer) == keep
    for _ in range(5):
        env.step(action)
    assert len(env.buffer) == keep + 1
    env.reset()
    env.step(action)
    env.close()
    env.close()
    assert [len(episode) for episode in env.buffer] == ([2, 5, 1] if keep else [5])
    assert [episode.complete for episode in env.buffer] == ([False, True, False] if keep else [True])
    assert all(episode["truncated"][-1] != episode["terminated"][-1] for episode in env.buffer)


def test_a_commit_comes_before_the_step_returns(tmp_path):
    env = RecordToBuffer(Nested(length=3), tmp_path)
    action = env.action_space.sample()
    env.reset()
    for expected in (0, 0, 1):
        env.step(action)
        assert ReplayBuffer.from_folder(tmp_path, read_only=True).num_episodes == expected
    env.close()


def test_a_second_run_appends(tmp_path):
    for run in range(3):
        env = RecordToBuffer(gym.make("CartPole-v1"), tmp_path)
        play(env, 2, seed=10 * run)
        env.close()
    assert [int(episode.meta["episode_seed"]) for episode in env.buffer] == [0, 1, 10, 11, 20, 21]
    assert [episode.id for episode in env.buffer] == list(range(6))
    env = RecordToBuffer(gym.make("CartPole-v1"), tmp_path, overwrite=True)
    assert len(env.buffer) == 0
    env.close()


def test_annotations(tmp_path):
    env = RecordToBuffer(
        Nested(length=3),
        tmp_path,
        meta_fields={"skill": "int", "goal": ("float", 2)},
        extra_fields={"log_prob": "float", "value": ("float", (2,), 7.0), "intervened": "bool"},
    )
    action = env.action_space.sample()
    with pytest.raises(EpisodeStateError, match="reset"):
        env.annotate(skill=1)
    env.reset()
    env.annotate(skill=4)
    goal = np.array([1.0, 2.0])
    env.step(action)
    env.annotate(goal=goal)
    goal[:] = 0
    env.annotate_step(log_prob=-0.5)
    env.annotate_step(intervened=True)
    env.step(action)
    env.annotate(skill=5)
    with pytest.raises(FieldError, match="nothing"):
        env.annotate(nothing=1)
    with pytest.raises(FieldError, match="itself"):
        env.annotate(episode_return=1.0)
    with pytest.raises(FieldError, match="nothing"):
        env.annotate_step(nothing=1)
    with pytest.raises(FieldError, match="log_prob"):
        env.annotate_step(log_prob=[1, 2])
    env.step(action)
    env.reset()
    env.close()
    (episode,) = env.buffer
    assert episode.meta["skill"] == 5
    assert episode.meta["goal"].tolist() == [1, 2]
    assert episode["log_prob"].tolist() == [0, -0.5, 0]
    assert episode["intervened"].tolist() == [False, True, False]
    assert episode["value"].tolist() == [[7, 7]] * 3
    batch = next(iter(env.buffer.dataloader(2, timestep_level=True)))
    assert "skill" in batch
    assert "episode_return" not in batch
    named = env.buffer.dataloader(2, timestep_level=True, to_named_tuple=("episode_return", "skill"))
    assert next(iter(named)).episode_return.tolist() == [2.0, 2.0]


def test_check_env_passes(tmp_path):
    env = RecordToBuffer(gym.make("CartPole-v1"), tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_env(env)
    env.close()


def test_the_environment_can_be_made_anew(tmp_path):
    env = RecordToBuffer(gym.make("CartPole-v1", max_episode_steps=7, sutton_barto_reward=True), tmp_path)
    env.close()
    with ReplayBuffer.from_folder(tmp_path) as buffer:
        again = buffer.make_env()
        assert again.spec == env.env.spec
        assert not any(wrapper.name == "RecordToBuffer" for wrapper in again.spec.additional_wrappers)
        assert buffer.env_spec.id == "CartPole-v1"
    rebuilt = gym.make(env.spec)
    assert isinstance(rebuilt, RecordToBuffer)
    rebuilt.close()


def test_another_environment_is_refused(tmp_path):
    RecordToBuffer(gym.make("CartPole-v1"), tmp_path).close()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        older = gym.make("CartPole-v0")
    with pytest.raises(ConfigMismatchError, match="recorded from 'CartPole-v1', this environment is 'Pendulum-v1'"):
        RecordToBuffer(gym.make("Pendulum-v1"), tmp_path)
    with pytest.raises(ConfigMismatchError, match="CartPole-v0"):
        RecordToBuffer(older, tmp_path)
    wider = gym.wrappers.TransformObservation(gym.make("CartPole-v1"), lambda x: x, spaces.Box(-9, 9, (4,), np.float32))
    with pytest.raises(ConfigMismatchError, match="observation space"):
        RecordToBuffer(wider, tmp_path)
    with pytest.raises(ConfigMismatchError, match="max_steps"):
        RecordToBuffer(gym.make("CartPole-v1"), tmp_path, max_steps=5)
    with pytest.raises(ConfigMismatchError, match="extra"):
        RecordToBuffer(gym.make("CartPole-v1"), tmp_path, extra_fields={"extra": "float"})
    with ReplayBuffer(tmp_path / "hand", fields={"x": "float"}) as buffer, pytest.raises(ConfigMismatchError):
        RecordToBuffer(gym.make("CartPole-v1"), buffer)


def test_recording_into_a_buffer(tmp_path):
    RecordToBuffer(gym.make("CartPole-v1"), tmp_path, circular=True, max_episodes=2).close()
    buffer = ReplayBuffer.from_folder(tmp_path)
    env = RecordToBuffer(gym.make("CartPole-v1"), buffer)
    assert env.buffer is buffer
    play(env, 5)
    env.close()
    assert [int(episode.meta["episode_seed"]) for episode in buffer] == [3, 4]
    buffer.close()
    env = RecordToBuffer(gym.make("CartPole-v1"), tmp_path)  # circular as stored
    assert env.buffer.circular
    env.close()


def test_two_recorders_of_one_folder(tmp_path):
    first = RecordToBuffer(gym.make("CartPole-v1"), tmp_path)
    second = RecordToBuffer(gym.make("CartPole-v1"), tmp_path)
    first.reset()
    first.step(0)
    second.reset()
    with pytest.raises(BufferLockedError, match="this process"):
        second.step(0)
    first.close()
    second.reset()
    second.step(0)
    second.close()
    assert len(second.buffer) == 2


def test_unsupported_spaces_are_named(tmp_path):
    class Unknown(gym.Space):
        pass

    class Talking(Nested):
        observation_space = spaces.Dict({"said": spaces.Dict({"word": Unknown()})})

    with pytest.raises(UnsupportedSpaceError, match=r"observation\.said\.word"):
        RecordToBuffer(Talking(), tmp_path)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(TypeError, match="expected a gymnasium"):
        RecordToBuffer(gym.make_vec("CartPole-v1", num_envs=2), tmp_path)


def test_what_does_not_fit_ends_the_episode_before_it(tmp_path):
    class Broken(gym.Env):
        observation_space = spaces.Box(-1, 1, (2,))
        action_space = spaces.Discrete(2)
        answers = ((np.zeros(2, np.float32), 1.0), (np.zeros(3, np.float32), 1.0), (np.zeros(2, np.float32), None))

        def reset(self, *, seed=None, options=None):
            self.bad = options
            self.t = 0
            return np.zeros(2, np.float32), {}

        def step(self, action):
            self.t += 1
            return *self.answers[self.bad if self.t == 3 else 0], False, False, {}

    env = RecordToBuffer(Broken(), tmp_path)
    for bad, message in ((1, r"observation.*\(2,\).*\(3,\)"), (2, "reward")):
        env.reset(options=bad)
        env.step(0)
        env.step(1)
        with pytest.raises(FieldError, match=message):
            env.step(0)
        with pytest.warns(UserWarning, match="not recorded"):
            env.step(0)
    env.reset(options=0)
    with pytest.raises(FieldError, match="action"):
        env.step([1, 1])
    env.step(1)
    env.close()
    assert [episode["action"].tolist() for episode in env.buffer] == [[0, 1], [0, 1], [1]]
    assert all(episode["truncated"][-1] and not episode.complete for episode in env.buffer)


def test_an_environment_that_raises(tmp_path):
    class Faulty(Nested):
        def step(self, action):
            if self.t == 2:
                raise RuntimeError("simulator")
            return super().step(action)

    env = RecordToBuffer(Faulty(length=9), tmp_path)
    action = env.action_space.sample()
    env.reset()
    env.step(action)
    env.step(action)
    with pytest.raises(RuntimeError, match="simulator"):
        env.step(action)
    env.reset()
    env.step(action)
    env.close()
    assert [len(episode) for episode in env.buffer] == [2, 1]


def test_limits(tmp_path):
    env = RecordToBuffer(Nested(length=9), tmp_path / "timesteps", max_timesteps=3)
    action = env.action_space.sample()
    env.reset()
    for _ in range(3):
        env.step(action)
    with pytest.raises(EpisodeTooLongError, match="max_timesteps=3"):
        env.step(action)
    assert env.unwrapped.t == 3
    env.reset()
    env.step(action)
    env.close()
    assert [len(episode) for episode in env.buffer] == [3, 1]

    env = RecordToBuffer(Nested(length=1), tmp_path / "episodes", max_episodes=2)
    for _ in range(2):
        env.reset()
        env.step(action)
    env.reset()
    with pytest.raises(BufferFullError, match="max_episodes=2"):
        env.step(action)
    env.close()
    assert len(env.buffer) == 2

    env = RecordToBuffer(Nested(length=4), tmp_path / "steps", max_steps=10, circular=True)
    for _ in range(5):
        env.reset()
        for _ in range(4):
            env.step(action)
    env.close()
    assert [episode.id for episode in env.buffer] == [3, 4]


def test_storage_dtypes(tmp_path):
    env = RecordToBuffer(Nested(), tmp_path, dtypes={"observation.joints%2Eraw.0": "float32"})
    play(env, 1)
    env.close()
    assert env.buffer.episode(0)["observation.joints%2Eraw.0"].dtype == np.float32
    with pytest.raises(FieldError, match="nothing"):
        RecordToBuffer(Nested(), tmp_path / "other", dtypes={"nothing": "float32"})


def test_stacked_frames_are_warned_about(tmp_path):
    stacked = gym.wrappers.FrameStackObservation(gym.make("CartPole-v1"), 4)
    with pytest.warns(UserWarning, match="several times"):
        RecordToBuffer(stacked, tmp_path).close()


def test_names_of_the_recorder_are_its_own(tmp_path):
    for options in ({"extra_fields": {"reward": "float"}}, {"meta_fields": {"episode_seed": "int"}}):
        with pytest.raises(FieldError, match="recorder"):
            RecordToBuffer(Nested(), tmp_path, **options)
    with pytest.raises(FieldError, match="on_incomplete"):
        RecordToBuffer(Nested(), tmp_path, on_incomplete="maybe")


def test_seeds_beyond_int64(tmp_path):
    env = RecordToBuffer(Nested(length=1), tmp_path)
    with pytest.warns(UserWarning, match="seed"):
        env.reset(seed=1 << 70)
    env.step(env.action_space.sample())
    env.close()
    assert env.buffer.episode(0).meta["episode_seed"] == -1


def test_long_episodes_are_written_early(tmp_path, monkeypatch):
    small_sizes(monkeypatch, chunk_rows=7)
    for number, options in enumerate(({}, {"circular": True, "max_steps": 100}, {"circular": True, "max_episodes": 2})):
        for length in (6, 7, 8, 30):
            witness = Witness(Nested(length=length))
            env = RecordToBuffer(witness, tmp_path / f"{number}-{length}", **options)
            play(env, 4)
            env.reset()
            for _ in range(length - 1):
                env.step(env.action_space.sample())
            env.close()
            kept = witness.episodes[-len(env.buffer) :]
            assert len(env.buffer) >= 2
            for episode, witnessed in zip(env.buffer, kept, strict=True):
                assert_equal_episode(episode, witnessed, env)


def test_an_end_without_close_keeps_everything(tmp_path):
    script = f"""
import gymnasium as gym
from gym_replay import RecordToBuffer
env = RecordToBuffer(gym.make("CartPole-v1"), {str(tmp_path)!r})
env.reset(seed=0)
while not any(env.step(0)[2:4]): pass
env.reset(seed=1)
env.step(0); env.step(1)
"""
    for expected in (2, 4):  # a new buffer, and one that is appended to
        subprocess.run([sys.executable, "-W", "error", "-c", script], check=True)
        with ReplayBuffer.from_folder(tmp_path, read_only=True) as buffer:
            assert len(buffer) == expected
            assert [episode.complete for episode in buffer][-2:] == [True, False]


def test_interrupts_at_any_line_leave_whole_transitions(tmp_path):
    """Ctrl-C is raised before a line of the package, each run before another one; nothing is lost or doubled."""

    def run(folder, stop):
        count = 0

        def trace(frame, event, argument):
            nonlocal count
            name = frame.f_code.co_filename
            if "gym_replay" not in name or "tests" in name or frame.f_code.co_name in ("release", "close", "__del__"):
                return None
            if frame.f_back.f_code.co_name == "__del__":  # of an earlier test's garbage: what is raised there is lost
                return None
            if event == "line":
                count += 1
                if count == stop:
                    sys.settrace(None)
                    raise KeyboardInterrupt
            return trace

        witness = Witness(Nested(length=3))
        env = RecordToBuffer(witness, folder, circular=True, max_steps=7, overwrite=True)
        action = env.action_space.sample()
        returned = 0
        sys.settrace(trace)
        try:
            for _ in range(4):
                env.reset(seed=returned)
                for _ in range(3):
                    env.step(action)
                    returned += 1
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(None)
        env.close()
        return witness, env, returned, count

    _, _, _, total = run(tmp_path, -1)
    assert total > 300
    for stop in range(1, total, max(total // 80, 1)):
        witness, env, returned, _ = run(tmp_path, stop)
        with ReplayBuffer.from_folder(tmp_path, read_only=True) as buffer:
            episodes = list(buffer)
            assert [episode.id for episode in episodes] == list(
                range(episodes[-1].id + 1 - len(episodes), episodes[-1].id + 1) if episodes else []
            )
            for episode in episodes:
                witnessed = witness.episodes[episode.id]
                length = len(episode)
                cut = {"observations": witnessed["observations"][: length + 1], "steps": witnessed["steps"][:length]}
                assert_equal_episode(episode, cut, env)
            newest = episodes[-1].id * 3 + len(episodes[-1]) if episodes else 0
            assert newest >= returned, f"stopped at {stop}: {newest} of {returned} transitions"


def test_metadata_keeps_the_spec(tmp_path):
    RecordToBuffer(gym.make("CartPole-v1"), tmp_path).close()
    environment = json.loads((tmp_path / "metadata.json").read_text())["environment"]
    assert environment["env_spec"]["id"] == "CartPole-v1"
    assert set(environment) == {"observation_space", "action_space", "env_spec"}


def test_a_field_added_later_takes_its_default_in_what_is_recorded_after(tmp_path):
    env = RecordToBuffer(gym.make("CartPole-v1"), tmp_path)
    play(env, 2)
    env.close()
    with ReplayBuffer.from_folder(tmp_path) as buffer:
        buffer.add_field("advantage", Field("float", default=-1.0))
    env = RecordToBuffer(gym.make("CartPole-v1"), tmp_path)
    play(env, 1)
    env.close()
    assert [set(episode["advantage"].tolist()) for episode in env.buffer] == [{-1.0}] * 3


def test_an_unknown_option_names_the_one_that_was_meant(tmp_path):
    with pytest.raises(TypeError, match=r"'record_infos'.*'record_info'"):
        RecordToBuffer(gym.make("CartPole-v1"), tmp_path / "data", record_infos=True)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("at", [1, 2, 5])
def test_an_interrupt_while_it_is_closed_loses_no_episode(tmp_path, monkeypatch, at):
    """It comes at one of the writes of the commit."""
    env = RecordToBuffer(Scripted(9), tmp_path)
    env.reset()
    step_many(env, 3)
    write, count = os.pwrite, 0

    def interrupted(*arguments):
        nonlocal count
        count += 1
        if count == at:
            raise KeyboardInterrupt
        return write(*arguments)

    monkeypatch.setattr(os, "pwrite", interrupted)
    with pytest.raises(KeyboardInterrupt):
        env.close()
    with ReplayBuffer(tmp_path) as again:  # the folder was let go
        assert [(len(episode), episode.complete) for episode in again] == [(3, False)]
    assert check_buffer(tmp_path, progress=False).ok


def test_close_closes_the_environment_whatever_becomes_of_the_episode(tmp_path, monkeypatch):
    closed = []
    monkeypatch.setattr(Nested, "close", lambda self: closed.append(True))
    env = RecordToBuffer(Nested(), tmp_path)
    env.reset()
    env.step(env.action_space.sample())
    monkeypatch.setattr(env._session, "end", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        env.close()
    assert closed
    with ReplayBuffer.from_folder(tmp_path) as other:
        other.clear()  # the lock was let go


def step_many(env, count):
    for _ in range(count):
        env.step(0)


@pytest.mark.parametrize("steps", [1, 5000])
def test_a_buffer_that_is_released_gives_the_running_episode_up(tmp_path, steps):
    env = RecordToBuffer(Scripted(10_000), tmp_path)
    env.reset()
    step_many(env, 5)
    env.buffer.release()
    with ReplayBuffer(tmp_path) as other:
        rows = {name: np.zeros((3, *info.shape), info.dtype) for name, info in other.metadata.fields.items()}
        other.store_episode(**rows)
        with pytest.warns(UserWarning, match="is not recorded"):
            step_many(env, steps)
        env.reset()
        with pytest.raises(BufferLockedError):
            env.step(0)
        other.store_episode(**rows)
        assert [len(episode) for episode in other] == [3, 3]
    env.reset()
    env.step(0)
    env.close()
    assert [len(episode) for episode in env.buffer] == [3, 3, 1]
    assert check_buffer(tmp_path, progress=False).verified


def test_on_episode_may_release_the_buffer(tmp_path):
    releasing = Releasing()
    env = releasing.recorder = RecordToBuffer(Scripted(3), tmp_path, on_episode=releasing)
    env.reset()
    step_many(env, 3)
    assert len(env.buffer) == 0
    releasing.other.close()
    env.reset()
    step_many(env, 3)
    env.close()
    assert [len(episode) for episode in env.buffer] == [3]
    assert check_buffer(tmp_path, progress=False).verified
