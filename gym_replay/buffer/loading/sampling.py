"""Random batches of what a buffer holds at the moment at which each is asked for: ``buffer.sample``."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from threading import RLock
from typing import Any, Protocol

import numpy as np
import torch

from gym_replay.buffer.loading.collate import Arrays, Batch
from gym_replay.buffer.loading.datasets import ReplayDataset, priority_entries
from gym_replay.buffer.loading.devices import check_device, to_device
from gym_replay.buffer.loading.loaders import make_dataset
from gym_replay.buffer.loading.open_source import OpenSource, samples_of
from gym_replay.buffer.loading.options import OF_DATASETS, OF_LOADERS
from gym_replay.buffer.loading.order import Draw, PriorityDraw
from gym_replay.buffer.loading.prioritized import PrioritizedSampler
from gym_replay.buffer.loading.relative_rows import BatchSamples
from gym_replay.buffer.loading.statistics import FieldStatistics
from gym_replay.buffer.storage.open_rows import OpenRows
from gym_replay.buffer.storage.reader import HasSnapshots, Snapshot
from gym_replay.errors import EmptyBufferError, EpisodeEvictedError, FieldError
from gym_replay.schema.arguments import checked_integer
from gym_replay.schema.arrays import Array, Floats, Ints

_ATTEMPTS, _LOOKS = 100, 20
_MOST_KNOWN = 16
_process = object()
"""Stands for this process; a forked one has another."""


def _note_fork() -> None:
    global _process
    _process = object()


os.register_at_fork(after_in_child=_note_fork)

_OF_COMMITTED = ("episodes", "filter_meta", "filter_fields", "goal_sampler")
"""What only committed episodes have: all of their steps, and meta fields of their ends."""


class Live(HasSnapshots, Protocol):
    """What random batches are drawn from: a buffer, or several as one."""

    def newest(self) -> list[Snapshot]:
        """The live episodes of each folder, with those that other processes have committed."""

    def open_rows(self) -> OpenRows | None:
        """The rows of the episodes that this object has open; None where there is no transition."""


class RandomBatches:
    """Batches of random transitions, each drawn uniformly, or by priority, from all that there are at that moment.

    What is prepared for the episodes of a moment is used until others are committed, evicted or deleted.

    Args:
        include_open: draw from episodes that are open as well.
        sampler: priorities to draw by.
        seed: of a generator of its own.
        generator: where random numbers come from; None for torch's default generator.
        device: where the tensors go.
        options: of n-step loading, and those of datasets of all kinds.

    Raises:
        FieldError: options exclude one another, or have a value that there is not.
    """

    def __init__(
        self,
        *,
        include_open: bool = False,
        sampler: PrioritizedSampler | None = None,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        device: Any = None,
        **options: Any,
    ) -> None:
        if sampler is not None and not isinstance(sampler, PrioritizedSampler):
            raise FieldError(f"sampler={sampler!r:.60}: expected a PrioritizedSampler")
        if seed is not None and generator is not None:
            raise FieldError("seed and generator exclude one another: each says where random numbers come from")
        if generator is not None and not (isinstance(generator, torch.Generator) and generator.device.type == "cpu"):
            raise FieldError(f"generator={generator!r}: expected a torch.Generator on the CPU, or pass seed=")
        if seed is not None:
            generator = torch.Generator().manual_seed(checked_integer("seed", seed, end=2**63))
        if include_open:
            _check_open(options)
        refuse_orders(options, "sample draws each batch at random, with replacement, from what there is at that moment")
        self._include_open, self._sampler, self.generator = include_open, sampler, generator
        self._device, self._draws_goals = check_device(device), options.get("goal_sampler") is not None
        given = {name: value for name, value in options.items() if value is not None}
        self._options = {"n_steps": 1, **given}
        self._seen: list[Snapshot] = []
        self._committed: ReplayDataset | None = None
        self._num_committed = 0
        self._of_open: tuple[Snapshot, ReplayDataset] | None = None

    # --- one batch ---

    def prepare(self, buffer: Live) -> None:
        """Be ready for the next batch.

        Raises:
            EmptyBufferError: there is no transition.
        """
        if self._look(buffer) is None and not self._num_committed:
            raise self._nothing()

    def sample(self, buffer: Live, count: int) -> Batch:
        """A batch of so many transitions of the buffer, which is the same one each time.

        Raises:
            EmptyBufferError: there is none.
        """
        count = checked_integer("n", count, 1)
        for _ in range(_ATTEMPTS):
            rows = self._look(buffer)
            try:
                batch = self._batch(count) if rows is None else self._with_open(count, rows)
            except EpisodeEvictedError:  # all that there was a moment ago
                continue
            return batch if self._device is None else to_device(batch, self._device)
        raise EpisodeEvictedError("episodes end and are evicted faster than a batch can be copied; use a larger ring")

    def _look(self, buffer: Live) -> OpenRows | None:
        """Be ready for the episodes that there are now; the rows of open ones, where they count and there are any."""
        if not self._include_open:
            self._follow(buffer.newest())
            return None
        for _ in range(_LOOKS):
            # First the open ones: what another thread commits in between is among both, and then no longer open.
            rows = buffer.open_rows()
            self._follow(buffer.newest())
            if rows is not None or self._num_committed:
                return rows
            time.sleep(0.0005)  # another thread may be in the middle of the first commit
        return None

    def _follow(self, parts: list[Snapshot]) -> None:
        """Be ready for the episodes that there are now."""
        if parts == self._seen:
            return
        if self._sampler is not None and len(parts) > 1:
            raise FieldError("sampler: it follows one buffer; sample each of .buffers with one of its own")
        try:
            if self._committed is None:
                self._committed = make_dataset(parts, "n_step", **self._options)
            else:
                self._committed.show(parts)
            self._num_committed = len(self._committed)
        except EmptyBufferError:
            if any(len(part) for part in parts) and not self._include_open:
                raise  # it says what was chosen, of which there is nothing
            self._num_committed = 0
        if self._sampler is not None:
            self._sampler.follow(*self._numbered())
        self._seen = parts

    def _numbered(self) -> tuple[Ints, Ints]:
        """The ids of the committed episodes, and how many samples each has."""
        if self._committed is None or not self._num_committed:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        numbering = self._committed.numbering
        return numbering.ids, np.diff(numbering.offsets)

    def _batch(self, count: int) -> Batch:
        """A batch of committed transitions."""
        if not self._num_committed:
            raise self._nothing()
        assert self._committed is not None
        numbers, weights = self._draw(count)
        return self._committed.batch(self._drawn(numbers, weights))

    def _nothing(self) -> EmptyBufferError:
        if self._include_open:
            return EmptyBufferError(
                "there is no transition yet, neither of a committed episode nor of one that a recorder of this buffer "
                "object has open; step the environment once before the first sample (another process sees episodes "
                "once they are committed, and none of its own that are open)"
            )
        return EmptyBufferError(
            "nothing is committed yet: an episode is committed when it ends. Sample after the first one has ended, or "
            "pass include_open=True, with which the transitions of open episodes count from the first step on"
        )

    def _draw(self, count: int, unnumbered: int = 0) -> tuple[Ints, Floats | None]:
        """Random samples: numbers of committed ones, and behind them those of open ones; and their weights, if any."""
        if self._sampler is None:
            end = self._num_committed + unnumbered
            return torch.randint(end, (count,), generator=self.generator).numpy(), None
        chances = torch.rand(count, dtype=torch.float64, generator=self.generator).numpy()
        return self._sampler.pick(chances, unnumbered)

    def _drawn(self, numbers: Ints, weights: Floats | None) -> Draw:
        """What the dataset of committed episodes is asked for."""
        if weights is not None:
            assert self._sampler is not None
            assert self._committed is not None
            episodes, inside = self._sampler.locate(numbers)
            samples = self._committed.numbering.offsets[episodes] + inside
            return PriorityDraw(samples, self._seed_of_goals(), 0, 0, True, weights=weights, names=numbers)
        return Draw(numbers, self._seed_of_goals(), 0, 0, True)

    def _seed_of_goals(self) -> int:
        """A new seed for what is drawn of each sample, where anything is."""
        return int(torch.randint(1 << 62, (), generator=self.generator)) if self._draws_goals else 0

    # --- transitions of open episodes ---

    def _with_open(self, count: int, rows: OpenRows) -> Batch:
        """A batch of committed and open transitions."""
        try:
            dataset, source = self._open_dataset(rows)
            anchors = source.look(rows)
        except EmptyBufferError:  # without state fields, the next row of the only transition is not there yet
            return self._batch(count)
        if not len(anchors):
            return self._batch(count)
        numbers, weights = self._draw(count, len(anchors))
        first = self._num_committed if self._sampler is None else self._sampler.end
        are_open = numbers >= first
        chosen = np.flatnonzero(are_open)
        if not len(chosen):
            assert self._committed is not None
            return self._committed.batch(self._drawn(numbers, weights))
        samples = samples_of(anchors, numbers[chosen] - first)
        arrays = dataset.entries.gather(BatchSamples(source, samples, _no_draws))
        if not rows.are_valid(samples.rows):
            raise EpisodeEvictedError("another thread has ended an episode that is read")
        names, deliver = np.full(count, -1), dataset.delivered
        if len(chosen) < count:
            assert self._committed is not None
            others = np.flatnonzero(~are_open)
            draw = self._drawn(numbers[others], None if weights is None else weights[others])
            committed, served = self._committed.taken(draw)
            arrays = _merged(committed, others, arrays, chosen)
            names[others] = np.where(served == draw.samples, numbers[others], -1)
            deliver = self._committed.delivered
        return deliver(arrays, {} if weights is None else priority_entries(names, weights))

    def _open_dataset(self, rows: OpenRows) -> tuple[ReplayDataset, OpenSource]:
        """What open episodes are gathered by; made anew where the buffer's fields are others."""
        (part,) = self._seen
        known = self._of_open
        if known is None or known[0].metadata is not part.metadata:
            make: Callable[[Sequence[Snapshot]], OpenSource] = partial(OpenSource, rows=rows)
            options = self._options
            if self._committed is not None and self._committed.normalized is not None:
                options = {**options, "normalize": self._committed.normalized}
            dataset = make_dataset([part], "n_step", **options, open_source=make)
            known = self._of_open = part, dataset
        dataset = known[1]
        assert isinstance(dataset.source, OpenSource)
        return dataset, dataset.source


