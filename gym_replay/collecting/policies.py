"""What chooses the actions: uniformly at random, a function of the user's, or an object with ``predict``.

There are two kinds of player of a policy. A :class:`Solo` plays one episode after another and sees single
observations; a :class:`Chorus` plays an episode in each sub-environment of a vector environment at once.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from gym_replay.collecting.generators import OwnGenerators
from gym_replay.errors import FieldError, MissingExtraError
from gym_replay.files.folders import local_path

Mask = npt.NDArray[np.bool_]
SeedArray = npt.NDArray[np.int64]


@runtime_checkable
class EpisodicPolicy(Protocol):
    """A policy that is told when episodes begin: one with a memory, or with random draws of its own.

    Example:
        >>> class EpsilonGreedy:
        ...     def reset(self, mask, seeds):  # (num_envs,) each
        ...         if mask.all():
        ...             self.rngs = [None] * len(mask)
        ...         for i in np.flatnonzero(mask):
        ...             self.rngs[i] = np.random.default_rng(seeds[i])
        ...
        ...     def __call__(self, observations):  # (num_envs, ...)
        ...         best = observations[:, 2] > 0
        ...         return np.array([g.integers(2) if g.random() < 0.1 else b for g, b in zip(self.rngs, best)])
        >>> isinstance(EpsilonGreedy(), EpisodicPolicy)
        True
    """

    def __call__(self, observation: Any, /) -> Any:
        """The action for an observation; with several environments, one for each of a batch of observations.

        A batch is what the vector environment returns, and the actions are what it takes: ``(num_envs, ...)``. The
        rows of sub-environments that have no episode to play count for nothing.
        """

    def reset(self, mask: Mask, seeds: SeedArray, /) -> None:
        """Episodes begin with the next observation.

        Args:
            mask: in which sub-environments, bool ``(num_envs,)``, of a single environment ``(1,)``. At the first call
                it is True for all.
            seeds: a seed for each of these episodes' random draws, int64 ``(num_envs,)``; others mean nothing.
        """


class Solo(Protocol):
    """Chooses the actions of one episode after another."""

    def begin(self, seed: int) -> None:
        """An episode begins."""

    def act(self, observation: Any) -> Any:
        """The action for an observation."""

    def extra(self) -> Mapping[str, Any]:
        """The values of the extra fields that go with the last action."""


class Chorus(Protocol):
    """Chooses the actions of several episodes at once."""

    def begin(self, mask: Mask, seeds: SeedArray) -> None:
        """Episodes begin in the sub-environments of the mask."""

    def act(self, observations: Any, running: Mask) -> Any:
        """The actions for a batch of observations; of those that are not running they count for nothing."""

    def extra(self) -> Mapping[str, Any]:
        """The values of the extra fields that go with the last actions, ``(num_envs, ...)``."""


def _extra_of(policy: Any) -> Mapping[str, Any]:
    return policy.extra() if hasattr(policy, "extra") else {}


class _RandomSolo:
    def __init__(self, space: gym.Space[Any]) -> None:
        self._space = copy.deepcopy(space)

    def begin(self, seed: int) -> None:
        self._space.seed(seed)

    def act(self, observation: Any) -> Any:
        return self._space.sample()

    def extra(self) -> Mapping[str, Any]:
        return {}


class _CalledSolo:
    def __init__(self, policy: Any) -> None:
        self._policy = policy
        self._reset = getattr(policy, "reset", None)
        self.act = policy

    def begin(self, seed: int) -> None:
        if self._reset is not None:
            self._reset(np.ones(1, bool), np.array([seed]))

    def extra(self) -> Mapping[str, Any]:
        return _extra_of(self._policy)


class _PredictingSolo:
    """An object with ``predict``, with a state and, where it draws, generators that are this episode's alone."""

    def __init__(self, policy: Any, *, deterministic: bool) -> None:
        self._policy = policy
        self._deterministic = deterministic
        self._generators = None if deterministic else OwnGenerators(getattr(policy, "action_space", None))
        self._state: Any = None
        self._is_first = True

    def begin(self, seed: int) -> None:
        self._state, self._is_first = None, True
        if self._generators is not None:
            self._generators.seed(seed)

    def act(self, observation: Any) -> Any:
        if self._generators is None:
            return self._predict(observation)
        with self._generators:
            return self._predict(observation)

    def _predict(self, observation: Any) -> Any:
        action, self._state = self._policy.predict(
            observation,
            state=self._state,
            episode_start=np.array([self._is_first]),
            deterministic=self._deterministic,
        )
        self._is_first = False
        return action[()] if isinstance(action, np.ndarray) and action.ndim == 0 else action

    def extra(self) -> Mapping[str, Any]:
        return _extra_of(self._policy)


