"""Playing episodes in several environments at once, each reset with a seed of its own as soon as it is free."""

from __future__ import annotations

import time
from typing import Any

import gymnasium as gym
import numpy as np

from gym_replay.buffer.replay_buffer import ReplayBuffer
from gym_replay.collecting.feed import Feed, Played, Verdicts
from gym_replay.collecting.policies import make_chorus
from gym_replay.collecting.request import Request
from gym_replay.collecting.seeds import seeds_of
from gym_replay.collecting.target import INDEX
from gym_replay.wrappers.vector.autoreset import Autoreset, Mask
from gym_replay.wrappers.vector.record_to_buffer import RecordToBuffer
from gym_replay.wrappers.vector.sub_environments import RESET_MASK

NOBODY = -1
"""In the place of an episode's number: none that is wanted."""


class _Recorder(RecordToBuffer):
    """A recorder of sub-environments some of which may stand still, and which see no empty options.

    :class:`~gym_replay.collecting.environments.Parkable` is where both is seen to.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._warned.add("unreset")  # it would warn of those that stand still

    def _options_seen(self, options: dict[str, Any] | None) -> dict[str, Any] | None:
        return super()._options_seen(options) or None


class SeveralPlayer:
    """What players of vector environments share: who plays which episode, and the policy.

    Args:
        envs: the vector environment; it is closed in the end.
        policy: the policy itself.
        request: how it is played.
        buffer: where the episodes go.
        feed: which episodes.
        verdicts: which of them are kept.
    """

    def __init__(
        self,
        envs: gym.vector.VectorEnv[Any, Any, Any],
        policy: Any,
        request: Request,
        buffer: ReplayBuffer,
        feed: Feed,
        verdicts: Verdicts,
    ) -> None:
        count = envs.num_envs
        self._base, self._request, self._feed, self._verdicts = envs, request, feed, verdicts
        self._envs = (RecordToBuffer if request.is_native else _Recorder)(
            envs,
            buffer,
            on_incomplete="discard",
            on_episode=verdicts if request.may_discard or request.is_native else None,
            **request.recorder,
        )
        self._chorus = make_chorus(policy, envs, deterministic=request.deterministic, batched=request.batched)
        self._adds_extras = bool(request.recorder.get("extra_fields"))
        self._count = count
        self._numbers = np.full(count, NOBODY, np.int64)
        self._lengths = np.zeros(count, np.int64)
        self._returns = np.zeros(count)
        self._observations: Any = None
        self._has_begun = False
        self.stopped = False
        self.steps = 0

    @property
    def _running(self) -> Mask:
        running: Mask = self._numbers != NOBODY
        return running

    def _act(self, running: Mask) -> Any:
        actions = self._chorus.act(self._observations, running)
        if self._adds_extras:
            self._envs.annotate_step(**self._chorus.extra())
        return actions

    def _begin(self, numbers: dict[int, int]) -> None:
        """Episodes have begun, by sub-environment."""
        mask, seeds = np.zeros(self._count, bool), np.zeros(self._count, np.int64)
        for place, number in numbers.items():
            mask[place] = True
            seeds[place] = seeds_of(self._request.seed, number).policy
            self._numbers[place] = number
        self._lengths[mask], self._returns[mask] = 0, 0.0
        self._envs.annotate(**{INDEX: self._numbers})
        # So that a policy can set up a row for each, even if some are never played.
        self._chorus.begin(mask if self._has_begun else np.ones_like(mask), seeds)
        self._has_begun = True

    def _count_step(self, running: Mask, rewards: Any) -> None:
        self._lengths += running
        self._returns += np.asarray(rewards, np.float64).reshape(self._count, -1).sum(axis=1)
        self.steps += int(np.count_nonzero(running))

    def _end(self, ended: Mask) -> None:
        """Tell what became of the episodes that ended in the last step."""
        for place in np.flatnonzero(ended).tolist():
            number = int(self._numbers[place])
            self._numbers[place] = NOBODY
            is_kept = number not in self._verdicts.refused
            self._feed.played(Played(number, int(self._lengths[place]), float(self._returns[place]), is_kept))

    def running(self) -> dict[int, int]:
        places = np.flatnonzero(self._running)
        return dict(zip(self._numbers[places].tolist(), self._lengths[places].tolist(), strict=True))

    def close(self) -> None:
        self._envs.close()


class VectorPlayer(SeveralPlayer):
    """A :class:`~gym_replay.collecting.feed.Player` of parkable sub-environments that reset when asked.

    A sub-environment that has no episode to play is parked: it is reset behind the recorder's back, as a vector
    environment demands of one that has ended, and stands still.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._parked: Mask = np.zeros(self._count, bool)
        self._was_reset = False

    def play(self, until: float) -> bool:
        while not self.stopped:
            running = self._running
            if not running.all():
                if not self._open(~running):
                    return False
                running = self._running
            self._observations, rewards, terminated, truncated, _ = self._envs.step(self._act(running))
            self._count_step(running, rewards)
            ended = (terminated | truncated) & running
            if ended.any():
                self._end(ended)
                if self._feed.is_over:
                    return False
            if time.monotonic() >= until:
                return True
        return True

    def _open(self, free: Mask) -> bool:
        """Begin episodes in sub-environments that are free; whether any is playing then."""
        self._feed.playing(self.running())
        begun: dict[int, int] = {}
        for place in np.flatnonzero(free).tolist():
            number = self._feed.next()
            if number is None:
                break
            begun[place] = number
        if not begun and not self._running.any():
            return False
        if begun:
            self._reset(begun)
        self._park(free, begun)
        return True

    def _reset(self, begun: dict[int, int]) -> None:
        seeds: list[int | None] = [None] * self._count
        mask = np.zeros(self._count, bool)
        for place, number in begun.items():
            seeds[place], mask[place] = seeds_of(self._request.seed, number).env, True
        if not self._was_reset and not mask.all():
            # A vector environment cannot be asked for the observations of some where others never had any.
            self._reset_base([seeds_of(self._request.seed, 0).env] * self._count)
        self._was_reset = True
        options = {**(self._request.options or {}), RESET_MASK: mask}
        self._observations, _ = self._envs.reset(seed=seeds, options=options)
        self._parked &= ~mask
        self._begin(begun)

    def _reset_base(self, seeds: Any, options: dict[str, Any] | None = None) -> None:
        """Reset sub-environments behind the recorder's back."""
        self._base.reset(seed=seeds, options=options)

    def _park(self, free: Mask, begun: dict[int, int]) -> None:
        idle = free & ~self._parked
        idle[list(begun)] = False
        if idle.any():
            self._reset_base([None] * self._count, {RESET_MASK: idle})
            self._parked |= idle


