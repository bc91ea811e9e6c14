"""Recorders whose fields are stored encoded, next to those that store the same raw."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from internals import small_sizes

from gym_replay import (
    ConfigMismatchError,
    Field,
    FieldError,
    RecordToBuffer,
    ReplayBuffer,
    check_buffer,
    n_step_loader,
    replay,
)
from gym_replay.wrappers import vector

pytest.importorskip("numcodecs")

ROOT = Path(__file__).parents[2]
ZSTD = {"id": "zstd", "level": 1}


class Cameras(gym.Env):
    """Episodes of 5 to 12 steps; a picture that changes in few pixels, a mask, and a vector."""

    observation_space = spaces.Dict(
        {
            "camera": spaces.Dict({"rgb": spaces.Box(0, 255, (12, 10, 3), np.uint8)}),
            "mask": spaces.Box(0, 255, (6, 6), np.uint8),
            "speed": spaces.Box(-1, 1, (3,), np.float32),
        }
    )
    action_space = spaces.Discrete(3)

    def _observation(self):
        self.rgb[self.np_random.integers(12), :4] = self.np_random.integers(0, 256, (4, 3), np.uint8)
        mask = np.full((6, 6), self.t % 3, np.uint8)  # at times the default
        return {"camera": {"rgb": self.rgb}, "mask": mask, "speed": self.np_random.random(3, np.float32)}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.length = 0, int(self.np_random.integers(5, 13))
        self.rgb = np.zeros((12, 10, 3), np.uint8)  # overwritten in place by each step
        return self._observation(), {}

    def step(self, action):
        self.t += 1
        return self._observation(), float(action), self.t == self.length, False, {}


class Frames(gym.ObservationWrapper):
    """The picture alone."""

    def __init__(self, env=None, high=255):
        super().__init__(env or Cameras())
        self.observation_space = spaces.Box(0, high, (12, 10, 3), np.uint8)

    def observation(self, observation):
        return observation["camera"]["rgb"]


def play(env, episodes, cut=False):
    """Whole episodes; with ``cut`` a part of another one."""
    env.action_space.seed(0)
    for seed in range(episodes):
        env.reset(seed=seed)
        while not any(env.step(env.action_space.sample())[2:4]):
            pass
    if cut:
        env.reset(seed=episodes)
        env.step(1)
    env.close()
    return env.buffer


def play_vector(make, num_envs, steps, folder, **options):
    envs = gym.vector.SyncVectorEnv([make] * num_envs)
    env = vector.RecordToBuffer(envs, folder, **options)
    env.action_space.seed(0)
    env.reset(seed=0)
    for _ in range(steps):
        env.step(env.action_space.sample())
    env.close()
    return env.buffer


def step_often(env):
    env.reset(seed=0)
    for _ in range(30):
        env.step(env.action_space.sample() * 0)
    env.close()


def same(one, other):
    """Whether two buffers hold the same episodes, bit for bit."""
    assert len(one) == len(other) > 0
    for mine, theirs in zip(one, other, strict=True):
        for name in mine:
            np.testing.assert_array_equal(np.asarray(mine[name]), np.asarray(theirs[name]), name)
        for name in ("episode_seed", "episode_return", "episode_complete"):
            np.testing.assert_array_equal(mine.meta[name], theirs.meta[name])
    return True


def codecs_of(buffer):
    return {name: info.codec["id"] for name, info in buffer.metadata.fields.items() if info.codec is not None}


def sound(buffer):
    report = check_buffer(buffer.folder)
    return report.ok and report.verified


@pytest.mark.parametrize("options", [{}, {"circular": True, "max_steps": 40}, {"on_incomplete": "discard"}])
def test_a_single_recorder(tmp_path, options):
    raw = play(RecordToBuffer(Cameras(), tmp_path / "raw", **options), 6, cut=True)
    encoded = play(RecordToBuffer(Cameras(), tmp_path / "zstd", codecs={"images": "zstd"}, **options), 6, cut=True)
    assert codecs_of(encoded) == {"observation.camera.rgb": "zstd", "observation.mask": "zstd"}
    assert same(raw, encoded)
    assert sound(encoded)


@pytest.mark.parametrize("options", [{}, {"circular": True, "max_steps": 60}, {"on_incomplete": "discard"}])
@pytest.mark.parametrize("staging", [1 << 28, 1 << 10])
def test_a_vector_recorder(tmp_path, monkeypatch, options, staging):
    small_sizes(monkeypatch, vector_staging_bytes=staging)
    raw = play_vector(Cameras, 3, 40, tmp_path / "raw", **options)
    encoded = play_vector(Cameras, 3, 40, tmp_path / "zstd", codecs={"images": "lz4"}, **options)
    assert codecs_of(encoded) == {"observation.camera.rgb": "lz4", "observation.mask": "lz4"}
    assert same(raw, encoded)
    assert sound(encoded)


def test_long_episodes_are_written_early(tmp_path, monkeypatch):
    small_sizes(monkeypatch, chunk_rows=3)
    raw = play(RecordToBuffer(Cameras(), tmp_path / "raw"), 4)
    encoded = play(RecordToBuffer(Cameras(), tmp_path / "zstd", codecs={"observation": "zstd"}), 4)
    assert same(raw, encoded)
    assert sound(encoded)


def test_a_field_by_its_name(tmp_path):
    codecs = {"observation.speed": "zstd", "observation.camera": {"id": "zstd", "level": 5}}
    encoded = play(RecordToBuffer(Cameras(), tmp_path / "zstd", codecs=codecs), 2)
    assert codecs_of(encoded) == {"observation.camera.rgb": "zstd", "observation.speed": "zstd"}
    assert encoded.metadata.fields["observation.camera.rgb"].codec["level"] == 5
    assert same(play(RecordToBuffer(Cameras(), tmp_path / "raw"), 2), encoded)


@pytest.mark.parametrize("recorder", [RecordToBuffer, vector.RecordToBuffer])
def test_a_wrong_name_names_the_nearest_and_makes_no_folder(tmp_path, recorder):
    env = Cameras() if recorder is RecordToBuffer else gym.vector.SyncVectorEnv([Cameras])
    with pytest.raises(FieldError, match=r"'observation.camera.rbg'.*did you mean 'observation.camera.rgb'"):
        recorder(env, tmp_path / "data", codecs={"observation.camera.rbg": "zstd"})
    with pytest.raises(FieldError, match="'images': codec 'zzz'"):
        recorder(env, tmp_path / "data", codecs={"images": "zzz"})
    with pytest.raises(FieldError, match=r"is an info.*dtypes="):
        recorder(env, tmp_path / "data", codecs={"info.x": "zstd"})
    assert not (tmp_path / "data").exists()


def test_a_recording_goes_on_with_its_codecs(tmp_path):
    options = {"extra_fields": {"view": Field("uint8", (5, 5))}}
    play(RecordToBuffer(Cameras(), tmp_path, codecs={"images": "zstd"}, **options), 2)
    for codecs in (None, {"images": "zstd"}, {"observation": "zstd", "view": "zstd"}):
        buffer = play(RecordToBuffer(Cameras(), tmp_path, codecs=codecs), 1)
        assert codecs_of(buffer) == dict.fromkeys(("observation.camera.rgb", "observation.mask", "view"), "zstd")
    assert len(buffer) == 5
    play(RecordToBuffer(Cameras(), tmp_path, **options), 1)
    assert sound(buffer)


@pytest.mark.parametrize(
    ("first", "then", "message"),
    [
        (None, {"images": "zstd"}, "'observation.camera.rgb' is stored raw there, and codecs asks for it with codec"),
        ({"images": "zstd"}, {"images": "lz4"}, "stored with codec .*zstd.* asks for it with codec .*lz4"),
        ({"images": "zstd"}, {"observation.mask": "zstd"}, "'observation.camera.rgb' is stored with codec.* it raw"),
    ],
)
def test_another_codec_than_the_folder_has_is_refused(tmp_path, first, then, message):
    play(RecordToBuffer(Cameras(), tmp_path, codecs=first), 2)
    with pytest.raises(ConfigMismatchError, match=message) as caught:
        RecordToBuffer(Cameras(), tmp_path, codecs=then)
    assert "gym-replay select" in str(caught.value)
    buffer = play(RecordToBuffer(Cameras(), tmp_path, codecs=then, overwrite=True), 1)
    assert len(buffer) == 1


def test_the_spec_remembers_them(tmp_path):
    gym.register("test/Frames-v0", "wrappers.test_codecs:Frames", disable_env_checker=True)
    env = RecordToBuffer(gym.make("test/Frames-v0"), tmp_path, codecs={"observation": "zstd"})
    env.close()
    spec = json.loads(env.spec.to_json())
    assert spec["additional_wrappers"][-1]["kwargs"]["codecs"] == {"observation": ZSTD}
    again = gym.make(env.spec)
    assert codecs_of(play(again, 1)) == {"observation": "zstd"}


def test_on_episode_sees_the_frames(tmp_path):
    seen = []

    def look(episode):
        seen.append(episode["observation"].copy())
        return {"sum": int(episode["observation"].sum())}

    options = {"meta_fields": {"sum": "int64"}, "on_episode": look, "codecs": {"observation": "zstd"}}
    for record in (
        lambda: play(RecordToBuffer(Frames(), tmp_path / "one", **options), 3),
        lambda: play_vector(Frames, 2, 30, tmp_path / "several", **options),
    ):
        seen.clear()
        buffer = record()
        for episode, frames in zip(buffer, seen, strict=True):
            np.testing.assert_array_equal(episode["observation"], frames)
            assert episode.meta["sum"] == frames.sum(dtype=np.int64)


def test_values_outside_of_the_bounds_are_counted(tmp_path):
    counts = []
    for number, codecs in enumerate((None, {"observation": "zstd"})):
        one = RecordToBuffer(Frames(high=200), tmp_path / f"one{number}", codecs=codecs)
        with pytest.warns(UserWarning, match="outside of its space's bounds"):
            play(one, 3)
        envs = gym.vector.SyncVectorEnv([lambda: Frames(high=200)] * 2)
        several = vector.RecordToBuffer(envs, tmp_path / f"several{number}", codecs=codecs)
        with pytest.warns(UserWarning, match="outside of its space's bounds"):
            step_often(several)
        counts.append((one.out_of_bounds, several.out_of_bounds))
    assert counts[0] == counts[1]
    assert counts[0][0]["observation"] > 0


def test_loaders_and_replays(tmp_path):
    raw = play(RecordToBuffer(Frames(), tmp_path / "raw"), 4)
    encoded = play(RecordToBuffer(Frames(), tmp_path / "zstd", codecs={"observation": "zstd"}), 4)
    for one, other in zip(*(n_step_loader(buffer, 7, shuffle=True, seed=3) for buffer in (raw, encoded)), strict=True):
        for name, values in one.items():
            np.testing.assert_array_equal(values, other[name])
    for index in range(4):
        report = replay(encoded, index, env=Frames())
        assert (report.status, report.detail) == ("equal", "")


def test_a_lossy_field_is_compared_as_its_codec_gives_it_back(tmp_path):
    pytest.importorskip("imagecodecs")
    buffer = play(RecordToBuffer(Frames(), tmp_path, codecs={"observation": "jpeg"}), 2)
    report = replay(buffer, 0, env=Frames())
    assert report.equal
    assert "observation: compared after encoding, which is lossy" in report.detail
    report = replay(buffer, 1, env=Frames(high=255))
    assert report.equal

    class Darker(Frames):
        def observation(self, observation):
            return super().observation(observation) // 2

    report = replay(buffer, 0, env=Darker())
    assert (report.status, report.what) == ("differs", "observation")
    assert "lossy" in report.detail


KILLED = """
import os, signal, sys
from wrappers.test_codecs import Frames
from gym_replay import RecordToBuffer
env = RecordToBuffer(Frames(), sys.argv[1], codecs={"observation": "zstd"})
for seed in range(3):
    env.reset(seed=seed)
    while not any(env.step(1)[2:4]):
        pass
