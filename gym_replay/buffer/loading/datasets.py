"""The dataset of samples of any kind; its items are whole batches."""

from __future__ import annotations

import os
from collections.abc import Collection, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from dataclasses import replace
from functools import lru_cache
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from gym_replay.buffer.loading.collate import Arrays, Batch, Delivery, Dtype, Layout, Transform
from gym_replay.buffer.loading.draws import BlockDraw, Draw, Moment, PriorityDraw, checked_epoch
from gym_replay.buffer.loading.field_statistics import Resolved
from gym_replay.buffer.loading.nesting import Nesting, roots_of
from gym_replay.buffer.loading.plans import Anchors, FirstRows, Floats, Ints
from gym_replay.buffer.loading.randomness import draw
from gym_replay.buffer.loading.samples import Asked, Description, Located
from gym_replay.buffer.loading.selection import Condition, matches
from gym_replay.buffer.loading.source import Source
from gym_replay.buffer.loading.statistics import Normalize, resolve
from gym_replay.errors import CorruptBufferError, EmptyBufferError, EpisodeEvictedError, FieldError

RUN_BYTES = 1 << 19
"""Batches are gathered together up to so many bytes: more would take hardly less time, and let a batch wait longer."""

_GAP_BYTES = 1 << 14
"""Up to so many bytes between two stretches are read along: they would be pieces of the same pages."""

_ATTEMPTS = 100
_MOST_TOGETHER = 128


@lru_cache(maxsize=1)
def _thread(process: int) -> ThreadPoolExecutor:
    """The thread of this process that asks for rows; a forked one has none and starts its own."""
    return ThreadPoolExecutor(1, thread_name_prefix="gym_replay-read-ahead")


