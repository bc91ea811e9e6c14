"""What a recorder stores: its fields and meta fields, and the buffer that they go to."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec

from gym_replay.buffer.door import Metadata, has_buffer, read_metadata
from gym_replay.buffer.env_spec import spec_to_json
from gym_replay.buffer.replay_buffer import ReplayBuffer, check_match, open_buffer
from gym_replay.errors import ConfigMismatchError, FieldError
from gym_replay.files.folders import folder_of
from gym_replay.schema.fields import Field, FieldLike, parse_fields, plain_declaration
from gym_replay.spaces import Leaf, Node, space_to_json, space_tree
from gym_replay.wrappers.generator_state import NUMBERS
from gym_replay.wrappers.infos import check_infos, is_info

RECORDER_META: dict[str, FieldLike] = {
    "episode_seed": Field("int64", default=-1),
    "episode_return": Field("float64"),
    "episode_complete": Field("bool"),
    "episode_options": Field("str"),
    "episode_rng": Field("uint64", (NUMBERS,)),
    "episode_start": Field("float64"),
    "episode_duration": Field("float64"),
    "episode_run": Field("str"),
    "env_index": Field("int64"),
}
"""Meta fields of the recorder's own; docs/semantics.md says what each one is."""

_ON_INCOMPLETE = ("keep", "discard")

FLAGS = ("terminated", "truncated")


def core_fields(observation: Node, action: Node, reward: tuple[int, ...]) -> dict[str, Field]:
    """The fields that each step has."""
    fields = {leaf.name: leaf.field for leaf in (*observation.leaves, *action.leaves)}
    return {**fields, "reward": Field("float64", reward), **{name: Field("bool") for name in FLAGS}}


def meta_fields(reward: tuple[int, ...]) -> dict[str, Field]:
    """The recorder's own meta fields."""
    return {**parse_fields(RECORDER_META), "episode_return": Field("float64", reward)}


def trees_of(roots: Mapping[str, gym.Space[Any]], dtypes: Mapping[str, Any]) -> dict[str, Node]:
    """The trees of an environment's spaces; each takes the dtypes of its own fields.

    Raises:
        UnsupportedSpaceError, FieldError: as :func:`~gym_replay.spaces.space_tree`.
    """
    found = {}
    for root, space in roots.items():
        own = {name: dtype for name, dtype in dtypes.items() if name.partition(".")[0] == root}
        found[root] = space_tree(space, root, state=root == "observation", dtypes=own)
    return found


def trees_of_env(env: Any, dtypes: Mapping[str, Any]) -> tuple[Node, Node]:
    """The trees of the environment's observation space and of its action space.

    Raises:
        UnsupportedSpaceError: a part of a space cannot be stored.
        FieldError: a name in ``dtypes`` is no field of theirs, and none of an info.
    """
    roots = {"observation": env.observation_space, "action": env.action_space}
    if unknown := [name for name in dtypes if name.partition(".")[0] not in (*roots, "info")]:
        raise FieldError(f"dtypes: {unknown[0]!r} is not below 'observation', 'action' or 'info'")
    observation, action = trees_of(roots, dtypes).values()
    return observation, action


def check_arguments(
    on_incomplete: str, record_info: bool | Iterable[str], dtypes: Mapping[str, Any] | None
) -> bool | Iterable[str]:
    """Look at a recorder's arguments before anything is created; ``record_info`` as one that can be read twice.

    Raises:
        FieldError: one of them is wrong.
    """
    if on_incomplete not in _ON_INCOMPLETE:
        raise FieldError(f"on_incomplete={on_incomplete!r}: expected one of {_ON_INCOMPLETE}")
    if isinstance(record_info, Iterable) and not isinstance(record_info, str):
        record_info = list(record_info)
    if record_info:
        check_infos(record_info, dtypes or {})
    return record_info


