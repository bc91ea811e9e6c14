"""The verbs ``export`` and ``import``."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from gymnasium import spaces
from interop.interop_helpers import by_hand
from interop.minari_helpers import Playing, assert_same_buffer, record

from gym_replay import ImportReport, ReplayBuffer
from gym_replay.cli import main

VALUES = [np.full(2, t, np.float32) for t in range(6)]


def run(*words):
    return main([str(word) for word in words])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    record(tmp_path / "a", Playing(spaces.Box(-9, 9, (2,)), VALUES), [(1, 0, 1), (2, 0)])
    return tmp_path / "a"


def test_there_and_back(folder, tmp_path, capfd):
    assert run("export", "minari", folder, "cart/x-v0", "--data-format", "arrow", "--author", "a", "--author", "b") == 0
    out, err = capfd.readouterr()
    assert out == f"{tmp_path / 'datasets' / 'cart' / 'x-v0'}: 2 episodes, 3 steps\n"
    assert err == ""
    assert run("import", "minari", "cart/x-v0", tmp_path / "b") == 0
    assert capfd.readouterr().out == f"{tmp_path / 'b'}: 2 episodes, 3 steps\n"
    with ReplayBuffer.from_folder(folder) as one, ReplayBuffer.from_folder(tmp_path / "b") as other:
        assert_same_buffer(one, other)
        assert other.metadata.environment["minari"]["author"] == ["a", "b"]
        assert other.metadata.environment["minari"]["data_format"] == "arrow"


def test_json(folder, tmp_path, capsys):
    made = {"dataset_id": "x-v0", "num_episodes": 2, "num_steps": 3}
    assert run("export", "minari", folder, "x-v0", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {**made, "path": str(tmp_path / "datasets" / "x-v0")}
    assert run("import", "minari", "x-v0", tmp_path / "b", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {**made, "path": str(tmp_path / "b")}


@pytest.mark.filterwarnings("always::UserWarning")
def test_what_is_left_out(tmp_path, monkeypatch, capsys):
    pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    space = spaces.Dict({"x": spaces.Discrete(3), "s": spaces.Sequence(spaces.Discrete(2))})
    record(tmp_path / "a", Playing(space, [{"x": 1, "s": (1,)}] * 2), [(1, 0)])
    assert run("export", "minari", tmp_path / "a", "x-v0") == 2
    assert "observation.s" in capsys.readouterr().err
    assert run("export", "minari", tmp_path / "a", "x-v0", "--drop-unsupported") == 0
    said = capsys.readouterr().err
    assert said.startswith("gym-replay: warning:")
    assert "observation.s" in said


def test_errors_are_those_of_the_functions(folder, tmp_path, capsys):
    assert run("export", "minari", folder, "no id") == 2
    assert "dataset id" in capsys.readouterr().err
    assert run("import", "minari", "absent-v0", tmp_path / "b") == 2
    assert "no Minari dataset" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["export"], ["import", "nothing", "a", "b"], ["export", "minari", "a"]])
def test_wrong_usage(words):
    with pytest.raises(SystemExit) as stop:
        run(*words)
    assert stop.value.code == 2


@pytest.mark.parametrize("words", [["export"], ["import"], ["export", "minari"], ["import", "minari"]])
def test_help_has_examples(words, capsys):
    with pytest.raises(SystemExit) as stop:
        run(*words, "--help")
    assert stop.value.code == 0
    assert f"examples:\n  gym-replay {words[0]} minari" in capsys.readouterr().out


def test_a_file_in_the_layout_of_d4rl(tmp_path, capfd):
    ends = np.arange(9) % 3 == 2
    rows = {"observations": np.zeros((9, 2)), "actions": np.zeros((9, 1)), "rewards": np.ones(9), "terminals": ends}
    np.savez(tmp_path / "old.npz", **rows, timeouts=np.zeros(9, bool))
    command = [sys.executable, "-m", "gym_replay", "import", "d4rl", tmp_path / "old.npz", tmp_path / "new"]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
    said = json.loads(done.stdout)
    assert (said["num_episodes"], said["num_steps"], said["left_out"]) == (3, 9, [])
    assert said["not_known"] == ["the last observation of 3 episodes: their last transition is no n-step sample"]
    with ReplayBuffer.from_folder(tmp_path / "new", read_only=True) as buffer:
        assert buffer.episode_lens.tolist() == [3, 3, 3]
    again = subprocess.run(command, capture_output=True, text=True)
    assert (again.returncode, again.stdout) == (2, "")
    assert "choose a folder that does not exist" in again.stderr


def test_a_folder_of_another_package_is_asked_for_its_state_fields(tmp_path, monkeypatch, capfd):
    called = []

    def read(source, target, *, state_fields):
        called.append((source, target, list(state_fields)))
        return ImportReport(Path(target), 2, 7, ("something",))

    monkeypatch.setattr("gym_replay.interop.memmap_replay_buffer.from_memmap_replay_buffer", read)
    assert run("import", "memmap-replay-buffer", "old", "new", "--state-fields", "a", "b") == 0
    assert called == [("old", "new", ["a", "b"])]
    assert capfd.readouterr().out == "new: 2 episodes, 7 steps\nnot known: something\n"


def test_lerobot_there_and_back(tmp_path, capsys):
    pytest.importorskip("pyarrow")
    with by_hand(tmp_path / "a", [2, 3], [True, True]):
        pass
    words = ("export", "lerobot", tmp_path / "a", tmp_path / "b", "--task", "x", "--no-video")
    assert run(*words) == 2
    assert "--fps" in capsys.readouterr().err
    assert run(*words, "--fps", 10, "--key", "observation=observation.environment_state", "--json") == 0
    made = json.loads(capsys.readouterr().out)
    assert (made["num_episodes"], made["num_frames"]) == (2, 5)
    assert made["features"]["observation"] == "observation.environment_state"
    assert run("import", "lerobot", tmp_path / "b", tmp_path / "c") == 0
    assert "/c: 2 episodes, 5 steps\n" in capsys.readouterr().out
    assert run(*words, "--fps", 10, "--key=action") == 2
    assert "FIELD=KEY" in capsys.readouterr().err
    for option, message in (("--encoder={", "not JSON"), ("--encoder=3", "JSON object")):
        with pytest.raises(SystemExit, match="2"):
            run(*words, "--fps", 10, option)
        assert message in capsys.readouterr().err


def test_ogbench_and_robomimic(tmp_path, capsys):
    np.savez(tmp_path / "a.npz", observations=np.zeros((3, 1)), actions=np.zeros((3, 1)), terminals=[0, 0, 1])
    assert run("import", "ogbench", tmp_path / "a.npz", tmp_path / "b") == 0
    assert "not known: rewards" in capsys.readouterr().out
    assert run("import", "robomimic", tmp_path / "a.npz", tmp_path / "c", "--filter-key", "train") == 2
    assert "no HDF5 file" in capsys.readouterr().err
