"""Vector environments that people train on, of packages that make their own, for ``benchmarks.record_vector``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

import gymnasium as gym

from benchmarks.peers import Package

Envs = gym.vector.VectorEnv[Any, Any, Any]
NUM_ENVS = 8


@dataclass(frozen=True)
class Trained:
    """A vector environment of :data:`NUM_ENVS` sub-environments, and what must be installed for it."""

    package: Package
    make: Callable[[], Envs]


def _envpool(task: str) -> Envs:
    made: Envs = import_module("envpool").make_gymnasium(task, num_envs=NUM_ENVS, seed=0)
    return made


def _ale() -> Envs:
    made: Envs = import_module("ale_py.vector_env").AtariVectorEnv("pong", num_envs=NUM_ENVS)
    return made


def _mujoco() -> Envs:
    return gym.make_vec("HalfCheetah-v5", num_envs=NUM_ENVS, vectorization_mode="async")


_ENVPOOL = Package("envpool", "envpool", ("envpool",))

TRAINED = {
    "EnvPool's CartPole-v1": Trained(_ENVPOOL, partial(_envpool, "CartPole-v1")),
    "EnvPool's Pong-v5": Trained(_ENVPOOL, partial(_envpool, "Pong-v5")),
    "ale-py's Pong": Trained(Package("ale-py", "ale-py", ("ale_py.vector_env",)), _ale),
    "HalfCheetah-v5 in processes": Trained(Package("mujoco", "gymnasium[mujoco]", ("mujoco",)), _mujoco),
}


def actions_of(envs: Envs) -> gym.Space[Any]:
    """The action space of all sub-environments; EnvPool's has that of one."""
    space, single = envs.action_space, envs.single_action_space
    return gym.vector.utils.batch_space(single, envs.num_envs) if space == single else space
