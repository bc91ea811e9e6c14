"""Episodes as Minari datasets."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

DATASET = "benchmark-v0"


@contextmanager
def minari_at(folder: Path) -> Any:
    """Minari with its datasets in a folder, and without its warnings."""
    before = os.environ.get("MINARI_DATASETS_PATH")
    os.environ["MINARI_DATASETS_PATH"] = str(folder)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield import_module("minari")
    finally:
        if before is None:
            del os.environ["MINARI_DATASETS_PATH"]
        else:
            os.environ["MINARI_DATASETS_PATH"] = before


def write_minari(folder: Path, episodes: Sequence[dict[str, Any]], data_format: str) -> Any:
    """A dataset of episodes, each with T+1 observations and T of the rest; spaces are those of the first one.

    Returns:
        The dataset, opened.
    """
    first = episodes[0]
    shape = first["observation"].shape[1:]
    numbers = first["action"]
    discrete = np.issubdtype(numbers.dtype, np.integer)
    action = gym.spaces.Discrete(2) if discrete else gym.spaces.Box(-np.inf, np.inf, numbers.shape[1:])
    with minari_at(folder) as minari:
        make = import_module("minari.data_collector").EpisodeBuffer
        buffers = [
            make(
                id=number,
                observations=episode["observation"],
                actions=episode["action"],
                rewards=list(episode["reward"]),
                terminations=list(episode["terminated"]),
                truncations=list(episode["truncated"]),
            )
            for number, episode in enumerate(episodes)
        ]
        minari.create_dataset_from_buffers(
            DATASET,
            buffers,
            observation_space=gym.spaces.Box(-np.inf, np.inf, shape),
            action_space=action,
            data_format=data_format,
            jpeg_encoding=False,
        )
        return minari.load_dataset(DATASET)


def rows_of(episode: Any) -> dict[str, Any]:
    """The arrays of an episode of Minari's by their names here."""
    named = {"observation": episode.observations, "action": episode.actions, "reward": episode.rewards}
    return {**named, "terminated": episode.terminations, "truncated": episode.truncations}


def open_minari(folder: Path) -> Any:
    """The dataset that :func:`write_minari` wrote."""
    with minari_at(folder) as minari:
        return minari.load_dataset(DATASET)
