"""The recorder's own meta fields of an episode: where it came from, when, and what made it."""

from __future__ import annotations

import json
import platform
import struct
import time
import uuid
import warnings
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from typing import Any

import gymnasium as gym
import numpy as np

from gym_replay.wrappers.generator_state import NO_GENERATOR, generator_bytes

_INT, _FLOAT = struct.Struct("<q").pack, struct.Struct("<d")
FLAG_BYTES = {False: b"\x00", True: b"\x01"}
_LIBRARIES = ("gym-replay", "gymnasium", "numpy", "mujoco", "ale-py", "minigrid")


def describe_run() -> bytes:
    """What makes the episodes from now on, as JSON: an id, when it began, and the versions of what is installed."""
    return json.dumps({"run": uuid.uuid4().hex, "began": time.time(), "versions": _versions()}).encode()


@cache
def _versions() -> dict[str, str]:
    """The versions of what is installed; to find them takes longer than to open a buffer."""
    versions = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # noqa: PERF203
            continue
    return versions


def meta_of_reset(
    env: gym.Env[Any, Any], run: bytes, seed: int | None = None, options: Mapping[str, Any] | None = None
) -> dict[str, bytes]:
    """The meta fields, as bytes, of an episode that a reset with this seed and these options is about to begin."""
    return {
        "episode_seed": _INT(storable_seed(seed)),
        "episode_rng": generator_bytes(env, create=True) if seed is None else NO_GENERATOR,
        "episode_options": b"" if options is None else options_to_json(options),
        "episode_start": _FLOAT.pack(time.time()),
        "episode_duration": _FLOAT.pack(time.monotonic()),  # until the end: when it began
        "episode_run": run,
        "env_index": _INT(0),
    }


def meta_of_end(meta: Mapping[str, bytes], episode_return: Any, *, complete: bool) -> dict[str, bytes]:
    """The meta fields, as bytes, that are known at the end of an episode; ``meta`` are those of its reset."""
    (began,) = _FLOAT.unpack(meta["episode_duration"])  # no clock that somebody may set back
    is_number = type(episode_return) is float
    return {
        "episode_return": _FLOAT.pack(episode_return) if is_number else episode_return.tobytes(),
        "episode_duration": _FLOAT.pack(time.monotonic() - began),
        "episode_complete": FLAG_BYTES[complete],
    }


def storable_seed(seed: int | None) -> int:
    """The seed, or -1 where there is none, or none that int64 takes: it is for the environment to refuse it."""
    if seed is None:
        return -1
    if not isinstance(seed, (int, np.integer)) or not 0 <= seed < 1 << 63:
        warnings.warn(f"the seed {seed!r:.60} does not fit int64 and is not kept with the episode", stacklevel=4)
        return -1
    return int(seed)


def options_to_json(options: Mapping[str, Any]) -> bytes:
    """Reset options as JSON: NumPy values as numbers and lists, anything else as ``{"not_kept": repr}``."""
    try:
        return json.dumps(options, default=_plain).encode()
    except Exception:  # keys that JSON does not have, a circle, or an object that does anything
        return json.dumps(_plain(options)).encode()


def _plain(value: Any) -> Any:
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind in "buif":
        return value.tolist()
    try:
        return {"not_kept": repr(value)[:1000]}
    except Exception:  # an object may do anything
        return {"not_kept": type(value).__name__}
