"""Prioritised experience replay: samples drawn in proportion to a priority. Sees sample numbers, never a buffer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from gym_replay.buffer.loading.order import Order, PriorityDraw, uniforms
from gym_replay.errors import FieldError
from gym_replay.schema.arguments import checked_number
from gym_replay.schema.arrays import Array, Floats, Ints

_STREAM = 21


class SumTree:
    """Values under a binary tree of their sums: found by cumulative sum, and changed, many at a time in O(log n) steps.

    Sums are recomputed from below and never adjusted by differences, so rounding does not add up over time.

    Args:
        capacity: how many values, all zero at first.

    Example:
        >>> tree = SumTree(4)
        >>> tree.put(np.array([0, 2]), np.array([1.0, 3.0]))
        >>> tree.total, tree.find(np.array([0.5, 1.5, 3.9])).tolist()
        (4.0, [0, 2, 2])
    """

    def __init__(self, capacity: int) -> None:
        self._leaves = 1 << max(0, int(capacity) - 1).bit_length()
        # Node 1 is the root, node i has the children 2i and 2i + 1, and the leaves come last.
        self._sums = np.zeros(2 * self._leaves)

    @property
    def capacity(self) -> int:
        """How many values there is room for."""
        return self._leaves

    @property
    def total(self) -> float:
        """The sum of all values."""
        return float(self._sums[1])

    @property
    def values(self) -> Floats:
        """All values, float64 ``(capacity,)``; a view that is not to be written."""
        return self._sums[self._leaves :]

    def put(self, places: Ints, values: Floats) -> None:
        """Set values, ``(n,)`` each; of a place that comes twice, the later value counts."""
        if len(places) == 0:
            return
        nodes = places + self._leaves
        self._sums[nodes] = values
        if 4 * len(nodes) > self._leaves:
            self._sum_all()
            return
        while nodes[0] > 1:
            nodes = np.unique(nodes >> 1)
            self._sums[nodes] = self._sums[2 * nodes] + self._sums[2 * nodes + 1]

    def _sum_all(self) -> None:
        width = self._leaves
        while width > 1:
            level = self._sums[width : 2 * width]
            width //= 2
            np.add(level[::2], level[1::2], out=self._sums[width : 2 * width])

    def find(self, sums: Floats) -> Ints:
        """Return the place at which the values, added up from the first on, exceed each of ``sums``; int64 ``(n,)``.

        Where rounding would lead to a place whose value is zero, it is the one beside it that is not.
        """
        nodes, rest = np.ones(len(sums), np.int64), sums.astype(np.float64)
        while nodes[0] < self._leaves:
            nodes *= 2
            left = self._sums[nodes]
            right = (rest >= left) & (self._sums[nodes + 1] > 0)
            right |= left <= 0
            rest -= left * right
            nodes += right
        return nodes - self._leaves


class PrioritizedSampler:
    """Draws samples with replacement in proportion to a priority of each, for ``sampler=`` of a loader.

    This is proportional prioritisation (T. Schaul, J. Quan, I. Antonoglou, D. Silver, "Prioritized Experience Replay",
    ICLR 2016, section 3.3). With a priority p_i > 0 of each sample, ``P(i) = p_i**alpha / sum_k p_k**alpha``; a batch
    of k takes one sample from each of k equal stretches of the cumulative sum. The importance weight of a sample is
    ``(n * P(i))**-beta``, divided by the largest of the batch. A sample that was never updated has the largest priority
    seen so far (1.0 at first).

    Batches carry ``_samples``, int64 ``(batch,)``, to give to :meth:`update`, and ``_weights``, ``(batch,)`` in torch's
    default dtype. A sample whose episode was evicted between draw and reading is replaced by a live one, and has -1 in
    ``_samples``, which :meth:`update` leaves out.

    Batches are drawn before they are delivered: with workers as many as are prefetched, and to a CUDA device two. They
    do not know of the last updates yet.

    An epoch is as many batches as an epoch of all samples would have, or ``samples_per_epoch``; every rank draws from
    priorities of its own. Memory is 16 to 32 bytes per sample, at most 64 while a live buffer grows.

    Args:
        alpha: how much priorities count, from 0 (uniform) on.
        beta: how much the weights correct for it, from 0 (not at all) to 1 (fully). It can be set at any time, to be
            annealed during training.
        epsilon: added to every priority that :meth:`update` gets, so that none is zero.

    Example:
        >>> sampler = PrioritizedSampler(alpha=0.6, beta=0.4)
        >>> loader = buffer.dataloader(32, n_steps=1, sampler=sampler, seed=0)  # doctest: +SKIP
        >>> for batch in loader:  # doctest: +SKIP
        ...     errors = train(batch, batch["_weights"])
        ...     sampler.update(batch["_samples"], errors.abs())

        A ``transform`` sees both entries; one that leaves rows out leaves them out of these as well:

        >>> def only_moving(batch):
        ...     moves = batch["action"].abs().amax(-1) > 0.1
        ...     return {name: values[moves] for name, values in batch.items()}
        >>> loader = buffer.dataloader(32, n_steps=1, sampler=sampler, transform=only_moving)  # doctest: +SKIP
    """

    def __init__(self, alpha: float = 0.6, beta: float = 0.4, *, epsilon: float = 1e-6) -> None:
        self.alpha = checked_number("alpha", alpha)
        self.epsilon = checked_number("epsilon", epsilon)
        self.beta = beta
        self._largest = 1.0
        self._first = self._end = 0
        self._tree = SumTree(1)
        self._counts = np.zeros(0, np.int64)
        self._ids = np.zeros(0, np.int64)
        self._bases = np.zeros(0, np.int64)

    @property
    def beta(self) -> float:
        """How much the weights correct for the priorities."""
        return self._beta

    @beta.setter
    def beta(self, value: float) -> None:
        self._beta = checked_number("beta", value, 1)

    def __len__(self) -> int:
        """Return the number of samples that can be drawn."""
        return int(self._counts.sum())

    @property
    def max_priority(self) -> float:
        """The largest priority given so far, which a new sample gets."""
        return self._largest

    # --- the samples that there are ---

    def follow(self, ids: Ints, counts: Ints) -> None:
        """Hold priorities for the samples of these episodes: keep those of known ones, give new ones the maximum.

        A sample keeps its number for good: new episodes get numbers above all others, and those of episodes that have
        gone are not used again. Called by the loader.

        Args:
            ids: int64 ``(episodes,)``, ascending.
            counts: int64 ``(episodes,)``: how many samples each has.

        Raises:
            FieldError: a known episode has another number of samples than before.
        """
        known = np.isin(ids, self._ids, assume_unique=True)
        stays = np.isin(self._ids, ids, assume_unique=True)
        if (known.any() and not known[: int(known.sum())].all()) or (self._counts[stays] != counts[known]).any():
            raise FieldError("sampler: it has priorities of other samples; make a PrioritizedSampler for each loader")
        gone = [
            np.arange(base, base + count)
            for base, count in zip(self._bases[~stays].tolist(), self._counts[~stays].tolist(), strict=True)
        ]
        if gone:
            places = np.concatenate(gone) % self._tree.capacity
            self._tree.put(places, np.zeros(len(places)))
        added = counts[~known]
        bases = self._end + np.concatenate((np.zeros(1, np.int64), np.cumsum(added, dtype=np.int64)))
        self._ids = ids.copy()
        self._counts = counts.copy()
        self._bases = np.concatenate((self._bases[stays], bases[:-1]))
        first, end = int(self._bases[0]) if len(ids) else int(bases[-1]), int(bases[-1])
        self._reserve(first, end)
        if len(added):
            fresh = np.arange(self._end, end)
            self._tree.put(fresh % self._tree.capacity, np.full(len(fresh), self._largest**self.alpha))
        self._first, self._end = first, end

    def _reserve(self, first: int, end: int) -> None:
        """Have room for the numbers from ``first`` to ``end``, each at its remainder by the capacity."""
        if end - first <= self._tree.capacity:
            return
        # A quarter more than is needed, so that a buffer that grows does not move everything each time.
        tree = SumTree(max(end - first, 5 * self._tree.capacity // 4))
        held = np.arange(first, max(self._end, first))
        tree.put(held % tree.capacity, self._tree.values[held % self._tree.capacity])
        self._tree = tree

    def locate(self, samples: Ints) -> tuple[Ints, Ints]:
        """Return for numbers of samples their episode's place among those followed, and which of its samples each is.

        The place is -1 where the episode has gone.
        """
        places = np.searchsorted(self._bases, samples, side="right") - 1
        inside = samples - self._bases[places]
        places[(samples < self._first) | (inside >= self._counts[places])] = -1
        return places, inside

    # --- drawing and updating ---

    def draw(self, positions: Ints, seed: int, epoch: int) -> tuple[Ints, Floats]:
        """Draw a sample for each position of an epoch, from the priorities as they are now.

        Returns:
            Numbers of samples, int64 ``(batch,)``, and importance weights, float64 ``(batch,)``.

        Raises:
            FieldError: every priority is zero, which needs an ``epsilon`` of 0.
        """
        return self.pick(uniforms(positions, seed, epoch, (_STREAM,)))

    def pick(self, chances: Floats, unnumbered: int = 0) -> tuple[Ints, Floats]:
        """Draw a sample for each number from [0, 1), from the priorities as they are now.

        Args:
            chances: float64 ``(batch,)``.
            unnumbered: how many samples there are beside those that are followed; they have the largest priority so
                far, and their numbers here go on behind all others, from :attr:`end` on.

        Returns:
            Numbers of samples, int64 ``(batch,)``, and importance weights, float64 ``(batch,)``.

        Raises:
            FieldError: every priority is zero, which needs an ``epsilon`` of 0.
        """
        tree, of_new = self._tree, self._largest**self.alpha
        total = tree.total + unnumbered * of_new
        if not total > 0:
            raise FieldError("sampler: all priorities are 0; use an epsilon above 0")
        count = len(chances)
        sums = (np.arange(count) + chances) / count * total
        known = int(np.searchsorted(sums, tree.total)) if unnumbered else count  # sums ascend
        places = tree.find(sums[:known]) if known else np.zeros(0, np.int64)
        # Numbers from the first on, as they lie in the ring of leaves.
        samples: Ints = self._first + (places - self._first) % tree.capacity
        values = tree.values[places]
        if known < count:
            others = np.minimum(((sums[known:] - tree.total) / of_new).astype(np.int64), unnumbered - 1)
            samples = np.concatenate((samples, self._end + others))
            values = np.concatenate((values, np.full(count - known, of_new)))
        weights = ((len(self) + unnumbered) * (values / total)) ** -self._beta
        return samples, weights / weights.max()

    @property
    def end(self) -> int:
        """One past the largest number of a sample."""
        return self._end

    def update(self, samples: Any, priorities: Any) -> None:
        """Set the priorities of samples, such as absolute temporal-difference errors.

        Args:
            samples: ``(n,)``, the ``_samples`` of a batch. Those whose episodes have gone are left out; of one that
                comes twice, the later priority counts.
            priorities: ``(n,)``, from 0 on; tensors on any device are taken.

        Raises:
            FieldError: shapes differ, a priority is negative or not finite, or a sample was never drawn.
        """
        numbers, values = as_array(samples), as_array(priorities).astype(np.float64)
        if numbers.ndim != 1 or numbers.dtype.kind not in "iu" or values.shape != numbers.shape:
            raise FieldError(
                f"expected integer samples and priorities of one shape (n,), got {numbers.dtype} {numbers.shape} and "
                f"{values.shape}; squeeze them"
            )
        if not (np.isfinite(values) & (values >= 0)).all():
            worst = values[~(np.isfinite(values) & (values >= 0))][0]
            raise FieldError(f"priorities: expected finite numbers from 0 on, got {worst}; take the absolute value")
        if len(numbers) and not -1 <= numbers.min() <= numbers.max() < self._end:
            raise FieldError(
                f"samples: expected numbers from a batch's '_samples', below {self._end}, got {numbers.min()} .. "
                f"{numbers.max()}"
            )
        if not len(self._ids):
            return
        numbers = numbers.astype(np.int64)
        live = self.locate(numbers)[0] >= 0
        values = values[live] + self.epsilon
        if not len(values):
            return
        self._largest = max(self._largest, float(values.max()))
        self._tree.put(numbers[live] % self._tree.capacity, values**self.alpha)

    def priorities(self, samples: Any) -> Floats:
        """Return the priorities to the power of ``alpha``, float64 ``(n,)``; 0 where the episode has gone."""
        numbers = as_array(samples).astype(np.int64)
        if not len(self._ids):
            return np.zeros(len(numbers))
        gone = self.locate(numbers)[0] < 0
        return np.where(gone, 0.0, self._tree.values[numbers % self._tree.capacity])

    # --- checkpoints ---

    def state_dict(self) -> dict[str, Any]:
        """Return all there is to go on from, O(samples): numbers and tensors, which ``torch.load`` reads by default."""
        import torch

        held = np.arange(self._first, self._end)
        return {
            "alpha": self.alpha,
            "beta": self.beta,
            "epsilon": self.epsilon,
            "largest": self._largest,
            "first": self._first,
            "end": self._end,
            "ids": torch.tensor(self._ids),
            "counts": torch.tensor(self._counts),
            "bases": torch.tensor(self._bases),
            "values": torch.tensor(self._tree.values[held % self._tree.capacity]),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state_dict` returned; NumPy arrays instead of its tensors are taken too.

        Raises:
            FieldError: an entry is missing, or they do not fit one another. The sampler is then as it was.
        """
        if missing := sorted(set(PrioritizedSampler().state_dict()) - set(state)):
            raise FieldError(f"the state has no entry {missing[0]!r}; pass what state_dict() returned")
        ids, counts, bases = (as_array(state[name]).astype(np.int64) for name in ("ids", "counts", "bases"))
        values, first, end = as_array(state["values"]).astype(np.float64), int(state["first"]), int(state["end"])
        if not ids.shape == counts.shape == bases.shape or values.shape != (end - first,):
            raise FieldError(
                f"the state is damaged: expected as many ids, counts and bases, and {end - first} values, got "
                f"{ids.shape}, {counts.shape}, {bases.shape} and {values.shape}; take an earlier checkpoint"
            )
        settings = checked_number("alpha", state["alpha"]), checked_number("epsilon", state["epsilon"])
        self.beta = state["beta"]
        self.alpha, self.epsilon = settings
        self._largest, self._first, self._end = float(state["largest"]), first, end
        self._ids, self._counts, self._bases = ids, counts, bases
        self._tree = SumTree(len(values))
        self._tree.put(np.arange(self._first, self._end) % self._tree.capacity, values)


@dataclass(frozen=True, eq=False)
class PriorityOrder(Order):
    """The batches of one rank, each drawn when it is asked for, from the priorities as they are then.

    Args:
        num_samples: the draws of an epoch, before they are rounded up.
        sampler: draws the samples.
    """

    sampler: PrioritizedSampler = field(default_factory=PrioritizedSampler)

    repeats: ClassVar[bool] = True

    def settings(self) -> dict[str, Any]:
        return super().settings() | {"prioritized": True}

    def draw(self, epoch: int, index: int) -> PriorityDraw:
        samples, weights = self.sampler.draw(self.positions(index), self.seed, epoch)
        first = self.first_position(index)
        return PriorityDraw(samples, self.seed, epoch, first, True, weights=weights, names=samples)

    def draws(self, epoch: int, start: int = 0) -> Iterator[PriorityDraw]:
        for index in range(start, len(self)):
            yield self.draw(epoch, index)


def as_array(values: Any) -> Array:
    """Return the values of an array, a list or a torch tensor, which only checkpoints need to know."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = values.float() if str(values.dtype) == "torch.bfloat16" else values
    return np.asarray(values)
