"""The folder that a collection goes to: its buffer, which episodes are there, and which do not belong there."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from gym_replay.buffer.door import has_buffer
from gym_replay.buffer.reading import Readable
from gym_replay.buffer.replay_buffer import ReplayBuffer
from gym_replay.collecting.journal import Journal, read_journal
from gym_replay.collecting.request import Request
from gym_replay.errors import ConfigMismatchError, CorruptBufferError
from gym_replay.schema.fields import Field
from gym_replay.wrappers.recorded_schema import check_arguments, open_for, trees_of
from gym_replay.wrappers.rewards import declared_shape
from gym_replay.wrappers.vector.sub_environments import SubEnvironments

INDEX = "collect_index"
"""The meta field with an episode's number in the collection."""

SHARDS = "shards"
"""The folder in which collections by several workers have theirs."""

_META = {INDEX: Field("int64", default=-1)}


def open_target(env: Any, folder: Path, request: Request, *, overwrite: bool) -> ReplayBuffer:
    """The buffer in a folder for what an environment, single or vector, plays; its lock is taken.

    Raises:
        ConfigMismatchError: what is in the folder was recorded from something else, or not by collect().
        BufferLockedError: somebody else writes to it.
    """
    if (folder / SHARDS).is_dir():
        raise ConfigMismatchError(
            f"{folder} was collected with engine='ray', each worker into a folder in {SHARDS}; go on with that engine, "
            "or choose another folder"
        )
    options = dict(request.recorder)
    dtypes = dict(options.get("dtypes") or {})
    check_arguments("discard", options.get("record_info", False), dtypes)
    if isinstance(env, gym.vector.VectorEnv):
        sub = SubEnvironments(env)
        observation, action = sub.space("observation_space"), sub.space("action_space")
        spec = sub.spec()
    else:
        observation, action, spec = env.observation_space, env.action_space, env.spec
    trees = trees_of(observation, action, dtypes)
    options |= {"overwrite": overwrite}
    buffer = open_for(*trees, spec, folder, options, declared=declared_shape(env), more_own_meta=_META)
    try:
        buffer.acquire()
    except BaseException:
        buffer.close()
        raise
    return buffer


def open_journal(buffer: ReplayBuffer, request: Request) -> Journal:
    """What was noted of the collection in a buffer; of a new one, what it is to be.

    Raises:
        ConfigMismatchError: the episodes were not made by collect(), or with other arguments.
        CorruptBufferError: the note is damaged.
    """
    identity, uuid = request.identity(), buffer.metadata.uuid
    journal = read_journal(buffer.folder)
    if journal is not None and journal.uuid == uuid:
        journal.check(identity, buffer.folder)
        return journal
    if len(buffer):
        raise ConfigMismatchError(
            f"{buffer.folder} holds {len(buffer)} episodes, and nothing says how collect() made them; choose another "
            "folder, or overwrite=True to replace them"
        )
    return Journal(identity, uuid)


def episodes_in(buffer: Readable, beside: Mapping[int, int] | None = None) -> dict[int, int]:
    """The lengths of the collected episodes, by number.

    Args:
        buffer: where they are.
        beside: those of other buffers of the collection.

    Raises:
        ConfigMismatchError: there are others among them.
        CorruptBufferError: a number is there twice.
    """
    others = beside or {}
    found: dict[int, int] = {}
    for part in buffer.snapshots():
        folder = part.reader.folder
        if INDEX not in part.metadata.recorder_meta:
            raise ConfigMismatchError(f"{folder} was not made by collect(); choose another folder")
        numbers = part.meta(INDEX)
        if (numbers < 0).any():
            raise ConfigMismatchError(
                f"{folder}: {np.count_nonzero(numbers < 0)} of its episodes were not recorded by collect(), which "
                "therefore cannot go on here; choose another folder"
            )
        lengths = dict(zip(numbers.tolist(), part.lengths.tolist(), strict=True))
        if len(lengths) < len(numbers) or lengths.keys() & (found.keys() | others.keys()):
            values, counts = np.unique([*numbers.tolist(), *found, *others], return_counts=True)
            raise CorruptBufferError(
                f"{folder}: number {values[counts > 1][0]} of the collection is there twice; delete one of them with "
                "buffer.delete"
            )
        found |= lengths
    return found


def returns_in(buffer: Readable) -> list[float]:
    """The return of each episode; of rewards of several values the sum of all."""
    returns: list[float] = []
    for part in buffer.snapshots():
        known = part.metadata.meta_fields.get("episode_return")
        if known is None or known.dtype.kind != "f":  # it is no recorder's buffer
            continue
        of_each = part.meta("episode_return")
        returns += of_each.sum(axis=tuple(range(1, of_each.ndim))).tolist()
    return returns


def shards_of(folder: Path) -> list[Path]:
    """The folders of workers that hold a buffer, in their order."""
    found = (path for path in (folder / SHARDS).glob("worker-*") if re.fullmatch(r"worker-\d{5,}", path.name))
    return sorted((path for path in found if has_buffer(path)), key=lambda path: int(path.name.partition("-")[2]))


def delete_numbers(buffer: ReplayBuffer, numbers: Collection[int]) -> None:
    """Delete episodes of a collection by their numbers."""
    if not numbers:
        return
    buffer.refresh()
    (snapshot,) = buffer.snapshots()
    places = np.flatnonzero(np.isin(snapshot.meta(INDEX), list(numbers)))
    if len(places):
        buffer.delete(places)
