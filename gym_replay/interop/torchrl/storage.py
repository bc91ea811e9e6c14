"""A TorchRL storage that reads a buffer's own files."""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor
from torchrl.data import LazyMemmapStorage

from gym_replay.buffer.door import Snapshot, step_path
from gym_replay.errors import FieldError, ReadOnlyError
from gym_replay.interop.transitions import Roles, Transitions
from gym_replay.schema.arrays import Ints


class SharedStorage(LazyMemmapStorage):  # type: ignore[misc]
    """The transitions of a snapshot, full and read-only.

    Args:
        snapshot: whose files are mapped.
        roles: which fields are the parts of a transition.
        rows: the row of each transition.
        episodes: the episode of each, counted over those that were chosen.

    Attributes:
        columns: the tensors of all rows, by field, as a TensorDict: maps of the files. What is written to them stays in
            this process.
        ends: bool ``(transitions,)``: whether each one is the last of its episode.
    """

    def __init__(self, snapshot: Snapshot, roles: Roles, rows: Ints, episodes: Ints) -> None:
        super().__init__(len(rows), auto_cleanup=False)
        self._arguments = snapshot, roles, rows, episodes
        self._roles = roles
        self._rows, self._episodes = torch.from_numpy(rows), torch.from_numpy(episodes)
        self.ends = torch.ones(len(rows), dtype=torch.bool)
        self.ends[:-1] = self._episodes[1:] != self._episodes[:-1]
        fields = snapshot.metadata.fields
        if taken := [name for name in fields if name.partition(".")[0] in ("next", "episode")]:
            raise FieldError(f"field {taken[0]!r} has the name of an entry of TorchRL's own; it cannot be handed over")
        self._fields = {name: tuple(name.split(".")) for name, info in fields.items() if not info.ragged}
        self.columns = TensorDict(
            {name: _map(snapshot, name) for name in self._fields}, batch_size=[snapshot.rows], device="cpu"
        )
        self._storage = self.columns
        self.initialized = True
        self.__dict__["_total_shape_value"] = torch.Size([len(rows)])
        self._len = len(rows)

    @classmethod
    def over(cls, transitions: Transitions) -> SharedStorage:
        """The storage of these transitions, which are all in one buffer."""
        return cls(transitions.source.parts[0], transitions.roles, transitions.rows, transitions.owners)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._arguments

    def get(self, index: Any) -> TensorDict:
        """The transitions at an index of any kind, ``(*index.shape,)``."""
        index = index[0] if isinstance(index, tuple) and len(index) == 1 else index
        index = list(index) if isinstance(index, range) else index
        rows = self._rows[index]
        flat = rows.reshape(-1)
        root: dict[Any, Any] = {"episode": self._episodes[index].reshape(-1)}
        roles = self._roles
        for name, path in self._fields.items():
            if name in (roles.reward, roles.terminated, roles.truncated):
                continue
            root[path] = self._take(name, flat)
            if name in roles.observations.values():
                following = ("next", *path)
                root[following] = self._take(name, flat + 1)
        root["next", "reward"] = _column(self._take(roles.reward, flat))
        flags = {"terminated": self._flag(roles.terminated, flat), "truncated": self._flag(roles.truncated, flat)}
        for kind, flag in flags.items():
            root["next", kind] = flag
        root["next", "done"] = flags["terminated"] | flags["truncated"]
        return TensorDict(root, batch_size=[len(flat)]).reshape(rows.shape)

    def _take(self, name: str, rows: Tensor) -> Tensor:
        values: Tensor = self.columns.get(name).index_select(0, rows)
        return values.to(torch.get_default_dtype()) if values.dtype == torch.float64 else values

    def _flag(self, name: str | None, rows: Tensor) -> Tensor:
        if name is None:
            return torch.zeros(len(rows), 1, dtype=torch.bool)
        return _column(self._take(name, rows)).bool()

    def set(self, *arguments: Any, **options: Any) -> None:
        """Refused.

        Raises:
            ReadOnlyError: always.
        """
        raise ReadOnlyError("this storage shows the files of a buffer; record into the buffer instead")

    def _empty(self) -> None:
        self.set()


def _column(values: Tensor) -> Tensor:
    """``(batch, 1)``, as TorchRL has rewards and flags."""
    return values.reshape(len(values), -1)


def _map(snapshot: Snapshot, name: str) -> Tensor:
    """All rows of a field as a tensor over the file: a private map, since a tensor cannot be read-only."""
    column = snapshot.columns[step_path(name)]
    shape = (snapshot.rows, *column.shape)
    count = int(np.prod(shape))
    with column.opened(snapshot.rows) as (descriptor, offset):
        if count == 0:
            return torch.from_numpy(np.empty(shape, column.dtype))
        mapped = mmap.mmap(descriptor, offset + count * column.dtype.itemsize, access=mmap.ACCESS_COPY)
    return torch.from_numpy(np.frombuffer(mapped, column.dtype, count, offset).reshape(shape))
