"""Storing without a context, as code written for memmap-replay-buffer does: episodes end by a call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np

from gym_replay.buffer import open_episode
from gym_replay.buffer.changes import Changeable
from gym_replay.errors import EpisodeStateError, FieldError
from gym_replay.notices import did_you_mean

_T = TypeVar("_T", open_episode.OpenEpisode, open_episode.OpenBlock)


class Stepwise(Changeable):
    """A buffer whose episodes may be opened by the first value that is stored, and end with :meth:`advance_episode`.

    In code of your own, use ``one_episode`` and ``batched_episode``: an exception inside discards what is open.
    """

    def encoders(self) -> open_episode.Encoders:
        """The encoders of the present schema."""
        raise NotImplementedError

    @property
    def episode_index(self) -> int:
        """How many episodes were ever stored, of a buffer with ``max_episodes`` modulo that number."""
        snapshot = self.snapshots()[0]
        stored, most = snapshot.counters.next, self.metadata.max_episodes
        return stored if most is None else stored % most

    def opened(self, holder: _T) -> _T:
        """Let what was opened outside of a context be what is stored to."""
        self.slot.require_openable()
        holder.__enter__()
        holder.is_implicit = True
        return holder

    def open_block_for(self, values: Mapping[str, Any]) -> open_episode.OpenBlock:
        """As many episodes as there are values of each field.

        Raises:
            FieldError: there is none, or it has no axis of episodes.
        """
        first = next(iter(values.values()), None)
        if first is None or not hasattr(first, "__len__") or np.ndim(first) == 0:
            raise FieldError("store_batch: expected values with a first axis over the episodes, got none")
        return self.opened(open_episode.OpenBlock(self, len(first), {}))

    def advance_episode(self, batch_size: int = 1) -> None:
        """End the episode, or the episodes, that ``store`` or ``store_batch`` opened outside of a context.

        Without a transition nothing is stored: an episode has at least one.

        Args:
            batch_size: how many are open.

        Raises:
            EpisodeStateError: another number of them is open, or they are those of a context, which its end ends.
        """
        holder = self.slot.holder
        if holder is None:
            return
        if not holder.is_implicit:
            raise EpisodeStateError("advance_episode inside of a context, at whose end the episode ends")
        size = holder.size if isinstance(holder, open_episode.OpenBlock) else 1
        if size != batch_size:
            raise EpisodeStateError(f"advance_episode({batch_size}): there are {size} episodes open")
        holder.end()

    def store_meta_batch(self, /, **meta: Any) -> None:
        """Set meta fields of the episodes that :meth:`store_batch` stores to: one value for each.

        Raises:
            FieldError: a field is unknown, or a value does not fit.
            EpisodeStateError: a single episode is open.
        """
        block = self.slot.holder
        is_new = block is None
        size = block.size if isinstance(block, open_episode.OpenBlock) else len(next(iter(meta.values()), ()))
        self.encoders().meta_columns(meta, size)
        if is_new:
            block = self.open_block_for(meta)
        if not isinstance(block, open_episode.OpenBlock):
            raise EpisodeStateError("store_meta_batch while a single episode is open")
        block.final_meta.update(meta)

    def store_meta_datapoint(self, episode_index: int, name: str, datapoint: Any) -> None:
        """Set the meta field of one stored episode: ``update(episode_index, **{name: datapoint})``."""
        if name not in self.metadata.meta_fields:
            raise FieldError(f"unknown meta field {name!r}{did_you_mean(name, self.metadata.meta_fields)}")
        self.update(episode_index, **{name: datapoint})
