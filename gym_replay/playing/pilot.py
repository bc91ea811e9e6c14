"""From what the devices say to what a person wants: actions and commands, pause, and who has the controls."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Literal, TypeAlias

from gym_replay.playing.controls import Controls, Help, known_name
from gym_replay.playing.devices import Input
from gym_replay.playing.person import Intent, Wish

Command: TypeAlias = Literal["keep", "discard", "repeat", "quit", "pause", "take over"]

_CANDIDATES: Mapping[Command, tuple[str, ...]] = {
    "keep": ("return", "k", "f2"),
    "discard": ("backspace", "delete", "f3"),
    "repeat": ("r", "home", "f4"),
    "pause": ("p", "break", "f5"),
    "take over": ("tab", "t", "f6"),
    "quit": ("escape", "f10"),
}
"""The key of a command is the first of these that plays no part in the actions."""

_BUTTONS: Mapping[Command, str] = {"pause": "button 7", "take over": "button 4"}
"""Of gamepads, where they play no part in the actions."""

_BUTTONS_AT_END: Mapping[str, Command] = {
    "button 0": "keep",
    "button 1": "discard",
    "button 2": "repeat",
    "button 6": "quit",
}
"""Of gamepads, once an episode is over."""


def choose_keys(taken: frozenset[str]) -> dict[str, Command]:
    """Keys and buttons for the commands, none of which plays a part in the actions.

    Args:
        taken: the names that do.

    Example:
        >>> choose_keys(frozenset({"p", "tab", "enter"}))
        {'k': 'keep', 'backspace': 'discard', 'r': 'repeat', 'break': 'pause', 't': 'take over', 'escape': 'quit', \
'button 7': 'pause', 'button 4': 'take over'}
    """
    chosen: dict[str, Command] = {}
    for command, candidates in _CANDIDATES.items():
        free = [name for name in candidates if known_name(name, taken) is None]
        if free:
            chosen[free[0]] = command
    return {**chosen, **{name: command for command, name in _BUTTONS.items() if name not in taken}}


class Pilot:
    """A person at a keyboard or a gamepad.

    Without a policy the person always acts, and each episode begins with a key or a stick of the controls. With one,
    the policy acts until one of these is used, as long as it is; the key for taking over gives the person the controls
    until it is pressed again.

    Args:
        controls: make the actions.
        has_policy: whether there is somebody else to act.
        waits: whether the environment stands still until a key of the controls is pressed; each press is one step.

    Attributes:
        is_paused: whether everything stands still.
        has_controls: whether the person has the controls, also while nothing is held.
        is_acting: whether the person acted last.
    """

    def __init__(self, controls: Controls, *, has_policy: bool, waits: bool) -> None:
        self._controls, self._has_policy, self._waits = controls, has_policy, waits
        self._commands = choose_keys(controls.names)
        self._presses: deque[str] = deque()
        self.is_paused = False
        self.has_controls = self.is_acting = not has_policy
        self._begins = False

    def intend(self, seen: Input, *, is_first: bool, is_over: bool) -> Intent:
        """What the person wants.

        Args:
            seen: what the devices say.
            is_first: whether the next step is the first of its episode.
            is_over: whether the episode is over, and it is asked what becomes of it.
        """
        self._begins = is_first and not self._has_policy
        if seen.is_closed:
            return Intent(wish="quit")
        commands = {**self._commands, **(_BUTTONS_AT_END if is_over else {})}
        self._presses += (name for name in seen.pressed if name in commands or self._is_step(name))
        pressed = None
        while self._presses and pressed is None:
            name = self._presses.popleft()
            if name not in commands:
                pressed = None if is_over or self.is_paused else name
            elif (wish := self._obey(commands[name], is_over=is_over)) is not None:
                self._controls.let_go()
                return Intent(wish=wish)
        if is_over or self.is_paused:
            self._controls.let_go()
            return Intent(wish="wait")
        return self._act(seen, pressed)

    def _is_step(self, name: str) -> bool:
        """Whether a press is a step of its own."""
        return self._waits and known_name(name, self._controls.names) is not None

    def _obey(self, command: Command, *, is_over: bool) -> Wish | None:
        """Do what a command says, or return it where that is not for the pilot to do."""
        if command == "pause":
            self.is_paused = not (self.is_paused or is_over)
        elif command == "take over":
            self.has_controls = not self._has_policy or not self.has_controls
        else:
            self.is_paused = False
            return command
        return None

    def _act(self, seen: Input, pressed: str | None) -> Intent:
        held, axes = list(seen.held), seen.axes
        if self._waits:
            later = {pressed, *self._presses}
            held, axes = [name for name in held if name not in later], seen.axes if pressed else {}
            held = [*held, pressed] if pressed else []
        action = self._controls.act(held, axes)
        self.is_acting = action is not None or self.has_controls
        if action is None and not self.has_controls:
            self._controls.let_go()
            return Intent()
        if action is None and (self._waits or self._begins):
            return Intent(wish="wait")
        return Intent(self._controls.idle() if action is None else action)

    # --- for the screen ---

    @property
    def state(self) -> str:
        """Who acts."""
        if self.is_paused:
            return "paused"
        if self._begins:
            return "it begins with a key of the actions"
        if not self._has_policy:
            return "you play" + (" - each key is a step" if self._waits else "")
        return "YOU PLAY" if self.is_acting else "the policy plays"

    @property
    def help(self) -> Help:
        """The keys of the actions, and then of the commands."""
        keys = {command: name for name, command in self._commands.items() if not name.startswith("button")}
        told: list[tuple[str, str]] = list(self._controls.help)
        words: dict[Command, str] = {command: command for command in keys}
        if self._has_policy:
            words["take over"] = "give back" if self.has_controls else "take over (or hold a key of the actions)"
        else:
            words.pop("take over", None)
        return told + [(keys[command], word) for command, word in words.items()]

    @property
    def help_at_end(self) -> Help:
        """The keys that say what becomes of an episode that is over."""
        keys = {command: name for name, command in self._commands.items() if not name.startswith("button")}
        words: dict[Command, str] = {
            "keep": "keep it",
            "discard": "discard it",
            "repeat": "discard it and play it again",
            "quit": "keep it and quit",
        }
        return [(keys[command], word) for command, word in words.items() if command in keys]
