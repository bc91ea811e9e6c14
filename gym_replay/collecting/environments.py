"""The environments of a collection, made from an id, a spec or a function: one, or several as a vector environment."""

from __future__ import annotations

import copy
import multiprocessing
import os
import signal
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec

from gym_replay.errors import FieldError, GymReplayError
from gym_replay.schema.fields import to_array
from gym_replay.wrappers.vector.adapters.gymnasium import has_strings
from gym_replay.wrappers.vector.autoreset import Autoreset, declared_mode

EnvLike = str | EnvSpec | Callable[..., Any]

_VECTORIZATIONS = ("sync", "async", "native")

_GRAPHICS_THREADS = ("llvmpipe", ":gdrv", ":cs")
"""Parts of the names that Mesa gives to its drivers' threads, which begin with the first frame and stay."""

_REWARDS = "gym_replay rewards"
"""The entry of an info with a reward of several values: Gymnasium's vector environments take numbers only."""


class EnvMaker:
    """Makes the environments of a collection, in this process or another one.

    Args:
        env: an id, a spec, or a function that returns an environment.
        kwargs: what goes to ``gymnasium.make``, or to the function.
        max_episode_steps: where to truncate episodes; None where the environment's own time limit counts.
        fresh_envs: whether each episode has an environment that was made for it.
        num_envs, vectorization: as for :func:`gym_replay.collect`.

    Raises:
        TypeError: ``env`` is none of these.
        FieldError: the vectorization is none, or does not go with fresh environments.
    """

    def __init__(
        self,
        env: EnvLike,
        kwargs: Mapping[str, Any] | None,
        max_episode_steps: int | None,
        *,
        fresh_envs: bool,
        num_envs: int,
        vectorization: str,
    ) -> None:
        if not isinstance(env, (str, EnvSpec)) and not callable(env):
            raise TypeError(
                f"env: expected an id, an EnvSpec, or a function that makes an environment, got {type(env).__name__}"
                + ("; pass a function that makes it" if isinstance(env, gym.Env) else "")
            )
        if vectorization not in _VECTORIZATIONS:
            raise FieldError(f"vectorization={vectorization!r}: expected one of {_VECTORIZATIONS}")
        if vectorization == "native" and fresh_envs:
            raise FieldError("fresh_envs=True does not go with vectorization='native'")
        self._env, self._kwargs, self._max_episode_steps = env, dict(kwargs or {}), max_episode_steps
        self._fresh, self.num_envs, self._vectorization = fresh_envs, num_envs, vectorization
        # A process that this is sent to may not have imported what registers the id.
        self._spec = gym.registry.get(env) if isinstance(env, str) else None

    @property
    def module(self) -> str | None:
        """The module that is imported to register the environment, as in ``module:Id``."""
        module, colon, _ = self._env.partition(":") if isinstance(self._env, str) else ("", "", "")
        return module if colon else None

    @property
    def is_native(self) -> bool:
        """Whether the environment's own vector environment plays, and resets itself."""
        return self._vectorization == "native"

    def __call__(self) -> Any:
        """The environment: a single one, or a vector environment.

        Raises:
            TypeError: the function returned something else.
            FieldError: there is no native vector environment, or none whose sub-environments are reset by themselves;
                or these environments render, and so has this process, which would be forked for them.
            GymReplayError: this version of Gymnasium cannot leave the resets of several to others.
        """
        if self.is_native:
            return self._native()
        return self._one() if self.num_envs == 1 else self._several()

    def _one(self) -> gym.Env[Any, Any]:
        return _Fresh(self._make) if self._fresh else self._make()

    def _make(self) -> gym.Env[Any, Any]:
        kwargs, limit = copy.deepcopy(self._kwargs), self._limit()
        if isinstance(self._env, (str, EnvSpec)):
            try:
                return gym.make(self._known(self._env), **limit, **kwargs)
            except gym.error.NamespaceNotFound as error:
                raise FieldError(
                    f"{error}; where it is, put the module that registers it before the id, as in 'ale_py:ALE/Pong-v5'"
                ) from error
        env = self._env(**kwargs)
        if not isinstance(env, gym.Env):
            raise TypeError(f"{name_of(self._env)}: expected it to make a gymnasium.Env, got {type(env).__name__}")
        return gym.wrappers.TimeLimit(env, **limit) if limit else env

    def _several(self) -> gym.vector.VectorEnv[Any, Any, Any]:
        mode = getattr(gym.vector, "AutoresetMode", None)
        if mode is None:
            raise GymReplayError(
                f"num_envs={self.num_envs} needs Gymnasium 1.1 or newer, which resets single sub-environments when "
                f"asked; there is {gym.__version__}: pip install -U gymnasium, or leave num_envs at 1"
            )
        makers = [partial(self._sub, os.getpid())] * self.num_envs
        if self._vectorization == "sync":
            return _WithRewards(gym.vector.SyncVectorEnv(makers, autoreset_mode=mode.DISABLED))
        probe = self._one()
        try:
            shares = not has_strings(probe.observation_space)  # they do not get through shared memory
            _refuse_black_frames(probe)
        finally:
            probe.close()
        return _WithRewards(gym.vector.AsyncVectorEnv(makers, shared_memory=shares, autoreset_mode=mode.DISABLED))

    def _sub(self, asked_in: int) -> gym.Env[Any, Any]:
        """One sub-environment. In a worker process Ctrl-C does nothing: the process that asked for it decides."""
        if os.getpid() != asked_in:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        return Parkable(self._one())

    def _native(self) -> gym.vector.VectorEnv[Any, Any, Any]:
        arguments = {"num_envs": self.num_envs, **self._limit(), **copy.deepcopy(self._kwargs)}
        if isinstance(self._env, (str, EnvSpec)):
            try:
                made: Any = gym.make_vec(self._known(self._env), vectorization_mode="vector_entry_point", **arguments)
            except gym.error.Error as error:
                raise FieldError(f"vectorization='native': {error}; use 'sync' or 'async'") from error
        else:
            made = self._env(**arguments)
        if not isinstance(made, gym.vector.VectorEnv):
            raise TypeError(f"vectorization='native': expected a VectorEnv, got {type(made).__name__}")
        mode = declared_mode(made)
        if mode is None and hasattr(gym.vector, "AutoresetMode"):
            fault = (
                "does not say how it resets its sub-environments; pass a function that makes it and sets its "
                "metadata['autoreset_mode']"
            )
        elif mode is Autoreset.DISABLED:
            fault = "leaves the resets of its sub-environments to others; make it with the next-step or same-step mode"
        else:
            return made
        made.close()
        raise FieldError(f"vectorization='native': {made} {fault}, or use 'sync' or 'async'")

    def _limit(self) -> dict[str, Any]:
        return {} if self._max_episode_steps is None else {"max_episode_steps": self._max_episode_steps}

    def _known(self, env: str | EnvSpec) -> str | EnvSpec:
        return env if self._spec is None or env in gym.registry else self._spec

    def identity(self) -> dict[str, Any]:
        """What tells these environments from other ones, as JSON values."""
        env: Any = self._env
        if isinstance(env, EnvSpec):
            env = {"id": env.id, "kwargs": describe(env.kwargs)} if env.kwargs else env.id
        elif not isinstance(env, str):
            env = name_of(env)
        return {
            "env": env,
            "env_kwargs": describe(self._kwargs),
            "max_episode_steps": self._max_episode_steps,
            "fresh_envs": self._fresh,
            # Only of a native one it matters how many episodes are played at once.
            "vectorization": f"native, {self.num_envs} environments" if self.is_native else None,
        }


