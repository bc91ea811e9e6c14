"""Folders written by the memmap-replay-buffer package, read without running anything that is in them."""

from __future__ import annotations

import io
import os
import pickle
import pickletools
import reprlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from gym_replay.errors import BufferNotFoundError, CorruptBufferError, FieldError, UnsupportedFormatError
from gym_replay.files.folders import local_path
from gym_replay.interop.old_data import ImportReport, about, check_new, new_buffer, step_field
from gym_replay.schema.arrays import Array
from gym_replay.schema.fields import Field

_CONFIG = "metadata.pkl"
_MOST_BYTES = 1 << 20
_MOST_VALUES = 1 << 16
_MOST_TUPLES = 10_000
_SLOTS_AT_ONCE = 1 << 20
_KINDS = {"int": np.int32, "float": np.float32, "bool": np.bool_, "uint8": np.uint8}
_OWN_META = ("episode_lens", "_initted")
_STATES = ("num_episodes", "episode_index", "timestep_index")


def from_memmap_replay_buffer(
    folder: str | os.PathLike[str], target: str | os.PathLike[str], *, state_fields: Sequence[str] = ()
) -> ImportReport:
    """Copy a folder of memmap-replay-buffer into a new buffer, episode by episode.

    Its configuration is a pickle. It is read with nothing allowed but dicts, lists, tuples, strings and numbers, so a
    prepared one cannot run code. Values, dtypes and names stay as they are ("int" is int32 there). So do shapes, but
    for rewards, flags and integer actions of shape (1,), which become single numbers. Versions 0.1.4 and 0.2.3 were
    tested; the array files of both are the same.

    That package stores no observation after the last step. Name the fields that hold observations as ``state_fields``,
    and the last step of each episode is known to lack its next observation; without, they are fields like all others.

    Args:
        folder: what was given to its ``ReplayBuffer``. Nobody may be writing to it.
        target: a folder that does not exist yet. It appears when all is in it.
        state_fields: the fields that hold observations.

    Returns:
        What was made, and what the folder does not tell.

    Raises:
        BufferNotFoundError: the folder has no ``metadata.pkl``.
        CorruptBufferError: the pickle asks for more than plain values, or a file does not fit it.
        FieldError: a name in ``state_fields`` is unknown, or an episode has a field ``terminated`` or ``truncated``
            that is set before its last step.
        UnsupportedFormatError: it is a folder of that package's HDF5 backend.
        NotABufferError: there is something at the target.
        EmptyBufferError: there is no episode.

    Example:
        >>> print(from_memmap_replay_buffer("old", "new", state_fields=["state"]))  # doctest: +SKIP
        new: 12 episodes, 340 steps
        not known: the last observation of 12 episodes: their last transition is no n-step sample
    """
    path, old = check_new(target), _Folder(Path(local_path(folder)))
    unknown = [name for name in state_fields if name not in old.fields]
    if isinstance(state_fields, str) or unknown:
        raise FieldError(f"state_fields={state_fields!r}: expected names among {list(old.fields)}")
    fields = {
        name: step_field(name, info.dtype, info.shape, info.default, state=name in state_fields)
        for name, info in old.fields.items()
    }
    with new_buffer(path, {"fields": fields, "meta_fields": old.meta_fields}) as buffer:
        for slot, length, is_open in old.episodes():
            values = {name: array[slot, :length] for name, array in old.arrays.items()}
            meta = {name: array[slot] for name, array in old.meta.items()}
            with about(f"the episode in slot {slot}"):
                buffer.store({**values, **meta}, length, complete=not is_open)
        not_known = list(old.not_known())
        if not state_fields:
            not_known.insert(0, "which fields are observations: none is a state field, see state_fields")
        return buffer.report(not_known, old.left_out())