def plain_arguments(
    meta_fields: Mapping[str, FieldLike] | None,
    extra_fields: Mapping[str, FieldLike] | None,
    dtypes: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Arguments of a recorder as ``env.spec`` remembers them: a spec is written as JSON.

    Raises:
        FieldError: a declaration is wrong.
    """
    given = {"meta_fields": meta_fields, "extra_fields": extra_fields, "dtypes": dtypes}
    parse_fields(meta_fields or {}, "meta field")
    parse_fields(extra_fields or {}, "extra field")
    return {
        argument: None if infos is None else {name: plain_declaration(info) for name, info in infos.items()}
        for argument, infos in given.items()
    }


def warn_of_dtype(leaf: Leaf, found: np.dtype[Any], stacklevel: int = 5) -> None:
    """Say that a field's values are of another dtype than its space."""
    warnings.warn(
        f"{leaf.name}: its space says {leaf.space.dtype}, but values are {found}; they are stored as "
        f"{leaf.field.dtype.name}, and dtypes={{{leaf.name!r}: {found.name!r}}} stores them as they are",
        stacklevel=stacklevel,
    )


def open_for(
    observation_space: gym.Space[Any],
    action_space: gym.Space[Any],
    spec: EnvSpec | None,
    core: dict[str, Field],
    buffer: str | os.PathLike[str] | ReplayBuffer,
    limits: Mapping[str, Any],
    *,
    overwrite: bool,
    durability: str,
    extra: Mapping[str, FieldLike] | None,
    meta: Mapping[str, FieldLike] | None,
    keeps_reward_shape: bool,
    more_own_meta: Mapping[str, Field] | None = None,
) -> ReplayBuffer:
    """The buffer of a recorder of an environment with these spaces and this spec; see :func:`open_recorded`.

    With ``keeps_reward_shape`` the rewards of an existing buffer may have another shape than those of ``core``: it is
    known from rewards, not from a declaration. ``more_own_meta`` are meta fields of whoever drives the recorder: it
    sets them, but loaders do not count them among the user's.
    """
    if keeps_reward_shape and (stored := _stored_reward(buffer, overwrite=overwrite)) is not None:
        core = {**core, "reward": stored}
    return open_recorded(
        buffer,
        limits,
        overwrite=overwrite,
        durability=durability,
        core=core,
        own_meta={**meta_fields(core["reward"].shape), **(more_own_meta or {})},
        extra=None if extra is None else parse_fields(extra, "extra field"),
        meta=None if meta is None else parse_fields(meta, "meta field"),
        environment={
            "observation_space": space_to_json(observation_space, "observation"),
            "action_space": space_to_json(action_space, "action"),
            "env_spec": spec_to_json(spec if isinstance(spec, EnvSpec) else None),
        },
    )


def _stored_reward(buffer: str | os.PathLike[str] | ReplayBuffer, *, overwrite: bool) -> Field | None:
    """The rewards of the buffer that a recorder goes on with, where there is one, and it was made by a recorder."""
    if isinstance(buffer, ReplayBuffer):
        metadata = buffer.metadata
    elif overwrite or not has_buffer(folder_of(buffer)):
        return None
    else:
        metadata = read_metadata(folder_of(buffer))
    stored = metadata.fields.get("reward")
    return Field("float64", stored.shape) if stored and "episode_return" in metadata.recorder_meta else None


def open_recorded(
    buffer: str | os.PathLike[str] | ReplayBuffer,
    limits: Mapping[str, Any],
    *,
    overwrite: bool,
    durability: str,
    core: dict[str, Field],
    own_meta: dict[str, Field],
    extra: dict[str, Field] | None,
    meta: dict[str, Field] | None,
    environment: dict[str, Any],
) -> ReplayBuffer:
    """Create the buffer, or open the one that is there where it is of the same environment and config.

    Raises:
        ConfigMismatchError: it is of another environment or config.
    """
    for kind, given, taken in (("extra field", extra, core), ("meta field", meta, own_meta)):
        if clash := sorted(set(given or ()) & set(taken)):
            raise FieldError(f"{kind} {clash[0]!r} has the name of a field of the recorder's own; rename it")
    if reserved := [name for name in extra or () if is_info(name)]:
        raise FieldError(f"extra field {reserved[0]!r} has the name of an info; rename it")
    if isinstance(buffer, ReplayBuffer):
        if overwrite:
            raise FieldError("overwrite=True goes with a folder; clear() empties a buffer")
        check_match(buffer.metadata, limits, buffer.folder)
        opened = buffer
    elif has_buffer(folder_of(buffer)) and not overwrite:
        opened = open_buffer(buffer, limits, overwrite=False, durability=durability)
    else:
        config = {
            **limits,
            "fields": {**core, **(extra or {})},
            "meta_fields": {**own_meta, **(meta or {})},
            "recorder_meta": tuple(own_meta),
            "environment": environment,
        }
        return open_buffer(buffer, config, overwrite=overwrite, durability=durability)
    try:
        _check_recorded(opened, core, own_meta, extra, meta, environment)
    except BaseException:
        if opened is not buffer:
            opened.close()
        raise
    return opened


def _check_recorded(
    buffer: ReplayBuffer,
    core: dict[str, Field],
    own_meta: dict[str, Field],
    extra: dict[str, Field] | None,
    meta: dict[str, Field] | None,
    environment: dict[str, Any],
) -> None:
    """Raise ConfigMismatchError where an existing buffer was recorded from something else."""
    stored = buffer.metadata
    # An older recorder kept fewer meta fields; then the buffer goes on with those.
    own_meta = {name: info for name, info in own_meta.items() if name in stored.recorder_meta} or own_meta
    # And who drove it, such as collect(), may have added some.
    added = {name: stored.meta_fields[name] for name in stored.recorder_meta if name not in RECORDER_META}
    own_meta = {**own_meta, **added}
    infos = {name: info for name, info in stored.fields.items() if is_info(name) and name not in core}
    others = {name: info for name, info in stored.fields.items() if name not in core and name not in infos}
    other_meta = {name: info for name, info in stored.meta_fields.items() if name not in own_meta}
    expected = {
        "fields": {**core, **(others if extra is None else extra), **infos},
        "meta_fields": {**own_meta, **(other_meta if meta is None else meta)},
    }
    check_match(stored, expected, buffer.folder)
    if list(stored.fields)[: len(core)] != list(core) or stored.recorder_meta != tuple(own_meta):
        raise ConfigMismatchError(f"{buffer.folder} was not made by RecordToBuffer; choose another folder")
    found = stored.environment or {}
    for name in ("observation_space", "action_space"):
        if found.get(name) != environment[name]:
            raise ConfigMismatchError(
                f"{buffer.folder} was created with a different {name.replace('_', ' ')}: stored {found.get(name)}, "
                f"passed {environment[name]}; choose another folder, or overwrite=True to replace the buffer"
            )
    specs = found.get("env_spec"), environment["env_spec"]
    stored_id, passed_id = (spec.get("id") if isinstance(spec, dict) else spec for spec in specs)
    if stored_id != passed_id:
        raise ConfigMismatchError(
            f"{buffer.folder} was recorded from {stored_id!r}, this environment is {passed_id!r}; choose another folder"
        )


def refuse_own_meta(meta: Iterable[str], metadata: Metadata) -> None:
    """Raise FieldError where a meta field that a user sets is one that the recorder sets itself."""
    if own := [name for name in meta if name in metadata.recorder_meta and name in RECORDER_META]:
        raise FieldError(f"meta field {own[0]!r} is set by the recorder itself")
