"""Settings of all tests."""

import gc
import os
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import warnings
from contextlib import suppress
from multiprocessing.util import Finalize
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import HealthCheck, settings

# How long an example takes, or to make one, says nothing about what it asserts; nor does how large it is. Examples of
# one test have folders of their own, whatever the fixture that they come from.
settings.register_profile(
    "suite",
    deadline=None,
    suppress_health_check=[check for check in HealthCheck if check is not HealthCheck.filter_too_much],
)
settings.load_profile("suite")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell that ignores Ctrl-C hands that on to what it starts in the background, and tests press it.
    signal.signal(signal.SIGINT, signal.default_int_handler)


class Child(subprocess.Popen):
    """A process that a test starts: in a group of its own, which ends with the test whatever happens.

    Those of Ray, which several tests share, are ended by Ray.
    """

    def __init__(self, *arguments, **options):
        if sys._getframe(1).f_globals.get("__name__", "").startswith("ray."):
            super().__init__(*arguments, **options)
            return
        if not options.get("start_new_session") and options.get("process_group") is None:
            options["start_new_session"] = True
        super().__init__(*arguments, **options)
        STARTED.append(self)

    def end(self):
        """Kill all that is left of the group."""
        with suppress(OSError):
            os.killpg(self.pid, signal.SIGKILL)
        with suppress(OSError, ValueError):
            self.wait()


STARTED: list[Child] = []
subprocess.Popen = Child


def pytest_collection_finish():
    """What is there now stays: no collection looks at it again, and forked children share it."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call():
    """End what a test started; what a fixture of several tests started goes on until the end of all tests."""
    before = len(STARTED)
    try:
        return (yield)
    finally:
        _end_from(before)


def pytest_sessionfinish():
    _end_from(0)


def _end_from(first):
    while len(STARTED) > first:
        STARTED.pop().end()


MEMORY = Path("/dev/shm")
LEAST_MEMORY = 4 << 30


def made_in_memory() -> None:
    """A folder in memory for everything that tests write, which is then not waited for to be on a disk.

    Workers of pytest-xdist have that of the process that started them. Nothing is made where somebody chose another
    folder, or where there is none in memory that is large enough.
    """
    chosen = "TMPDIR" in os.environ or "PYTEST_XDIST_WORKER" in os.environ
    if chosen or not os.access(MEMORY, os.W_OK) or shutil.disk_usage(MEMORY).free < LEAST_MEMORY:
        return
    folder = tempfile.mkdtemp(prefix="gym-replay-tests-", dir=MEMORY)
    os.environ["TMPDIR"] = tempfile.tempdir = folder
    # At exit, after multiprocessing has removed a folder of its own in there (with -100).
    Finalize(None, shutil.rmtree, (folder,), {"ignore_errors": True}, exitpriority=-200)


made_in_memory()


@pytest.fixture
def run_here(monkeypatch, capsys):
    """Run a file or a module as a program, in this process, which has imported torch; returns what it printed.

    Its warnings for users are errors, torch has one thread, and an exit with an error is an AssertionError.
    """
    import torch

    def run(program, *arguments):
        monkeypatch.setattr(sys, "argv", [str(program), *map(str, arguments)])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", UserWarning)
            try:
                (runpy.run_path if str(program).endswith(".py") else runpy.run_module)(
                    str(program), run_name="__main__"
                )
            except SystemExit as end:
                if end.code:
                    raise AssertionError(end.code) from end
        return capsys.readouterr().out

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield run
    torch.set_num_threads(threads)


@pytest.fixture
def rules():
    """What a test registers is forgotten after it."""
    from internals import NODES, RULES

    with mock.patch.dict(RULES), mock.patch.dict(NODES):
        yield
