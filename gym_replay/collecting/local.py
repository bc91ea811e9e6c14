"""Collecting in this process."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import gymnasium as gym

from gym_replay.buffer.replay_buffer import ReplayBuffer
from gym_replay.collecting.environments import make_vector
from gym_replay.collecting.feed import Feed, Played, Player, Verdicts
from gym_replay.collecting.plan import Goal, Plan
from gym_replay.collecting.policies import load_policy
from gym_replay.collecting.progress import OnInterrupt, Progress
from gym_replay.collecting.request import Request
from gym_replay.collecting.several import NativePlayer, VectorPlayer
from gym_replay.collecting.single import SinglePlayer
from gym_replay.collecting.target import delete_numbers, episodes_in, open_journal, open_target, returns_in

_SLICE = 0.1
"""Seconds between two looks at the bar."""


class _PlannedFeed:
    """The feed of a plan, which the bar watches."""

    def __init__(self, plan: Plan, progress: Progress) -> None:
        self._plan, self._progress = plan, progress
        self.next, self.next_of = plan.next, plan.next_of

    def playing(self, lengths: Mapping[int, int]) -> None:
        self._plan.note_lengths(lengths)

    def played(self, episode: Played) -> None:
        self._plan.settle(episode.number, episode.length, is_kept=episode.is_kept)
        self._progress.played(episode)

    @property
    def is_over(self) -> bool:
        return self._plan.is_complete


def make_environment(request: Request) -> Any:
    """The environment of a request: a single one, or a vector environment."""
    if request.is_native:
        return request.make.native(request.num_envs)
    if request.num_envs == 1:
        return request.make()
    return make_vector(request.make, request.num_envs, is_async=request.vectorization == "async")


def make_player(
    env: Any, policy: Any, request: Request, buffer: ReplayBuffer, feed: Feed, verdicts: Verdicts
) -> Player:
    """A player of the environment that :func:`make_environment` made."""
    if not isinstance(env, gym.vector.VectorEnv):
        return SinglePlayer(env, policy, request, buffer, feed, verdicts)
    return (NativePlayer if request.is_native else VectorPlayer)(env, policy, request, buffer, feed, verdicts)


def collect_here(request: Request, folder: Path, goal: Goal, *, overwrite: bool, progress: bool) -> ReplayBuffer:
    """Collect into a folder, in this process; nothing is writing to the buffer that is returned.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed; the step that was under way is done, and what has ended is committed.
    """
    policy = load_policy(request.policy)
    env = make_environment(request)
    with ExitStack() as cleanup:
        cleanup.callback(env.close)
        buffer = open_target(env, folder, request, overwrite=overwrite)
        cleanup.callback(buffer.close)
        collection = _Collection(request, buffer, goal)
        try:
            if not collection.plan.is_complete:
                collection.play(env, policy, progress=progress)
        finally:
            collection.settle()
        cleanup.pop_all()
    env.close()
    buffer.release()
    return buffer


class _Collection:
    """One call's work on a buffer."""

    def __init__(self, request: Request, buffer: ReplayBuffer, goal: Goal) -> None:
        self._request, self._buffer = request, buffer
        self._journal = open_journal(buffer, request)
        self._verdicts = Verdicts(request.keep, request.on_episode)
        self.plan = Plan(goal, episodes_in(buffer), self._journal.discarded, may_discard=request.may_discard)

    def play(self, env: Any, policy: Any, *, progress: bool) -> None:
        """Play until the plan is complete."""
        self._journal.ask(self.plan.goal)
        self._journal.write(self._buffer.put_file)  # before there is anything that it is about
        returns = returns_in(self._buffer)
        bar = Progress(self.plan.goal, self._buffer.folder, self.plan.kept.values(), returns, is_shown=progress)
        feed = _PlannedFeed(self.plan, bar)
        player = make_player(env, policy, self._request, self._buffer, feed, self._verdicts)

        def stop() -> None:
            player.stopped = True

        with OnInterrupt(stop) as interrupt:
            try:
                while player.play(time.monotonic() + _SLICE) and not player.stopped:
                    bar.show(player.steps)
                    self._journal.note_now_and_then(self.plan.discarded, self._buffer.put_file)
            finally:
                try:
                    player.close()
                finally:
                    bar.show(player.steps, is_last=True)
        if interrupt.came:
            raise KeyboardInterrupt

    def settle(self) -> None:
        """Note what was discarded, and delete what does not belong to the collection."""
        self._journal.note(self.plan.discarded, self._buffer.put_file)
        delete_numbers(self._buffer, self._verdicts.unjudged & episodes_in(self._buffer).keys())
        if self.plan.is_complete:
            delete_numbers(self._buffer, self.plan.unneeded(self._journal.goals))