class _ManySolos:
    """A solo for each sub-environment."""

    def __init__(self, solos: Sequence[Solo], envs: gym.vector.VectorEnv[Any, Any, Any], *, looks: bool = True) -> None:
        self._solos, self._looks = solos, looks
        self._observation_space, self._action_space = envs.observation_space, envs.single_action_space
        self._actions: list[Any] = [None] * len(solos)
        self._acted: list[int] = []

    def begin(self, mask: Mask, seeds: SeedArray) -> None:
        for number in np.flatnonzero(mask).tolist():
            self._solos[number].begin(int(seeds[number]))

    def act(self, observations: Any, running: Mask) -> Any:
        count, actions = len(self._solos), self._actions
        numbers = np.flatnonzero(running).tolist()
        if self._looks:
            each = list(gym.vector.utils.iterate(self._observation_space, observations))
            for number in numbers:
                actions[number] = self._solos[number].act(each[number])
        else:
            for number in numbers:
                actions[number] = self._solos[number].act(None)
        self._acted = numbers
        # What is parked is given the action of another one, which it takes no notice of.
        filled = [actions[numbers[0]] if action is None else action for action in actions]
        empty: Any = gym.vector.utils.create_empty_array(self._action_space, n=count)
        return gym.vector.utils.concatenate(self._action_space, filled, empty)

    def extra(self) -> Mapping[str, Any]:
        of_each = {number: self._solos[number].extra() for number in self._acted}
        known = of_each[self._acted[0]]
        rows = [of_each.get(number, known) for number in range(len(self._solos))]
        return {name: np.stack([np.asarray(row[name]) for row in rows]) for name in known}


class _CalledChorus:
    def __init__(self, policy: Any) -> None:
        self._policy = policy
        self._reset = getattr(policy, "reset", None)

    def begin(self, mask: Mask, seeds: SeedArray) -> None:
        if self._reset is not None:
            self._reset(mask, seeds)

    def act(self, observations: Any, running: Mask) -> Any:
        return self._policy(observations)

    def extra(self) -> Mapping[str, Any]:
        return _extra_of(self._policy)


class _PredictingChorus:
    def __init__(self, policy: Any, *, deterministic: bool) -> None:
        self._policy = policy
        self._deterministic = deterministic
        self._state: Any = None
        self._begun: Mask | None = None

    def begin(self, mask: Mask, seeds: SeedArray) -> None:
        self._begun = mask.copy() if self._begun is None else self._begun | mask

    def act(self, observations: Any, running: Mask) -> Any:
        begun = np.zeros(len(running), bool) if self._begun is None else self._begun
        actions, self._state = self._policy.predict(
            observations, state=self._state, episode_start=begun, deterministic=self._deterministic
        )
        self._begun = None
        return actions

    def extra(self) -> Mapping[str, Any]:
        return _extra_of(self._policy)


def make_solo(policy: Any, space: gym.Space[Any], *, deterministic: bool) -> Solo:
    """Who plays a policy in a single environment with an action space."""
    if isinstance(policy, str):
        return _RandomSolo(space)
    if hasattr(policy, "predict"):
        return _PredictingSolo(policy, deterministic=deterministic)
    return _CalledSolo(policy)


