"""Shuffling within groups of buffers: an order for more buffers than can be mapped at once. Sees sizes, never a buffer.

A batch of samples from anywhere in ten thousand buffers needs a map of nearly as many files for each of its fields, and
the kernel does not give a process as many. So the buffers are cut into groups that can be mapped together, and an epoch
goes from group to group.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from gym_replay.buffer.loading.order import Ints, Order, permute

_GROUPS, _INSIDE = 41, 42


def group_edges(used: Ints, parts: int, most: int, columns: int) -> Ints:
    """Cut buffers into groups whose files can be mapped together.

    Args:
        used: int64, ascending: the buffers that are read from at all.
        parts: how many there are.
        most: maps that there may be at a time.
        columns: files of a buffer that are read.

    Returns:
        int64 ``(groups + 1,)``: the first buffer of each group, and ``parts``. One group where all fit; otherwise
        groups of which two fit, since a batch may reach from one into the next. As in
        :func:`~gym_replay.buffer.storage.joined.maps_needed`, the files of a column take two maps each, and one.

    Example:
        >>> group_edges(np.arange(10), 10, most=40, columns=2)
        array([ 0,  3,  5,  8, 10])
    """
    if columns * (2 * len(used) + 1) <= most:
        return np.array([0, parts], np.int64)
    size = max(1, (most // 2 - columns) // (2 * columns))
    count = -(-len(used) // size)
    edges = used[np.arange(1, count, dtype=np.int64) * len(used) // count]
    return np.concatenate(([0], edges, [parts])).astype(np.int64)


@dataclass(frozen=True, eq=False)
class GroupOrder(Order):
    """The batches of one rank, where samples are shuffled within groups of consecutive ones, and the groups as well.

    The groups come in random order, another one in each epoch, and so do the samples of each. A batch may have the last
    samples of one group and the first of the next. All ranks are in the same group at about the same time. It is
    computed from positions, so memory does not grow with the samples, and an epoch resumes anywhere.

    How well it mixes: within a group, as ``shuffle=True`` does it over all. A batch is of one group (or two), so what
    is alike in all samples of a group does not average out within a batch.

    Args:
        bounds: int64 ``(groups + 1,)``: the first sample of each group, and ``num_samples``; ascending.

    Raises:
        ValueError: the bounds do not fit the samples.

    Example:
        >>> order = GroupOrder(10, 5, shuffle=True, seed=1, bounds=np.array([0, 5, 10]))
        >>> [sorted(batch.tolist()) for batch in order.batches(epoch=0)]
        [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    """

    bounds: Ints = field(default_factory=lambda: np.zeros(2, np.int64))

    def __post_init__(self) -> None:
        super().__post_init__()
        bounds = np.unique(self.bounds)  # groups without samples are none
        if len(bounds) == 0 or bounds[0] != 0 or bounds[-1] != self.num_samples or (np.diff(self.bounds) < 0).any():
            raise ValueError(f"bounds: expected ascending numbers from 0 to {self.num_samples}, got {self.bounds}")
        object.__setattr__(self, "bounds", bounds)

    @property
    def num_groups(self) -> int:
        """Groups with samples."""
        return len(self.bounds) - 1

    @cached_property
    def _layouts(self) -> dict[int, tuple[Ints, Ints]]:
        return {}

    def _layout(self, epoch: int) -> tuple[Ints, Ints]:
        """Which group comes at each turn of an epoch, and the position at which each turn begins."""
        if epoch not in self._layouts:
            self._layouts.clear()
            turns = permute(np.arange(self.num_groups, dtype=np.int64), self.num_groups, self.seed, epoch, (_GROUPS,))
            sizes = np.diff(self.bounds)[turns]
            self._layouts[epoch] = turns, np.concatenate((np.zeros(1, np.int64), np.cumsum(sizes)))
        return self._layouts[epoch]

    def visit(self, positions: NDArray[np.int64], epoch: int) -> NDArray[np.int64]:
        flat = positions.ravel()
        samples = np.empty(flat.shape, np.int64)
        turns, begins = self._layout(epoch)
        # Positions ascend, so each turn's are a stretch.
        begin = 0
        while begin < len(flat):
            turn = int(np.searchsorted(begins, flat[begin], side="right")) - 1
            end = int(np.searchsorted(flat, begins[turn + 1]))
            group = int(turns[turn])
            first, last = self.bounds[group : group + 2].tolist()
            inside = flat[begin:end] - begins[turn]
            samples[begin:end] = first + permute(inside, last - first, self.seed, epoch, (_INSIDE, group))
            begin = end
        return samples.reshape(positions.shape)