def _no_draws(count: int, episodes: Ints, steps: Ints) -> Floats:
    raise AssertionError("nothing is drawn for samples of open episodes")


def _check_open(options: Mapping[str, Any]) -> None:
    for name in _OF_COMMITTED:
        if options.get(name) is not None:
            raise FieldError(f"include_open=True goes without {name}, which committed episodes alone can answer")
    normalize = options.get("normalize")
    if normalize is not None and not isinstance(normalize, Mapping):
        raise FieldError("include_open=True: normalize by statistics, normalize=statistics(buffer), not by names")


def refuse_orders(options: Iterable[str], instead: str) -> None:
    """Raise FieldError where an option belongs to loaders, which have an order; the message ends in ``instead``."""
    if of_loaders := [name for name in options if name in OF_LOADERS and name not in OF_DATASETS]:
        raise FieldError(f"{of_loaders[0]} is an option of loaders; {instead}")


def _merged(first: Arrays, at: Ints, second: Arrays, at_others: Ints) -> Arrays:
    """One batch of two: the samples of the first at these places, those of the second at the others."""
    order = np.argsort(np.concatenate((at, at_others)))
    found = Arrays()
    for name, one in first.items():
        other = second[name]
        if one.shape[1:] != other.shape[1:]:
            one, other = _of_one_width(one, other)
        found[name] = np.concatenate((one, other)).take(order, 0)
    for name in first.valid.keys() | second.valid.keys():
        masks = [each.valid.get(name, np.ones(each[name].shape[:2], bool)) for each in (first, second)]
        found.valid[name] = np.concatenate(masks).take(order, 0)
    return found


