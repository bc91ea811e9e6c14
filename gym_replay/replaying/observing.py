"""The environment in which episodes are observed again: as it was recorded, inside of the wrappers that observe it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import gymnasium as gym

from gym_replay.buffer.door import Metadata
from gym_replay.buffer.env_spec import make_env
from gym_replay.buffer.episode import Episode
from gym_replay.collecting.environments import EnvLike, EnvMaker, Hidden, describe, name_of
from gym_replay.collecting.fingerprints import fingerprint
from gym_replay.collecting.policies import find_policy
from gym_replay.errors import ConfigMismatchError, FieldError
from gym_replay.replaying.executing import Difference, Player
from gym_replay.schema.arrays import Array
from gym_replay.spaces import space_to_json
from gym_replay.wrappers.infos import PRESENT, ROOT
from gym_replay.wrappers.simulator_state import ENTRY, RestoreState, SimulatorState, has_mujoco, restore_mujoco

Wrap: TypeAlias = Callable[[Any], Any]
"""Puts a wrapper around an environment."""

States: TypeAlias = Mapping[str, Array]
"""States of a simulator: by name, ``(T+1, *shape)`` each."""

FRAMES: tuple[str, ...] = ("only", "beside")
_STATE = f"{ROOT}.{ENTRY}"
_HAS_STATE = f"{PRESENT}.{ENTRY}"


class Watched(Hidden):
    """The recorded environment: what it returns is shown to a function before anybody else sees it.

    Attributes:
        watch: the function; None where nobody looks.
    """

    watch: Callable[[tuple[Any, ...]], None] | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        result = self.env.reset(seed=seed, options=options)
        if self.watch is not None:
            self.watch(result)
        return result

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        result = self.env.step(action)
        if self.watch is not None:
            self.watch(result)
        return result


class Executor:
    """Executes episodes in the recorded environment, whatever wrappers are around it.

    Args:
        metadata: of the buffer that the episodes are of.
        env: the environment.
        trust: whether recorded reset options are handed on, whatever they are.
        stops: is asked before each step whether to stop.

    Attributes:
        player: compares what the environment returns with the record.
        difference: the first that was found in the last episode; None where it came out as it was.
    """

    def __init__(self, metadata: Metadata, env: Watched, *, trust: bool, stops: Callable[[], bool]) -> None:
        self._env, self._stops = env, stops
        self.player = Player(metadata, env, trust=trust, any_observations=True)
        self.difference: Difference | None = None

    def execute(
        self,
        through: gym.Env[Any, Any],
        episode: Episode,
        *,
        begun: Callable[[], None] = lambda: None,
        acts: Callable[[int], bool] = lambda t: True,
        seen: Callable[[], None] = lambda: None,
    ) -> None:
        """Execute an episode, up to the first difference.

        Args:
            through: what is reset and stepped: the environment, or what is around it.
            episode: the episode.
            begun: is called after the reset.
            acts: is called with t before each step, and says whether it is to be taken.
            seen: is called whenever the environment has been reset or stepped, and nothing differs so far.

        Raises:
            Stopped: somebody asked for that.
        """
        compare, self.difference = self.player.comparison(episode), None

        def watch(result: tuple[Any, ...]) -> None:
            if self.difference is None:
                self.difference = compare(self.player.outcome(result))
            if self.difference is None:
                seen()

        arguments = self.player.prepare_reset(episode)
        self._env.watch = watch
        try:
            through.reset(**arguments)
            begun()
            for t, action in enumerate(self.player.actions_of(episode)):
                if self.difference is not None or not acts(t):
                    return
                if self._stops():
                    raise Stopped
                through.step(action)
        finally:
            self._env.watch = None


class Stopped(Exception):
    """Somebody asked to stop; the episode that was under way is not recorded."""


class Restored(Hidden):
    """The recorded environment, of which a step puts the simulator into the next recorded state instead of acting.

    It returns the recorded observations, rewards and flags, and no infos.

    Args:
        env: the environment.
        restore: puts its simulator into a state.
    """

    def __init__(self, env: gym.Env[Any, Any], restore: RestoreState) -> None:
        super().__init__(env)
        self._restore = restore
        self._t = 0
        self._episode: Episode | None = None

    def show(self, episode: Episode, observations: Sequence[Any], states: States) -> None:
        """Take the episode that the next reset begins, the T+1 observations of it, and T+1 states of the simulator."""
        self._episode, self._observations, self._t = episode, observations, 0
        self._states = states
        self._columns = [episode[name].copy() for name in ("reward", "terminated", "truncated")]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        if self._episode is None:  # a wrapper looks at what there is
            return observation, info
        return self._observe(0), {}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        assert self._episode is not None
        t, self._t = self._t, self._t + 1
        reward, terminated, truncated = (column[t] for column in self._columns)
        is_cut = t == len(self._episode) - 1 and not self._episode.complete  # which the recorder says then
        reward = reward if reward.ndim else float(reward)
        return self._observe(t + 1), reward, bool(terminated), bool(truncated) and not is_cut, {}

    def _observe(self, row: int) -> Any:
        self._restore(self.env, {name: rows[row] for name, rows in self._states.items()})
        return self._observations[row]


def states_in(episode: Episode) -> States:
    """The recorded states of the simulator; empty where they are not there in each row."""
    found = {}
    for name in episode:
        if name.startswith(f"{_STATE}."):
            is_there = episode[f"{_HAS_STATE}{name[len(_STATE) :]}"]
            if len(is_there) != len(episode) + 1 or not is_there.all():
                return {}
            found[name[len(_STATE) + 1 :]] = episode[name].copy()
    return found


class Gate(Hidden):
    """What a recorder is put around: while it is shut, a reset cuts what is recorded and does not reach further.

    Attributes:
        is_shut: whether it is shut.
    """

    is_shut = False
    _last: Any = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if self.is_shut:
            return self._last, {}
        result = self.env.reset(seed=seed, options=options)
        self._last = result[0]
        return result

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        result = self.env.step(action)
        self._last = result[0]
        return result


@dataclass(frozen=True, kw_only=True)
class View:
    """How episodes are observed again, in a form that can be sent to another process.

    Attributes:
        env: what is made instead of the recorded environment; None for that one.
        env_kwargs: arguments of the environment; they replace the recorded ones.
        wrappers: put around it, the first one innermost; functions, or their names, ``"module:name"``.
        frames: ``"only"`` to observe the rendered frame, ``"beside"`` for both, None for neither.
        restore: puts the environment's simulator into a recorded state; None for that of MuJoCo, where it is one.
        trust: whether recorded arguments and reset options are handed on, whatever they are.
    """

    env: EnvLike | None
    env_kwargs: Mapping[str, Any]
    wrappers: Sequence[Wrap | str]
    frames: str | None
    restore: RestoreState | None
    trust: bool

    def __post_init__(self) -> None:
        if self.frames is not None and self.frames not in FRAMES:
            raise FieldError(f"frames={self.frames!r}: expected one of {FRAMES}, or None")
        if isinstance(self.wrappers, str) or not all(isinstance(one, str) or callable(one) for one in self.wrappers):
            raise FieldError(
                f"wrappers: expected functions of an environment, or their names, got {self.wrappers!r:.80}"
            )

    def make(self, metadata: Metadata) -> gym.Env[Any, Any]:
        """The environment without the wrappers.

        Raises:
            MakeEnvError: the recorded environment cannot be made here.
        """
        kwargs = dict(self.env_kwargs)
        if self.frames is not None and not callable(self.env):
            kwargs.setdefault("render_mode", "rgb_array")
        if self.env is not None:
            env: gym.Env[Any, Any] = _maker(self.env, kwargs)()
        else:
            env = make_env((metadata.environment or {}).get("env_spec"), trust=self.trust, **kwargs)
        if any(name.startswith(f"{_STATE}.") for name in metadata.fields) and has_mujoco(env):
            env = SimulatorState(env)
        return env

    def wrap(self, env: gym.Env[Any, Any], metadata: Metadata) -> gym.Env[Any, Any]:
        """An environment inside of the wrappers.

        Raises:
            ConfigMismatchError: they change the actions, so that the recorded ones mean something else.
            FieldError: frames are asked of an environment that renders none.
        """
        for each in self.wrappers:
            make: Any = find_policy(each)
            env = make(env)
        if self.frames is not None:
            if env.render_mode is None:
                raise FieldError(f"frames={self.frames!r}: the environment has no render mode; make it with one")
            env = gym.wrappers.AddRenderObservation(env, render_only=self.frames == "only")
        recorded = (metadata.environment or {}).get("action_space")
        if space_to_json(env.action_space, "action") != recorded:
            raise ConfigMismatchError(
                f"reobserve: the environment that is observed takes other actions than the recorded ones: "
                f"{env.action_space}, recorded {recorded}; leave out the wrapper that changes them"
            )
        return env

    def restoring(self, env: gym.Env[Any, Any]) -> RestoreState | None:
        """What puts the simulator of an environment into a state; None where there is nothing."""
        if self.restore is not None:
            return self.restore
        return restore_mujoco if has_mujoco(env) else None

    def identity(self) -> dict[str, Any]:
        """What decides what is observed, as JSON values by argument."""
        functions = [find_policy(one) for one in self.wrappers]
        made = self.env if callable(self.env) else None
        return {
            "env": None if self.env is None else _maker(self.env, {}).identity()["env"],
            "env_kwargs": describe(self.env_kwargs),
            "wrappers": [name_of(one) for one in functions],
            "frames": self.frames,
            "restore": None if self.restore is None else name_of(self.restore),
            "code": [fingerprint(one).as_json() for one in (made, self.restore, *functions) if one is not None],
        }


def _maker(env: EnvLike, kwargs: Mapping[str, Any]) -> EnvMaker:
    return EnvMaker(env, kwargs, None, fresh_envs=False, num_envs=1, vectorization="sync")
