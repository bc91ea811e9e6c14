"""Datasets whose items are whole batches: one for each kind of sample.

An integer index gives one sample, an array of sample numbers gives a batch, gathered in one call per field.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from gym_replay.buffer.loading.collate import Arrays, Batch, Delivery, Dtype, Layout, Transform
from gym_replay.buffer.loading.gather import Padded
from gym_replay.buffer.loading.plans import (
    Anchors,
    Ints,
    forward_rows,
    last_rows,
    n_step_anchors,
    n_step_lengths,
    timestep_anchors,
    trajectory_anchors,
)
from gym_replay.buffer.loading.source import Condition, Source, matches
from gym_replay.buffer.loading.statistics import Normalize, resolve
from gym_replay.errors import CorruptBufferError, EmptyBufferError, EpisodeEvictedError, FieldError

_ATTEMPTS = 100


class ReplayDataset(Dataset[Batch]):
    """What the datasets have in common: the choice of fields, names and samples.

    Args:
        source: the selected episodes.
        anchors: their samples.
        filter_fields: conditions on scalar fields at the anchor step.
        fieldname_map: other names for entries of the batch.
        only: gather only the entries that get these names; meta fields of the recorder are among them only here
            or where a ``fields`` argument names them.
        dtype, image_layout, transform: see :class:`Delivery`.
        normalize: statistics, or names of fields, whose statistics over the selected episodes are then taken.
    """

    def __init__(
        self,
        source: Source,
        anchors: Anchors,
        *,
        filter_fields: Mapping[str, Condition] | None = None,
        fieldname_map: Mapping[str, str] | None = None,
        only: Sequence[str] | None = None,
        dtype: Dtype = None,
        image_layout: Layout = None,
        normalize: Normalize = None,
        transform: Transform | None = None,
    ) -> None:
        self.source = source
        self.anchors = _filter(source, anchors, filter_fields) if filter_fields else anchors
        if len(self.anchors) == 0:
            raise EmptyBufferError("no sample to load: the selected episodes have no step of this kind")
        self._delivery = Delivery(
            dtype=dtype, image_layout=image_layout, normalize=resolve(normalize, source), transform=transform
        )
        self._names: dict[str, str] = dict(fieldname_map or {})
        self._only = None if only is None else set(only)

    def _choose(self, entries: Mapping[str, str], named: Sequence[str]) -> dict[str, str]:
        """Of all entries (entry name to field name) those asked for; then fix which meta fields come along."""
        meta = list(self.source.user_meta)
        meta += [name for name in self.source.meta_fields if name in named and name not in meta]
        if self._only is not None:
            hidden = [name for name in self.source.meta_fields if name not in meta and name not in entries]
            meta += [name for name in hidden if self._out(name) in self._only]
        ragged = {entry for entry, name in entries.items() if self.source.fields[name].ragged}
        available = [*entries, *(f"{entry}_lens" for entry in ragged), *meta, *self._extra_names()]
        if unknown := [name for name in self._names if name not in available]:
            raise FieldError(f"fieldname_map: unknown entry {unknown[0]!r}; the batch has {available}")
        outputs = [self._out(name) for name in available]
        if twice := sorted({name for name in outputs if outputs.count(name) > 1}):
            raise FieldError(f"two entries of the batch would be called {twice[0]!r}; use fieldname_map")
        if self._only is not None and (missing := self._only - set(outputs)):
            raise FieldError(f"field {sorted(missing)[0]!r} is not in the batch; it has {outputs}")
        self._meta = [name for name in meta if self._is_wanted(name)]
        shown = {entry: (name, self.source.fields[name]) for entry, name in entries.items()}
        shown |= {name: (name, self.source.meta_fields[name]) for name in meta}
        self._delivery.bind({self._out(entry): field for entry, field in shown.items()})
        return {
            name: field
            for name, field in entries.items()
            if self._is_wanted(name) or (name in ragged and self._is_wanted(f"{name}_lens"))
        }

    def _put_ragged(self, arrays: Arrays, entry: str, padded: Padded) -> None:
        """Add the two entries of a ragged field, as far as they are asked for."""
        for name, array in zip((entry, f"{entry}_lens"), padded, strict=True):
            if self._is_wanted(name):
                arrays[name] = array

    def _put_rows(self, arrays: Arrays, entry: str, name: str, rows: Ints) -> None:
        """Add a field's values at these rows."""
        if self.source.fields[name].ragged:
            self._put_ragged(arrays, entry, self.source.take_ragged(name, rows))
        else:
            arrays[entry] = self.source.rows.take(name, rows)

    def _extra_names(self) -> list[str]:
        """Entries that are neither fields nor meta fields, such as lengths and masks."""
        raise NotImplementedError

    def _out(self, name: str) -> str:
        return self._names.get(name, name)

    def _is_wanted(self, name: str) -> bool:
        return self._only is None or self._out(name) in self._only

    def _check_fields(self, argument: str, names: Sequence[str] | None, default: Sequence[str]) -> list[str]:
        if names is None:
            return list(default)
        if isinstance(names, str):
            raise FieldError(f"{argument}={names!r}: expected a sequence of names; write ({names!r},)")
        known = (*self.source.fields, *self.source.meta_fields)
        if unknown := [name for name in names if name not in known]:
            raise FieldError(f"{argument}: unknown field {unknown[0]!r}; there are {list(known)}")
        return [name for name in names if name in self.source.fields]

    def __len__(self) -> int:
        return len(self.anchors)

    def __getitem__(self, index: Any) -> Batch:
        if isinstance(index, (int, np.integer)):
            if not -len(self) <= index < len(self):
                raise IndexError(f"sample {index}: there are {len(self)}")
            return {name: values[0] for name, values in self.batch(np.array([index % len(self)])).items()}
        return self.batch(np.asarray(index, np.int64))

    def batch(self, samples: Ints) -> Batch:
        """The samples as one batch.

        Raises:
            EpisodeEvictedError: their episodes leave the circular buffer faster than they can be copied.
        """
        for _ in range(_ATTEMPTS):
            samples = self.source.replace_evicted(samples, self.anchors)
            episodes, steps = self.anchors.locate(samples)
            try:
                arrays = self._gather(episodes, steps)
            except CorruptBufferError:
                if self.source.are_live(episodes):
                    raise
                continue  # spans of rows that were overwritten meanwhile
            for name in self._meta:
                arrays[name] = self.source.meta(name)[episodes]
            if self.source.are_live(episodes):
                return self._deliver(arrays)
        raise EpisodeEvictedError("episodes are evicted from the circular buffer faster than a batch can be copied")

    def _gather(self, episodes: Ints, steps: Ints) -> Arrays:
        raise NotImplementedError

    def _deliver(self, arrays: Arrays) -> Batch:
        if not self._names:
            return self._delivery(arrays)
        renamed = Arrays()
        renamed.update((self._out(name), array) for name, array in arrays.items())
        renamed.valid = {self._out(name): mask for name, mask in arrays.valid.items()}
        return self._delivery(renamed)


