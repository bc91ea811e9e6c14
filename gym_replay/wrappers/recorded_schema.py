"""What a recorder stores: its fields and meta fields, and the buffer that they go to."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec

from gym_replay.buffer.door import Metadata, has_buffer, read_metadata
from gym_replay.buffer.env_spec import spec_to_json, why_not_made_again
from gym_replay.buffer.replay_buffer import ReplayBuffer, check_match, open_buffer
from gym_replay.errors import ConfigMismatchError, FieldError
from gym_replay.files.folders import folder_of
from gym_replay.notices import tell
from gym_replay.schema.codec_choice import RAW, Codecs, with_codec, with_codecs
from gym_replay.schema.codecs import short_name
from gym_replay.schema.fields import Field, FieldLike, parse_fields, plain_declaration
from gym_replay.spaces import Leaf, Node, space_to_json, space_tree
from gym_replay.wrappers.generator_state import NUMBERS
from gym_replay.wrappers.infos import check_infos, is_info
from gym_replay.wrappers.rewards import parse_reward_shape

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

LIMITS = ("max_episodes", "max_timesteps", "max_steps", "circular")


def core_fields(observation: Node, action: Node, reward: tuple[int, ...]) -> dict[str, Field]:
    """The fields that each step has."""
    fields = {leaf.name: leaf.field for leaf in (*observation.leaves, *action.leaves)}
    return {**fields, "reward": Field("float64", reward), **{name: Field("bool") for name in FLAGS}}


def meta_fields(reward: tuple[int, ...]) -> dict[str, Field]:
    """The recorder's own meta fields."""
    return {**parse_fields(RECORDER_META), "episode_return": Field("float64", reward)}


def trees_of(observation: gym.Space[Any], action: gym.Space[Any], dtypes: Mapping[str, Any]) -> tuple[Node, Node]:
    """The trees of an environment's spaces; each takes the dtypes of its own fields.

    Raises:
        UnsupportedSpaceError: a part of a space cannot be stored.
        FieldError: a name in ``dtypes`` is no field of theirs, and none of an info.
    """
    own: dict[str, dict[str, Any]] = {"observation": {}, "action": {}, "info": {}}
    for name, dtype in dtypes.items():
        if (root := name.partition(".")[0]) not in own:
            raise FieldError(f"dtypes: {name!r} is not below 'observation', 'action' or 'info'")
        own[root][name] = dtype
    return (
        space_tree(observation, "observation", state=True, dtypes=own["observation"]),
        space_tree(action, "action", dtypes=own["action"]),
    )


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
    observation: Node,
    action: Node,
    spec: EnvSpec | None,
    buffer: str | os.PathLike[str] | ReplayBuffer,
    options: Mapping[str, Any],
    *,
    declared: tuple[int, ...],
    more_own_meta: Mapping[str, Field] | None = None,
    module: str | None = None,
) -> ReplayBuffer:
    """Create the buffer of a recorder, or open the one that is there where it is of the same environment and config.

    Args:
        observation, action: the trees of the environment's spaces.
        spec: the environment's.
        buffer: as the recorder was given it.
        options: the recorder's keywords.
        declared: the shape of rewards that the environment declares; those of an existing buffer may have another.
        more_own_meta: meta fields of whoever drives the recorder: it sets them, and loaders do not count them among
            the user's.
        module: what is imported to register the environment, where that is known.

    Raises:
        ConfigMismatchError: the buffer is of another environment or config.
    """
    folder = buffer.folder if isinstance(buffer, ReplayBuffer) else folder_of(buffer)
    overwrite, durability = options.get("overwrite", False), options.get("durability", "process")
    stored = _existing(buffer, overwrite=overwrite)
    shape = parse_reward_shape(options.get("reward_shape"))
    if shape is None:
        is_recorded = stored is not None and "episode_return" in stored.recorder_meta
        shape = stored.fields["reward"].shape if stored and is_recorded else declared
    core = core_fields(observation, action, shape)
    own_meta = {**meta_fields(shape), **(more_own_meta or {})}
    extra, meta = (
        None if options.get(kind) is None else parse_fields(options[kind], kind[:-1].replace("_", " "))
        for kind in ("extra_fields", "meta_fields")
    )
    for kind, given, taken in (("extra field", extra, core), ("meta field", meta, own_meta)):
        if clash := sorted(set(given or ()) & set(taken)):
            raise FieldError(f"{kind} {clash[0]!r} has the name of a field of the recorder's own; rename it")
    if reserved := [name for name in extra or () if is_info(name)]:
        raise FieldError(f"extra field {reserved[0]!r} has the name of an info; rename it")
    core, extra = _with_codecs(core, extra, options.get("codecs"), stored, folder)
    limits = {**{name: options.get(name) for name in LIMITS}, "circular": options.get("circular") or None}
    environment = {
        "observation_space": space_to_json(observation.space, "observation"),
        "action_space": space_to_json(action.space, "action"),
        "env_spec": spec_to_json(spec := spec if isinstance(spec, EnvSpec) else None, module),
    }
    if stored is None:
        config = {
            **limits,
            "fields": {**core, **(extra or {})},
            "meta_fields": {**own_meta, **(meta or {})},
            "recorder_meta": tuple(own_meta),
            "environment": environment,
        }
        made = open_buffer(folder, config, overwrite=overwrite, durability=durability)
        is_of_many = "agent" in own_meta  # of which no spec can tell
        if not is_of_many and (why := why_not_made_again(spec, environment["env_spec"])):
            tell(f"{folder}: replay will need env=..., since make_env cannot make the environment again: {why}")
        return made
    _check_ids(stored.environment or {}, environment, folder)
    check_match(stored, limits, folder)
    _check_fields(stored, core, own_meta, extra, meta, folder)
    _check_environment(stored.environment or {}, environment, folder)
    if isinstance(buffer, ReplayBuffer):
        return buffer
    return open_buffer(folder, limits, overwrite=False, durability=durability)


