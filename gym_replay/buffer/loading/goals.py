"""Goals for goal-conditioned learning: which state each sample is to reach, drawn from the data.

The mixture is that of OGBench (S. Park, K. Frans, B. Eysenbach, S. Levine, "OGBench: Benchmarking Offline
Goal-Conditioned RL", ICLR 2025; ``GCDataset`` in ``impls/utils/datasets.py`` of its repository). The defaults are what
its GCIVL, GCIQL and HIQL agents are trained with (``impls/agents``): for the value function ``value_p_curgoal=0.2``,
``value_p_trajgoal=0.5``, ``value_p_randomgoal=0.3`` and ``value_geom_sample=True``, for the policy
``actor_p_trajgoal=1.0`` and ``actor_geom_sample=False``. Its other agents use other values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from gym_replay.buffer.loading.plans import scale
from gym_replay.buffer.loading.source import Source
from gym_replay.errors import FieldError
from gym_replay.schema.arguments import checked_number
from gym_replay.schema.arrays import Array, Bools, Floats, Ints

_WHERE = ("current", "future", "random")


class Reaching:
    """What a function that recomputes rewards is given: transitions t, and for each the goal of the value function.

    Attributes:
        reached: bool ``(batch,)``: whether the goal is the very row t.
    """

    def __init__(self, source: Source, episodes: Ints, steps: Ints, goals: tuple[Ints, Ints]) -> None:
        self._source = source
        self._episodes, self._steps = episodes, steps
        self._goals = goals
        self.reached: Bools = (goals[0] == episodes) & (goals[1] == steps)

    def current(self, name: str) -> Array:
        """A field at row t, as stored: ``(batch, *field.shape)``."""
        return self._take(name, self._episodes, self._steps, state=False)

    def following(self, name: str) -> Array:
        """A state field at row t+1."""
        if (self._steps >= self._source.last_rows[self._episodes]).any():
            raise FieldError(
                f"relabel: {name!r} has no row after the last step of an episode without its last observation; with "
                "n_steps=1 such steps are no samples"
            )
        return self._take(name, self._episodes, self._steps + 1, state=True)

    def goal(self, name: str) -> Array:
        """A state field at the goal's row."""
        return self._take(name, *self._goals, state=True)

    def _take(self, name: str, episodes: Ints, steps: Ints, *, state: bool) -> Array:
        field = self._source.fields.get(name)
        if field is None or field.ragged or (state and not field.state):
            fitting = [n for n, info in self._source.fields.items() if not info.ragged and (info.state or not state)]
            raise FieldError(f"relabel: {name!r} is none of the fields that can be asked for here: {fitting}")
        return self._source.rows.take(name, self._source.starts[episodes] + steps)


Relabel: TypeAlias = Callable[[Reaching], tuple[npt.ArrayLike, npt.ArrayLike]]
"""Gives rewards and masks, each ``(batch,)``; a mask is 0 where nothing is to be bootstrapped."""


def sparse(samples: Reaching) -> tuple[Floats, Floats]:
    """Reward 0 and mask 0 where the goal is row t itself, else -1 and 1: OGBench's, with ``gc_negative``."""
    reached = samples.reached.astype(np.float64)
    return reached - 1.0, 1.0 - reached


@dataclass(frozen=True)
class GoalMixture:
    """How likely a goal is the current state, a later one of the same episode, or any of the selected episodes.

    Args:
        current: probability of row t.
        future: probability of a row after t of the same episode, o_T included where it was recorded; row t where there
            is none.
        random: probability of a row drawn uniformly from all transitions of the selected episodes.
        geometric: draw the distance of a future row from a geometric distribution with parameter ``1 - discount``, cut
            at the episode's end; else a later row uniformly. (OGBench's uniform one rounds a real number, so that it
            takes the first and the last row half as often.)
        discount: of the geometric distribution, in [0, 1).

    Raises:
        FieldError: the probabilities do not sum up to 1, or the discount is no such number.

    Example:
        >>> GoalMixture(current=0.2, future=0.8, geometric=True, discount=0.9).random
        0.0
    """

    current: float = 0.0
    future: float = 0.0
    random: float = 0.0
    geometric: bool = False
    discount: float = 0.99

    def __post_init__(self) -> None:
        chances = [checked_number(f"GoalMixture: {name}", getattr(self, name), 1) for name in _WHERE]
        if abs(sum(chances) - 1) > 1e-6:
            raise FieldError(f"GoalMixture: expected three probabilities that sum up to 1, got {tuple(chances)}")
        if checked_number("GoalMixture: discount", self.discount, 1) == 1:
            raise FieldError("GoalMixture: discount: expected a number from 0 to below 1, got 1")

    def rows(self, steps: Ints, last: Ints, uniforms: Floats) -> tuple[Ints, Bools]:
        """The goals' rows in their own episodes, and where they are to be random ones instead.

        Args:
            steps: t of each sample.
            last: the last row of each sample's episode, counted from its first, that holds a state.
            uniforms: two numbers from [0, 1) for each sample, ``(2, samples)``.
        """
        kind, share = uniforms
        ahead = last - steps
        if self.geometric:
            with np.errstate(divide="ignore"):
                distance = np.floor(np.log1p(-share) / np.log(self.discount)) + 1
            distance = np.minimum(distance, ahead).astype(np.int64)
        else:
            distance = np.where(ahead > 0, 1 + scale(share, np.maximum(ahead, 1)), 0)
        # Sums of probabilities are rounded: where one is 0, that case must not come up at all.
        inside = 1.0 if self.random == 0 else self.current + self.future
        is_current = kind < (inside if self.future == 0 else self.current)
        return np.where(is_current, steps, steps + distance), kind >= inside


