"""Which episodes a collection consists of, and which are to be played next. Knows nothing of environments.

Episodes have numbers 0, 1, 2, ... A collection that asks for N episodes, or S steps, consists of the episodes below
some M: the smallest M with which the kept episodes below it are N, or their steps S. As what an episode is depends on
its number alone, so does the set: neither on how many are played at once, nor on which of them end first.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Goal:
    """What is asked for, in total; with both, what is reached first ends it."""

    episodes: int | None = None
    steps: int | None = None

    def is_reached(self, episodes: int, steps: int) -> bool:
        """Whether so many kept episodes, with so many steps, are enough."""
        return (self.episodes is not None and episodes >= self.episodes) or (
            self.steps is not None and steps >= self.steps
        )

    def covers(self, other: Goal) -> bool:
        """Whether whatever reaches this goal reaches the other one."""
        pairs = (self.episodes, other.episodes), (self.steps, other.steps)
        return all(mine is None or (theirs is not None and theirs <= mine) for mine, theirs in pairs)


class Plan:
    """Hands out the numbers of episodes, and knows when the collection is complete.

    Args:
        goal: what is asked for.
        kept: the lengths of the episodes that there are, by number.
        discarded: the numbers of those that were played and not kept.
        may_discard: whether an episode may turn out not to be kept. Then those that are being played count for nothing
            in what is needed.

    Attributes:
        end: M, once it is known.

    Example:
        >>> plan = Plan(Goal(steps=5), kept={1: 4})
        >>> plan.next(), plan.next()
        (0, 2)
        >>> plan.settle(0, 3)
        >>> plan.end, plan.unneeded()
        (2, [])
    """

    def __init__(
        self,
        goal: Goal,
        kept: Mapping[int, int] | None = None,
        discarded: Collection[int] = (),
        *,
        may_discard: bool = False,
    ) -> None:
        self.goal = goal
        self.may_discard = may_discard
        self.kept = dict(kept or {})
        self.discarded = set(discarded) - self.kept.keys()
        self.playing: dict[int, int] = {}
        self._playing_steps = 0
        self._again: list[int] = []
        self._cursors: dict[int, int] = {}
        self._cursor = 0  # those below were handed out or are settled
        self._below = [0, 0]  # kept episodes below the cursor, and their steps
        self._front = 0  # those below are settled
        self._totals = [0, 0]
        self.end: int | None = None
        self._move_front()

    @property
    def is_complete(self) -> bool:
        """Whether every episode of the collection is there."""
        return self.end is not None

    def next(self) -> int | None:
        """The lowest number that is not there and may be needed; None where there is none for now."""
        if self.is_complete:
            return None
        if self._again:
            return self._hand_out(heapq.heappop(self._again))
        while self._is_settled(self._cursor):
            if self._cursor in self.kept:
                self._below[0] += 1
                self._below[1] += self.kept[self._cursor]
            self._cursor += 1
        episodes, steps = self._below
        if not self.may_discard:
            episodes, steps = episodes + len(self.playing), steps + self._playing_steps
        if self.goal.is_reached(episodes, steps):
            return None
        self._cursor += 1
        return self._hand_out(self._cursor - 1)

    def next_of(self, place: int, count: int) -> int | None:
        """The next number that leaves ``place`` when divided by ``count``; None where none of these is needed any more.

        For players that cannot choose who plays which episode. It does not go together with :meth:`next`.
        """
        number = self._cursors.get(place, place)
        while self._is_settled(number):
            number += count
        last = None if self.may_discard else self.goal.episodes
        if self.is_complete or (last is not None and number >= last):
            return None
        self._cursors[place] = number + count
        return self._hand_out(number)

    def expected(self) -> float:
        """About how many more numbers will be needed than were handed out; infinite where nothing is known yet."""
        episodes, steps = self._below
        of_all = [math.inf]
        if self.goal.episodes is not None:
            of_all.append(self.goal.episodes - episodes)
        if self.goal.steps is not None and steps:
            of_all.append((self.goal.steps - steps) * episodes / steps)
        kept = episodes / max(len(self.discarded) + episodes, 1)
        return min(of_all) / max(kept, 0.01) - len(self.playing)

    def note_lengths(self, lengths: Mapping[int, int]) -> None:
        """Of episodes that are being played, how many steps they have by now."""
        for number, length in lengths.items():
            if number in self.playing:
                self._playing_steps += length - self.playing[number]
                self.playing[number] = length

    def settle(self, number: int, length: int, *, is_kept: bool = True) -> None:
        """An episode has ended."""
        self._forget(number)
        if is_kept:
            self.kept[number] = length
            if number < self._cursor:
                self._below[0] += 1
                self._below[1] += length
        else:
            self.discarded.add(number)
        self._move_front()

    def give_back(self, number: int) -> None:
        """An episode that was handed out will not end: somebody else is to play it."""
        if self._forget(number):
            heapq.heappush(self._again, number)

    def unneeded(self, earlier: Iterable[Goal] = ()) -> list[int]:
        """Numbers of kept episodes that belong neither to this collection nor to one that was asked for earlier.

        They come from playing several at once: a later episode may end before it is known that an earlier one was
        the last.
        """
        needed = 0
        for goal in (self.goal, *earlier):
            episodes = steps = 0
            for number in sorted(self.kept):
                if goal.is_reached(episodes, steps):
                    break
                episodes, steps = episodes + 1, steps + self.kept[number]
                needed = max(needed, number + 1)
        return sorted(number for number in self.kept if number >= needed)

    def _is_settled(self, number: int) -> bool:
        return number in self.kept or number in self.discarded

    def _hand_out(self, number: int) -> int:
        self.playing[number] = 0
        return number

    def _forget(self, number: int) -> bool:
        length = self.playing.pop(number, None)
        self._playing_steps -= length or 0
        return length is not None

    def _move_front(self) -> None:
        while self.end is None and self._is_settled(self._front):
            if self._front in self.kept:
                self._totals[0] += 1
                self._totals[1] += self.kept[self._front]
            self._front += 1
            if self.goal.is_reached(*self._totals):
                self.end = self._front
