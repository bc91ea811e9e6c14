"""Folders that take their name when they are complete, and what killed processes leave of them."""

import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest

import gym_replay
from gym_replay.interop.hidden_folder import HiddenFolder


def killed(target):
    """Leave what a process leaves that is killed while it makes a folder."""
    code = f"""
        import os
        from pathlib import Path
        from gym_replay.interop.hidden_folder import HiddenFolder
        folder = HiddenFolder(Path({str(target)!r})).__enter__()
        (folder / "part").write_text("x")
        os.kill(os.getpid(), 9)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False)


def hidden(folder):
    return [name for name in os.listdir(folder) if name.startswith(".")]


def test_leftovers_go_and_what_is_being_made_stays(tmp_path):
    for _ in range(2):
        killed(tmp_path / "new")
    assert len(hidden(tmp_path)) == 1  # the second one removed what the first one left
    with HiddenFolder(tmp_path / "new") as one, HiddenFolder(tmp_path / "new") as two:
        assert sorted(hidden(tmp_path)) == sorted([one.parent.name, two.parent.name])
    assert hidden(tmp_path) == []


@pytest.mark.parametrize("pid", [1, os.getpid()], ids=["of a container", "of this process"])
def test_a_process_id_that_comes_again_keeps_nothing(pid, tmp_path, monkeypatch):
    killed(tmp_path / "new")
    (left,) = hidden(tmp_path)
    os.rename(tmp_path / left, tmp_path / f".new.gym-replay-{pid}-{'0' * 8}")
    monkeypatch.setattr(os, "getpid", lambda: pid)
    data = [{"observations": np.zeros((3, 2)), "actions": np.zeros(2), "rewards": np.zeros(2)}]
    gym_replay.from_trajectories(data, tmp_path / "new")
    assert hidden(tmp_path) == []


def test_other_names_and_links_stay(tmp_path):
    for name in (".newer.gym-replay-x", ".new.other", ".n[e]w.gym-replay-x"):
        (tmp_path / name).mkdir()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("precious")
    (tmp_path / ".new.gym-replay-link").symlink_to("mine")
    with HiddenFolder(tmp_path / "new"):
        pass
    assert len(hidden(tmp_path)) == 4
    assert (tmp_path / "mine" / "file").read_text() == "precious"
