"""What is there without the extra."""

import sys

import pytest
from viewing_helpers import make_plain

import gym_replay
from gym_replay.cli import main


@pytest.fixture
def without(monkeypatch):
    monkeypatch.setitem(sys.modules, "nicegui", None)


def test_the_error_names_the_command(tmp_path, without):
    make_plain(tmp_path / "plain").close()
    with pytest.raises(gym_replay.MissingExtraError, match=r"pip install 'gym-replay\[view\]'"):
        gym_replay.view(tmp_path / "plain", browser=False)


def test_labels_need_no_page(tmp_path, without, capsys):
    make_plain(tmp_path / "plain").close()
    assert main(["label", str(tmp_path / "plain"), "--set", "good"]) == 0
    assert main(["view", str(tmp_path / "plain"), "--no-browser"]) == 2
    assert "pip install 'gym-replay[view]'" in capsys.readouterr().err
