"""Rows of open episodes: they grow, go to a file, and none is lost that is needed; a forked child leaves them alone."""

import os

import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st
from internals import small_sizes
from wrappers.scripted import Scripted

from gym_replay import BufferLockedError
from gym_replay.wrappers.vector import RecordToBuffer


@settings(max_examples=30)
@given(
    lengths=st.lists(st.integers(1, 90), min_size=1, max_size=4),
    steps=st.integers(0, 200),
    nbytes=st.sampled_from([1, 1 << 11, 1 << 30]),
)
def test_rows_that_are_needed_are_there(tmp_path_factory, lengths, steps, nbytes):
    with pytest.MonkeyPatch.context() as patch:
        small_sizes(patch, vector_staging_bytes=nbytes)
        envs = SyncVectorEnv([lambda own=own: Scripted(own) for own in lengths])
        envs = RecordToBuffer(envs, tmp_path_factory.mktemp("staging") / "buffer")
        envs.reset()
        for step in range(steps):
            envs.step(np.full(len(lengths), step % 3))
        envs.close()
    for episode in envs.buffer:
        assert len(episode) <= lengths[episode.meta["env_index"]]
        assert episode["observation"][:, 0].tolist() == list(range(len(episode) + 1))
        first = (episode["action"][0] + np.arange(len(episode))) % 3
        assert episode["action"].tolist() == first.tolist()
    for i, own in enumerate(lengths):  # each takes one step more, which resets it
        whole, rest = divmod(steps, own + 1)
        recorded = [len(episode) for episode in envs.buffer if episode.meta["env_index"] == i]
        assert recorded == [own] * whole + [rest] * (rest > 0)


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
    small_sizes(monkeypatch, vector_staging_bytes=1)
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