class ReplayDataset(Dataset[Batch]):
    """Samples of selected episodes.

    An integer index gives one sample, an array of sample numbers a batch, gathered in one call per field.

    Args:
        source: the selected episodes.
        description: what one sample is.
        filter_fields: conditions on scalar fields at the anchor step.
        fieldname_map: other names for entries of the batch.
        only: gather only the entries that get these names; meta fields of the recorder are among them only here
            or where a ``fields`` argument names them.
        dtype, image_layout, transform: see :class:`~gym_replay.buffer.loading.collate.Delivery`.
        normalize: statistics, or names of fields, whose statistics over the selected episodes are then taken.
        nested: put the parts of nested spaces into dicts and tuples as the space has them, instead of beside one
            another under dotted names. A ``transform`` is given the dotted names.

    Attributes:
        draw: what the batch in the making was asked with: the seed and the epoch of whatever is drawn at random for it.
        read_fields: the names of the fields that batches are made of.
        normalized: the statistics that fields are normalized with, or None.
    """

    draw = Draw(np.empty(0, np.int64))
    read_fields: Collection[str] = ()

    def __init__(
        self,
        source: Source,
        description: Description,
        *,
        filter_fields: Mapping[str, Condition] | None = None,
        fieldname_map: Mapping[str, str] | None = None,
        only: Sequence[str] | None = None,
        dtype: Dtype = None,
        image_layout: Layout = None,
        normalize: Normalize = None,
        transform: Transform | None = None,
        nested: bool = False,
    ) -> None:
        self.source = source
        self._nesting = Nesting(roots_of(source.environment)) if nested else None
        self._roots: dict[str, str] = {}
        self._moment = Moment()
        if filter_fields is not None and description.no_filter is not None:
            raise FieldError(description.no_filter)
        self.anchors = description.anchors
        if filter_fields:
            self.anchors = _filter(source, self.anchors, filter_fields)
        if len(self.anchors) == 0:
            raise EmptyBufferError("no sample to load: the selected episodes have no step of this kind")
        self.normalized = resolve(normalize, source)
        self._delivery = Delivery(
            dtype=dtype, image_layout=image_layout, normalize=self.normalized, transform=transform
        )
        self._names: dict[str, str] = dict(fieldname_map or {})
        self._only = None if only is None else set(only)
        self._first_rows = FirstRows(self.anchors, source.starts)
        chosen = self._choose(
            {entry: name for entry, (name, _) in description.entries.items()}, [*description.extras], description.named
        )
        self._entries = [(entry, *description.entries[entry]) for entry in chosen]
        self._extras = [(name, extra) for name, extra in description.extras.items() if self._is_wanted(name)]
        is_ragged = any(source.fields[name].ragged for name in self.read_fields)
        self.is_divisible = description.is_divisible and not is_ragged
        """Whether several batches can be gathered as one, of which each is then a part.

        Not where an entry depends on the other samples of its batch, or on a sample's position in the epoch.
        """

    def _choose(self, entries: Mapping[str, str], extras: Sequence[str], named: Sequence[str]) -> dict[str, str]:
        """Of all entries (entry name to field name) those asked for; then fix which meta fields come along."""
        meta = list(self.source.user_meta)
        meta += [name for name in self.source.meta_fields if name in named and name not in meta]
        if self._only is not None:
            hidden = [name for name in self.source.meta_fields if name not in meta and name not in entries]
            meta += [name for name in hidden if self._out(name) in self._only]
        ragged = {entry for entry, name in entries.items() if self.source.fields[name].ragged}
        available = [*entries, *(f"{entry}_lens" for entry in ragged), *meta, *extras]
        if unknown := [name for name in self._names if name not in available]:
            raise FieldError(f"fieldname_map: unknown entry {unknown[0]!r}; the batch has {available}")
        self._check_distinct([self._out(name) for name in available])
        self._place_in_trees(entries, available)
        outputs = [*dict.fromkeys(self._roots.values()), *(self._out(n) for n in available if n not in self._roots)]
        self._check_distinct(outputs)
        if self._only is not None and (missing := self._only - set(outputs)):
            raise FieldError(f"field {sorted(missing)[0]!r} is not in the batch; it has {outputs}")
        self._meta = [name for name in meta if self._is_wanted(name)]
        shown = {entry: (name, self.source.fields[name]) for entry, name in entries.items()}
        shown |= {name: (name, self.source.meta_fields[name]) for name in meta}
        self._delivery.bind({self._out(entry): field for entry, field in shown.items()})
        if self._nesting is not None:
            self._nesting.build(name for name in available if self._is_wanted(name))
        chosen = {
            name: field
            for name, field in entries.items()
            if self._is_wanted(name) or (name in ragged and self._is_wanted(f"{name}_lens"))
        }
        self.read_fields = set(chosen.values())
        self.source.rows.expect(self.read_fields)
        return chosen

    def _check_distinct(self, outputs: Sequence[str]) -> None:
        if twice := sorted({name for name in outputs if outputs.count(name) > 1}):
            raise FieldError(f"two entries of the batch would be called {twice[0]!r}; use fieldname_map")

    def _place_in_trees(self, entries: Mapping[str, str], available: Sequence[str]) -> None:
        """Where entries are to be nested, note of those that keep their name which tree they will be in."""
        if self._nesting is None:
            return
        for entry, name in entries.items():
            for suffix in ("", "_lens", "_is_pad"):
                whole = f"{entry}{suffix}"
                if whole in available and whole not in self._names:
                    self._roots[whole] = self._nesting.place(whole, name, entry.removesuffix(name), suffix)

    def _put(self, arrays: Arrays, entry: str, name: str, located: Located) -> None:
        """Add a field's values, as far as they are asked for."""
        if self.source.fields[name].ragged:
            padded = located.take_ragged(self.source, name)
            for part, array in zip((entry, f"{entry}_lens"), padded, strict=True):
                if self._is_wanted(part):
                    arrays[part] = array
            return
        arrays[entry] = located.take(self.source, name)
        if located.shown is not None:
            arrays.were_padded((entry,), located.shown)

    def _out(self, name: str) -> str:
        return self._names.get(name, name)

    def _is_wanted(self, name: str) -> bool:
        return self._only is None or self._roots.get(name, self._out(name)) in self._only

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_moment": copy(self._moment)}  # which a copy has of its own, and a worker shares

    def __len__(self) -> int:
        return len(self.anchors)

    def __getitem__(self, index: Any) -> Batch:
        if isinstance(index, (int, np.integer)):
            if not -len(self) <= index < len(self):
                raise IndexError(f"sample {index}: there are {len(self)}")
            flat = self._asked(np.array([index % len(self)]))
            return self._nest({name: _only(values) for name, values in flat.items()})
        if isinstance(index, Draw):
            return self._nest(self._drawn(index))
        return self._nest(self._asked(np.asarray(index, np.int64)))

    def _nest(self, batch: Batch) -> Batch:
        return batch if self._nesting is None else self._nesting.fold(batch)

    def normalize_with(self, statistics: Resolved) -> None:
        """Normalize with these statistics, of the same fields as so far."""
        self.normalized = statistics
        self._delivery.normalize_with(statistics)

    def set_epoch(self, epoch: int, *, seed: int | None = None) -> None:
        """Let what is drawn at random for each sample be that of this epoch.

        This is for a DataLoader of your own: a loader of this package says with each batch of which epoch it is. Call
        it before each iteration; workers that are running see it too, in every DataLoader over this dataset. Samples
        that they have read ahead stay as they are.

        Args:
            epoch: from 0 on.
            seed: any integer; None keeps the one of the call before, at first 0.

        Raises:
            FieldError: the epoch or the seed is no such integer.
        """
        if isinstance(seed, bool) or not isinstance(seed, (int, np.integer, type(None))):
            raise FieldError(f"seed: expected an integer or None, got {seed!r}")
        self._moment.set(self._moment.seed if seed is None else int(seed), checked_epoch(epoch))

    def _draws(self, count: int, episodes: Ints, steps: Ints) -> Floats:
        """So many numbers from [0, 1) for each sample, ``(count, samples)``; other ones in each epoch.

        Where a sample may come again in the epoch, it gets others each time.
        """
        positions = self.draw.positions if self.draw.repeats else None
        return draw(self.draw.seed, self.draw.epoch, count, self.source.index[episodes], steps, positions)

    def _asked(self, samples: Ints) -> Batch:
        if samples.size and not (samples.min() >= 0 and samples.max() < len(self)):
            raise IndexError(f"samples {samples.min()} .. {samples.max()}: there are {len(self)}, from 0 on")
        self.draw = Draw(samples, self._moment.seed, self._moment.epoch)
        return self.batch(samples)

    def _drawn(self, draw: Draw) -> Batch:
        """The batch that a sampler asked for, with the entries that only a prioritised draw has."""
        self._ask_ahead(draw)
        self.draw = draw
        return self.batch(draw.samples)

    def drawn_in_order(self, draws: Iterable[Draw]) -> Iterator[Batch]:
        """The batches of an order that is settled; where they are small, several are gathered in one call per field.

        In a batch of 256 short rows, what comes with each call takes longer than the gathering.
        """
        coming, most = iter(draws), 1
        while run := list(islice(coming, most)):
            for drawn in run:
                self._ask_ahead(drawn)
            most = yield from self._deliver_run(run)

    # --- reading ahead ---

    def _ask_ahead(self, draw: Draw) -> None:
        """Where a batch of an order by blocks enters a pool, have the kernel read the next one meanwhile.

        A thread asks, and nobody waits for it: a row that has not come yet is waited for by the system when it is
        gathered. What was read before is let go of: it may leave memory first where memory is short.
        """
        if isinstance(draw, BlockDraw) and draw.reads:
            self.source.rows.map(self.read_fields)  # once, and not in two threads
            stretches = [stretch for first, last in draw.reads for stretch in self.stretches(first, last)]
            _thread(os.getpid()).submit(self.source.rows.will_need, self.read_fields, stretches)

    def stretches(self, first: int, last: int) -> list[tuple[int, int]]:
        """Where the rows of samples ``first`` to ``last - 1`` are: first rows, and those past the last."""
        episodes, steps = self.anchors.locate(np.array([first, last - 1]))
        # Of the last episode no more than is needed, unless its last sample is among them: it may be all of it.
        whole = int(steps[1]) + 1 == int(np.diff(self.anchors.offsets[episodes[1] : episodes[1] + 2])[0])
        end = int(self.source.lengths[episodes[1]]) if whole else int(steps[1])
        widest = max((self.source.fields[name].nbytes for name in self.read_fields), default=1)
        return self.source.stretches(episodes, (int(steps[0]), end + 1), max(1, _GAP_BYTES // max(widest, 1)))

    # --- one batch ---

    def _deliver_run(self, run: Sequence[Draw]) -> Generator[Batch, None, int]:
        """The batches, gathered as one; returns how many like these are to be gathered so."""
        self.draw = run[0]
        if len(run) > 1:
            self.draw = replace(run[0], samples=np.concatenate([drawn.samples for drawn in run]))
        arrays = self._taken(self.draw.samples)[0]
        nbytes = sum(array.nbytes for array in arrays.values()) // len(run)
        begin = 0
        for drawn in run:
            end = begin + len(drawn.samples)
            yield self._nest(self._deliver(arrays if len(run) == 1 else arrays.part(begin, end), {}))
            begin = end
        return max(1, min(_MOST_TOGETHER, RUN_BYTES // max(nbytes, 1))) if self.is_divisible else 1

    def _weighed(self, served: Ints) -> Batch:
        """The entries that only a prioritised batch has, where these samples are what it holds."""
        draw = self.draw
        if not isinstance(draw, PriorityDraw):
            return {}
        names = np.where(served == draw.samples, draw.names, -1)
        weights = torch.from_numpy(draw.weights.copy()).to(torch.get_default_dtype())
        return {"_samples": torch.from_numpy(names.astype(np.int64)), "_weights": weights}

    def batch(self, samples: Ints) -> Batch:
        """The samples as one batch, not nested yet.

        Raises:
            EpisodeEvictedError: their episodes leave the circular buffer faster than they can be copied.
        """
        arrays, served = self._taken(samples)
        return self._deliver(arrays, self._weighed(served))

    def _taken(self, samples: Ints) -> tuple[Arrays, Ints]:
        """What is gathered for samples, and the samples that it is of: evicted ones were replaced."""
        for _ in range(_ATTEMPTS):
            samples = self.source.replace_evicted(samples, self.anchors)
            found = self.anchors.find(samples)
            asked = Asked(self.source, found, self._first_rows, self._draws)
            try:
                arrays = self._gather(asked)
            except CorruptBufferError:
                if self.source.are_live(asked.all_episodes):
                    raise
                continue  # spans of rows that were overwritten meanwhile
            for name in self._meta:
                arrays[name] = self.source.meta(name)[found.episodes]
            if self.source.are_live(asked.all_episodes):
                return arrays, samples
        raise EpisodeEvictedError("episodes are evicted from the circular buffer faster than a batch can be copied")

    def _gather(self, asked: Asked) -> Arrays:
        arrays = Arrays()
        for entry, name, place in self._entries:
            self._put(arrays, entry, name, asked.at(place))
        for name, extra in self._extras:
            arrays[name] = extra(asked)
        return arrays

    def _deliver(self, arrays: Arrays, weighed: Batch) -> Batch:
        if not self._names:
            return self._delivery(arrays, weighed)
        renamed = Arrays()
        renamed.update((self._out(name), array) for name, array in arrays.items())
        renamed.valid = {self._out(name): mask for name, mask in arrays.valid.items()}
        return self._delivery(renamed, weighed)


def _only(values: Any) -> Any:
    """The one sample of a batch of one; a transform may have nested it."""
    return {name: _only(inner) for name, inner in values.items()} if isinstance(values, dict) else values[0]


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
