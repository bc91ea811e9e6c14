"""Playing episodes in a single environment or in a vector environment, recorded or not."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar, Protocol

import gymnasium as gym
import numpy as np

from gym_replay.buffer.replay_buffer import ReplayBuffer
from gym_replay.collecting.folder import INDEX, delete_episodes, open_for_playing
from gym_replay.collecting.plan import Played, Seeds, seeds_of
from gym_replay.collecting.policies import Mask, load_policy, make_actor
from gym_replay.collecting.request import Request
from gym_replay.errors import FieldError
from gym_replay.schema.arrays import Floats
from gym_replay.schema.fields import to_array
from gym_replay.wrappers import vector
from gym_replay.wrappers.record_to_buffer import RecordToBuffer
from gym_replay.wrappers.session import FinishedEpisode
from gym_replay.wrappers.vector.adapters.adapter import RESET_MASK
from gym_replay.wrappers.vector.autoreset import Autoreset

_NONE = -1
"""Instead of an episode's index: no episode that is wanted."""


class Feed(Protocol):
    """Where a player's episodes come from, and what it tells of them: a plan, or what a plan gave to a worker."""

    @property
    def is_complete(self) -> bool:
        """Whether no episode is wanted any more, those that are being played included."""

    def next(self) -> int | None:
        """The index of an episode to play; None where there is none for now."""

    def next_of(self, env_index: int, num_envs: int) -> int | None:
        """The next index k with ``k % num_envs == env_index``, for players that cannot choose."""

    def note_lengths(self, lengths: Mapping[int, int]) -> None:
        """Note how many steps the episodes have that are being played, by index."""

    def settle(self, episode: Played) -> None:
        """Note that an episode has ended."""


class Player:
    """Plays the episodes of a feed, and records them where there is a buffer.

    Args:
        env: the environment; it is closed in the end.
        policy: the policy itself.
        request: how it is played.
        buffer: where the episodes go; it is left open. None to record nothing.

    Attributes:
        feed: which episodes; set before the first :meth:`play`.
        stopped: set by a signal handler: the player returns after the step that it is in.
        steps: how many transitions were played.
    """

    feed: Feed
    _recorder: ClassVar[Any]
    _is_native = False

    def __init__(self, env: Any, policy: Any, request: Request, buffer: ReplayBuffer | None) -> None:
        self._base, self._request, self._buffer = env, request, buffer
        self.stopped = False
        self.steps = 0
        self._refused: set[int] = set()
        self._unjudged: set[int] = set()
        self._ending = ExitStack()
        self._ending.callback(self._delete_unjudged)
        self._env = env if buffer is None else self._recording(env, buffer)
        self._ending.callback(self._env.close)
        self._actor = make_actor(policy, env, deterministic=request.deterministic, batched=request.batched)
        self._has_extras = buffer is not None and bool(request.recorder.get("extra_fields"))
        self._count = env.num_envs if isinstance(env, gym.vector.VectorEnv) else 1
        self._all: Mask = np.ones(self._count, bool)
        self._indices = np.full(self._count, _NONE, np.int64)
        self._lengths, self._returns = np.zeros(self._count, np.int64), np.zeros(self._count)
        self._observation: Any = None
        self._has_begun = False

    @property
    def buffer(self) -> ReplayBuffer:
        """Where the episodes go, of a player that records."""
        assert self._buffer is not None
        return self._buffer

    def _recording(self, env: Any, buffer: ReplayBuffer) -> Any:
        request = self._request
        return self._recorder(
            env,
            buffer,
            on_incomplete="discard",
            on_episode=self._judge if request.may_discard or self._is_native else None,
            **request.recorder,
        )

    def play(self, until: float) -> bool:
        """Go on until ``time.monotonic()`` is past a time; whether there is something left to play."""
        raise NotImplementedError

    def lengths(self) -> dict[int, int]:
        """The steps of the episodes that are being played, by index."""
        running = self._running
        return dict(zip(self._indices[running].tolist(), self._lengths[running].tolist(), strict=True))

    def close(self) -> None:
        """Commit what has ended, forget what has not, and close the environment; again it does nothing."""
        self._ending.close()

    @property
    def _running(self) -> Mask:
        running: Mask = self._indices != _NONE
        return running

    def _seeds(self, begun: Mapping[int, int]) -> dict[int, Seeds]:
        return {env_index: seeds_of(self._request.seed, index) for env_index, index in begun.items()}

    def _begin(self, begun: Mapping[int, int], seeds: Mapping[int, Seeds]) -> None:
        """Episodes have begun: their indices and their seeds, by sub-environment."""
        mask, policy_seeds = np.zeros(self._count, bool), np.zeros(self._count, np.int64)
        for env_index, index in begun.items():
            mask[env_index], policy_seeds[env_index] = True, seeds[env_index].policy
            self._indices[env_index] = index
            self._lengths[env_index], self._returns[env_index] = 0, 0.0
        if self._buffer is not None:
            self._annotate()
        # The first time all, so that a policy can set up a row for each, even if some are never played.
        self._actor.begin(mask if self._has_begun else self._all.copy(), policy_seeds)
        self._has_begun = True

    def _annotate(self) -> None:
        self._env.annotate(**{INDEX: self._indices})

    def _act(self, observation: Any, running: Mask) -> Any:
        action = self._actor.act(observation, running)
        if self._has_extras:
            self._env.annotate_step(**self._actor.extra())
        return action

    def _end(self, env_index: int) -> None:
        """Tell what became of the episode that ended in the last step of a sub-environment."""
        index = int(self._indices[env_index])
        self._indices[env_index] = _NONE
        length, found = int(self._lengths[env_index]), self._returns[env_index]
        episode_return = found.copy() if found.ndim else float(found)
        self.feed.settle(Played(index, length, episode_return, index not in self._refused))

    def _judge(self, episode: FinishedEpisode) -> Mapping[str, Any] | bool | None:
        """The recorder's ``on_episode``: whether the user's functions keep an episode."""
        index = int(episode.meta.get(INDEX, _NONE))
        if index == _NONE:
            return False
        request = self._request
        self._unjudged.add(index)
        said = None if request.on_episode is None else request.on_episode(episode)
        is_kept = not (isinstance(said, (bool, np.bool_)) and not said)
        if is_kept and request.keep is not None:
            is_kept = bool(request.keep(episode))
        if isinstance(said, Mapping) and INDEX in said:
            raise FieldError(f"meta field {INDEX!r} is set by collect() itself")
        self._unjudged.discard(index)
        if not is_kept:
            self._refused.add(index)
            return False
        return said

    def _delete_unjudged(self) -> None:
        """Delete the episodes whose judging raised, since the recorder has them committed."""
        if self._unjudged:
            delete_episodes(self.buffer, self._unjudged)


