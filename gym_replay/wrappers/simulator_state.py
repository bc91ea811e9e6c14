"""SimulatorState: the states of a simulator in the infos, so that they are recorded and can be restored later."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec

from gym_replay.errors import FieldError
from gym_replay.schema.arrays import Array

ENTRY = "simulator"
"""The entry of the infos that holds a state."""

GetState: TypeAlias = Callable[[Any], Mapping[str, Any]]
"""Takes an environment, and gives the state of its simulator: numbers and arrays by name."""

RestoreState: TypeAlias = Callable[[Any, Mapping[str, Array]], None]
"""Puts the simulator of an environment into a state."""

_MUJOCO = ("qpos", "qvel", "act", "mocap_pos", "mocap_quat")


def mujoco_state(env: Any) -> dict[str, Array]:
    """The state of an environment of MuJoCo: ``qpos``, ``qvel`` and ``time``, and where there are any ``act`` and the
    poses of mocap bodies, ``mocap_pos`` and ``mocap_quat``; float64 each, copied.

    Args:
        env: one whose ``unwrapped`` has ``model`` and ``data`` of the package mujoco, as those of Gymnasium and
            Gymnasium-Robotics have.

    Raises:
        FieldError: it is no such environment.
    """
    _, data = _mujoco_of(env)
    found = {name: np.array(getattr(data, name), np.float64) for name in _MUJOCO if getattr(data, name).size}
    return {**found, "time": np.array(data.time, np.float64)}


def restore_mujoco(env: Any, state: Mapping[str, Array]) -> None:
    """Put an environment of MuJoCo into a state that :func:`mujoco_state` gave, and compute the poses of all bodies.

    What else the environment keeps, such as a goal or a count of steps, stays as it is.

    Raises:
        FieldError: it is no such environment, or the state is of another model.
    """
    model, data = _mujoco_of(env)
    for name, value in state.items():
        if name == "time":
            data.time = float(value)
        elif name not in _MUJOCO or getattr(data, name).shape != value.shape:
            raise FieldError(f"simulator state: {name!r} of shape {value.shape} is none of this model")
        else:
            getattr(data, name)[:] = value
    from mujoco import mj_forward

    mj_forward(model, data)


def has_mujoco(env: Any) -> bool:
    """Whether an environment is one of MuJoCo, as :func:`mujoco_state` takes it."""
    inner = env.unwrapped
    return hasattr(getattr(inner, "data", None), "qpos") and hasattr(inner, "model")


def _mujoco_of(env: Any) -> tuple[Any, Any]:
    if not has_mujoco(env):
        raise FieldError(
            f"simulator state: {env} has no MuJoCo model and data; pass a function for the state of its simulator"
        )
    return env.unwrapped.model, env.unwrapped.data


class SimulatorState(gym.Wrapper[Any, Any, Any, Any]):
    """Puts the state of the simulator into the infos of each reset and step, as ``info["simulator"]``.

    A recorder around it stores the states where ``record_info`` names that entry: as the fields
    ``info.simulator.qpos`` and so on, T+1 rows each. Episodes that cannot be executed again can then be observed again
    from these states, see :func:`~gym_replay.reobserve`. The wrapper is no part of the recorded environment, since it
    changes nothing else.

    Args:
        env: the environment.
        get: gives the state of its simulator; :func:`mujoco_state` where it is left out.

    Raises:
        FieldError: ``get`` is left out, and the environment is none of MuJoCo.

    Example:
        >>> from gym_replay import RecordToBuffer
        >>> env = SimulatorState(gym.make("HalfCheetah-v5"))  # doctest: +SKIP
        >>> env = RecordToBuffer(env, "data/cheetah", record_info=["simulator"])  # doctest: +SKIP
    """

    def __init__(self, env: gym.Env[Any, Any], get: GetState = mujoco_state) -> None:
        super().__init__(env)
        if get is mujoco_state:
            _mujoco_of(env)
        self._get = get

    @property
    def spec(self) -> EnvSpec | None:  # type: ignore[override]
        """The spec of the environment inside, which is what is made again."""
        return self.env.spec

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        return observation, {**info, ENTRY: dict(self._get(self.env))}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        return observation, reward, terminated, truncated, {**info, ENTRY: dict(self._get(self.env))}
