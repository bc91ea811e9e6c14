"""What chooses the actions: uniformly at random, a function of the user's, or an object with ``predict``."""

from __future__ import annotations

import copy
import importlib
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from gym_replay.errors import FieldError, MissingExtraError
from gym_replay.files.folders import local_path
from gym_replay.wrappers.vector.adapters.tensors import is_tensor

Mask = npt.NDArray[np.bool_]
SeedArray = npt.NDArray[np.int64]

_ONE: Mask = np.ones(1, np.bool_)


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


class Actor:
    """Chooses the actions of one episode in a single environment, or of several in a vector environment.

    This one calls its policy with what the environment returned; the others differ in that.

    Args:
        policy: the policy.
    """

    def __init__(self, policy: Any) -> None:
        self._policy = policy

    def begin(self, mask: Mask, seeds: SeedArray) -> None:
        """Episodes begin in the sub-environments of a mask ``(num_envs,)``, of a single environment ``(1,)``."""
        if hasattr(self._policy, "reset"):
            self._policy.reset(mask, seeds)

    def act(self, observation: Any, running: Mask) -> Any:
        """The action or actions for what the environment returned; of those not running they count for nothing.

        A tensor of torch becomes an array, unless the environment returns tensors itself.
        """
        action = self._policy(observation)
        return action.numpy(force=True)[()] if is_tensor(action) and not is_tensor(observation) else action

    def extra(self) -> Mapping[str, Any]:
        """The values of the extra fields that go with the last action or actions."""
        found: Mapping[str, Any] = self._policy.extra() if hasattr(self._policy, "extra") else {}
        return found


def make_actor(policy: Any, env: Any, *, deterministic: bool, batched: bool | None) -> Actor:
    """An actor for a policy in an environment, single or vector.

    Args:
        policy: the policy, or ``"random"``.
        env: the environment.
        deterministic: what ``predict`` is told.
        batched: whether the policy is given a batch of all observations. None: in a vector environment, unless it may
            draw at random itself.
    """
    is_vector = isinstance(env, gym.vector.VectorEnv)
    predicts = hasattr(policy, "predict")
    if is_random(policy):
        policy, batched = _Random(env.single_action_space if is_vector else env.action_space), False
    elif batched is None:
        batched = is_vector and (deterministic or not predicts)
    if is_vector and not batched:
        # A policy that has a memory needs one for each of the episodes.
        copies = hasattr(policy, "reset") and not predicts
        each = [copy.deepcopy(policy) if copies else policy for _ in range(env.num_envs)]
        return _OneByOne(
            [_Predicting(one, deterministic=deterministic) if predicts else Actor(one) for one in each], env
        )
    if not predicts:
        whole = Actor(policy) if is_vector or not batched else _BatchOfOne(policy, env)
        return whole if isinstance(policy, _Random) else _FirstLook(whole, env, in_batches=bool(is_vector or batched))
    return _Predicting(policy, deterministic=deterministic, is_batched=is_vector)


class _Random:
    """A policy that samples an action space, seeded for each episode."""

    def __init__(self, space: gym.Space[Any]) -> None:
        self._space = copy.deepcopy(space)

    def reset(self, mask: Mask, seeds: SeedArray) -> None:
        self._space.seed(int(seeds[0]))

    def __call__(self, observation: Any) -> Any:
        return self._space.sample()


class _Predicting(Actor):
    """An object with ``predict``, with a state and, where it draws for one episode, generators that are its alone."""

    def __init__(self, policy: Any, *, deterministic: bool, is_batched: bool = False) -> None:
        super().__init__(policy)
        self._deterministic = deterministic
        draws = not deterministic and not is_batched
        self._generators = OwnGenerators(getattr(policy, "action_space", None)) if draws else None
        self._state: Any = None
        self._begun: Mask = ~_ONE

    def begin(self, mask: Mask, seeds: SeedArray) -> None:
        self._begun = mask | self._begun
        if mask.all():
            self._state = None
        if self._generators is not None:
            self._generators.seed(int(seeds[0]))

    def act(self, observation: Any, running: Mask) -> Any:
        with self._generators or nullcontext():
            action, self._state = self._policy.predict(
                observation, state=self._state, episode_start=self._begun, deterministic=self._deterministic
            )
        self._begun = np.zeros_like(self._begun)
        return action[()] if isinstance(action, np.ndarray) and action.ndim == 0 else action


class _BatchOfOne(Actor):
    """A policy of batches in a single environment."""

    def __init__(self, policy: Any, env: gym.Env[Any, Any]) -> None:
        super().__init__(policy)
        self._observation_space, self._action_space = env.observation_space, env.action_space

    def act(self, observation: Any, running: Mask) -> Any:
        batch = _batch_of_one(self._observation_space, observation)
        return _the_one(self._action_space, super().act(batch, running))

    def extra(self) -> Mapping[str, Any]:
        return {name: value[0] for name, value in super().extra().items()}


