"""The threads of this process: what others run, and work that is given to a pool of them."""

from __future__ import annotations

import gc
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import FrameType
from typing import Any, TypeVar

_T = TypeVar("_T")
_looking = threading.RLock()

# While it is held, no garbage is collected: a child that was forked meanwhile would never collect any.
os.register_at_fork(before=_looking.acquire, after_in_parent=_looking.release, after_in_child=_looking.release)


def frames_of_others() -> dict[int, FrameType]:
    """What each thread but the calling one runs, by its ident.

    No garbage is collected meanwhile: before Python 3.12 a finalizer that let another thread run here would wait with
    it for ever (https://github.com/python/cpython/issues/106883).
    """
    with _looking:
        collects = gc.isenabled()
        try:
            gc.disable()
            frames = sys._current_frames()
        finally:
            if collects:
                gc.enable()
    del frames[threading.get_ident()]  # which would refer to itself, and keep what it runs until it is collected
    return frames


def submit(pool: ThreadPoolExecutor, work: Callable[..., _T], *arguments: Any) -> Future[_T]:
    """Give work to a pool. Once the main thread has ended, pools take none, and the caller does it at once.

    A program may go on in other threads then: the interpreter waits for them before it exits.
    """
    try:
        return pool.submit(work, *arguments)
    except RuntimeError:
        if threading.main_thread().is_alive():
            raise
    done: Future[_T] = Future()
    try:
        done.set_result(work(*arguments))
    except Exception as error:
        done.set_exception(error)
    return done
