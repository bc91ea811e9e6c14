"""ReplayLoader: torch's own DataLoader over batches that are gathered whole, in an order that can be resumed."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from inspect import GEN_CLOSED, getgeneratorstate
from typing import Any

import torch
from torch.utils.data import DataLoader, SequentialSampler

from gym_replay.buffer.loading.collate import Batch, shapes_of
from gym_replay.buffer.loading.devices import check_device, on_device
from gym_replay.buffer.loading.epochs import DrawSampler, Epoch, EpochDataset, EpochSampler, unwrap
from gym_replay.buffer.loading.options import REFUSED
from gym_replay.buffer.loading.order import PriorityDraw
from gym_replay.buffer.loading.prioritized import as_array
from gym_replay.buffer.loading.statistics import Resolved, from_state, to_state
from gym_replay.errors import FieldError
from gym_replay.markup import heading, table

_OF_ORDER = ("batch_size", "shuffle", "sampler", "drop_last", "collate_fn")


class ReplayLoader(DataLoader[Batch]):
    """A DataLoader whose batches are dicts (or named tuples) of tensors.

    :func:`~gym_replay.trajectory_loader`, :func:`~gym_replay.timestep_loader`, :func:`~gym_replay.n_step_loader`,
    :func:`~gym_replay.window_loader` and :func:`~gym_replay.crop_loader` make loaders.

    Its order is a pure function of (seed, epoch, rank, world_size): every sample exactly once an epoch over all ranks.
    Each new iteration is the next epoch. With ``drop_last`` all ranks have the same number of batches, without it they
    differ by at most one. The ranks are those of torch's process group when an iteration begins. The episodes are those
    that were live when the loader was made, unless ``refresh`` says otherwise.

    Other libraries may make DataLoaders of its parts: ``dataset`` is indexed by positions in an epoch and delivers
    whole batches, ``batch_sampler`` has the batches of all ranks.

    Args:
        dataset: the samples, and the sampler that says in which order they come.
        device: where the tensors go; to a CUDA device they are copied through pinned memory, ahead of their use.
        options: torch's own. Those of the order are not looked at, because the dataset has it: libraries that make a
            loader anew pass them. But with a SequentialSampler, as Lightning passes with ``overfit_batches``, every
            iteration is the same epoch.

    Raises:
        FieldError: torch knows no such device.

    Example:
        >>> loader = n_step_loader(buffer, 256, shuffle=True, seed=0, drop_last=True)  # doctest: +SKIP
        >>> for batch in loader:  # doctest: +SKIP
        ...     train(batch)
        ...     checkpoint = loader.state_dict()  # another loader goes on from here after load_state_dict(checkpoint)
    """

    dataset: EpochDataset
    sampler: EpochSampler
    batch_sampler: DrawSampler

    def __init__(self, dataset: EpochDataset, *, device: Any = None, **options: Any) -> None:
        given = options.pop("batch_sampler", None)
        torch_options = {name: value for name, value in options.items() if name not in _OF_ORDER}
        sampler = dataset.sampler
        sampler.repeats_epoch = isinstance(getattr(given, "sampler", None), SequentialSampler)
        batches = DrawSampler(sampler, sampler.order.batch_size, sampler.order.drop_last)
        super().__init__(dataset, batch_sampler=batches, collate_fn=unwrap, **torch_options)
        vars(self)["sampler"] = sampler  # torch has one of its own where there is a batch sampler, and never uses it
        self.device = check_device(device)
        self._progress: tuple[int, int, Sequence[PriorityDraw]] = (0, 0, ())
        self._running: weakref.ref[Generator[Any, None, None]] | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        if name in REFUSED and name in self.__dict__:
            raise FieldError(f"{name} is settled when the loader is made: {REFUSED[name]}")
        super().__setattr__(name, value)

    def __len__(self) -> int:
        return len(self.sampler.of_this_rank())

    def __iter__(self) -> Any:
        epoch = self.sampler.begin()
        self._leave_workers_to_another_iteration()
        self.batch_sampler.begun = epoch.draws
        try:
            batches: Iterator[Batch] = super().__iter__()
        finally:
            self.batch_sampler.begun = None
        if self.num_workers == 0 and not self.pin_memory:
            # Torch's own iterator, which has drawn its seed now, takes as long to hand over a small batch as there is
            # to gather in it.
            batches = self.dataset.in_turn(epoch)
        self._progress = epoch.number, epoch.start, epoch.pending
        delivered = self._deliver(on_device(batches, self.device), epoch)
        if self.persistent_workers:
            self._running = weakref.ref(delivered)
        return delivered

    def _leave_workers_to_another_iteration(self) -> None:
        """Let workers that are still at an earlier iteration stay with it: torch would give its batches to this one."""
        running = None if self._running is None else self._running()
        if running is not None and getgeneratorstate(running) != GEN_CLOSED:
            self._iterator = None

    def _deliver(self, batches: Iterator[Batch], epoch: Epoch) -> Generator[Any, None, None]:
        number, start, order, _, pending = epoch
        count, state = len(order), self.__dict__  # torch looks at each attribute that is set, for a microsecond
        for index, batch in enumerate(batches, start + 1):
            state["_progress"] = (number, index, pending) if index < count else (number + 1, 0, ())
            if pending:
                pending.popleft()
            yield batch
        if start >= count:
            state["_progress"] = number + 1, 0, ()

    def __repr__(self) -> str:
        said = self._described()
        try:
            shapes = shapes_of(self.dataset.first_batch())
        except Exception as error:  # whatever a transform or a buffer that is closed may raise: this only tells
            return f"<{said}, of which none can be looked at: {error}>"
        width = max(map(len, shapes), default=0)
        return "\n".join([f"<{said}, such as", *(f"  {name:<{width}}  {what}" for name, what in shapes.items())]) + ">"

    def _repr_html_(self) -> str:
        try:
            shapes = shapes_of(self.dataset.first_batch())
        except Exception as error:  # as for repr
            return heading(f"{self._described()}, of which none can be looked at: {error}")
        return heading(self._described()) + table(("entry", "such as"), shapes.items())

    def _described(self) -> str:
        order = self.sampler.of_this_rank()
        return f"{type(self).__name__}: {len(order)} batches of {order.batch_size} of {order.num_samples} samples"

    @property
    def epoch(self) -> int:
        """The epoch of the next iteration."""
        return self.sampler.epoch

    @property
    def seed(self) -> int:
        """The seed of the order, given or drawn."""
        return self.sampler.order.seed

    def set_epoch(self, epoch: int) -> None:
        """Let the next iteration be this epoch, from its first batch on."""
        self.sampler.go_to(epoch)
        self._progress = self.sampler.epoch, 0, ()

    # --- checkpoints ---

    def state_dict(self) -> dict[str, Any]:
        """Where the running (or last) iteration is: from it, another loader of the same data goes on exactly.

        It holds plain numbers, strings, lists and dicts, and tensors where there are priorities, so that
        ``torch.load`` reads it by default; without priorities it is JSON too.

        What workers have read ahead is not counted: the next batch is the one after the last that was delivered. Ranks
        that are at the same batch have the same state, so one checkpoint does for all; but priorities are of each rank.
        """
        (epoch, batch, pending), sampler = self._progress, self.sampler
        state = {"epoch": epoch, "batch": batch, "seed": self.seed} | sampler.settings()
        if (priorities := sampler.options.sampler) is not None:
            state["sampler"] = priorities.state_dict()
            state["pending"] = [[torch.tensor(one.samples), torch.tensor(one.weights), one.first] for one in pending]
        state["normalize"] = to_state(self.dataset.samples.normalized)
        if sampler.is_live:
            state["episodes"] = [list(pair) for pair in sampler.numbering.bounds]
            state["live_samples"] = len(sampler.numbering)
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next iteration begin with the batch after the last one delivered when the state was taken.

        With ``refresh="epoch"`` the rest of that epoch has the episodes that it had. Fields are normalized with the
        statistics that they were normalized with before, whatever the buffer holds by now. NumPy arrays and numbers in
        the state are taken as well.

        Raises:
            FieldError: the state is of a loader over other data or with other settings.
        """
        sampler, settings = self.sampler, self.sampler.settings()
        for name, value in settings.items():
            if name in state and state[name] != value:
                raise FieldError(
                    f"the state was taken with {name}={state[name]}, this loader has {value}; resume with the "
                    "same data and settings"
                )
        if missing := sorted(set(self.state_dict()) - set(state)):
            raise FieldError(f"the state has no entry {missing[0]!r}; pass what state_dict() returned")
        self._normalize_as(from_state(state["normalize"]))
        seed, epoch, batch = int(state["seed"]), int(state["epoch"]), int(state["batch"])
        pending: list[PriorityDraw] = []
        if sampler.options.sampler is not None:
            sampler.options.sampler.load_state_dict(state["sampler"])
            for taken, weights, first in state["pending"]:
                samples = as_array(taken)
                pending.append(
                    PriorityDraw(samples, seed, epoch, int(first), True, weights=as_array(weights), names=samples)
                )
        within = None
        if sampler.is_live and batch:
            within = tuple((int(first), int(end)) for first, end in state["episodes"]), int(state["live_samples"])
        sampler.resume(seed, epoch, batch, pending, within)
        self._progress = epoch, batch, deque(pending)

    def _normalize_as(self, before: Resolved | None) -> None:
        """Normalize with statistics of an earlier loader.

        Raises:
            FieldError: they are of other fields.
        """
        mine = self.dataset.samples.normalized
        if sorted(before or ()) != sorted(mine or ()):
            raise FieldError(
                f"the state was taken with normalize={sorted(before or ())}, this loader has {sorted(mine or ())}; "
                "resume with the same settings"
            )
        if before is not None and to_state(before) != to_state(mine):
            self.dataset.samples.normalize_with(before)
            self._iterator = None  # persistent workers have the others
