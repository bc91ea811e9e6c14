"""The shape of rewards: what the user says, what the environment declares, and what the first reward shows.

A declaration may be wrong: a wrapper that makes a number out of several rewards need not declare it. So the first
reward counts, as long as the buffer holds no episode; only what the user says is not questioned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import gymnasium as gym
import numpy.typing as npt

from gym_replay.buffer.replay_buffer import ReplayBuffer
from gym_replay.errors import FieldError
from gym_replay.schema.fields import Field, fit, to_array

RewardShape: TypeAlias = int | Sequence[int]
"""As a user gives it: the number of values, or a shape; ``()`` is a single number."""


def parse_reward_shape(shape: RewardShape | None) -> tuple[int, ...] | None:
    """The shape that a user asks for; None where that is left to the environment.

    Raises:
        FieldError: it is no shape.
    """
    if shape is None:
        return None
    try:
        sizes: tuple[int, ...] = Field("float64", shape).shape
    except FieldError:
        sizes = (0,)
    if 0 in sizes:
        raise FieldError(
            f"reward_shape={shape!r}: expected a number of values, a shape such as (2,), or () for one number"
        )
    return sizes


def declared_shape(env: Any, num_envs: int | None = None) -> tuple[int, ...]:
    """The shape of a reward of one environment that a single or vector environment declares; ``()`` where it does not.

    The outermost layer with a ``single_reward_space`` or a ``reward_space`` counts. In a vector environment the latter
    is that of all sub-environments where its first axis is as long as there are sub-environments, ``num_envs``.
    """
    lead = None if num_envs is None else (num_envs,)
    for layer in _layers(env):
        for name in ("single_reward_space", "reward_space"):
            space = getattr(layer, name, None)
            if isinstance(space, gym.spaces.Box):
                is_of_all = name == "reward_space" and space.shape[:1] == lead
                return plain_shape(space.shape[1:] if is_of_all else space.shape)
    return ()


def plain_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape, of a single value without axes: formulas such as ``reward + discount * value`` have none there."""
    return () if all(size == 1 for size in shape) else shape


class Rewards:
    """The rewards of a recorder as its field has them.

    Args:
        buffer: the recorder's.
        adopt: lets the field have another shape; False where it cannot.
        is_undecided: whether the first reward decides the shape of all.

    Attributes:
        field: what the rewards are stored as.
        is_undecided: whether no reward has decided yet.
    """

    def __init__(self, buffer: ReplayBuffer, adopt: Callable[[tuple[int, ...]], bool], *, is_undecided: bool) -> None:
        self._buffer, self._adopt, self.is_undecided = buffer, adopt, is_undecided
        self.field = buffer.metadata.fields["reward"]

    def decide(self, rewards: Any, lead: tuple[int, ...] = ()) -> bool:
        """Let the first reward, or those of the first step, decide the shape of all; whether it is another one now.

        Args:
            rewards: the reward, or the rewards of all sub-environments.
            lead: ``(num_envs,)`` of a vector environment.
        """
        self.is_undecided = False
        try:
            array = to_array(rewards, "reward")
        except FieldError:
            return False  # said where it is stored
        shape = plain_shape(array.shape[len(lead) :])
        if array.shape[: len(lead)] != lead or 0 in shape or shape == plain_shape(self.field.shape):
            return False
        if not self._adopt(shape):
            return False
        self.field = self._buffer.metadata.fields["reward"]
        return True

    def fit(self, rewards: Any, lead: tuple[int, ...] = ()) -> npt.NDArray[Any]:
        """A reward, or those of several sub-environments: ``(*lead, *field.shape)``.

        Raises:
            FieldError: it is no number, or of another shape.
        """
        if self.is_undecided:
            self.decide(rewards, lead)
        if rewards is None:
            raise FieldError("field 'reward': expected a number, got None; return 0.0 where there is no reward")
        array, expected = to_array(rewards, "reward"), self.field.shape
        found = array.shape[len(lead) :]
        if array.shape[: len(lead)] == lead and plain_shape(found) != plain_shape(expected) and 0 not in found:
            raise FieldError(
                f"field 'reward': expected shape {expected}, got {found}; all rewards of a folder have one shape: "
                f"return such rewards, or record into a new folder with reward_shape={found}"
            )
        return fit("reward", array, self.field, lead)


def _layers(env: Any) -> Iterator[Any]:
    """The environment and what it wraps, the outermost first."""
    while isinstance(env, (gym.Wrapper, gym.vector.VectorWrapper)):
        yield env
        env = env.env
    yield env
    if (base := getattr(env, "unwrapped", env)) is not env:
        yield base
