"""The environments of a collection, made from an id, a spec or a function: one, or several as a vector environment."""

from __future__ import annotations

import copy
import os
import signal
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec

from gym_replay.errors import FieldError, GymReplayError
from gym_replay.schema.fields import to_array
from gym_replay.wrappers.vector.autoreset import Autoreset, declared_mode
from gym_replay.wrappers.vector.sub_environments import has_strings

EnvLike = str | EnvSpec | Callable[..., Any]

VECTORIZATIONS = ("sync", "async", "native")

_REWARDS = "gym_replay rewards"
"""The entry of an info with a reward of several values: Gymnasium's vector environments take numbers only."""


class EnvMaker:
    """Makes the environment of a collection, in this process or another one.

    Args:
        env: an id, a spec, or a function that returns an environment.
        kwargs: what goes to ``gymnasium.make``, or to the function.
        max_episode_steps: where to truncate episodes; None where the environment's own time limit counts.
        is_fresh: whether each episode has an environment that was made for it.

    Raises:
        TypeError: it is none of these.
    """

    def __init__(
        self,
        env: EnvLike,
        kwargs: Mapping[str, Any] | None = None,
        max_episode_steps: int | None = None,
        *,
        is_fresh: bool = False,
    ) -> None:
        if not isinstance(env, (str, EnvSpec)) and not callable(env):
            raise TypeError(
                f"env: expected an id, an EnvSpec, or a function that makes an environment, got {type(env).__name__}"
                + ("; pass a function that makes it" if isinstance(env, gym.Env) else "")
            )
        self._env = env
        self.kwargs = dict(kwargs or {})
        self.max_episode_steps, self.is_fresh = max_episode_steps, is_fresh
        # A process that this is sent to may not have imported what registers the id.
        self._spec = gym.registry.get(env) if isinstance(env, str) else None

    def __call__(self) -> gym.Env[Any, Any]:
        """A new environment.

        Raises:
            TypeError: the function returned something else.
        """
        return _Fresh(self._make) if self.is_fresh else self._make()

    def _make(self) -> gym.Env[Any, Any]:
        limit: dict[str, Any] = {} if self.max_episode_steps is None else {"max_episode_steps": self.max_episode_steps}
        kwargs = copy.deepcopy(self.kwargs)
        if isinstance(self._env, (str, EnvSpec)):
            return gym.make(self._known(), **limit, **kwargs)
        env = self._env(**kwargs)
        if not isinstance(env, gym.Env):
            raise TypeError(f"{name_of(self._env)}: expected it to make a gymnasium.Env, got {type(env).__name__}")
        return gym.wrappers.TimeLimit(env, **limit) if limit else env

    def native(self, num_envs: int) -> gym.vector.VectorEnv[Any, Any, Any]:
        """A vector environment of the environment's own.

        Raises:
            FieldError: the environment has none, or one whose sub-environments are not reset by themselves.
        """
        limit: dict[str, Any] = {} if self.max_episode_steps is None else {"max_episode_steps": self.max_episode_steps}
        if isinstance(self._env, (str, EnvSpec)):
            try:
                made: Any = gym.make_vec(
                    self._known(),
                    num_envs=num_envs,
                    vectorization_mode="vector_entry_point",
                    **limit,
                    **copy.deepcopy(self.kwargs),
                )
            except gym.error.Error as error:
                raise FieldError(f"vectorization='native': {error}; use 'sync' or 'async'") from error
        else:
            made = self._env(num_envs=num_envs, **limit, **copy.deepcopy(self.kwargs))
        if not isinstance(made, gym.vector.VectorEnv):
            raise TypeError(f"vectorization='native': expected a VectorEnv, got {type(made).__name__}")
        mode = declared_mode(made)
        if mode is None and hasattr(gym.vector, "AutoresetMode"):
            made.close()
            raise FieldError(
                f"vectorization='native': {made} does not say how it resets its sub-environments; pass a function that "
                "makes it and sets its metadata['autoreset_mode'], or use 'sync' or 'async'"
            )
        if mode is Autoreset.DISABLED:
            made.close()
            raise FieldError(
                f"vectorization='native': {made} leaves the resets of its sub-environments to others; make it with the "
                "next-step or same-step mode, or use 'sync' or 'async'"
            )
        return made

    def _known(self) -> str | EnvSpec:
        assert isinstance(self._env, (str, EnvSpec))
        return self._env if self._spec is None or self._env in gym.registry else self._spec

    def identity(self) -> dict[str, Any]:
        """What tells this environment from another one, as JSON values."""
        env: Any = self._env
        if isinstance(env, EnvSpec):
            env = {"id": env.id, "kwargs": describe(env.kwargs)} if env.kwargs else env.id
        elif not isinstance(env, str):
            env = name_of(env)
        return {
            "env": env,
            "env_kwargs": describe(self.kwargs),
            "max_episode_steps": self.max_episode_steps,
            "fresh_envs": self.is_fresh,
        }


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


