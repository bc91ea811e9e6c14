"""Environments of dm_env and of the old gym, as shimmy makes environments of Gymnasium of them."""

import numpy as np
import pytest

pytest.importorskip("shimmy")

import shimmy

from gym_replay import RecordToBuffer, replay
from gym_replay.wrappers import vector

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


def played(env, folder, episodes=3, limit=1100):
    """Actions of an action space that was seeded; what was seen by hand is returned beside the buffer."""
    env = RecordToBuffer(env, folder)
    env.action_space.seed(0)
    seen = []
    for seed in range(episodes):
        observation, _ = env.reset(seed=seed)
        steps = [(observation, None, None, None)]
        for _ in range(limit):
            steps.append(env.step(env.action_space.sample())[:4])
            if any(steps[-1][2:]):
                break
        seen.append(steps)
    env.close()
    return env.buffer, seen


def assert_as_seen(buffer, seen):
    assert len(buffer) == len(seen)
    for episode, (first, *steps) in zip(buffer, seen, strict=True):
        for name in (name for name in buffer.fieldnames if name.startswith("observation")):
            keys = name.split(".")[1:]
            rows = [observation[keys[0]] if keys else observation for observation, *_ in (first, *steps)]
            np.testing.assert_array_equal(episode[name], rows)
        np.testing.assert_array_equal(episode["reward"], [reward for _, reward, *_ in steps])
        assert (episode["terminated"][-1], episode["truncated"][-1]) == steps[-1][2:]


def test_dm_control(tmp_path):
    suite = pytest.importorskip("dm_control.suite")

    def make():
        return shimmy.DmControlCompatibilityV0(suite.load("cartpole", "swingup", task_kwargs={"time_limit": 0.5}))

    buffer, seen = played(make(), tmp_path)
    assert_as_seen(buffer, seen)
    assert all(episode["truncated"][-1] and episode.has_final for episode in buffer)
    assert replay(buffer, 1, env=make()).equal


def test_bsuite(tmp_path):
    bsuite = pytest.importorskip("bsuite")
    from shimmy.bsuite_compatibility import BSuiteCompatibilityV0

    buffer, seen = played(BSuiteCompatibilityV0(bsuite.load_from_id("catch/0")), tmp_path)
    assert_as_seen(buffer, seen)
    assert all(episode["terminated"][-1] for episode in buffer)


def test_the_old_gym(tmp_path):
    old = pytest.importorskip("gym")
    made = old.make("CartPole-v1", disable_env_checker=True)
    buffer, seen = played(shimmy.GymV26CompatibilityV0(env=made), tmp_path / "a")
    assert_as_seen(buffer, seen)
    for recorder in (RecordToBuffer, vector.RecordToBuffer):
        with pytest.raises(TypeError, match=r"shimmy\.GymV26CompatibilityV0\(env=env\)"):
            recorder(made, tmp_path / "b")


def test_what_is_not_wrapped_names_what_to_wrap_it_in(tmp_path):
    dm_env = pytest.importorskip("dm_env")

    class Nothing(dm_env.Environment):
        reset = step = observation_spec = action_spec = None

    with pytest.raises(TypeError, match=r"shimmy\.DmControlCompatibilityV0\(env\)"):
        RecordToBuffer(Nothing(), tmp_path)
