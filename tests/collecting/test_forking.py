"""A process that has rendered with OpenGL forks children whose frames are black: none is recorded there."""

import multiprocessing
import os
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest

from gym_replay import FieldError, collect

TESTS = Path(__file__).parents[1]
FORKS = multiprocessing.get_context().get_start_method() == "fork"

SCRIPT = """
import multiprocessing
import sys
import gymnasium as gym
import numpy as np
from gym_replay import FieldError, collect, evaluate

KWARGS = {"render_mode": "rgb_array", "width": 32, "height": 32, "camera_id": 0}

class Frames(gym.ObservationWrapper):
    observation_space = gym.spaces.Box(0, 255, (32, 32, 3), np.uint8)
    def observation(self, observation):
        return self.render()

def make():
    return Frames(gym.make("HalfCheetah-v5", **KWARGS))

def gather(name, vectorization):
    folder = f"{sys.argv[1]}/{name}"
    options = {"vectorization": vectorization, "max_episode_steps": 3, "progress": False}
    return collect(make, folder, episodes=2, num_envs=2, **options)

def frames(buffer):
    episodes = sorted(buffer, key=lambda episode: episode.meta["collect_index"])
    return np.concatenate([episode["observation"][:] for episode in episodes])

def evaluated():
    evaluate(lambda _: np.zeros(6), make, episodes=2, num_envs=2, vectorization="async", batched=False, progress=False)

def refused(doing):
    try:
        doing()
    except FieldError as error:
        return "black" in str(error) and "'sync'" in str(error)

if __name__ == "__main__":
    fresh = frames(gather("fresh", "async"))
    here = frames(gather("here", "sync"))  # renders in this process
    assert refused(lambda: gather("forked", "async")) and refused(evaluated)
    multiprocessing.set_start_method("spawn", force=True)
    spawned = frames(gather("spawned", "async"))
    assert here.any() and np.array_equal(fresh, here) and np.array_equal(spawned, here)
"""


@contextmanager
def thread_called(name: str):
    """A thread with the name that a graphics driver gives to those of its own."""
    ended = threading.Event()
    thread = threading.Thread(target=ended.wait)
    thread.start()
    try:
        Path(f"/proc/self/task/{thread.native_id}/comm").write_text(name)
        yield
    finally:
        ended.set()
        thread.join()


def gather(folder, render_mode, vectorization="async"):
    return collect(
        "CartPole-v1",
        folder,
        episodes=2,
        num_envs=2,
        vectorization=vectorization,
        max_episode_steps=5,
        env_kwargs={"render_mode": render_mode},
        progress=False,
    )


@pytest.mark.skipif(not FORKS, reason="processes are not forked here")
@pytest.mark.parametrize("name", ["llvmpipe-0", "python:gdrv0"])
def test_environments_that_render_are_not_forked_beside_a_driver(tmp_path, name):
    with thread_called(name):
        with pytest.raises(FieldError, match=r"render_mode='rgb_array': this process has rendered.*'sync'"):
            gather(tmp_path / "a", "rgb_array")
        assert not (tmp_path / "a").exists()
        assert len(gather(tmp_path / "b", None)) == len(gather(tmp_path / "c", "rgb_array", "sync")) == 2


@pytest.mark.skipif(not FORKS, reason="processes are not forked here")
def test_frames_of_mujoco_are_never_black(tmp_path):
    pytest.importorskip("mujoco")
    environment = {"MUJOCO_GL": "egl", "PYTHONPATH": str(TESTS.parent), **os.environ}
    probe = "import mujoco; mujoco.GLContext(8, 8).make_current()"
    if subprocess.run([sys.executable, "-c", probe], env=environment, capture_output=True, check=False).returncode:
        pytest.skip("no graphics without a screen here")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", str(script), str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr
