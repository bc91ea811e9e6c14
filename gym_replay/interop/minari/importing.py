"""A Minari dataset read into a buffer."""

from __future__ import annotations

import json
import os
import reprlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from gym_replay.buffer.replay_buffer import ReplayBuffer
from gym_replay.errors import CorruptBufferError, EmptyBufferError, FieldError
from gym_replay.interop.minari import package
from gym_replay.interop.minari.limits import GROUP, Losses
from gym_replay.interop.minari.metadata import UNKNOWN_SEED, from_entry, from_metadata, own_entry
from gym_replay.interop.minari.parts import by_field, cast_exactly, in_shape
from gym_replay.interop.minari.schemas import Schema, entries_of, exported_schema, found_schema
from gym_replay.interop.old_data import as_flags, as_steps, check_ends, check_new, new_buffer
from gym_replay.notices import bar
from gym_replay.schema.arrays import Array
from gym_replay.schema.fields import Field, exact_cast
from gym_replay.schema.names import check_distinct, check_field_name, encode_key
from gym_replay.spaces import space_tree
from gym_replay.wrappers.episode_meta import describe_run, options_to_json
from gym_replay.wrappers.infos import ROOT, presence_of
from gym_replay.wrappers.recorded_schema import FLAGS

_AT_A_TIME = 100


def import_minari(
    dataset: Any, folder: str | os.PathLike[str], *, on_unsupported: str = "error", progress: bool = True
) -> ReplayBuffer:
    """Read a Minari dataset into a new buffer, with all fields as if it had been recorded here.

    A dataset that :func:`export_minari` wrote gives the buffer that was exported, bit for bit. Of other datasets,
    docs/minari.md says what becomes what. The episodes are read one by one. The folder appears when the buffer is
    complete; until then it lies beside it in a hidden folder, which is removed where anything fails.

    Args:
        dataset: the id of a dataset on this machine (nothing is downloaded), or a ``minari.MinariDataset``, of which
            the episodes that it was filtered to are read.
        folder: the new buffer; nothing may be there, or an empty folder.
        on_unsupported: what becomes of what a buffer cannot hold: ``"error"``, or ``"drop"`` to leave it out, with a
            warning that lists it: parts of spaces, infos, metadata, and episodes that are damaged, do not fit the
            others, or are more than one episode.
        progress: show a bar where it takes longer than a second.

    Returns:
        The buffer, open for appending.

    Raises:
        MissingExtraError: Minari is not installed.
        BufferNotFoundError: there is no such dataset on this machine.
        UnsupportedFormatError: the installed Minari does not read it.
        UnsupportedSpaceError, FieldError: a buffer cannot hold a part of it; the message names it.
        CorruptBufferError: the dataset is damaged; the message names the episode.
        EmptyBufferError: no episode is left.
        NotABufferError: there is something in the folder.
        StorageError: the disk is full, or the operating system refused for another reason.

    Example:
        >>> buffer = import_minari("D4RL/door/human-v2", "data/door")  # doctest: +SKIP
        >>> buffer.episode(0)["observation"].shape  # (T+1, 39)  # doctest: +SKIP
    """
    losses = Losses(on_unsupported)
    target = check_new(folder)
    source = package.open_dataset(dataset)
    schema = _schema_of(source, losses)
    numbers = source.episode_indices.tolist()
    names = ("fields", "meta_fields", "recorder_meta", "environment", "reference_returns")
    with new_buffer(target, {name: getattr(schema.metadata, name) for name in names}) as new:
        importer = _Importer(new.buffer, schema, source.id, losses)
        with bar(len(numbers), "import", "episode", progress=progress) as shown:
            for number in numbers:
                with losses.episode(number):
                    importer.store(*package.read_episode(source, number))
                shown.update()
        if numbers and not len(new.buffer):
            raise EmptyBufferError("\n  ".join(["a buffer can hold none of the episodes:", *losses.lines()]))
    losses.warn(source.id)
    return ReplayBuffer.from_folder(target)


def _schema_of(source: Any, losses: Losses) -> Schema:
    exported = source.storage.metadata.get(GROUP)
    if exported is not None:
        return exported_schema(source, exported)
    numbers = source.episode_indices.tolist()
    if not numbers:
        raise FieldError("there is no episode in the dataset, which would tell the dtypes; nothing was imported")
    before = losses.empty_copy()  # which are met again, and told then, where the episodes are stored
    first = _first(source, numbers, before)
    return found_schema(source, first, _metadatas(source, numbers, before), losses)


def _first(source: Any, numbers: list[int], losses: Losses) -> dict[str, Any]:
    """The first episode; where episodes are left out, the first one that can be read."""
    for number in numbers:
        with losses.episode(number):
            values, _ = package.read_episode(source, number)
            return values
    raise EmptyBufferError("none of the episodes can be read")


def _metadatas(source: Any, numbers: list[int], losses: Losses) -> Iterator[Mapping[str, Any]]:
    for first in range(0, len(numbers), _AT_A_TIME):
        some = numbers[first : first + _AT_A_TIME]
        try:
            yield from list(source.storage.get_episode_metadata(some))
        except Exception:  # one of them is damaged
            for number in some:
                with losses.episode(number):
                    yield package.read_metadata(source, number)


class _Importer:
    """Stores the episodes of a dataset.

    Args:
        buffer: where they go.
        schema: of it.
        dataset_id: of the dataset.
        losses: is told of what a buffer cannot hold.
    """

    def __init__(self, buffer: ReplayBuffer, schema: Schema, dataset_id: str, losses: Losses) -> None:
        self._buffer, self._schema, self._losses = buffer, schema, losses
        self._trees = {root: space_tree(space, root) for root, space in schema.roots.items()}
        self._dataset_id = dataset_id
        self._versions = json.loads(describe_run())["versions"]

    @property
    def _fields(self) -> dict[str, Field]:
        return self._buffer.metadata.fields

    def store(self, values: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
        """Store one episode.

        Raises:
            CorruptBufferError: it is damaged.
            FieldError: it does not fit the fields.
        """
        length = len(values["rewards"])
        own = own_entry(metadata) if self._schema.is_exported else None
        arrays = self._steps(values)
        rows = next((len(arrays[name]) for name in arrays if self._fields[name].state), length + 1)
        if own is None:
            check_ends(arrays, length)
            arrays |= self._foreign_infos(values["infos"], length, rows)
            meta = self._foreign_meta(arrays, metadata)
            complete = meta["episode_complete"]
        else:
            arrays |= self._own_infos(values["infos"], length, rows)
            meta = from_metadata(metadata, own, self._buffer.metadata.meta_fields)
            complete = own["complete"]
        for name, field in self._fields.items():  # all state fields have as many rows, or none
            if field.state and name not in arrays:
                arrays[name] = np.broadcast_to(field.default_value(), (rows, *field.shape))
        known = self._buffer.metadata.meta_fields
        arrays |= {name: value for name, value in meta.items() if name in known}
        self._buffer.put_episode(arrays, complete=complete)

    def _steps(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Observations, actions, rewards and flags by field."""
        arrays: dict[str, Any] = {}
        for root, tree in self._trees.items():
            arrays |= by_field(tree, values[f"{root}s"])
        arrays["reward"] = rewards = as_steps("reward", np.asarray(values["rewards"]))
        if rewards.dtype.kind not in "biuf":
            raise CorruptBufferError(f"rewards: expected numbers, got {rewards.dtype}")
        for name, given in zip(FLAGS, ("terminations", "truncations"), strict=True):
            arrays[name] = as_flags(given, values[given], len(rewards))
        if unknown := [name for name in arrays if name not in self._fields]:
            raise CorruptBufferError(f"{unknown[0]} is no field of what was exported: {list(self._fields)}")
        return {name: value if isinstance(value, list) else self._fitted(name, value) for name, value in arrays.items()}

    def _fitted(self, name: str, value: Array) -> Array:
        field = self._fields[name]
        value = in_shape(np.asarray(value), field.shape)
        if value.shape[1:] != field.shape:
            raise FieldError(f"{name}: expected shape {field.shape} as in the first episode, got {value.shape[1:]}")
        return cast_exactly(name, value, field.dtype)

    # --- infos ---

    def _own_infos(self, infos: Any, length: int, rows: int) -> dict[str, Any]:
        """Info and extra fields of an exported episode whose state fields have this many rows."""
        arrays: dict[str, Any] = {}
        for path, value in entries_of(infos):
            name = path[-1] if path[0] == GROUP else f"{ROOT}.{'.'.join(path)}"
            field = self._fields.get(name)
            if field is None:
                raise CorruptBufferError(f"infos: {name!r} is no field of what was exported: {list(self._fields)}")
            if (array := self._rows_of(name, value)) is not None:
                arrays[name] = self._fitted(name, array[: rows if field.state else length])
        for name in self._fields:
            if name.startswith(f"{ROOT}.") and (presence := presence_of(name)) in self._fields:
                arrays.setdefault(presence, np.full(rows, name in arrays))  # left out where it is True in each row
        return arrays

    def _foreign_infos(self, infos: Any, length: int, rows: int) -> dict[str, Any]:
        """Info fields of an episode of another origin; the buffer gets those that it lacks, and wider dtypes."""
        arrays: dict[str, Any] = {}
        new: dict[str, Field] = {}
        for path, value in entries_of(infos):
            name = f"{ROOT}.{'.'.join(map(encode_key, path))}"
            if (array := self._rows_of(name, value)) is None:
                continue
            try:
                fields = self._fields_for(name, array, [*self._fields, *new])
                arrays |= self._aligned(name, array, length, rows)
                new |= fields
            except (FieldError, CorruptBufferError) as error:
                self._losses.refuse(str(error), type(error))
        self._buffer.widen_schema(new)
        return arrays

    def _rows_of(self, name: str, value: Any) -> Array | None:
        """An entry's rows as an array ``(rows, *shape)``; None where they are no numbers, which is a loss."""
        field = self._fields.get(name)
        try:
            array = np.asarray(value)
        except ValueError:  # of lists of different lengths
            array = np.empty(0, object)
        if array.dtype.kind not in "biuf" or array.ndim == 0 or array.dtype.itemsize > 8:
            self._losses.refuse(f"{name}: expected numbers, one entry for each step, got {reprlib.repr(value)}")
            return None
        if field is not None and array.shape[1:] != field.shape and array[:1].size == np.prod(field.shape, dtype=int):
            array = array.reshape(len(array), *field.shape)
        return array

    def _fields_for(self, name: str, array: Array, others: list[str]) -> dict[str, Field]:
        """The fields for an entry that is there for the first time; a field that is there is widened at once.

        Raises:
            FieldError: there can be no such fields, or a value of an earlier episode would change.
        """
        if (field := self._fields.get(name)) is None:
            if not self._buffer.metadata.has_state:
                raise FieldError(f"{name}: there are no observations beside which it could be")
            check_distinct([*others, *self._buffer.metadata.meta_fields, check_field_name(name)])
            return {name: Field(array.dtype, array.shape[1:], state=True), presence_of(name): Field("bool", state=True)}
        if array.shape[1:] == field.shape and exact_cast(array, field.dtype) is None:
            wider = replace(field, dtype=np.promote_types(field.dtype, array.dtype))
            if exact_cast(array, wider.dtype) is not None:
                self._buffer.widen_schema({name: wider})
        return {}

    def _aligned(self, name: str, array: Array, length: int, rows: int) -> dict[str, Any]:
        """An entry with the info of ``reset`` in row 0, and where it is.

        Raises:
            CorruptBufferError: it has another number of rows.
            FieldError: it does not fit the field that is there for it.
        """
        if name in self._fields:
            array = self._fitted(name, array)
        present = np.ones(length + 1, np.bool_)
        if len(array) == length:  # those of the steps, which belong to the observations after them
            array = np.concatenate([np.zeros((1, *array.shape[1:]), array.dtype), array])
            present[0] = False
        if len(array) != length + 1:
            raise CorruptBufferError(f"{name}: expected {length + 1} rows, got {len(array)}")
        return {name: array[:rows], presence_of(name): present[:rows]}

    # --- what an episode has once ---

    def _foreign_meta(self, arrays: Mapping[str, Any], metadata: Mapping[str, Any]) -> dict[str, Any]:
        """The meta fields of an episode of which nothing was noted by an export."""
        number, seed = (None if metadata.get(key) is None else int(metadata[key]) for key in ("id", "seed"))
        imported: dict[str, Any] = {"dataset_id": self._dataset_id, "id": number}
        if seed is not None and seed >= 1 << 63:
            imported["seed"], seed = seed, None
        meta: dict[str, Any] = {
            "episode_seed": UNKNOWN_SEED if seed is None else seed,
            "episode_return": np.cumsum(arrays["reward"], axis=0)[-1] + 0.0,
            "episode_complete": bool(arrays["terminated"][-1] or arrays["truncated"][-1]),
            "episode_run": json.dumps({"imported": imported, "versions": self._versions}),
        }
        if (options := metadata.get("options")) is not None:
            meta["episode_options"] = options_to_json(options).decode()
        entries = dict(entries_of(metadata))
        for name, keys in self._schema.entries.items():
            if entries.get(keys) is not None:
                try:
                    meta[name] = from_entry(name, entries[keys], self._buffer.metadata.meta_fields[name])
                except CorruptBufferError as error:
                    self._losses.refuse(str(error), CorruptBufferError)
        return meta
