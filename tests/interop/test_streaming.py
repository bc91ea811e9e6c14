"""Importers hold a few episodes in memory, never all."""

import tracemalloc

import numpy as np
import pytest
from test_memmap_replay_buffer import Old

from gym_replay import from_d4rl, from_memmap_replay_buffer, from_trajectories

_MIB = 1 << 20
_EPISODES = 64
_BAR = 24 * _MIB
"""Of 64 episodes of 1 MiB each; most of it are the pieces of 8 MiB in which rows are written and summed."""


@pytest.fixture
def peak():
    """Most bytes that Python and NumPy held at once since it was made."""
    tracemalloc.start()
    yield lambda: tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()


def rows(count):
    steps = np.arange(count)
    last = steps % 256 == 255
    observations = np.zeros((count, 1024), np.float32)
    observations[:, 0] = steps
    return {
        "observations": observations,
        "actions": steps.astype(np.float32),
        "rewards": steps.astype(np.float32),
        "terminals": last,
        "timeouts": np.zeros(count, bool),
        "next_observations": np.concatenate([observations[1:], observations[:1]]),
    }


@pytest.mark.parametrize("kind", ["npz", "hdf5"])
def test_files_in_d4rl_s_layout(tmp_path, kind, request):
    path = tmp_path / f"file.{kind}"
    if kind == "npz":
        np.savez_compressed(path, **rows(256 * _EPISODES))
    else:
        h5py = pytest.importorskip("h5py")
        with h5py.File(path, "w") as file:
            for name, array in rows(256 * _EPISODES).items():
                file[name] = array
    measured = request.getfixturevalue("peak")
    assert from_d4rl(path, tmp_path / "new").num_episodes == _EPISODES
    assert measured() < _BAR


def test_folders_of_memmap_replay_buffer(tmp_path, request):
    Old(tmp_path / "old", _EPISODES, 256, fields={"state": ("float", 1024)}, meta={})
    for name, value in (("num_episodes.state", _EPISODES), ("episode_lens.data.meta", 256)):
        array = np.load(tmp_path / "old" / f"{name}.npy", mmap_mode="r+")
        array[...] = value
        array.flush()
    measured = request.getfixturevalue("peak")
    assert from_memmap_replay_buffer(tmp_path / "old", tmp_path / "new").num_episodes == _EPISODES
    assert measured() < _BAR


def test_trajectories(tmp_path, peak):
    made = (
        {"obs": np.zeros((257, 1024), np.float32), "acts": np.zeros(256), "rews": np.zeros(256), "terminal": True}
        for _ in range(_EPISODES)
    )
    assert from_trajectories(made, tmp_path / "new").num_episodes == _EPISODES
    assert peak() < _BAR
