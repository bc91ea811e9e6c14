"""Folders that take their name when they are complete, and what killed processes leave of them."""

import errno
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest

import gym_replay
from gym_replay import BufferLockedError, NotABufferError, StorageError
from gym_replay.files.new_folder import new_folders

TRAJECTORIES = [{"observations": np.zeros((3, 2)), "actions": np.zeros(2), "rewards": np.zeros(2)}]


def killed(target):
    """Leave what a process leaves that is killed while it makes a folder."""
    code = f"""
        import os
        from pathlib import Path
        from gym_replay.files.new_folder import new_folders
        context = new_folders(Path({str(target)!r}))
        (new,) = context.__enter__()
        (new.folder / "part").write_text("x")
        os.kill(os.getpid(), 9)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False)


def hidden(folder):
    return [name for name in os.listdir(folder) if name.startswith(".")]


def test_leftovers_go(tmp_path):
    for _ in range(2):
        killed(tmp_path / "new")
        assert (tmp_path / ".new.gym-replay-new" / "made" / "part").exists()
    with new_folders(tmp_path / "new") as (new,):
        assert list(new.folder.iterdir()) == []
        (new.folder / "file").write_text("x")
        new.publish()
    assert (tmp_path / "new" / "file").read_text() == "x"
    assert hidden(tmp_path) == []
    killed(tmp_path / "other")
    gym_replay.from_trajectories(TRAJECTORIES, tmp_path / "other")
    assert hidden(tmp_path) == []


def test_one_makes_it_at_a_time(tmp_path):
    with new_folders(tmp_path / "new") as (new,):
        with pytest.raises(BufferLockedError, match="another process is making this folder"):
            gym_replay.from_trajectories(TRAJECTORIES, tmp_path / "new")
        gym_replay.from_trajectories(TRAJECTORIES, tmp_path / "newer")
        new.publish()
    assert sorted(os.listdir(tmp_path)) == ["new", "newer"]


def test_what_is_not_published_goes(tmp_path):
    with new_folders(tmp_path / "one", tmp_path / "deeper" / "two") as made:
        for new in made:
            (new.folder / "file").write_text("x")
        made[1].publish()
    assert sorted(os.listdir(tmp_path)) == ["deeper"]
    assert os.listdir(tmp_path / "deeper") == ["two"]


def test_what_has_come_to_be_there_stays(tmp_path):
    for make in (lambda path: path.write_text("precious"), lambda path: path.mkdir() or (path / "file").write_text("")):
        with new_folders(tmp_path / "new") as (new,):
            make(tmp_path / "new")
            with pytest.raises(NotABufferError, match="meanwhile"):
                new.publish()
        os.rename(tmp_path / "new", tmp_path / "kept")
        assert os.listdir(tmp_path) == ["kept"]
        if (tmp_path / "kept").is_file():
            (tmp_path / "kept").unlink()


@pytest.mark.parametrize("complete", [0, 1])
def test_a_disk_that_refuses_says_what_is_complete(tmp_path, complete):
    def make():
        with new_folders(tmp_path / "one", tmp_path / "two") as made:
            for new in made[:complete]:
                new.publish()
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(StorageError, match=[r"nothing of it is left; free", r"complete are .*one; free"][complete]):
        make()
    assert os.listdir(tmp_path) == ["one"][:complete]


def test_other_names_and_links_stay(tmp_path):
    for name in (".newer.gym-replay-new", ".new.other", ".n[e]w.gym-replay-new"):
        (tmp_path / name).mkdir()
    with new_folders(tmp_path / "new"):
        pass
    assert len(hidden(tmp_path)) == 3
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("precious")
    (tmp_path / ".new.gym-replay-new").symlink_to("mine")
    with pytest.raises(NotABufferError, match="link"), new_folders(tmp_path / "new"):
        pass
    assert (tmp_path / "mine" / "file").read_text() == "precious"
    (tmp_path / ".new.gym-replay-new").unlink()
    (tmp_path / "mine").rename(tmp_path / ".new.gym-replay-new")
    with pytest.raises(NotABufferError, match="'file'"), new_folders(tmp_path / "new"):
        pass
    assert (tmp_path / ".new.gym-replay-new" / "file").read_text() == "precious"


def test_a_long_name_takes_a_short_one(tmp_path):
    with new_folders(tmp_path / ("ö" * 120)) as (new,):
        new.publish()
    assert os.listdir(tmp_path) == ["ö" * 120]
