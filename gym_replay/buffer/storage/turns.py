"""One write ends before the next begins, also where a signal handler or a finalizer asks for one in the middle."""

from __future__ import annotations

import errno
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from gym_replay.errors import BufferLockedError

_T = TypeVar("_T")


class _Thread:
    """Is there for as long as a thread runs. The ident of one that has ended is given to a new one."""

    __slots__ = ("__weakref__",)


class _Here(threading.local):
    """What the calling thread has."""

    def __init__(self) -> None:
        self.thread = _Thread()


here = _Here()


class Owner:
    """The thread that writes to a folder: the first one that does, for as long as it runs.

    Attributes:
        thread: gives that one, compared with ``here.thread``; None where there was none, or it has ended.
    """

    def __init__(self) -> None:
        self.thread: Callable[[], _Thread | None] = lambda: None
        self._claiming = threading.RLock()

    @property
    def is_another(self) -> bool:
        """Whether another thread than the calling one has written, and still runs."""
        thread = self.thread()
        return thread is not None and thread is not here.thread

    def claim(self) -> bool:
        """Let this thread be the one that writes, unless another one is; return whether it is."""
        with self._claiming:
            if self.is_another:
                return False
            self.thread = weakref.ref(here.thread)
            return True


class Turns:
    """The writes to one folder.

    A signal handler runs in the middle of whatever the main thread does, and a finalizer wherever an object is
    allocated, in any thread. Where they write to the folder, or let it go, in the middle of a write to it, that waits
    for the end of the write, or is refused.

    Attributes:
        lock: is held during each write.
        left: what is done at its end.
    """

    def __init__(self) -> None:
        self.lock: Any = threading.RLock()
        self.left: deque[Callable[[], Any]] = deque()
        self._guest: _Thread | None = None

    @property
    def is_inside(self) -> bool:
        """Whether this thread is in the middle of a write."""
        return bool(self.lock._is_owned()) and not self.is_guest

    @property
    def is_guest(self) -> bool:
        """Whether this thread does what was left to be done, which it may even where another thread is the writer."""
        return self._guest is here.thread

    def refuse_inside(self, folder: object) -> None:
        """Raise BufferLockedError where this thread is in the middle of a write.

        Raises:
            BufferLockedError: it is.
        """
        if self.is_inside:
            raise BufferLockedError(
                errno.EAGAIN,
                "this thread is in the middle of a write to the buffer, which a signal handler has interrupted, and "
                "one write ends before the next begins; let the handler note the signal, or raise an exception, and "
                "write after that",
                str(folder),
            )

    @contextmanager
    def one(self, folder: object) -> Iterator[None]:
        """A write; raises as :meth:`refuse_inside` does."""
        self.refuse_inside(folder)
        try:
            # On one line, so that no interrupt comes between the end of the write and the release, which is made in C.
            with self.lock: yield  # noqa: E701  # fmt: skip
        finally:
            self.catch_up()

    def take(self, work: Callable[..., _T], *arguments: Any) -> _T:
        """Call what writes; it may be a part of another write."""
        try:
            with self.lock: return work(*arguments)  # noqa: E701  # fmt: skip
        finally:
            if self.left:
                self.catch_up()

    def when_free(self, work: Callable[[], Any]) -> None:
        """Do something that writes, from any thread: now or, where a write is under way, at its end.

        Where another thread is in the middle of a write, it is done by that thread.
        """
        self.left.append(work)
        self.catch_up()

    def puts_off(self, work: Callable[[], Any]) -> bool:
        """Where this thread is in the middle of a write, have something done at its end; return whether it is."""
        if not self.is_inside:
            return False
        self.left.append(work)
        return True

    def catch_up(self) -> None:
        """Do what was left to be done at the end of a write."""
        while self.left and not self.lock._is_owned() and self._does_next():
            pass

    def _does_next(self) -> bool:
        try:
            if not self.lock.acquire(blocking=False):
                return False  # whoever has it does what is left
            self._guest = here.thread
            if self.left:
                self.left.popleft()()
            return True
        finally:
            if self.lock._is_owned():
                self._guest = None
                self.lock.release()
