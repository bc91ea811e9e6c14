"""The folder that a collection goes to: its buffers, which episodes are there, and what `collect.json` says of them.

``collect.json`` lies beside the buffer's files and is no part of the buffer. It has what the episodes were collected
with, what was asked for, and which episodes were played and not kept. Like everything in a folder it is read as if a
stranger had written it. Which episodes there are is not in it: each says so itself, in the meta field
``collect_index``.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import gymnasium as gym
import numpy as np

from gym_replay.buffer.door import has_buffer
from gym_replay.buffer.finding import SHARDS, natural_key
from gym_replay.buffer.reading import Readable
from gym_replay.buffer.replay_buffer import ReplayBuffer
from gym_replay.collecting.plan import Goal, Played, unneeded
from gym_replay.errors import ConfigMismatchError, CorruptBufferError
from gym_replay.files.directory import content_beneath
from gym_replay.files.documents import LARGEST, parse_json
from gym_replay.schema.fields import Field
from gym_replay.wrappers.recorded_schema import check_arguments, open_for, trees_of
from gym_replay.wrappers.rewards import declared_shape
from gym_replay.wrappers.vector.adapters.registry import adapter_for

INDEX = "collect_index"
"""The meta field with an episode's index in the collection."""

_RETURN = "episode_return"

_NAME = "collect.json"
_KIND = {"format": "gym_replay collection", "version": 2}
_SECONDS_BETWEEN_NOTES = 10.0
_MEMBERS: dict[str, type] = {"identity": dict, "uuid": str, "goals": list, "discarded": list}
_MOST = {"goals": 1000, "discarded": 1 << 19}
"""How many of each are noted: the file stays below the largest that is read. More discarded ones are played again."""

_LONGEST_SHOWN = 300

PutFile: TypeAlias = Callable[[str, bytes], None]
"""Puts a file into a folder that is locked, by its name and content: ``put_file`` of a buffer or of a lock."""


@dataclass
class Journal:
    """What is known of a collection beside its episodes, as ``collect.json`` says it.

    Attributes:
        identity: what decides what each episode is, as JSON values by argument.
        uuid: of the buffer that it is about; empty for a folder of shards.
        goals: what was asked for; those that another one covers are left out.
        discarded: the indices of the episodes that were played and not kept.
    """

    identity: dict[str, Any]
    uuid: str
    put: PutFile
    goals: list[Goal] = field(default_factory=list)
    discarded: set[int] = field(default_factory=set)
    _noted: float = field(default_factory=time.monotonic)

    def ask(self, goal: Goal) -> None:
        """Note what is asked for now, unless something was that covers it."""
        if any(each.covers(goal) for each in self.goals):
            return
        self.goals = [*(each for each in self.goals if not goal.covers(each)), goal][-_MOST["goals"] :]
        self.write()

    def note(self, discarded: Collection[int], *, seconds: float = 0.0) -> None:
        """Note which episodes were discarded, where there are more of them and so many seconds have passed.

        What a process that is killed did not note is played again, and discarded again.
        """
        if len(discarded) != len(self.discarded) and time.monotonic() - self._noted >= seconds:
            self.discarded = set(discarded)
            self.write()
            self._noted = time.monotonic()

    def write(self) -> None:
        """Write ``collect.json``."""
        document = {
            **_KIND,
            "uuid": self.uuid,
            "identity": self.identity,
            "goals": [asdict(goal) for goal in self.goals],
            "discarded": sorted(self.discarded)[: _MOST["discarded"]],
        }
        self.put(_NAME, json.dumps(document, allow_nan=False).encode())


