"""What a dataset says of itself: given to an export, and kept by an import for the next one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec

from gym_replay.buffer.door import Metadata
from gym_replay.buffer.env_spec import spec_from_json, spec_to_json
from gym_replay.errors import FieldError
from gym_replay.interop.minari.limits import GROUP, IMPORTED

TEXTS = ("algorithm_name", "code_permalink", "description")
SETS = ("author", "author_email")
SCORES = ("ref_min_score", "ref_max_score")

_NOT_FINITE = ("NaN", "Infinity", "-Infinity")

_TOLD_ELSEWHERE = frozenset(
    {"observation_space", "action_space", "env_spec", "total_episodes", "total_steps", "dataset_size", GROUP}
)


def about_export(metadata: Metadata, env: str | EnvSpec | gym.Env[Any, Any] | None, given: Mapping[str, Any]) -> Any:
    """What the dataset says of itself, checked; what is not given is as in the dataset of the import."""
    imported = (metadata.environment or {}).get(IMPORTED)
    before = imported if isinstance(imported, dict) else {}
    about: dict[str, Any] = {}
    for name, passed in given.items():
        value = before.get(name) if passed is None else passed
        if value is not None and not (passed is None and value in _NOT_FINITE):
            about[name] = _checked(name, value)
    spec = gym.spec(env) if isinstance(env, str) else env.spec if isinstance(env, gym.Env) else env
    if spec is not None:
        about["eval_env_spec"] = spec.to_json()
    elif isinstance(before.get("eval_env_spec"), str):
        about["eval_env_spec"] = _registered(before["eval_env_spec"])
    return about


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
