"""A buffer written as a Minari dataset."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy.typing as npt
from gymnasium.envs.registration import EnvSpec
from tqdm import tqdm

from gym_replay.buffer.reading import Readable
from gym_replay.buffer.replay_buffer import ReplayBuffer
from gym_replay.errors import (
    EmptyBufferError,
    FieldError,
    NotABufferError,
)
from gym_replay.files.new_folder import new_folders
from gym_replay.interop.minari import package
from gym_replay.interop.minari.limits import CannotHold, Limits
from gym_replay.interop.minari.metadata import about_export, options_of, seed_of, to_metadata
from gym_replay.interop.minari.plans import Plan, Selected

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
        found = Selected(source, episodes)
        given = {"observation": observation_space, "action": action_space}
        plan = Plan(source.metadata, given, found, limits)
        about = about_export(
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
        with new_folders(target, parent=package.path_of("")) as (new,):
            storage = plan.new_storage(new.folder / "data")
            with package.written_once(storage):
                _write(storage, plan, found, progress=progress)
            storage.update_metadata({**about, "dataset_id": dataset_id, "minari_version": minari.__version__})
            _make_namespace(package.check_id(dataset_id))
            new.publish()
    finally:
        if opened is not None:
            opened.close()
    limits.warn(dataset_id)
    return minari.load_dataset(dataset_id)


def _write(storage: Any, plan: Plan, found: Selected, *, progress: bool) -> None:
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


def _metadatas(plan: Plan, found: Selected, numbers: Sequence[int]) -> Iterator[dict[str, Any]]:
    statistics = import_module("minari").EpisodeMetadataCallback()
    for number in numbers:
        episode = found[number]
        own = to_metadata(episode, plan.metadata.meta_fields, plan.limits)
        yield {**statistics({"rewards": episode["reward"]}), **own}


def _episode_buffers(
    plan: Plan, found: Selected, numbers: Sequence[int], written: list[int], bar: Any
) -> Iterator[Any]:
    """The episodes as Minari takes them; the numbers of those that it can hold go to ``written``."""
    make = import_module("minari.data_collector.episode_buffer").EpisodeBuffer
    for number in numbers:
        episode = found[number]
        try:
            content = plan.content(episode)
        except CannotHold as fault:
            plan.limits.cannot_hold(f"episode {found.indices[number]}", str(fault))
            bar.update()
            continue
        meta = episode.meta
        yield make(
            id=len(written),
            seed=seed_of(meta),
            options=options_of(meta, plan.limits),
            **content,
        )
        written.append(number)
        bar.update()


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
