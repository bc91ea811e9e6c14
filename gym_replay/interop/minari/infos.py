"""Infos: what Minari keeps of each step beside observation, action and reward.

A field ``info.a.b`` is the entry ``infos["a"]["b"]``, with the row of ``reset`` first. Minari has no other place for
values of the steps, so extra fields, and where an entry was missing, are entries of ``infos["gym_replay"]`` by name.
"""

from __future__ import annotations

import pathlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt

from gym_replay.buffer.episode import Episode
from gym_replay.interop.minari.limits import GROUP, Limits
from gym_replay.schema.fields import Field
from gym_replay.wrappers.infos import PRESENT, ROOT

Path = tuple[str, ...]


class InfoPlan:
    """Which fields become which entries.

    Args:
        fields: those that are neither observation, action, reward nor flags.
        episodes: all that will be written: where an entry is in each of their rows, nothing says so.
        limits: of the format.

    Attributes:
        names: the fields that a reader of the dataset will have.
    """

    def __init__(self, fields: Mapping[str, Field], episodes: Sequence[Episode], limits: Limits) -> None:
        self._fields: dict[Path, tuple[str, Field]] = {}
        self._limits = limits
        self.names: list[str] = []
        presence = {name for name in fields if name.startswith(f"{PRESENT}.") and entry_of(name) in fields}
        for name in [*(name for name in fields if name not in presence), *presence]:
            if name in presence:
                if entry_of(name) not in self.names:
                    continue
                if _everywhere(name, episodes):
                    self.names.append(name)
                    continue
            field = fields[name]
            path = tuple(name.split(".")[1:]) if name.startswith(f"{ROOT}.") else (GROUP, name)
            if (fault := self._fault(name, path, field)) is not None:
                limits.cannot_hold(f"field {name!r}", fault)
            else:
                self._fields[path] = name, field
                self.names.append(name)

    def _fault(self, name: str, path: Path, field: Field) -> str | None:
        if field.ragged:
            return "its rows have different sizes"
        if not self._limits.is_hdf5 and 0 in field.shape:
            return f"its shape {field.shape} has no elements"
        if path[0] == GROUP and name.startswith(f"{ROOT}."):
            return f"the entry {GROUP!r} of the infos is taken"
        taken = [other for other in self._fields if path[: len(other)] == other or other[: len(path)] == path]
        return f"its entry is in the place of that of {self._fields[taken[0]][0]!r}" if taken else None

    def take(self, episode: Episode) -> dict[str, Any]:
        """The infos of an episode, each entry ``(T+1, *field.shape)``."""
        infos: dict[str, Any] = {}
        for path, (name, field) in self._fields.items():
            group = infos
            for key in path[:-1]:
                group = group.setdefault(key, {})
            rows = episode[name]
            if not field.state:
                rows = np.concatenate([rows, field.default_value()[None]])
            # Minari's reader stumbles over Arrow arrays of one axis, but not over lists of NumPy's numbers.
            group[path[-1]] = rows if self._limits.is_hdf5 or field.shape else list(rows)
        return infos


def entry_of(presence: str) -> str:
    """The field of an entry, of the one that says where it is."""
    return f"{ROOT}.{presence.partition('.')[2]}"


def _everywhere(name: str, episodes: Sequence[Episode]) -> bool:
    return all(bool(episode[name].all()) for episode in episodes)


def entries_of(infos: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """The entries of nested infos with their paths."""
    for key, value in (infos or {}).items():
        if isinstance(value, Mapping):
            yield from entries_of(value, (*path, str(key)))
        else:
            yield (*path, str(key)), value


def arrow_episode(storage: Any, episode_id: int) -> dict[str, Any]:
    """An episode in a dataset of Arrow or Parquet files.

    Minari's own reader gives up where the rows of an info differ in size, so the infos are read here.
    """
    infos = arrow_infos(storage, episode_id)
    try:
        (values,) = storage.get_episodes([episode_id])
    except ValueError:
        values = _read_without_infos(storage, episode_id)
    return {**values, "infos": infos}


def arrow_infos(storage: Any, episode_id: int) -> dict[str, Any]:
    """The infos of an episode in a dataset of Arrow or Parquet files.

    Minari's own reader gives nested infos as arrays of dicts, in which dtypes and shapes are lost.
    """
    found = _files(storage, episode_id)
    if "infos" not in found.schema.names:
        return {}
    column = found.to_table(columns=["infos"]).column("infos").combine_chunks()
    if hasattr(column, "num_chunks"):  # what combine_chunks gives differs from version to version
        column = column.chunk(0)
    return _decode_struct(column)


def _files(storage: Any, episode_id: int) -> Any:
    return import_module("pyarrow.dataset").dataset(
        f"{storage.data_path}/{episode_id}", format=storage.FORMAT, ignore_prefixes=["_", ".", "metadata.json"]
    )


def _read_without_infos(storage: Any, episode_id: int) -> dict[str, Any]:
    """What Minari reads of a copy of an episode that has no infos."""
    found = _files(storage, episode_id)
    columns = found.to_table(columns=[name for name in found.schema.names if name != "infos"])
    with tempfile.TemporaryDirectory(prefix="gym-replay-") as folder:
        copied = pathlib.Path(folder)
        import_module("pyarrow.dataset").write_dataset(columns, copied / str(episode_id), format=storage.FORMAT)
        spaces = storage.observation_space, storage.action_space
        (values,) = type(storage)(copied, *spaces, jpeg_encoding=storage.jpeg_encoding).get_episodes([episode_id])
        return dict(values)


def _decode_struct(column: Any) -> dict[str, Any]:
    types = import_module("pyarrow").types
    infos: dict[str, Any] = {}
    for index, field in enumerate(column.type):
        values = column.field(index)
        if types.is_struct(field.type):
            infos[field.name] = _decode_struct(values)
        elif types.is_fixed_size_list(field.type):
            shape = _shape_of(field, field.type.list_size)
            infos[field.name] = values.flatten().to_numpy(zero_copy_only=False).reshape(len(values), *shape)
        else:
            infos[field.name] = values.to_numpy(zero_copy_only=False)
    return infos


def _shape_of(field: Any, size: int) -> tuple[int, ...]:
    """The shape that Minari notes beside a list of all elements; one axis where it is lost."""
    noted = (field.metadata or {}).get(b"shape")  # which is empty where each row is one number
    return (size,) if noted is None else tuple(int(part) for part in noted.split(b",") if part)


def rows_of(value: Any, field: Field | None) -> npt.NDArray[Any] | None:
    """An entry's rows as an array ``(rows, *shape)``; None where they are no numbers."""
    try:
        array = np.asarray(value)
    except ValueError:  # of lists of different lengths
        return None
    if array.dtype.kind not in "biuf" or array.ndim == 0 or array.dtype.itemsize > 8:
        return None
    if field is not None and array.shape[1:] != field.shape and array[:1].size == np.prod(field.shape, dtype=int):
        array = array.reshape(len(array), *field.shape)
    return array
