"""The README's code and the examples run as they are written."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_the_readme_runs_from_top_to_bottom(tmp_path, monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert len(blocks) >= 10
    monkeypatch.chdir(tmp_path)
    namespace = {}
    for number, block in enumerate(blocks):
        exec(compile(block, f"README block {number}", "exec"), namespace)
    assert (tmp_path / "data" / "cartpole" / "metadata.json").exists()
    assert len(namespace["reader"]) == 5


def _run(script, *arguments):
    command = [sys.executable, "-W", "error::UserWarning", str(ROOT / "examples" / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "TQDM_DISABLE": "1"})


def test_record(tmp_path):
    for episodes in (10, 20):
        done = _run("record.py", tmp_path / "data")
        assert done.returncode == 0, done.stderr
        assert f"{episodes} episodes" in done.stdout


def test_behavior_cloning(tmp_path):
    done = _run("behavior_cloning.py", "--folder", tmp_path / "data")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "clone" in done.stdout


@pytest.mark.parametrize("arguments", [["--episodes", "1", "--epochs", "1"]])
def test_a_bad_clone_is_an_error(tmp_path, arguments):
    done = _run("behavior_cloning.py", "--folder", tmp_path / "data", *arguments)
    assert done.returncode != 0
    assert "475" in done.stderr
