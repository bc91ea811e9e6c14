"""Folders written by the memmap-replay-buffer package, read without running anything that is in them."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from gym_replay.buffer.storage.fields import Field
from gym_replay.errors import BufferNotFoundError, CorruptBufferError, FieldError, UnsupportedFormatError
from gym_replay.interop.target import ImportReport, check_new, new_buffer

Array = npt.NDArray[Any]

_CONFIG = "metadata.pkl"
_MOST_BYTES = 1 << 20
_KINDS = {"int": np.int32, "float": np.float32, "bool": np.bool_, "uint8": np.uint8}
_OWN_META = ("episode_lens", "_initted")
_STATES = ("num_episodes", "episode_index", "timestep_index")


def from_memmap_replay_buffer(
    folder: str | os.PathLike[str], target: str | os.PathLike[str], *, state_fields: Sequence[str] = ()
) -> ImportReport:
    """Copy a folder of memmap-replay-buffer into a new buffer, episode by episode.

    Its configuration is a pickle. It is read with nothing allowed but dicts, lists, tuples, strings and numbers, so a
    prepared one cannot run code. Values, dtypes and names stay as they are ("int" is int32 there). Versions 0.1.4 and
    0.2.3 were tested; the array files of both are the same.

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
        UnsupportedFormatError: it is a folder of that package's HDF5 backend.
        NotABufferError: there is something at the target.
        EmptyBufferError: there is no episode.

    Example:
        >>> print(from_memmap_replay_buffer("old", "new", state_fields=["state"]))  # doctest: +SKIP
        new: 12 episodes, 340 steps
        not known: the last observation of 12 episodes: their last transition is no n-step sample
    """
    path, new = check_new(target), _Folder(Path(folder))
    unknown = [name for name in state_fields if name not in new.fields]
    if isinstance(state_fields, str) or unknown:
        raise FieldError(f"state_fields={state_fields!r}: expected names among {list(new.fields)}")
    fields = {
        name: Field(info.dtype, info.shape, info.default, state=name in state_fields)
        for name, info in new.fields.items()
    }
    with new_buffer(path, fields, new.meta_fields) as buffer:
        for slot, length, is_open in new.episodes():
            arrays = {name: array[slot, :length] for name, array in new.arrays.items()}
            meta = {name: array[slot] for name, array in new.meta.items()}
            buffer.store({**arrays, **meta}, length, complete=not is_open, has_final=not state_fields)
        not_known = list(new.not_known())
        if not state_fields:
            not_known.insert(0, "which fields are observations: none is a state field, see state_fields")
        return buffer.report(not_known)


class _PlainUnpickler(pickle.Unpickler):
    """Makes no object but those that the pickle format has opcodes for."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")

    def persistent_load(self, pid: Any) -> NoReturn:
        raise pickle.UnpicklingError("it refers to something outside of it")


def read_plain_pickle(path: Path) -> Any:
    """The value in a pickle of dicts, lists, tuples, sets, strings, bytes, numbers and None.

    Raises:
        CorruptBufferError: it is damaged, is larger than 1 MiB, or asks for anything else.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > _MOST_BYTES:
            raise CorruptBufferError(f"{path}: {size} bytes are too many for a configuration")
        try:
            return _PlainUnpickler(file).load()
        except (pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, LookupError) as error:
            raise CorruptBufferError(
                f"{path}: expected a pickle of plain values only: {error}; nothing of it was run"
            ) from None
        except (RecursionError, MemoryError, OverflowError) as error:
            raise CorruptBufferError(f"{path}: expected a small pickle of plain values: {error!r}") from None


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
        slots, steps = (self._number(config[name], name) for name in ("max_episodes", "max_timesteps"))
        self._circular = bool(config.get("circular", False))
        self.fields = self._declared(config["fields"])
        declared = self._declared(config.get("meta_fields") or {})
        self.meta_fields = {name: info for name, info in declared.items() if name not in _OWN_META}
        self._lengths = self._open("episode_lens", ".data.meta.npy", Field("int32"), (slots,)).astype(np.int64)
        if (self._lengths < 0).any() or (self._lengths > steps).any():
            raise CorruptBufferError(f"{folder}: episode_lens: an episode has no such length")
        self._states = {name: int(self._open(name, ".state.npy", Field("int32"), ())[()]) for name in _STATES}
        if not 0 <= self._states["episode_index"] < slots:
            raise CorruptBufferError(f"{folder}: episode_index.state.npy: there is no slot {self._states}")
        self.arrays = {name: self._open(name, ".data.npy", info, (slots, steps)) for name, info in self.fields.items()}
        self.meta = {
            name: self._open(name, ".data.meta.npy", info, (slots,)) for name, info in self.meta_fields.items()
        }

    def _number(self, value: Any, name: str) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 1 << 40:
            raise CorruptBufferError(
                f"{self._folder / _CONFIG}: {name}: expected a number from 1 on, got {value!r:.60}"
            )
        return value

    def _declared(self, declared: Any) -> dict[str, Field]:
        if not isinstance(declared, dict):
            raise CorruptBufferError(f"{self._folder / _CONFIG}: expected a dict of fields, got {declared!r:.60}")
        return {name: self._field(name, info) for name, info in declared.items()}

    def _field(self, name: Any, info: Any) -> Field:
        fault = f"{self._folder / _CONFIG}: field {name!r:.60}: "
        if not isinstance(name, str) or Path(name).name != name:
            raise CorruptBufferError(f"{fault}it is no name of a file in the folder")
        given: list[Any] = [info] if isinstance(info, str) else list(info) if isinstance(info, (tuple, list)) else []
        kind, shape, default, *rest = given + [None, (), None][len(given) :]
        shape = (shape,) if isinstance(shape, int) else shape
        if rest or not isinstance(kind, str) or kind not in _KINDS or not isinstance(shape, (tuple, list)):
            raise CorruptBufferError(
                f"{fault}expected a dtype of {list(_KINDS)}, with shape and default, got {info!r:.60}"
            )
        try:
            return Field(_KINDS[kind], tuple(shape), default)
        except FieldError as error:
            raise CorruptBufferError(f"{fault}{error}") from None

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
        """Slot, length, and whether it was still open, the oldest first."""
        slots, at, running = len(self._lengths), self._states["episode_index"], self._running()
        for place in range(running, slots + running):
            slot = (at + place) % slots
            if self._lengths[slot]:
                yield slot, int(self._lengths[slot]), place >= slots

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

    def not_known(self) -> Iterator[str]:
        """What such folders do not tell."""
        flags = [name for name in ("terminated", "truncated") if name in self.fields]
        if len(flags) < 2:
            yield f"whether episodes terminated or were truncated, beyond what the fields {list(self.fields)} say"
        if self._circular and self._states["timestep_index"] > 0 and self._states["num_episodes"] == len(self._lengths):
            yield "whether more than one episode was open when it was last written: only the first is stored as cut"
