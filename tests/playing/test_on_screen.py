"""`gym-replay play` on a real screen, with keys as the X server sends them. Run by .ci/play, which installs both."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

from gym_replay import RecordToBuffer, ReplayBuffer, check_buffer, timestep_loader
from gym_replay.cli import main

PICTURES = os.environ.get("GYM_REPLAY_SCREENSHOTS")
pytestmark = pytest.mark.skipif(
    not (os.environ.get("GYM_REPLAY_ON_SCREEN") and shutil.which("Xvfb") and shutil.which("xdotool")),
    reason="it is not asked for, or Xvfb or xdotool is not there",
)

POLICY = """
def left(observation):
    return 0


def fails(observation):
    if abs(observation[2]) > 0.1:
        raise RuntimeError("the policy is lost")
    return 0
"""


@pytest.fixture(scope="module")
def screen():
    """The name of a display of our own."""
    reading, writing = os.pipe()
    command = ["Xvfb", "-displayfd", str(writing), "-screen", "0", "1024x900x24"]
    server = subprocess.Popen(command, pass_fds=[writing], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    yield f":{os.read(reading, 10).decode().strip()}"
    server.terminate()
    server.wait()


class Player:
    """Somebody at the keyboard of a game that was started by the command."""

    def __init__(self, screen, folder, env, *options, stays=True):
        self.folder = folder
        (folder.parent / "my_policies.py").write_text(POLICY)
        root = Path(__file__).parents[2]
        self.environment = {**os.environ, "DISPLAY": screen, "PYTHONPATH": str(root), "SDL_VIDEODRIVER": "x11"}
        command = [sys.executable, "-W", "error::UserWarning", "-m", "gym_replay", "play", env, folder.name, *options]
        self.said = folder.with_name("said")
        with self.said.open("w") as stream:
            self.process = subprocess.Popen(command, env=self.environment, cwd=folder.parent, stderr=stream)
        if stays:  # long enough to be found
            self.window = self._window()
            self._do("windowfocus", "--sync", self.window)

    def _window(self):
        until = time.monotonic() + 90
        while time.monotonic() < until and self.process.poll() is None:
            found = self._do("search", "--onlyvisible", "--class", ".*", check=False)
            if len(windows := found.split()) > 1:  # the first is the screen itself
                return windows[-1]
            time.sleep(0.2)
        raise AssertionError(f"no window: {self.process.poll()}")

    def _do(self, *arguments, check=True):
        command = ["xdotool", *map(str, arguments)]
        return subprocess.run(command, env=self.environment, check=check, capture_output=True, text=True).stdout

    def tap(self, *keys):
        for key in keys:
            self._do("key", key)
            time.sleep(0.15)

    def hold(self, key, seconds):
        self._do("keydown", key)
        time.sleep(seconds)
        self._do("keyup", key)

    def picture(self, name):
        from PIL import ImageGrab

        picture = ImageGrab.grab(xdisplay=self.environment["DISPLAY"]).convert("RGB")
        picture = picture.crop(picture.getbbox())
        if PICTURES:
            Path(PICTURES).mkdir(parents=True, exist_ok=True)
            picture.save(Path(PICTURES) / f"{name}.png")
        return np.asarray(picture)

    def end(self):
        return self.process.wait(timeout=60), self.said.read_text()

    def episodes(self):
        with ReplayBuffer.from_folder(self.folder) as buffer:  # the folder is released
            buffer.acquire()
            assert check_buffer(self.folder, progress=False).ok
            rows = [{name: episode[name].copy() for name in episode} for episode in buffer]
            return rows, {name: buffer.meta[name] for name in buffer.meta}


def recorded_by_script(env_id, actions, seeds, folder, **kwargs):
    """The same actions in the same environment, recorded by nobody but the recorder."""
    env = RecordToBuffer(gym.make(env_id, render_mode="rgb_array", **kwargs), folder)
    for seed, chosen in zip(seeds, actions, strict=True):
        env.reset(seed=int(seed))
        for action in chosen:
            env.step(action)
    env.close()
    return env.buffer


def assert_as_by_script(player, env_id):
    episodes, meta = player.episodes()
    chosen = [episode["action"] for episode in episodes]
    other = recorded_by_script(env_id, chosen, meta["episode_seed"], player.folder.with_name("script"))
    assert len(other) == len(episodes)
    for ours, theirs in zip(episodes, other, strict=True):
        for name in theirs:
            np.testing.assert_array_equal(ours[name], theirs[name])
    assert other.meta["episode_complete"].tolist() == meta["episode_complete"].tolist()
    assert main(["replay", str(player.folder)]) == 0
    return episodes, meta


def test_cartpole_keep_discard_repeat_pause_and_quit(screen, tmp_path):
    player = Player(screen, tmp_path / "data", "CartPole-v1", "--seed", "5", "--fps", "6", "--player", "Ada")
    time.sleep(0.5)
    player.picture("cartpole-begin")
    player.hold("Right", 2.5)
    player.picture("cartpole-over")
    player.tap("Return")  # seed 5 is kept
    player.hold("Left", 2.5)
    player.tap("BackSpace")  # seed 6 is not
    player.hold("Left", 2.5)
    player.tap("r")  # seed 7 again
    player.hold("Right", 2.5)
    player.tap("Return")
    player.tap("Left", "p")
    time.sleep(0.5)
    first = player.picture("cartpole-paused")
    time.sleep(0.4)
    np.testing.assert_array_equal(first, player.picture("cartpole-paused"))
    player.tap("p")
    player.tap("Escape")  # seed 8, in the middle
    code, said = player.end()
    assert code == 0, said
    assert "3 episodes" in said
    episodes, meta = assert_as_by_script(player, "CartPole-v1")
    assert meta["episode_seed"].tolist() == [5, 7, 8]
    assert meta["episode_complete"].tolist() == [True, True, False]
    assert meta["player"] == ["Ada"] * 3
    assert (episodes[0]["action"] == 1).all()


def test_mountain_car_with_a_ramp(screen, tmp_path):
    player = Player(screen, tmp_path / "data", "MountainCarContinuous-v0", "--ramp", "0.5")
    player.hold("Right", 1.0)
    player.picture("mountain-car")
    player.hold("Left", 1.0)
    player.tap("Return")
    player.process.terminate()  # SDL tells of it as of a window that is closed
    code, said = player.end()
    assert code == 0, said
    episodes, _ = assert_as_by_script(player, "MountainCarContinuous-v0")
    pushes = episodes[0]["action"][:, 0]
    assert pushes.max() > 0 > pushes.min()
    np.testing.assert_allclose(np.abs(np.diff(pushes)).max(), 1 / 15, rtol=1e-5)  # 30 steps a second, half a second


def test_breakout(screen, tmp_path):
    player = Player(screen, tmp_path / "data", "ALE/Breakout-v5", "--import", "ale_py", "--codec", "zstd")
    player.tap("space")
    player.hold("d", 0.5)
    player.hold("Left", 0.5)  # as good as a
    player.picture("breakout")
    player.tap("Escape")
    code, said = player.end()
    assert code == 0, said
    import ale_py

    gym.register_envs(ale_py)
    episodes, meta = assert_as_by_script(player, "ALE/Breakout-v5")
    assert set(episodes[0]["action"].tolist()) == {0, 1, 2, 3}
    assert meta["episode_complete"].tolist() == [False]


def test_minigrid_with_its_own_keys(screen, tmp_path):
    player = Player(screen, tmp_path / "data", "MiniGrid-DoorKey-6x6-v0", "--import", "minigrid", "--seed", "0")
    player.tap("Left", "Up", "Page_Up", "space", "Page_Down", "Tab", "shift", "Right")
    player.picture("minigrid")
    player.tap("k")
    player.tap("Up", "Escape")
    code, said = player.end()
    assert code == 0, said
    import minigrid  # noqa: F401

    with ReplayBuffer.from_folder(player.folder, read_only=True) as buffer:
        assert [episode["action"].tolist() for episode in buffer] == [[0, 2, 3, 5, 4, 3, 4, 1], [2]]
        assert main(["replay", str(player.folder)]) == 0


def test_a_policy_that_is_taken_over_and_given_back(screen, tmp_path):
    options = ["--policy", "my_policies:left", "--max-episode-steps", "100000"]
    player = Player(screen, tmp_path / "data", "MountainCar-v0", *options)
    player.picture("policy-plays")
    time.sleep(0.3)
    player._do("keydown", "Right")
    time.sleep(0.3)
    player.picture("policy-taken-over")
    player._do("keyup", "Right")
    time.sleep(0.3)
    player.tap("Tab")
    time.sleep(0.3)
    player.picture("policy-taken-over-for-good")
    player.tap("Tab")
    time.sleep(0.3)
    player.tap("Escape")
    code, said = player.end()
    assert code == 0, said
    episodes, _ = player.episodes()
    acted, actions = episodes[0]["is_intervention"], episodes[0]["action"]
    changes = np.flatnonzero(np.diff(acted.astype(int))) + 1
    assert [bool(acted[0]), *(bool(acted[at]) for at in changes)] == [False, True, False, True, False]
    parts = np.split(actions, changes)
    assert [set(part.tolist()) for part in parts] == [{0}, {2}, {0}, {1}, {0}]
    assert (episodes[0]["policy_action"] == 0).all()
    with ReplayBuffer.from_folder(player.folder, read_only=True) as buffer:
        batch = next(iter(timestep_loader(buffer, 10_000, filter_fields={"is_intervention": True})))
        assert batch["action"].tolist() == actions[acted].tolist()


def test_ctrl_c_in_the_terminal(screen, tmp_path):
    player = Player(screen, tmp_path / "data", "CartPole-v1", "--no-ask")
    player.hold("Right", 2.5)
    player.process.send_signal(signal.SIGINT)
    code, said = player.end()
    assert code == 130, said
    episodes, meta = player.episodes()
    assert len(episodes) >= 2
    assert all(meta["episode_complete"][:-1])
    assert f"{len(episodes)} episodes" in said


def test_a_policy_that_raises(screen, tmp_path):
    player = Player(screen, tmp_path / "data", "CartPole-v1", "--policy", "my_policies:fails", stays=False)
    code, said = player.end()
    assert code == 2
    assert "the policy is lost" in said
    assert "1 episodes" in said
    _, meta = player.episodes()
    assert meta["episode_complete"].tolist() == [False]


def test_no_display(tmp_path):
    command = [sys.executable, "-m", "gym_replay", "play", "CartPole-v1", str(tmp_path / "data")]
    environment = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "WAYLAND_DISPLAY")}
    done = subprocess.run(command, env={**environment, "SDL_VIDEODRIVER": "x11"}, capture_output=True, text=True)
    assert done.returncode == 2
    assert "no display" in done.stderr
    assert not (tmp_path / "data").exists()
