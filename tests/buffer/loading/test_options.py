"""The options of loaders, as type checkers and the examples of the five loaders have them."""

from __future__ import annotations

import doctest
import inspect
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import gym_replay
from gym_replay import Field, ReplayBuffer, timestep_loader

LOADERS = ("trajectory_loader", "timestep_loader", "n_step_loader", "window_loader", "crop_loader")

SCRIPT = """
import torch
from gym_replay import ReplayBuffer, crop_loader, n_step_loader, timestep_loader, trajectory_loader, window_loader

buffer = ReplayBuffer.from_folder("data")
timestep_loader(buffer, 32, shuffle=True, seed=0, num_workers=2, episodes=slice(3), device="cuda")
trajectory_loader(buffer, 8, return_mask=True, shuffle="block", pool_size=100, filter_meta={"task": 1})
n_step_loader(buffer, 32, 3, discount=0.99, current_fields=("observation",), dtype=torch.float16)
window_loader(buffer, 32, length=3, boundary=("edge", "drop"), refresh="epoch", normalize=("observation",))
crop_loader(buffer, 32, (3, 5), pad="left", weights="weight", batch_format="decision_transformer")
buffer.dataloader(32, length=3, shuffle=True, generator=torch.Generator())
"""

WRONG = """
timestep_loader(buffer, 32, shufle=True)
timestep_loader(buffer, 32, shuffle="blok")
window_loader(buffer, 32, lenght=3)
n_step_loader(buffer, 32, fields=("observation",))
trajectory_loader(buffer, 8, length=3)
crop_loader(buffer, 32, 3, pad="middle")
timestep_loader(buffer, 32, refresh="always")
buffer.dataloader(32, lenght=3)
buffer.dataset(shuffle=True)
"""

# Loaders, and what their signatures are made of: all else would take mypy half a minute.
CONFIGURATION = """
[mypy]
follow_imports = skip
[mypy-gym_replay,gym_replay.buffer.*,gym_replay.schema.*]
follow_imports = silent
"""


def test_mypy_takes_what_there_is_and_refuses_what_there_is_not(tmp_path):
    """Every wrong line is an error, and no other one."""
    pytest.importorskip("mypy")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT + WRONG)
    (tmp_path / "mypy.ini").write_text(CONFIGURATION)
    command = [sys.executable, "-m", "mypy", "--no-error-summary", "--cache-dir"]
    package = str(Path(gym_replay.__file__).parents[1])
    found = subprocess.run(
        [*command, str(tmp_path / "cache"), str(script)],
        capture_output=True, text=True, env={"MYPYPATH": package, "PATH": ""}, cwd=tmp_path, timeout=300, check=False,
    )  # fmt: skip
    errors = {int(line.split(":")[1]) for line in found.stdout.splitlines() if ": error:" in line}
    first = len(SCRIPT.splitlines()) + 2
    assert errors == set(range(first, first + len(WRONG.splitlines()) - 1)), found.stdout + found.stderr


@pytest.mark.parametrize("name", LOADERS)
def test_examples_hold(tmp_path, name):
    fields = {"observation": Field("float32", (4,), state=True), "action": "int", "reward": "float64"}
    with ReplayBuffer(tmp_path, fields=fields | {"terminated": "bool"}) as buffer:
        for _ in range(8):
            buffer.store_episode(
                observation=np.zeros((21, 4)), action=np.arange(20), reward=np.ones(20), terminated=np.arange(20) == 19
            )
        names = {loader: getattr(gym_replay, loader) for loader in LOADERS} | {"buffer": buffer}
        (example,) = doctest.DocTestFinder(recurse=False).find(names[name], name, globs=names)
        assert example.examples
        runner = doctest.DocTestRunner()
        runner.run(example)
        assert runner.failures == 0


@pytest.mark.parametrize("name", LOADERS)
def test_every_argument_is_described(name):
    loader = getattr(gym_replay, name)
    text = inspect.getdoc(loader)
    arguments = text.split("Args:\n")[1].split("\n\n")[0]
    for argument in inspect.signature(loader).parameters:
        assert f"{argument}:" in arguments or f"{argument}," in arguments or f", {argument}" in arguments
    assert "``(batch" in text.split("Returns:\n")[1]


@pytest.mark.parametrize("options", [{}, {"shuffle": True, "seed": 0}, {"rank": 0, "world_size": 3}])
def test_a_loader_without_a_batch_says_so(tmp_path, options):
    buffer = ReplayBuffer(tmp_path, fields={"x": "int"})
    buffer.store_episode(x=np.arange(10))
    batch_size = 16 if "rank" not in options else 4
    with pytest.warns(UserWarning, match=f"no batch.*10 samples for batches of {batch_size}"):
        loader = timestep_loader(buffer, batch_size, drop_last=True, **options)
    assert list(loader) == []
    assert len(list(timestep_loader(buffer, 5, drop_last=True))) == 2
