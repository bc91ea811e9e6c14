"""What every importer does: it checks old data, shapes them, and makes a folder that appears whole or not at all."""

from __future__ import annotations

import errno
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gym_replay.buffer.replay_buffer import ReplayBuffer, open_buffer
from gym_replay.errors import CorruptBufferError, EmptyBufferError, FieldError, NotABufferError
from gym_replay.files.folders import folder_of
from gym_replay.files.new_folder import new_folders
from gym_replay.schema.arrays import Array, Bools
from gym_replay.schema.codec_choice import IMAGES, Codecs, is_image, with_codecs
from gym_replay.schema.fields import Field, fit
from gym_replay.schema.names import encode_key

FLAGS = ("terminated", "truncated")


def step_shape(name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a field for old values ``(rows, *shape)``.

    Rewards, flags and integer actions of one number a step are single numbers, also where they come as ``(rows, 1)``:
    beside the ``(batch,)`` of other values, ``(batch, 1)`` broadcasts to ``(batch, batch)``.
    """
    is_number = name in ("reward", *FLAGS) or (f"{name}.".startswith("action.") and dtype.kind in "biu")
    return () if is_number and math.prod(shape) == 1 else shape


def as_steps(name: str, values: Array) -> Array:
    """Old values ``(rows, ...)`` of a field in its :func:`step_shape`."""
    return values.reshape(len(values), *step_shape(name, values.dtype, values.shape[1:])) if values.ndim > 1 else values


def step_field(name: str, dtype: np.dtype[Any], shape: tuple[int, ...], default: Any = None, *, state: bool) -> Field:
    """The field for old values ``(rows, *shape)``.

    Raises:
        FieldError: no field has such values.
    """
    if dtype.kind not in "biuf":
        raise FieldError(f"{name!r}: expected numbers, got {dtype}")
    shape = step_shape(name, dtype, shape)
    return Field(dtype, shape, None if default is None else np.reshape(default, shape), state=state)


def is_observation(name: str) -> bool:
    """Whether a field is an observation, or a part of one."""
    return f"{name}.".startswith("observation.")


def field_name(path: str) -> str:
    """The name of the field for an array of groups: ``infos/qpos`` is ``infos.qpos``."""
    return ".".join(map(encode_key, path.split("/")))


def why_no_field(array: Any) -> str | None:
    """Why no field has the values of an array, or None."""
    if array.dtype.kind in "biuf" and array.dtype.itemsize <= 8:
        return None
    return f"it holds {array.dtype}, which no field does"


def fields_of(arrays: Mapping[str, Any], is_state: Callable[[str], bool] = is_observation) -> dict[str, Field]:
    """The fields for old values ``(rows, *shape)`` by name: observations first, and the flags behind all others."""
    fields = {
        name: step_field(name, array.dtype, array.shape[1:], state=is_state(name))
        for name, array in sorted(arrays.items(), key=lambda item: not is_observation(item[0]))
    }
    return {**fields, **{name: Field("bool") for name in FLAGS}}


def stored_fields(fields: Mapping[str, Field], codecs: Codecs | None) -> dict[str, Field]:
    """Fields with their codecs; images by zstd where these do not say it.

    Raises:
        FieldError: a codec does not go with a field.
    """
    images: Codecs = {IMAGES: "zstd"} if any(map(is_image, fields.values())) else {}
    return with_codecs(fields, {**images, **(codecs or {})})


@contextmanager
def about(what: str) -> Iterator[None]:
    """Have errors about old data say what they are about."""
    try:
        yield
    except FieldError as error:
        raise FieldError(f"{what}: {error}") from None
    except CorruptBufferError as error:
        raise CorruptBufferError(f"{what}: {error}") from None


def as_flags(name: str, values: Any, count: int) -> Bools:
    """One flag a step, bool ``(count,)``, from booleans or from the numbers 0 and 1.

    Raises:
        FieldError: there are not so many, or one of them is something else.
    """
    array = np.asarray(values)
    if array.shape[:1] != (count,) or math.prod(array.shape[1:]) != 1:
        raise FieldError(f"{name!r}: expected {count} rows, as rewards have, of one flag each, got shape {array.shape}")
    array = array.reshape(count)
    if array.dtype.kind not in "biuf":
        raise FieldError(f"{name!r}: expected booleans, or 0 and 1, got {array.dtype}")
    flags: Bools = array == 1
    if (wrong := np.flatnonzero(~flags & (array != 0))).size:
        raise FieldError(f"{name!r}: expected booleans, or 0 and 1, got {array[wrong[0]]} at row {wrong[0]}")
    return flags


def episode_flags(given: Mapping[str, Bools | None], length: int) -> dict[str, Bools]:
    """The flags of an episode, None of which are False everywhere; one whose end is not known was truncated there."""
    flags = {name: np.zeros(length, np.bool_) if flag is None else flag for name, flag in given.items()}
    flags["truncated"][-1:] |= ~flags["terminated"][-1:]
    return flags


def rows_differ(own: Array, other: Array) -> Bools:
    """Which rows of two arrays of one shape differ, bool ``(rows,)``; NaN is as good as NaN.

    Floats of two dtypes are compared in the narrower one, since the others were rounded to it somewhere.
    """
    if own.dtype.kind == other.dtype.kind == "f":
        narrow = min(own.dtype, other.dtype, key=lambda dtype: dtype.itemsize)
        with np.errstate(all="ignore"):
            own, other = own.astype(narrow, copy=False), other.astype(narrow, copy=False)
    differs = (own != other) & ~((own != own) & (other != other))
    found: Bools = differs.reshape(len(own), -1).any(axis=1)
    return found


def check_next(name: str, own: Any, following: Any) -> None:
    """Raise FieldError where next observations cannot be rows of the field that their observations are in."""
    if following.shape != own.shape:
        raise FieldError(f"{name!r}: expected shape {own.shape}, as observations have, got {following.shape}")
    if following.dtype.kind == "f" and own.dtype.kind != "f":
        raise FieldError(
            f"{name!r} holds {following.dtype}, observations hold {own.dtype}: one of both was converted, so they do "
            "not tell where an episode goes on; convert both alike, or leave the next ones out"
        )


def with_last(own: Array, following: Array) -> Array:
    """Observations ``(T, *shape)`` and behind them the last one of those that followed them.

    Raises:
        FieldError: that one does not fit the others.
    """
    last = fit("next_observations", following[-1:], Field(own.dtype, own.shape[1:]), (1,))
    return np.concatenate([own, last])


def check_ends(values: Mapping[str, Any], length: int) -> None:
    """Raise FieldError where a flag of an episode is set before its last step: loaders take T steps as one episode."""
    for name in FLAGS:
        flags = np.asarray(values.get(name, ()))
        if flags.size != length or flags.dtype.kind not in "biuf":
            continue
        if (early := np.flatnonzero(flags.reshape(length)[:-1])).size:
            raise FieldError(
                f"{name!r} is set at step {early[0]} of {length}, so this is more than one episode; split it after "
                "each step that ends one"
            )


# --- the new buffer ---


@dataclass(frozen=True)
class ImportReport:
    """What an import made, and what it could not know.

    Attributes:
        folder: the new buffer.
        num_episodes, num_steps: what is in it.
        not_known: what the source did not say and the buffer therefore does not either.
        left_out: what the source had and the buffer has not.
        doubtful: what the source says that is hardly meant so; it is stored as it is.

    Example:
        >>> print(ImportReport(Path("data/old"), 2, 30, ("the last observations",), ()))
        data/old: 2 episodes, 30 steps
        not known: the last observations
    """

    folder: Path
    num_episodes: int
    num_steps: int
    not_known: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    doubtful: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"{self.folder}: {self.num_episodes} episodes, {self.num_steps} steps"]
        lines += [f"not known: {each}" for each in self.not_known]
        lines += [f"left out: {each}" for each in self.left_out]
        return "\n".join(lines + [f"doubtful: {each}" for each in self.doubtful])


class NewBuffer:
    """A buffer in the making, and what is noted of it for the report.

    Attributes:
        buffer: the buffer itself.
    """

    def __init__(self, buffer: ReplayBuffer, target: Path) -> None:
        self.buffer, self._target, self._fields = buffer, target, buffer.metadata.fields
        self._states = [name for name, field in self._fields.items() if field.state]
        self._num_episodes = self._num_steps = self._incomplete = self._without_final = 0
        self._not_finite: Counter[str] = Counter()
        self._both_flags = 0

    def store(self, values: Mapping[str, Any], length: int, *, complete: bool) -> None:
        """Add an episode of ``length`` transitions.

        Args:
            values: of all fields, in their shapes or as :func:`as_steps` takes them, and of meta fields.
            length: how many transitions there are.
            complete: whether it is known how it ended.

        Raises:
            FieldError: it does not fit the fields, or is more than one episode.
        """
        arrays = {
            name: as_steps(name, value) if name in self._fields and isinstance(value, np.ndarray) else value
            for name, value in values.items()
        }
        check_ends(arrays, length)
        self.put(arrays, length, complete=complete)

    def put(self, arrays: Mapping[str, Any], length: int, *, complete: bool) -> None:
        """Add an episode as it is, which was one in a buffer before; the rest as for :meth:`store`."""
        for name, array in arrays.items():
            is_float = isinstance(array, np.ndarray) and array.dtype.kind == "f"
            self._not_finite[name] += bool(is_float and not np.isfinite(array).all())
        self._both_flags += all(name in arrays and bool(arrays[name][-1:].any()) for name in FLAGS)
        self.buffer.put_episode(arrays, complete=complete)
        self._num_episodes += 1
        self._num_steps += length
        self._incomplete += not complete
        self._without_final += any(len(arrays[name]) == length for name in self._states)

    def report(
        self, not_known: Sequence[str], left_out: Sequence[str] = (), doubtful: Sequence[str] = ()
    ) -> ImportReport:
        """What was made, with what is known to be missing from it.

        Raises:
            EmptyBufferError: nothing was.
        """
        if not self._num_episodes:
            raise EmptyBufferError(f"there is no transition to import, so {self._target} is not made")
        found = list(not_known)
        if self._without_final:
            found.append(
                f"the last observation of {self._without_final} episodes: their last transition is no n-step sample"
            )
        if self._incomplete:
            found.append(f"how {self._incomplete} episodes ended: they are stored as cut (Episode.complete is False)")
        odd = [f"{name}: NaN or infinite in {count} episodes" for name, count in self._not_finite.items() if count]
        if self._both_flags:
            odd.append(f"{self._both_flags} episodes are both terminated and truncated; loaders take the first")
        return ImportReport(
            self._target, self._num_episodes, self._num_steps, tuple(found), tuple(left_out), (*doubtful, *odd)
        )


def check_new(target: str | os.PathLike[str]) -> Path:
    """The absolute path of a folder that does not exist yet, or is empty.

    Raises:
        NotABufferError: there is something.
    """
    path = folder_of(target)
    if path.is_symlink() or (path.exists() and not (path.is_dir() and not any(path.iterdir()))):
        raise NotABufferError(
            errno.EEXIST, "there is something here already; choose a folder that does not exist", str(path)
        )
    return path


@contextmanager
def new_buffer(target: Path, config: Mapping[str, Any]) -> Iterator[NewBuffer]:
    """A buffer that gets its name when all is in it; an exception inside leaves nothing behind.

    Args:
        target: the folder that it will be.
        config: ``fields``, and other attributes of the buffer's metadata.

    Raises:
        NotABufferError: something has appeared at the target meanwhile.
        StorageError: the operating system refused.
    """
    with new_folders(target) as (new,):
        with open_buffer(new.folder, config, overwrite=False) as buffer:
            yield NewBuffer(buffer, target)
        new.publish()
