"""What happens when an object is garbage: descriptors and maps are given back, and writers end their work.

A signal handler may run between any two bytecodes, and what it raises while an object is finalized is lost. So what is
short is done by a C function alone, and after what is long the signal is sent again.
"""

from __future__ import annotations

import os
import signal
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from gym_replay.files.threads import frames_of_others


class AtEnd:
    """Calls a function that is written in C when this object is garbage, unless the call was cancelled.

    ``__del__`` is a slot, which holds the call: the interpreter finds and makes it without running a bytecode.
    """

    __slots__ = ("__del__",)
    __del__: Callable[[], Any]

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.__del__ = partial(function, *arguments)

    def cancel(self) -> None:
        """Call nothing."""
        self.__del__ = partial(bool)


class Descriptor(AtEnd):
    """An open file, closed at the latest when this object is garbage.

    Attributes:
        number: what the operating system calls it; negative once it is closed.
    """

    __slots__ = ("number",)

    def __init__(self, number: int) -> None:
        super().__init__(os.close, number)
        self.number = number

    def close(self) -> None:
        """Close it; without effect the second time."""
        number, self.number = self.number, -1
        if number >= 0:
            self.cancel()
            os.close(number)


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
    while any(frame.f_code is finalize.__code__ for frame, _ in traceback.walk_stack(frames_of_others()[main])):
        time.sleep(0.001)
    signal.pthread_kill(main, number)
