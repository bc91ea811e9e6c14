"""Names of keys, as people and environments write them: pygame's names, characters, numbers, and several at once."""

from __future__ import annotations

import re
from typing import Any

from gym_replay.errors import FieldError
from gym_replay.notices import did_you_mean

_DEVICES = re.compile(r"(axis|trigger|button) \d+|(pad|stick) (left|right|up|down)")

_OLD_CODES = {273: "up", 274: "down", 275: "right", 276: "left"}
"""Numbers that arrow keys had in pygame 1, and that environments still name."""

_MOST_CHARACTERS = 3
"""A longer word is no row of characters, but a name with a mistake in it."""

_OTHER_WORDS = {
    " ": "space",
    "\r": "return",
    "\t": "tab",
    "pageup": "page up",
    "pagedown": "page down",
}


class KeyNames:
    """The names that keys have in this version of pygame.

    Args:
        pygame: the module.
    """

    def __init__(self, pygame: Any) -> None:
        self._pygame = pygame
        codes = [getattr(pygame, name) for name in dir(pygame) if name.startswith("K_")]
        self._known = {name for code in codes if (name := pygame.key.name(code))}

    def chord(self, keys: Any) -> frozenset[str]:
        """The names of keys that are pressed together.

        Args:
            keys: a name such as ``"left"``, several as ``"left+space"``, a number as pygame has it, or a tuple of
                these; up to three characters that are no name are as many keys, as in Gymnasium's ``play``.

        Raises:
            FieldError: there is no such key.
        """
        if isinstance(keys, (tuple, list, frozenset)):
            return frozenset(name for each in keys for name in self._one_or_more(each))
        return frozenset(self._one_or_more(keys))

    def _one_or_more(self, key: Any) -> list[str]:
        if (name := self._name(key)) is not None:
            return [name]
        if isinstance(key, str):
            parts = key.split("+") if "+" in key else list(key[: _MOST_CHARACTERS + 1])
            names = [self._name(part.strip() or part) for part in parts]
            if None not in names and ("+" in key or 0 < len(names) <= _MOST_CHARACTERS):
                return [name for name in names if name is not None]
        hint = did_you_mean(key, self._known) if isinstance(key, str) and len(key) > 1 else ""
        if not hint.startswith("; did"):
            hint = "; name one as 'left', 'space', 'a' or 'button 0', or several as 'left+space'"
        raise FieldError(f"keys: there is no key {key!r}{hint}")

    def _name(self, key: Any) -> str | None:
        if isinstance(key, str):
            lower = _OTHER_WORDS.get(key.lower(), key.lower())
            return lower if lower in self._known or _DEVICES.fullmatch(lower) else None
        if isinstance(key, int):
            name: str = self._pygame.key.name(key) or _OLD_CODES.get(key, "")
            return name or None
        return None
