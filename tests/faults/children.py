"""Work in forked children, whose ends are looked at: a bus error is no exception."""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any


class ChildError(AssertionError):
    """A child that did not end well: killed by a signal, too slow, or with an exception, whose traceback this has."""


class Child:
    """Computes ``work()``, whose value must be JSON, in a forked child, from construction on."""

    def __init__(self, work: Callable[[], Any]) -> None:
        reading, writing = os.pipe()
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.close(reading)
                report = {"value": work()}
            except BaseException:
                report = {"error": traceback.format_exc()}
            try:
                content = memoryview(json.dumps(report).encode())
                while content:
                    content = content[os.write(writing, content) :]
            finally:
                os._exit(0)
        os.close(writing)
        self._reading = reading

    def result(self, timeout: float = 600.0) -> Any:
        """The value, waited for.

        Raises:
            ChildError: there is none.
        """
        content, end = b"", time.monotonic() + timeout
        try:
            while select.select([self._reading], [], [], max(end - time.monotonic(), 0.0))[0]:
                piece = os.read(self._reading, 1 << 16)
                if not piece:
                    break
                content += piece
            else:
                os.kill(self.pid, signal.SIGKILL)
                raise ChildError(f"the child took longer than {timeout:g} s")
        finally:
            os.close(self._reading)
            _, status = os.waitpid(self.pid, 0)
        if os.WIFSIGNALED(status):
            raise ChildError(f"the child died of {signal.Signals(os.WTERMSIG(status)).name}")
        report = json.loads(content)
        if "error" in report:
            raise ChildError(report["error"])
        return report["value"]

    def outcome(self, timeout: float = 600.0) -> Any:
        """The value, or the error in its place: for those who have more children to wait for."""
        try:
            return self.result(timeout)
        except ChildError as error:
            return error


def run(work: Callable[[], Any], timeout: float = 600.0) -> Any:
    """What ``work()`` returns, computed in a forked child."""
    return Child(work).result(timeout)
