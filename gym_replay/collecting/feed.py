"""What players of episodes ask and tell: which episode is next, and what became of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np

from gym_replay.collecting.request import Keep
from gym_replay.collecting.target import INDEX
from gym_replay.errors import FieldError
from gym_replay.wrappers.session import FinishedEpisode, OnEpisode


class Played(NamedTuple):
    """An episode that has ended.

    Attributes:
        number: in the collection.
        length: T.
        episode_return: the sum of its rewards; of rewards of several values that of all.
        is_kept: whether it is in the folder.
    """

    number: int
    length: int
    episode_return: float
    is_kept: bool


class Feed(Protocol):
    """Where a player's episodes come from, and what they become."""

    def next(self) -> int | None:
        """The number of an episode to play; None where there is none for now."""

    def next_of(self, place: int, count: int) -> int | None:
        """The next one that leaves ``place`` when divided by ``count``, for players that cannot choose."""

    def playing(self, lengths: Mapping[int, int]) -> None:
        """How many steps the episodes have that are being played, by number."""

    def played(self, episode: Played) -> None:
        """An episode has ended."""

    @property
    def is_over(self) -> bool:
        """Whether no episode is wanted any more, those that are being played included."""


class Player(Protocol):
    """Plays the episodes of a feed, and records them."""

    stopped: bool
    """Set by a signal handler: the player returns after the step that it is in."""

    steps: int
    """How many transitions were played."""

    def play(self, until: float) -> bool:
        """Go on until ``time.monotonic()`` is past a time; whether there is something left to play."""

    def running(self) -> dict[int, int]:
        """The episodes that are being played, and how many steps they have."""

    def close(self) -> None:
        """Commit what has ended, forget what has not, and close the environment."""


class Verdicts:
    """The recorder's ``on_episode``: asks the user's functions whether an episode is kept, and remembers.

    Args:
        keep, on_episode: as for :func:`gym_replay.collect`.

    Attributes:
        refused: the numbers of the episodes that were not kept.
        unjudged: those whose judging raised; the recorder has them committed.
    """

    def __init__(self, keep: Keep | None, on_episode: OnEpisode | None) -> None:
        self._keep, self._on_episode = keep, on_episode
        self.refused: set[int] = set()
        self.unjudged: set[int] = set()

    def __call__(self, episode: FinishedEpisode) -> Mapping[str, Any] | bool | None:
        number = int(episode.meta[INDEX]) if INDEX in episode.meta else -1
        if number < 0:  # nobody wants it
            return False
        self.unjudged.add(number)
        said = None if self._on_episode is None else self._on_episode(episode)
        is_kept = not (isinstance(said, (bool, np.bool_)) and not said)
        if is_kept and self._keep is not None:
            is_kept = bool(self._keep(episode))
        if isinstance(said, Mapping) and INDEX in said:
            raise FieldError(f"meta field {INDEX!r} is set by collect() itself")
        self.unjudged.discard(number)
        if not is_kept:
            self.refused.add(number)
            return False
        return said
