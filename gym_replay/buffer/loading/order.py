"""In which order samples are visited, and what is asked of a dataset then: pure functions of sizes, seed, epoch, ranks.

Every order answers the same questions: how many batches an epoch has (``len``), what batch k of epoch e is (``draw``),
what the batches from k on are (``draws``), and which settings it is a function of (``settings``).
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from multiprocessing.context import get_spawning_popen
from multiprocessing.sharedctypes import RawArray
from typing import Any, ClassVar, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gym_replay.errors import FieldError
from gym_replay.schema.arguments import checked_integer
from gym_replay.schema.arrays import Floats, Ints


class LiveEpisodes(NamedTuple):
    """By what other processes know the samples of a live buffer, of which theirs may be another snapshot.

    Attributes:
        parts, ids: the buffer and the episode id of each sample, int64 ``(batch,)``; the draw's ``samples`` then say
            which sample of its episode each is.
        version: a number that changes with the snapshot.
        bounds: of each buffer the first episode id in the snapshot, and the one past the last.
    """

    parts: Ints
    ids: Ints
    version: int
    bounds: tuple[tuple[int, int], ...]


@dataclass(eq=False)
class Draw(Sequence[int]):
    """One batch to make. Small, so that it can be sent to a worker.

    Other libraries take it for the list of indices that a batch sampler yields: it has a length, is iterated, cut and
    lengthened. These indices are positions in the epoch, as :class:`~gym_replay.buffer.loading.epochs.EpochDataset`
    takes them.

    Whatever a dataset draws at random for a batch (goals, crops) is a function of seed, epoch and sample, and where the
    same sample may come again in an epoch, of its position too. Then a batch does not depend on the worker that makes
    it, nor on which batches were made before, and another epoch brings other values, with persistent workers too.

    Attributes:
        samples: sample numbers, int64 ``(batch,)``.
        seed, epoch: of the order.
        first: the position in the epoch, over all ranks, of the first sample.
        repeats: whether a sample may come more than once in an epoch, as in draws with replacement.
        live: of a buffer that is still written to: the episodes of the samples.
    """

    samples: Ints
    seed: int = 0
    epoch: int = 0
    first: int = 0
    repeats: bool = False
    live: LiveEpisodes | None = None

    @property
    def positions(self) -> Ints:
        """The position of each sample in the epoch, over all ranks, int64 ``(batch,)``."""
        return np.arange(self.first, self.first + len(self.samples), dtype=np.int64)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: Any) -> Any:
        found = range(self.first, self.first + len(self))[index]
        return list(found) if isinstance(index, slice) else found

    def __add__(self, more: Sequence[int]) -> list[int]:
        return [*self, *more]


@dataclass(eq=False)
class BlockDraw(Draw):
    """A batch of an order by blocks.

    Attributes:
        reads: where the batch enters a pool: the samples of the next one, as ranges from the first to before the last.
    """

    reads: Sequence[tuple[int, int]] = ()


@dataclass(eq=False)
class PriorityDraw(Draw):
    """A batch that was drawn by priority.

    Attributes:
        weights: importance weights, float64 ``(batch,)``.
        names: what the sampler knows the samples by, int64 ``(batch,)``; -1 for one that was replaced.
    """

    weights: Floats = None  # type: ignore[assignment]  # always given
    names: Ints = None  # type: ignore[assignment]


class Moment:
    """A seed and an epoch that running workers see change: they lie in memory that is shared with them.

    Forked workers have this memory from the start; those that are spawned are given it, and torch's default dtype, by
    the pickle that starts them. A copy, or any other pickle, holds the two numbers in memory of its own.
    """

    def __init__(self, seed: int = 0, epoch: int = 0) -> None:
        self._shared: Any = RawArray("Q", 2)
        self.set(seed, epoch)

    @property
    def seed(self) -> int:
        """The seed, modulo 2**64."""
        return int(self._shared[0])

    @property
    def epoch(self) -> int:
        """The epoch, from 0 on."""
        return int(self._shared[1])

    def set(self, seed: int, epoch: int) -> None:
        """Let these be the seed and the epoch, in every process that shares this."""
        self._shared[:] = int(seed) % 2**64, epoch  # NumPy's own numbers cannot be divided so

    def __reduce__(self) -> tuple[Any, ...]:
        if get_spawning_popen() is None:
            return Moment, (self.seed, self.epoch)
        import torch  # here, because orders are arithmetic, and splits of buffers too, which need no torch

        return _shared_moment, (self._shared, torch.get_default_dtype())


def _shared_moment(shared: Any, dtype: Any) -> Moment:
    """The moment of the process that starts this worker."""
    import torch

    torch.set_default_dtype(dtype)  # a forked worker has it, a spawned one would deliver float32
    moment = Moment.__new__(Moment)
    moment._shared = shared
    return moment


GOLDEN = np.uint64(0x9E3779B97F4A7C15)
"""What SplitMix64 adds to its state for each output."""

# Positions that are permuted together. One call costs some hundred microseconds however few they are, so many batches
# share it; a larger block gains little and delays the first batch.
BLOCK_POSITIONS = 1 << 16

# From a hundred samples on, six rounds cannot be told from numpy's own shuffle by the kind of statistics in the tests,
# and five can; but over the seeds, some orders of four to six samples come too often unless there are eight.
ROUNDS = 8

# Which of the sequences of a seed and epoch is for what.
_EPISODE, _SAMPLE = 11, 12

Word: TypeAlias = np.uint32 | np.uint64


@dataclass(frozen=True)
class Order:
    """The batches of sample numbers that one rank visits in an epoch.

    The positions ``0 .. num_samples - 1`` of an epoch are cut into consecutive batches, the last of which may be short,
    and global batch ``b`` goes to rank ``b % world_size``: with one rank, batch ``i`` is positions
    ``i * batch_size`` to ``(i + 1) * batch_size``. Which samples are in a global batch does not depend on the world
    size. The sample at a position is the position itself, or with ``shuffle`` its place under `permute`.

    Over all ranks every sample is visited exactly once per epoch. With ``drop_last`` every rank has the same number of
    batches and all of them are full: fewer than ``world_size * batch_size`` samples at the end are left out. Without
    it, ranks differ by at most one batch, and only the last global batch may be short.

    Nothing is tabulated: memory does not grow with ``num_samples``.

    Args:
        num_samples: how many samples there are, at least 0.
        batch_size: samples per batch, at least 1.
        shuffle: permute the samples anew in every epoch.
        seed: any integer from 0 on, also beyond 64 bits; unused without ``shuffle``.
        drop_last: leave out what would make batches short or ranks unequal.
        rank: this process, from 0 to ``world_size - 1``.
        world_size: how many processes share the samples, at least 1.

    Raises:
        FieldError: an argument is no integer, or out of range.

    Example:
        >>> order = Order(num_samples=7, batch_size=3)
        >>> [batch.tolist() for batch in order.batches(epoch=0)]
        [[0, 1, 2], [3, 4, 5], [6]]
        >>> [batch.tolist() for batch in order.batches(epoch=0, start=2)]
        [[6]]
    """

    num_samples: int
    batch_size: int
    shuffle: bool = False
    seed: int = 0
    drop_last: bool = False
    rank: int = 0
    world_size: int = 1

    repeats: ClassVar[bool] = False
    """Whether samples are drawn with replacement. Then all batches are full, and as many on each rank: the number of
    samples of an epoch is rounded up."""

    def __post_init__(self) -> None:
        for name, lowest in (("num_samples", 0), ("batch_size", 1), ("seed", 0), ("rank", 0), ("world_size", 1)):
            end = 2**63 if name == "num_samples" else math.inf
            object.__setattr__(self, name, checked_integer(name, getattr(self, name), lowest, end))
        if self.rank >= self.world_size:
            raise FieldError(
                f"rank: expected 0 <= rank < world_size = {self.world_size}, got {self.rank}; ranks count from 0"
            )
        if self.repeats:
            together = self.batch_size * self.world_size
            object.__setattr__(self, "num_samples", -(-self.num_samples // together) * together)

    def __len__(self) -> int:
        """Return the number of batches of an epoch on this rank."""
        full, rest = divmod(self.num_samples, self.batch_size)
        if self.drop_last:
            return full // self.world_size
        total = full + (rest > 0)
        return (total - self.rank + self.world_size - 1) // self.world_size

    def settings(self) -> dict[str, Any]:
        """Return what must be the same for an epoch to go on, beside the seed, as numbers and strings."""
        names = ("num_samples", "batch_size", "shuffle", "drop_last", "world_size")
        return {name: getattr(self, name) for name in names} | {"replacement": self.repeats}

    def draw(self, epoch: int, index: int) -> Draw:
        """Return batch ``index`` of ``epoch`` on this rank. Many in a row cost far less from `draws`."""
        return Draw(self._samples(epoch, index, 1), self.seed, epoch, self.first_position(index), self.repeats)

    def draws(self, epoch: int, start: int = 0) -> Iterator[Draw]:
        """Iterate over the batches ``start``, ``start + 1``, ... of ``epoch`` on this rank, as asked of a dataset."""
        for index, samples in enumerate(self.batches(epoch, start), start):
            yield Draw(samples, self.seed, epoch, self.first_position(index), self.repeats)

    def batches(self, epoch: int, start: int = 0) -> Iterator[Ints]:
        """Iterate over the sample numbers of the batches ``start``, ``start + 1``, ... of ``epoch`` on this rank.

        An interrupted epoch resumes exactly: the batches from ``start`` on are those that a full pass gives there, and
        none of the earlier ones is computed. A ``start`` past the end gives no batches.

        Each batch is ``(batch,)`` int64. Batches are disjoint parts of arrays that are never written again, so they may
        be kept or changed freely; a kept one keeps its block of about 512 KiB.
        """
        width = self._width
        count = max(1, BLOCK_POSITIONS // width)  # of batches that are computed at once
        for first in range(start, len(self), count):
            block = self._samples(epoch, first, min(count, len(self) - first))
            for begin in range(0, block.size, width):
                yield block[begin : begin + width]

    @property
    def _width(self) -> int:
        # A batch larger than the data is the data: without this bound its positions might not fit memory, or int64.
        return max(1, min(self.batch_size, self.num_samples))

    def _samples(self, epoch: int, first: int, count: int) -> Ints:
        """Return this rank's batches ``first .. first + count - 1`` end to end, ``(samples,)`` int64."""
        width = self._width
        begin = (first * self.world_size + self.rank) * width
        stride = self.world_size * width
        missing = max(0, begin + (count - 1) * stride + width - self.num_samples)
        # A stride beyond the data belongs to a single batch, where it is multiplied by zero.
        starts = begin + min(stride, self.num_samples) * np.arange(count, dtype=np.int64)
        positions = np.add.outer(starts, np.arange(width - missing if count == 1 else width, dtype=np.int64)).ravel()
        positions = positions[: count * width - missing]
        return self.visit(positions, epoch)

    def visit(self, positions: Ints, epoch: int) -> Ints:
        """Return the samples at these positions of ``epoch``, int64 of the same shape.

        This is what other orders replace; how positions are dealt to batches and ranks they share.
        """
        return permute(positions, self.num_samples, self.seed, epoch) if self.shuffle else positions

    def positions(self, index: int) -> Ints:
        """Return the positions of this rank's batch ``index``, over all ranks, ``(batch,)`` int64."""
        first = self.first_position(index)
        return np.arange(first, min(first + self._width, self.num_samples), dtype=np.int64)

    def first_position(self, index: int) -> int:
        """Return the position, over all ranks, of the first sample of this rank's batch ``index``."""
        return (index * self.world_size + self.rank) * self._width


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

    repeats: ClassVar[bool] = True

    def settings(self) -> dict[str, Any]:
        weights = None if self.cumulative is None else zlib.crc32(self.cumulative.tobytes())
        return super().settings() | {"weights": weights}

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


