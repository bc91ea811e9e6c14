"""What the command shows on 80 columns of nested fields and of text."""

import gymnasium as gym
import numpy as np
import pytest

from gym_replay import RecordToBuffer
from gym_replay.cli import main


class Nested(gym.Env):
    observation_space = gym.spaces.Dict(
        camera=gym.spaces.Box(0, 255, (8, 8, 3), np.uint8),
        said=gym.spaces.Text(20),
        where=gym.spaces.Dict(p=gym.spaces.Box(-1, 1, (3,), np.float32)),
    )
    action_space = gym.spaces.Discrete(3)

    def look(self):
        camera, where = np.full((8, 8, 3), 7, np.uint8), np.array([0.5, -0.25, 1], np.float32)
        return {"camera": camera, "said": "go left", "where": {"p": where}}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.look(), {}

    def step(self, action):
        return self.look(), 1.0, False, False, {}


@pytest.fixture
def shown(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with RecordToBuffer(Nested(), tmp_path) as env:
        env.reset(seed=0)
        env.step(1)

    def show(verb):
        assert main([verb, str(tmp_path)]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert max(map(len, lines[1:])) <= 80
        return lines

    return show


def test_head(shown):
    lines = [line.strip() for line in shown("head")]
    assert lines[0] == "episode 0, step 0"
    assert "observation.said     “go left”" in lines
    assert "observation.where.p  [0.5 -0.25 1]" in lines
    assert any(line.startswith("observation.camera") and line.endswith("8x8x3") for line in lines)


def test_info(shown):
    words = [" ".join(line.split()) for line in shown("info")]
    assert any(line.startswith("observation.camera uint8 (8, 8, 3) state") for line in words)
    assert any(line.startswith("observation.said any number of uint8 state") for line in words)
    assert any(line.startswith("action int64 step") for line in words)
    assert any(line.startswith("episode_rng uint64 (5,) meta") for line in words)
    assert not any(" took " in line for line in words)
