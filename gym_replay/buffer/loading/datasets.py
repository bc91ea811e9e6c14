"""The dataset of samples of any kind, over these snapshots or newer ones; its items are whole batches."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from copy import copy
from dataclasses import replace
from functools import lru_cache, partial
from itertools import groupby, islice
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from gym_replay.buffer.loading.collate import Arrays, Batch, Delivery, Dtype, Layout, Transform
from gym_replay.buffer.loading.formats import BatchFormat
from gym_replay.buffer.loading.live import Bounds, Folders, Numbering, bounds_of, intersection
from gym_replay.buffer.loading.nesting import BatchNames
from gym_replay.buffer.loading.order import BlockDraw, Draw, LiveEpisodes, Moment, PriorityDraw
from gym_replay.buffer.loading.plans import Anchors, draw
from gym_replay.buffer.loading.relative_rows import BatchSamples, RelativeRows
from gym_replay.buffer.loading.samples import Description
from gym_replay.buffer.loading.selection import Condition, Episodes, matches
from gym_replay.buffer.loading.source import Source
from gym_replay.buffer.loading.statistics import Normalize, Resolved, resolve
from gym_replay.buffer.storage.reader import Snapshot
from gym_replay.errors import CorruptBufferError, EmptyBufferError, EpisodeEvictedError, FieldError
from gym_replay.files.threads import submit
from gym_replay.notices import did_you_mean
from gym_replay.schema.arguments import checked_integer
from gym_replay.schema.arrays import Array, Floats, Ints

RUN_BYTES = 1 << 19
"""Batches are gathered together up to so many bytes: more would take hardly less time, and let a batch wait longer."""

_GAP_BYTES = 1 << 14
"""Up to so many bytes between two stretches are read along: they would be pieces of the same pages."""

_ATTEMPTS, _RENEWALS = 100, 20
_TOO_FAST = "episodes are evicted from the circular buffer faster than a batch can be copied"
_MOST_TOGETHER = 128


@lru_cache(maxsize=1)
def _thread(process: int) -> ThreadPoolExecutor:
    """The thread of this process that asks for rows; a forked one has none and starts its own."""
    return ThreadPoolExecutor(1, thread_name_prefix="gym_replay-read-ahead")


class Entries:
    """The entries of a batch: those of a description that are asked for, under their names.

    Args:
        source, description: the selected episodes, and what one sample is.
        renamed, only, nested: ``fieldname_map``, ``only`` and ``nested`` of :class:`ReplayDataset`.

    Attributes:
        names: what the entries are called.
        shown: the field that each entry shows, as name and declaration.
        read_fields: the names of the fields that batches are made of.
        are_divisible: whether the entries of some samples are a part of the entries of more.
    """

    def __init__(
        self,
        source: Source,
        description: Description,
        *,
        renamed: Mapping[str, str] | None,
        only: Sequence[str] | None,
        nested: bool,
    ) -> None:
        fields, entries = source.fields, {entry: name for entry, (name, _) in description.entries.items()}
        lens = {entry: f"{entry}_lens" for entry, name in entries.items() if fields[name].ragged}
        meta = [name for name in source.meta_fields if name in source.user_meta or name in description.named]
        if only is not None:
            hidden = [name for name in source.meta_fields if name not in meta and name not in entries]
            meta += [name for name in hidden if (renamed or {}).get(name, name) in only]
        available = [*entries, *lens.values(), *meta, *description.computed]
        environment = (source.environment or {}) if nested else None
        self.names = names = BatchNames(entries, available, renamed=renamed, only=only, environment=environment)
        shown = {entry: (name, fields[name]) for entry, name in entries.items()}
        shown |= {name: (name, source.meta_fields[name]) for name in meta}
        self.shown = {names.out(entry): field for entry, field in shown.items()}
        self._meta = [(name, names.out(name)) for name in meta if names.is_wanted(name)]
        self._computed = [(names.out(n), entry) for n, entry in description.computed.items() if names.is_wanted(n)]
        # Of a ragged field come the values and their numbers, or one of them, where the other has no name.
        read: list[tuple[RelativeRows, tuple[str, str, str]]] = []
        for entry, (name, rows) in description.entries.items():
            output, number = (
                names.out(part) if part and names.is_wanted(part) else "" for part in (entry, lens.get(entry))
            )
            if output or number:
                read.append((rows, (name, output, number)))
        # Entries of the same rows mostly follow one another, and are taken together.
        runs = groupby(read, key=itemgetter(0))
        self._rows = [(rows, [entry for _, entry in run]) for rows, run in runs]
        self.read_fields = {name for _, (name, *_) in read}
        self._ragged = {name for name in self.read_fields if fields[name].ragged}
        self._encoded: dict[str, list[tuple[RelativeRows, str]]] = {}
        for rows, (name, output, _) in read:
            if fields[name].codec is not None:
                self._encoded.setdefault(name, []).append((rows, output))
        self.are_divisible = description.is_divisible and not self._ragged

    def gather(self, batch: BatchSamples) -> Arrays:
        """The arrays of a batch."""
        if batch.source.rows.are_mirrored:
            with batch.source.rows.holding():
                located = [(batch.once(rows).rows, entries) for rows, entries in self._rows]
                batch.source.rows.fetch((name, rows) for rows, entries in located for name, *_ in entries)
                return self._gathered(batch)
        return self._gathered(batch)

    def _gathered(self, batch: BatchSamples) -> Arrays:
        arrays, source = Arrays(), batch.source
        decoded = self._decoded(batch) if self._encoded else {}
        for rows, entries in self._rows:
            located = batch.once(rows)
            for name, output, number in entries:
                if name in self._ragged:
                    for part, array in zip((output, number), located.take_ragged(source, name), strict=True):
                        if part:
                            arrays[part] = array
                    continue
                arrays[output] = decoded[output] if output in decoded else located.take(source, name)
                if located.shown is not None:
                    arrays.valid[output] = located.shown
        for output, compute in self._computed:
            arrays[output] = compute(batch)
        for name, output in self._meta:
            arrays[output] = batch.source.meta(name)[batch.samples.episodes]
        return arrays

    def _decoded(self, batch: BatchSamples) -> dict[str, Array]:
        """The entries of fields with a codec by their outputs: a row that several of them have is decoded once."""
        found: dict[str, Array] = {}
        for name, entries in self._encoded.items():
            located = [batch.once(rows) for rows, _ in entries]
            arrays = batch.source.rows.take_encoded(name, [(one.rows, one.shown) for one in located])
            found |= {output: array for (_, output), array in zip(entries, arrays, strict=True)}
        return found


class ReplayDataset(Dataset[Batch]):
    """Samples of selected episodes.

    An integer index gives one sample, an array of sample numbers a batch, gathered in one call per field.

    Of buffers that are still written, it goes over to new snapshots, in workers too: where it is asked to, and where a
    draw names samples of another snapshot than its own.

    Args:
        parts: the snapshots.
        describe: what one sample is, for the selected episodes of any snapshots of the same buffers.
        episodes, filter_meta: which episodes, see :class:`~gym_replay.buffer.loading.source.Source`.
        filter_fields: conditions on scalar fields at the anchor step.
        fieldname_map: other names for entries of the batch.
        only: gather only the entries that get these names; meta fields of the recorder are among them only here
            or where a ``fields`` argument names them.
        dtype, image_layout, transform: see :class:`~gym_replay.buffer.loading.collate.Delivery`.
        normalize: statistics, or names of fields, whose statistics over the selected episodes are then taken, once.
        batch_format: the layout of the batches, which comes after the transform.
        nested: put the parts of nested spaces into dicts and tuples as the space has them, instead of beside one
            another under dotted names. A ``transform`` is given the dotted names.
        open_source: gives the episodes instead; ``parts`` then say only what there is to know of them.

    Attributes:
        source, anchors: the selected episodes, and the steps that are samples.
        entries: what a batch is made of.
        numbering: of the samples.
        normalized: the statistics that fields are normalized with, or None.
    """

    def __init__(
        self,
        parts: Sequence[Snapshot],
        describe: Callable[[Source], Description],
        *,
        episodes: Episodes | None = None,
        filter_meta: Mapping[str, Condition] | None = None,
        filter_fields: Mapping[str, Condition] | None = None,
        fieldname_map: Mapping[str, str] | None = None,
        only: Sequence[str] | None = None,
        dtype: Dtype = None,
        image_layout: Layout = None,
        normalize: Normalize = None,
        transform: Transform | None = None,
        batch_format: BatchFormat | None = None,
        nested: bool = False,
        open_source: Callable[[Sequence[Snapshot]], Source] | None = None,
    ) -> None:
        self._moment = Moment()
        self._folders = Folders(parts)
        self._seen: list[Snapshot] = []
        self._describe, self._filter_fields = describe, filter_fields
        self._open_source = open_source or partial(Source, episodes=episodes, filter_meta=filter_meta)
        self._named: dict[str, Any] = {"renamed": fieldname_map, "only": only, "nested": nested}
        self._delivered_as: dict[str, Any] = {"dtype": dtype, "image_layout": image_layout}
        self._transform, self._format = transform, batch_format
        self._normalize = normalize
        self._show(parts, bounds_of(parts), 0)

    def _show(self, parts: Sequence[Snapshot], bounds: Bounds, version: int) -> None:
        """Serve these snapshots; where that raises, the dataset is as before."""
        source = self._open_source(parts)
        description = self._describe(source)
        if self._filter_fields is not None and description.no_filter is not None:
            raise FieldError(description.no_filter)
        anchors = description.anchors
        if self._filter_fields:
            anchors = _filter(source, anchors, self._filter_fields)
        if len(anchors) == 0:
            raise EmptyBufferError("no sample to load: the selected episodes have no step of this kind")
        entries = Entries(source, description, **self._named)
        source.require_up_to_date(entries.read_fields)
        source.rows.expect(entries.read_fields)
        normalized = resolve(self._normalize, source)
        transform = self._transform if self._format is None else self._format.after(self._transform, parts)
        deliver = partial(Delivery, entries.shown, **self._delivered_as, transform=transform)
        self._delivery = deliver(normalize=normalized)
        self.source, self.anchors, self.entries = source, anchors, entries
        self.normalized = self._normalize = normalized
        self._deliver = deliver
        self.numbering = Numbering(source, anchors, bounds, version)

    def show(self, parts: Sequence[Snapshot]) -> None:
        """Serve other snapshots of the same buffers from now on.

        Raises:
            EmptyBufferError: there is no sample in them; the dataset is as before.
        """
        self._show(parts, bounds_of(parts), self.numbering.version + 1)

    def renew(self, within: Bounds | None = None, gather: Callable[[Any], list[Any]] = lambda own: [own]) -> bool:
        """Take new snapshots; return whether anything is different.

        Args:
            within: episodes outside of these bounds are left out.
            gather: gives what all processes say that must get the same episodes: those that each of them sees.

        Raises:
            EmptyBufferError: there is no sample any more.
            EpisodeEvictedError: the processes cannot agree, because episodes leave too fast.
        """
        for _ in range(_RENEWALS):
            parts = self._folders.newest()
            everyone = gather(bounds_of(parts))
            bounds = intersection(everyone if within is None else [*everyone, within])
            changed = bounds != self.numbering.bounds or [*map(id, parts)] != [*map(id, self._seen)]
            if changed:
                self._show(self._folders.within(parts, bounds), bounds, self.numbering.version + 1)
                self._seen = parts
            # Deletions between two processes' looks do not show in the bounds.
            if len(set(gather((bounds, len(self))))) == 1:
                return changed
        raise EpisodeEvictedError("the episodes change faster than the ranks can agree on them")

    def __getstate__(self) -> dict[str, Any]:
        # A copy has a moment of its own, which a worker shares.
        return self.__dict__ | {"_moment": copy(self._moment), "_seen": []}

    def __len__(self) -> int:
        return len(self.anchors)

    def __getitem__(self, index: Any) -> Batch:
        if isinstance(index, Draw):
            self._ask_ahead(index)
            return self.batch(index) if index.live is None else self._live_batch(index, index.live)
        if isinstance(index, (int, np.integer)):
            if not -len(self) <= index < len(self):
                raise IndexError(f"sample {index}: there are {len(self)}")
            return Batch(_only(self[np.array([index % len(self)])]))
        samples = np.asarray(index, np.int64)
        if samples.size and not (samples.min() >= 0 and samples.max() < len(self)):
            raise IndexError(f"samples {samples.min()} .. {samples.max()}: there are {len(self)}, from 0 on")
        return self.batch(Draw(samples, self._moment.seed, self._moment.epoch))

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
        seed = self._moment.seed if seed is None else checked_integer("seed", seed, -math.inf)
        self._moment.set(seed, checked_integer("epoch", epoch, end=2**64))

    def normalize_with(self, statistics: Resolved) -> None:
        """Normalize with these statistics, of the same fields as so far."""
        self.normalized = self._normalize = statistics
        self._delivery = self._deliver(normalize=statistics)

    # --- one batch ---

    def batch(self, draw: Draw) -> Batch:
        """The samples that were drawn as one batch, with the entries that only a prioritised draw has.

        Raises:
            EpisodeEvictedError: their episodes leave the circular buffer faster than they can be copied.
        """
        arrays, served = self.taken(draw)
        weighed: dict[str, Any] = {}
        if isinstance(draw, PriorityDraw):
            weighed = priority_entries(np.where(served == draw.samples, draw.names, -1), draw.weights)
        return self.delivered(arrays, weighed)

    def _live_batch(self, draw: Draw, live: LiveEpisodes) -> Batch:
        """The samples that were drawn from a snapshot which may be another one than this process has."""
        if live.version != self.numbering.version:
            try:
                self._look(live, live.bounds)
            except EmptyBufferError:  # none of those that it was drawn from is left
                self._look(live)
        for _ in range(_RENEWALS):
            with suppress(EpisodeEvictedError):
                return self.batch(self.numbering.numbered(draw, live))
            self._look(live)
        raise EpisodeEvictedError(_TOO_FAST)

    def _look(self, live: LiveEpisodes, within: Bounds | None = None) -> None:
        """Serve the newest snapshots, in the stead of the one that a draw is of."""
        parts = self._folders.newest()
        bounds = bounds_of(parts) if within is None else intersection([bounds_of(parts), within])
        self._show(self._folders.within(parts, bounds), bounds, live.version)

    def delivered(self, arrays: Arrays, more: Mapping[str, Any]) -> Batch:
        """The batch of gathered arrays, with these entries more."""
        batch = self.entries.names.nest(self._delivery(arrays, more))
        return batch if isinstance(batch, Batch) else Batch(batch)

    def taken(self, draw: Draw) -> tuple[Arrays, Ints]:
        """What is gathered for a draw, and the samples that it is of: evicted ones were replaced."""
        samples = draw.samples
        for _ in range(_ATTEMPTS):
            samples = self.source.replace_evicted(samples, self.anchors)
            batch = BatchSamples(self.source, self.anchors.find(samples), partial(self._randoms, draw))
            try:
                arrays = self.entries.gather(batch)
            except CorruptBufferError:
                if self.source.are_live(batch.all_episodes):
                    raise
                continue  # spans of rows that were overwritten meanwhile
            if self.source.are_live(batch.all_episodes):
                return arrays, samples
        raise EpisodeEvictedError(_TOO_FAST)

    def _randoms(self, asked: Draw, count: int, episodes: Ints, steps: Ints) -> Floats:
        """So many numbers from [0, 1) for each sample, ``(count, samples)``; other ones in each epoch.

        Where a sample may come again in the epoch, it gets others each time.
        """
        positions = asked.positions if asked.repeats else None
        return draw(asked.seed, asked.epoch, count, self.source.index[episodes], steps, positions)

    # --- the batches of an order ---

    def drawn_in_order(self, draws: Iterable[Draw]) -> Iterator[Batch]:
        """The batches of an order that is settled; where they are small, several are gathered in one call per field.

        In a batch of 256 short rows, what comes with each call takes longer than the gathering.
        """
        coming, most = iter(draws), 1
        while run := list(islice(coming, most)):
            for drawn in run:
                self._ask_ahead(drawn)
            most = yield from self._deliver_run(run)

    def _deliver_run(self, run: Sequence[Draw]) -> Generator[Batch, None, int]:
        """The batches, gathered as one; returns how many like these are to be gathered so."""
        whole = run[0]
        if len(run) > 1:
            whole = replace(whole, samples=np.concatenate([drawn.samples for drawn in run]))
        arrays = self.taken(whole)[0]
        nbytes = sum(array.nbytes for array in arrays.values()) // len(run)
        begin = 0
        for drawn in run:
            end = begin + len(drawn.samples)
            yield self.delivered(arrays if len(run) == 1 else arrays.part(begin, end), {})
            begin = end
        return max(1, min(_MOST_TOGETHER, RUN_BYTES // max(nbytes, 1))) if self.entries.are_divisible else 1

    def _ask_ahead(self, draw: Draw) -> None:
        """Where a batch of an order by blocks enters a pool, have the kernel read the next one meanwhile.

        A thread asks, and nobody waits for it: a row that has not come yet is waited for by the system when it is
        gathered. What was read before is let go of: it may leave memory first where memory is short.
        """
        if isinstance(draw, BlockDraw) and draw.reads:
            self.source.rows.map(self.entries.read_fields)  # once, and not in two threads
            stretches = [stretch for first, last in draw.reads for stretch in self.stretches(first, last)]
            submit(_thread(os.getpid()), self.source.rows.will_need, self.entries.read_fields, stretches)

    def stretches(self, first: int, last: int) -> list[tuple[int, int]]:
        """Where the rows of samples ``first`` to ``last - 1`` are: first rows, and those past the last."""
        found = self.anchors.find(np.array([first, last - 1]))
        (begin, step), final = found.steps.tolist(), int(found.episodes[1])
        # Of the last episode no more than is needed, unless its last sample is among them: it may be all of it.
        end = int(self.source.lengths[final]) if found.left[1] == 1 else step
        widest = max((self.source.fields[name].nbytes for name in self.entries.read_fields), default=1)
        return self.source.stretches(found.episodes, (begin, end + 1), max(1, _GAP_BYTES // max(widest, 1)))


def priority_entries(names: Ints, weights: Floats) -> dict[str, Any]:
    """The entries that only batches drawn by priority have."""
    tensor = torch.from_numpy(weights.copy()).to(torch.get_default_dtype())
    return {"_samples": torch.from_numpy(names.astype(np.int64)), "_weights": tensor}


def _only(values: Any) -> Any:
    """The one sample of a batch of one, which may be nested."""
    if isinstance(values, dict):
        return {name: _only(inner) for name, inner in values.items()}
    return tuple(map(_only, values)) if isinstance(values, tuple) else values[0]


def _filter(source: Source, anchors: Anchors, conditions: Mapping[str, Condition]) -> Anchors:
    source.require_up_to_date(list(conditions))
    rows = anchors.find(np.arange(len(anchors), dtype=np.int64)).rows
    mask = np.ones(len(rows), np.bool_)
    for name, condition in conditions.items():
        if (field := source.fields.get(name)) is None:
            raise FieldError(f"filter_fields: unknown field {name!r}{did_you_mean(name, source.fields)}")
        if field.ragged or field.nbytes != field.dtype.itemsize:
            shape = "another number of elements in each row" if field.ragged else f"shape {field.shape}"
            raise FieldError(f"filter_fields: the field {name!r} has {shape}; only scalar fields can be filtered")
        mask &= matches(source.rows.take(name, rows).reshape(-1), condition, name)
    if not mask.any():
        raise EmptyBufferError(f"no step matches filter_fields={dict(conditions)!r}")
    return anchors.keep(mask)
