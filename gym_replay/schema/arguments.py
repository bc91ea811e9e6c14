"""Arguments that are numbers: checked, and as Python's own."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gym_replay.errors import FieldError


def checked_integer(name: str, value: Any, lowest: float = 0, end: float = math.inf) -> int:
    """An argument as one of Python's integers, which do not overflow as NumPy's do.

    Raises:
        FieldError: it is no integer, or outside of ``lowest .. end - 1``.
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not lowest <= value < end:
        within = f" from {lowest} {'on' if end == math.inf else f'to {end - 1}'}" if lowest > -math.inf else ""
        raise FieldError(f"{name}: expected an integer{within}, got {value!r:.80}")
    return int(value)


def checked_number(name: str, value: Any, highest: float = math.inf) -> float:
    """An argument as one of Python's numbers.

    Raises:
        FieldError: it is no finite number from 0 to ``highest``.
    """
    is_number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    if not is_number or not 0 <= value <= highest or not math.isfinite(value):
        within = "on" if highest == math.inf else f"to {highest:g}"
        raise FieldError(f"{name}: expected a number from 0 {within}, got {value!r:.80}")
    return float(value)
