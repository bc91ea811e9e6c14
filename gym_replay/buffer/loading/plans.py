"""What one sample is: index arithmetic over the starts and lengths of episodes. Sees arrays, never a buffer.

A sample is an anchor: a step t of an episode of T transitions. Episodes are given in a fixed order, and the anchors
of one episode have consecutive sample numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from gym_replay.buffer.loading.lookup import Lookup

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Anchors:
    """Numbers the samples of a set of episodes.

    Args:
        counts: int64 ``(episodes,)``: how many samples each episode has.
        kept: where only some samples count, their numbers among all of them, ascending.

    Example:
        >>> Anchors.of(np.array([2, 3])).locate(np.array([1, 2]))
        (array([0, 1]), array([1, 0]))
    """

    offsets: Ints
    kept: Ints | None = None

    @classmethod
    def of(cls, counts: Ints) -> Anchors:
        """All samples of episodes with so many samples each."""
        return cls(np.concatenate((np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64))))

    def keep(self, mask: Bools) -> Anchors:
        """Only the samples for which ``mask``, one entry per sample, is True."""
        kept = np.flatnonzero(mask)
        return Anchors(self.offsets, kept if self.kept is None else self.kept[kept])

    def __len__(self) -> int:
        return int(self.offsets[-1]) if self.kept is None else len(self.kept)

    def locate(self, samples: Ints) -> tuple[Ints, Ints]:
        """The episode (its place in the given order) and the step of each sample."""
        if self.kept is not None:
            samples = self.kept[samples]
        episodes = self._lookup.find(samples)
        return episodes, samples - self.offsets.take(episodes)

    @cached_property
    def _lookup(self) -> Lookup:
        return Lookup(self.offsets)

    def first_sample(self, episode: int) -> int:
        """The number of the first sample that belongs to this episode or a later one."""
        flat = int(self.offsets[episode])
        return flat if self.kept is None else int(np.searchsorted(self.kept, flat))


def timestep_anchors(lengths: Ints) -> Anchors:
    """Every transition is a sample."""
    return Anchors.of(lengths)


def trajectory_anchors(lengths: Ints) -> Anchors:
    """Every episode is one sample."""
    return Anchors.of(np.ones(len(lengths), np.int64))


def last_rows(lengths: Ints, has_final: Bools) -> Ints:
    """The last row of each episode, counted from its first, that holds something recorded: T or T-1."""
    last: Ints = lengths - 1 + has_final
    return last


def n_step_anchors(lengths: Ints, has_final: Bools) -> Anchors:
    """Every step with a recorded row after it is a sample: T of them, or T-1 where the last observation is missing."""
    return Anchors.of(last_rows(lengths, has_final))


def n_step_lengths(steps: Ints, last: Ints, n_steps: int) -> Ints:
    """How many of ``n_steps`` steps from each step stay in the episode, whose last recorded row is ``last``."""
    lengths: Ints = np.minimum(n_steps, last - steps)
    return lengths


def forward_rows(first: Ints, valid: Ints, width: int) -> tuple[Ints, Bools]:
    """Rows ``first .. first + width`` of each sample, of which ``valid`` (at least 1) exist.

    Returns:
        Rows ``(samples, width)``, those past the end replaced by the last one that exists, and a mask that is True
        where the row exists.
    """
    steps = np.arange(width, dtype=np.int64)
    mask = steps < valid[:, None]
    return first[:, None] + np.minimum(steps, valid[:, None] - 1), mask
