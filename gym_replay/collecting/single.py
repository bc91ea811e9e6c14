"""Playing episodes one after another in a single environment."""

from __future__ import annotations

import time
from typing import Any

import gymnasium as gym
import numpy as np

from gym_replay.buffer.replay_buffer import ReplayBuffer
from gym_replay.collecting.feed import Feed, Played, Verdicts
from gym_replay.collecting.policies import make_solo
from gym_replay.collecting.request import Request
from gym_replay.collecting.seeds import seeds_of
from gym_replay.collecting.target import INDEX
from gym_replay.schema.fields import to_array
from gym_replay.wrappers.record_to_buffer import RecordToBuffer


class SinglePlayer:
    """A :class:`~gym_replay.collecting.feed.Player` of one environment.

    Args:
        env: the environment; it is closed in the end.
        policy: the policy itself.
        request: how it is played.
        buffer: where the episodes go.
        feed: which episodes.
        verdicts: which of them are kept.
    """

    def __init__(
        self,
        env: gym.Env[Any, Any],
        policy: Any,
        request: Request,
        buffer: ReplayBuffer,
        feed: Feed,
        verdicts: Verdicts,
    ) -> None:
        self._request, self._feed, self._verdicts = request, feed, verdicts
        self._env = RecordToBuffer(
            env,
            buffer,
            on_incomplete="discard",
            on_episode=verdicts if request.may_discard else None,
            **request.recorder,
        )
        self._solo = make_solo(policy, env.action_space, deterministic=request.deterministic)
        self._adds_extras = bool(request.recorder.get("extra_fields"))
        self._number: int | None = None
        self._length, self._return = 0, 0.0
        self._observation: Any = None
        self.stopped = False
        self.steps = 0

    def play(self, until: float) -> bool:
        env, act, now = self._env, self._solo.act, time.monotonic
        while not self.stopped:
            if self._number is None and not self._begin():
                return False
            observation, rewards, length = self._observation, self._return, self._length
            done = False
            try:
                while not done and not self.stopped and now() < until:
                    action = act(observation)
                    if self._adds_extras:
                        env.annotate_step(**self._solo.extra())
                    observation, reward, terminated, truncated, _ = env.step(action)
                    rewards += reward if type(reward) is float else float(np.sum(to_array(reward, "reward")))
                    length += 1
                    done = terminated or truncated
            finally:
                self.steps += length - self._length
                self._observation, self._return, self._length = observation, rewards, length
            if done:
                self._end()
            if now() >= until:
                return True
        return True

    def _begin(self) -> bool:
        number = self._feed.next()
        if number is None:
            return False
        env_seed, policy_seed = seeds_of(self._request.seed, number)
        options = self._request.options
        self._observation, _ = self._env.reset(seed=env_seed, options=None if options is None else dict(options))
        self._env.annotate(**{INDEX: number})
        self._solo.begin(policy_seed)
        self._number, self._length, self._return = number, 0, 0.0
        return True

    def _end(self) -> None:
        number, self._number = self._number, None
        assert number is not None
        is_kept = number not in self._verdicts.refused
        self._feed.played(Played(number, self._length, self._return, is_kept))

    def running(self) -> dict[int, int]:
        return {} if self._number is None else {self._number: self._length}

    def close(self) -> None:
        self._env.close()
