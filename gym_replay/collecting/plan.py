"""Which episodes a collection consists of, what decides each, and which are to be played next.

Episodes have indices 0, 1, 2, ... A collection that asks for N episodes, or S steps, consists of the episodes below
some M: the smallest M with which the kept episodes below it are N, or their steps S. What an episode is depends on its
index alone, so the set depends neither on how many are played at once, nor on which of them end first. Nothing here
knows of environments.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from gym_replay.errors import FieldError


def check_count(name: str, value: int) -> None:
    """Raise FieldError where an argument is not a positive integer."""
    if type(value) is not int or value < 1:
        raise FieldError(f"{name}: expected a positive integer, got {value!r:.40}")


class Seeds(NamedTuple):
    """The seeds of one episode.

    Attributes:
        env: below 2**31, what every environment takes.
        policy: below 2**63.
    """

    env: int
    policy: int


def seeds_of(seed: int, index: int) -> Seeds:
    """The seeds of episode ``index`` of the collection with a ``seed``.

    They are words of ``numpy.random.SeedSequence(seed).spawn(index + 1)[index]``, so the episodes are independent of
    one another and of those of every other seed. Environment seeds are draws from 2**31 numbers, two of which are equal
    now and then in a large collection, as draws are; the policy's differ even then.

    Example:
        >>> seeds_of(0, 3) == seeds_of(0, 3), seeds_of(0, 3) == seeds_of(0, 4)
        (True, False)
    """
    words = np.random.SeedSequence(seed, spawn_key=(index,)).generate_state(2, np.uint64)
    return Seeds(int(words[0]) >> 33, int(words[1]) >> 1)


@dataclass(frozen=True)
class Goal:
    """How much is asked for, in total; of both, what is reached first ends the collection.

    Raises:
        FieldError: nothing is asked for, or no positive integer.
    """

    episodes: int | None = None
    steps: int | None = None

    def __post_init__(self) -> None:
        if self.episodes is None and self.steps is None:
            raise FieldError("collect: say how much with episodes=... or steps=..., in total for the folder")
        for name, value in vars(self).items():
            if value is not None:
                check_count(name, value)

    def is_reached(self, episodes: int, steps: int) -> bool:
        """Whether so many kept episodes, with so many steps, are enough."""
        return (self.episodes is not None and episodes >= self.episodes) or (
            self.steps is not None and steps >= self.steps
        )

    def covers(self, other: Goal) -> bool:
        """Whether whatever reaches this goal reaches the other one."""
        pairs = (self.episodes, other.episodes), (self.steps, other.steps)
        return all(mine is None or (theirs is not None and theirs <= mine) for mine, theirs in pairs)


@dataclass(slots=True)
class Played:
    """An episode that has ended.

    Attributes:
        index: in the collection.
        length: T.
        episode_return: the sum of its rewards, a float, or an array for rewards of several values.
        is_kept: whether it is in the folder.
    """

    index: int
    length: int
    episode_return: Any = 0.0
    is_kept: bool = True


class Plan:
    """Hands out the indices of episodes, and knows when the collection is complete.

    Args:
        goal: how much is asked for.
        kept: the episodes that there are.
        discarded: the indices of those that were played and not kept.
        may_discard: whether an episode may turn out not to be kept. Then those that are being played count for nothing
            in what is needed.

    Attributes:
        end: M, once it is known.
        kept: the lengths of the kept episodes, by index.
        steps, returns: the sums of their lengths and of their returns, of rewards of several values that of all.

    Example:
        >>> plan = Plan(Goal(steps=5), [Played(1, 4)])
        >>> plan.next(), plan.next()
        (0, 2)
        >>> plan.settle(Played(0, 3))
        >>> plan.end
        2
    """

    def __init__(
        self, goal: Goal, kept: Iterable[Played] = (), discarded: Collection[int] = (), *, may_discard: bool = False
    ) -> None:
        self.goal, self.may_discard = goal, may_discard
        self.kept: dict[int, int] = {}
        self.steps, self.returns = 0, 0.0
        for episode in kept:
            self._keep(episode)
        self.discarded = set(discarded) - self.kept.keys()
        self.playing: dict[int, int] = {}
        self._playing_steps = 0
        self._again: list[int] = []
        self._next_of: dict[int, int] = {}
        self._next = 0  # those below were handed out or are settled
        self._below = [0, 0]  # kept episodes below it, and their steps
        self._settled = 0  # those below are settled
        self._totals = [0, 0]
        self.end: int | None = None
        self._find_end()

    @property
    def is_complete(self) -> bool:
        """Whether every episode of the collection is there."""
        return self.end is not None

    def next(self) -> int | None:
        """The lowest index that is not there and may be needed; None where there is none for now."""
        if self.is_complete:
            return None
        if self._again:
            return self._hand_out(heapq.heappop(self._again))
        while self._is_settled(self._next):
            self._count(self._next, self._below)
            self._next += 1
        episodes, steps = self._below
        if not self.may_discard:
            episodes, steps = episodes + len(self.playing), steps + self._playing_steps
        if self.goal.is_reached(episodes, steps):
            return None
        self._next += 1
        return self._hand_out(self._next - 1)

    def next_of(self, env_index: int, num_envs: int) -> int | None:
        """The next index k with ``k % num_envs == env_index``; None where none of these is needed any more.

        For players that cannot choose which sub-environment plays an episode. It does not go together with
        :meth:`next`.
        """
        index = self._next_of.get(env_index, env_index)
        while self._is_settled(index):
            index += num_envs
        last = None if self.may_discard else self.goal.episodes
        if self.is_complete or (last is not None and index >= last):
            return None
        self._next_of[env_index] = index + num_envs
        return self._hand_out(index)

    def note_lengths(self, lengths: Mapping[int, int]) -> None:
        """Note how many steps the episodes have by now that are being played, by index."""
        for index, length in lengths.items():
            if index in self.playing:
                self._playing_steps += length - self.playing[index]
                self.playing[index] = length

    def settle(self, episode: Played) -> None:
        """Note that an episode has ended."""
        self._forget(episode.index)
        if episode.is_kept:
            self._keep(episode)
            if episode.index < self._next:
                self._count(episode.index, self._below)
        else:
            self.discarded.add(episode.index)
        self._find_end()

    def give_back(self, index: int) -> None:
        """Note that an episode that was handed out will not end: it is to be handed out again."""
        if self._forget(index):
            heapq.heappush(self._again, index)

    def _keep(self, episode: Played) -> None:
        self.kept[episode.index] = episode.length
        self.steps += episode.length
        self.returns += float(np.sum(episode.episode_return))

    def _is_settled(self, index: int) -> bool:
        return index in self.kept or index in self.discarded

    def _count(self, index: int, sums: list[int]) -> None:
        """Add an episode, where it was kept, to sums of episodes and steps."""
        if index in self.kept:
            sums[0] += 1
            sums[1] += self.kept[index]

    def _hand_out(self, index: int) -> int:
        self.playing[index] = 0
        return index

    def _forget(self, index: int) -> bool:
        length = self.playing.pop(index, None)
        self._playing_steps -= length or 0
        return length is not None

    def _find_end(self) -> None:
        while self.end is None and self._is_settled(self._settled):
            self._count(self._settled, self._totals)
            self._settled += 1
            if self.goal.is_reached(*self._totals):
                self.end = self._settled


def unneeded(lengths: Mapping[int, int], goals: Iterable[Goal]) -> set[int]:
    """The indices of kept episodes that belong to no collection that was asked for.

    They come from playing several at once: a later episode may end before it is known that an earlier one was the
    last. Where episodes are missing, those behind them may still be needed.

    Args:
        lengths: of the kept episodes, by index.
        goals: everything that was asked for.

    Example:
        >>> unneeded({0: 4, 1: 4, 2: 4}, [Goal(steps=3), Goal(episodes=2)])
        {2}
    """
    needed = 0
    for goal in goals:
        episodes = steps = 0
        for index in sorted(lengths):
            if goal.is_reached(episodes, steps):
                break
            episodes, steps = episodes + 1, steps + lengths[index]
            needed = max(needed, index + 1)
    return {index for index in lengths if index >= needed}