def permute(positions: Ints, size: int, seed: int, epoch: int, stream: tuple[int, ...] = ()) -> Ints:
    """Return the samples at ``positions`` of a pseudo-random order of ``range(size)``.

    For fixed ``size``, ``seed`` and ``epoch`` this is a bijection of ``range(size)``, and each element is computed on
    its own in constant expected time. The order is the same on every machine and NumPy version. It is made for
    statistics, not for secrecy.

    A keyed bijection of the smallest power of two that holds ``size`` is applied again for as long as the value is
    outside ``range(size)``, fewer than two times on average: cycle walking, from J. Black and P. Rogaway, "Ciphers with
    Arbitrary Finite Domains", CT-RSA 2002. Its rounds add, multiply by an odd number and fold the upper half of the
    bits onto the lower, each of which can be undone, as in A. Kensler, "Correlated Multi-Jittered Sampling", Pixar
    Technical Memo 13-01, 2013, but with a key of its own per round: ``numpy.random.SeedSequence`` draws them from
    ``seed`` and ``epoch``, so that neighbouring seeds and epochs give unrelated orders.

    Args:
        positions: int64 of any shape, each in ``0 .. size - 1``; left unchanged.
        size: how many samples there are, less than ``2**63``.
        seed: any integer from 0 on.
        epoch: any integer from 0 on.
        stream: integers from 0 on that tell one of several orders of the same seed and epoch.

    Returns:
        Sample numbers, int64, of the shape of ``positions``.

    Raises:
        IndexError: a position is outside ``range(size)``.

    Example:
        >>> sorted(permute(np.arange(5), 5, seed=0, epoch=0).tolist())
        [0, 1, 2, 3, 4]
    """
    if positions.size == 0:
        return np.empty(positions.shape, np.int64)
    lowest, highest = int(positions.min()), int(positions.max())
    if lowest < 0 or highest >= size:
        raise IndexError(f"positions: expected 0 <= position < size = {size}, got {lowest} .. {highest}")
    bits = max(1, (size - 1).bit_length())
    keys = _round_keys(seed, (epoch, *stream), bits)
    last = keys[0][0].dtype.type(size - 1)
    words = positions.astype(last.dtype).ravel()
    _mix(words, keys, bits)
    walking = np.flatnonzero(words > last)
    while walking.size:
        again = words[walking]
        _mix(again, keys, bits)
        words[walking] = again
        walking = walking[again > last]
    return words.astype(np.int64).reshape(positions.shape)


