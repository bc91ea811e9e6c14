"""Values as short texts, for tables and beside frames."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gym_replay.errors import printable

_LONGEST = 200
_MOST_VALUES = 8


def number(value: Any, digits: int = 4) -> str:
    """A number in few characters.

    Example:
        >>> number(12.0), number(1 / 3), number(True)
        ('12', '0.3333', 'yes')
    """
    value = value.item() if isinstance(value, (np.generic, np.ndarray)) else value
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float) and not math.isfinite(value):
        return {"inf": "∞", "-inf": "-∞"}.get(str(value), "NaN")
    if isinstance(value, int) or (value == int(value) and abs(value) < 1e7):
        return str(int(value))
    return f"{value:.{digits}g}"


def counted(count: int, noun: str) -> str:
    """A number of things.

    Example:
        >>> counted(1, "episode"), counted(1200, "step")
        ('1 episode', '1,200 steps')
    """
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def short(value: Any, longest: int = _LONGEST) -> str:
    """A number, an array or a string on one line, cut where it is long.

    Example:
        >>> short(np.arange(3)), short("a\\nb")
        ('[0 1 2]', 'a\\\\nb')
    """
    if isinstance(value, str):
        text = printable(value)
        return text if len(text) <= longest else f"{text[: longest - 1]}…"
    array = np.asarray(value)
    if array.dtype.kind not in "biuf":
        return short(str(value), longest)
    if array.ndim == 0:
        return number(array)
    shown = " ".join(number(item, 3) for item in array.reshape(-1)[:_MOST_VALUES])
    more = " …" if array.size > _MOST_VALUES else ""
    shape = f" {'x'.join(map(str, array.shape))}" if array.ndim > 1 or more else ""
    return f"[{shown}{more}]{shape}"