class _FirstLook(Actor):
    """Looks at the first action, and says where the policy is one for batches, or is not, and is called otherwise.

    Args:
        actor: the one that it stands for.
        env: the environment, single or vector.
        in_batches: whether the policy is called with batches.

    Raises:
        FieldError: from :meth:`act`; the message says what to pass.
    """

    def __init__(self, actor: Actor, env: Any, *, in_batches: bool) -> None:
        super().__init__(actor._policy)
        self._actor, self._in_batches = actor, in_batches
        self.begin, self.extra = actor.begin, actor.extra  # type: ignore[method-assign]
        self._count = env.num_envs if isinstance(env, gym.vector.VectorEnv) else 1
        single = isinstance(env, gym.Env)
        self._observation_space = env.observation_space if single else env.single_observation_space
        self._action_space = env.action_space if single else env.single_action_space
        self._is_single = single

    def act(self, observation: Any, running: Mask) -> Any:
        try:
            action = self._actor.act(observation, running)
        except Exception as error:
            if self._takes_the_other(observation):
                raise self._error(f"it raised {type(error).__name__}: {error}") from error
            if _is_module(self._policy) and not is_tensor(observation):
                raise FieldError(
                    f"policy: {type(self._policy).__name__} is called with arrays, and raised {type(error).__name__}: "
                    f"{error}; pass a function that calls it with torch.as_tensor(observation), and returns actions"
                ) from error
            raise
        self._check_shape(_shape_of(action), self._action_space.shape)
        self.act = self._actor.act  # type: ignore[method-assign]
        return action

    def _check_shape(self, shape: tuple[int, ...] | None, one: tuple[int, ...] | None) -> None:
        if shape is None or one is None:
            return
        expected = one if self._is_single else (self._count, *one)
        returned = f"it returned an action of shape {shape}, where shape {expected} is expected"
        if shape != expected and shape == ((1, *one) if self._is_single else one):
            raise self._error(returned)
        if len(shape) > len(expected):
            raise FieldError(f"policy: {returned}, of the action space {self._action_space}")

    def _takes_the_other(self, observation: Any) -> bool:
        """Whether the policy gives an action where it is called in the other way."""
        space = self._observation_space
        try:
            if self._in_batches:
                batch = _batch_of_one(space, observation) if self._is_single else observation
                first = next(iter(gym.vector.utils.iterate(gym.vector.utils.batch_space(space, self._count), batch)))
                return bool(_shape_of(self._policy(first)) == self._action_space.shape)
            action = self._policy(_batch_of_one(space, observation))
            return bool(_shape_of(action) == (1, *(self._action_space.shape or ())))
        except Exception:
            return False

    def _error(self, what: str) -> FieldError:
        if self._in_batches:
            call = f"a batch of {self._count} observations"
            remedy = "batched=False calls it with one at a time"
        else:
            call, remedy = "one observation", "batched=True calls it with a batch of one"
        return FieldError(f"policy: with num_envs={self._count} it is called with {call}, and {what}; {remedy}")


def _is_module(value: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.nn.Module)


def _shape_of(action: Any) -> tuple[int, ...] | None:
    """The shape of an action; None where it is no array, and no number."""
    if hasattr(action, "shape"):
        return tuple(action.shape)
    try:
        array = np.asarray(action)
    except (TypeError, ValueError):
        return None
    return array.shape if array.dtype.kind in "buif" else None


def _batch_of_one(space: gym.Space[Any], observation: Any) -> Any:
    empty: Any = gym.vector.utils.create_empty_array(space, n=1)
    return gym.vector.utils.concatenate(space, [observation], empty)


def _the_one(space: gym.Space[Any], actions: Any) -> Any:
    return next(iter(gym.vector.utils.iterate(gym.vector.utils.batch_space(space, 1), actions)))


class _OneByOne(Actor):
    """An actor for each sub-environment, which sees single observations."""

    def __init__(self, actors: Sequence[Actor], envs: gym.vector.VectorEnv[Any, Any, Any]) -> None:
        self._actors = actors
        self._observation_space, self._action_space = envs.observation_space, envs.single_action_space
        self._actions: list[Any] = [None] * len(actors)
        self._extras: list[Any] = [None] * len(actors)

    def begin(self, mask: Mask, seeds: SeedArray) -> None:
        for env_index in np.flatnonzero(mask).tolist():
            self._actors[env_index].begin(_ONE, seeds[env_index : env_index + 1])

    def act(self, observation: Any, running: Mask) -> Any:
        observations = list(gym.vector.utils.iterate(self._observation_space, observation))
        for env_index in np.flatnonzero(running).tolist():
            actor = self._actors[env_index]
            self._actions[env_index] = actor.act(observations[env_index], _ONE)
            self._extras[env_index] = actor.extra()  # now: several may share one policy
        empty: Any = gym.vector.utils.create_empty_array(self._action_space, n=len(self._actors))
        return gym.vector.utils.concatenate(self._action_space, _filled(self._actions), empty)

    def extra(self) -> Mapping[str, Any]:
        rows = _filled(self._extras)
        return {name: np.stack([np.asarray(row[name]) for row in rows]) for name in rows[0]}


def _filled(values: list[Any]) -> list[Any]:
    """The values, and for sub-environments that have none, since they never played, those of another one."""
    some = next(value for value in values if value is not None)
    return [some if value is None else value for value in values]


class OwnGenerators:
    """A context in which the global generators are in one episode's states, and afterwards as they were before.

    Stable-Baselines3's policies draw from the generators of torch, NumPy and Python that the whole process shares, and
    from that of their action space. In this context what the episode draws depends on its seed alone, and nobody else's
    draws change.

    Args:
        space: an action space whose generator counts too, if any.
    """

    def __init__(self, space: Any = None) -> None:
        self._space = space
        self._own: list[Any] = []
        self._outer: list[Any] = []

    def seed(self, seed: int) -> None:
        """Begin an episode with the states that go with a seed; the global ones stay as they are."""
        outer = self._states()
        for _, _, begin in self._generators():
            begin(seed)
        self._own = self._states()
        self._restore(outer)

    def __enter__(self) -> None:
        self._outer = self._states()
        self._restore(self._own)

    def __exit__(self, *details: object) -> None:
        self._own = self._states()
        self._restore(self._outer)

    def _generators(self) -> list[tuple[Callable[[], Any], Callable[[Any], Any], Callable[[int], Any]]]:
        """What gives the state of each generator, what sets it, and what seeds it; those that come later at the end."""
        space: Any = self._space
        found: list[Any] = [
            (random.getstate, random.setstate, random.seed),
            (np.random.get_state, np.random.set_state, _seed_numpy),
        ]
        if space is not None:
            found.append((lambda: space.np_random.bit_generator.state, self._set_space, space.seed))
        torch = sys.modules.get("torch")  # recording needs no torch: where it is not imported, nobody draws from it
        if torch is not None:
            found.append((torch.get_rng_state, torch.set_rng_state, torch.default_generator.manual_seed))
            if torch.cuda.is_initialized():
                found.append((torch.cuda.get_rng_state_all, torch.cuda.set_rng_state_all, torch.cuda.manual_seed_all))
        return found

    def _set_space(self, state: Any) -> None:
        self._space.np_random.bit_generator.state = state

    def _states(self) -> list[Any]:
        return [get() for get, _, _ in self._generators()]

    def _restore(self, states: list[Any]) -> None:
        for state, (_, put, _) in zip(states, self._generators(), strict=False):
            put(state)


def _seed_numpy(seed: int) -> None:
    np.random.seed(np.random.SeedSequence(seed).generate_state(4))  # noqa: NPY002


# --- policies by name ---


def check_policy(policy: Any) -> None:
    """Raise FieldError where something is no policy."""
    if isinstance(policy, str):
        if policy != "random" and ":" not in policy:
            raise FieldError(f"policy={policy!r}: expected 'random', 'module:name' or 'sb3:ALGO:PATH'")
    elif isinstance(policy, type):
        raise FieldError(f"policy: expected an object, got the class {policy.__name__}; pass {policy.__name__}()")
    elif not callable(policy) and not hasattr(policy, "predict"):
        raise FieldError(
            f"policy: expected 'random', a function from observations to actions, or an object with predict, got "
            f"{type(policy).__name__}"
        )


def is_random(policy: Any) -> bool:
    """Whether actions are drawn from the action space."""
    return isinstance(policy, str) and policy == "random"


def load_policy(policy: Any) -> Any:
    """The policy that a name such as ``"module:name"`` or ``"sb3:PPO:model.zip"`` means; anything else as it is.

    Of a class in a module, an object is made without arguments. Both kinds of name run code: the module is imported,
    and the file of the model is unpickled, which may run any code that is in it.

    Raises:
        FieldError: there is no such policy.
        MissingExtraError: Stable-Baselines3 is not installed.
    """
    if is_random(policy):
        return policy
    found = find_policy(policy)
    if found is None:
        return _load_sb3(policy)
    if isinstance(policy, str) and isinstance(found, type):
        found = found()
    check_policy(found)
    return found


def find_policy(policy: Any) -> Any:
    """What a name such as ``"module:name"`` means: a function, object or class; anything else as it is.

    None for ``"random"`` and for models of Stable-Baselines3, which no code of the user's chooses the actions of.

    Raises:
        FieldError: there is no such policy.
    """
    if not isinstance(policy, str):
        return policy
    if is_random(policy) or policy.startswith("sb3:"):
        return None
    module, _, name = policy.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise FieldError(f"policy={policy!r}: {error}") from error
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
