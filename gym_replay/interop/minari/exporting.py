"""A buffer written as a Minari dataset."""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec

from gym_replay.buffer.concat import opened
from gym_replay.buffer.door import Metadata, metadata_to_json
from gym_replay.buffer.env_spec import spec_from_json
from gym_replay.buffer.episode import Episode
from gym_replay.buffer.reading import Readable
from gym_replay.errors import EmptyBufferError, FieldError, NotABufferError
from gym_replay.files.new_folder import new_folders
from gym_replay.interop.minari import package
from gym_replay.interop.minari.limits import GROUP, IMPORTED, LONGEST_ARROW, Limits
from gym_replay.interop.minari.metadata import about_export, options_of, seed_of, to_metadata
from gym_replay.interop.minari.parts import exportable, guess_space, nested
from gym_replay.interop.old_data import as_steps
from gym_replay.interop.transitions import ChosenEpisodes, check_flags
from gym_replay.notices import bar
from gym_replay.schema.fields import Field
from gym_replay.spaces import space_from_json, space_to_json, space_tree
from gym_replay.wrappers.infos import PRESENT, ROOT
from gym_replay.wrappers.recorded_schema import FLAGS

if TYPE_CHECKING:
    from gym_replay.buffer.loading.selection import Episodes

_AT_A_TIME = 100

_CORE = ("reward", *FLAGS)
"""The fields that every step has beside those of the spaces."""


def export_minari(
    buffer: str | os.PathLike[str] | Readable,
    dataset_id: str,
    *,
    data_format: str = "hdf5",
    episodes: Episodes | None = None,
    on_unsupported: str = "error",
    jpeg_encoding: bool = False,
    observation_space: gym.Space[Any] | None = None,
    action_space: gym.Space[Any] | None = None,
    author: str | set[str] | None = None,
    author_email: str | set[str] | None = None,
    algorithm_name: str | None = None,
    code_permalink: str | None = None,
    description: str | None = None,
    requirements: Sequence[str] | None = None,
    eval_env: str | EnvSpec | gym.Env[Any, Any] | None = None,
    ref_min_score: float | None = None,
    ref_max_score: float | None = None,
    progress: bool = True,
) -> Any:
    """Write a buffer as a Minari dataset, which :func:`import_minari` makes the same buffer of again, bit for bit.

    docs/minari.md has a table of what goes where. The episodes are written one by one. The dataset appears under its
    id when it is complete; until then it lies beside it in a hidden folder, which is removed where anything fails.

    Args:
        buffer: a folder, a ReplayBuffer or a ConcatReplayBuffer, recorded or with fields of the same names: observation
            (state fields), action, reward, terminated and truncated.
        dataset_id: such as ``"cartpole/random-v0"``; the dataset goes to ``MINARI_DATASETS_PATH``, by default
            ``~/.minari/datasets``.
        data_format: ``"hdf5"``, ``"arrow"`` or ``"parquet"``.
        episodes: which ones to write, as in ``buffer.dataloader``; None for all.
        on_unsupported: what becomes of what the format cannot hold: ``"error"``, or ``"drop"`` to leave it out, with a
            warning that lists it: fields, parts of Dict spaces, or episodes (such as those without a last observation).
        jpeg_encoding: have Minari keep images as JPEG, which changes them.
        observation_space, action_space: instead of the recorded ones. Without either, fields that were stored by
            hand are of unbounded Box spaces, or of Dict spaces of these.
        author, author_email: one, or a set of several; None for those of the dataset that the buffer was imported from,
            and so for the arguments that follow.
        algorithm_name, code_permalink, description: texts about the dataset.
        requirements: what to install to make the environment, in the style of pip.
        eval_env: the environment to evaluate in, where it is not the recorded one.
        ref_min_score, ref_max_score: returns of a random and of an expert policy, for normalised scores; None for the
            buffer's reference returns.
        progress: show a bar where it takes longer than a second.

    Returns:
        The ``minari.MinariDataset``.

    Raises:
        MissingExtraError: Minari is not installed.
        UnsupportedSpaceError: Minari cannot hold a part of a space; the message names it.
        FieldError: it cannot hold a field or an episode, or an argument is wrong.
        NotABufferError: there is a dataset of this id already.
        EmptyBufferError: there is no episode to write.
        StorageError: the disk is full, or the operating system refused for another reason.

    Example:
        >>> dataset = export_minari("data/cartpole", "cartpole/random-v0", author="me")  # doctest: +SKIP
        >>> dataset[0].observations.shape  # (T+1, 4)  # doctest: +SKIP
    """
    given = locals()
    minari = package.find_minari(data_format)
    limits = Limits(data_format, jpeg_encoding=jpeg_encoding, on_unsupported=on_unsupported)
    target = _free_place(dataset_id)
    with opened(buffer) as source:
        chosen = ChosenEpisodes(source, episodes)
        plan = _Plan(source.metadata, {"observation": observation_space, "action": action_space}, chosen, limits)
        about = about_export(source.metadata, eval_env, given)
        with new_folders(target, parent=package.path_of("")) as (new,):
            storage = plan.new_storage(new.folder / "data")
            with package.written_once(storage):
                _write(storage, plan, chosen, progress=progress)
            storage.update_metadata({**about, "dataset_id": dataset_id, "minari_version": minari.__version__})
            _make_namespace(package.check_id(dataset_id))
            new.publish()
    limits.warn(dataset_id)
    return minari.load_dataset(dataset_id)


