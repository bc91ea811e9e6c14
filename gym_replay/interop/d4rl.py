"""Data sets in D4RL's layout, as files or arrays."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from gym_replay.errors import FieldError
from gym_replay.interop import old_data
from gym_replay.interop.arrays import opened_arrays
from gym_replay.schema.arguments import checked_integer
from gym_replay.schema.arrays import Array, Bools
from gym_replay.schema.fields import Field
from gym_replay.schema.names import encode_key

_ROOTS = {"observations": "observation", "actions": "action", "rewards": "reward"}
_NEXT = "next_observations"
_FLAGS = {
    "terminated": ("terminals", "terminated", "terminations"),
    "truncated": ("timeouts", "truncated", "truncations"),
}
_BYTES_AT_ONCE = 1 << 20


def from_d4rl(
    source: str | os.PathLike[str] | Mapping[str, Any],
    target: str | os.PathLike[str],
    *,
    max_episode_steps: int | None = None,
) -> old_data.ImportReport:
    """Copy a data set in D4RL's layout into a new buffer, episode by episode.

    It has one row for each transition: ``observations``, ``actions``, ``rewards``, ``terminals``, and mostly
    ``timeouts`` and ``next_observations``. The flags may also be called as Gymnasium calls them. An episode ends where
    ``terminals`` or ``timeouts`` is True, and also where the next observation is not the observation of the row after
    it; such an episode, and the rest after the last end, is stored as cut. Everything else with a row for each
    transition becomes a field of its name: ``infos/qpos`` the field ``infos.qpos``. Rewards, flags and integer actions
    that come as ``(rows, 1)`` become fields of single numbers.

    Args:
        source: an HDF5 file, an ``.npz`` file, or a mapping from names to arrays. A nested observation space is
            ``observations/<part>`` for each part.
        target: a folder that does not exist yet. It appears when all is in it.
        max_episode_steps: how long an episode is at most. Needed where there are no ``timeouts`` and no
            ``next_observations``: old files of D4RL leave it to the environment when an episode was truncated.

    Returns:
        What was made, and what the data set does not tell. Without ``next_observations`` the last observation of every
        episode is not known.

    Raises:
        MissingExtraError: it is an HDF5 file, and h5py is not installed.
        FieldError: an array is missing, has another number of rows, or contradicts another one.
        CorruptBufferError: the file cannot be read, or claims to be larger than it can be.
        NotABufferError: there is something at the target.
        EmptyBufferError: there is no transition.

    Example:
        >>> import tempfile
        >>> rows = {"observations": np.arange(4.0), "actions": np.zeros(4), "rewards": np.ones(4)}
        >>> rows |= {"terminals": np.array([0, 0, 1, 0], bool), "timeouts": np.array([0, 0, 0, 1], bool)}
        >>> report = from_d4rl(rows, tempfile.mkdtemp() + "/new")
        >>> report.num_episodes, report.not_known
        (2, ('the last observation of 2 episodes: their last transition is no n-step sample',))
    """
    path = old_data.check_new(target)
    with opened_arrays(source, "from_d4rl") as (arrays, links):
        rows = _Rows(arrays)
        ends = rows.find_ends(max_episode_steps)
        with old_data.new_buffer(path, {"fields": rows.fields()}) as buffer:
            start = 0
            for end in (np.flatnonzero(ends) + 1).tolist():
                buffer.store(rows.episode(start, end), end - start, complete=bool(rows.closed[end - 1]))
                start = end
            return buffer.report(rows.not_known(), [*links, *rows.left_out], rows.doubtful())


class _Rows:
    """The arrays of a data set, sorted by what they are.

    Attributes:
        closed: bool ``(rows,)``: where an episode ended, as the data set says it.
        left_out: what has no row for each transition, or no name of its own.
    """

    def __init__(self, arrays: Mapping[str, Any]) -> None:
        if not getattr(arrays.get("rewards"), "shape", ()):
            raise FieldError(f"the data set has no 'rewards', one for each transition; it has {sorted(arrays)}")
        self._count = len(arrays["rewards"])
        self._aliases: dict[str, str] = {}
        self._flags: dict[str, Bools] = {}
        for name, aliases in _FLAGS.items():
            self._find_flags(name, [alias for alias in aliases if alias in arrays], arrays)
        if "terminated" not in self._flags:
            raise FieldError(f"the data set has no {_FLAGS['terminated'][0]!r}; it has {sorted(arrays)}")
        self.closed = np.logical_or.reduce(list(self._flags.values()))
        self._check_masks(arrays)
        self._num_cuts = 0
        self._own: dict[str, Any] = {}
        self._next: dict[str, Any] = {}
        self.left_out = [line for name, array in arrays.items() if (line := self._sort(name, array)) is not None]
        for root in _ROOTS.values():
            if not any(f"{name}.".startswith(f"{root}.") for name in self._own):
                raise FieldError(f"the data set has no {root}s; it has {sorted(arrays)}")
        observations = [name for name in self._own if old_data.is_observation(name)]
        if self._next and set(self._next) != set(observations):
            raise FieldError(f"{_NEXT}: expected those of {observations}, got {list(self._next)}")
        for name, following in self._next.items():
            old_data.check_next(_NEXT, self._own[name], following)

    def _find_flags(self, name: str, found: list[str], arrays: Mapping[str, Any]) -> None:
        """The flags under the first of their names that are there, which those under the others must be too."""
        for alias in found:
            flags = old_data.as_flags(alias, arrays[alias][...], self._count)
            if (wrong := np.flatnonzero(flags != self._flags.setdefault(name, flags))).size:
                raise FieldError(
                    f"{alias!r} is another name for {found[0]!r}, and differs from it in {len(wrong)} rows, first in "
                    f"row {wrong[0]}; pass the arrays without the wrong one"
                )
            self._aliases[alias] = found[0]

    def _check_masks(self, arrays: Mapping[str, Any]) -> None:
        """``masks`` of JAX training code are 0 where a transition terminated, ``valids`` where a row is none."""
        masks, valids = (
            np.asarray(arrays[name][...]).reshape(-1)
            if name in arrays and arrays[name].shape in ((self._count,), (self._count, 1))
            else None
            for name in ("masks", "valids")
        )
        if valids is not None and (invalid := valids == 0).any():
            raise FieldError(
                f"'valids' is 0 in {invalid.sum()} rows, which are no transitions: this is OGBench's compact layout; "
                "load it with compact_dataset=False"
            )
        if masks is not None and (differs := masks != ~self._flags["terminated"]).any():
            raise FieldError(
                f"'masks' and 'terminals' contradict one another in {differs.sum()} rows. In OGBench's layout "
                "'terminals' are 1 where a trajectory ends, however it does: then pass the arrays with "
                "terminals=1 - masks and timeouts=terminals, and without masks"
            )

    def _sort(self, name: str, array: Any) -> str | None:
        """Put an array where it belongs; else why it is left out."""
        root, _, rest = name.partition("/")
        if (alias := self._aliases.get(name)) is not None:
            return None if name == alias else f"{name}: it is {alias!r} once more"
        is_core = root in (*_ROOTS, _NEXT)
        if not array.shape or len(array) != self._count:
            if is_core:
                raise FieldError(f"{name!r}: expected {self._count} rows, as rewards have, got {array.shape}")
            return f"{name}: it has no row for each transition"
        if (why := old_data.why_no_field(array)) is not None:
            return f"{name}: {why}"
        into = self._next if root == _NEXT else self._own
        first = "observation" if root == _NEXT else _ROOTS.get(root, encode_key(root))
        field = f"{first}.{old_data.field_name(rest)}" if rest else first
        if field in into or (not is_core and field.partition(".")[0] in (*_ROOTS.values(), *old_data.FLAGS)):
            return f"{name}: the name of the field, {field!r}, is that of another array; pass it under another name"
        into[field] = array
        return None

    def fields(self) -> dict[str, Field]:
        """The fields of the buffer: observations first, then as in the data set."""
        return old_data.fields_of(self._own)

    def find_ends(self, max_episode_steps: int | None) -> Bools:
        """Where episodes end, bool ``(rows,)``, the last row always.

        Raises:
            FieldError: that cannot be known.
        """
        if "truncated" not in self._flags and not self._next and max_episode_steps is None:
            raise FieldError(
                "the data set has neither 'timeouts' nor 'next_observations', so where episodes were truncated is not "
                "known; pass max_episode_steps=..., as D4RL takes it from the environment"
            )
        jumps = self._jumps()
        self._num_cuts = int((jumps & ~self.closed).sum())
        ends: Bools = self.closed | jumps
        ends[-1:] = True
        if max_episode_steps is not None:
            max_episode_steps = checked_integer("max_episode_steps", max_episode_steps, 1)
            starts = np.flatnonzero(np.append(True, ends[:-1]))
            steps = np.arange(self._count) - np.repeat(starts, np.diff(starts, append=self._count))
            full = steps % max_episode_steps == max_episode_steps - 1
            ends |= full
            if "truncated" not in self._flags:
                self.closed |= full
        return ends

    def _jumps(self) -> Bools:
        """Where the next observation is not the observation of the row after it."""
        jumps = np.zeros(self._count, np.bool_)
        for name, following in self._next.items():
            own = self._own[name]
            at_once = max(1, _BYTES_AT_ONCE // max(1, own.dtype.itemsize * math.prod(own.shape[1:])))
            for low in range(0, self._count - 1, at_once):
                high = min(low + at_once, self._count - 1)
                jumps[low:high] |= old_data.rows_differ(own[low + 1 : high + 1], following[low:high])
        return jumps

    def episode(self, start: int, end: int) -> dict[str, Array]:
        """The values of one episode."""
        values = {name: np.asarray(array[start:end]) for name, array in self._own.items()}
        for name, following in self._next.items():
            values[name] = old_data.with_last(values[name], np.asarray(following[end - 1 : end]))
        flags = {name: self._flags[name][start:end].copy() if name in self._flags else None for name in old_data.FLAGS}
        return {**values, **old_data.episode_flags(flags, end - start)}

    def doubtful(self) -> list[str]:
        """What the data set can hardly mean."""
        if not self._num_cuts:
            return []
        return [f"{self._num_cuts} next observations are not those of the next row: an episode is cut after each"]

    def not_known(self) -> list[str]:
        """What the data set does not tell, beside last observations."""
        infos = [name for name in self._own if name.startswith("infos.")]
        if not infos:
            return []
        return [f"whether {', '.join(infos)} belong to a row's observation or to the next one"]