def open_journal(folder: Path, identity: dict[str, Any], put: PutFile, *, uuid: str = "", holds: str = "") -> Journal:
    """What was noted of the collection in a folder; of a new one, what it is to be.

    Where no episode came of what was asked for so far, since the policy raised for example, other arguments begin anew.

    Args:
        folder: where ``collect.json`` is.
        identity: of what is collected now.
        put: puts the file there.
        uuid: of the buffer; empty for a folder of shards.
        holds: what is in the folder already; empty where there is nothing.

    Raises:
        ConfigMismatchError: the episodes were not made by collect(), or with other arguments.
        CorruptBufferError: the file is damaged.
    """
    try:
        content = content_beneath(folder, _NAME, LARGEST)
        found = None if content is None else _parse(parse_json(content))
    except ValueError as error:
        raise CorruptBufferError(
            f"{folder / _NAME}: {error}; without the file nothing can be collected into the folder"
        ) from None
    if found is not None and found["uuid"] == uuid and (holds or _differences(found["identity"], identity) == ([], [])):
        _check_identity(folder, found["identity"], identity)
        code = {**_code_of(found["identity"]), **_code_of(identity)}
        return Journal({**identity, "code": code}, uuid, put, found["goals"], found["discarded"])
    if holds:
        raise ConfigMismatchError(
            f"{folder} holds {holds}, and nothing says how collect() made them; choose another folder, or replace them "
            "with overwrite=True"
        )
    return Journal(identity, uuid, put)


def _parse(document: Any) -> dict[str, Any]:
    """The members of the document, of which goals are objects and indices a set; ValueError where it is damaged."""
    if not isinstance(document, dict) or {name: document.get(name) for name in _KIND} != _KIND:
        raise ValueError(f"expected an object with {_KIND}; another version of gym_replay may have written it")
    for name, kind in _MEMBERS.items():
        if not isinstance(document.get(name), kind) or len(document[name]) > _MOST.get(name, 1 << 20):
            raise ValueError(f"{name!r}: expected a {kind.__name__} of {_MOST.get(name, 'some')} entries at most")
    goals, discarded = document["goals"], document["discarded"]
    if not all(isinstance(goal, dict) for goal in goals):
        raise ValueError("'goals': expected objects")
    if not all(type(index) is int and index >= 0 for index in discarded):
        raise ValueError("'discarded': expected indices from 0 on")
    parsed = [Goal(goal.get("episodes"), goal.get("steps")) for goal in goals]
    return {**document, "goals": parsed, "discarded": set(discarded)}


def _check_identity(folder: Path, stored: Mapping[str, Any], passed: Mapping[str, Any]) -> None:
    arguments, functions = _differences(stored, passed)
    remedy = "Pass what is stored, choose another folder, or replace the episodes with overwrite=True"
    if functions and not arguments:
        remedy = "Choose another folder, or replace the episodes with overwrite=True"
        if any(difference.startswith("policy:") for difference in functions):
            remedy += f"; policy_name={passed.get('policy')!r} says that it is the same policy all the same"
    if arguments or functions:
        listed = "; ".join(arguments or functions)
        raise ConfigMismatchError(f"{folder} was collected with other arguments: {listed}. {remedy}")


