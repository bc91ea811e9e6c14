"""collect: record episodes of an environment and a policy, as many as asked for."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, overload

from gym_replay.buffer.concat import ConcatReplayBuffer
from gym_replay.buffer.replay_buffer import ReplayBuffer
from gym_replay.collecting.driving import collect_here
from gym_replay.collecting.environments import EnvLike, EnvMaker
from gym_replay.collecting.plan import Goal
from gym_replay.collecting.request import Keep, Request
from gym_replay.errors import FieldError
from gym_replay.files.folders import folder_of
from gym_replay.notices import names_nearest_keyword
from gym_replay.schema.codec_choice import Codecs, plain_codecs
from gym_replay.schema.fields import FieldLike
from gym_replay.wrappers.recorder import RecordingOptions
from gym_replay.wrappers.rewards import RewardShape
from gym_replay.wrappers.session import OnEpisode

if TYPE_CHECKING:
    from typing_extensions import Unpack

_LOST = (
    "vectorization='native' plays many episodes fast, and gives up what 'sync' and 'async' promise: episodes have no "
    "seed of their own, they differ from one num_envs to another, and a run that was interrupted goes on with other "
    "episodes than it would have had"
)


class CollectArguments(RecordingOptions, total=False):
    """The keyword arguments of :func:`collect` beside ``engine``."""

    policy: str | Callable[..., Any] | Any
    episodes: int | None
    steps: int | None
    num_envs: int
    seed: int
    env_kwargs: Mapping[str, Any] | None
    max_episode_steps: int | None
    fresh_envs: bool
    options: Mapping[str, Any] | None
    vectorization: str
    deterministic: bool
    batched: bool | None
    policy_name: str | None
    keep: Keep | None
    progress: bool
    num_workers: int | None
    ray_options: Mapping[str, Any] | None


@overload
def collect(
    env: EnvLike,
    folder: str | os.PathLike[str],
    *,
    engine: Literal["local"] = "local",
    **arguments: Unpack[CollectArguments],
) -> ReplayBuffer: ...
@overload
def collect(
    env: EnvLike, folder: str | os.PathLike[str], *, engine: Literal["ray"], **arguments: Unpack[CollectArguments]
) -> ConcatReplayBuffer: ...
@names_nearest_keyword
def collect(
    env: EnvLike,
    folder: str | os.PathLike[str],
    *,
    policy: str | Callable[..., Any] | Any = "random",
    episodes: int | None = None,
    steps: int | None = None,
    num_envs: int = 1,
    seed: int = 0,
    env_kwargs: Mapping[str, Any] | None = None,
    max_episode_steps: int | None = None,
    fresh_envs: bool = False,
    options: Mapping[str, Any] | None = None,
    vectorization: str = "sync",
    deterministic: bool = True,
    batched: bool | None = None,
    policy_name: str | None = None,
    keep: Keep | None = None,
    on_episode: OnEpisode | None = None,
    meta_fields: Mapping[str, FieldLike] | None = None,
    extra_fields: Mapping[str, FieldLike] | None = None,
    reward_shape: RewardShape | None = None,
    dtypes: Mapping[str, Any] | None = None,
    codecs: Codecs | None = None,
    record_info: bool | Iterable[str] = False,
    max_timesteps: int | None = None,
    durability: str = "process",
    overwrite: bool = False,
    progress: bool = True,
    engine: str = "local",
    num_workers: int | None = None,
    ray_options: Mapping[str, Any] | None = None,
) -> ReplayBuffer | ConcatReplayBuffer:
    """Record episodes of an environment and a policy until a folder holds as many as asked for.

    Episode k is decided by ``(seed, k)`` alone, and the folder holds the first episodes k = 0, 1, 2, ... that reach the
    total, each with its index in the meta field ``collect_index``. So the set is the same for every ``num_envs``,
    whatever the episodes' lengths, and a run that was killed or interrupted ends with the same set when it is started
    again with the same arguments: it plays what is missing. ``docs/collecting.md`` has the conditions.

    Args:
        env: an environment id, an ``EnvSpec``, or a function that makes the environment.
        folder: where the episodes go; one that holds a part of the same collection is completed.
        policy: ``"random"`` (actions sampled from the action space), ``"module:name"``, ``"sb3:ALGO:PATH"`` (these two
            run what is in the module, and in the pickles of the model: name only what you trust), a function
            from an observation to an action, with ``num_envs > 1`` from a batch of observations to a batch of actions,
            or an object with ``predict`` as Stable-Baselines3 has it. One with a memory or random draws of its own
            has a method ``reset(mask, seeds)`` too, see
            :class:`~gym_replay.collecting.policies.EpisodicPolicy`.
        episodes, steps: how many in total, in the folder, kept ones only; with both, what is reached first counts.
            ``steps`` is reached by whole episodes.
        num_envs: how many environments are played at once.
        seed: from 0 on; with an episode's index it decides all that the environment and the policy draw.
        env_kwargs: arguments for making the environment.
        max_episode_steps: truncate episodes there, instead of at the environment's own limit.
        fresh_envs: make the environment anew for each episode: for those that carry more from one episode to the next
            than a seed resets, such as BipedalWalker.
        options: the ``options`` of each reset.
        vectorization: with several environments, ``"sync"`` plays them in this process, ``"async"`` each in one of its
            own; ``"native"`` takes the environment's own vector environment, and warns of what is lost by that.
        deterministic: what an object's ``predict`` is told. If False, each episode draws from generators of its own.
        batched: whether the policy is called with a batch of the observations of all environments, of one too, and
            returns a batch of actions. None: with several environments yes, unless it is an object with ``predict``
            that draws at random; with one no. If False it is called for each environment by itself, and copied for
            each where it has a ``reset``.
        policy_name: tells the policy from another one by this name alone. By default it is told by its name in the
            code, and by its code, defaults, constants and weights as far as Python lets us see them.
        keep: is called with each :class:`~gym_replay.FinishedEpisode` and says whether it is kept.
        on_episode: as for :class:`~gym_replay.RecordToBuffer`; False discards as ``keep`` does.
        meta_fields, extra_fields, reward_shape, dtypes, codecs, record_info, max_timesteps, durability: as for
            :class:`~gym_replay.RecordToBuffer`. Where there are ``extra_fields``, the policy has a method ``extra()``
            with their values for the actions that it gave last.
        overwrite: replace the buffer that is in the folder.
        progress: whether to show a bar on stderr.
        engine: ``"local"``, or ``"ray"`` for ``num_workers`` actors, each with ``num_envs`` environments and a folder
            of its own below ``folder/shards``.
        num_workers, ray_options: how many actors, and what each is made with, such as ``{"num_cpus": 2}``.

    Returns:
        The buffer, open for reading, the lock released; with ``engine="ray"`` all shards as one buffer.

    Raises:
        ConfigMismatchError: the folder was collected with other arguments; the message lists them.
        BufferLockedError: somebody else is writing to the folder.
        FieldError: an argument is wrong.
        MissingExtraError: Ray, or Stable-Baselines3, is not installed.
        KeyboardInterrupt: Ctrl-C ends it after the step that is under way. Here, and where the policy or the
            environment raises, all episodes that have ended are in the folder, and the running ones are not.

    Example:
        >>> import tempfile
        >>> buffer = collect("CartPole-v1", tempfile.mkdtemp(), episodes=5, num_envs=2, seed=1, progress=False)
        >>> len(buffer), sorted(int(episode.meta["collect_index"]) for episode in buffer)
        (5, [0, 1, 2, 3, 4])
    """
    if engine not in ("local", "ray"):
        raise FieldError(f"engine={engine!r}: expected 'local' or 'ray'")
    goal = Goal(episodes, steps)
    request = Request(
        make=EnvMaker(
            env, env_kwargs, max_episode_steps, fresh_envs=fresh_envs, num_envs=num_envs, vectorization=vectorization
        ),
        policy=policy,
        policy_name=policy_name,
        deterministic=deterministic,
        batched=batched,
        seed=seed,
        options=options,
        keep=keep,
        on_episode=on_episode,
        recorder={
            "meta_fields": meta_fields,
            "extra_fields": extra_fields,
            "reward_shape": reward_shape,
            "dtypes": dtypes,
            "codecs": plain_codecs(codecs),
            "record_info": record_info if isinstance(record_info, (bool, str)) else list(record_info),
            "max_timesteps": max_timesteps,
            "durability": durability,
        },
    )
    if engine == "local":
        if num_workers is not None or ray_options is not None:
            raise FieldError("num_workers and ray_options go with engine='ray'")
        if request.make.is_native:
            warnings.warn(_LOST, stacklevel=2)
        return collect_here(request, folder_of(folder), goal, overwrite=overwrite, progress=progress)
    if overwrite or request.make.is_native:
        raise FieldError("engine='ray' goes with neither overwrite=True nor vectorization='native'")
    from gym_replay.collecting.on_ray import collect_on_ray

    workers = 1 if num_workers is None else num_workers
    return collect_on_ray(request, folder_of(folder), goal, workers, ray_options or {}, progress=progress)
