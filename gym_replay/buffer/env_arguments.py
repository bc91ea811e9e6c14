"""Which recorded arguments an environment is given without anybody vouching for the folder.

A folder may come from a stranger, and the arguments in it decide how much memory an environment takes, which files it
reads, and whether it opens a window. So without ``trust=True`` only these are handed on: None, booleans, numbers from
-1000 to 1000 and those that are not finite, words, and lists, dicts and arrays of up to 4096 of them. A word is up to
64 letters, digits, blanks, ``_``, ``+`` and ``-``, so that it names no file outside of the folder one is in. What asks
for a window is refused. Numbers are bounded, but what an environment makes of them is its own code.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from gym_replay.errors import MakeEnvError

OFF_SCREEN = frozenset(["rgb_array", "depth_array", "rgbd_tuple", "ansi"])
"""The render modes that open no window and collect no frames."""

_LARGEST = 1000
_MOST_VALUES = 4096
_WORD = re.compile(r"[\w +-]{0,64}")
_WINDOW = re.compile(r"render|gui|display|viewer|window|human", re.IGNORECASE)


def require_harmless(arguments: Mapping[str, Any], whose: str) -> None:
    """Refuse recorded arguments that are more than a few words and small numbers.

    Args:
        arguments: by name.
        whose: what to call them in the message, such as ``"CartPole-v1: the recorded arguments"``.

    Raises:
        MakeEnvError: naming each argument that is refused, and why.
    """
    reasons = [f"{name!r:.80} {fault}" for name, value in arguments.items() if (fault := _fault(name, value))]
    if reasons:
        more = f" and {len(reasons) - 5} more" if len(reasons) > 5 else ""
        raise MakeEnvError(
            f"{whose} are not handed on, because a folder may come from a stranger: {'; '.join(reasons[:5])}{more}. "
            "If you trust the folder pass trust=True (gym-replay replay --trust); or pass what you want yourself, by "
            "name to make_env, or as env=... to replay"
        )


def _fault(name: str, value: Any) -> str | None:
    values = _values(name, value)
    for count, (key, item) in enumerate(values, 1):
        if count > _MOST_VALUES:
            return f"holds more than {_MOST_VALUES} values"
        if fault := _fault_of_one(key, item):
            return fault
    return None


def _fault_of_one(key: str, value: Any) -> str | None:
    if isinstance(value, str):
        if value in OFF_SCREEN:
            return None
        if value == "human" or _WINDOW.search(key):
            return f"is {value!r:.60}, which may open a window"
        return None if _WORD.fullmatch(value) else f"is {value!r:.60}, which may name a file"
    if value is True and _WINDOW.search(key):
        return f"is True in {key!r:.60}, which may open a window"
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        is_small = not math.isfinite(value) if isinstance(value, float) else False
        return None if is_small or abs(value) <= _LARGEST else f"is {str(value)[:30]}, a number past {_LARGEST}"
    return None


def _values(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The plain values in an argument, each with the innermost name that it has."""
    if isinstance(value, np.ndarray):
        value = value.reshape(-1)[: _MOST_VALUES + 1].tolist()
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _values(str(name), item)
            yield "", str(name)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _values(key, item)
    else:
        yield key, value
