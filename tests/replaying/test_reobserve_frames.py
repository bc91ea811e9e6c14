"""States to frames: equal to those that recording with frames at once had given, in environments of many packages."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

TESTS = Path(__file__).parents[1]

COMPARE = """
import sys
import warnings

warnings.simplefilter("ignore")
import gymnasium as gym
import numpy as np
from gymnasium.wrappers import AddRenderObservation

from gym_replay import collect, reobserve

def frames_at_once(name, kwargs):
    return lambda: AddRenderObservation(gym.make(name, render_mode="rgb_array", **kwargs), render_only=True)

def compare(folder, name, package, num_workers, kwargs):
    gym.register_envs(__import__(package))
    options = {"episodes": 2, "max_episode_steps": 6, "progress": False}
    states = collect(name, f"{folder}/states", **options)
    at_once = collect(frames_at_once(name, kwargs), f"{folder}/at once", **options)
    options = {"frames": "only", "env_kwargs": kwargs, "codecs": {"images": "zstd"}, "progress": False}
    found = reobserve(states, f"{folder}/found", num_workers=num_workers, **options)
    assert not found.left_out, (name, found.left_out)
    assert not found.restored, (name, found.restored)
    assert len(found.buffer) == 2
    for mine, theirs, source in zip(found.buffer, at_once, states):
        assert np.array_equal(mine["observation"], theirs["observation"]), name
        assert np.asarray(mine["observation"]).std() > 0, name
        for field in ("action", "reward", "terminated", "truncated"):
            assert np.array_equal(mine[field], source[field]), name

for number, case in enumerate(eval(sys.argv[2])):
    compare(f"{sys.argv[1]}/{number}", *case)
print("equal")
"""

RESTORE = """
import sys
import warnings

warnings.simplefilter("ignore")
import gymnasium as gym
import gymnasium_robotics
import numpy as np

from gym_replay import RecordToBuffer, reobserve
from gym_replay.wrappers import SimulatorState, restore_mujoco

gym.register_envs(gymnasium_robotics)
folder, small = sys.argv[1], {"width": 48, "height": 48}
env = RecordToBuffer(SimulatorState(gym.make("FetchPickAndPlace-v4", max_episode_steps=6)), folder + "/with",
                     record_info=["simulator"])
plain = RecordToBuffer(gym.make("FetchPickAndPlace-v4", max_episode_steps=6), folder + "/without")
for each in (env, plain):
    each.action_space.seed(1)
    for seed in range(2):
        each.reset(seed=seed)
        while not any(each.step(each.action_space.sample())[2:4]):
            pass
    each.close()
frames = []
for source in ("with", "without"):  # rendering changes what the environment does next, so neither can be executed so
    options = {"frames": "only", "env_kwargs": small, "progress": False}
    found = reobserve(folder + "/" + source, folder + "/frames " + source, **options)
    assert found.restored == (0, 1) and not found.left_out, found
    frames.append([np.asarray(episode["observation"]) for episode in found.buffer])
assert all(np.array_equal(one, other) for one, other in zip(*frames, strict=True))
bare = gym.make("FetchPickAndPlace-v4", render_mode="rgb_array", **small)
for index, shown in enumerate(frames[0]):
    bare.reset(seed=index)
    episode = env.buffer[index]
    for t in (0, 3, len(episode)):
        name = "info.simulator."
        restore_mujoco(bare, {each[len(name):]: episode[each][t] for each in episode if each.startswith(name)})
        assert np.array_equal(bare.render(), shown[t])
bare.close()
print("equal")
"""

SMALL = {"width": 48, "height": 48, "camera_name": "track"}


def run(script, *arguments):
    environment = {"MUJOCO_GL": "egl", "PYTHONPATH": str(TESTS.parent), **os.environ}
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=500,
    )


def require_equal(done):
    """The child said that frames are equal; where there is no way to render off screen, the test is skipped."""
    if done.returncode and any(word in done.stderr for word in ("EGL", "OpenGL", "GLContext", "libGL")):
        pytest.skip(f"nothing renders MuJoCo here: {done.stderr.splitlines()[-1]}")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split()[-1] == "equal"


CASES = {
    "in two processes": [("HalfCheetah-v5", "mujoco", 2, SMALL)],
    "in one": [
        ("LunarLander-v3", "Box2D", 1, {}),
        ("ALE/Pong-v5", "ale_py", 1, {}),
        ("MiniGrid-DoorKey-5x5-v0", "minigrid", 1, {}),
        ("CartPole-v1", "pygame", 1, {}),
    ],
}


@pytest.mark.parametrize("cases", CASES.values(), ids=CASES)
def test_frames_are_those_of_recording_with_them_at_once(tmp_path, cases):
    there = [case for case in cases if find_spec(case[1])]
    if not there:
        pytest.skip("none of the packages is installed")
    require_equal(run(COMPARE, tmp_path, there))


def test_what_rendering_would_change_is_restored_state_by_state(tmp_path):
    pytest.importorskip("gymnasium_robotics")
    require_equal(run(RESTORE, tmp_path))


def test_frames_beside_the_states(tmp_path):
    pytest.importorskip("pygame")
    from gym_replay import collect, reobserve

    states = collect("CartPole-v1", tmp_path / "a", episodes=2, progress=False)
    found = reobserve(states, tmp_path / "b", frames="beside", codecs={"images": "zstd"}, progress=False)
    for mine, theirs in zip(found.buffer, states, strict=True):
        assert np.array_equal(mine["observation.state"], theirs["observation"])
        assert mine["observation.pixels"].shape == (len(theirs) + 1, 400, 600, 3)
