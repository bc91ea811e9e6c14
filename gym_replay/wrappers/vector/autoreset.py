"""What a vector step means for each sub-environment, in each autoreset mode."""

from __future__ import annotations

from enum import Enum
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gym_replay.errors import FieldError

Mask = npt.NDArray[np.bool_]
"""One bool for each sub-environment."""

EnvIndices = npt.NDArray[np.int64]
"""The indices of some sub-environments."""


class Autoreset(Enum):
    """How a vector environment resets what has ended; the values are those of Gymnasium's own ``AutoresetMode``."""

    NEXT_STEP = "NextStep"
    SAME_STEP = "SameStep"
    DISABLED = "Disabled"


_NEXT_STEP, _SAME_STEP = Autoreset.NEXT_STEP, Autoreset.SAME_STEP  # to find a member takes as long as to add arrays


def declared_mode(envs: Any, given: Any = None) -> Autoreset | None:
    """The mode that the user names, or else the vector environment's metadata; None where they name none.

    Gymnasium 1.0 knows no other mode than next-step, and no name for it.

    Raises:
        FieldError: what they name is no mode.
    """
    named = envs.metadata.get("autoreset_mode") if given is None else given
    if named is None:
        return None
    try:
        return Autoreset(getattr(named, "value", named))
    except ValueError:
        known = [mode.value for mode in Autoreset]
        where = "autoreset_mode" if given is not None else "metadata['autoreset_mode']"
        raise FieldError(f"{where}={named!r}: expected an AutoresetMode, one of {known}") from None


class TransitionKinds(NamedTuple):
    """What one vector step was for each sub-environment.

    Attributes:
        ended: it was the last transition of an episode.
        opened: what it returned is the first observation of an episode.
        running: an episode is running after it.
        waiting: the next step resets the sub-environment, whatever its action.
    """

    ended: Mask
    opened: Mask
    running: Mask
    waiting: Mask


def transition_kinds(mode: Autoreset, running: Mask, waiting: Mask, done: Mask) -> TransitionKinds:
    """What a step was that reported ``done``, terminated or truncated.

    A sub-environment that is neither running nor waiting is one of which nothing is known (since an exception, say):
    its steps are no transitions until a reset of it is certain.

    Args:
        mode: the autoreset mode.
        running: whether an episode was running before the step.
        waiting: whether the step was to reset the sub-environment.
        done: what the step reported.

    Example:
        >>> yes, no = np.array([True]), np.array([False])
        >>> transition_kinds(Autoreset.NEXT_STEP, yes, no, done=yes).waiting
        array([ True])
        >>> transition_kinds(Autoreset.NEXT_STEP, no, yes, done=no).opened
        array([ True])
        >>> transition_kinds(Autoreset.SAME_STEP, yes, no, done=yes).opened
        array([ True])
    """
    ended = running & done
    if mode is _NEXT_STEP:
        return TransitionKinds(ended, waiting, (running | waiting) > done, done)  # of bools: the one and not the other
    if mode is _SAME_STEP:
        return TransitionKinds(ended, done, running | done, waiting)
    return TransitionKinds(ended, np.zeros_like(done), running > done, waiting)