def _existing(buffer: str | os.PathLike[str] | ReplayBuffer, *, overwrite: bool) -> Metadata | None:
    """The metadata of the buffer that a recorder goes on with, or None."""
    if isinstance(buffer, ReplayBuffer):
        if overwrite:
            raise FieldError("overwrite=True goes with a folder; clear() empties a buffer")
        return buffer.metadata
    folder = folder_of(buffer)
    return None if overwrite or not has_buffer(folder) else read_metadata(folder)


def _with_codecs(
    core: dict[str, Field],
    extra: dict[str, Field] | None,
    codecs: Codecs | None,
    stored: Metadata | None,
    folder: Path,
) -> tuple[dict[str, Field], dict[str, Field] | None]:
    """Fields and extra fields with the codecs that are asked for; None asks for those that the buffer has.

    Raises:
        FieldError: there is no such field, or the codec does not take its values.
        ConfigMismatchError: the buffer has another codec.
    """
    known = {} if stored is None else {name: info for name, info in stored.fields.items() if not is_info(name)}
    others = {name: info for name, info in known.items() if name not in core} if extra is None else extra
    fields = {**core, **others}
    if codecs is None:
        same = [name for name, info in fields.items() if name in known and with_codec(known[name], None) == info]
        fields |= {name: known[name] for name in same}
    else:
        if infos := [name for name in codecs if is_info(name)]:
            raise FieldError(
                f"codecs: {infos[0]!r} is an info; dtypes={{{infos[0]!r}: Field(dtype, shape, codec=...)}} declares it"
            )
        fields = with_codecs(fields, codecs)
        for name, info in fields.items():
            if name in known and known[name].codec != info.codec:
                codec = RAW if info.codec is None else short_name(info.codec)
                raise ConfigMismatchError(
                    f"{folder}: {name!r} is stored {_described(known[name])} there, and codecs asks for it "
                    f"{_described(info)}. Leave codecs out to go on as it is, choose another folder, or convert the "
                    f"buffer into a new one: gym-replay select {folder} NEW_FOLDER --codec {name}={codec}"
                )
    return {name: fields[name] for name in core}, None if extra is None else {name: fields[name] for name in extra}


def _described(info: Field) -> str:
    return RAW if info.codec is None else f"with codec {info.codec}"


def _check_fields(
    stored: Metadata,
    core: dict[str, Field],
    own_meta: dict[str, Field],
    extra: dict[str, Field] | None,
    meta: dict[str, Field] | None,
    folder: Path,
) -> None:
    # An older recorder kept fewer meta fields; then the buffer goes on with those.
    own_meta = {name: info for name, info in own_meta.items() if name in stored.recorder_meta} or own_meta
    # And who drove it, such as collect(), may have added some.
    own_meta |= {name: stored.meta_fields[name] for name in stored.recorder_meta if name not in RECORDER_META}
    infos = {name: info for name, info in stored.fields.items() if is_info(name)}
    derived = {name: stored.fields[name] for name in stored.derived}
    kept = {**core, **infos, **derived}
    others = {name: info for name, info in stored.fields.items() if name not in kept}
    if taken := sorted(derived.keys() & (extra or {}).keys()):
        raise FieldError(
            f"extra field {taken[0]!r} is a derived field of {folder}, whose values buffer.update computes; rename it"
        )
    other_meta = {name: info for name, info in stored.meta_fields.items() if name not in own_meta}
    expected = {
        "fields": {**core, **(others if extra is None else extra), **infos, **derived},
        "meta_fields": {**own_meta, **(other_meta if meta is None else meta)},
    }
    check_match(stored, expected, folder)
    if list(stored.fields)[: len(core)] != list(core) or stored.recorder_meta != tuple(own_meta):
        raise ConfigMismatchError(f"{folder} was not made by RecordToBuffer; choose another folder")


def _check_ids(stored: Mapping[str, Any], passed: Mapping[str, Any], folder: Path) -> None:
    """Raise ConfigMismatchError where a folder was recorded from an environment of another id."""
    specs = stored.get("env_spec"), passed["env_spec"]
    stored_id, passed_id = (spec.get("id") if isinstance(spec, dict) else spec for spec in specs)
    if stored and stored_id != passed_id:
        raise ConfigMismatchError(
            f"{folder} was recorded from {stored_id!r}, this environment is {passed_id!r}; choose another folder, or "
            "overwrite=True to replace the buffer"
        )


def _check_environment(stored: Mapping[str, Any], passed: Mapping[str, Any], folder: Path) -> None:
    for name in ("observation_space", "action_space"):
        if stored.get(name) != passed[name]:
            raise ConfigMismatchError(
                f"{folder} was created with a different {name.replace('_', ' ')}: stored {stored.get(name)}, "
                f"passed {passed[name]}; choose another folder, or overwrite=True to replace the buffer"
            )


def refuse_own_meta(meta: Iterable[str], metadata: Metadata) -> None:
    """Raise FieldError where a meta field that a user sets is one that the recorder sets itself."""
    if own := [name for name in meta if name in metadata.recorder_meta and name in RECORDER_META]:
        raise FieldError(f"meta field {own[0]!r} is set by the recorder itself")