def _refuse_black_frames(env: gym.Env[Any, Any]) -> None:
    """Raise FieldError where environments that render would be forked from a process that has rendered with OpenGL.

    A forked process has none of the threads that its driver draws with: each frame is black there, without an error.
    """
    if env.render_mode is None or multiprocessing.get_context().get_start_method() != "fork":
        return
    threads = [_read_name(path) for path in Path("/proc/self/task").glob("*/comm")]
    if any(part in name for name in threads for part in _GRAPHICS_THREADS):
        raise FieldError(
            f"vectorization='async' with render_mode={env.render_mode!r}: this process has rendered with OpenGL, and "
            "all frames of processes that are forked from it would be black; use vectorization='sync', collect in a "
            "process that has not rendered, or call multiprocessing.set_start_method('spawn') before, in a script that "
            "begins with `if __name__ == '__main__':`"
        )


def _read_name(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # the thread has ended
        return ""


def name_of(thing: Any) -> str:
    """The name of a function or class, or of the class of anything else, with its module."""
    if isinstance(thing, type) or hasattr(thing, "__qualname__"):
        return f"{thing.__module__}.{thing.__qualname__}"
    if hasattr(thing, "func"):  # functools.partial
        return f"partial({name_of(thing.func)})"
    return name_of(type(thing))


def describe(value: Any) -> Any:
    """A value as JSON that is the same in every process: arrays as lists, other objects by their names."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if value - value == 0 else str(value)
    if isinstance(value, Mapping):
        return {str(key): describe(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [describe(item) for item in value]
    if hasattr(value, "tolist") and getattr(getattr(value, "dtype", None), "kind", "O") in "buif":
        return describe(value.tolist())
    return name_of(value)


class Hidden(gym.Wrapper[Any, Any, Any, Any]):
    """A wrapper that is no part of the recorded environment."""

    @property
    def spec(self) -> EnvSpec | None:  # type: ignore[override]
        """The spec of the environment inside: what is recorded is made again without this wrapper."""
        return self.env.spec


class _Fresh(Hidden):
    """An environment that is made anew for each episode after the first, as some carry more than a seed decides."""

    _was_reset = False

    def __init__(self, make: Callable[[], gym.Env[Any, Any]]) -> None:
        super().__init__(make())
        self._make = make

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if self._was_reset:
            self.env.close()
            self.env = self._make()
        self._was_reset = True
        return self.env.reset(seed=seed, options=options)


class Parkable(Hidden):
    """A sub-environment that can stand still while the others have episodes to play and it has none.

    A ``reset`` without a seed parks it: it returns the last observation and touches nothing, and so does each step
    until a ``reset`` with a seed. Every episode of a collection has a seed.
    """

    _last: Any = None
    _is_parked = False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self._is_parked = seed is None
        if self._is_parked:
            return self._last, {}
        # A vector environment adds an empty dict where there were no options but the mask.
        result = self.env.reset(seed=seed, options=options or None)
        self._last = result[0]
        return result

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        if self._is_parked:
            return self._last, 0.0, False, False, {}
        result = self.env.step(action)
        self._last, reward, info = result[0], result[1], result[4]
        if type(reward) is float or (rewards := to_array(reward, "reward")).size == 1:
            return result
        return self._last, 0.0, *result[2:4], {**info, _REWARDS: np.array(rewards, np.float64)}


class _WithRewards(gym.vector.VectorWrapper):
    """Sub-environments whose rewards may have several values: :class:`Parkable` puts those into the infos."""

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, Any]:
        observations, rewards, terminated, truncated, infos = self.env.step(actions)
        if _REWARDS in infos:
            rewards = infos[_REWARDS]
            infos = {key: value for key, value in infos.items() if key not in (_REWARDS, f"_{_REWARDS}")}
        return observations, rewards, terminated, truncated, infos
