"""measure_reference: the mean returns of a random and of an expert policy in the environment of a buffer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from gym_replay.buffer.concat import ConcatReplayBuffer
from gym_replay.buffer.door import ReferenceReturns
from gym_replay.buffer.replay_buffer import ReplayBuffer
from gym_replay.collecting.environments import EnvLike
from gym_replay.collecting.evaluate import evaluate
from gym_replay.collecting.evaluation import Evaluation
from gym_replay.errors import FieldError
from gym_replay.notices import names_nearest_keyword


@names_nearest_keyword
def measure_reference(
    buffer: ReplayBuffer | ConcatReplayBuffer,
    *,
    random: float | None = None,
    expert: float | str | Callable[..., Any] | Any = None,
    episodes: int = 100,
    seed: int = 0,
    num_envs: int = 1,
    env: EnvLike | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    deterministic: bool = True,
    batched: bool | None = None,
    trust: bool = False,
    progress: bool = True,
) -> ReferenceReturns:
    """Measure the mean returns of a random and of an expert policy in a buffer's environment.

    Nothing is stored: pass the result to ``buffer.set_reference_returns``.

    Args:
        buffer: one that was recorded from an environment.
        random: the random policy's return where it is known; None to play one that draws its actions uniformly.
        expert: the expert's return, or a policy as for :func:`~gym_replay.evaluate`; None for what the buffer has.
        episodes, seed, num_envs: how many episodes are played of each policy, and how, as for
            :func:`~gym_replay.evaluate`.
        env: what is played: an id, an ``EnvSpec``, or a function; None for the environment that was recorded.
        env_kwargs: arguments of the environment; they replace the recorded ones.
        deterministic, batched: how the expert is called, as for :func:`~gym_replay.collect`.
        trust: whether all recorded arguments of the environment are handed on, as for ``buffer.make_env``.
        progress: show a bar on stderr where it takes longer than two seconds.

    Returns:
        The :class:`~gym_replay.ReferenceReturns`.

    Raises:
        MakeEnvError: the environment cannot be made here; pass ``env``.
        FieldError: rewards have several values, or an argument is wrong.

    Example:
        >>> buffer.set_reference_returns(measure_reference(buffer, expert="sb3:SAC:expert.zip"))  # doctest: +SKIP
    """

    def make(**kwargs: Any) -> Any:
        return buffer.make_env(trust=trust, **kwargs)

    def mean_of(policy: Any, **calling: Any) -> float:
        playing: dict[str, Any] = {"episodes": episodes, "seed": seed, "num_envs": num_envs}
        playing |= {"env_kwargs": env_kwargs, "progress": progress}
        return _number(evaluate(policy, make if env is None else env, **playing, **calling))

    if random is None:
        random = mean_of("random")
    found: Any = expert
    if expert is None:
        found = (buffer.reference_returns or ReferenceReturns()).expert
    elif isinstance(expert, str) or not isinstance(expert, (int, float, np.integer, np.floating)):
        found = mean_of(expert, deterministic=deterministic, batched=batched)
    return ReferenceReturns(random=random, expert=found)


def _number(found: Evaluation) -> float:
    if found.returns.ndim > 1:
        raise FieldError(
            f"reference returns are single numbers, and rewards have {found.returns.shape[1:]} values; give both "
            "returns as numbers"
        )
    return float(found.mean)
