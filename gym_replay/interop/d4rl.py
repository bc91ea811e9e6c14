"""Data sets in D4RL's layout, as files or arrays."""

from __future__ import annotations

import math
import os
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gym_replay.buffer.storage.fields import Field
from gym_replay.buffer.storage.names import encode_key
from gym_replay.errors import CorruptBufferError, FieldError
from gym_replay.interop.extras import require
from gym_replay.interop.target import ImportReport, check_new, new_buffer

Array = npt.NDArray[Any]

_ROOTS = {"observations": "observation", "actions": "action", "rewards": "reward"}
_NEXT, _TERMINALS, _TIMEOUTS = "next_observations", "terminals", "timeouts"
_BYTES_AT_ONCE = 1 << 20


def from_d4rl(
    source: str | os.PathLike[str] | Mapping[str, Any],
    target: str | os.PathLike[str],
    *,
    max_episode_steps: int | None = None,
) -> ImportReport:
    """Copy a data set in D4RL's layout into a new buffer, episode by episode.

    It has one row for each transition: ``observations``, ``actions``, ``rewards``, ``terminals``, and mostly
    ``timeouts`` and ``next_observations``. An episode ends where ``terminals`` or ``timeouts`` is True, and also where
    the next observation is not the observation of the row after it; such an episode, and the rest after the last end,
    is stored as cut. Everything else with a row for each transition becomes a field of its name: ``infos/qpos`` the
    field ``infos.qpos``.

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
        FieldError: an array is missing, or has another number of rows.
        CorruptBufferError: the file cannot be read.
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
    path = check_new(target)
    with _opened(source) as arrays:
        rows = _Rows(arrays)
        ends = rows.ends(max_episode_steps)
        with new_buffer(path, rows.fields(), {}) as buffer:
            start = 0
            for end in np.flatnonzero(ends).tolist():
                values, complete, has_final = rows.episode(start, end + 1, is_end=bool(rows.closed[end]))
                buffer.store(values, end + 1 - start, complete=complete, has_final=has_final)
                start = end + 1
            return buffer.report(rows.not_known(), rows.left_out)


@contextmanager
def _opened(source: Any) -> Iterator[Mapping[str, Any]]:
    """Arrays by name, of which rows can be taken without reading all of them."""
    if isinstance(source, Mapping):
        yield {name: array for name, value in source.items() for name, array in _flattened(name, value)}
        return
    path = Path(source)
    with open(path, "rb") as file:
        magic = file.read(8)
    with ExitStack() as stack:
        if magic.startswith(b"PK"):
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="gym-replay-"))
            yield _unpacked(path, Path(folder))
        elif magic == b"\x89HDF\r\n\x1a\n":
            h5py = require("h5py", "hdf5", "from_d4rl of an HDF5 file")
            opened = stack.enter_context(h5py.File(path, "r"))
            found: dict[str, Any] = {}
            opened.visititems(lambda name, item: found.update({name: item}) if isinstance(item, h5py.Dataset) else None)
            yield found
        else:
            raise CorruptBufferError(f"{path}: expected an HDF5 or an .npz file, got one that begins with {magic!r}")


def _flattened(name: str, value: Any) -> Iterator[tuple[str, Array]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flattened(f"{name}/{key}", inner)
    else:
        yield name, np.asarray(value)


def _unpacked(path: Path, folder: Path) -> dict[str, Array]:
    """The arrays of an ``.npz`` file, each unpacked into a file and mapped: none of them need fit into memory."""
    arrays = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for number, name in enumerate(archive.namelist()):
                member = folder / f"{number}.npy"
                with archive.open(name) as packed, open(member, "wb") as plain:
                    while piece := packed.read(1 << 20):
                        plain.write(piece)
                arrays[name.removesuffix(".npy")] = np.load(member, mmap_mode="r", allow_pickle=False)
    except (zipfile.BadZipFile, ValueError, EOFError) as error:
        raise CorruptBufferError(f"{path}: {error}") from None
    return arrays


class _Rows:
    """The arrays of a data set, sorted by what they are.

    Attributes:
        closed: bool ``(rows,)``: where an episode ended, as the data set says it.
        left_out: what has no row for each transition.
    """

    def __init__(self, arrays: Mapping[str, Any]) -> None:
        if missing := [name for name in ("rewards", _TERMINALS) if name not in arrays]:
            raise FieldError(f"the data set has no {missing[0]!r}; it has {sorted(arrays)}")
        self._count = len(arrays["rewards"])
        self._terminals = self._flags(arrays, _TERMINALS)
        self._timeouts = self._flags(arrays, _TIMEOUTS) if _TIMEOUTS in arrays else None
        self.closed = self._terminals if self._timeouts is None else self._terminals | self._timeouts
        self._own: dict[str, Any] = {}
        self._next: dict[str, Any] = {}
        left_out = []
        for name, array in arrays.items():
            root, _, rest = name.partition("/")
            if name in (_TERMINALS, _TIMEOUTS):
                continue
            if not array.shape or len(array) != self._count:
                if root in (*_ROOTS, _NEXT):
                    raise FieldError(f"{name!r}: expected {self._count} rows, as rewards have, got {array.shape}")
                left_out.append(f"{name}: it has no row for each transition")
            elif array.dtype.kind not in "biuf":
                left_out.append(f"{name}: it holds {array.dtype}, not numbers")
            elif root == _NEXT:
                self._next[_field_name("observation", rest)] = array
            else:
                self._own[_field_name(_ROOTS.get(root, encode_key(root)), rest)] = array
        self.left_out = tuple(left_out)
        self._observations = [name for name in self._own if f"{name}.".startswith("observation.")]
        for root in _ROOTS.values():
            if not any(f"{name}.".startswith(f"{root}.") for name in self._own):
                raise FieldError(f"the data set has no {root}s; it has {sorted(arrays)}")
        if self._next and set(self._next) != set(self._observations):
            raise FieldError(f"{_NEXT}: expected those of {self._observations}, got {list(self._next)}")

    def _flags(self, arrays: Mapping[str, Any], name: str) -> npt.NDArray[np.bool_]:
        flags = np.asarray(arrays[name][:]).reshape(-1)
        if len(flags) != self._count:
            raise FieldError(f"{name!r}: expected {self._count} rows, as rewards have, got {len(flags)}")
        return flags.astype(np.bool_)

    def fields(self) -> dict[str, Field]:
        """The fields of the buffer: observations first, then as in the data set."""
        ordered = [*self._observations, *(name for name in self._own if name not in self._observations)]
        fields = {
            name: Field(self._own[name].dtype, self._own[name].shape[1:], state=name in self._observations)
            for name in ordered
        }
        return {**fields, "terminated": Field("bool"), "truncated": Field("bool")}

    def ends(self, max_episode_steps: int | None) -> npt.NDArray[np.bool_]:
        """Where episodes end, bool ``(rows,)``, the last row always.

        Raises:
            FieldError: that cannot be known.
        """
        if self._timeouts is None and not self._next and max_episode_steps is None:
            raise FieldError(
                "the data set has neither 'timeouts' nor 'next_observations', so where episodes were truncated is not "
                "known; pass max_episode_steps=..., as D4RL takes it from the environment"
            )
        ends = self.closed | self._jumps()
        if self._count:
            ends[-1] = True
        if max_episode_steps is not None:
            if isinstance(max_episode_steps, bool) or not isinstance(max_episode_steps, int) or max_episode_steps < 1:
                raise FieldError(f"max_episode_steps={max_episode_steps!r}: expected a number from 1 on")
            start = 0
            for end in np.flatnonzero(ends).tolist():
                full = np.arange(start + max_episode_steps - 1, end + 1, max_episode_steps)
                ends[full] = True
                if self._timeouts is None:
                    self.closed = self.closed.copy()
                    self.closed[full] = True
                start = end + 1
        return ends

    def _jumps(self) -> npt.NDArray[np.bool_]:
        """Where the next observation is not the observation of the row after it."""
        jumps = np.zeros(self._count, np.bool_)
        for name, following in self._next.items():
            own = self._own[name]
            at_once = max(1, _BYTES_AT_ONCE // max(1, own.dtype.itemsize * math.prod(own.shape[1:])))
            for low in range(0, self._count - 1, at_once):
                high = min(low + at_once, self._count - 1)
                here, there = following[low:high], own[low + 1 : high + 1]
                differs = (here != there) & ~((here != here) & (there != there))  # NaN is as good as NaN
                jumps[low:high] |= differs.reshape(high - low, -1).any(axis=1)
        return jumps

    def episode(self, start: int, end: int, *, is_end: bool) -> tuple[dict[str, Array], bool, bool]:
        """The values of one episode, whether it ended by itself, and whether its last observation is there."""
        values: dict[str, Array] = {name: np.asarray(array[start:end]) for name, array in self._own.items()}
        for name, following in self._next.items():
            values[name] = np.concatenate([values[name], np.asarray(following[end - 1 : end], values[name].dtype)])
        terminated = self._terminals[start:end]
        truncated = np.zeros(end - start, np.bool_) if self._timeouts is None else self._timeouts[start:end].copy()
        truncated[-1] |= not terminated[-1]  # by the limit, or because it was cut
        return {**values, "terminated": terminated, "truncated": truncated}, is_end, bool(self._next)

    def not_known(self) -> list[str]:
        """What the data set does not tell, beside last observations."""
        infos = [name for name in self._own if name.startswith("infos.")]
        if not infos:
            return []
        return [f"whether {', '.join(infos)} belong to a row's observation or to the next one"]


def _field_name(root: str, rest: str) -> str:
    return ".".join([root, *(encode_key(part) for part in rest.split("/"))]) if rest else root
