"""The verb ``record`` through its entry point, as a process of its own."""

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import gymnasium as gym
import pytest
from collecting_helpers import facts_of, shards_of

from gym_replay import ReplayBuffer, check_buffer, collect
from gym_replay.cli import main

TESTS = Path(__file__).parents[1]

ENTRY = [sys.executable, "-W", "error::UserWarning", "-m", "gym_replay"]

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)]), "COLUMNS": "80"}


def record(*arguments, cwd=None):
    command = [*ENTRY, "record", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, cwd=cwd, timeout=500)


def test_a_run_and_its_continuation(tmp_path):
    done = record("CartPole-v1", tmp_path / "data", "--episodes", 5, "--num-envs", 2, "--seed", 3)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert "complete: 5 episodes" in done.stderr
    assert "5/5" not in done.stderr  # nobody sees a bar that is written to a file
    done = record("CartPole-v1", tmp_path / "data", "--episodes", 8, "--seed", 3, "--quiet", "--json")
    assert done.returncode == 0, done.stderr
    assert "it/s" not in done.stderr
    said = json.loads(done.stdout)
    expected = collect("CartPole-v1", tmp_path / "here", episodes=8, seed=3, progress=False)
    assert facts_of(ReplayBuffer.from_folder(tmp_path / "data", read_only=True)) == facts_of(expected)
    assert said["status"] == "complete"
    assert said["num_episodes"] == 8
    assert said["num_steps"] == expected.num_steps
    assert said["return_mean"] == pytest.approx(expected.num_steps / 8)
    assert said["bytes"] > 0
    assert said["folder"] == str(tmp_path / "data")


