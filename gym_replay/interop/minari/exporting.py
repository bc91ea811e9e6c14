"""A buffer written as a Minari dataset."""

from __future__ import annotations

import errno
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.envs.registration import EnvSpec
from tqdm import tqdm

from gym_replay.buffer.env_spaces import space_from_json, space_to_json
from gym_replay.buffer.env_spec import spec_from_json
from gym_replay.buffer.episode import Episode
from gym_replay.buffer.reading import Readable
from gym_replay.buffer.replay_buffer import ReplayBuffer
from gym_replay.buffer.storage.layout import Metadata, metadata_to_json
from gym_replay.errors import (
    EmptyBufferError,
    FieldError,
    NotABufferError,
    UnsupportedSpaceError,
)
from gym_replay.interop.minari import facts, package
from gym_replay.interop.minari.aside import HiddenFolder
from gym_replay.interop.minari.infos import InfoPlan
from gym_replay.interop.minari.limits import GROUP, IMPORTED, LONGEST_ARROW, ROOTS, CannotHold, Limits
from gym_replay.interop.minari.parts import Part, guess_space, plan_part
from gym_replay.wrappers.recorded_schema import FLAGS
from gym_replay.wrappers.space_leaf import Place
from gym_replay.wrappers.spaces import space_leaves

TEXTS = ("algorithm_name", "code_permalink", "description")
SETS = ("author", "author_email")
SCORES = ("ref_min_score", "ref_max_score")

_SHOWN = 10
_AT_A_TIME = 100


