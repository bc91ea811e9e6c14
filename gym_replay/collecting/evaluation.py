"""Evaluation: what the episodes of a policy returned, and how far their mean is to be trusted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from gym_replay.buffer.door import HasReferenceReturns, ReferenceReturns, normalized_score
from gym_replay.buffer.loading.selection import EpisodeValues
from gym_replay.buffer.reading import Readable
from gym_replay.errors import EmptyBufferError, FieldError
from gym_replay.schema.arrays import Array, Floats, Ints

_RESAMPLES = 10_000
_LARGEST_DRAW = 1 << 20
"""Indices that are drawn at once."""


@dataclass(frozen=True, eq=False, repr=False)
class Evaluation:
    """The returns and lengths of some episodes of a policy.

    Rewards of several values, as in multi-objective environments, make returns of several values; then the mean and all
    else that is computed of them has the shape of one reward.

    Attributes:
        returns: the sum of each episode's rewards, float64 ``(episodes, *reward_shape)``, read-only.
        lengths: T of each episode, int64 ``(episodes,)``, read-only.

    Example:
        >>> import numpy as np
        >>> Evaluation(np.array([9.0, 11.0, 13.0]), np.array([9, 11, 13]))
        Evaluation(3 episodes: return 11 (95 % interval 9 to 13), deviation 1.633, median 11, length 11)
    """

    returns: Floats
    lengths: Ints

    def __post_init__(self) -> None:
        for name, dtype in (("returns", np.float64), ("lengths", np.int64)):
            values = np.array(getattr(self, name), dtype)
            values.flags.writeable = False
            object.__setattr__(self, name, values)
        if self.lengths.ndim != 1 or len(self.lengths) < 1 or self.returns.shape[:1] != self.lengths.shape:
            raise FieldError(
                f"Evaluation: expected a return and a length of each of some episodes, got arrays of shape "
                f"{self.returns.shape} and {self.lengths.shape}"
            )

    @classmethod
    def of(cls, buffer: Readable) -> Evaluation:
        """The returns and lengths of all recorded episodes of a buffer, the oldest first.

        Raises:
            EmptyBufferError: there is no episode.
            FieldError: the buffer has neither ``episode_return`` nor rewards of single numbers.
        """
        values = EpisodeValues(buffer.snapshots())
        if not values.count:
            raise EmptyBufferError("Evaluation: the buffer has no episodes")
        return cls(values["episode_return"], values["length"])

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def mean(self) -> Any:
        """The mean return: a float, of rewards of several values an array."""
        return _plain(self.returns.mean(axis=0))

    @property
    def std(self) -> Any:
        """The standard deviation of the returns, divided by their number as ``numpy.std`` does; as :attr:`mean`."""
        return _plain(self.returns.std(axis=0))

    @property
    def median(self) -> Any:
        """The median return; as :attr:`mean`."""
        return _plain(np.median(self.returns, axis=0))

    def interval(self, confidence: float = 0.95) -> tuple[Any, Any]:
        """A bootstrap interval of the mean return.

        It is the percentile interval of Efron ("Bootstrap Methods: Another Look at the Jackknife", 1979; Efron and
        Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13), as Agarwal et al. ("Deep Reinforcement
        Learning at the Edge of the Statistical Precipice", 2021) use it: as many episodes are drawn with replacement,
        10,000 times, and the quantiles of their means are the ends. The draws come from a generator with the seed 0,
        so that the same returns always give the same interval. It is about episodes of this one policy, and says
        nothing of how training runs differ; of less than about 20 episodes it comes out too narrow.

        Args:
            confidence: the share of the means inside of the interval, between 0 and 1.

        Returns:
            Its lower and its upper end, each as :attr:`mean`; NaN for a single episode, which tells nothing of it.

        Raises:
            FieldError: the confidence is no such number.
        """
        is_number = isinstance(confidence, (int, float)) and not isinstance(confidence, bool)
        if not is_number or not 0 < confidence < 1:
            raise FieldError(f"confidence: expected a number between 0 and 1, got {confidence!r:.40}")
        if len(self) == 1:
            none = _plain(np.full(self.returns.shape[1:], np.nan))
            return none, none
        tail = (1 - confidence) / 2
        lower, upper = np.quantile(_resampled_means(self.returns), [tail, 1 - tail], axis=0)
        return _plain(lower), _plain(upper)

    def normalized_score(self, reference: ReferenceReturns | HasReferenceReturns) -> float:
        """The mean return as a score: 0 is the return of a random policy, and 100 an expert's.

        See :func:`~gym_replay.normalized_score`, which also makes scores of single returns and of an interval.

        Args:
            reference: the returns of both policies, or a buffer that has them.

        Raises:
            FieldError: one of the two is not known, or rewards have several values.

        Example:
            >>> evaluate(policy, "Hopper-v5").normalized_score(buffer)  # doctest: +SKIP
            56.1
        """
        if self.returns.ndim > 1:
            raise FieldError(
                f"normalized_score: each return has {self.returns.shape[1:]} values, and reference returns are single "
                "numbers; weigh the values yourself, and pass the sums to gym_replay.normalized_score"
            )
        return float(normalized_score(self.mean, reference))

    def __repr__(self) -> str:
        lower, upper = self.interval()
        found = f"{len(self)} episode{'s' if len(self) != 1 else ''}: return {_brief(self.mean)}"
        if len(self) > 1:
            found += f" (95 % interval {_brief(lower)} to {_brief(upper)}), deviation {_brief(self.std)}"
            found += f", median {_brief(self.median)}"
        return f"Evaluation({found}, length {_brief(self.lengths.mean())})"


def _resampled_means(values: Floats) -> Floats:
    """The mean of as many values drawn with replacement, for each of many draws: ``(draws, *shape)``."""
    generator, count = np.random.default_rng(0), len(values)
    at_once = max(_LARGEST_DRAW // values.size, 1)
    means = []
    for first in range(0, _RESAMPLES, at_once):
        drawn = generator.integers(count, size=(min(at_once, _RESAMPLES - first), count))
        means.append(values[drawn].mean(axis=1))
    return np.concatenate(means)


def _plain(value: Any) -> Any:
    """A number as Python's own, an array as it is."""
    return value if np.ndim(value) else float(value)


def _brief(value: Array | float) -> str:
    return np.array2string(np.asarray(value), formatter={"float_kind": lambda number: f"{number:.4g}"})