class _SinglePlayer(Player):
    """Plays episodes one after another in a single environment."""

    _recorder = RecordToBuffer

    def play(self, until: float) -> bool:
        while not self.stopped:
            if self._indices[0] == _NONE and not self._reset():
                return False
            if self._play_on(until):
                self._end(0)
            if time.monotonic() >= until:
                return True
        return True

    def _reset(self) -> bool:
        index = self.feed.next()
        if index is None:
            return False
        begun, options = {0: index}, self._request.options
        seeds = self._seeds(begun)
        self._observation, _ = self._env.reset(seed=seeds[0].env, options=None if options is None else dict(options))
        self._begin(begun, seeds)
        return True

    def _annotate(self) -> None:
        self._env.annotate(**{INDEX: int(self._indices[0])})

    def _play_on(self, until: float) -> bool:
        """Play the episode under way, and say whether it ended."""
        act = self._act if self._has_extras else self._actor.act
        step, running, now = self._env.step, self._all, time.monotonic
        observation, length, done = self._observation, 0, False
        rewards: Any = self._returns[0]  # so that when it is time to return does not change a sum's last bit
        rewards = rewards if rewards.ndim else float(rewards)
        try:
            while not done and not self.stopped and now() < until:
                observation, reward, terminated, truncated, _ = step(act(observation, running))
                rewards = rewards + (reward if type(reward) is float else _values_of(reward))
                length += 1
                done = terminated or truncated
        finally:
            self._observation = observation
            self.steps += length
            self._lengths += length
            self._returns = np.asarray(rewards, np.float64)[None]
        return done


def _values_of(reward: Any) -> Any:
    """A reward as float64: a number where it has one value, whatever its shape."""
    values = to_array(reward, "reward").astype(np.float64)
    return values.reshape(()) if values.size == 1 else values


