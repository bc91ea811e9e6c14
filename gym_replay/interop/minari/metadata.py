"""Metadata: what a dataset says of itself, and what an episode has once, bit for bit.

A meta field of a buffer is the entry of its name in Minari's episode metadata: a number, an array or a string. Where
that is taken by Minari's own, or the format would change the value (a NUL in a string of HDF5, a NaN with a payload in
JSON), it is in the entry ``gym_replay``, which is a JSON object: ``complete`` (False for an episode that was cut),
``id`` in the exported buffer, and ``exact``, the bytes of such values in hexadecimal digits. The seed and the reset
options are Minari's own entries too, wherever the format takes them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec

from gym_replay.buffer.door import Metadata, ReferenceReturns
from gym_replay.buffer.env_spec import spec_from_json, spec_to_json
from gym_replay.buffer.episode import Episode
from gym_replay.errors import CorruptBufferError, FieldError
from gym_replay.files.documents import parse_json
from gym_replay.interop.minari.limits import GROUP, IMPORTED, Limits
from gym_replay.schema.fields import Field

TEXTS = ("algorithm_name", "code_permalink", "description")
SETS = ("author", "author_email")
SCORES = ("ref_min_score", "ref_max_score")

_NOT_FINITE = ("NaN", "Infinity", "-Infinity")

_TOLD_ELSEWHERE = frozenset(
    {"observation_space", "action_space", "env_spec", "total_episodes", "total_steps", "dataset_size", GROUP}
)


def about_export(metadata: Metadata, env: str | EnvSpec | gym.Env[Any, Any] | None, given: Mapping[str, Any]) -> Any:
    """What the dataset says of itself, checked.

    What is not given is as the buffer has it (its reference returns), else as in the dataset of the import.

    Args:
        metadata: of the buffer.
        env: the environment to evaluate in.
        given: arguments of an export by name, those about the dataset among them.
    """
    imported = (metadata.environment or {}).get(IMPORTED)
    before = imported if isinstance(imported, dict) else {}
    about: dict[str, Any] = {}
    stored = scores_of(metadata.reference_returns)
    for name in (*SETS, *TEXTS, "requirements", *SCORES):
        known = before.get(name) if stored.get(name) is None else stored[name]
        value = known if given[name] is None else given[name]
        if value is not None and not (given[name] is None and value in _NOT_FINITE):
            about[name] = _checked(name, value)
    spec = gym.spec(env) if isinstance(env, str) else env.spec if isinstance(env, gym.Env) else env
    if spec is not None:
        about["eval_env_spec"] = spec.to_json()
    elif isinstance(before.get("eval_env_spec"), str):
        about["eval_env_spec"] = _registered(before["eval_env_spec"])
    return about


def scores_of(reference: ReferenceReturns | None) -> dict[str, float | None]:
    """Reference returns under Minari's names."""
    reference = reference or ReferenceReturns()
    return dict(zip(SCORES, (reference.random, reference.expert), strict=True))


def reference_of(source: Any) -> ReferenceReturns | None:
    """The reference returns of a dataset; None where it has none. What is no finite number is left out."""
    found = []
    for name in SCORES:
        value = source.storage.metadata.get(name)
        try:
            number = None if value is None else float(value)
        except (TypeError, ValueError, OverflowError):
            number = None
        found.append(number if number is not None and math.isfinite(number) else None)
    return None if found == [None, None] else ReferenceReturns(*found)


def _registered(text: str) -> str:
    """A spec of an import, with the entry point that this process has registered: Minari would import any other."""
    try:
        spec: str = spec_from_json(spec_to_json(EnvSpec.from_json(text))).to_json()
    except Exception as error:  # whatever Gymnasium raises of a spec that is none
        raise FieldError(f"eval_env of the imported dataset: {error}; pass eval_env=...") from error
    return spec


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


def about_import(source: Any) -> dict[str, Any]:
    """What the dataset says of itself, as JSON; what is not finite is a string."""
    about = {name: value for name, value in source.storage.metadata.items() if name not in _TOLD_ELSEWHERE}
    plain: dict[str, Any] = json.loads(json.dumps(about, default=_plain), parse_constant=str)
    return plain


def _plain(value: Any) -> Any:
    if isinstance(value, (set, frozenset)):
        return sorted(value, key=str)
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    return str(value)


STATISTICS = ("rewards_sum", "rewards_mean", "rewards_std", "rewards_max", "rewards_min")
"""What Minari's collector adds to the metadata of each episode; it follows from the rewards."""

OWN = frozenset({"id", "total_steps", "seed", "options", GROUP, *STATISTICS})
"""Entries of an episode's metadata that are no meta fields."""

UNKNOWN_SEED = -1


