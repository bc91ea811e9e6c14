"""The packages to compare with."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from typing import Any, Generic, TypeVar

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


def torchrl_data() -> Any:
    """``torchrl.data``, without its messages on what it deletes."""
    data = import_module("torchrl.data")
    logging.getLogger("torchrl").setLevel(logging.WARNING)
    return data