def _filter(source: Source, anchors: Anchors, conditions: Mapping[str, Condition]) -> Anchors:
    episodes, steps = anchors.locate(np.arange(len(anchors), dtype=np.int64))
    rows = source.starts[episodes] + steps
    mask = np.ones(len(rows), np.bool_)
    for name, condition in conditions.items():
        field = source.fields.get(name)
        if field is None or field.ragged or field.nbytes != field.dtype.itemsize:
            shape = (
                "another number of elements in each row" if field and field.ragged else f"shape {field and field.shape}"
            )
            what = f"has {shape}; only fields of one value can be filtered" if field else "is unknown"
            raise FieldError(f"filter_fields: the field {name!r} {what}")
        mask &= matches(source.take(name, rows).reshape(-1), condition, name)
    if not mask.any():
        raise EmptyBufferError(f"no step matches filter_fields={dict(conditions)!r}")
    return anchors.keep(mask)


class TimestepDataset(ReplayDataset):
    """One transition a sample: the row of its step."""

    def __init__(
        self, source: Source, *, fields: Sequence[str] | None = None, return_indices: bool = False, **common: Any
    ) -> None:
        super().__init__(source, timestep_anchors(source.lengths), **common)
        self._return_indices = return_indices
        chosen = self._check_fields("fields", fields, list(source.fields))
        self._fields = self._choose({name: name for name in chosen}, fields or ())

    def _extra_names(self) -> list[str]:
        return ["_indices"] if self._return_indices else []

    def _gather(self, episodes: Ints, steps: Ints) -> Arrays:
        rows = self.source.starts.take(episodes) + steps
        arrays = Arrays()
        for name in self._fields:
            self._put_rows(arrays, name, name, rows)
        if self._return_indices and self._is_wanted("_indices"):
            arrays["_indices"] = np.stack((self.source.index[episodes], steps), axis=1)
        return arrays


