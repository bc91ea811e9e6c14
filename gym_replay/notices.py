"""What people are told beside results and warnings: sentences through the logger ``gym_replay``, and bars.

Without any set-up Python's logging writes them to the standard error.
``logging.getLogger("gym_replay").setLevel("ERROR")`` lets none of them through.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import logging
import sys
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from typing_extensions import ParamSpec

from gym_replay.errors import printable

_P = ParamSpec("_P")
_R = TypeVar("_R")

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


def bar(total: int, what: str, unit: str, *, progress: bool, delay: float = 1, **settings: Any) -> Any:
    """A bar of tqdm on the standard error, where somebody looks at that and it takes longer than a second.

    Args:
        total: how much there is to do.
        what: is done.
        unit: of the total.
        progress: whether there is a bar at all; the environment variable ``TQDM_DISABLE`` says no too.
        delay: seconds before it is shown.
        settings: of tqdm.
    """
    from tqdm import tqdm

    is_shown = progress and sys.stderr is not None and (sys.stderr.isatty() or _is_notebook(sys.stderr))
    hidden: dict[str, Any] = {} if is_shown else {"disable": True}
    return tqdm(total=total, desc=what, unit=unit, delay=delay, **settings, **hidden)


def _is_notebook(stream: Any) -> bool:
    """Whether a stream is shown below a cell of a notebook, which is no terminal."""
    return type(stream).__module__ == "ipykernel.iostream"


def did_you_mean(name: object, known: Iterable[str], *, remedy: str = "") -> str:
    """The end of a message about an unknown name: the nearest one that there is, or all of them and a remedy.

    Args:
        name: the unknown name.
        known: those that there are.
        remedy: what to do where none of them is near.

    Example:
        >>> did_you_mean("obsevation", ["observation", "action"])
        "; did you mean 'observation'?"
        >>> did_you_mean("x", ["observation", "action"])
        "; there are ['observation', 'action']"
        >>> did_you_mean("obs", ["observation", "action"])
        "; did you mean 'observation'?"
        >>> did_you_mean("top", ["observation.camera.top", "action"])
        "; did you mean 'observation.camera.top'?"
    """
    known = list(known)
    folded = {each.casefold(): each for each in known}
    near = difflib.get_close_matches(str(name).casefold(), folded, 1, 0.5)
    if not near:  # of a nested name, its last part
        near = [each for each in folded if each.rpartition(".")[2] == str(name).casefold()][:1]
    if not near and len(str(name)) > 2:  # a beginning is far from a long name
        near = [each for each in folded if each.startswith(str(name).casefold())][:1]
    if near:
        return f"; did you mean {folded[near[0]]!r}?"
    return f"; there {f'are {known}' if known else 'is none'}" + (f"; {remedy}" if remedy else "")


def names_nearest_keyword(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Have a function's TypeError for an unknown keyword name the nearest one, and say what goes without a name.

    Example:
        >>> @names_nearest_keyword
        ... def play(env, *, episodes=1): ...
        >>> play("CartPole-v1", episode=2)
        Traceback (most recent call last):
        TypeError: play() has no keyword 'episode'; did you mean 'episodes'?
    """
    parameters = [each for each in inspect.signature(function).parameters.values() if each.kind is not each.VAR_KEYWORD]
    known = [each.name for each in parameters]
    nameless = [each.name for each in parameters if each.kind is not each.KEYWORD_ONLY]

    @functools.wraps(function)
    def checked(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        for name in kwargs:
            if name not in known:
                raise TypeError(f"{function.__name__}() has no keyword {name!r}{did_you_mean(name, known)}")
        if len(args) > len(nameless):
            raise TypeError(
                f"{function.__name__}({', '.join(nameless)}, ...) takes {len(nameless)} values without names, got "
                f"{len(args)}; several of a kind are one list, [a, b], and options have names"
            )
        return function(*args, **kwargs)

    return checked
