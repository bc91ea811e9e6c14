"""Rows of open episodes: what is taken out of them is nobody else's, and a forked child leaves them alone."""

import os

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from wrappers.scripted import Scripted

from gym_replay import BufferLockedError
from gym_replay.wrappers.vector import RecordToBuffer, staging


class Blind(Scripted):
    """Observes nothing; its reward is the action."""

    observation_space = spaces.Dict({})
    action_space = spaces.Discrete(100)

    def _observation(self):
        return {}

    def step(self, action):
        observation, _, *others = super().step(action)
        return observation, float(action), *others


def test_blocks_of_one_row(tmp_path):
    envs = SyncVectorEnv([lambda: Blind(1)] * 8, autoreset_mode=AutoresetMode.SAME_STEP)
    envs = RecordToBuffer(envs, tmp_path, max_episodes=8, circular=True)
    envs.reset()
    envs.step(np.arange(8) + 10)
    envs.close()
    assert [episode["action"].tolist() for episode in envs.buffer] == [[10 + i] for i in range(8)]
    assert [episode["reward"].tolist() for episode in envs.buffer] == [[10.0 + i] for i in range(8)]


def test_a_forked_child_leaves_the_rows_in_the_file_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(staging, "STAGING_BYTES", 1)
    envs = RecordToBuffer(SyncVectorEnv([lambda: Scripted(400)] * 2), tmp_path)
    envs.reset()
    for _ in range(60):
        envs.step(np.zeros(2, int))
    begin, began = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.read(begin, 1)
            for _ in range(100):
                envs.step(np.full(2, 2))
        except BufferLockedError:
            os._exit(7)
        finally:
            os._exit(1)
    for _ in range(100):
        envs.step(np.zeros(2, int))
    os.write(began, b".")
    _, status = os.waitpid(child, 0)
    for end in (begin, began):
        os.close(end)
    assert os.waitstatus_to_exitcode(status) == 7
    envs.close()
    for episode in envs.buffer:
        assert episode["observation"][:, 0].tolist() == list(range(161))
        assert not episode["action"].any()
