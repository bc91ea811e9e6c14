"""play: a person plays an environment, and every episode is recorded."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import Any, Literal

import gymnasium as gym
import numpy as np

from gym_replay.buffer.replay_buffer import ReplayBuffer
from gym_replay.collecting.driving import stopped_by_interrupt
from gym_replay.collecting.environments import EnvLike, EnvMaker
from gym_replay.collecting.policies import check_policy, load_policy, make_actor
from gym_replay.errors import FieldError
from gym_replay.extras import require
from gym_replay.files.folders import folder_of
from gym_replay.notices import names_nearest_keyword, tell
from gym_replay.playing.key_maps import find_keys
from gym_replay.playing.key_names import KeyNames
from gym_replay.playing.loop import Advice, Loop
from gym_replay.playing.person import Person
from gym_replay.playing.pilot import Pilot
from gym_replay.playing.window import Window, display
from gym_replay.schema.arguments import checked_integer, checked_number
from gym_replay.schema.codec_choice import Codecs, plain_codecs
from gym_replay.schema.fields import FieldLike
from gym_replay.wrappers.recorder import RecorderOptions
from gym_replay.wrappers.rewards import RewardShape
from gym_replay.wrappers.session import OnEpisode

_RATE = 30.0
"""Steps a second, where an environment does not say how many frames it is made for."""


@names_nearest_keyword
def play(
    env: EnvLike | gym.Env[Any, Any],
    folder: str | os.PathLike[str],
    *,
    policy: str | Callable[..., Any] | Any = None,
    player: str = "person",
    episodes: int | None = None,
    seed: int | None = None,
    keys: Mapping[Any, Any] | None = None,
    idle: Any = None,
    waits: bool | None = None,
    fps: float | None = None,
    ramp: float = 0.25,
    zoom: float | None = None,
    ask: bool = True,
    person: Person | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    max_episode_steps: int | None = None,
    options: Mapping[str, Any] | None = None,
    deterministic: bool = True,
    batched: bool | None = None,
    on_incomplete: Literal["keep", "discard"] = "keep",
    on_episode: OnEpisode | None = None,
    meta_fields: Mapping[str, FieldLike] | None = None,
    reward_shape: RewardShape | None = None,
    dtypes: Mapping[str, Any] | None = None,
    codecs: Codecs | None = None,
    record_info: bool | Iterable[str] = False,
    max_timesteps: int | None = None,
    durability: str = "process",
    overwrite: bool = False,
) -> ReplayBuffer:
    """A person plays an environment in a window, alone or in turns with a policy, and every episode is recorded.

    What is recorded is what :class:`~gym_replay.RecordToBuffer` records, and who played in the meta field ``player``.
    With a policy, each step also has the extra fields ``is_intervention``, True where the person acted, and
    ``policy_action``, what the policy would have done (with ``.key`` for each part of a composite action space).

    The window shows the keys. The environment's own come from its ``get_keys_to_action``; ``docs/playing.md`` has the
    others, the commands, and what gamepads do.

    Args:
        env: an environment id, an ``EnvSpec``, a function that makes the environment, or an environment, which is
            closed in the end. For the window it needs ``render_mode="rgb_array"``, which those made here get.
        folder: where the episodes go, behind those that are there.
        policy: acts until the person does: as for :func:`~gym_replay.collect`. None: the person always acts.
        player: who plays.
        episodes: how many episodes the folder is to hold in total; None for as many as the person likes.
        seed: of the first episode; those that follow have one more each. None draws one for each.
        keys: what to press: ``{"left": 0, "left+space": 2}`` from keys to actions, or, where actions are arrays of
            numbers, ``{"left": {0: -1.0}, "axis 0": {0: 1.0}}`` from a key or an axis to targets of parts of the
            flattened action. None for the environment's own, or those that the window shows.
        idle: the action of somebody who presses nothing; ``"last"`` for the one before. None for what the keys say, an
            action called NOOP, or zero.
        waits: whether the environment stands still until a key is pressed, and each press is one step. None: as is
            known for it.
        fps: steps a second at most; None for ``env.metadata["render_fps"]``, or 30.
        ramp: seconds that a key takes to move a part of a continuous action from rest to its target; 0 for at once.
        zoom: how many pixels of the screen one of a frame takes; None for what fits.
        ask: whether it is asked at the end of each episode what becomes of it; if not, it is kept.
        person: plays instead of somebody at a window: a function from a :class:`~gym_replay.Scene` to an
            :class:`~gym_replay.Intent`, such as a scripted expert or another device. Nothing is rendered for it.
        env_kwargs, max_episode_steps, options, deterministic, batched: as for :func:`~gym_replay.collect`.
        on_incomplete: what becomes of an episode in the middle of which the person quits, Ctrl-C comes, or something
            raises: ``"keep"`` commits it with ``episode_complete`` False, ``"discard"`` forgets it.
        on_episode: sees each episode that the person keeps, as for :class:`~gym_replay.RecordToBuffer`.
        meta_fields, reward_shape, dtypes, codecs, record_info, max_timesteps, durability: as for
            :class:`~gym_replay.RecordToBuffer`.
        overwrite: replace the buffer that is in the folder.

    Returns:
        The buffer, open for reading, the lock released.

    Raises:
        FieldError: an argument is wrong, or there are no keys for the action space; the message says what to pass.
        ConfigMismatchError: the folder was recorded from something else.
        BufferLockedError: somebody else writes to the folder.
        MissingExtraError: the extra ``play`` is not installed.
        GymReplayError: there is no display.
        KeyboardInterrupt: Ctrl-C ends it after the step that is under way. Here, and where the policy or the
            environment raises, the window is closed, the folder released, and all episodes that have ended are in it.

    Example:
        >>> import tempfile
        >>> from gym_replay import Intent
        >>> def falls_over(scene):  # instead of somebody at a window
        ...     return Intent(action=0) if scene.finished is None else Intent(wish="keep")
        >>> buffer = play("CartPole-v1", tempfile.mkdtemp(), person=falls_over, episodes=2, player="Ada")
        >>> [episode.meta["player"] for episode in buffer]
        ['Ada', 'Ada']
    """
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "hide")  # the standard output is for results
    pygame = None if person is not None else require("pygame", "play", "play")
    episodes = None if episodes is None else checked_integer("episodes", episodes, 1)
    seed = None if seed is None else checked_integer("seed", seed)
    ramp, zoom = checked_number("ramp", ramp), _positive("zoom", zoom)
    if on_incomplete not in ("keep", "discard"):
        raise FieldError(f"on_incomplete={on_incomplete!r}: expected 'keep' or 'discard'")
    if policy is not None:
        check_policy(policy)
        policy = load_policy(policy)
    recorder: RecorderOptions = {
        "meta_fields": meta_fields,
        "reward_shape": reward_shape,
        "dtypes": dtypes,
        "codecs": plain_codecs(codecs),
        "record_info": record_info,
        "max_timesteps": max_timesteps,
        "durability": durability,
        "overwrite": overwrite,
    }
    with ExitStack() as cleanup:
        made = _make(env, env_kwargs, max_episode_steps, is_shown=pygame is not None)
        loop = Loop(
            made,
            player=player,
            seed=seed,
            options=options,
            episodes=episodes,
            asks=ask,
            keeps_cut=on_incomplete == "keep",
            on_episode=on_episode,
        )
        cleanup.enter_context(stopped_by_interrupt(loop))
        cleanup.callback(loop.close)
        if policy is not None:
            actor = make_actor(policy, made, deterministic=deterministic, batched=batched)
            loop.advice = Advice(actor, made.action_space)
        if pygame is not None:
            cleanup.enter_context(display(pygame))  # which goes before the loop ends, whatever becomes of that
            rate = _positive("fps", fps) or _rate_of(made)
            names, steps = KeyNames(pygame), ramp * rate
            found = find_keys(made, names, keys=keys, idle=idle, waits=waits, steps_to_target=steps)
            pilot = Pilot(found.controls, has_policy=policy is not None, waits=found.waits)
            person = Window(pygame, pilot, title=_name_of(made), fps=rate, zoom=zoom)
        assert person is not None
        buffer = loop.open(folder_of(folder), recorder)
        if loop.is_complete:
            tell(f"{buffer.folder}: nothing is played: it holds the {episodes} episodes that are asked for")
        loop.run(person)
    return buffer


def _positive(name: str, number: float | None) -> float | None:
    if number is None:
        return None
    number = checked_number(name, number)
    if number == 0:
        raise FieldError(f"{name}=0: expected a positive number")
    return number


def _name_of(env: gym.Env[Any, Any]) -> str:
    return f"{env.spec.id if env.spec is not None else type(env.unwrapped).__name__} - gym_replay"


def _make(
    env: EnvLike | gym.Env[Any, Any], kwargs: Mapping[str, Any] | None, max_episode_steps: int | None, *, is_shown: bool
) -> gym.Env[Any, Any]:
    """The environment, which renders where it is shown.

    Raises:
        FieldError: it does not render arrays.
    """
    if isinstance(env, gym.Env):
        if kwargs or max_episode_steps is not None:
            raise FieldError(
                "env_kwargs and max_episode_steps go with an id, a spec or a function, and env is made already"
            )
        made: gym.Env[Any, Any] = env
    else:
        more = {"render_mode": "rgb_array"} if is_shown and not callable(env) else {}
        make = EnvMaker(
            env, {**more, **(kwargs or {})}, max_episode_steps, fresh_envs=False, num_envs=1, vectorization="sync"
        )
        made = make()
    if is_shown and made.render_mode != "rgb_array":
        if made is not env:
            made.close()
        raise FieldError(
            f"play: the environment has render_mode={made.render_mode!r}, and the window shows arrays; make it with "
            "render_mode='rgb_array'"
        )
    return made


def _rate_of(env: gym.Env[Any, Any]) -> float:
    found = (env.metadata or {}).get("render_fps")
    return float(found) if isinstance(found, (int, float, np.number)) and 0 < found < float("inf") else _RATE
