"""What whoever plays is shown, and what they want: the seam between the loop and a window, or a script."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

from gym_replay.errors import FieldError
from gym_replay.notices import did_you_mean
from gym_replay.wrappers.session import FinishedEpisode

Wish: TypeAlias = Literal["keep", "discard", "repeat", "wait", "quit"]
WISHES: tuple[Wish, ...] = get_args(Wish)


@dataclass(frozen=True)
class Scene:
    """What is there to be seen before each step of :func:`gym_replay.play`, and once an episode is over.

    Attributes:
        observation: what the environment returned last; at the end of an episode what it returned before that.
        episode: the number that the episode will have in the folder, from 1 on.
        step: how many transitions it has.
        episode_return: the sum of its rewards, over all of their values.
        policy_action: what the policy would do now; None without a policy, and at the end of an episode.
        finished: the episode, where it is over and a wish decides what becomes of it; else None.
        frame: renders the environment: uint8 ``(height, width, 3)``.
    """

    observation: Any
    episode: int
    step: int
    episode_return: float
    policy_action: Any
    finished: FinishedEpisode | None
    frame: Callable[[], Any]


@dataclass(frozen=True)
class Intent:
    """What whoever plays wants now: an action, or something else.

    Attributes:
        action: it is executed; None leaves the step to the policy, or, without one, lets the environment stand still.
        wish: ``"wait"`` lets it stand still; ``"keep"``, ``"discard"`` and ``"repeat"`` end the episode, and say what
            becomes of it: ``"repeat"`` discards it and plays one from the same seed. ``"quit"`` ends all.

    Raises:
        FieldError: there is no such wish.

    Example:
        >>> Intent(action=1), Intent(wish="keep")
        (Intent(action=1, wish=None), Intent(action=None, wish='keep'))
    """

    action: Any = None
    wish: Wish | None = None

    def __post_init__(self) -> None:
        if self.wish is not None and self.wish not in WISHES:
            raise FieldError(f"Intent: there is no wish {self.wish!r}{did_you_mean(self.wish, WISHES)}")


Person: TypeAlias = Callable[[Scene], Intent]
"""Is asked before each step, and at the end of each episode again and again until it wishes something."""