class _PlainUnpickler(pickle.Unpickler):
    """Makes no object but those that the pickle format has opcodes for."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")

    def persistent_load(self, pid: Any) -> NoReturn:
        raise pickle.UnpicklingError("it refers to something outside of it")


def read_plain_pickle(path: Path) -> Any:
    """The value in a pickle of dicts, lists, tuples, sets, strings, bytes, numbers and None.

    Raises:
        CorruptBufferError: it is damaged, is larger than 1 MiB, holds more than 65536 values, or asks for anything
            else.
    """
    with open(path, "rb") as file:
        content = file.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise CorruptBufferError(f"{path}: expected a configuration of at most {_MOST_BYTES} bytes")
    try:
        _check_sizes(content)
        value = _PlainUnpickler(io.BytesIO(content)).load()
        _check_count(value)
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, LookupError) as error:
        raise CorruptBufferError(
            f"{path}: expected a pickle of plain values only: {error}; nothing of it was run"
        ) from None
    except (RecursionError, MemoryError, OverflowError) as error:
        raise CorruptBufferError(f"{path}: expected a small pickle of plain values: {error!r}") from None
    return value


def _check_sizes(content: bytes) -> None:
    """Raise UnpicklingError where a pickle asks for more memory, or a deeper stack, than a configuration needs.

    The unpickler makes its table of remembered values as long as the largest index, and a buffer as long as a frame or
    a bytearray says it is. Python takes the hash of a tuple that is a key without a limit to its depth.
    """
    tuples = 0
    for opcode, argument, _ in pickletools.genops(content):
        is_size = "PUT" in opcode.name or opcode.name == "FRAME"
        if is_size and int(argument or 0) > len(content):
            raise pickle.UnpicklingError(f"it asks for room for {argument} values, and has {len(content)} bytes")
        tuples += opcode.name.startswith(("TUPLE", "FROZENSET"))
        if tuples > _MOST_TUPLES:
            raise pickle.UnpicklingError(f"it holds more than {_MOST_TUPLES} tuples")


def _check_count(value: Any) -> None:
    """Raise UnpicklingError where a value is made of too many: a list that holds one list many times, or itself."""
    waiting, count = [value], 0
    while waiting:
        one = waiting.pop()
        count += 1
        inner = [*one.keys(), *one.values()] if isinstance(one, dict) else one
        if isinstance(inner, (list, tuple, set, frozenset)):
            waiting.extend(inner)
        if count + len(waiting) > _MOST_VALUES:
            raise pickle.UnpicklingError(f"it holds more than {_MOST_VALUES} values")


class _Folder:
    """The files of such a folder, checked against its configuration.

    Attributes:
        fields, meta_fields: as declared there.
        arrays: ``(slots, max_timesteps, *shape)`` by field.
        meta: ``(slots, *shape)`` by meta field.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        if not (folder / _CONFIG).is_file():
            raise BufferNotFoundError(2, f"no {_CONFIG} of memmap-replay-buffer here; check the path", str(folder))
        config = read_plain_pickle(folder / _CONFIG)
        if not isinstance(config, dict) or not {"max_episodes", "max_timesteps", "fields"} <= set(config):
            raise CorruptBufferError(f"{folder / _CONFIG}: it is no configuration of memmap-replay-buffer")
        slots, self._steps = (self._number(config[name], name) for name in ("max_episodes", "max_timesteps"))
        self._circular = bool(config.get("circular", False))
        fields, meta_fields = self._declared(config["fields"]), self._declared(config.get("meta_fields") or {})
        meta_fields = {name: info for name, info in meta_fields.items() if name not in _OWN_META}
        if doubled := [name for name in meta_fields if name in fields]:
            raise CorruptBufferError(f"{folder / _CONFIG}: {doubled[0]!r} is a field and a meta field")
        self._lengths = self._open("episode_lens", ".data.meta.npy", Field("int32"), (slots,))
        self._states = {name: int(self._open(name, ".state.npy", Field("int32"), ())[()]) for name in _STATES}
        if not 0 <= self._states["episode_index"] < slots:
            raise CorruptBufferError(f"{folder}: episode_index.state.npy: there is no slot {self._states}")
        self.fields, self.arrays = self._mapped(fields, ".data.npy", (slots, self._steps))
        self.meta_fields, self.meta = self._mapped(meta_fields, ".data.meta.npy", (slots,))

    def _mapped(
        self, declared: dict[str, tuple[Field, Any]], suffix: str, lead: tuple[int, ...]
    ) -> tuple[dict[str, Field], dict[str, Array]]:
        arrays = {name: self._open(name, suffix, info, lead) for name, (info, _) in declared.items()}
        # A default is made in the field's shape, so the shape has been seen in a file before.
        fields = {name: self._made(name, info.dtype, info.shape, default) for name, (info, default) in declared.items()}
        return fields, arrays

    def _number(self, value: Any, name: str) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 1 << 40:
            raise CorruptBufferError(
                f"{self._folder / _CONFIG}: {name}: expected a number from 1 on, got {reprlib.repr(value)}"
            )
        return value

    def _declared(self, declared: Any) -> dict[str, tuple[Field, Any]]:
        """The fields as they are declared, with their defaults beside them."""
        if not isinstance(declared, dict):
            raise CorruptBufferError(
                f"{self._folder / _CONFIG}: expected a dict of fields, got {reprlib.repr(declared)}"
            )
        return {name: self._field(name, info) for name, info in declared.items()}

    def _field(self, name: Any, info: Any) -> tuple[Field, Any]:
        fault = f"{self._folder / _CONFIG}: field {reprlib.repr(name)}: "
        if not isinstance(name, str) or Path(name).name != name:
            raise CorruptBufferError(f"{fault}it is no name of a file in the folder")
        given: list[Any] = [info] if isinstance(info, str) else list(info) if isinstance(info, (tuple, list)) else []
        kind, shape, default, *rest = given + [None, (), None][len(given) :]
        shape = (shape,) if isinstance(shape, int) else shape
        if rest or not isinstance(kind, str) or kind not in _KINDS or not isinstance(shape, (tuple, list)):
            raise CorruptBufferError(
                f"{fault}expected a dtype of {list(_KINDS)}, with shape and default, got {reprlib.repr(info)}"
            )
        return self._made(name, _KINDS[kind], tuple(shape)), default

    def _made(self, name: str, dtype: Any, shape: tuple[int, ...], default: Any = None) -> Field:
        try:
            return Field(dtype, shape, default)
        except FieldError as error:
            raise CorruptBufferError(f"{self._folder / _CONFIG}: field {name!r}: {error}") from None

    def _open(self, name: str, suffix: str, info: Field, lead: tuple[int, ...]) -> Array:
        path = self._folder / f"{name}{suffix}"
        try:
            array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
        except FileNotFoundError:
            if any(self._folder.glob("*.h5")) or any(self._folder.glob("*.hdf5")):
                raise UnsupportedFormatError(
                    f"{self._folder}: it is of memmap-replay-buffer's HDF5 backend; copy it with that package into its "
                    "memmap backend first"
                ) from None
            raise CorruptBufferError(f"{path}: the file is missing") from None
        except (ValueError, OSError, EOFError) as error:
            raise CorruptBufferError(f"{path}: {error}") from None
        if array.shape != (*lead, *info.shape) or array.dtype != info.dtype:
            raise CorruptBufferError(
                f"{path}: expected {info.dtype} of shape {(*lead, *info.shape)}, got {array.dtype} of {array.shape}"
            )
        return array

    def episodes(self) -> Iterator[tuple[int, int, bool]]:
        """Slot, length, and whether it was still open, the oldest first.

        Raises:
            CorruptBufferError: an episode has a length that none can have.
        """
        slots, at, running = len(self._lengths), self._states["episode_index"], self._running()
        for first in range(running, slots + running, _SLOTS_AT_ONCE):  # in memory, all may be more than on the disk
            order = np.arange(first, min(first + _SLOTS_AT_ONCE, slots + running))
            lengths = self._lengths[(at + order) % slots]
            if (lengths < 0).any() or (lengths > self._steps).any():
                raise CorruptBufferError(f"{self._folder}: episode_lens: an episode has no such length")
            used = lengths > 0
            for index, length in zip(order[used].tolist(), lengths[used].tolist(), strict=True):
                yield (at + index) % slots, length, index >= slots

    def _running(self) -> int:
        """How many episodes were open, in the slots from ``episode_index`` on.

        An open episode is in the slot that is written next, and the length there is the number of its steps so far. A
        batch has equally many steps in consecutive slots. Where slots have not been used before, that tells how many;
        in a ring that has gone round, the others cannot be told from older episodes of the same length.
        """
        steps, at = self._states["timestep_index"], self._states["episode_index"]
        if steps == 0:
            return 0
        unused = len(self._lengths) - self._states["num_episodes"]
        count = 1
        while count < unused and self._lengths[(at + count) % len(self._lengths)] == steps:
            count += 1
        return count

    def left_out(self) -> list[str]:
        """Arrays of the folder that are not in its configuration."""
        ours = {f"{name}.data.npy" for name in self.fields}
        ours |= {f"{name}.data.meta.npy" for name in (*self.meta_fields, *_OWN_META)}
        ours |= {f"{name}.state.npy" for name in _STATES}
        return [
            f"{path.name}: it is not in {_CONFIG}"
            for path in sorted(self._folder.glob("*.npy"))
            if path.name not in ours
        ]

    def not_known(self) -> Iterator[str]:
        """What such folders do not tell."""
        flags = [name for name in ("terminated", "truncated") if name in self.fields]
        if len(flags) < 2:
            yield f"whether episodes terminated or were truncated, beyond what the fields {list(self.fields)} say"
        if self._circular and self._states["timestep_index"] > 0 and self._states["num_episodes"] == len(self._lengths):
            yield "whether more than one episode was open when it was last written: only the first is stored as cut"
