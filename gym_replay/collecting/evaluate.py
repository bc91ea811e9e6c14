"""evaluate: play episodes of a policy, the same ones however many are played at once, and say what they returned."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from typing import Any

import numpy as np

from gym_replay.buffer.reading import Readable
from gym_replay.collecting.collect import collect
from gym_replay.collecting.environments import EnvLike, EnvMaker
from gym_replay.collecting.evaluation import Evaluation
from gym_replay.collecting.folder import INDEX
from gym_replay.collecting.plan import Goal, Plan, Played, check_count
from gym_replay.collecting.players import open_player
from gym_replay.collecting.request import Request
from gym_replay.errors import FieldError
from gym_replay.notices import bar, names_nearest_keyword

_SECONDS_BETWEEN_LOOKS = 0.2
_SECONDS_WITHOUT_A_BAR = 2


@names_nearest_keyword
def evaluate(
    policy: str | Callable[..., Any] | Any,
    env: EnvLike,
    *,
    episodes: int = 10,
    seed: int = 0,
    num_envs: int = 1,
    env_kwargs: Mapping[str, Any] | None = None,
    max_episode_steps: int | None = None,
    fresh_envs: bool = False,
    options: Mapping[str, Any] | None = None,
    vectorization: str = "sync",
    deterministic: bool = True,
    batched: bool | None = None,
    folder: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> Evaluation:
    """Play episodes of a policy, and say what they returned.

    Episode k is decided by ``(seed, k)`` alone, as for :func:`~gym_replay.collect`, under the conditions that
    ``docs/collecting.md`` lists. So the result is the same for every ``num_envs``, and with the same seed two policies
    are compared on the same episodes. Nothing is recorded unless there is a folder.

    Args:
        policy: as for :func:`~gym_replay.collect`: ``"random"``, ``"module:name"``, ``"sb3:ALGO:PATH"``, a function
            from an observation to an action (with ``num_envs > 1`` from a batch to a batch), or an object with
            ``predict``.
        env: an environment id, an ``EnvSpec``, or a function that makes the environment.
        episodes: how many are played.
        seed: from 0 on; take another one than for collecting, or some episodes may begin as recorded ones do.
        num_envs: how many environments are played at once.
        env_kwargs, max_episode_steps, fresh_envs, options, deterministic, batched: as for :func:`~gym_replay.collect`.
        vectorization: with several environments, ``"sync"`` plays them in this process, ``"async"`` each in one of its
            own.
        folder: where to record the episodes, as :func:`~gym_replay.collect` does: what is there of them is not
            played again.
        overwrite: replace the buffer that is in the folder.
        progress: show a bar on stderr where it takes longer than two seconds.

    Returns:
        The :class:`~gym_replay.Evaluation`, its episodes in the order of k.

    Raises:
        FieldError: an argument is wrong.
        TypeError: ``env`` is an environment; pass what makes one.
        ConfigMismatchError: the folder holds other episodes, such as those of another policy.
        MissingExtraError: Stable-Baselines3 is not installed.

    Example:
        >>> evaluate(lambda observation: int(observation[2] > 0), "CartPole-v1", episodes=20, seed=1).lengths.shape
        (20,)
    """
    check_count("episodes", episodes)
    if vectorization == "native":
        raise FieldError(
            "vectorization='native': what is played would depend on num_envs; use 'sync' or 'async', or collect() with "
            "'native' and Evaluation.of(buffer)"
        )
    making: dict[str, Any] = {
        "env_kwargs": env_kwargs,
        "max_episode_steps": max_episode_steps,
        "fresh_envs": fresh_envs,
    }
    playing: dict[str, Any] = {"deterministic": deterministic, "batched": batched, "seed": seed, "options": options}
    several: dict[str, Any] = {"num_envs": num_envs, "vectorization": vectorization}
    if folder is not None:
        recording: dict[str, Any] = {"episodes": episodes, "overwrite": overwrite, "progress": progress}
        with collect(env, folder, policy=policy, **making, **playing, **several, **recording) as buffer:
            return _first(buffer, episodes)
    if overwrite:
        raise FieldError("overwrite=True goes with a folder")
    make = EnvMaker(env, env_kwargs, max_episode_steps, fresh_envs=fresh_envs, **several)
    # Nothing is compared with what was played before, so the policy needs no fingerprint, which takes its time.
    request = Request(make=make, policy=policy, policy_name="", keep=None, on_episode=None, recorder={}, **playing)
    return _played(request, episodes, progress=progress)


class _Noting(Plan):
    """A plan that keeps what became of each episode, by index."""

    def __init__(self, episodes: int) -> None:
        super().__init__(Goal(episodes=episodes))
        self.played: dict[int, Played] = {}

    def settle(self, episode: Played) -> None:
        self.played[episode.index] = episode
        super().settle(episode)


def _played(request: Request, episodes: int, *, progress: bool) -> Evaluation:
    plan = _Noting(episodes)
    shown = bar(episodes, "evaluate", "episode", progress=progress, delay=_SECONDS_WITHOUT_A_BAR)
    with shown, closing(open_player(request, None)) as player:
        player.feed = plan
        while not plan.is_complete and player.play(time.monotonic() + _SECONDS_BETWEEN_LOOKS):
            shown.update(len(plan.played) - shown.n)
        shown.update(len(plan.played) - shown.n)
    found = [plan.played[index] for index in range(episodes)]
    return Evaluation(np.array([each.episode_return for each in found]), np.array([each.length for each in found]))


def _first(buffer: Readable, episodes: int) -> Evaluation:
    """The first episodes of a collection, which may have more."""
    recorded = Evaluation.of(buffer)
    order = np.argsort(buffer.meta[INDEX])[:episodes]
    return Evaluation(recorded.returns[order], recorded.lengths[order])
