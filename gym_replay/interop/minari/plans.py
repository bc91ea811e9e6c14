"""Which episodes of a buffer are exported, and what of the buffer becomes what of the dataset."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec

from gym_replay.buffer.door import Metadata, metadata_to_json
from gym_replay.buffer.env_spec import spec_from_json
from gym_replay.buffer.episode import Episode
from gym_replay.buffer.reading import Readable
from gym_replay.errors import EmptyBufferError, FieldError, UnsupportedSpaceError
from gym_replay.interop.minari import package
from gym_replay.interop.minari.infos import InfoPlan
from gym_replay.interop.minari.limits import GROUP, IMPORTED, LONGEST_ARROW, ROOTS, CannotHold, Limits
from gym_replay.interop.minari.parts import Part, guess_space, plan_part
from gym_replay.interop.old_data import as_steps
from gym_replay.interop.transitions import Names, check_flags
from gym_replay.spaces import space_from_json, space_to_json, space_tree
from gym_replay.spaces.leaf import SpacePath
from gym_replay.wrappers.recorded_schema import FLAGS


class Selected(Sequence[Episode]):
    """The episodes to write, with their indices in the buffer; each is made when it is asked for."""

    def __init__(self, source: Readable, episodes: Any) -> None:
        self._parts = source.snapshots()
        self._firsts = np.cumsum([0, *map(len, self._parts)])
        count = int(self._firsts[-1])
        try:
            self.indices = np.atleast_1d(np.arange(count)[slice(None) if episodes is None else episodes]).tolist()
        except IndexError as error:
            raise IndexError(f"episodes: {error}; there are {count}") from None
        self._copies = source.metadata.circular
        if not self.indices:
            raise EmptyBufferError("there is no episode to export; record some, or choose others")

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, number: Any) -> Any:
        index = self.indices[number]
        part = int(np.searchsorted(self._firsts, index, side="right")) - 1
        episode = Episode(self._parts[part], index - int(self._firsts[part]))
        return episode.copy() if self._copies else episode  # of a ring, a view may change meanwhile


class Plan:
    """What of a buffer becomes what of a dataset.

    Raises:
        UnsupportedSpaceError, FieldError: as :func:`export_minari`.
    """

    def __init__(
        self, metadata: Metadata, given: Mapping[str, gym.Space[Any] | None], found: Selected, limits: Limits
    ) -> None:
        self.metadata, self.limits = metadata, limits
        environment = metadata.environment or {}
        parts: dict[str, Part] = {}
        core = {"reward", *FLAGS}
        for root, space in given.items():
            if space is None:
                recorded = environment.get(f"{root}_space")
                space = guess_space(root, metadata.fields) if recorded is None else space_from_json(recorded)
            part = plan_part(space, SpacePath(root), metadata.fields, limits)
            if part is None:
                raise UnsupportedSpaceError(f"nothing of the {root} space {space!r:.80} would be left")
            parts[root] = part
            core |= {leaf.name for leaf in space_tree(space, root).leaves}
        self.observation, self.action = parts["observation"], parts["action"]
        self._check_core()
        self._spec = self._find_spec(environment.get("env_spec"))
        self.infos = InfoPlan(
            {name: field for name, field in metadata.fields.items() if name not in core}, found, limits
        )

    def _check_core(self) -> None:
        fields = self.metadata.fields
        for name in ("reward", *FLAGS):
            if name not in fields:
                raise FieldError(
                    f"no field {name!r}, which every step of a Minari dataset has; add_field({name!r}, ...) adds it. "
                    f"There are {list(fields)}"
                )
        for name, is_state in ((n, part is self.observation) for part in self._parts() for n in part.names):
            if fields[name].state != is_state:
                which = "a state field, with T+1 rows" if is_state else "no state field"
                raise FieldError(f"field {name!r}: expected {which}, for a Minari dataset")
        check_flags(fields, Names())
        if math.prod(fields["reward"].shape) != 1 and not self.limits.is_hdf5:
            raise FieldError(
                f"field 'reward': Minari's {self.limits.data_format} format holds one number a step, not "
                f"{fields['reward'].shape}; use data_format='hdf5'"
            )

    def _find_spec(self, recorded: Any) -> EnvSpec | None:
        """The recorded environment's spec, as Minari takes it."""
        if recorded is None:
            return None
        spec = spec_from_json(recorded)
        try:
            EnvSpec.from_json(spec.to_json())
        except Exception as error:  # of arguments that JSON does not have, or ids that Gymnasium refuses
            self.limits.cannot_hold("the environment's spec", f"{type(error).__name__}: {error}")
            return None
        return spec

    def _parts(self) -> tuple[Part, Part]:
        return self.observation, self.action

    def new_storage(self, path: Path) -> Any:
        """An empty storage that says what it is about to hold."""
        storage = package.storage_class().new(
            path,
            observation_space=self.observation.space,
            action_space=self.action.space,
            env_spec=self._spec,
            data_format=self.limits.data_format,
            jpeg_encoding=self.limits.jpeg_encoding,
        )
        storage.update_metadata({GROUP: self._schema()})
        return storage

    def _schema(self) -> dict[str, Any]:
        """The metadata of the buffer without what is left out, as the folder itself would have it."""
        metadata = self.metadata
        written = {*self.observation.names, *self.action.names, "reward", *FLAGS, *self.infos.names}
        environment = None
        if metadata.environment is not None:
            environment = {name: value for name, value in metadata.environment.items() if name != IMPORTED}
            for root, part in zip(ROOTS, self._parts(), strict=True):
                if environment.get(f"{root}_space") is not None:
                    environment[f"{root}_space"] = space_to_json(part.source, root)
        fields = {name: field for name, field in metadata.fields.items() if name in written}
        limits: dict[str, Any] = {"circular": False, "max_episodes": None, "max_timesteps": None, "max_steps": None}
        return metadata_to_json(
            replace(metadata, fields=fields, environment=environment, revision=0, pending=(), obsolete=(), **limits)
        )

    def content(self, episode: Episode) -> dict[str, Any]:
        """The values of an episode as Minari takes them.

        Raises:
            CannotHold: the format does not take this episode.
        """
        if self.observation.names and not episode.has_final:
            raise CannotHold("its last observation was not recorded, and Minari has T+1 observations")
        if not self.limits.is_hdf5 and len(episode) > LONGEST_ARROW:
            raise CannotHold(
                f"it has {len(episode)} steps, and Minari reads back {LONGEST_ARROW} of an episode; use hdf5"
            )
        return {
            "observations": self.observation.take(episode),
            "actions": self.action.take(episode),
            "rewards": as_steps("reward", episode["reward"]),
            "terminations": as_steps("terminated", episode["terminated"]),
            "truncations": as_steps("truncated", episode["truncated"]),
            "infos": self.infos.take(episode),
        }