env.reset(seed=3)
env.step(1)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_had_ended_survives_a_kill(tmp_path):
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    done = subprocess.run([sys.executable, "-c", KILLED, tmp_path / "data"], env={**os.environ, "PYTHONPATH": path})
    assert done.returncode == -signal.SIGKILL
    with ReplayBuffer.from_folder(tmp_path / "data", read_only=True) as buffer:
        expected = play(RecordToBuffer(Frames(), tmp_path / "other"), 3)
        assert len(buffer) == 3
        for mine, theirs in zip(buffer, expected, strict=True):
            np.testing.assert_array_equal(mine["observation"], theirs["observation"])
    assert check_buffer(tmp_path / "data").ok


def test_a_fork_records_on_its_own(tmp_path):
    play(RecordToBuffer(Frames(), tmp_path / "parent", codecs={"observation": "zstd"}), 2)
    if (child := os.fork()) == 0:
        status = 1
        try:
            play(RecordToBuffer(Frames(), tmp_path / "child", codecs={"observation": "zstd"}), 2)
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    with (
        ReplayBuffer.from_folder(tmp_path / "parent", read_only=True) as one,
        ReplayBuffer.from_folder(tmp_path / "child", read_only=True) as other,
    ):
        assert same(one, other)


def test_interrupts_lose_nothing_that_ended(tmp_path, monkeypatch):
    before = threading.active_count()
    env = RecordToBuffer(Frames(), tmp_path, codecs={"observation": "zstd"})
    for seed in range(4):
        env.reset(seed=seed)
        try:
            for step in range(100):
                if seed == 2 and step == 3:
                    raise KeyboardInterrupt
                if any(env.step(1)[2:4]):
                    break
        except KeyboardInterrupt:
            pass
    env.close()
    assert len(env.buffer) == 4
    assert [bool(episode.meta["episode_complete"]) for episode in env.buffer] == [True, True, False, True]
    assert sound(env.buffer)
    assert threading.active_count() == before
