"""From what is held to an action: keys that mean whole actions, or keys and axes that each move a part of one."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Protocol, TypeAlias

import numpy as np

from gym_replay.schema.arrays import Array, Floats

LAST = "last"
"""As an idle action: the one before, again."""

_DEAD_ZONE = 0.1
"""Sticks that are let go come to rest somewhere near their middle."""

_STANDS_FOR: Mapping[str, str] = {
    "pad left": "left",
    "pad right": "right",
    "pad up": "up",
    "pad down": "down",
    "stick left": "left",
    "stick right": "right",
    "stick up": "up",
    "stick down": "down",
    "left": "a",
    "right": "d",
    "up": "w",
    "down": "s",
    "button 0": "space",
    "return": "enter",
    "enter": "return",
}
"""Which key a name stands for where the name itself means nothing: arrows are as good as w, a, s and d."""

Help: TypeAlias = Sequence[tuple[str, str]]
"""What to press, and what it does."""


class Controls(Protocol):
    """Makes actions of what is held.

    Attributes:
        names: of the keys, buttons and axes that it knows.
        help: what they do.
    """

    names: frozenset[str]
    help: Help

    def act(self, held: Sequence[str], axes: Mapping[str, float]) -> Any:
        """The action of what is held, in the order in which it was pressed; None where nothing of it is known."""

    def idle(self) -> Any:
        """The action of somebody who holds nothing, once :meth:`act` has said so."""

    def let_go(self) -> None:
        """Whoever played does not any more: an episode ended, or a policy goes on."""


def known_name(name: str, names: frozenset[str]) -> str | None:
    """The name itself, or what it stands for, where that is known."""
    tried = set()
    while name not in names:
        tried.add(name)
        stands_for = _STANDS_FOR.get(name)
        if stands_for is None or stands_for in tried:
            return None
        name = stands_for
    return name


def _all_known(held: Iterable[str], names: frozenset[str]) -> list[str]:
    return [known for name in held if (known := known_name(name, names)) is not None]


class Chords:
    """Keys that mean whole actions, alone or several at once, of any action space.

    Of keys that mean nothing together, as many as mean something count, and among as many those pressed last.

    Args:
        actions: what each set of names means.
        idle: the action of somebody who holds nothing; ``"last"`` for the one before.
        help: what the names do.

    Example:
        >>> chords = Chords({frozenset({"a"}): 1, frozenset({"d"}): 2, frozenset({"a", "w"}): 3}, idle=0, help=())
        >>> chords.act(["a"], {}), chords.act(["w", "a"], {}), chords.act(["a", "d"], {}), chords.act([], {})
        (1, 3, 2, None)
        >>> chords.act(["pad right"], {}), chords.idle()
        (2, 0)
    """

    def __init__(self, actions: Mapping[frozenset[str], Any], idle: Any, help: Help) -> None:
        self._actions = dict(actions)
        self._rests = not (isinstance(idle, str) and idle == LAST)
        self._first = idle if self._rests else next(iter(self._actions.values()))
        self._last = self._first
        self.names = frozenset().union(*self._actions)
        self.help = help

    def act(self, held: Sequence[str], axes: Mapping[str, float]) -> Any:
        names = _all_known(held, self.names)
        chord = self._chord(names)
        if chord is None:
            return None
        self._last = self._actions[chord]
        return copy.deepcopy(self._last)

    def _chord(self, names: list[str]) -> frozenset[str] | None:
        if frozenset(names) in self._actions:
            return frozenset(names) or None
        order = {name: at for at, name in enumerate(names)}
        fitting = [chord for chord in self._actions if chord and chord <= order.keys()]
        return max(fitting, key=lambda chord: (len(chord), max(order[name] for name in chord)), default=None)

    def idle(self) -> Any:
        return copy.deepcopy(self._first if self._rests else self._last)

    def let_go(self) -> None:
        self._last = self._first


class Parts:
    """Keys and axes that each move parts of an action, which is an array of numbers.

    A key moves its parts towards their targets, at most so far in a step, and let go they move back to rest. Of two
    keys of one part the one pressed last counts. An axis is there at once: a part is as far from rest as the axis is,
    relative to the target.

    Args:
        space: of the actions: a Box, MultiDiscrete or MultiBinary.
        targets: by name of a key, ``"axis N"`` (a stick, -1 to 1) or ``"trigger N"`` (of the same number, where -1 is
            rest), the targets by index in the flattened action.
        rest: the parts of the action of somebody who holds nothing, float64 ``(parts,)``.
        pace: how far each part moves in a step, float64 ``(parts,)``; infinite for at once.
        help: what the names do.

    Example:
        >>> from gymnasium.spaces import Box
        >>> parts = Parts(Box(-1, 1, (1,)), {"left": {0: -1.0}, "axis 0": {0: 1.0}}, np.zeros(1), np.array([0.75]), ())
        >>> [parts.act(["left"], {}).item() for _ in range(3)], parts.act([], {}), parts.idle().item()
        ([-0.75, -1.0, -1.0], None, -0.25)
        >>> parts.act([], {"axis 0": 0.5}).item()
        0.5
    """

    AXIS: ClassVar[str] = "axis "
    TRIGGER: ClassVar[str] = "trigger "

    def __init__(
        self, space: Any, targets: Mapping[str, Mapping[int, float]], rest: Floats, pace: Floats, help: Help
    ) -> None:
        self._space, self._rest, self._pace = space, rest, pace
        self._analog = {name: each for name, each in targets.items() if name.startswith((self.AXIS, self.TRIGGER))}
        self._keys = {name: each for name, each in targets.items() if name not in self._analog}
        self._key_names = frozenset(self._keys)
        self.names, self.help = frozenset(targets), help
        self._now = rest.copy()

    def act(self, held: Sequence[str], axes: Mapping[str, float]) -> Any:
        names = _all_known(held, self._key_names)
        targets = self._rest.copy()
        for name in names:
            for index, target in self._keys[name].items():
                targets[index] = target
        self._now += np.clip(targets - self._now, -self._pace, self._pace)
        is_moved = bool(names)
        for name, each in self._analog.items():
            share = self._share(name, axes)
            if abs(share) < _DEAD_ZONE:
                continue
            is_moved = True
            for index, target in each.items():
                self._now[index] = self._rest[index] + share * (target - self._rest[index])
        return self._action() if is_moved else None

    def _share(self, name: str, axes: Mapping[str, float]) -> float:
        if name.startswith(self.AXIS):
            return axes.get(name, 0.0)
        value = axes.get(name.replace(self.TRIGGER, self.AXIS))
        return 0.0 if value is None else (value + 1) / 2

    def idle(self) -> Any:
        return self._action()  # act moved it back

    def _action(self) -> Array:
        space, now = self._space, self._now
        if np.issubdtype(space.dtype, np.integer):
            now = np.rint(now)
        action: Array = now.reshape(space.shape).astype(space.dtype)
        low, high = getattr(space, "low", None), getattr(space, "high", None)
        return action if low is None or high is None else np.clip(action, low, high)

    def let_go(self) -> None:
        self._now = self._rest.copy()