class _Fresh(gym.Wrapper[Any, Any, Any, Any]):
    """An environment that is made anew for each episode after the first, as some carry more than a seed decides."""

    def __init__(self, make: Callable[[], gym.Env[Any, Any]]) -> None:
        super().__init__(make())
        self._make = make
        self._was_reset = False

    @property
    def spec(self) -> EnvSpec | None:  # type: ignore[override]
        """That of the environment inside: what is recorded is made again without this wrapper."""
        return self.env.spec

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if self._was_reset:
            self.env.close()
            self.env = self._make()
        self._was_reset = True
        return self.env.reset(seed=seed, options=options)


class Parkable(gym.Wrapper[Any, Any, Any, Any]):
    """A sub-environment that can be left standing where it is, as the others have episodes to play and it has none.

    A ``reset`` without a seed parks it: it returns the last observation and touches nothing, and so does each step
    until a ``reset`` with a seed. Every episode of a collection has a seed.
    """

    _last: Any = None
    _is_parked = False

    @property
    def spec(self) -> EnvSpec | None:  # type: ignore[override]
        """That of the environment inside: what is recorded is made again without this wrapper."""
        return self.env.spec

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


class _SubEnvMaker:
    """Makes one sub-environment. In a worker process Ctrl-C does nothing: the process that asked for it decides."""

    def __init__(self, make: Callable[[], gym.Env[Any, Any]]) -> None:
        self._make = make
        self._asked_in = os.getpid()

    def __call__(self) -> gym.Env[Any, Any]:
        if os.getpid() != self._asked_in:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        return Parkable(self._make())


class MakesEnvs(Protocol):
    """What :func:`make_vector` needs of an :class:`EnvMaker`."""

    def __call__(self) -> gym.Env[Any, Any]: ...


def make_vector(make: MakesEnvs, num_envs: int, *, is_async: bool) -> gym.vector.VectorEnv[Any, Any, Any]:
    """A vector environment of parkable sub-environments that are reset only when asked to be.

    Raises:
        GymReplayError: this version of Gymnasium cannot leave the resets to others.
    """
    mode = getattr(gym.vector, "AutoresetMode", None)
    if mode is None:
        raise GymReplayError(
            f"num_envs={num_envs} needs Gymnasium 1.1 or newer, which resets single sub-environments when asked; there "
            f"is {gym.__version__}: pip install -U gymnasium, or leave num_envs at 1"
        )
    makers = [_SubEnvMaker(make) for _ in range(num_envs)]
    if not is_async:
        return _WithRewards(gym.vector.SyncVectorEnv(makers, autoreset_mode=mode.DISABLED))
    probe = make()
    try:
        space = probe.observation_space
    finally:
        probe.close()
    # Strings do not get through shared memory.
    shares = not has_strings(space)
    return _WithRewards(gym.vector.AsyncVectorEnv(makers, shared_memory=shares, autoreset_mode=mode.DISABLED))
