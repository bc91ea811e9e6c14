"""The package as a whole: what it exports, what importing it loads, and who imports whom."""

import subprocess
import sys
from pathlib import Path

import pytest

import gym_replay

ROOT = Path(gym_replay.__file__).parent


def test_all_is_what_is_importable():
    for name in gym_replay.__all__:
        assert getattr(gym_replay, name).__name__ == name
    public = {name for name in dir(gym_replay) if not name.startswith("_")}
    modules = {name for name in public if isinstance(getattr(gym_replay, name), type(sys))}
    assert public - modules - {"annotations", "TYPE_CHECKING", "Any"} == set(gym_replay.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nonsense"):
        gym_replay.nonsense  # noqa: B018


def test_importing_stays_light_and_so_does_recording(tmp_path):
    script = f"""
import sys

def absent(*names):
    assert not [name for name in names if name in sys.modules], names

import gym_replay
from gym_replay import merge, select, split_into
from gym_replay import from_d4rl, from_memmap_replay_buffer
absent("torch", "gymnasium")
from gym_replay import RecordToBuffer, collect, export_minari, import_minari
absent("torch", "ray", "minari", "h5py", "pyarrow")
import gymnasium as gym
env = RecordToBuffer(gym.make("CartPole-v1"), {str(tmp_path / "data")!r})
env.reset(seed=0)
while not any(env.step(0)[2:4]): pass
env.close()
assert len(env.buffer) == 1
absent("torch")
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_opening_and_loading_do_not_import_what_they_do_not_need(tmp_path):
    with gym_replay.ReplayBuffer(tmp_path, fields={"observation": ("float", 2), "action": ("int", (), 1)}) as buffer:
        buffer.store_episode(observation=[[1.0, 2.0]], action=[3])
    script = f"""
import sys, torch
from gym_replay import ReplayBuffer
buffer = ReplayBuffer.from_folder({str(tmp_path)!r}, read_only=True)
batch = next(iter(buffer.dataloader(1, timestep_level=True)))
assert batch["action"].item() == 3 and "numpy.ma" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True)
