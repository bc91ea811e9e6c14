"""Episodes of a Minari dataset as episodes of a buffer, one by one."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from gym_replay.buffer.replay_buffer import ReplayBuffer
from gym_replay.errors import CorruptBufferError, FieldError
from gym_replay.interop.minari.infos import entries_of, entry_of, rows_of
from gym_replay.interop.minari.limits import GROUP, LONGEST_ARROW
from gym_replay.interop.minari.metadata import UNKNOWN_SEED, from_entry, from_metadata, own_entry
from gym_replay.interop.minari.parts import cast_exactly, in_shape, take_apart
from gym_replay.interop.minari.schemas import Refuse, Schema, entry
from gym_replay.interop.old_data import as_flags, as_steps, check_ends
from gym_replay.schema.fields import Field, exact_cast
from gym_replay.schema.names import check_distinct, check_field_name, encode_key
from gym_replay.spaces import space_tree
from gym_replay.wrappers.episode_meta import describe_run, options_to_json
from gym_replay.wrappers.infos import PRESENT, ROOT
from gym_replay.wrappers.recorded_schema import FLAGS


def check_length(values: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
    """Raise CorruptBufferError where Minari reads back another number of steps than were written."""
    noted = metadata.get("total_steps")
    if noted is not None and int(noted) != len(values["rewards"]):
        raise CorruptBufferError(
            f"episode {values['id']}: it has {int(noted)} steps, and Minari gives {len(values['rewards'])}; of Arrow "
            f"and Parquet files it reads up to {LONGEST_ARROW}"
        )


class Arrival:
    """Stores the episodes of a dataset.

    Args:
        buffer: where they go.
        schema: of it.
        source: the dataset.
        refuse: is told of what a buffer cannot hold.
    """

    def __init__(self, buffer: ReplayBuffer, schema: Schema, source: Any, refuse: Refuse) -> None:
        self._buffer, self._schema, self._refuse = buffer, schema, refuse
        self._dataset_id = source.id
        self._versions = json.loads(describe_run())["versions"]

    def store(self, values: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
        """Store one episode.

        Raises:
            CorruptBufferError: it is damaged.
            FieldError: it does not fit the fields.
        """
        length = len(values["rewards"])
        own = own_entry(metadata) if self._schema.is_exported else None
        arrays = self._steps(values)
        if own is None:
            check_ends(arrays, length)
        rows = next((len(arrays[name]) for name in arrays if self._fields[name].state), length + 1)
        find = self._foreign_infos if own is None else self._own_infos
        found = find(values["infos"], length, rows)
        arrays |= found if own is None else {name: self._fitted(name, value) for name, value in found.items()}
        for name, field in self._fields.items():  # all state fields have as many rows, or none
            if field.state and name not in arrays:
                arrays[name] = np.broadcast_to(field.default_value(), (rows, *field.shape))
        meta = self._foreign_meta(arrays, metadata)
        complete = bool(meta["episode_complete"])
        if own is not None:
            meta = from_metadata(metadata, own, self._buffer.metadata.meta_fields)
            complete = own["complete"]
        known = self._buffer.metadata.meta_fields
        arrays |= {name: value for name, value in meta.items() if name in known}
        self._buffer.put_episode(arrays, complete=complete)

    @property
    def _fields(self) -> dict[str, Field]:
        return self._buffer.metadata.fields

    def _steps(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Observations, actions, rewards and flags by field."""
        arrays: dict[str, Any] = {}
        for root, space in self._schema.roots.items():
            take_apart(space_tree(space, root), values[f"{root}s"], arrays)
        arrays["reward"] = rewards = as_steps("reward", np.asarray(values["rewards"]))
        if rewards.dtype.kind not in "biuf":
            raise CorruptBufferError(f"rewards: expected numbers, got {rewards.dtype}")
        for name, given in zip(FLAGS, ("terminations", "truncations"), strict=True):
            arrays[name] = as_flags(given, values[given], len(values["rewards"]))
        if unknown := [name for name in arrays if name not in self._fields]:
            raise CorruptBufferError(f"{unknown[0]} is no field of what was exported: {list(self._fields)}")
        return {name: value if isinstance(value, list) else self._fitted(name, value) for name, value in arrays.items()}

    # --- infos ---

    def _own_infos(self, infos: Any, length: int, rows: int) -> dict[str, Any]:
        """Info and extra fields of an exported episode whose state fields have this many rows."""
        arrays: dict[str, Any] = {}
        for path, value in entries_of(infos):
            name = path[-1] if path[0] == GROUP else f"{ROOT}.{'.'.join(path)}"
            field = self._fields.get(name)
            if field is None:
                raise CorruptBufferError(f"infos: {name!r} is no field of what was exported: {list(self._fields)}")
            array = self._entry(name, value, field)
            if array is not None:
                arrays[name] = array[: rows if field.state else length]
        for name in self._fields:
            if name.startswith(f"{PRESENT}.") and name not in arrays:  # left out where an entry is in each row
                arrays[name] = np.full(rows, entry_of(name) in arrays)
        return arrays

    def _foreign_infos(self, infos: Any, length: int, rows: int) -> dict[str, Any]:
        """Info fields of an episode of another origin; the buffer gets those that it lacks, and wider dtypes."""
        arrays: dict[str, Any] = {}
        new: dict[str, Field] = {}
        for path, value in entries_of(infos):
            name = f"{ROOT}.{'.'.join(map(encode_key, path))}"
            array = self._entry(name, value, self._fields.get(name))
            if array is None:
                continue
            try:
                self._widen(name, array)
                fields = {} if name in self._fields else self._new_fields(name, array, [*self._fields, *new])
                arrays |= self._aligned(name, array, length, rows)
                new |= fields
            except (FieldError, CorruptBufferError) as error:
                self._refuse(str(error), type(error))
        self._buffer.widen_schema(new)
        return arrays

    def _widen(self, name: str, array: npt.NDArray[Any]) -> None:
        """Give a field the dtype that holds an entry too, where it needs another one.

        Raises:
            FieldError: a value of an earlier episode would change.
        """
        field = self._fields.get(name)
        if field is None or array.shape[1:] != field.shape or exact_cast(array, field.dtype) is not None:
            return
        wider = replace(field, dtype=np.promote_types(field.dtype, array.dtype))
        if exact_cast(array, wider.dtype) is not None:
            self._buffer.widen_schema({name: wider})

    def _entry(self, name: str, value: Any, field: Field | None) -> npt.NDArray[Any] | None:
        array = rows_of(value, field)
        if array is None:
            self._refuse(f"{name}: expected numbers, one entry for each step, got {reprlib.repr(value)}")
        return array

    def _new_fields(self, name: str, array: npt.NDArray[Any], others: list[str]) -> dict[str, Field]:
        """The fields for an entry that is there for the first time, beside those that there are.

        Raises:
            FieldError: there can be no such fields.
        """
        if not self._buffer.metadata.has_state:
            raise FieldError(f"{name}: there are no observations beside which it could be")
        check_distinct([*others, *self._buffer.metadata.meta_fields, check_field_name(name)])
        presence = f"{PRESENT}.{name.partition('.')[2]}"
        return {name: Field(array.dtype, array.shape[1:], state=True), presence: Field("bool", state=True)}

    def _aligned(self, name: str, array: npt.NDArray[Any], length: int, rows: int) -> dict[str, Any]:
        """An entry with the info of ``reset`` in row 0, and where it is.

        Raises:
            CorruptBufferError: it has another number of rows.
            FieldError: it does not fit the field that is there for it.
        """
        if name in self._fields:
            array = self._fitted(name, array)
        presence = f"{PRESENT}.{name.partition('.')[2]}"
        if len(array) == length + 1:
            return {name: array[:rows], presence: np.ones(rows, np.bool_)}
        if len(array) != length:
            raise CorruptBufferError(f"{name}: expected {length + 1} rows, got {len(array)}")
        # As many as steps: those of the steps, which belong to the observations after them.
        shifted = np.zeros((length + 1, *array.shape[1:]), array.dtype)
        shifted[1:] = array
        return {name: shifted[:rows], presence: (np.arange(length + 1) > 0)[:rows]}

    def _fitted(self, name: str, value: npt.NDArray[Any]) -> npt.NDArray[Any]:
        field = self._fields[name]
        value = in_shape(np.asarray(value), field.shape)
        if value.shape[1:] != field.shape:
            raise FieldError(f"{name}: expected shape {field.shape} as in the first episode, got {value.shape[1:]}")
        return cast_exactly(name, value, field.dtype)

    # --- what an episode has once ---

    def _foreign_meta(self, arrays: Mapping[str, Any], metadata: Mapping[str, Any]) -> dict[str, Any]:
        """The meta fields of an episode of which nothing was noted by an export."""
        rewards = arrays["reward"]
        number = metadata.get("id")
        seed = metadata.get("seed")
        fits = seed is not None and int(seed) < 1 << 63
        imported: dict[str, Any] = {"dataset_id": self._dataset_id, "id": None if number is None else int(number)}
        if seed is not None and not fits:
            imported["seed"] = int(seed)
        meta: dict[str, Any] = {
            "episode_seed": int(seed) if fits and seed is not None else UNKNOWN_SEED,
            "episode_return": np.cumsum(rewards, axis=0)[-1] + 0.0,
            "episode_complete": bool(arrays["terminated"][-1] or arrays["truncated"][-1]),
            "episode_run": json.dumps({"imported": imported, "versions": self._versions}),
        }
        if (options := metadata.get("options")) is not None:
            meta["episode_options"] = options_to_json(options).decode()
        for name, key in self._schema.entries.items():
            if (value := entry(metadata, key)) is not None:
                try:
                    meta[name] = from_entry(name, value, self._buffer.metadata.meta_fields[name])
                except CorruptBufferError as error:
                    self._refuse(str(error), CorruptBufferError)
        return meta