def _write(storage: Any, plan: _Plan, chosen: ChosenEpisodes, *, progress: bool) -> None:
    """Write all episodes with their metadata, some at a time: an open HDF5 file takes memory for each of them."""
    lengths: list[int] = []
    with bar(len(chosen), "export", "episode", progress=progress) as shown:
        for first in range(0, len(chosen), _AT_A_TIME):
            metadatas: list[dict[str, Any]] = []
            some = range(first, min(first + _AT_A_TIME, len(chosen)))
            storage.update_episodes(_episode_buffers(plan, chosen, some, lengths, metadatas, shown))
            storage.update_episode_metadata(metadatas, range(len(lengths) - len(metadatas), len(lengths)))
    if not lengths:
        raise EmptyBufferError("Minari can hold none of the episodes")
    storage.update_metadata({"total_steps": sum(lengths), "total_episodes": len(lengths)})


def _episode_buffers(
    plan: _Plan, chosen: ChosenEpisodes, some: range, lengths: list[int], metadatas: list[dict[str, Any]], shown: Any
) -> Iterator[Any]:
    """Episodes as Minari takes them; the lengths and metadata of those that it can hold go to the lists."""
    make = import_module("minari.data_collector.episode_buffer").EpisodeBuffer
    statistics = import_module("minari").EpisodeMetadataCallback()
    for i in some:
        episode = chosen[i]
        try:
            content = plan.content(episode)
        except FieldError as error:
            plan.limits.cannot_hold(f"episode {chosen.indices[i]}", str(error))
        else:
            meta = episode.meta
            yield make(id=len(lengths), seed=seed_of(meta), options=options_of(meta, plan.limits), **content)
            own = to_metadata(episode, plan.metadata.meta_fields, plan.limits)
            metadatas.append({**statistics({"rewards": episode["reward"]}), **own})
            lengths.append(len(episode))
        shown.update()


def _free_place(dataset_id: str) -> Path:
    """Where the dataset will be.

    Raises:
        NotABufferError: there is one, or something else is in its way.
        FieldError: it is no id.
    """
    namespaces = (package.check_id(dataset_id) or "name").split("/")
    if wrong := [name for name in namespaces if name in ("", "data")]:
        raise FieldError(
            f"dataset id {dataset_id!r}: a namespace {wrong[0]!r} keeps Minari from listing datasets; choose another"
        )
    target = package.path_of(dataset_id)
    if os.path.lexists(target):
        raise NotABufferError(
            errno.EEXIST,
            f"there is a Minari dataset {dataset_id!r} already; choose another version, or "
            f"minari.delete_dataset({dataset_id!r}) deletes it",
            str(target),
        )
    for parent in target.parents:
        if (parent / "data" / "metadata.json").exists():
            raise NotABufferError(
                errno.EEXIST, "the namespace is a dataset; choose an id that is not inside of one", str(parent)
            )
        if parent == package.path_of(""):
            break
    return target


def _make_namespace(namespace: str | None) -> None:
    names = import_module("minari.namespace")
    if namespace is not None and namespace not in names.list_local_namespaces():
        names.create_namespace(namespace)


