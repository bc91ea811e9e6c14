"""Which episodes are meant: by index, mask, function, condition, the values that each has, or divided at random."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, TypeAlias, overload

import numpy as np
import numpy.typing as npt

from gym_replay.buffer.loading.order import mixed
from gym_replay.buffer.loading.where import Where
from gym_replay.buffer.storage.labels import LABEL, labels_of
from gym_replay.buffer.storage.reader import HasSnapshots, Snapshot, snapshots_of
from gym_replay.errors import FieldError
from gym_replay.notices import did_you_mean
from gym_replay.schema.arguments import checked_integer
from gym_replay.schema.arrays import Array, Bools, Floats, Ints
from gym_replay.schema.fields import to_array

Condition: TypeAlias = Any | Collection[Any] | Callable[[Array], Bools]
"""A value to equal, a set, list or tuple of values to be among, or a function of the values that gives a mask."""

Episodes: TypeAlias = int | str | slice | Collection[int] | Ints | Bools | Callable[[Mapping[str, Array]], Bools]
"""Which episodes: indices, a mask over all of them, a condition such as ``"length > 100"``, or a function of their
values by name that gives a mask."""

ROWS_AT_ONCE = 1 << 20
_BITS = 32


class EpisodeValues(Mapping[str, Array]):
    """Values of all episodes of some snapshots of one schema by name, ``(episodes, *shape)``, read when asked for.

    The meta fields are there under their names, and where no meta field has the name:

    * ``index`` (as in ``buffer.episode(index)``), ``id`` (within its buffer) and ``length`` (T), int64;
    * ``complete`` (not cut by a reset or a close) and ``has_final`` (the last observation is there), bool;
    * ``label``: what somebody who looked at the episodes says of them (``labels.json``), else an empty string;
    * ``terminated`` and ``truncated``: of the last step, where there is such a field of single booleans;
    * ``episode_return``: the sum of the rewards, where ``reward`` is a field of single numbers.

    Args:
        parts: the snapshots.

    Attributes:
        meta_fields: the declarations of the meta fields.

    Example:
        >>> values = EpisodeValues(buffer.snapshots())  # doctest: +SKIP
        >>> values["length"]  # doctest: +SKIP
        array([12, 9, 31])
    """

    def __init__(self, parts: Sequence[Snapshot]) -> None:
        self._parts = parts
        self._known: dict[str, Array] = {}
        fields, self.meta_fields = parts[0].metadata.fields, parts[0].metadata.meta_fields
        single = {name: info.dtype.kind for name, info in fields.items() if not info.ragged and info.shape == ()}
        names = ["index", "id", "length", "complete", "has_final", LABEL]
        names += [name for name in ("terminated", "truncated") if single.get(name) == "b"]
        names += ["episode_return"] if "reward" in single else []
        self._names = list(dict.fromkeys((*names, *self.meta_fields)))

    @property
    def count(self) -> int:
        """How many episodes there are."""
        return sum(len(part) for part in self._parts)

    def __getitem__(self, name: str) -> Array:
        if name not in self._names:
            raise FieldError(f"episodes: there are no values {name!r}{did_you_mean(name, self._names)}")
        if name not in self._known:
            self._known[name] = np.concatenate([self._read(name, part) for part in self._parts])
            if name == "index" and name not in self.meta_fields:
                self._known[name] = np.arange(self.count)
        return self._known[name]

    def of(self, name: str, index: Ints) -> Array:
        """The values of some episodes, at least one, by their ascending indices: those of the others are not read."""
        if name in self._known:
            return self._known[name][index]
        firsts = np.cumsum([0, *map(len, self._parts)])
        cuts = np.searchsorted(index, firsts)
        mine = [index[low:high] - first for low, high, first in zip(cuts[:-1], cuts[1:], firsts, strict=False)]
        return np.concatenate(
            [self._read(name, part.only(own)) for part, own in zip(self._parts, mine, strict=True) if len(own)]
        )

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def forget(self, name: str) -> None:
        """Read these values anew when they are asked for next."""
        self._known.pop(name, None)

    def _read(self, name: str, part: Snapshot) -> Array:
        if name == LABEL and (name not in self.meta_fields or self.meta_fields[name].is_text):
            return labels_of(part)
        if name in self.meta_fields:
            return part.meta(name)
        part.require_up_to_date(["reward" if name == "episode_return" else name])
        if name == "episode_return":
            return _returns(part)
        if name in ("terminated", "truncated"):
            last: Array = part.column(name)[part.starts + part.lengths - 1]
            return last
        if name == "length":
            return part.lengths
        return part.ids if name in ("id", "index") else getattr(part, name)


def _returns(part: Snapshot) -> Floats:
    """The sum of each episode's rewards, one after another in float64, as a recorder adds them up."""
    sums = [
        np.bincount(np.repeat(np.arange(len(lengths)), lengths), rewards, len(lengths))
        for lengths, rewards in in_pieces(part, "reward")
    ]
    return np.concatenate([np.zeros(0), *sums])


def in_pieces(part: Snapshot, name: str) -> Iterator[tuple[Ints, Array]]:
    """A field's values at the T steps of each episode, some episodes at a time: their lengths, and the values."""
    column, edges = part.column(name), np.concatenate(([0], np.cumsum(part.lengths)))
    low = 0
    while low < len(part):
        high = max(int(np.searchsorted(edges, edges[low] + ROWS_AT_ONCE, side="right")) - 1, low + 1)
        lengths = part.lengths[low:high]
        rows = np.repeat(part.starts[low:high] - edges[low:high], lengths) + np.arange(edges[low], edges[high])
        yield lengths, column[rows]
        low = high


def selected(
    values: EpisodeValues, episodes: Episodes | None = None, filter_meta: Mapping[str, Condition] | None = None
) -> Bools:
    """Which episodes meet all conditions, bool ``(episodes,)``.

    Args:
        values: of all episodes.
        episodes: which of them; None for all.
        filter_meta: conditions on meta fields, and on what else ``values`` has, such as ``length``.

    Raises:
        FieldError: it is no selection, names an episode twice, or a condition does not fit its meta field.
        IndexError: there is no such episode.
    """
    mask = np.ones(values.count, np.bool_) if episodes is None else _meant(episodes, values)
    for name, condition in (filter_meta or {}).items():
        if name not in values:
            raise FieldError(f"filter_meta: unknown meta field {name!r}{did_you_mean(name, values)}")
        mask = mask & matches(values[name], condition, name)
    return mask


def _meant(episodes: Any, values: EpisodeValues) -> Bools:
    count = values.count
    mask = np.zeros(count, np.bool_)
    if isinstance(episodes, str):
        return Where(episodes).mask(values, count)
    if isinstance(episodes, slice):
        mask[episodes] = True
        return mask
    if callable(episodes):
        return _checked_mask("episodes: expected the function to give", episodes(values), count)
    array = np.atleast_1d(np.asarray(sorted(episodes) if isinstance(episodes, (set, frozenset)) else episodes))
    if array.ndim != 1 or (array.size and array.dtype.kind not in "biu"):
        raise FieldError("episodes: expected an index, indices, a slice, a mask, or a function of the episodes' values")
    if array.dtype == np.bool_:
        if len(array) != count:
            raise FieldError(f"episodes: expected a mask over {count} episodes, got one over {len(array)}")
        return array
    if array.size and (int(array.min()) < -count or int(array.max()) >= count):
        raise IndexError(f"episodes {episodes}: there are {count}")
    mask[array.astype(np.int64)] = True
    if mask.sum() != array.size:
        raise FieldError("episodes: an episode is named twice")
    return mask


def _checked_mask(expected: str, given: Any, count: int) -> Bools:
    mask = np.asarray(given)
    if mask.dtype != np.bool_ or mask.shape != (count,):
        raise FieldError(f"{expected} a boolean mask of shape ({count},), got {mask.dtype} of shape {mask.shape}")
    return mask


def matches(values: Array, condition: Condition, name: str) -> Bools:
    """Which of ``values``, one per row of the first axis, meet a condition.

    Raises:
        FieldError: a function gave no mask, or the condition does not fit the values.
    """
    if callable(condition):
        return _checked_mask(f"the condition on {name!r}: expected", condition(values), len(values))
    is_set = isinstance(condition, (set, frozenset))
    if is_set and values.ndim > 1:
        raise FieldError(
            f"the condition on {name!r}: a set goes with single values, not with shape {values.shape[1:]}; give a "
            "function that returns a mask"
        )
    if is_set or (isinstance(condition, (list, tuple, range)) and values.ndim == 1):
        if values.dtype == object:
            return np.fromiter((value in condition for value in values), np.bool_, len(values))
        if len(condition) == 0:
            return np.zeros(len(values), np.bool_)
        return np.isin(values, _as_compared(to_array(list(condition), name), values))
    if values.dtype == object:
        return np.fromiter((value == condition for value in values), np.bool_, len(values))
    wanted = _as_compared(to_array(condition, name), values)
    if wanted.shape != values.shape[1:] and wanted.size != 1:
        raise FieldError(f"the condition on {name!r}: expected shape {values.shape[1:]}, got {wanted.shape}")
    equal: Bools = (values == wanted).reshape(len(values), -1).all(axis=1)
    return equal


def _as_compared(wanted: Array, values: Array) -> Array:
    """What values are compared with: in a float field's own precision, so that the 0.1 that was stored is 0.1."""
    return wanted.astype(values.dtype) if values.dtype.kind == "f" else wanted


# --- divided at random ---


