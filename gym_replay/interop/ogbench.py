"""Data sets in OGBench's layout, as files or arrays."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from gym_replay.errors import FieldError
from gym_replay.interop import old_data
from gym_replay.interop.arrays import opened_arrays
from gym_replay.schema.arrays import Array, Bools, Ints
from gym_replay.schema.fields import Field

_CALLED = {"observations": "observation", "actions": "action", "rewards": "reward"}
_OWN = ("terminals", "masks", "valids", "next_observations")
_STEPS = ("action", "reward")


def from_ogbench(
    source: str | os.PathLike[str] | Mapping[str, Any], target: str | os.PathLike[str]
) -> old_data.ImportReport:
    """Copy a data set in OGBench's layout into a new buffer, trajectory by trajectory.

    All three forms are known (``ogbench/utils.py``, ``load_dataset``). The files have one row for each observation, the
    last of a trajectory included, where ``terminals`` are 1 and the action means nothing. ``load_dataset`` makes of it
    rows of transitions with ``next_observations``, or with ``compact_dataset=True`` rows of observations whose
    ``valids`` are 0 at the last one. ``terminals`` end a trajectory however it ended; only ``masks`` tell where it
    terminated, and the files have none. Other arrays with as many rows become fields of their names, ``qpos`` a state
    field where there is one for each observation.

    Args:
        source: an ``.npz`` file, or a mapping from names to arrays.
        target: a folder that does not exist yet. It appears when all is in it.

    Returns:
        What was made, and what the data set does not tell.

    Raises:
        FieldError: an array is missing, or has another number of rows.
        CorruptBufferError: the file cannot be read, or claims to be larger than it can be.
        NotABufferError: there is something at the target.
        EmptyBufferError: there is no transition.

    Example:
        >>> import tempfile
        >>> rows = {"observations": np.arange(3.0)[:, None], "actions": np.zeros((3, 1)), "terminals": [0.0, 0.0, 1.0]}
        >>> report = from_ogbench(rows, tempfile.mkdtemp() + "/new")
        >>> report.num_episodes, report.num_steps, report.not_known[0]
        (1, 2, 'rewards: there are none')
    """
    path = old_data.check_new(target)
    with opened_arrays(source, "from_ogbench") as (arrays, links):
        rows = _Rows(arrays)
        with old_data.new_buffer(path, {"fields": rows.fields()}) as buffer:
            start = 0
            for end in rows.ends.tolist():
                length = end + 1 - start - rows.has_last_rows
                if length:
                    values, complete = rows.episode(start, length)
                    buffer.store(values, length, complete=complete)
                start = end + 1
            return buffer.report(rows.not_known(), [*links, *rows.left_out])


class _Rows:
    """The arrays of a data set, sorted by what they are.

    Attributes:
        has_last_rows: whether each trajectory has one row more than transitions, for its last observation.
        ends: int64 ``(trajectories,)``: the last row of each.
        left_out: lines about arrays that are no fields.
    """

    def __init__(self, arrays: Mapping[str, Any]) -> None:
        if missing := [name for name in ("observations", "actions", "terminals") if name not in arrays]:
            raise FieldError(f"the data set has no {missing[0]!r}; it has {sorted(arrays)}")
        self._count = len(arrays["observations"])
        self.has_last_rows = "next_observations" not in arrays
        terminals = old_data.as_flags("terminals", arrays["terminals"], self._count)
        self.ends = self._find_ends(terminals, arrays)
        self._masks: Bools | None = None
        if "masks" in arrays:
            self._masks = old_data.as_flags("masks", arrays["masks"], self._count)
        self._following = arrays.get("next_observations")
        self._own: dict[str, Any] = {}
        self.left_out = [line for name, array in arrays.items() if (line := self._sort(name, array)) is not None]
        if self._following is not None:
            old_data.check_next("next_observations", self._own["observation"], self._following)

    def _find_ends(self, terminals: Bools, arrays: Mapping[str, Any]) -> Ints:
        ends = terminals.copy()
        if self.has_last_rows and "valids" in arrays:
            ends = ~old_data.as_flags("valids", arrays["valids"], self._count)
        ends[-1:] = True
        return np.flatnonzero(ends)

    def _sort(self, name: str, array: Any) -> str | None:
        """Put an array where it belongs; else why it is left out."""
        if name in _OWN:
            return None
        if not array.shape or len(array) != self._count:
            if name in _CALLED:
                raise FieldError(f"{name!r}: expected {self._count} rows, as observations have, got {array.shape}")
            return f"{name}: it has no row for each observation"
        if (why := old_data.why_no_field(array)) is not None:
            return f"{name}: {why}"
        field = _CALLED.get(name, old_data.field_name(name))
        if name not in _CALLED and field.partition(".")[0] in (*_CALLED.values(), *old_data.FLAGS):
            return f"{name}: the name of the field is that of another array; pass it under another name"
        self._own[field] = array
        return None

    def _is_state(self, name: str) -> bool:
        return name == "observation" or (self.has_last_rows and name not in _STEPS)

    def fields(self) -> dict[str, Field]:
        """The fields of the buffer: observations first, then as in the data set."""
        return old_data.fields_of(self._own, self._is_state)

    def episode(self, start: int, length: int) -> tuple[dict[str, Array], bool]:
        """The values of a trajectory of ``length`` transitions, and whether it is known how it ended."""
        values: dict[str, Array] = {}
        for name, array in self._own.items():
            count = length + (self.has_last_rows and self._is_state(name))
            values[name] = np.asarray(array[start : start + count])
        if self._following is not None:
            last = np.asarray(self._following[start + length - 1 : start + length])
            values["observation"] = old_data.with_last(values["observation"], last)
        if self._masks is None:
            return {**values, **old_data.episode_flags(dict.fromkeys(old_data.FLAGS), length)}, False
        terminated = ~self._masks[start : start + length]
        flags = old_data.episode_flags({"terminated": terminated, "truncated": None}, length)
        return {**values, **flags}, True

    def not_known(self) -> list[str]:
        """What the data set does not tell."""
        lines = [] if "reward" in self._own else ["rewards: there are none"]
        if self._masks is None:
            lines.append("whether trajectories terminated or were truncated: there are no masks")
        return lines
