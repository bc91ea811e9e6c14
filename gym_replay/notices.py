"""What people are told beside results and warnings: sentences that go through the logger ``gym_replay``.

Without any set-up Python's logging writes them to the standard error.
``logging.getLogger("gym_replay").setLevel("ERROR")`` lets none of them through.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterable

from gym_replay.errors import printable

_LOGGER = logging.getLogger("gym_replay")
_told: set[str] = set()


def tell(text: str) -> None:
    """Tell people something."""
    _LOGGER.warning("%s", printable(text))


def tell_once(subject: str, text: str) -> None:
    """Tell people something, unless this process has told it about the same subject before."""
    if subject not in _told:
        _told.add(subject)
        tell(text)


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the nearest one that there is, or all of them.

    Example:
        >>> did_you_mean("obsevation", ["observation", "action"])
        "; did you mean 'observation'?"
        >>> did_you_mean("x", ["observation", "action"])
        "; there are ['observation', 'action']"
    """
    known = list(known)
    folded = {each.casefold(): each for each in known}
    near = difflib.get_close_matches(str(name).casefold(), folded, 1, 0.5)
    return f"; did you mean {folded[near[0]]!r}?" if near else f"; there are {known}"