def _differences(stored: Mapping[str, Any], passed: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Which arguments differ, and which functions of the same name have other code."""
    arguments = [
        f"{name}: stored {_brief(stored.get(name))}, passed {_brief(passed.get(name))}"
        for name in {**stored, **passed}
        if name != "code" and stored.get(name) != passed.get(name)
    ]
    functions = [
        f"{name}: {_brief(passed.get(name))} has other code, constants or weights than it had then"
        for name in _changed_code(_code_of(stored), _code_of(passed))
    ]
    return arguments, functions


def _code_of(identity: Mapping[str, Any]) -> dict[str, Any]:
    code = identity.get("code")
    return code if isinstance(code, dict) else {}


def _changed_code(stored: Mapping[str, Any], passed: Mapping[str, Any]) -> list[str]:
    """The functions whose code is known of both, compiled by the same version of Python, and differs."""
    return [
        name
        for name, now in passed.items()
        if isinstance(then := stored.get(name), dict) and then.get("python") == now["python"] and then != now
    ]


def _brief(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= _LONGEST_SHOWN else text[:_LONGEST_SHOWN] + "..."


# --- buffers ---


def open_for_playing(
    env: Any, folder: Path, recorder: Mapping[str, Any], *, overwrite: bool, module: str | None = None
) -> ReplayBuffer:
    """The buffer in a folder for what an environment, single or vector, plays; its lock is held.

    Args:
        recorder: the arguments of the recorder.
        module: what is imported to register the environment.

    Raises:
        ConfigMismatchError: what is in the folder was recorded from something else, or with several workers.
        BufferLockedError: somebody else writes to it.
    """
    if (folder / SHARDS).is_dir():
        raise ConfigMismatchError(
            f"{folder} was collected with engine='ray', each worker into a folder in {SHARDS}; go on with that engine, "
            "or choose another folder"
        )
    dtypes = dict(recorder["dtypes"] or {})
    check_arguments("discard", recorder["record_info"], dtypes)
    if isinstance(env, gym.vector.VectorEnv):
        sub = adapter_for(env)
        observation, action, spec = sub.space("observation_space"), sub.space("action_space"), sub.spec()
        num_envs: int | None = sub.count
    else:
        observation, action, spec, num_envs = env.observation_space, env.action_space, env.spec, None
    buffer = open_for(
        *trees_of(observation, action, dtypes),
        spec,
        folder,
        {**recorder, "overwrite": overwrite},
        declared=declared_shape(env, num_envs),
        more_own_meta={INDEX: Field("int64", default=-1)},
        module=module,
    )
    try:
        buffer.acquire()
    except BaseException:
        buffer.close()
        raise
    return buffer


def episodes_in(buffers: Iterable[Readable]) -> Iterator[Played]:
    """The collected episodes in buffers.

    Raises:
        ConfigMismatchError: there are others among them.
        CorruptBufferError: an index is there twice.
    """
    seen: set[int] = set()
    for part in (part for buffer in buffers for part in buffer.snapshots()):
        folder = part.reader.folder
        if not {INDEX, _RETURN} <= set(part.metadata.recorder_meta):
            raise ConfigMismatchError(f"{folder} was not made by collect(); choose another folder")
        indices = part.meta(INDEX)
        if (indices < 0).any():
            raise ConfigMismatchError(
                f"{folder}: {np.count_nonzero(indices < 0)} of its episodes were not recorded by collect(), which "
                "therefore cannot go on here; choose another folder"
            )
        returns = part.meta(_RETURN).astype(np.float64)
        returns = returns.sum(axis=tuple(range(1, returns.ndim)))
        for index, length, episode_return in zip(
            indices.tolist(), part.lengths.tolist(), returns.tolist(), strict=True
        ):
            if index in seen:
                raise CorruptBufferError(
                    f"{folder}: {INDEX} {index} is there twice; delete one of the two episodes with buffer.delete"
                )
            seen.add(index)
            yield Played(index, length, episode_return)


def summed_returns(buffer: Readable) -> float:
    """The sum of the returns of all episodes; 0.0 where no recorder made the buffer."""
    parts = [part for part in buffer.snapshots() if _RETURN in part.metadata.recorder_meta]
    return float(sum(part.meta(_RETURN).sum() for part in parts))


def shards_of(folder: Path) -> list[Path]:
    """The folders of workers that hold a buffer, in their order."""
    return sorted(filter(has_buffer, (folder / SHARDS).glob("worker-*")), key=natural_key)


def delete_episodes(buffer: ReplayBuffer, indices: Collection[int]) -> None:
    """Delete episodes of a collection by their indices, where they are in a buffer."""
    if indices:
        buffer.refresh()
        (snapshot,) = buffer.snapshots()
        if len(rows := np.flatnonzero(np.isin(snapshot.meta(INDEX), list(indices)))):
            buffer.delete(rows)


def delete_unneeded(buffers: Sequence[ReplayBuffer], goals: Iterable[Goal]) -> None:
    """Delete the episodes of buffers that belong to no collection that was asked for."""
    indices = unneeded({episode.index: episode.length for episode in episodes_in(buffers)}, goals)
    for buffer in buffers:
        delete_episodes(buffer, indices)


def give_same_fields(buffers: Sequence[ReplayBuffer]) -> None:
    """Give all shards the same fields, so that they can be read as one buffer.

    An entry of the infos that came up in one shard only is a field of the others too, with nothing in it, and one whose
    numbers needed a wider dtype in one shard has it in all.
    """
    fields: dict[str, Field] = {}
    for buffer in buffers:
        for name, info in buffer.metadata.fields.items():
            dtype = np.promote_types(info.dtype, fields.get(name, info).dtype)
            fields[name] = replace(info, dtype=dtype)
    for buffer in buffers:
        known = buffer.metadata.fields
        buffer.widen_schema({name: info for name, info in fields.items() if known.get(name) != info})