def export_minari(
    buffer: str | os.PathLike[str] | Readable,
    dataset_id: str,
    *,
    data_format: str = "hdf5",
    episodes: Sequence[int] | slice | npt.NDArray[Any] | None = None,
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
        episodes: indices, a slice or a mask of the episodes to write; None for all.
        on_unsupported: what becomes of what the format cannot hold: ``"error"``, or ``"drop"`` to leave it out, with a
            warning that lists it: fields, parts of Dict spaces, or episodes (such as those without a last observation).
        jpeg_encoding: have Minari keep images as JPEG, which changes them.
        observation_space, action_space: in the place of the recorded ones. Without either, fields that were stored by
            hand are of unbounded Box spaces, or of Dict spaces of these.
        author, author_email: one, or a set of several; None for those of the dataset that the buffer was imported from,
            and so for the arguments that follow.
        algorithm_name, code_permalink, description: texts about the dataset.
        requirements: what to install to make the environment, in the style of pip.
        eval_env: the environment to evaluate in, where it is not the recorded one.
        ref_min_score, ref_max_score: returns of a random and of an expert policy, for normalised scores.
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
    minari = package.find_minari(data_format)
    limits = Limits(data_format, jpeg_encoding=jpeg_encoding, on_unsupported=on_unsupported)
    target = _free_place(dataset_id)
    opened = None if isinstance(buffer, Readable) else ReplayBuffer.from_folder(buffer, read_only=True)
    source = opened if opened is not None else buffer
    assert isinstance(source, Readable)
    try:
        found = _Selected(source, episodes)
        given = {"observation": observation_space, "action": action_space}
        plan = _Plan(source.metadata, given, found, limits)
        about = _about(
            source.metadata,
            eval_env,
            {
                "author": author,
                "author_email": author_email,
                "algorithm_name": algorithm_name,
                "code_permalink": code_permalink,
                "description": description,
                "requirements": requirements,
                "ref_min_score": ref_min_score,
                "ref_max_score": ref_max_score,
            },
        )
        hidden = HiddenFolder(target, package.path_of(""))
        with hidden as aside:
            storage = plan.new_storage(aside / "data")
            with package.written_once(storage):
                _write(storage, plan, found, progress=progress)
            storage.update_metadata({**about, "dataset_id": dataset_id, "minari_version": minari.__version__})
            _make_namespace(package.check_id(dataset_id))
            hidden.put_in_place()
    finally:
        if opened is not None:
            opened.close()
    if limits.dropped:
        shown = limits.dropped[:_SHOWN]
        more = [f"and {len(limits.dropped) - _SHOWN} more"] if len(limits.dropped) > _SHOWN else []
        warnings.warn("\n  ".join([f"{dataset_id}: left out:", *shown, *more]), stacklevel=2)
    return minari.load_dataset(dataset_id)


class _Selected(Sequence[Episode]):
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


class _Plan:
    """What of a buffer becomes what of a dataset.

    Raises:
        UnsupportedSpaceError, FieldError: as :func:`export_minari`.
    """

    def __init__(
        self, metadata: Metadata, given: Mapping[str, gym.Space[Any] | None], found: _Selected, limits: Limits
    ) -> None:
        self.metadata, self.limits = metadata, limits
        environment = metadata.environment or {}
        parts: dict[str, Part] = {}
        core = {"reward", *FLAGS}
        for root, space in given.items():
            if space is None:
                recorded = environment.get(f"{root}_space")
                space = guess_space(root, metadata.fields) if recorded is None else space_from_json(recorded)
            part = plan_part(space, Place(root), metadata.fields, limits)
            if part is None:
                raise UnsupportedSpaceError(f"nothing of the {root} space {space!r:.80} would be left")
            parts[root] = part
            core |= {leaf.name for leaf in space_leaves(space, root)}
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
        if fields["reward"].shape and not self.limits.is_hdf5:
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
            self.limits.refuse("the environment's spec", f"{type(error).__name__}: {error}")
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


def _about(metadata: Metadata, env: str | EnvSpec | gym.Env[Any, Any] | None, given: Mapping[str, Any]) -> Any:
    """What the dataset says of itself, checked; what is not given is as in the dataset of the import."""
    imported = (metadata.environment or {}).get(IMPORTED)
    before = imported if isinstance(imported, dict) else {}
    about: dict[str, Any] = {}
    for name, passed in given.items():
        value = before.get(name) if passed is None else passed
        if value is not None:
            about[name] = _checked(name, value)
    spec = gym.spec(env) if isinstance(env, str) else env.spec if isinstance(env, gym.Env) else env
    if spec is not None:
        about["eval_env_spec"] = spec.to_json()
    elif isinstance(before.get("eval_env_spec"), str):
        about["eval_env_spec"] = before["eval_env_spec"]
    return about


def _checked(name: str, value: Any) -> Any:
    if name in SETS:
        value = {value} if isinstance(value, str) else set(value)
    elif name == "requirements":
        value = list(value)
    items = [value] if name in TEXTS else [] if name in SCORES else list(value)
    if name in SCORES and (isinstance(value, bool) or not isinstance(value, (int, float, np.number))):
        raise FieldError(f"{name}={value!r:.60}: expected a number")
    if wrong := [item for item in items if not isinstance(item, str)]:
        raise FieldError(f"{name}: expected a string, got {wrong[0]!r:.60}")
    return float(value) if name in SCORES else value


def _write(storage: Any, plan: _Plan, found: _Selected, *, progress: bool) -> None:
    """Write all episodes with their metadata, some at a time: an open HDF5 file takes memory for each of them."""
    written: list[int] = []
    with tqdm(total=len(found), desc="export", unit="episode", delay=1, disable=not progress) as bar:
        for first in range(0, len(found), _AT_A_TIME):
            before = len(written)
            numbers = range(first, min(first + _AT_A_TIME, len(found)))
            storage.update_episodes(_episode_buffers(plan, found, numbers, written, bar))
            storage.update_episode_metadata(_metadatas(plan, found, written[before:]), range(before, len(written)))
    if not written:
        raise EmptyBufferError("Minari can hold none of the episodes")
    steps = sum(len(found[number]) for number in written)
    storage.update_metadata({"total_steps": steps, "total_episodes": len(written)})


def _metadatas(plan: _Plan, found: _Selected, numbers: Sequence[int]) -> Iterator[dict[str, Any]]:
    statistics = import_module("minari").EpisodeMetadataCallback()
    for number in numbers:
        episode = found[number]
        own = facts.to_metadata(episode, plan.metadata.meta_fields, plan.limits)
        yield {**statistics({"rewards": episode["reward"]}), **own}


def _episode_buffers(
    plan: _Plan, found: _Selected, numbers: Sequence[int], written: list[int], bar: Any
) -> Iterator[Any]:
    """The episodes as Minari takes them; the numbers of those that it can hold go to ``written``."""
    make = import_module("minari.data_collector.episode_buffer").EpisodeBuffer
    for number in numbers:
        episode = found[number]
        try:
            content = _content(plan, episode)
        except CannotHold as fault:
            plan.limits.refuse_episode(found.indices[number], str(fault))
            bar.update()
            continue
        meta = episode.meta
        yield make(
            id=len(written),
            seed=facts.seed_of(meta),
            options=facts.options_of(meta, plan.limits),
            **content,
        )
        written.append(number)
        bar.update()


def _content(plan: _Plan, episode: Episode) -> dict[str, Any]:
    if not episode.has_final:
        raise CannotHold("its last observation was not recorded, and Minari has T+1 observations")
    if not plan.limits.is_hdf5 and len(episode) > LONGEST_ARROW:
        raise CannotHold(f"it has {len(episode)} steps, and Minari reads back {LONGEST_ARROW} of an episode; use hdf5")
    return {
        "observations": plan.observation.take(episode),
        "actions": plan.action.take(episode),
        "rewards": episode["reward"],
        "terminations": episode["terminated"],
        "truncations": episode["truncated"],
        "infos": plan.infos.take(episode),
    }


def _free_place(dataset_id: str) -> Path:
    """Where the dataset will be.

    Raises:
        NotABufferError: there is one, or something else is in its way.
    """
    package.check_id(dataset_id)
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
