"""Vector recording with Gymnasium 1.0, which d3rlpy pins: it resets in the next step, and has no name for that.

Everything else of that version is covered by the tests of the single recorder, run with it: see docs/interop.md.
"""

import warnings

import gymnasium as gym
import numpy as np
import pytest

from gym_replay import RecordToBuffer, ReplayBuffer, replay
from gym_replay.wrappers import vector

pytestmark = pytest.mark.skipif(hasattr(gym.vector, "AutoresetMode"), reason="this Gymnasium names its modes")


@pytest.mark.parametrize("kind", ["SyncVectorEnv", "AsyncVectorEnv"])
def test_a_vector_of_environments_records_what_they_record_alone(tmp_path, kind):
    make = [lambda: gym.make("CartPole-v1", max_episode_steps=15)] * 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        envs = vector.RecordToBuffer(getattr(gym.vector, kind)(make), tmp_path / "vector")
    envs.reset(seed=7)
    actions = np.random.default_rng(0).integers(0, 2, (60, 3))
    for row in actions:
        envs.step(row)
    envs.close()
    for number in range(3):
        env = RecordToBuffer(make[0](), tmp_path / f"{number}")
        env.reset(seed=7 + number)
        done = False
        for action in actions[:, number]:
            if done:
                env.reset()
                done = False
            else:
                done = any(env.step(action)[2:4])
        env.close()
    both = ReplayBuffer.from_folder(tmp_path / "vector", read_only=True)
    for number in range(3):
        alone = list(ReplayBuffer.from_folder(tmp_path / f"{number}", read_only=True))
        together = [episode for episode in both if episode.meta["env_index"] == number]
        assert len(alone) == len(together) >= 3
        for one, other in zip(alone, together, strict=True):
            assert (one.complete, one.has_final) == (other.complete, other.has_final)
            for name in both.fieldnames:
                np.testing.assert_array_equal(one[name], other[name])
    assert all(replay(both, index).status != "differs" for index in range(len(both)))
