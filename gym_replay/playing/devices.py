"""Keyboard and gamepads: from pygame's events to what is held, what was pressed, and where the sticks are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

_PUSHED = 0.5
"""How far the left stick is pushed where it counts as a key of that direction."""

_DIRECTIONS = (("left", "right"), ("up", "down"))
"""Of the first two axes, what their negative and their positive end mean."""


@dataclass(frozen=True)
class Input:
    """What the devices say since the last look.

    Keys have pygame's names (``"left"``, ``"space"``, ``"a"``, ``"page up"``), buttons of gamepads are ``"button 0"``,
    the directions of a pad ``"pad left"``, and those of the left stick ``"stick left"``.

    Attributes:
        held: what is held, or was for a moment; what was pressed last comes last.
        pressed: what was pressed, in order.
        axes: of sticks and triggers that were moved, from -1 to 1, by name: ``"axis 0"``.
        is_closed: whether the window was closed.
    """

    held: tuple[str, ...] = ()
    pressed: tuple[str, ...] = ()
    axes: Mapping[str, float] = field(default_factory=dict)
    is_closed: bool = False


class Devices:
    """All keyboards and gamepads together; gamepads may come and go.

    Args:
        pygame: the module.
    """

    def __init__(self, pygame: Any) -> None:
        self._pygame = pygame
        self._held: dict[str, None] = {}
        self._axes: dict[str, float] = {}
        self._gamepads: dict[int, Any] = {}
        self._pressed: list[str] = []
        pygame.joystick.init()

    def look(self, events: Iterable[Any]) -> Input:
        """What there is to say after these events of pygame's."""
        self._pressed = []
        is_closed = False
        for event in events:
            is_closed = is_closed or event.type == self._pygame.QUIT
            self._note(event)
        held = {**dict.fromkeys(name for name in self._held if name not in self._pressed)}
        held |= dict.fromkeys(self._pressed)
        return Input(tuple(held), tuple(self._pressed), dict(self._axes), is_closed)

    def _note(self, event: Any) -> None:
        pygame = self._pygame
        kind = event.type
        if kind in (pygame.KEYDOWN, pygame.KEYUP):
            self._hold(pygame.key.name(event.key), kind == pygame.KEYDOWN)
        elif kind in (pygame.JOYBUTTONDOWN, pygame.JOYBUTTONUP):
            self._hold(f"button {event.button}", kind == pygame.JOYBUTTONDOWN)
        elif kind == pygame.JOYHATMOTION:
            across, up = event.value
            self._hold_directions("pad", (across, -up))
        elif kind == pygame.JOYAXISMOTION:
            self._axes[f"axis {event.axis}"] = float(event.value)
            self._hold_directions("stick", (self._axes.get("axis 0", 0.0), self._axes.get("axis 1", 0.0)))
        elif kind == pygame.JOYDEVICEADDED:
            gamepad = pygame.joystick.Joystick(event.device_index)
            self._gamepads[gamepad.get_instance_id()] = gamepad  # whose events come as long as it is open
        elif kind == pygame.JOYDEVICEREMOVED:
            self._gamepads.pop(event.instance_id, None)
            self._let_go()
        elif kind == pygame.WINDOWFOCUSLOST:  # what is let go now, nobody tells
            self._let_go()

    def _hold_directions(self, device: str, values: tuple[float, float]) -> None:
        for value, (less, more) in zip(values, _DIRECTIONS, strict=True):
            self._hold(f"{device} {less}", value < -_PUSHED)
            self._hold(f"{device} {more}", value > _PUSHED)

    def _hold(self, name: str, is_held: bool) -> None:
        if not is_held:
            self._held.pop(name, None)
        elif name and name not in self._held:
            self._held[name] = None
            self._pressed.append(name)

    def _let_go(self) -> None:
        self._held.clear()
        self._axes.clear()
