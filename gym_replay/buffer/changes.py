"""Changes to what is stored: values, fields, meta fields, and which episodes there are. Each is whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gym_replay.buffer import open_episode
from gym_replay.buffer.reading import Readable
from gym_replay.buffer.storage import edits
from gym_replay.buffer.storage.creation import check_config
from gym_replay.buffer.storage.ragged import Ragged
from gym_replay.buffer.storage.reader import Snapshot
from gym_replay.buffer.storage.reference_returns import ReferenceReturns
from gym_replay.buffer.storage.writer import FolderWriter
from gym_replay.errors import EpisodeStateError, FieldError
from gym_replay.files.descriptors import require_descriptors
from gym_replay.notices import did_you_mean
from gym_replay.schema.fields import Field, FieldLike, fit, parse_field, stack_episodes, to_array
from gym_replay.schema.names import check_distinct, check_field_name


class Changeable(Readable):
    """A buffer whose stored episodes can be changed."""

    slot: open_episode.EpisodeSlot

    @property
    def folder(self) -> Path:
        """The absolute path of the folder."""
        raise NotImplementedError

    def writing(self) -> FolderWriter:
        """The writer of the folder."""
        raise NotImplementedError

    def editing(self) -> tuple[FolderWriter, Snapshot]:
        """The writer, and the episodes that it is about to change."""
        raise NotImplementedError

    def changing(self) -> AbstractContextManager[None]:
        """A change of what is stored: afterwards, also where it failed, this object shows what the folder holds."""
        raise NotImplementedError

    def update(self, /, episodes: int | slice | Sequence[int] | npt.NDArray[Any] | None = None, **arrays: Any) -> None:
        """Replace stored values, all or nothing.

        Each call rewrites the named columns, so one call for many episodes is much cheaper than many calls.

        Args:
            episodes: an index, a slice, indices or a mask of live episodes; None for all.
            arrays: for a field one array ``(episodes, time, *field.shape)`` with at least as many rows as the longest
                of them (padding is left out), or a list of one ``(T, *field.shape)`` per episode; state fields have
                T+1 rows, or T to leave the last observation as it is. An array with fewer rows than an episode has
                replaces its first ones, unless the field is derived. For a meta field ``(episodes, *field.shape)``.
                For a single index, without the first axis.
        """
        if not arrays:
            raise FieldError("update: expected fields to replace, got none")
        writer, snapshot = self.editing()
        indices, single = indices_of(episodes, len(snapshot))
        rows: dict[str, tuple[Any, npt.NDArray[np.int64]]] = {}
        meta: dict[str, npt.NDArray[Any]] = {}
        for name, value in arrays.items():
            if name in self.metadata.meta_fields:
                info = self.metadata.meta_fields[name]
                meta[name] = self._meta_values(name, info, value, len(indices), single=single)
            else:
                info = self._known(name)
                if info.has_elements:
                    kind = "ragged field" if info.ragged else "field with a codec,"
                    self.slot.require_free(f"update of the {kind} {name!r}")
                if info.ragged:
                    value = [value] if single else value
                    rows[name] = rows_of(name, info, value, snapshot, indices)
                    continue
                is_array = not isinstance(value, (list, tuple))
                value = to_array(value, name)[None] if single else value
                may_be_part = is_array and name not in self.metadata.derived
                self._check_longest(name, info, value)
                rows[name] = rows_of(name, info, value, snapshot, indices, may_be_part=may_be_part)
        with self.changing():
            edits.update(writer, snapshot, indices, rows, meta)

    def _check_longest(self, name: str, info: Field, value: Any) -> None:
        """Raise FieldError where more rows are given than any episode may have."""
        longest = self.metadata.max_timesteps
        shape: tuple[int, ...] = getattr(value, "shape", ())
        if longest is not None and len(shape) > 1 and shape[1] > longest + info.state:
            raise FieldError(
                f"field {name!r}: expected at most max_timesteps={longest} rows of an episode, got {shape[1]}"
            )

    def _meta_values(self, name: str, info: Field, value: Any, count: int, *, single: bool) -> npt.NDArray[Any]:
        """New values of a meta field, as its column holds them: ``(count, *field.shape)``."""
        if info.is_text:
            texts = open_episode.encode_texts(name, [value] if single else value, count)
            return np.array([self.writing().put_text(text) for text in texts], info.dtype)
        array = to_array(value, name)
        return fit(name, array[None] if single else array, info, lead=(count,))

    def _known(self, name: str) -> Field:
        if name not in self.metadata.fields:
            known, remedy = [*self.metadata.fields, *self.metadata.meta_fields], "add_field and add_meta_field add one"
            raise FieldError(f"unknown field {name!r}{did_you_mean(name, known, remedy=remedy)}")
        return self.metadata.fields[name]

    def _require_new(self, name: str) -> None:
        check_field_name(name)
        if name in self.metadata.fields or name in self.metadata.meta_fields:
            raise FieldError(f"field {name!r} exists already; update(...) replaces its values")

    def add_field(self, name: str, info: FieldLike, values: Any = None, *, derived: bool = True) -> None:
        """Add a field to all episodes; nobody sees it before it is complete.

        Args:
            name, info: as in ``fields``.
            values: as for :meth:`update`, over all live episodes; None for the field's default.
            derived: whether the values were computed from what episodes hold, as :func:`~gym_replay.returns_to_go` are.
                Then episodes that are stored later have none until ``update(**{name: values})``, over all episodes,
                brings the field up to date, and reading it before that raises StaleFieldError. If False, later episodes
                take the values that are stored with them, or the default.

        Raises:
            FieldError: there is such a field, a declaration is wrong, or the values do not fit.
            EpisodeStateError: an episode is open.

        Example:
            >>> import tempfile
            >>> from gym_replay import ReplayBuffer, returns_to_go
            >>> buffer = ReplayBuffer(tempfile.mkdtemp(), fields={"reward": "float64"})
            >>> buffer.store_episode(reward=[1.0, 2.0])
            >>> buffer.add_field("to_go", "float64", returns_to_go(buffer))
            >>> buffer.store_episode(reward=[3.0])
            >>> buffer.update(to_go=returns_to_go(buffer))
            >>> [episode["to_go"].tolist() for episode in buffer]
            [[3.0, 2.0], [3.0]]
        """
        self.slot.require_free("add_field")
        self._require_new(name)
        check_distinct([*self.metadata.fields, name])
        field = _parsed(info, f"field {name!r}")
        if field.is_text:
            raise FieldError(f"field {name!r}: only meta fields can be strings; add_meta_field adds one")
        writer, snapshot = self.editing()
        rows = None
        if values is not None:
            rows = _complete_rows(name, field, values, snapshot, has_state=self.metadata.has_state)
        with self.changing():
            edits.add_fields(writer, snapshot, {name: (field, rows)}, derived=derived and values is not None)

    def add_meta_field(self, name: str, info: FieldLike, values: Any = None) -> None:
        """Add a meta field to all episodes; nobody sees it before it is complete.

        Args:
            name, info: as in ``meta_fields``.
            values: of all live episodes, ``(episodes, *field.shape)``, or a list of strings; None for the default.
                Episodes that are stored later take the value that is stored with them, or the default.

        Raises:
            FieldError: there is such a field, a declaration is wrong, or the values do not fit.
            EpisodeStateError: an episode is open.
        """
        self.slot.require_free("add_meta_field")
        self._require_new(name)
        check_distinct([*self.metadata.meta_fields, name])
        field = _parsed(info, f"meta field {name!r}")
        if field.ragged or field.state:
            raise FieldError(f"meta field {name!r}: only fields of the steps can be ragged or state fields")
        writer, snapshot = self.editing()
        given: Any = (
            [b""] * len(snapshot)
            if field.is_text
            else np.broadcast_to(field.default_value(), (len(snapshot), *field.shape))
        )
        if values is not None and field.is_text:
            given = open_episode.encode_texts(name, values, len(snapshot))
        elif values is not None:
            given = fit(name, to_array(values, name), field, lead=(len(snapshot),))
        meta_fields = {**self.metadata.meta_fields, name: field}
        with self.changing():
            edits.change_meta_fields(writer, snapshot, meta_fields, {name: given})

    def rename_field(self, name: str, new: str) -> None:
        """Give a field or meta field another name. The files of a field are copied; a meta field's records are too.

        A part of the observation or the action is no longer one, so the recorded space is given up.

        Raises:
            FieldError: there is no such field, one of the new name, or it is a meta field that the recorder sets.
            EpisodeStateError: an episode is open.
        """
        self.slot.require_free("rename_field")
        meta_fields = self._own_meta_fields(name)
        self._require_new(new)
        writer, snapshot = self.editing()
        if meta_fields is None:
            check_distinct([new if each == name else each for each in self.metadata.fields])
            with self.changing():
                edits.rename_field(writer, name, new)
            return
        renamed = {new if each == name else each: info for each, info in meta_fields.items()}
        check_distinct(renamed)
        with self.changing():
            edits.change_meta_fields(writer, snapshot, renamed, {new: name})

    def drop_field(self, name: str) -> None:
        """Remove a field or meta field, and give its disk space back.

        Where it was a part of the observation or the action, the recorded space is given up too.

        Raises:
            FieldError: there is no such field, it is the only one or the only state field, or a meta field that the
                recorder sets.
            EpisodeStateError: an episode is open.
        """
        self.slot.require_free("drop_field")
        meta_fields = self._own_meta_fields(name)
        writer, snapshot = self.editing()
        if meta_fields is not None:
            left = {each: info for each, info in meta_fields.items() if each != name}
            with self.changing():
                edits.change_meta_fields(writer, snapshot, left, {})
            return
        fields = self.metadata.fields
        if len(fields) == 1:
            raise FieldError(f"field {name!r} is the only one; a buffer has at least one")
        if fields[name].state and sum(info.state for info in fields.values()) == 1:
            raise FieldError(
                f"field {name!r} is the only state field, and without one episodes have no row T; copy the others with "
                "merge([buffer], folder, fields=[...])"
            )
        with self.changing():
            edits.drop_field(writer, name)

    def set_reference_returns(self, reference: ReferenceReturns | None) -> None:
        """Store the mean returns of a random and of an expert policy in the buffer's environment, instead of others.

        :func:`~gym_replay.measure_reference` measures them. Copies have them where all sources have the same ones.

        Args:
            reference: both returns; None forgets what is stored.

        Raises:
            TypeError: it is something else.
            EpisodeStateError: an episode is open.

        Example:
            >>> buffer.set_reference_returns(ReferenceReturns(random=22.4, expert=500.0))  # doctest: +SKIP
        """
        if reference is not None and not isinstance(reference, ReferenceReturns):
            raise TypeError(
                f"reference returns: expected ReferenceReturns(random=..., expert=...), got {reference!r:.60}"
            )
        self.slot.require_free("set_reference_returns")
        writer, _ = self.editing()
        with self.changing():
            edits.set_reference_returns(writer, reference)

    def _own_meta_fields(self, name: str) -> dict[str, Field] | None:
        """All meta fields where a name is that of one which may be changed; None where it is a field's.

        Raises:
            FieldError: there is no such field, or the recorder sets it.
        """
        metadata = self.metadata
        if name not in metadata.meta_fields:
            self._known(name)
            return None
        if name in metadata.recorder_meta:
            raise FieldError(f"meta field {name!r} is set by the recorder itself, and stays")
        return metadata.meta_fields

    def widen_schema(self, fields: Mapping[str, Field], *, while_open: bool = False) -> None:
        """Add fields that hold their defaults, and store others in a wider dtype: all at once, or nothing.

        Args:
            fields: what each is then; of one that is there already, only the dtype may be another one.
            while_open: for who has an episode open, and sees to its rows.

        Raises:
            FieldError: a name cannot be a field, or a recorded value would change.
            EpisodeStateError: an episode is open.
        """
        if not while_open:
            self.slot.require_free("widen_schema")
        if not fields:
            return
        check_distinct({**self.metadata.fields, **fields})
        writer, snapshot = self.editing()
        # All files are opened once more, by the writer and by a reader, while those of before are still open.
        require_descriptors(self.folder, 2 * len(self.metadata.columns) + 4 * len(fields))
        with self.changing():
            edits.add_fields(writer, snapshot, {name: (info, None) for name, info in fields.items()})

    def delete(self, episodes: int | slice | Sequence[int] | npt.NDArray[Any]) -> None:
        """Hide episodes for good: all of them or, where the process is killed meanwhile, none.

        Their disk space stays in use, and their ids are never used again.

        Args:
            episodes: an index, a slice, indices or a mask of live episodes.
        """
        if episodes is None:
            raise FieldError("delete: expected episodes, got None; clear() removes them all")
        writer, snapshot = self.editing()
        indices, _ = indices_of(episodes, len(snapshot))
        with self.changing():
            edits.delete(writer, snapshot, indices)

    def clear(self) -> None:
        """Remove all episodes and give their disk space back. Ids go on where they were."""
        self.slot.require_free("clear")
        writer = self.writing()
        with self.changing():
            writer.clear()

    def redefine(self, fields: Mapping[str, Field], meta_fields: Mapping[str, Field]) -> None:
        """Give the buffer other fields; it has no episodes.

        Raises:
            EpisodeStateError: it has episodes, or one is open.
        """
        self.slot.require_free("redefine")
        if self.num_episodes:
            raise EpisodeStateError(f"{self.folder} has episodes, whose fields stay as they are")
        writer = self.writing()
        metadata = replace(writer.metadata, fields=dict(fields), meta_fields=dict(meta_fields))
        check_config(metadata)
        with self.changing():
            writer.clear(metadata)


def _parsed(info: FieldLike, what: str) -> Field:
    try:
        return parse_field(info)
    except FieldError as error:
        raise FieldError(f"{what}: {error}") from None


def indices_of(episodes: Any, count: int) -> tuple[npt.NDArray[np.int64], bool]:
    """Indices of live episodes as an array, and whether a single one was meant."""
    if episodes is None:
        return np.arange(count, dtype=np.int64), False
    if isinstance(episodes, slice):
        return np.arange(count, dtype=np.int64)[episodes], False
    array = np.asarray(episodes)
    if array.dtype.kind in "iu":
        array = array.astype(np.int64)
    if array.size == 0:
        return np.empty(0, np.int64), False
    if array.dtype == np.bool_ and array.shape == (count,):
        return np.flatnonzero(array), False
    if array.dtype.kind not in "iu" or array.ndim > 1:
        raise FieldError(f"episodes: expected an index, indices, a slice or a mask over {count} episodes")
    if ((array < -count) | (array >= count)).any():
        raise IndexError(f"episodes {episodes}: there are {count}")
    indices = np.atleast_1d(array % count).astype(np.int64)
    if len(np.unique(indices)) != len(indices):
        raise FieldError("episodes: an episode is named twice")
    return indices, array.ndim == 0


def rows_of(
    name: str,
    field: Field,
    value: Any,
    snapshot: Snapshot,
    indices: npt.NDArray[np.int64],
    *,
    may_be_part: bool = False,
) -> tuple[Any, npt.NDArray[np.int64]]:
    """The rows that a value given for some episodes stands for, and how many each episode gets.

    Args:
        may_be_part: whether an array with too few rows stands for the first rows of the longer episodes.
    """
    lengths = snapshot.lengths[indices]
    with_final = lengths + snapshot.has_final[indices]
    if field.ragged:
        return _ragged_rows_of(name, field, value, lengths, with_final)
    if may_be_part and len(lengths) and (array := to_array(value, name)).ndim > 1 and array.shape[1] < lengths.max():
        counts = np.minimum(lengths, array.shape[1])
        return stack_episodes(name, array, field, counts.tolist()), counts
    if field.state:
        try:
            return stack_episodes(name, value, field, with_final.tolist()), with_final
        except FieldError:
            if (with_final == lengths).all():
                raise
    return stack_episodes(name, value, field, lengths.tolist()), lengths


def _ragged_rows_of(
    name: str, field: Field, value: Any, lengths: npt.NDArray[np.int64], with_final: npt.NDArray[np.int64]
) -> tuple[Ragged, npt.NDArray[np.int64]]:
    if not hasattr(value, "__len__") or len(value) != len(lengths):
        raise FieldError(f"field {name!r}: expected a list of rows for each of {len(lengths)} episodes")
    parts = [open_episode.ragged_rows(name, rows, field) for rows in value]
    counts = np.array([len(part) for part in parts], np.int64)
    if not (field.state and (counts == with_final).all()) and (counts != lengths).any():
        expected = f"{lengths.tolist()}{' or one more each' if field.state else ''}"
        raise FieldError(f"field {name!r}: expected {expected} rows, got {counts.tolist()}")
    return Ragged.concatenate(parts or [Ragged.of_rows([], field.dtype, field.shape)]), counts


def _complete_rows(name: str, field: Field, values: Any, snapshot: Snapshot, *, has_state: bool) -> Any:
    """All rows of a new field, the default in row T where no value is given for it."""
    indices = np.arange(len(snapshot), dtype=np.int64)
    given, counts = rows_of(name, field, values, snapshot, indices)
    taken = snapshot.lengths + has_state
    if isinstance(given, Ragged):
        edges, empty = np.cumsum([0, *counts]), Ragged.of_rows([field.default_value()], field.dtype, field.shape)
        parts = []
        for low, high, rows_taken in zip(edges[:-1].tolist(), edges[1:].tolist(), taken.tolist(), strict=True):
            parts += [given[low:high], *([empty] * (rows_taken - (high - low)))]
        return Ragged.concatenate(parts) if parts else given
    rows = np.empty((int(taken.sum()), *field.shape), field.dtype)
    rows[:] = field.default_value()
    firsts = np.cumsum(taken) - taken
    sources = np.cumsum(counts) - counts
    for first, source, count in zip(firsts.tolist(), sources.tolist(), counts.tolist(), strict=True):
        rows[first : first + count] = given[source : source + count]
    return rows
