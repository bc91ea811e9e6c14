"""The examples run, in a small size."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def run(run_here):
    return lambda script, *arguments: run_here(ROOT / "examples" / script, *arguments)


def test_collect_with_sb3(tmp_path, run):
    pytest.importorskip("stable_baselines3")
    printed = run(
        "collect_with_sb3.py", "--folder", tmp_path / "ppo", "--train-steps", 512, "--episodes", 4, "--num-envs", 2
    )
    _, *lines = printed.splitlines()  # the first one says that it trains
    assert [line.split()[0] for line in lines] == ["random", "greedy", "drawn"]
    assert all(" 4 episodes" in line for line in lines)


def test_record_sb3_training(tmp_path, run):
    pytest.importorskip("stable_baselines3")
    sizes = ["--steps", 512, "--epochs", 1, "--evaluation-episodes", 2]
    lines = run("record_sb3_training.py", "--folder", tmp_path / "ppo", *sizes).splitlines()
    assert "of 8 environments, 512 steps" in lines[1]
    assert [line.split()[0] for line in lines[-3:]] == ["policy", "PPO", "clone"]
    assert all(float(line.split()[-1]) > 0 for line in lines[-2:])


def test_collect_vector(tmp_path, run):
    printed = run("collect_vector.py", "--folder", tmp_path, "--episodes", 9, "--num-envs", 3)
    assert "the same episodes: True" in printed


def test_collect_ray(tmp_path):
    pytest.importorskip("ray")
    command = [sys.executable, "-W", "error::UserWarning", str(ROOT / "examples" / "collect_ray.py")]
    environment = {**os.environ, "TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command += ["--folder", str(tmp_path), "--episodes", "30", "--workers", "2"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "together: 30 episodes" in done.stdout
    assert "next_observation   (256, 4)" in done.stdout


def test_offline_to_online(tmp_path, run):
    sizes = ["--record", 500, "--offline", 20, "--online", 100, "--episodes", 1]
    lines = run("offline_to_online.py", "--folder", tmp_path, "--env", "Pendulum-v1", *sizes).splitlines()
    assert lines[0] == "recorded: 3 episodes, 500 steps"
    assert [line.split()[0] for line in lines[1:]] == ["recorded", "offline", "online"]
    assert all(float(line.split()[3]) < 0 for line in lines[1:])


@pytest.mark.parametrize("drawing", [[], ["--uniform"]])
def test_online_dqn(tmp_path, run, drawing):
    printed = run("online_dqn.py", "--folder", tmp_path, "--steps", 600, "--passing-return", 0, *drawing)
    numbers = [line.split() for line in printed.splitlines()[1:-1]]
    assert len(numbers) >= 3
    assert all(0 < float(loss) < 100 and float(returns) > 0 for _, _, loss, returns in numbers)
    assert "mean return of the greedy policy" in printed


def test_dagger(tmp_path, run):
    """Its exit status says whether corrections reach the expert, and as many demonstrations do not."""
    lines = run("dagger.py", "--folder", tmp_path).splitlines()
    assert [line.split()[0] for line in lines] == ["expert", "clone", "dagger"]
    labels = [int(line.split()[4]) for line in lines[1:]]
    assert 0 < labels[1] <= labels[0] == 100


def test_record(tmp_path, run):
    for episodes in (10, 20):
        assert f"{episodes} episodes" in run("record.py", tmp_path / "data")


def test_behavior_cloning(tmp_path, run):
    assert "clone" in run("behavior_cloning.py", "--folder", tmp_path / "data", "--episodes", 30, "--epochs", 10)


def test_a_bad_clone_is_an_error(tmp_path, run):
    with pytest.raises(AssertionError, match="475"):
        run("behavior_cloning.py", "--folder", tmp_path / "data", "--episodes", 1, "--epochs", 1)


def test_every_example_is_tested():
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    assert not [path.name for path in (ROOT / "examples").glob("*.py") if f'"{path.name}"' not in tests]