def make_chorus(
    policy: Any, envs: gym.vector.VectorEnv[Any, Any, Any], *, deterministic: bool, batched: bool | None
) -> Chorus:
    """Who plays a policy in a vector environment.

    Args:
        policy: the policy, or ``"random"``.
        envs: the vector environment.
        deterministic: what ``predict`` is told.
        batched: whether the policy is given all observations at once. None: unless it may draw at random itself.
    """
    count = envs.num_envs
    if isinstance(policy, str):
        return _ManySolos([_RandomSolo(envs.single_action_space) for _ in range(count)], envs, looks=False)
    if hasattr(policy, "predict"):
        if deterministic if batched is None else batched:
            return _PredictingChorus(policy, deterministic=deterministic)
        return _ManySolos([_PredictingSolo(policy, deterministic=deterministic) for _ in range(count)], envs)
    if batched is None or batched:
        return _CalledChorus(policy)
    # One that has a memory needs one for each of the episodes.
    each = [policy] * count if not hasattr(policy, "reset") else [copy.deepcopy(policy) for _ in range(count)]
    return _ManySolos([_CalledSolo(one) for one in each], envs)


# --- policies by name ---


def check_policy(policy: Any) -> None:
    """Raise FieldError where something is no policy."""
    if isinstance(policy, str):
        if policy != "random" and ":" not in policy:
            raise FieldError(f"policy={policy!r}: expected 'random', 'module:name' or 'sb3:ALGO:PATH'")
    elif not callable(policy) and not hasattr(policy, "predict"):
        raise FieldError(
            f"policy: expected 'random', a function from observations to actions, or an object with predict, got "
            f"{type(policy).__name__}"
        )


def load_policy(policy: Any) -> Any:
    """The policy that a name such as ``"module:name"`` or ``"sb3:PPO:model.zip"`` means; anything else as it is.

    Of a class in a module, an object is made without arguments. Both kinds of name run code: the module is imported,
    and the file of the model is unpickled, which may run any code that is in it.

    Raises:
        FieldError: there is no such policy.
        MissingExtraError: Stable-Baselines3 is not installed.
    """
    if not isinstance(policy, str) or policy == "random":
        return policy
    if policy.startswith("sb3:"):
        return _load_sb3(policy)
    module, _, name = policy.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise FieldError(f"policy={policy!r}: {error}") from error
    if isinstance(found, type):
        found = found()
    check_policy(found)
    return found


def sb3_file(policy: str) -> Path:
    """The file that ``"sb3:ALGO:PATH"`` names, with or without its ending.

    Raises:
        FieldError: it is no such name, or there is no such file.
    """
    _, algorithm, path = (*policy.split(":", 2), "", "")[:3]
    if not algorithm or not path:
        raise FieldError(f"policy={policy!r}: expected 'sb3:ALGO:PATH', for example 'sb3:PPO:model.zip'")
    path = local_path(path)
    for candidate in (Path(path), Path(path + ".zip")):
        if candidate.is_file():
            return candidate
    raise FieldError(f"policy={policy!r}: there is no file {path}, and none with .zip")


def _load_sb3(policy: str) -> Any:
    algorithm, path = policy.split(":", 2)[1], sb3_file(policy)
    for package, command in (("stable_baselines3", "stable-baselines3"), ("sb3_contrib", "sb3-contrib")):
        try:
            module = importlib.import_module(package)
        except ModuleNotFoundError as error:
            if error.name != package:
                raise
            raise MissingExtraError(f"policy={policy!r} needs {package}: pip install {command}") from error
        if hasattr(module, algorithm):
            return getattr(module, algorithm).load(path, device="cpu")
    raise FieldError(f"policy={policy!r}: neither stable_baselines3 nor sb3_contrib has {algorithm!r}")