class NativePlayer(SeveralPlayer):
    """A :class:`~gym_replay.collecting.feed.Player` of a vector environment that resets its sub-environments itself.

    Sub-environment i of K plays the episodes whose numbers leave i when divided by K, in their order, so that those
    that are wanted from each are decided before they are played, however long they are.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._waiting: Mask = np.zeros(self._count, bool)

    def play(self, until: float) -> bool:
        if self._observations is None and not self._reset():
            return False
        while not self.stopped:
            running = self._running
            self._observations, rewards, terminated, truncated, _ = self._envs.step(self._act(running))
            done = terminated | truncated
            self._count_step(running, rewards)
            ended = done & running
            if ended.any():
                self._end(ended)
            opened = done if self._envs.autoreset_mode == Autoreset.SAME_STEP.value else self._waiting
            self._waiting = done
            if opened.any():
                self._begin(self._take(opened))
            if self._feed.is_over:
                return False
            if time.monotonic() >= until:
                return True
        return True

    def _reset(self) -> bool:
        if self._feed.is_over:
            return False
        every = self._take(np.ones(self._count, bool))
        # Those that are there already were played from the seed of the first one that was not, or an earlier one.
        seed = seeds_of(self._request.seed, min(every.values(), default=0)).env
        options = None if self._request.options is None else dict(self._request.options)
        self._observations, _ = self._envs.reset(seed=seed, options=options)
        self._begin(every)
        return True

    def _take(self, opened: Mask) -> dict[int, int]:
        """Which episodes those are that have begun, by sub-environment; the others are nobody's."""
        places = np.flatnonzero(opened).tolist()
        taken = {place: self._feed.next_of(place, self._count) for place in places}
        return {place: number for place, number in taken.items() if number is not None}
