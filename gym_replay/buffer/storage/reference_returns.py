"""Reference returns of an environment, those of a random and of an expert policy, and scores between them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from gym_replay.errors import FieldError
from gym_replay.notices import did_you_mean

REFERENCE_RETURNS = "reference_returns"

_REMEDY = (
    "`gym-replay reference FOLDER --expert RETURN` measures and saves them, and "
    "buffer.set_reference_returns(ReferenceReturns(random=..., expert=...)) saves known ones"
)


@dataclass(frozen=True)
class ReferenceReturns:
    """The mean returns of a random and of an expert policy in an environment, which are the scores 0 and 100.

    Args:
        random: of a policy that draws its actions uniformly; None where it is not known.
        expert: of an expert; None where it is not known.

    Raises:
        FieldError: one of them is no finite number.

    Example:
        >>> ReferenceReturns(random=-20.0, expert=3000.0)
        ReferenceReturns(random=-20.0, expert=3000.0)
    """

    random: float | None = None
    expert: float | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is None:
                continue
            is_number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
            try:
                number = float(value) if is_number else math.nan
            except OverflowError:  # an integer of many digits
                number = math.inf
            if not math.isfinite(number):
                raise FieldError(f"reference returns: {name}: expected a finite number or None, got {value!r:.60}")
            object.__setattr__(self, name, number)


class HasReferenceReturns(Protocol):
    """A buffer, or several."""

    @property
    def reference_returns(self) -> ReferenceReturns | None:
        """What is stored; None where nothing is."""


def normalized_score(returns: Any, reference: ReferenceReturns | HasReferenceReturns) -> Any:
    """Returns as scores: 0 is a random policy's return, and 100 an expert's.

    The score is ``100 * (return - random) / (expert - random)``, as in D4RL (Fu, Kumar, Nachum, Tucker and Levine,
    "D4RL: Datasets for Deep Data-Driven Reinforcement Learning", arXiv:2004.07219, 2020), whose function
    ``get_normalized_score``, as Minari's, leaves the factor 100 to its callers.

    Args:
        returns: one return, or an array of them of any shape.
        reference: the returns of both policies, or a buffer that has them.

    Returns:
        A float, or float64 of the same shape.

    Raises:
        FieldError: one of the two is not known, or they are equal.

    Example:
        >>> normalized_score([-20.0, 1490.0, 3000.0], ReferenceReturns(random=-20.0, expert=3000.0))
        array([  0.,  50., 100.])
    """
    found = reference if isinstance(reference, ReferenceReturns) else reference.reference_returns
    found = found or ReferenceReturns()
    missing = [name for name, value in vars(found).items() if value is None]
    if found.random is None or found.expert is None:
        policies = " and the ".join(missing)
        raise FieldError(f"normalized_score: not known: the return of the {policies} policy; {_REMEDY}")
    if found.random == found.expert:
        raise FieldError(f"normalized_score: the random and the expert return are both {found.expert:g}; {_REMEDY}")
    scores = 100.0 * ((np.asarray(returns, np.float64) - found.random) / (found.expert - found.random))
    return scores if scores.ndim else float(scores)


def reference_to_json(reference: ReferenceReturns) -> dict[str, float | None]:
    """Reference returns as a JSON object."""
    return dict(vars(reference))


def reference_from_json(value: Mapping[str, Any]) -> ReferenceReturns:
    """Reference returns of a JSON object that a stranger may have written.

    Raises:
        FieldError: it is no such object.
    """
    known = vars(ReferenceReturns())
    if unknown := [name for name in value if name not in known]:
        raise FieldError(f"{REFERENCE_RETURNS!r}: unknown member {unknown[0]!r:.60}{did_you_mean(unknown[0], known)}")
    return ReferenceReturns(**value)