@overload
def split(
    buffer: HasSnapshots, fractions: Mapping[str, float], seed: int = 0, *, episodes: Episodes | None = None
) -> dict[str, Ints]: ...
@overload
def split(
    buffer: HasSnapshots, fractions: Sequence[float], seed: int = 0, *, episodes: Episodes | None = None
) -> tuple[Ints, ...]: ...
def split(
    buffer: HasSnapshots,
    fractions: Mapping[str, float] | Sequence[float],
    seed: int = 0,
    *,
    episodes: Episodes | None = None,
) -> dict[str, Ints] | tuple[Ints, ...]:
    """Divide the episodes into subsets, at random.

    No episode is in two subsets, and each that is chosen is in one, so that no step of a validation episode is ever
    trained on.

    Where an episode goes depends on the seed, the fractions, and its id (in a concatenation also on the index of its
    buffer), and on nothing else. So an episode stays in its subset when others are appended, evicted or deleted, and
    when buffers are added at the end of a concatenation. For this, sizes are not rounded to the nearest: of n episodes
    with consecutive ids, a subset with fraction f has f * n of them up to a few (at most ``2 + log2(n)``, mostly less
    than 1). With fewer than about ``2 / f`` episodes it may have none.

    Args:
        buffer: a ReplayBuffer or ConcatReplayBuffer.
        fractions: how much each subset gets, by name or in order; they add up to 1.
        seed: any integer from 0 on; other seeds give other divisions.
        episodes: which episodes are divided: indices, a slice, a mask, a condition such as ``"label == 'good'"``, or a
            function of the values of all episodes; None for all. Which subset an episode is in does not depend on it.

    Returns:
        For names a dict, else a tuple: the indices of the episodes of each subset, int64, ascending. An index is the
        episode's index among those live now, as in ``buffer.episode(index)``.

    Raises:
        FieldError: the fractions are negative, not finite, or do not add up to 1, the seed is negative, or the
            condition is none.
        IndexError: there is no such episode.

    Example:
        >>> train, valid = split(buffer, (0.9, 0.1), seed=0)  # doctest: +SKIP
        >>> subsets = split(buffer, {"train": 0.8, "valid": 0.1, "test": 0.1})  # doctest: +SKIP
    """
    if isinstance(fractions, (int, float, np.number)):
        rest = f"({fractions}, {1 - fractions:g})" if 0 < fractions < 1 else "(0.8, 0.2)"
        raise FieldError(f"fractions={fractions}: expected how much each subset gets, such as {rest}")
    values = list(fractions.values()) if isinstance(fractions, Mapping) else list(fractions)
    try:
        shares = np.array(values, np.float64)
    except (TypeError, ValueError):
        raise FieldError(f"fractions={fractions!r}: expected numbers") from None
    if shares.ndim != 1 or not len(shares) or not np.isfinite(shares).all() or (shares < 0).any():
        raise FieldError(f"fractions={fractions!r}: expected at least one finite number from 0 on")
    if abs(shares.sum() - 1) > 1e-6:
        raise FieldError(f"fractions={fractions!r}: expected a sum of 1, got {shares.sum():g}")
    seed = checked_integer("seed", seed)
    # In the buffer's order of episodes.
    parts = snapshots_of(buffer)
    chances = [chances_of(part.ids, number, seed) for number, part in enumerate(parts)]
    edges = np.cumsum(shares)[:-1]
    subset = np.searchsorted(edges, np.concatenate(chances), side="right") if chances else np.empty(0, np.int64)
    # A fraction of zero at the end is not reached by rounding of the sum before it.
    last = int(np.flatnonzero(shares)[-1])
    subset = np.minimum(subset, last)
    if episodes is not None:
        subset[~selected(EpisodeValues(parts), episodes)] = -1
    indices = tuple(np.flatnonzero(subset == number).astype(np.int64) for number in range(len(shares)))
    return dict(zip(fractions, indices, strict=True)) if isinstance(fractions, Mapping) else indices


def chances_of(ids: Ints, part: int, seed: int) -> Floats:
    """Return a number in [0, 1) for each episode: random, and spread evenly over consecutive ids.

    It is the base-2 radical inverse (J. van der Corput, 1935) of the id with A. B. Owen's nested uniform scrambling
    ("Randomly Permuted (t,m,s)-Nets and (t,s)-Sequences", 1995). For parts after the first it is rotated by the
    like number of the part, so that the first episodes of many small buffers are spread as well.
    """
    keys = np.random.SeedSequence(seed, spawn_key=(0x73706C74,)).generate_state(2, np.uint64)
    chances = _scrambled(ids.astype(np.uint64), keys[0])
    if part:
        chances += _scrambled(np.array([part], np.uint64), keys[1])[0]
    return chances % 1.0


def _scrambled(numbers: npt.NDArray[np.uint64], key: np.uint64) -> Floats:
    """Return the scrambled radical inverses of ``numbers``, which have 32 bits (higher ones choose the scrambling)."""
    chances = np.zeros(len(numbers))
    one = np.uint64(1)
    seeds = mixed((numbers >> np.uint64(_BITS)) + key)
    # Of a digit, whether it is flipped depends on all before it: these are the low bits of the number.
    prefix = np.zeros(len(numbers), np.uint64)
    for level in range(_BITS):
        digit = (numbers >> np.uint64(level)) & one
        flips = mixed(prefix + np.uint64(level << _BITS) + seeds) & one
        chances += (digit ^ flips) * 2.0 ** -(level + 1)
        prefix |= digit << np.uint64(level)
    return chances
