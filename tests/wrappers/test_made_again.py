"""Where a recorded environment cannot be made again, recording says so once; where it needs an import, which one."""

import json
import logging
import subprocess
import sys

import gymnasium as gym
import pytest

from gym_replay import MakeEnvError, RecordToBuffer, ReplayBuffer, collect

MODULE = """
import gymnasium as gym
import numpy as np

class Maze(gym.Env):
    observation_space = gym.spaces.Box(0, 1, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action):
        return np.ones(2, np.float32), 1.0, True, False, {}

gym.register("Labyrinth-v0", entry_point=Maze)
"""

SCRIPT = (
    MODULE
    + """
import sys
from gym_replay import RecordToBuffer
with RecordToBuffer(gym.make("Labyrinth-v0"), sys.argv[1]) as env:
    env.reset(seed=0)
    env.step(0)
"""
)


@pytest.fixture
def said(caplog):
    caplog.set_level(logging.WARNING, "gym_replay")
    return lambda: caplog.messages


def play(env, folder):
    with RecordToBuffer(env, folder) as env:
        env.reset(seed=0)
        env.step(0)


def test_nothing_is_said_where_it_can_be_made(tmp_path, said):
    play(gym.make("CartPole-v1"), tmp_path / "a")
    play(gym.wrappers.TimeAwareObservation(gym.make("CartPole-v1")), tmp_path / "b")
    assert not said()


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: gym.make("CartPole-v1").unwrapped.__class__(), "it was not made by gymnasium.make; or register it"),
        (
            lambda: gym.wrappers.TransformReward(gym.make("CartPole-v1"), lambda reward: reward),
            "its wrapper TransformReward has kwargs.func, which cannot be kept; or put the recorder inside of it",
        ),
    ],
)
def test_what_cannot_be_made_again(tmp_path, said, make, why):
    play(make(), tmp_path)
    assert [why in message for message in said()] == [True]
    assert "replay will need env=..., since make_env cannot make the environment again: it" in said()[0]
    play(make(), tmp_path)
    assert sum("will need env=..." in message for message in said()) == 1


def test_a_class_of_a_script(tmp_path):
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path / "data")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "its entry point is Maze of this script, which others cannot import; or register it in" in done.stderr


def test_the_module_is_kept_and_imported_by_hand_only(tmp_path):
    (tmp_path / "labyrinths.py").write_text(MODULE)
    command = [sys.executable, "-m", "gym_replay"]
    given = ["labyrinths:Labyrinth-v0", "data", "--episodes", "2"]
    done = subprocess.run([*command, "record", *given], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    metadata = json.loads((tmp_path / "data" / "metadata.json").read_text())
    assert metadata["environment"]["env_spec"]["module"] == "labyrinths"
    done = subprocess.run([*command, "replay", "data"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert "--import labyrinths" in done.stderr
    named = [*command, "replay", "data", "--import", "labyrinths"]
    done = subprocess.run(named, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "2 equal" in done.stdout


def test_the_module_of_an_entry_point(tmp_path, monkeypatch):
    (tmp_path / "mazes_of_mine.py").write_text(MODULE.replace("Labyrinth-v0", "Corridor-v0"))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(gym.envs.registration, "registry", dict(gym.registry))
    import mazes_of_mine  # noqa: F401

    collect("Corridor-v0", tmp_path / "data", episodes=1, progress=False).close()
    gym.registry.pop("Corridor-v0", None)
    gym.envs.registration.registry.pop("Corridor-v0", None)
    with pytest.raises(MakeEnvError, match="import mazes_of_mine"):
        ReplayBuffer.from_folder(tmp_path / "data").make_env()
