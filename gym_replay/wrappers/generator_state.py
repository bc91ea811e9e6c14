"""The state of an environment's random generator as five numbers, and back.

A seed given to ``reset`` decides an episode. Without one, an environment goes on with the generator that it has, so
that the generator's state before the reset stands in for the seed.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from gym_replay.errors import FieldError

NUMBERS = 5
NO_GENERATOR = bytes(8 * NUMBERS)
_PACK = struct.Struct(f"<{NUMBERS}Q").pack
_MASK_32 = (1 << 32) - 1
_MASK_64 = (1 << 64) - 1


def generator_state(env: gym.Env[Any, Any], *, create: bool = False) -> npt.NDArray[np.uint64]:
    """The state of ``env.unwrapped.np_random``, where that is a NumPy generator over PCG64, as Gymnasium's are.

    Args:
        env: the environment, wrapped or not.
        create: make the generator where there is none yet, with entropy of the operating system, just as Gymnasium
            itself would at the environment's first use of it. To be asked for before a reset without a seed: only
            then is the state of that reset known.

    Returns:
        uint64 ``(5,)``: the upper and the lower half of the state, those of the increment, and
        ``has_uint32 << 32 | uinteger``. All zeros where there is no such generator (no state is: increments are odd).

    Example:
        >>> env = gym.make("CartPole-v1")
        >>> generator_state(env).any(), generator_state(env, create=True).any()
        (np.False_, np.True_)
    """
    return np.frombuffer(generator_bytes(env, create=create), np.uint64)


def generator_states(
    envs: Sequence[gym.Env[Any, Any]], mask: npt.NDArray[np.bool_], *, create: bool
) -> npt.NDArray[np.uint64]:
    """The states of the environments in a mask, ``(len(envs), 5)``; zeros for others."""
    states = np.zeros((len(envs), NUMBERS), np.uint64)
    for index in np.flatnonzero(mask).tolist():
        states[index] = generator_state(envs[index], create=create)
    return states


def generator_bytes(env: gym.Env[Any, Any], *, create: bool = False) -> bytes:
    """The bytes of :func:`generator_state`, of which a recorder has no use as an array."""
    generator = _generator_of(env.unwrapped, create)
    return NO_GENERATOR if generator is None else _pack(generator)


def _pack(generator: np.random.Generator) -> bytes:
    state = generator.bit_generator.state
    numbers = state["state"]
    number, increment = numbers["state"], numbers["inc"]
    rest = state["has_uint32"] << 32 | state["uinteger"]
    return _PACK(number >> 64, number & _MASK_64, increment >> 64, increment & _MASK_64, rest)


def _generator_of(env: gym.Env[Any, Any], create: bool) -> np.random.Generator | None:
    # Not env.np_random: to read that creates a generator, and another class may have made anything of it.
    generator = getattr(env, "_np_random", None)
    if generator is None and create and getattr(type(env), "np_random", None) is gym.Env.np_random:
        generator = env.np_random
    is_known = type(generator) is np.random.Generator and type(generator.bit_generator) is np.random.PCG64
    return generator if is_known else None


def restore_generator(env: gym.Env[Any, Any], numbers: npt.NDArray[np.uint64]) -> bool:
    """Put an environment's generator into a state that :func:`generator_state` gave.

    A generator that is there is changed in place, so that whatever else holds it goes on with it. Five zeros change
    nothing.

    Returns:
        Whether the generator is in that state now.

    Raises:
        FieldError: ``numbers`` are no state.

    Example:
        >>> env, other = gym.make("CartPole-v1"), gym.make("CartPole-v1")
        >>> _ = env.reset(seed=7)
        >>> restore_generator(other, generator_state(env))
        True
        >>> bool(env.np_random.random() == other.np_random.random())
        True
    """
    values = [int(number) for number in np.asarray(numbers, np.uint64).reshape(NUMBERS)]
    if not any(values):
        return False
    number, increment, rest = values[0] << 64 | values[1], values[2] << 64 | values[3], values[4]
    if increment % 2 == 0 or rest >> 33:
        raise FieldError(f"{values} is no state of a PCG64 generator; pass what generator_state gave")
    inner = env.unwrapped
    generator = _generator_of(inner, create=False)
    if generator is None:
        if getattr(inner, "_np_random", None) is not None or not isinstance(inner, gym.Env):
            return False  # it uses something else, which is not ours to replace
        generator = np.random.Generator(np.random.PCG64())
        inner.np_random = generator
    generator.bit_generator.state = {
        "bit_generator": "PCG64",
        "state": {"state": number, "inc": increment},
        "has_uint32": rest >> 32,
        "uinteger": rest & _MASK_32,
    }
    return True