@dataclass(frozen=True)
class GoalSampler:
    """Adds goals to timestep, n-step and window batches, and rewards for reaching them.

    With ``value`` the batch gets ``value_goal_<field>`` ``(batch, *field.shape)``, ``goal_reward`` and ``goal_mask``
    ``(batch,)``; with ``policy`` it gets ``policy_goal_<field>``. The recorded ``reward`` stays beside them. The
    defaults are OGBench's. Goals are drawn anew in each epoch, and depend on nothing but the loader's seed, the epoch
    and the sample; in draws with replacement each draw of a sample has goals of its own.

    Args:
        value: how goals of the value function are drawn; None for none.
        policy: how those of the policy are drawn; None for none.
        fields: the state fields that make up a goal; None for all.
        relabel: gives rewards and masks for the goals of the value function. With workers that are spawned it must be
            a function of a module, since it is pickled.

    Raises:
        FieldError: there is neither a value nor a policy mixture.

    Example:
        >>> sampler = GoalSampler(value=GoalMixture(current=0.2, future=0.5, random=0.3, geometric=True))
        >>> loader = buffer.dataloader(256, n_steps=1, goal_sampler=sampler, shuffle=True)  # doctest: +SKIP
        >>> def reach(samples):
        ...     distance = samples.following("observation") - samples.goal("observation")
        ...     reached = np.linalg.norm(distance, axis=-1) < 0.5
        ...     return reached - 1.0, ~reached
        >>> sampler = GoalSampler(relabel=reach)
    """

    value: GoalMixture | None = field(
        default_factory=lambda: GoalMixture(current=0.2, future=0.5, random=0.3, geometric=True)
    )
    policy: GoalMixture | None = field(default_factory=lambda: GoalMixture(future=1.0))
    fields: Sequence[str] | None = None
    relabel: Relabel = sparse

    def __post_init__(self) -> None:
        for name, mixture in self.mixtures.items():
            if not isinstance(mixture, GoalMixture):
                raise FieldError(f"GoalSampler: {name}={mixture!r}: expected a GoalMixture or None")
        if not self.mixtures:
            raise FieldError("GoalSampler: value and policy are both None; give one of them a GoalMixture")
        if not callable(self.relabel):
            raise FieldError(f"GoalSampler: relabel={self.relabel!r}: expected a function of the samples")

    def relabelled(self, source: Source, episodes: Ints, steps: Ints, goals: tuple[Ints, Ints]) -> list[Array]:
        """Rewards and masks for the goals (episodes and rows) of these steps, ``(batch,)`` each.

        Raises:
            FieldError: the function gives something else.
        """
        given = self.relabel(Reaching(source, episodes, steps, goals))
        if not isinstance(given, tuple) or len(given) != 2:
            raise FieldError(f"relabel: expected a tuple of rewards and masks, got {type(given).__name__}")
        arrays = [np.array(values) for values in given]
        for name, array in zip(("goal_reward", "goal_mask"), arrays, strict=True):
            if array.dtype.kind not in "buif" or array.shape[:1] != (len(steps),):
                raise FieldError(
                    f"relabel: {name}: expected {len(steps)} numbers, got {array.dtype} of shape {array.shape}"
                )
        return arrays

    @property
    def mixtures(self) -> dict[str, GoalMixture]:
        """Those that goals are drawn from, by name."""
        both = {"value": self.value, "policy": self.policy}
        return {name: mixture for name, mixture in both.items() if mixture is not None}
