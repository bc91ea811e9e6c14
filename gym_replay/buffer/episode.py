"""One committed episode, as views of the rows on disk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from gym_replay.buffer.notebook import html_of_episode
from gym_replay.buffer.storage.reader import Snapshot
from gym_replay.errors import CorruptBufferError, FieldError
from gym_replay.notices import did_you_mean


class _Meta(dict[str, Any]):
    """The meta fields of an episode: a dict that names the nearest one where there is none of a name."""

    def __missing__(self, name: str) -> Any:
        raise KeyError(f"unknown meta field {name!r}{did_you_mean(name, self)}")


class Episode:
    """An episode of T transitions: a mapping from field names to arrays, of length T.

    ``episode["observation"]`` has T+1 rows for a state field (T where the last observation is missing) and
    ``episode["action"]`` has T. The arrays are read-only views of the files; of a circular buffer they are good
    until the episode is evicted, and :meth:`copy` gives arrays that stay. A ragged field is a :class:`Ragged`, whose
    rows are arrays of different lengths. A field with a codec is an :class:`Encoded`, which has the shape and dtype of
    an array and decodes what is asked for: one row, a slice, or all of them with ``numpy.asarray``.

    Attributes:
        id: never changes, and is never used again.
        complete: False where the episode was cut by a reset or a close.
        has_final: whether the last observation is there.
        snapshot, index: the live episodes of a moment, and where this one is among them.

    Example:
        >>> for episode in buffer:  # doctest: +SKIP
        ...     print(len(episode), episode["reward"].sum(), episode.meta)
    """

    def __init__(self, snapshot: Snapshot, index: int, arrays: dict[str, Any] | None = None) -> None:
        self.snapshot = snapshot
        self._start = int(snapshot.starts[index])
        self._length = int(snapshot.lengths[index])
        self.id = int(snapshot.ids[index])
        self.has_final = bool(snapshot.has_final[index])
        self.complete = bool(snapshot.complete[index])
        self._arrays = arrays
        self.index = index
        self._meta: dict[str, Any] | None = None

    def __getitem__(self, name: str) -> Any:
        if self._arrays is not None and name in self._arrays:
            return self._arrays[name]
        field = self.snapshot.metadata.fields.get(name)
        if field is None:
            hint = "; it is a meta field: episode.meta has it"
            raise FieldError(f"unknown field {name!r}{hint if name in self._meta_fields else did_you_mean(name, self)}")
        if name in self.snapshot.metadata.derived:
            self.snapshot.only(slice(self.index, self.index + 1)).require_up_to_date([name])
        rows = self._length + (1 if field.state and self.has_final else 0)
        return self.snapshot.part(name, slice(self._start, self._start + rows))

    def __contains__(self, name: object) -> bool:
        return name in self.snapshot.metadata.fields

    @property
    def _meta_fields(self) -> Mapping[str, Any]:
        return self.snapshot.metadata.meta_fields

    def __iter__(self) -> Iterator[str]:
        return iter(self.snapshot.metadata.fields)

    def __len__(self) -> int:
        return self._length

    def keys(self) -> list[str]:
        """The names of the fields, in their order."""
        return list(self)

    def items(self) -> Iterator[tuple[str, Any]]:
        """Names and arrays (of ragged fields :class:`Ragged`)."""
        return ((name, self[name]) for name in self)

    @property
    def meta(self) -> dict[str, Any]:
        """The meta fields: NumPy scalars, arrays for fields with a shape, and strings."""
        if self._meta is None:
            meta = self.snapshot.meta_of(self.index)
            self.snapshot.require_live(self.id)
            self._meta = meta
        return _Meta(self._meta)

    def copy(self) -> Episode:
        """The same episode with arrays in memory of their own.

        Raises:
            EpisodeEvictedError: the episode left the circular buffer before it was copied.
        """
        try:
            arrays = {name: self[name].copy() for name in self}
        except CorruptBufferError:
            self.snapshot.require_live(self.id)  # where it has left, its spans may be those of another
            raise
        copied = Episode(self.snapshot, self.index, arrays)
        copied._meta = dict(self.meta)
        self.snapshot.require_live(self.id)
        return copied

    def _ipython_key_completions_(self) -> list[str]:
        return list(self)

    def _repr_html_(self) -> str:
        return html_of_episode(self)

    def __repr__(self) -> str:
        return f"Episode(id={self.id}, length={self._length}, fields={list(self)})"
