"""The packages to compare with."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

T = TypeVar("T")


@dataclass(frozen=True)
class Package:
    """What pip calls a package, and what has to be importable for it to be used."""

    distribution: str
    requirement: str
    modules: tuple[str, ...]

    def missing(self) -> str | None:
        """Why it cannot be used, and the remedy; None where it can."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                for module in self.modules:
                    import_module(module)
        except ImportError as error:
            return f"left out, not installed ({error}): pip install '{self.requirement}'"
        return None


PACKAGES = {
    "memmap-replay-buffer": Package("memmap-replay-buffer", "memmap-replay-buffer", ("memmap_replay_buffer",)),
    "Minari": Package("minari", "minari[create,hdf5]", ("minari", "h5py", "PIL")),
    "Minari, Arrow": Package("minari", "minari[create,arrow]", ("minari", "pyarrow", "PIL")),
    "torchrl": Package("torchrl", "torchrl", ("tensordict", "torchrl.data")),
    "cpprb": Package("cpprb", "cpprb", ("cpprb",)),
    "d3rlpy": Package("d3rlpy", "d3rlpy", ("d3rlpy.dataset",)),
    "Lance": Package("pylance", "pylance", ("lance", "pyarrow")),
    "zarr": Package("zarr", "zarr", ("zarr", "numcodecs")),
    "h5py": Package("h5py", "h5py", ("h5py",)),
    "PyAV": Package("av", "av", ("av",)),
    "imagecodecs": Package("imagecodecs", "imagecodecs", ("imagecodecs",)),
    "tianshou": Package("tianshou", "tianshou", ("tianshou.data",)),
    "Stable-Baselines3": Package("stable-baselines3", "stable-baselines3", ("stable_baselines3.common.buffers",)),
}


@dataclass(frozen=True)
class Use(Generic[T]):
    """A way to use a package.

    Args:
        package: a key of :data:`PACKAGES`.
        settings: how it is used, for the notes of the table.
        make: what the benchmark calls.
    """

    package: str
    settings: str
    make: T


def installed(uses: Mapping[str, Use[T]]) -> tuple[dict[str, T], list[str], list[str]]:
    """What can be used.

    Returns:
        What to call for each that is installed; a note on each, with its version; and the notes of those left out.
    """
    found: dict[str, T] = {}
    notes: list[str] = []
    left_out: list[str] = []
    for name, use in uses.items():
        package = PACKAGES[use.package]
        if (why := package.missing()) is None:
            found[name] = use.make
            notes.append(f"{name} ({version(package.distribution)}): {use.settings}")
        else:
            left_out.append(f"{use.package}: {why}")
    left_out = list(dict.fromkeys(left_out))
    return found, notes + left_out, left_out


# --- their buffers, each as a benchmark wants one ---

FLAGS = ("terminated", "truncated")
AFTER = ("reward", *FLAGS)
CPPRB = {"obs": "observation", "next_obs": "next_observation", "act": "action", "rew": "reward"}
CPPRB |= {"done": "terminated", "cut": "truncated"}
"""What cpprb's examples call a transition's parts, and what they are called here."""


def memmap_buffer(folder: Path, episodes: int, steps: int, fields: Mapping[str, Any]) -> Any:
    """memmap-replay-buffer with room for so many episodes of so many steps."""
    return import_module("memmap_replay_buffer").ReplayBuffer(
        folder, max_episodes=episodes, max_timesteps=steps, fields=fields, flush_every_store_step=0
    )


def memmap_fields(observation: tuple[int, ...], action: tuple[int, ...] | None) -> dict[str, Any]:
    """Its fields for transitions, with its own dtypes; without a shape, actions are numbers."""
    flags = dict.fromkeys(FLAGS, "bool")
    acts = "int" if action is None else ("float", action)
    return {"observation": ("float", observation), "action": acts, "reward": "float", **flags}


def cpprb_buffer(size: int, observation: Any, action: Mapping[str, Any], flags: Sequence[str] = ("done", "cut")) -> Any:
    """cpprb's ReplayBuffer for transitions, by the names in :data:`CPPRB`."""
    state = {"shape": observation}
    schema = {"obs": state, "next_obs": state, "act": dict(action), "rew": {}}
    schema |= {name: {"dtype": np.bool_} for name in flags}
    return import_module("cpprb").ReplayBuffer(size, schema)


def sb3_buffer(size: int, *spaces: Any, **options: Any) -> Any:
    """The ReplayBuffer of Stable-Baselines3."""
    return import_module("stable_baselines3.common.buffers").ReplayBuffer(size, *spaces, device="cpu", **options)


def sb3_batch(found: Any) -> dict[str, Any]:
    """What it samples by the names here; it has one flag."""
    named = {"observation": found.observations, "next_observation": found.next_observations}
    return {**named, "action": found.actions, "reward": found.rewards, "terminated": found.dones}


def torchrl_buffer(size: int, folder: Path | None, batch_size: int = 1, sampler: Any = None) -> Any:
    """torchrl's ReplayBuffer, in a LazyMemmapStorage below a folder, or in memory."""
    data = torchrl_data()
    storage = data.LazyTensorStorage(size)
    if folder is not None:
        storage = data.LazyMemmapStorage(size, scratch_dir=str(folder), auto_cleanup=False)
    return data.ReplayBuffer(storage=storage, batch_size=batch_size, sampler=sampler)


def torchrl_slices(length: int) -> Any:
    """torchrl's sampler of slices of episodes."""
    samplers = import_module("torchrl.data.replay_buffers.samplers")
    return samplers.SliceSampler(slice_len=length, traj_key="episode", cache_values=True, truncated_key=None)


def tensordict(rows: Mapping[str, Any], *size: int) -> Any:
    """A TensorDict of a batch of this size."""
    return import_module("tensordict").TensorDict(dict(rows), batch_size=list(size))


def nested(rows: Mapping[str, Any]) -> dict[str, Any]:
    """Tensors of transitions, or of one, as torchrl has them: what came of a step is below ``next``."""
    following = {"observation": rows["next_observation"], **{name: rows[name] for name in AFTER}}
    return {"observation": rows["observation"], "action": rows["action"], "next": following}


def flat(found: Any) -> dict[str, Any]:
    """Transitions of torchrl by their names here."""
    after = found["next"]
    named = {"observation": found["observation"], "action": found["action"], "next_observation": after["observation"]}
    return {**named, **{name: after[name] for name in AFTER}}


def torchrl_data() -> Any:
    """``torchrl.data``, without its messages on what it deletes."""
    data = import_module("torchrl.data")
    logging.getLogger("torchrl").setLevel(logging.WARNING)
    return data
