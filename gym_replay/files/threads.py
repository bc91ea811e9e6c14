"""The other threads of this process: which there are, and what they run."""

from __future__ import annotations

import gc
import os
import sys
import threading
from types import FrameType

_looking = threading.RLock()


def _begin_anew() -> None:
    """In a forked child the thread that held the lock may be gone."""
    global _looking
    _looking = threading.RLock()


os.register_at_fork(after_in_child=_begin_anew)


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