def uniforms(positions: Ints, seed: int, epoch: int, stream: tuple[int, ...] = ()) -> Floats:
    """Return a pseudo-random number in [0, 1) for each position: always the same, whoever asks for it and when.

    For fixed ``seed``, ``epoch`` and ``stream`` these are outputs of SplitMix64 (G. Steele, D. Lea and C. Flood, "Fast
    Splittable Pseudorandom Number Generators", OOPSLA 2014), numbered by position, with 53 bits each.

    Args:
        positions: int64 of any shape, of any sign.
        seed: any integer from 0 on.
        epoch: any integer from 0 on.
        stream: integers from 0 on that tell one of several sequences of the same seed and epoch.

    Returns:
        float64 of the shape of ``positions``.

    Example:
        >>> uniforms(np.arange(4), seed=0, epoch=0)[2] == uniforms(np.array([2]), seed=0, epoch=0)[0]
        np.True_
    """
    key = _stream_key(seed, (epoch, *stream))
    words = mixed(positions.astype(np.uint64) + key)
    numbers: Floats = (words >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return numbers


def mixed(counters: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return SplitMix64's output for each counter, uint64 of the same shape."""
    return finished(counters * GOLDEN)


def finished(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Apply SplitMix64's output function to its states, in place: D. Stafford's variant 13."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        words ^= words >> np.uint64(shift)
        words *= np.uint64(factor)
    words ^= words >> np.uint64(31)
    return words


@lru_cache(maxsize=64)
def _stream_key(seed: int, stream: tuple[int, ...]) -> np.uint64:
    # One entry more than an order's streams have, so that the two never share their words.
    state = np.random.SeedSequence(seed, spawn_key=(*stream, 0x756E6966)).generate_state(1, np.uint64)
    key: np.uint64 = state[0]
    return key


@lru_cache(maxsize=16)
def _round_keys(seed: int, stream: tuple[int, ...], bits: int) -> tuple[tuple[Word, Word], ...]:
    """Return an addend and an odd multiplier per round, below ``2**bits`` and in the narrowest word that holds them."""
    # 32-bit products are twice as many per vector instruction, and 64-bit ones have none at all on most machines.
    word = np.uint32 if bits <= 32 else np.uint64
    state = np.random.SeedSequence(seed, spawn_key=stream).generate_state(2 * ROUNDS, np.uint64).tolist()
    mask = 2**bits - 1
    pairs = zip(state[::2], state[1::2], strict=True)
    return tuple((word(add & mask), word((multiply | 1) & mask)) for add, multiply in pairs)


def _mix(words: NDArray[Word], keys: tuple[tuple[Word, Word], ...], bits: int) -> None:
    """Apply the keyed bijection of ``range(2**bits)`` to ``words``, in place."""
    word = words.dtype.type
    mask, half = word(2**bits - 1), word(max(1, bits // 2))
    upper = np.empty_like(words)
    for add, multiply in keys:
        words += add
        words *= multiply
        words &= mask
        np.right_shift(words, half, out=upper)
        words ^= upper


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