class _AnyOptions(vector.RecordToBuffer):
    """A recorder of sub-environments some of which may stand still, and which see no empty options.

    :class:`~gym_replay.collecting.environments.Parkable` is where both is seen to.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._intake.warned.add("unreset")  # it would warn of those that stand still

    def _options_seen(self, options: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
        return super()._options_seen(options) or None


class _VectorPlayer(Player):
    """Plays an episode in each of several parkable sub-environments, which are reset when asked.

    A sub-environment that has no episode to play is parked: it is reset behind the recorder's back, as a vector
    environment demands of one that has ended, and stands still.
    """

    _recorder: ClassVar[Any] = _AnyOptions

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._parked: Mask = np.zeros(self._count, bool)
        self._done: Mask = np.zeros(self._count, bool)
        self._done_before = self._done

    def play(self, until: float) -> bool:
        while not self.stopped:
            running = self._running
            if not running.all():
                if not self._fill(~running):
                    return False
                running = self._running
            self._observation, rewards, terminated, truncated, _ = self._env.step(self._act(self._observation, running))
            self._lengths += running
            self._add(np.asarray(rewards, np.float64))
            self.steps += int(np.count_nonzero(running))
            self._done_before, self._done = self._done, terminated | truncated
            ended = self._done & running
            if ended.any():
                for env_index in np.flatnonzero(ended).tolist():
                    self._end(env_index)
                if self.feed.is_complete:
                    return False
            if time.monotonic() >= until:
                return True
        return True

    def _add(self, rewards: Floats) -> None:
        if rewards.size == self._count:
            rewards = rewards.reshape(self._count)
        # Rewards turn out to have several values at the first step of all, when every return is zero.
        self._returns = rewards + (self._returns if self._returns.shape == rewards.shape else 0.0)

    def _fill(self, free: Mask) -> bool:
        """Begin episodes in sub-environments that are free, and say whether any is under way."""
        self.feed.note_lengths(self.lengths())
        begun: dict[int, int] = {}
        for env_index in np.flatnonzero(free).tolist():
            index = self.feed.next()
            if index is None:
                break
            begun[env_index] = index
        if begun:
            self._reset(begun)
        elif free.all():
            return False
        self._park(~self._running & ~self._parked)
        return True

    def _reset(self, begun: Mapping[int, int]) -> None:
        seeds = self._seeds(begun)
        mask = np.zeros(self._count, bool)
        mask[list(begun)] = True
        given = [seeds[env_index].env if env_index in begun else None for env_index in range(self._count)]
        if not self._has_begun and not mask.all():
            # A vector environment cannot be asked for the observations of some where others never had any.
            self._base.reset(seed=[seeds_of(self._request.seed, 0).env] * self._count)
        self._observation, _ = self._env.reset(seed=given, options={**(self._request.options or {}), RESET_MASK: mask})
        self._parked &= ~mask
        self._begin(begun, seeds)

    def _park(self, idle: Mask) -> None:
        if idle.any():
            self._base.reset(seed=[None] * self._count, options={RESET_MASK: idle})
            self._parked |= idle


class _NativePlayer(_VectorPlayer):
    """Plays episodes in a vector environment that resets its sub-environments itself.

    Sub-environment i of K plays the episodes k with k % K = i, in their order, so that those that are wanted from each
    are decided before they are played, however long they are.
    """

    _recorder = vector.RecordToBuffer
    _is_native = True

    def _fill(self, free: Mask) -> bool:
        if self._observation is None:
            if self.feed.is_complete:
                return False
            begun = self._take(free)
            # Those that are there already were played from the seed of the first one that was not, or an earlier one.
            seed = seeds_of(self._request.seed, min(begun.values(), default=0)).env
            options = self._request.options
            self._observation, _ = self._env.reset(seed=seed, options=None if options is None else dict(options))
        else:
            is_same_step = self._env.autoreset_mode == Autoreset.SAME_STEP.value
            begun = self._take(self._done if is_same_step else self._done_before)
        if begun:
            self._begin(begun, self._seeds(begun))
        return True

    def _take(self, opened: Mask) -> dict[int, int]:
        """Which episodes those are that have begun, by sub-environment; the others are wanted by nobody."""
        taken = {place: self.feed.next_of(place, self._count) for place in np.flatnonzero(opened).tolist()}
        return {env_index: index for env_index, index in taken.items() if index is not None}


def open_player(request: Request, folder: Path | None, *, overwrite: bool = False) -> Player:
    """A player of the request's policy in its environment.

    Its episodes go to a buffer in the folder, whose lock is held; where there is no folder, nowhere.

    Raises:
        ConfigMismatchError: what is in the folder was recorded from something else.
        BufferLockedError: somebody else writes to it.
    """
    policy = load_policy(request.policy)
    with ExitStack() as cleanup:
        env = request.make()
        cleanup.callback(env.close)
        buffer = None
        if folder is not None:
            buffer = open_for_playing(env, folder, request.recorder, overwrite=overwrite, module=request.make.module)
            cleanup.callback(buffer.close)
        kind: type[Player] = _VectorPlayer if isinstance(env, gym.vector.VectorEnv) else _SinglePlayer
        player = (_NativePlayer if request.make.is_native else kind)(env, policy, request, buffer)
        cleanup.pop_all()
    return player