def test_every_option(tmp_path):
    (tmp_path / "my_policies.py").write_text(
        "import numpy as np\n\n\ndef zeros(observation):\n    return np.zeros_like(observation)\n"
    )
    done = record(
        "FrozenLake-v1",
        "data",
        *("--policy", "my_policies:zeros", "--steps", 30, "--num-envs", 2, "--vectorization", "async"),
        *("--env-kwargs", '{"is_slippery": false, "map_name": "8x8"}', "--max-episode-steps", 7),
        *("--options", "{}", "--record-info", "--overwrite", "--quiet", "--fresh-envs"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    buffer = ReplayBuffer.from_folder(tmp_path / "data", read_only=True)
    assert buffer.num_steps == 35
    assert "info.prob" in buffer.fieldnames
    assert buffer.env_spec.kwargs["map_name"] == "8x8"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["CartPole-v1", "data"], "episodes"),
        (["CartPole-v1", "data", "--episodes", "0"], "positive"),
        (["CartPole-v1", "data", "--episodes", "two"], "two"),
        (["CartPole-v1"], "FOLDER"),
        (["Nonsense-v1", "data", "--episodes", "1"], "Nonsense"),
        (["CartPole-v1", "data", "--episodes", "1", "--policy", "nonsense"], "nonsense"),
        (["CartPole-v1", "data", "--episodes", "1", "--policy", "no_such_module:f"], "no_such_module"),
        (["CartPole-v1", "data", "--episodes", "1", "--env-kwargs", "[1]"], "JSON object"),
        (["CartPole-v1", "data", "--episodes", "1", "--env-kwargs", "{"], "not JSON"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(tmp_path, monkeypatch, capsys, arguments, named):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    try:
        status = main(["record", *arguments])
    except SystemExit as end:  # of the parser
        status = end.code
    assert status == 2
    printed, said = capsys.readouterr()
    assert named in said
    assert "Traceback" not in said
    assert printed == ""
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(("values", "status"), [([], 0), ([2], 2), ([1], 0)])
def test_a_reward_shape(tmp_path, capsys, values, status):
    command = ["record", "CartPole-v1", str(tmp_path / "data"), "--episodes", "1", "--quiet", "--reward-shape"]
    assert main([*command, *map(str, values)]) == status
    assert ("'reward': expected shape (2,), got ()" in capsys.readouterr().err) == (status == 2)
    with ReplayBuffer.from_folder(tmp_path / "data", read_only=True) as buffer:
        assert buffer.metadata.fields["reward"].shape == tuple(values)


def test_a_folder_of_something_else(tmp_path, capsys):
    command = ["record", "CartPole-v1", str(tmp_path / "data"), "--episodes"]
    assert main([*command, "1"]) == 0
    assert main([*command, "2", "--seed", "1"]) == 2
    assert "seed: stored 0, passed 1" in capsys.readouterr().err


def test_an_exception_in_a_policy(tmp_path):
    (tmp_path / "failing.py").write_text("def policy(observation):\n    raise ZeroDivisionError('by me')\n")
    done = record("CartPole-v1", "data", "--episodes", 2, "--policy", "failing:policy", "--json", cwd=tmp_path)
    assert done.returncode == 2
    assert "ZeroDivisionError: by me" in done.stderr
    assert json.loads(done.stdout)["status"] == "failed"


@pytest.mark.parametrize("more", [[], ["--num-envs", "2", "--vectorization", "async"], ["--ray-workers", "1"]])
def test_ctrl_c(tmp_path, more):
    if "--ray-workers" in more:
        pytest.importorskip("ray")
    (tmp_path / "slow.py").write_text(
        "import time\nimport numpy as np\n\n\ndef policy(observation):\n    time.sleep(0.001)\n"
        "    return np.zeros(observation.shape[:-1], int)[()]\n"
    )
    command = [*ENTRY, "record", "CartPole-v1", "data", "--episodes", "100000", "--policy", "slow:policy", "--json"]
    process = subprocess.Popen(
        [*command, *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
        cwd=tmp_path,
        start_new_session=True,
    )
    folder = tmp_path / "data"
    until = time.monotonic() + 300
    while time.monotonic() < until and process.poll() is None:
        folders = shards_of(folder) if more[:1] == ["--ray-workers"] else [folder] * (folder / "collect.json").exists()
        if sum(len(ReplayBuffer.from_folder(each, read_only=True)) for each in folders) >= 5:
            break
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    printed, said = process.communicate(timeout=300)
    assert process.returncode == 130, said
    assert "stopped; the same command goes on from here: " in said
    assert "Traceback" not in said
    facts = json.loads(printed)
    assert facts["status"] == "interrupted"
    found = sum(len(ReplayBuffer.from_folder(each, read_only=True)) for each in folders)
    assert 5 <= facts["num_episodes"] == found < 100_000
    assert all(check_buffer(each).verified for each in folders)


def test_in_a_terminal_of_80_columns(tmp_path):
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [*ENTRY, "record", "CartPole-v1", str(tmp_path), "--episodes", "20"],
        stdin=follower,
        stdout=follower,
        stderr=follower,
        env=ENVIRONMENT,
    )
    os.close(follower)
    printed = b""
    try:
        while chunk := os.read(leader, 4096):
            printed += chunk
    except OSError:  # the end, as Linux says it
        pass
    os.close(leader)
    assert process.wait() == 0
    text = printed.decode()
    assert "complete: 20 episodes" in text
    assert all(len(part) <= 80 for line in text.splitlines()[:-1] for part in line.split("\r"))


def test_help():
    done = record("--help")
    assert done.returncode == 0
    assert "examples:" in done.stdout
    for option in ("--policy", "--episodes", "--steps", "--num-envs", "--ray-workers", "--env-kwargs", "--record-info"):
        assert option in done.stdout
    assert all(len(line) <= 82 for line in done.stdout.splitlines())


@pytest.mark.parametrize(
    ("env", "policy", "is_first"),
    [
        ("CartPole-v1", "random", False),
        ("CartPole-v1", "a_policy_here:left", True),
        ("an_env_here:CartPole-v1", "random", True),
    ],
)
def test_the_current_folder_is_importable_only_where_a_module_is_named(env, policy, is_first, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", str(tmp_path))])
    (tmp_path / "a_policy_here.py").write_text("def left(observation):\n    return 0\n")
    (tmp_path / "an_env_here.py").write_text("")
    assert main(["record", env, "data", "--episodes", "1", "--quiet", "--policy", policy]) == 0
    assert (sys.path[0] == str(tmp_path)) == is_first
    for name in ("a_policy_here", "an_env_here"):
        sys.modules.pop(name, None)


def test_what_a_module_registers_is_replayed_where_it_is_imported(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "an_env_of_mine.py").write_text(
        "import gymnasium as gym\n\n"
        "gym.register('Mine-v0', 'gymnasium.envs.classic_control:CartPoleEnv', max_episode_steps=9)\n"
    )

    def forget():
        sys.modules.pop("an_env_of_mine")
        gym.registry.pop("Mine-v0")

    assert main(["record", "an_env_of_mine:Mine-v0", "data", "--episodes", "2", "--quiet"]) == 0
    forget()
    assert main(["replay", "data"]) == 2
    assert "'Mine-v0' is not registered" in capsys.readouterr().err
    assert main(["replay", "data", "--import", "an_env_of_mine"]) == 0
    assert capsys.readouterr().out == "2 episodes: 2 equal, 0 different, 0 not replayable\n"
    forget()
