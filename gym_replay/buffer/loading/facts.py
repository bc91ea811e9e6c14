"""What is known of each episode: its meta fields, and what follows from its record and its steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from gym_replay.buffer.loading.where import Mask, Where
from gym_replay.buffer.storage.reader import Snapshot

_ROWS_AT_ONCE = 1 << 20


class EpisodeFacts(Mapping[str, npt.NDArray[Any]]):
    """Values of all episodes of some snapshots of one schema by name, ``(episodes, *shape)``, read when asked for.

    The meta fields are there under their names, and where no meta field has the name:

    * ``index`` (as in ``buffer.episode(index)``), ``id`` (within its buffer) and ``length`` (T), int64;
    * ``complete`` (not cut by a reset or a close) and ``has_final`` (the last observation is there), bool;
    * ``terminated`` and ``truncated``: of the last step, where there is such a field of single booleans;
    * ``episode_return``: the sum of the rewards, where ``reward`` is a field of single numbers.

    Args:
        parts: the snapshots.

    Example:
        >>> facts = EpisodeFacts(buffer.snapshots())  # doctest: +SKIP
        >>> facts["length"]  # doctest: +SKIP
        array([12, 9, 31])
    """

    def __init__(self, parts: Sequence[Snapshot]) -> None:
        self._parts = parts
        self._known: dict[str, npt.NDArray[Any]] = {}
        metadata = parts[0].metadata
        self._reads: dict[str, Callable[[Snapshot], npt.NDArray[Any]]] = {
            "index": lambda part: np.arange(len(part)),
            "id": lambda part: part.ids,
            "length": lambda part: part.lengths,
            "complete": lambda part: part.complete,
            "has_final": lambda part: part.has_final,
        }
        for name in ("terminated", "truncated"):
            info = metadata.fields.get(name)
            if info is not None and not info.ragged and info.dtype.kind == "b" and info.shape == ():
                self._reads[name] = partial(_last_step, name)
        reward = metadata.fields.get("reward")
        if reward is not None and not reward.ragged and reward.shape == ():
            self._reads["episode_return"] = _returns
        for name in metadata.meta_fields:
            self._reads[name] = partial(_meta, name)

    @property
    def count(self) -> int:
        """How many episodes there are."""
        return sum(len(part) for part in self._parts)

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        if name not in self._known:
            read = self._reads[name]
            values = np.concatenate([read(part) for part in self._parts])
            is_index = name == "index" and name not in self._parts[0].metadata.meta_fields
            self._known[name] = np.arange(len(values)) if is_index else values
        return self._known[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._reads)

    def __len__(self) -> int:
        return len(self._reads)

    def where(self, condition: str) -> Mask:
        """Which episodes meet a condition, bool ``(episodes,)``; see :class:`Where`.

        Raises:
            FieldError: it is no condition on these facts.
        """
        return Where(condition).mask(self, self.count)


def _meta(name: str, part: Snapshot) -> npt.NDArray[Any]:
    return part.meta(name)


def _last_step(name: str, part: Snapshot) -> npt.NDArray[Any]:
    """A field's value at the last transition of each episode."""
    values: npt.NDArray[Any] = part.column(name)[part.starts + part.lengths - 1]
    return values


def _returns(part: Snapshot) -> npt.NDArray[np.float64]:
    """The sum of each episode's rewards, one after another in float64, as a recorder adds them up."""
    sums = np.zeros(len(part))
    rewards, edges = part.column("reward"), np.concatenate(([0], np.cumsum(part.lengths)))
    first = 0
    while first < len(part):
        last = max(int(np.searchsorted(edges, edges[first] + _ROWS_AT_ONCE, side="right")) - 1, first + 1)
        lengths = part.lengths[first:last]
        inside = np.repeat(part.starts[first:last] - (edges[first:last] - edges[first]), lengths)
        rows = inside + np.arange(len(inside))
        sums[first:last] = np.bincount(np.repeat(np.arange(last - first), lengths), rewards[rows], last - first)
        first = last
    return sums
