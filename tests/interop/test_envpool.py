"""Pools of EnvPool, against pools of one environment each and against what they returned."""

import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

import gym_replay
from gym_replay import FieldError, check_buffer
from gym_replay.wrappers.vector import RecordToBuffer

envpool = pytest.importorskip("envpool")
pytestmark = pytest.mark.filterwarnings("ignore:.*precision lowered:UserWarning")

COUNT = 3


def make(task="CartPole-v1", num_envs=COUNT, seed=5, **options):
    return envpool.make_gymnasium(task, num_envs=num_envs, seed=seed, num_threads=1, **options)


def actions_of(envs, steps, seed=0):
    """Actions of all sub-environments at all times, by sub-environment the same whatever their number."""
    space, found = envs.action_space, []
    for i in range(COUNT):
        space.seed(seed + i)
        found.append([space.sample() for _ in range(steps)])
    return np.array(found).swapaxes(0, 1)


def by_env(buffer):
    assert check_buffer(buffer.folder, progress=False).ok
    found = {}
    for episode in buffer:
        found.setdefault(int(episode.meta["env_index"]), []).append(episode)
    return found


@pytest.mark.parametrize(
    ("task", "options"),
    [
        ("CartPole-v1", {"max_episode_steps": 15}),
        ("CartPole-v1", {"max_episode_steps": 1}),
        ("Pendulum-v1", {"max_episode_steps": 7}),
        ("Catch-v0", {}),
    ],
)
def test_a_pool_is_as_many_pools_of_one(tmp_path, task, options):
    envs = RecordToBuffer(make(task, **options), tmp_path / "all", record_info=["elapsed_step"])
    given = actions_of(envs, 60)
    envs.reset()
    for actions in given:
        envs.step(actions)
    envs.close()
    found = by_env(envs.buffer)
    for i in range(COUNT):
        single = RecordToBuffer(make(task, 1, 5 + i, **options), tmp_path / str(i), record_info=["elapsed_step"])
        single.reset()
        for actions in given:
            single.step(actions[i : i + 1])
        single.close()
        assert len(found[i]) == len(single.buffer) > 1
        for one, other in zip(found[i], single.buffer, strict=True):
            assert (len(one), one.complete, one.has_final) == (len(other), other.complete, True)
            assert one.meta["episode_seed"] == other.meta["episode_seed"]
            assert one["info.elapsed_step"].tolist() == list(range(len(one) + 1))
            for name in one:
                assert one[name].tobytes() == other[name].tobytes(), name
        assert [int(episode.meta["episode_seed"]) for episode in found[i][:2]] == [5 + i, -1]


def test_what_is_recorded_is_what_the_pool_returned(tmp_path):
    plain = make(max_episode_steps=15)
    envs = RecordToBuffer(make(max_episode_steps=15), tmp_path)
    before, waiting = plain.reset()[0], np.zeros(COUNT, bool)
    assert (envs.reset()[0] == before).all()
    expected, rows = [], [[] for _ in range(COUNT)]
    for actions in actions_of(plain, 80):
        after, rewards, terminated, truncated, _ = plain.step(actions)
        result = envs.step(actions)
        assert (result[0] == after).all()
        for i in np.flatnonzero(~waiting).tolist():
            rows[i].append((before[i].tolist(), int(actions[i]), float(rewards[i]), terminated[i], truncated[i]))
            if terminated[i] or truncated[i]:
                expected.append((i, rows[i], after[i].tolist()))
                rows[i] = []
        before, waiting = after, terminated | truncated
    assert len(envs.buffer) == len(expected) > 10
    for episode, (i, steps, last) in zip(envs.buffer, expected, strict=True):
        observations, *others = zip(*steps, strict=True)
        assert episode.meta["env_index"] == i
        assert episode["observation"].tolist() == [*observations, last]
        for name, values in zip(("action", "reward", "terminated", "truncated"), others, strict=True):
            assert episode[name].tolist() == list(values)
    envs.close()
    plain.close()


def test_partial_resets(tmp_path):
    envs = RecordToBuffer(make(), tmp_path)
    envs.reset()
    for actions in actions_of(envs, 3):
        envs.step(actions)
    first = envs.reset(options={"reset_mask": np.array([True, False, True])})[0]
    second = envs.reset(np.array([1]))[0]
    for actions in actions_of(envs, 2):
        envs.step(actions)
    envs.close()
    found = by_env(envs.buffer)
    assert [[len(episode) for episode in found[i]] for i in range(COUNT)] == [[3, 2]] * COUNT
    begins = [found[i][1]["observation"][0].tolist() for i in range(COUNT)]
    assert begins == [first[0].tolist(), second[0].tolist(), first[1].tolist()]


def test_it_stays_a_pool(tmp_path):
    inner = make()
    envs = RecordToBuffer(inner, tmp_path)
    assert isinstance(envs, gym.Env)
    assert isinstance(envs, gym.vector.VectorEnv)
    assert envs.spec.config.num_envs == envs.config["num_envs"] == envs.num_envs == COUNT
    assert (envs.all_env_ids == inner.all_env_ids).all()
    assert envs.single_action_space == envs.action_space == inner.action_space
    assert envs.unwrapped is inner
    counted = gym.wrappers.vector.RecordEpisodeStatistics(envs)
    counted.reset()
    counted.step(np.zeros(COUNT, int))
    for name in ("send", "recv", "async_reset"):
        with pytest.raises(AttributeError, match="goes past the recorder"):
            getattr(envs, name)
    counted.close()


def test_what_has_no_row_of_each_sub_environment_is_refused(tmp_path):
    with pytest.raises(FieldError, match="batch_size=2 of 3"):
        RecordToBuffer(make(batch_size=2), tmp_path / "no")
    with pytest.raises(TypeError, match=r"gym_replay\.wrappers\.vector\.RecordToBuffer"):
        gym_replay.RecordToBuffer(make(), tmp_path / "no")
    with pytest.raises(TypeError, match="make_gymnasium"):
        RecordToBuffer(envpool.make_dm("CartPole-v1", num_envs=2), tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_wrapped_pools(tmp_path):
    inner = gym.wrappers.vector.RecordEpisodeStatistics(make(max_episode_steps=6))
    envs = RecordToBuffer(inner, tmp_path, record_info=["episode.l"])
    assert not isinstance(envs, gym.Env)
    envs.reset()
    for actions in actions_of(envs, 40):
        envs.step(actions)
    envs.close()
    for episode in envs.buffer:
        if episode.complete:
            assert episode["info.episode.l"][-1] == len(episode)


def test_the_example(tmp_path):
    script = Path(__file__).parents[2] / "examples" / "record_envpool.py"
    command = [sys.executable, str(script), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "environment 7: " in done.stdout
    assert "'observation': (256, 4)" in done.stdout
