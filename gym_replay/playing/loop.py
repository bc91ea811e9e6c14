"""Episodes of a person, alone or in turns with a policy: each step, and what becomes of what was played."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from gym_replay.buffer.replay_buffer import ReplayBuffer
from gym_replay.collecting.plan import seeds_of
from gym_replay.collecting.policies import Actor
from gym_replay.errors import FieldError
from gym_replay.playing.person import Intent, Person, Scene, Wish
from gym_replay.schema.fields import Field, describe, to_array
from gym_replay.spaces import space_tree
from gym_replay.wrappers.record_to_buffer import RecordToBuffer
from gym_replay.wrappers.recorder import RecorderOptions
from gym_replay.wrappers.session import FinishedEpisode, OnEpisode

PLAYER = "player"
"""The meta field that says who played."""

IS_INTERVENTION = "is_intervention"
POLICY_ACTION = "policy_action"
_SEEDS = 1 << 31


class Advice:
    """A policy beside a person: what it would do, and the extra fields that say so.

    Args:
        actor: the policy.
        space: of the actions.

    Attributes:
        fields: the extra fields: ``is_intervention``, and the policy's action, with ``.key`` for each part of a
            composite space.
    """

    def __init__(self, actor: Actor, space: gym.Space[Any]) -> None:
        self._actor = actor
        self._tree = space_tree(space, POLICY_ACTION)
        self._one = np.ones(1, bool)
        self.fields = {IS_INTERVENTION: Field("bool"), **{leaf.name: leaf.field for leaf in self._tree.leaves}}

    def begin(self, seed: int) -> None:
        """An episode begins."""
        self._actor.begin(self._one, np.array([seeds_of(seed, 0).policy], np.int64))

    def ask(self, observation: Any) -> Any:
        """The policy's action."""
        return self._actor.act(observation, self._one)

    def values(self, action: Any, *, is_intervention: bool) -> dict[str, Any]:
        """The values of the extra fields for a step."""
        parts = self._tree.flatten(action)
        names = [leaf.name for leaf in self._tree.leaves]
        return {IS_INTERVENTION: is_intervention, **dict(zip(names, parts, strict=True))}