def _of_one_width(*arrays: Array) -> list[Array]:
    """Arrays of equal shapes but for the first axis: those of ragged fields are padded with zeros to the longest."""
    shape = np.max([array.shape[1:] for array in arrays], axis=0)
    padded = []
    for array in arrays:
        if (missing := shape - array.shape[1:]).any():
            array = np.pad(array, [(0, 0), *((0, each) for each in missing.tolist())])
        padded.append(array)
    return padded


# --- the batches of one buffer ---


class Samplers:
    """The random batches that were asked of one buffer, for each set of options."""

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._known: dict[Any, RandomBatches] = {}
        self._lock, self._process = RLock(), _process  # a transform, or a signal handler, may ask for another batch

    def _go_on_in_child(self) -> None:
        """In a forked child a thread that was drawing a batch is gone: begin anew."""
        self._process = _process
        if self._lock.acquire(blocking=False):
            self._lock.release()
        else:
            self._begin()

    def sample(self, buffer: Live, count: int, options: Mapping[str, Any]) -> Batch:
        """A batch of the buffer; what was prepared for options of the same values is used again."""
        key: Any = tuple(options.items())
        if self._process is not _process:
            self._go_on_in_child()
        with self._lock:
            try:
                batches = self._known.get(key)
            except TypeError:  # lists, dicts and arrays among them
                key = _hashable(options)
                batches = self._known.get(key)
            if batches is None:
                if len(self._known) >= _MOST_KNOWN:
                    del self._known[next(iter(self._known))]
                batches = self._known[key] = RandomBatches(**options)
            return batches.sample(buffer, count)


class _Same:
    """Stands for an object that has no hash: equal to itself alone, which it keeps."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def __hash__(self) -> int:
        return id(self._value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self._value is other._value


def _hashable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return tuple((key, _hashable(inner)) for key, inner in value.items())
    if isinstance(value, (list, tuple)):
        return tuple(map(_hashable, value))
    if isinstance(value, (set, frozenset)):
        return frozenset(map(_hashable, value))
    if isinstance(value, (np.ndarray, FieldStatistics)):
        return _Same(value)
    try:
        hash(value)
    except TypeError:
        return _Same(value)
    return value
