"""Codecs on the command line: recorded with, converted, and shown."""

import json
import sys

import gymnasium as gym
import numpy as np
import pytest
from cli.test_command import run
from gymnasium import spaces
from internals import small_sizes

from gym_replay import Field, ReplayBuffer, collect

pytest.importorskip("numcodecs")


class Screen(gym.Env):
    """Three episodes' worth of a moving square on a dark screen."""

    observation_space = spaces.Box(0, 255, (20, 16, 3), np.uint8)
    action_space = spaces.Discrete(2)

    def _screen(self):
        shown = np.zeros((20, 16, 3), np.uint8)
        shown[self.at : self.at + 4, 2:9] = 200
        return shown

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.at, self.t = int(self.np_random.integers(4)), 0
        return self._screen(), {}

    def step(self, action):
        self.t, self.at = self.t + 1, self.at + int(action)
        return self._screen(), 1.0, False, self.t == 9, {}


gym.register("test/Screen-v0", Screen)


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    folder = tmp_path_factory.mktemp("raw") / "screen"
    collect("test/Screen-v0", folder, episodes=3, progress=False).close()
    return folder


def frames_of(folder):
    with ReplayBuffer.from_folder(folder, read_only=True) as buffer:
        return [np.asarray(episode["observation"]) for episode in buffer], buffer.metadata.fields["observation"].codec