class NStepDataset(ReplayDataset):
    """One step t a sample, with what holds n steps later, or at the episode's end where that comes first."""

    def __init__(
        self,
        source: Source,
        *,
        n_steps: int = 1,
        current_fields: Sequence[str] | None = None,
        next_fields: Sequence[str] | None = None,
        sequence_fields: Sequence[str] | None = None,
        return_indices: bool = False,
        **common: Any,
    ) -> None:
        if isinstance(n_steps, bool) or not isinstance(n_steps, (int, np.integer)) or n_steps < 1:
            raise FieldError(f"n_steps: expected a positive integer, got {n_steps!r}")
        super().__init__(source, n_step_anchors(source.lengths, source.has_final), **common)
        self._n_steps = int(n_steps)
        self._return_indices = return_indices
        self._last = last_rows(source.lengths, source.has_final)
        states = [name for name, field in source.fields.items() if field.state]
        current = self._check_fields("current_fields", current_fields, list(source.fields))
        following = self._check_fields("next_fields", next_fields, states or list(source.fields))
        sequence = self._check_fields("sequence_fields", sequence_fields, ())
        entries = {name: name for name in current}
        entries |= {f"next_{name}": name for name in following} | {f"seq_{name}": name for name in sequence}
        chosen = self._choose(entries, (*(current_fields or ()), *(next_fields or ()), *(sequence_fields or ())))
        self._current = [name for name in current if name in chosen]
        self._next = [name for name in following if f"next_{name}" in chosen]
        self._sequence = [name for name in sequence if f"seq_{name}" in chosen]

    def _extra_names(self) -> list[str]:
        return ["n_step_lens", *(["_indices"] if self._return_indices else [])]

    def _gather(self, episodes: Ints, steps: Ints) -> Arrays:
        rows = self.source.starts.take(episodes) + steps
        lengths = n_step_lengths(steps, self._last.take(episodes), self._n_steps)
        arrays = Arrays()
        for name in self._current:
            self._put_rows(arrays, name, name, rows)
        for name in self._next:
            self._put_rows(arrays, f"next_{name}", name, rows + lengths)
        if self._sequence:
            inside, mask = forward_rows(rows, lengths, self._n_steps)
            arrays.were_padded([f"seq_{name}" for name in self._sequence], mask)
            for name in self._sequence:
                if self.source.fields[name].ragged:
                    self._put_ragged(arrays, f"seq_{name}", self.source.take_ragged(name, inside, mask))
                    continue
                arrays[f"seq_{name}"] = sequence = self.source.take(name, inside)
                sequence[~mask] = 0
        if self._is_wanted("n_step_lens"):
            arrays["n_step_lens"] = lengths
        if self._return_indices and self._is_wanted("_indices"):
            arrays["_indices"] = np.stack((self.source.index[episodes], steps), axis=1)
        return arrays


class TrajectoryDataset(ReplayDataset):
    """One whole episode a sample, padded with zeros to the longest of its batch."""

    def __init__(
        self,
        source: Source,
        *,
        fields: Sequence[str] | None = None,
        next_fields: Sequence[str] | None = None,
        return_mask: bool = False,
        return_indices: bool = False,
        return_episode_lens: bool = True,
        slice_by_episode_len: bool = True,
        filter_fields: Mapping[str, Condition] | None = None,
        **common: Any,
    ) -> None:
        if filter_fields is not None:
            raise FieldError("filter_fields chooses steps; for whole trajectories use filter_meta")
        if not slice_by_episode_len and not return_episode_lens:
            raise FieldError("slice_by_episode_len=False pads every batch, so it needs return_episode_lens=True")
        super().__init__(source, trajectory_anchors(source.lengths), **common)
        self._return_mask, self._return_indices = return_mask, return_indices
        self._return_lens = return_episode_lens
        self._width = None if slice_by_episode_len else source.max_timesteps or int(source.lengths.max())
        current = self._check_fields("fields", fields, list(source.fields))
        following = self._check_fields("next_fields", next_fields, ())
        if partial := [name for name in following if not source.fields[name].state]:
            raise FieldError(f"next_fields: {partial[0]!r} is no state field, so it has no row T")
        if following and not source.has_final.all():
            raise FieldError("next_fields: an episode lacks its last observation; leave such episodes out")
        entries = {name: name for name in current} | {f"next_{name}": name for name in following}
        chosen = self._choose(entries, (*(fields or ()), *(next_fields or ())))
        self._current = [name for name in current if name in chosen]
        self._next = [name for name in following if f"next_{name}" in chosen]

    def _extra_names(self) -> list[str]:
        flags = {"_lens": self._return_lens, "_mask": self._return_mask, "_index": self._return_indices}
        return [name for name, present in flags.items() if present]

    def _gather(self, episodes: Ints, steps: Ints) -> Arrays:
        starts, lengths = self.source.starts[episodes], self.source.lengths[episodes]
        width = self._width or int(lengths.max())
        arrays = Arrays()
        for name in self._current:
            self._put_slices(arrays, name, name, starts, lengths, width)
        for name in self._next:
            self._put_slices(arrays, f"next_{name}", name, starts + 1, lengths, width)
        inside = np.arange(width) < lengths[:, None]
        arrays.were_padded((*self._current, *(f"next_{name}" for name in self._next)), inside)
        for name in self._extra_names():
            if not self._is_wanted(name):
                continue
            if name == "_lens":
                arrays[name] = lengths
            elif name == "_mask":
                arrays[name] = inside
            else:
                arrays[name] = self.source.index[episodes]
        return arrays

    def _put_slices(self, arrays: Arrays, entry: str, name: str, starts: Ints, lengths: Ints, width: int) -> None:
        if self.source.fields[name].ragged:
            rows, inside = forward_rows(starts, lengths, width)
            self._put_ragged(arrays, entry, self.source.take_ragged(name, rows, inside))
        else:
            arrays[entry] = self.source.take_slices(name, starts, lengths, width)
