"""What happens when an object is garbage: descriptors and maps are given back, and writers end their work.

A signal handler may run between any two bytecodes, and what it raises while an object is finalized is lost. So what is
short is done by C functions alone, which a weak reference calls, and after what is long the signal is sent again.
"""

from __future__ import annotations

import functools
import operator
import os
import signal
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Hashable
from contextlib import suppress
from typing import Any

_call = operator.methodcaller("give_back")
_FEWEST = 256


class _Reference(weakref.ref):  # type: ignore[type-arg]
    __slots__ = ("give_back",)
    give_back: Callable[[], Any]


_references: dict[Hashable, _Reference] = {}
_sweep_at = _FEWEST


def when_garbage(owner: object, key: Hashable, function: Callable[..., Any], *arguments: Any) -> None:
    """Call a function that is written in C when ``owner`` is garbage, unless :func:`forget` was called before."""
    global _sweep_at
    if len(_references) > _sweep_at:  # those of garbage have done what they are for
        for old, found in [*_references.items()]:
            if found() is None:
                _references.pop(old, None)
        _sweep_at = max(2 * len(_references), _FEWEST)
    reference = _Reference(owner, _call)
    reference.give_back = functools.partial(function, *arguments)
    _references[key] = reference


def close_with(owner: object, descriptor: int) -> int:
    """Have a descriptor closed when its owner is garbage, unless :func:`close_now` came before; returns it."""
    when_garbage(owner, descriptor, os.close, descriptor)
    return descriptor


def close_now(descriptor: int) -> None:
    """Close a descriptor that was given to :func:`close_with`; without effect where it is negative."""
    if descriptor >= 0:
        _references.pop(descriptor, None)
        os.close(descriptor)


def finalize(function: Callable[..., Any], *arguments: Any) -> None:
    """Call a function from a finalizer.

    Where an interrupt comes, the function is called once more, for what is left to do, and the signal is sent again
    when the finalizer has returned.
    """
    try:
        function(*arguments)
    except Exception:
        raise
    except BaseException as error:
        with suppress(Exception):
            function(*arguments)
        with suppress(RuntimeError):  # the interpreter exits anyway
            threading.Thread(target=_send_again, args=(_signal_of(error),), daemon=True).start()


def _signal_of(error: BaseException) -> int:
    """The signal whose handler raised an error: its code is among what ran then."""
    ran = {frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__)}
    for number in signal.valid_signals():
        handler = signal.getsignal(number)
        if getattr(getattr(handler, "__func__", handler), "__code__", None) in ran:
            return number
    return signal.SIGINT


def _send_again(number: int) -> None:
    main = threading.main_thread().ident
    assert main is not None
    while _is_finalizing(main):
        time.sleep(0.001)
    signal.pthread_kill(main, number)


def _is_finalizing(thread: int) -> bool:
    frame = sys._current_frames().get(thread)
    while frame is not None and frame.f_code is not finalize.__code__:
        frame = frame.f_back
    return frame is not None
