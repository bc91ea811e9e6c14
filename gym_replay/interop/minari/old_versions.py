"""Datasets of Minari 0.4: one HDF5 file, whose attributes are what later versions have in ``metadata.json``.

Minari 0.5 gives up on them ("No data found"), but lays out the episodes in the same way, so its own reader reads them.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import Space
from gymnasium.envs.registration import EnvSpec

from gym_replay.errors import UnsupportedFormatError

FILE = "main_data.hdf5"
_NO_SEED = "None"
"""What that version writes as the seed of a reset without one."""


class OldStorage:
    """The part of Minari's ``MinariStorage`` that an import needs.

    Args:
        data_path: the folder of the HDF5 file.
        metadata: of the dataset, as the file has it.
        spaces: of observations and actions.
    """

    FORMAT = "hdf5"

    def __init__(self, data_path: Path, metadata: dict[str, Any], spaces: tuple[Space[Any], Space[Any]]) -> None:
        self.data_path, self.metadata = data_path, metadata
        cls = import_module("minari.dataset._storages").get_minari_storage("hdf5")
        self.get_episodes = cls(data_path, *spaces, jpeg_encoding=False).get_episodes

    def get_episode_metadata(self, numbers: Iterable[int]) -> Iterator[dict[str, Any]]:
        """The metadata of episodes."""
        with import_module("h5py").File(self.data_path / FILE, "r") as file:
            for number in numbers:
                attributes = dict(file[f"episode_{number}"].attrs)
                if attributes.get("seed") == _NO_SEED:
                    del attributes["seed"]
                yield attributes


@dataclasses.dataclass(frozen=True)
class OldDataset:
    """The part of Minari's ``MinariDataset`` that an import needs."""

    id: str
    storage: OldStorage
    observation_space: Space[Any]
    action_space: Space[Any]
    env_spec: EnvSpec | None
    episode_indices: np.ndarray[Any, np.dtype[np.int64]]


def is_old(data_path: Path) -> bool:
    """Whether the folder holds a dataset of Minari 0.4."""
    return (data_path / FILE).is_file() and not (data_path / "metadata.json").exists()


def read_metadata(data_path: Path) -> dict[str, Any]:
    """What the file says of the dataset."""
    with import_module("h5py").File(data_path / FILE, "r") as file:
        return {name: value.item() if isinstance(value, np.generic) else value for name, value in file.attrs.items()}


def open_old(dataset_id: str, data_path: Path, metadata: dict[str, Any]) -> OldDataset:
    """A dataset of Minari 0.4.

    Raises:
        UnsupportedFormatError: it is of a version that did not note the spaces.
    """
    texts = [metadata.get(f"{kind}_space") for kind in ("observation", "action")]
    if not all(isinstance(text, str) for text in texts):
        raise UnsupportedFormatError(
            f"{dataset_id!r} was written by a Minari before 0.4, which did not note its spaces; open it with that "
            "version, and pass its episodes to from_trajectories"
        )
    deserialize = import_module("minari.serialization").deserialize_space
    observation, action = (deserialize(text) for text in texts)
    storage = OldStorage(data_path, metadata, (observation, action))
    spec = _spec(metadata["env_spec"]) if "env_spec" in metadata else None
    return OldDataset(dataset_id, storage, observation, action, spec, np.arange(metadata["total_episodes"]))


def _spec(text: str) -> EnvSpec:
    """A spec without the members that Gymnasium has given up since."""
    known = {field.name for field in dataclasses.fields(EnvSpec)}
    members = {name: value for name, value in json.loads(text).items() if name in known}
    return EnvSpec.from_json(json.dumps(members))