@pytest.mark.parametrize(
    ("given", "codec"),
    [
        (["zstd"], {"id": "zstd", "level": 1}),
        (["observation=lz4"], {"id": "lz4", "acceleration": 1}),
        (['{"id": "zstd", "level": 7}'], {"id": "zstd", "level": 7}),
        (['observation={"id": "zstd", "level": 3}'], {"id": "zstd", "level": 3}),
        (["zstd", "observation=raw"], None),
    ],
)
def test_record(tmp_path, raw, given, codec):
    options = [part for one in given for part in ("--codec", one)]
    command = ("record", "test/Screen-v0", "data", "--episodes", 3, "--quiet", *options)
    assert run(*command, cwd=tmp_path).returncode == 0
    frames, found = frames_of(tmp_path / "data")
    assert found == codec
    for mine, theirs in zip(frames, frames_of(raw)[0], strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert run(*command, cwd=tmp_path).returncode == 0  # the same again is complete
    assert run("replay", "data", cwd=tmp_path).stdout == "3 episodes: 3 equal, 0 different, 0 not replayable\n"
    if codec is not None:
        done = run("record", "test/Screen-v0", "data", "--episodes", 4, "--quiet", cwd=tmp_path)
        assert done.returncode == 2
        assert "collected with other arguments: codecs: stored" in done.stderr


def test_what_is_wrong_is_said(tmp_path):
    for given, said in (
        ("observatoin=zstd", "did you mean 'observation'?"),
        ("zst", "codec 'zst': expected one of"),
        ("action=zstd", "needs a shape"),
        ("observation={]", "not JSON"),
    ):
        done = run("record", "test/Screen-v0", "data", "--episodes", 1, "--quiet", "--codec", given, cwd=tmp_path)
        assert (done.returncode, done.stderr.count(said)) == (2, 1), done.stderr
        assert not (tmp_path / "data").exists()


def test_info_says_what_a_field_takes(tmp_path):
    collect("test/Screen-v0", tmp_path / "data", episodes=3, codecs={"images": "zstd"}, progress=False).close()
    found = json.loads(run("info", "data", "--json", cwd=tmp_path).stdout)
    fields = {field["name"]: field for field in found["fields"]}
    assert fields["observation"]["raw_bytes"] == 30 * 20 * 16 * 3
    with ReplayBuffer.from_folder(tmp_path / "data", read_only=True) as buffer:
        stored = buffer.folder / "steps" / "observation.values.npy"
        assert 0 < fields["observation"]["bytes"] - 30 * 16 <= stored.stat().st_size
    assert (fields["observation"]["codec"], fields["observation"]["lossy"]) == ({"id": "zstd", "level": 1}, False)
    assert (fields["reward"]["bytes"], fields["reward"]["raw_bytes"]) == (30 * 8, 30 * 8)
    shown = run("info", "data", cwd=tmp_path).stdout
    assert "with codec zstd, raw 28.1 KiB" in " ".join(shown.split())
    assert "times smaller" in shown


def test_info_of_rows_that_a_codec_makes_larger(tmp_path):
    with ReplayBuffer(tmp_path / "data", fields={"tiny": Field("uint8", (2, 2), codec="zstd")}) as buffer:
        buffer.store_episode(tiny=np.arange(20, dtype=np.uint8).reshape(5, 2, 2))
    assert "times larger" in run("info", "data", cwd=tmp_path).stdout


def test_info_names_a_lossy_codec(tmp_path):
    pytest.importorskip("imagecodecs")
    collect("test/Screen-v0", tmp_path / "data", episodes=1, codecs={"images": "jpeg"}, progress=False).close()
    assert "with codec jpeg, lossy, raw" in " ".join(run("info", "data", cwd=tmp_path).stdout.split())
    done = run("replay", "data", cwd=tmp_path)
    assert done.returncode == 0
    assert "observation: compared after encoding, which is lossy" in done.stdout


def test_info_says_what_a_codec_would_save(raw, monkeypatch):
    done = run("info", raw, cwd=raw)
    assert "would make it" not in done.stdout
    small_sizes(monkeypatch, worth_a_sample=10_000)
    shown = " ".join(run("info", raw, cwd=raw).stdout.split())
    assert "observation: raw 28.1 KiB; zstd would make it" in shown
    assert "--codec observation=zstd" in shown
    (field, *others) = json.loads(run("info", raw, "--json", cwd=raw).stdout)["fields"]
    assert field["zstd_ratio"] > 5
    assert not any("zstd_ratio" in other for other in others)


def test_info_where_the_package_is_missing(tmp_path, monkeypatch):
    small_sizes(monkeypatch, worth_a_sample=1)
    with ReplayBuffer(tmp_path / "data", fields={"frame": Field("uint8", (31, 29))}) as buffer:
        buffer.store_episode(frame=np.zeros((3, 31, 29), np.uint8))
    monkeypatch.setitem(sys.modules, "numcodecs", None)
    done = run("info", "data", cwd=tmp_path)
    assert done.returncode == 0
    assert "pip install 'gym-replay[codecs]'" in " ".join(done.stdout.split())


@pytest.mark.parametrize("holds", ["nothing", "noise"])
def test_info_of_what_no_codec_makes_smaller(tmp_path, monkeypatch, holds):
    small_sizes(monkeypatch, worth_a_sample=1)
    with ReplayBuffer(tmp_path / "data", fields={"frame": Field("uint8", (30, 30))}) as buffer:
        if holds == "noise":
            buffer.store_episode(frame=np.random.default_rng(0).integers(0, 256, (7, 30, 30), np.uint8))
    done = run("info", "data", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "would make it" not in done.stdout


def test_select_converts_there_and_back(tmp_path, raw):
    done = run("select", raw, tmp_path / "small", "--codec", "zstd", "--episodes", "1:", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = run("select", tmp_path / "small", tmp_path / "raw", "--codec", "observation=raw", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    small, large = ((tmp_path / name / "steps").glob("observation*") for name in ("small", "raw"))
    assert 3 * sum(path.stat().st_size for path in small) < sum(path.stat().st_size for path in large)
    expected = frames_of(raw)[0][1:]
    for name, codec in (("small", {"id": "zstd", "level": 1}), ("raw", None)):
        frames, found = frames_of(tmp_path / name)
        assert found == codec
        for mine, theirs in zip(frames, expected, strict=True):
            np.testing.assert_array_equal(mine, theirs)
        assert run("check", name, cwd=tmp_path).returncode == 0


def test_select_in_place(tmp_path, raw):
    assert run("select", raw, tmp_path / "data", cwd=tmp_path).returncode == 0
    assert run("select", "data", "data", "--codec", "images=zstd", "--overwrite", cwd=tmp_path).returncode == 0
    assert frames_of(tmp_path / "data")[1] == {"id": "zstd", "level": 1}
    done = run("select", "data", "other", "--codec", "reword=zstd", cwd=tmp_path)
    assert (done.returncode, "did you mean 'reward'" in done.stderr) == (2, True)
    assert not (tmp_path / "other").exists()


def test_merge_of_raw_and_encoded_says_what_to_do(tmp_path, raw):
    assert run("select", raw, "small", "--codec", "zstd", cwd=tmp_path).returncode == 0
    done = run("merge", raw, "small", "both", cwd=tmp_path)
    assert done.returncode == 2
    assert "gym-replay select FOLDER COPY --codec observation=CODEC" in " ".join(done.stderr.split())
    assert not (tmp_path / "both").exists()
    assert run("select", raw, "again", "--codec", "observation=zstd", cwd=tmp_path).returncode == 0
    assert run("merge", "again", "small", "both", cwd=tmp_path).returncode == 0
    assert len(frames_of(tmp_path / "both")[0]) == 6
