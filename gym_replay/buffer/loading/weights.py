"""Sampling with replacement, uniformly or by weights of episodes and datasets. Sees arrays, never a buffer."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from gym_replay.buffer.loading.order import Ints, Order, uniforms
from gym_replay.errors import FieldError

Floats = npt.NDArray[np.float64]
_EPISODE, _SAMPLE = 11, 12


@dataclass(frozen=True, eq=False)
class ReplacementOrder(Order):
    """The batches of one rank, each sample drawn anew: an order in which a sample may come twice, or never.

    Every batch has ``batch_size`` samples and every rank the same number of batches: ``num_draws`` is rounded up to
    full batches on all ranks. What is drawn at a position is a function of (seed, epoch, position), so an epoch resumes
    anywhere, and which samples are in a global batch does not depend on the world size.

    Args:
        num_samples: the draws of an epoch, before they are rounded up.
        offsets: int64 ``(episodes + 1,)``: the first sample of each episode, and the number of samples.
        cumulative: float64 ``(episodes,)``: the probabilities of the episodes, added up; None draws uniformly from
            all samples.

    Example:
        >>> order = ReplacementOrder(6, 4, seed=1, offsets=np.array([0, 2, 4]), cumulative=np.array([0.0, 1.0]))
        >>> [len(batch) for batch in order.batches(epoch=0)]
        [4, 4]
        >>> all(sample in (2, 3) for batch in order.batches(epoch=0) for sample in batch)
        True
    """

    offsets: Ints = field(default_factory=lambda: np.zeros(1, np.int64))
    cumulative: Floats | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        together = self.batch_size * self.world_size
        object.__setattr__(self, "num_samples", -(-self.num_samples // together) * together)

    def visit(self, positions: Ints, epoch: int) -> Ints:
        chance = uniforms(positions, self.seed, epoch, (_SAMPLE,))
        if self.cumulative is None:
            anywhere: Ints = (chance * self.offsets[-1]).astype(np.int64)
            return anywhere
        which = uniforms(positions, self.seed, epoch, (_EPISODE,)) * self.cumulative[-1]
        # From the right, so that an episode of weight zero, whose sum is that of the one before, is never met.
        episodes = np.searchsorted(self.cumulative, which, side="right")
        first = self.offsets[episodes]
        samples: Ints = first + (chance * (self.offsets[episodes + 1] - first)).astype(np.int64)
        return samples


def cumulative_weights(
    counts: Ints,
    parts: Ints,
    *,
    episode_weights: Floats | None = None,
    buffer_weights: Floats | None = None,
) -> Floats:
    """Return the probabilities of the episodes, added up.

    A sample is drawn in three steps: a buffer in proportion to ``buffer_weights``, one of its episodes in proportion
    to ``episode_weights``, one of the episode's samples uniformly. Where ``buffer_weights`` are missing, episodes are
    drawn from all buffers at once; where ``episode_weights`` are, uniformly from the samples of the buffer.

    Args:
        counts: int64 ``(episodes,)``: samples of each episode; one without samples is never drawn.
        parts: int64 ``(episodes,)``: which buffer each is in, ascending.
        episode_weights: float64 ``(episodes,)``, from 0 on.
        buffer_weights: float64 ``(buffers,)``, from 0 on.

    Raises:
        FieldError: a weight is negative or not finite, or no episode that has samples has a weight.
    """
    weights = counts.astype(np.float64)
    if episode_weights is not None:
        check_weights("weights", episode_weights, len(counts))
        weights = np.where(counts > 0, episode_weights, 0.0)
    if buffer_weights is not None:
        check_weights("buffer_weights", buffer_weights, len(buffer_weights))
        sums = np.bincount(parts, weights, minlength=len(buffer_weights))
        if empty := np.flatnonzero((buffer_weights > 0) & (sums == 0)).tolist():
            raise FieldError(
                f"buffer_weights: buffer {empty[0]} has weight {buffer_weights[empty[0]]:g}, but no sample of a weight "
                "above 0; leave the buffer out, or give it weight 0"
            )
        scale = np.divide(buffer_weights, sums, out=np.zeros(len(sums)), where=sums > 0)
        weights = weights * scale[parts]
    total = np.cumsum(weights)
    if len(total) == 0 or not total[-1] > 0:
        raise FieldError("weights: no selected episode that has samples has a weight above 0")
    scaled: Floats = total / total[-1]
    return scaled


def check_weights(name: str, weights: Floats, count: int) -> None:
    """Refuse what cannot be weights.

    Raises:
        FieldError: of another shape, negative, or not finite.
    """
    if weights.shape != (count,):
        raise FieldError(f"{name}: expected {count} weights, shape ({count},), got shape {weights.shape}")
    if bad := np.flatnonzero(~(np.isfinite(weights) & (weights >= 0))).tolist():
        raise FieldError(f"{name}: expected finite weights from 0 on, got {weights[bad[0]]} at {bad[0]}")
