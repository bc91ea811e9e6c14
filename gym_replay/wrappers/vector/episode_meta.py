"""The meta fields of the open episode of each sub-environment: the recorder's own, and those that the user sets."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from gym_replay.buffer.door import MetaColumn
from gym_replay.buffer.replay_buffer import ReplayBuffer
from gym_replay.schema.fields import Field
from gym_replay.wrappers.episode_meta import FLAG_BYTES
from gym_replay.wrappers.generator_state import NO_GENERATOR, NUMBERS
from gym_replay.wrappers.vector.autoreset import EnvIndices, Mask


class EpisodeMeta:
    """The meta fields as arrays over the sub-environments; those of one without an episode mean nothing.

    Args:
        num_envs: how many sub-environments there are.
        run: the meta field ``episode_run``.
        buffer: where the episodes go.
    """

    def __init__(self, num_envs: int, run: bytes, buffer: ReplayBuffer) -> None:
        self._num_envs, self._run, self._buffer = num_envs, run, buffer
        self._began = np.zeros(num_envs)
        self._seeds = np.full(num_envs, -1)
        # None as long as no episode has any.
        self._generators: npt.NDArray[np.uint64] | None = None
        self._options: npt.NDArray[np.object_] | None = None
        self._noted: dict[str, tuple[npt.NDArray[Any], Mask]] = {}  # the user's: the values, and whether they were set

    def begin(
        self,
        opened: EnvIndices,
        began: float,
        generators: npt.NDArray[np.uint64] | None,
        seeds: npt.NDArray[np.int64] | None = None,
        options: bytes = b"",
    ) -> None:
        """Begin the episodes of some sub-environments, none of which is in another episode.

        Args:
            opened: the sub-environments.
            began: when the step or reset began that opened them.
            generators: the generators' states before it, of all sub-environments, where they are known.
            seeds: the seeds of an explicit reset, of all sub-environments.
            options: the options of an explicit reset, as JSON.
        """
        self._began[opened] = began
        self._seeds[opened] = -1 if seeds is None else seeds[opened]
        if generators is not None and self._generators is None:
            self._generators = np.zeros((self._num_envs, NUMBERS), np.uint64)
        if self._generators is not None:
            self._generators[opened] = 0 if generators is None else generators[opened]
        if options and self._options is None:
            self._options = np.full(self._num_envs, b"", object)
        if self._options is not None:
            self._options[opened] = options
        for name, (values, are_noted) in self._noted.items():
            values[opened] = _default_of(self._buffer.metadata.meta_fields[name])
            are_noted[opened] = False

    def annotate(self, meta: Mapping[str, MetaColumn], running: Mask) -> None:
        """Set the user's meta fields of the episodes that are running; the values are those of all sub-environments."""
        for name, column in meta.items():
            if name not in self._noted:
                info = self._buffer.metadata.meta_fields[name]
                values = np.empty((self._num_envs, *info.shape), object if info.is_text else info.dtype)
                values[:] = _default_of(info)
                self._noted[name] = values, np.zeros(self._num_envs, bool)
            values, are_noted = self._noted[name]
            values[running] = np.asarray(column, values.dtype)[running]
            are_noted |= running

    def noted(self, env_indices: EnvIndices) -> dict[str, Mask]:
        """By meta field of the user's, whether it was set in the episodes of some sub-environments."""
        if not self._noted:
            return {}
        return {name: are_noted[env_indices] for name, (_, are_noted) in self._noted.items()}

    def noted_values(self, env_indices: EnvIndices) -> dict[str, npt.NDArray[Any]]:
        """The user's meta fields of the episodes of some sub-environments; strings as objects."""
        found = {}
        for name, (values, _) in self._noted.items():
            column = values[env_indices]
            if values.dtype == object:
                column = np.array([value.decode("utf-8", "surrogatepass") for value in column.tolist()], object)
            found[name] = column
        return found

    def columns(self, env_indices: EnvIndices, returns: npt.NDArray[Any], *, complete: bool) -> dict[str, MetaColumn]:
        """The meta fields of the episodes of some sub-environments; what is the same in all of them as one value."""
        took = time.monotonic() - self._began[env_indices]  # no clock that somebody may set back
        meta: dict[str, MetaColumn] = {
            "episode_seed": self._seeds[env_indices],
            "episode_return": returns,
            "episode_complete": FLAG_BYTES[complete],
            "episode_options": b"" if self._options is None else self._options[env_indices].tolist(),
            "episode_rng": NO_GENERATOR if self._generators is None else self._generators[env_indices],
            "episode_start": time.time() - took,
            "episode_duration": took,
            "episode_run": self._run,
            "env_index": env_indices,
        }
        for name, (values, _) in self._noted.items():
            column = values[env_indices]
            meta[name] = column.tolist() if values.dtype == object else column
        return meta


def _default_of(info: Field) -> Any:
    return b"" if info.is_text else info.default_value()