def seed_of(meta: Mapping[str, Any]) -> int | None:
    """The seed of an episode's reset, also one that was too large for ``episode_seed`` and came from Minari."""
    seed = int(meta.get("episode_seed", UNKNOWN_SEED))
    if seed != UNKNOWN_SEED:
        return seed
    run = _object(meta.get("episode_run", ""))
    imported = run.get("imported")
    large = imported.get("seed") if isinstance(imported, dict) else None
    return large if type(large) is int and 0 <= large < 1 << 64 else None


def options_of(meta: Mapping[str, Any], limits: Limits) -> dict[str, Any] | None:
    """The reset options as Minari keeps them; None where there were none, or the format takes no such options."""
    text = meta.get("episode_options", "")
    options = _object(text)
    if not text or (limits.is_hdf5 and not _fits_attributes(options, limits)):
        return None
    return options


def _object(text: str) -> dict[str, Any]:
    try:
        value = parse_json(text.encode(), finite=False) if text else {}
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _fits_attributes(options: Mapping[str, Any], limits: Limits) -> bool:
    """Whether options are names and numbers, strings or regular lists of numbers, as attributes of HDF5 are."""
    for key, value in options.items():
        if limits.key_fault(key) is not None:
            return False
        if isinstance(value, dict):
            if not value or not _fits_attributes(value, limits):
                return False
        elif isinstance(value, str):
            if not limits.holds_meta_text(value):
                return False
        else:
            try:
                array = np.asarray(value)
            except (ValueError, OverflowError):
                return False
            if array.dtype.kind not in "biuf" or not limits.holds_meta_array(array):
                return False
    return True


def to_metadata(episode: Episode, fields: Mapping[str, Field], limits: Limits) -> dict[str, Any]:
    """The metadata of an episode beside Minari's own."""
    metadata: dict[str, Any] = {}
    exact: dict[str, str] = {}
    meta = episode.meta
    for name, field in fields.items():
        value = meta[name]
        if field.is_text:
            fits, natural, content = limits.holds_meta_text(value), value, value.encode("utf-8", "surrogatepass")
        else:
            array = np.asarray(value, field.dtype)
            fits, content = limits.holds_meta_array(array), array.tobytes()
            natural = array[()] if limits.is_hdf5 else array.tolist()
        if fits and name not in OWN:
            metadata[name] = natural
        else:
            exact[name] = content.hex()
    metadata[GROUP] = json.dumps({"id": episode.id, "complete": episode.complete, "exact": exact})
    return metadata


def own_entry(metadata: Mapping[str, Any]) -> dict[str, Any] | None:
    """What an export noted of an episode; None where the episode is not from one."""
    text = metadata.get(GROUP)
    if text is None:
        return None
    own = _object(text) if isinstance(text, str) else {}
    if not isinstance(own.get("complete"), bool) or not isinstance(own.get("exact"), dict):
        raise CorruptBufferError(f"the metadata entry {GROUP!r} is damaged: {text!r:.80}")
    return own


def from_metadata(metadata: Mapping[str, Any], own: Mapping[str, Any], fields: Mapping[str, Field]) -> dict[str, Any]:
    """The meta fields that :func:`to_metadata` was given; those that are not there are left out."""
    meta: dict[str, Any] = {}
    for name, field in fields.items():
        if name in own["exact"]:
            meta[name] = _from_hex(name, own["exact"][name], field)
        elif name in metadata and name not in OWN:
            meta[name] = from_entry(name, metadata[name], field)
    return meta


def _from_hex(name: str, digits: Any, field: Field) -> Any:
    try:
        content = bytes.fromhex(digits)
        if field.is_text:
            return content.decode("utf-8", "surrogatepass")
        return np.frombuffer(content, field.dtype).reshape(field.shape)
    except (TypeError, ValueError) as error:
        raise CorruptBufferError(f"meta field {name!r}: {error}") from None


def from_entry(name: str, value: Any, field: Field) -> Any:
    """A value of an entry as one of a meta field.

    Raises:
        CorruptBufferError: it is none.
    """
    if field.is_text:
        if not isinstance(value, str):
            raise CorruptBufferError(f"meta field {name!r}: expected a string, got {value!r:.60}")
        return value
    try:
        with np.errstate(all="ignore"):
            cast = np.asarray(value).astype(field.dtype) if hasattr(value, "dtype") else np.array(value, field.dtype)
        # As Python's numbers, which are compared exactly: of a list of large and small ones, NumPy makes floats.
        given = np.asarray(value, None if hasattr(value, "dtype") else object)
        pairs = zip(cast.ravel().tolist(), given.ravel().tolist(), strict=True)
        is_same = all(new == old or (new != new and old != old) for new, old in pairs)
    except (TypeError, ValueError, OverflowError) as error:
        raise CorruptBufferError(f"meta field {name!r}: {error}") from None
    if not is_same:
        raise CorruptBufferError(f"meta field {name!r}: {value!r:.60} is no {field.dtype.name}")
    if cast.shape != field.shape:
        raise CorruptBufferError(f"meta field {name!r}: expected shape {field.shape}, got {cast.shape}")
    return cast
