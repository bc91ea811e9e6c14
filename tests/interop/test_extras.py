"""What is missing is named, and nothing is imported before it is needed."""

import subprocess
import sys

import pytest
from interop_helpers import by_hand

import gym_replay


@pytest.mark.parametrize(
    ("function", "module", "extra"),
    [
        ("to_d3rlpy", "d3rlpy", "d3rlpy"),
        ("to_torchrl", "torchrl.data", "torchrl"),
        ("to_sb3", "stable_baselines3.common.buffers", "sb3"),
    ],
)
def test_a_missing_package_is_named_with_the_command(tmp_path, monkeypatch, function, module, extra):
    names = module.split(".")
    for depth in range(len(names)):
        monkeypatch.setitem(sys.modules, ".".join(names[: depth + 1]), None)
    with by_hand(tmp_path / "a", [2], [True]) as buffer, pytest.raises(gym_replay.MissingExtraError) as caught:
        getattr(gym_replay, function)(buffer)
    message = str(caught.value)
    assert message == f"{function} needs {names[0]}, which is not installed: pip install 'gym-replay[{extra}]'"


def test_a_package_that_is_there_but_broken_keeps_its_own_message(tmp_path, monkeypatch):
    (tmp_path / "d3rlpy.py").write_text("import something_that_it_lacks")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "d3rlpy", raising=False)
    with by_hand(tmp_path / "a", [2], [True]) as buffer, pytest.raises(ModuleNotFoundError, match="something_that_it"):
        gym_replay.to_d3rlpy(buffer)


def test_importers_need_no_torch():
    script = """
import sys
from gym_replay import from_d4rl, from_memmap_replay_buffer, from_trajectories
print([name for name in ("torch", "gymnasium", "h5py", "torchrl", "d3rlpy") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