class Loop:
    """Plays and records until the person quits, or the folder holds as many episodes as asked for.

    Args:
        env: the environment; it is closed in the end.
        player: the name of who plays.
        seed: of the first episode; those that follow have one more each. None draws one for each.
        options: of each reset.
        episodes: how many the folder is to hold in total; None for no end.
        asks: whether it is asked what becomes of an episode that is over.
        keeps_cut: whether an episode is kept in the middle of which all ends.
        on_episode: sees each episode that is kept, as for a recorder.

    Attributes:
        advice: the policy, if there is one; set before :meth:`open`.
        stopped: set by a signal handler: it ends after the step that it is in.
    """

    _person: Person
    _buffer: ReplayBuffer | None = None

    def __init__(
        self,
        env: gym.Env[Any, Any],
        *,
        player: str,
        seed: int | None,
        options: Mapping[str, Any] | None,
        episodes: int | None,
        asks: bool,
        keeps_cut: bool,
        on_episode: OnEpisode | None,
    ) -> None:
        self._env: Any = env
        self._player, self._next_seed, self._options = player, seed, options
        self._episodes, self._asks, self._keeps_cut, self._on_episode = episodes, asks, keeps_cut, on_episode
        self.advice: Advice | None = None
        self.stopped = False
        self._seed = 0
        self._observation: Any = None
        self._step = 0
        self._return = 0.0
        self._wish: Wish | None = None
        self._is_stepping = False

    def open(self, folder: Path, options: RecorderOptions) -> ReplayBuffer:
        """Let the episodes go to a buffer in a folder, whose lock is held from now on.

        Args:
            folder: where they go.
            options: of the recorder, of those that are not the loop's own.

        Raises:
            ConfigMismatchError: the buffer there is of something else.
            FieldError: it says who acted, and there is no policy.
            BufferLockedError: somebody else writes to it.
        """
        given: RecorderOptions = {
            **options,
            "meta_fields": {PLAYER: "str", **(options.get("meta_fields") or {})},
            "extra_fields": None if self.advice is None else self.advice.fields,
            "on_episode": self._judge,
        }
        self._env = recorder = RecordToBuffer(self._env, folder, **given)
        self._buffer = buffer = recorder.buffer
        if self.advice is None and IS_INTERVENTION in buffer.metadata.fields:
            raise FieldError(
                f"policy: {folder} says of each step whether a person or a policy acted, so it goes on with a policy; "
                "pass policy=, for example policy='random', or another folder"
            )
        buffer.acquire()
        return buffer

    @property
    def _kept(self) -> int:
        return 0 if self._buffer is None else len(self._buffer)

    @property
    def is_complete(self) -> bool:
        """Whether the folder holds as many episodes as asked for."""
        return self._episodes is not None and self._kept >= self._episodes

    @property
    def _has_ended(self) -> bool:
        return self.stopped or self._wish == "quit" or self.is_complete

    def run(self, person: Person) -> None:
        """Have a person play."""
        self._person = person
        while not self._has_ended:
            self._reset()  # which commits the episode before, where a wish cut it
            if not self._has_ended:
                self._play()

    def _reset(self) -> None:
        if self._wish != "repeat":
            self._seed = self._draw_seed()
        options = None if self._options is None else dict(self._options)
        self._observation, _ = self._env.reset(seed=self._seed, options=options)
        self._wish, self._step, self._return = None, 0, 0.0
        self._env.annotate(**{PLAYER: self._player})
        if self.advice is not None:
            self.advice.begin(self._seed)

    def _draw_seed(self) -> int:
        if self._next_seed is None:
            return int(np.random.SeedSequence().generate_state(1)[0]) % _SEEDS
        seed, self._next_seed = self._next_seed, self._next_seed + 1
        return seed

    def _play(self) -> None:
        """Play an episode to its end, or until a wish cuts it."""
        is_over = False
        while not (is_over or self.stopped):
            advised = None if self.advice is None else self.advice.ask(self._observation)
            intent = self._decide(advised)
            if intent is None:
                return
            is_intervention = intent.action is not None
            if self.advice is not None:
                self._env.annotate_step(**self.advice.values(advised, is_intervention=is_intervention))
            is_over = self._take_step(intent.action if is_intervention else advised)

    def _decide(self, advised: Any) -> Intent | None:
        """How the next step is taken; None where there is none, since a wish cuts the episode or all is stopped."""
        while not self.stopped:
            intent = self._ask_person(advised)
            if intent.wish is not None and intent.wish != "wait":
                self._wish = intent.wish
                return None
            if intent.wish is None and not (intent.action is None and self.advice is None):
                return intent
        return None

    def _take_step(self, action: Any) -> bool:
        self._is_stepping = True
        try:
            self._observation, reward, terminated, truncated, _ = self._env.step(action)
        finally:
            self._is_stepping = False
        self._note(reward)
        return bool(terminated or truncated)

    def _note(self, reward: Any) -> None:
        self._step += 1
        self._return += reward if type(reward) is float else float(np.sum(to_array(reward, "reward")))

    def _ask_person(self, advised: Any, finished: FinishedEpisode | None = None) -> Intent:
        step, total = self._step, self._return
        if finished is not None:
            step, total = len(finished), float(np.sum(finished.episode_return))
        scene = Scene(
            observation=self._observation,
            episode=self._kept + 1,
            step=step,
            episode_return=total,
            policy_action=advised,
            finished=finished,
            frame=self._env.render,
        )
        intent = self._person(scene)
        if not isinstance(intent, Intent):
            raise FieldError(f"person: expected it to return a gym_replay.Intent, got {describe(intent)}")
        return intent

    # --- what becomes of an episode ---

    def _judge(self, episode: FinishedEpisode) -> Mapping[str, Any] | bool | None:
        """The recorder's ``on_episode``: what the person says, and then the user's own function."""
        if episode.complete and self._is_stepping and self._asks:
            self._ask_what_becomes_of(episode)
        if self._wish in ("discard", "repeat"):
            return False
        if not episode.complete and self._wish != "keep" and not self._keeps_cut:
            return False
        return None if self._on_episode is None else self._on_episode(episode)

    def _ask_what_becomes_of(self, episode: FinishedEpisode) -> None:
        while not self.stopped:
            wish = self._ask_person(None, episode).wish
            if wish is not None and wish != "wait":
                self._wish = wish
                return

    def close(self) -> None:
        """End what is running, release the folder, and close the environment."""
        try:
            self._env.close()
        finally:
            if self._buffer is not None:
                self._buffer.release()