class _Plan:
    """What of a buffer becomes what of a dataset.

    Raises:
        UnsupportedSpaceError, FieldError: as :func:`export_minari`.
    """

    def __init__(
        self,
        metadata: Metadata,
        given: Mapping[str, gym.Space[Any] | None],
        episodes: Sequence[Episode],
        limits: Limits,
    ) -> None:
        self.metadata, self.limits = metadata, limits
        fields, environment = metadata.fields, metadata.environment or {}
        self._parts = {}
        core = {*_CORE}
        for root, space in given.items():
            if space is None:
                recorded = environment.get(f"{root}_space")
                space = guess_space(root, fields) if recorded is None else space_from_json(recorded)
            self._parts[root] = exportable(space, root, fields, limits)
            core |= {leaf.name for leaf in space_tree(space, root).leaves}
        self._check_core()
        self._spec = self._find_spec(environment.get("env_spec"))
        infos = {name: field for name, field in fields.items() if name not in core}
        self._infos = _InfoPlan(infos, episodes, limits)

    def _check_core(self) -> None:
        fields = self.metadata.fields
        for name in _CORE:
            if name not in fields:
                raise FieldError(
                    f"no field {name!r}, which every step of a Minari dataset has; add_field({name!r}, ...) adds it. "
                    f"There are {list(fields)}"
                )
        for root, part in self._parts.items():
            for name in part.names:
                if fields[name].state != (root == "observation"):
                    which = "a state field, with T+1 rows" if root == "observation" else "no state field"
                    raise FieldError(f"field {name!r}: expected {which}, for a Minari dataset")
        check_flags(fields, *FLAGS)
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

    def new_storage(self, path: Path) -> Any:
        """An empty storage that says what it is about to hold."""
        storage = package.storage_class().new(
            path,
            **{f"{root}_space": part.tree.space for root, part in self._parts.items()},
            env_spec=self._spec,
            data_format=self.limits.data_format,
            jpeg_encoding=self.limits.jpeg_encoding,
        )
        storage.update_metadata({GROUP: self._schema()})
        return storage

    def _schema(self) -> dict[str, Any]:
        """The metadata of the buffer without what is left out, as the folder itself would have it."""
        metadata, environment = self.metadata, None
        written = {*_CORE, *self._infos.names, *(name for part in self._parts.values() for name in part.names)}
        if metadata.environment is not None:
            environment = {name: value for name, value in metadata.environment.items() if name != IMPORTED}
            for root, part in self._parts.items():
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
            FieldError: the format does not take this episode.
        """
        if self._parts["observation"].names and not episode.has_final:
            raise FieldError("its last observation was not recorded, and Minari has T+1 observations")
        if not self.limits.is_hdf5 and len(episode) > LONGEST_ARROW:
            raise FieldError(
                f"it has {len(episode)} steps, and Minari reads back {LONGEST_ARROW} of an episode; use hdf5"
            )
        return {
            **{f"{root}s": nested(part.tree, episode, self.limits) for root, part in self._parts.items()},
            "rewards": as_steps("reward", episode["reward"]),
            "terminations": as_steps("terminated", episode["terminated"]),
            "truncations": as_steps("truncated", episode["truncated"]),
            "infos": self._infos.take(episode),
        }


class _InfoPlan:
    """Which fields become which entries of the infos, the only place that Minari has for more values of the steps.

    A field ``info.a.b`` is the entry ``infos["a"]["b"]``, with the row of ``reset`` first. Extra fields, and where an
    entry was missing, are entries of ``infos["gym_replay"]`` by name.

    Args:
        fields: those that are neither observation, action, reward nor flags.
        episodes: all that will be written: where an entry is in each of their rows, nothing says so.
        limits: of the format.

    Attributes:
        names: the fields that a reader of the dataset will have.
    """

    def __init__(self, fields: Mapping[str, Field], episodes: Sequence[Episode], limits: Limits) -> None:
        self._entries: dict[tuple[str, ...], tuple[str, Field]] = {}
        self._limits = limits
        self.names: list[str] = []
        entry_of = {f"{PRESENT}.{name.partition('.')[2]}": name for name in fields if name.startswith(f"{ROOT}.")}
        for name in sorted(fields, key=lambda name: name in entry_of):  # what says where entries are comes after them
            if name in entry_of and entry_of[name] not in self.names:
                continue
            if name not in entry_of or not all(episode[name].all() for episode in episodes):
                path = tuple(name.split(".")[1:]) if name.startswith(f"{ROOT}.") else (GROUP, name)
                if (fault := self._fault(name, path, fields[name])) is not None:
                    limits.cannot_hold(f"field {name!r}", fault)
                    continue
                self._entries[path] = name, fields[name]
            self.names.append(name)

    def _fault(self, name: str, path: tuple[str, ...], field: Field) -> str | None:
        if field.ragged:
            return "its rows have different sizes"
        if not self._limits.is_hdf5 and 0 in field.shape:
            return f"its shape {field.shape} has no elements"
        if path[0] == GROUP and name.startswith(f"{ROOT}."):
            return f"the entry {GROUP!r} of the infos is taken"
        taken = [other for other in self._entries if path[: len(other)] == other or other[: len(path)] == path]
        return f"its entry is where that of {self._entries[taken[0]][0]!r} is" if taken else None

    def take(self, episode: Episode) -> dict[str, Any]:
        """The infos of an episode, each entry ``(T+1, *field.shape)``."""
        infos: dict[str, Any] = {}
        for path, (name, field) in self._entries.items():
            group = infos
            for key in path[:-1]:
                group = group.setdefault(key, {})
            rows = episode[name]
            if not field.state:
                rows = np.concatenate([rows, field.default_value()[None]])
            # Minari's reader stumbles over Arrow arrays of one axis, but not over lists of NumPy's numbers.
            group[path[-1]] = rows if self._limits.is_hdf5 or field.shape else list(rows)
        return infos
