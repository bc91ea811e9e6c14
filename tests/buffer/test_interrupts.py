"""ReplayBuffer and interrupts: at any line the state is the old or the new one, and what was raised is what comes."""

import gc
import os
import signal
import sys
from pathlib import Path

import pytest
from buffer_helpers import add, contents, make_plain, run_script

import gym_replay
from gym_replay import ReplayBuffer, check_buffer
from tests.faults.refused_calls import CHANGES, start, state_of, store

PACKAGE = str(Path(gym_replay.__file__).parent)


class Stop(BaseException):
    """What a signal handler raises."""


class Interrupt:
    """Raises at one line of the package, or just after one of its calls of the operating system."""

    def __init__(self, at):
        self.at, self.seen, self.error = at, 0, Stop()

    def __enter__(self):
        sys.settrace(self._trace)
        return self

    def __exit__(self, *details):
        sys.settrace(None)

    def _trace(self, frame, event, _):
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        if event == "line":
            self.seen += 1
            if self.seen == self.at:
                sys.settrace(None)
                raise self.error
        return self._trace


LINES = {"flush": 700, "store_episode": 650, "one_episode": 900, "batched_episode": 1200, "delete": 4800}
"""About how many lines a change runs through; the others have some 8,500."""

POINTS = 5


@pytest.mark.parametrize("point", range(POINTS))
@pytest.mark.parametrize("name", CHANGES)
def test_an_interrupt_at_any_line_leaves_the_old_or_the_new_state(tmp_path, name, point):
    expected = []
    for folder in ("plain", "changed"):
        with start(tmp_path / folder, circular=point % 2 == 0) as buffer:
            if folder == "changed":
                CHANGES[name](buffer)
            expected.append(state_of(buffer))
    buffer = start(tmp_path / "data", circular=point % 2 == 0)
    interrupt = Interrupt(1 + (point * LINES.get(name, 8500)) // POINTS + 7 * point)
    try:
        with interrupt:
            CHANGES[name](buffer)
    except Stop as error:
        assert error is interrupt.error  # noqa: PT017
    found = state_of(buffer)
    assert found in expected
    assert buffer.num_episodes == len(found[1])
    if buffer.slot.holder is not None:  # it came before the first line of leaving it
        buffer.release()
    store(buffer, 11)
    after = state_of(buffer)
    assert after[1][:-1] == found[1]
    buffer.close()
    assert check_buffer(tmp_path / "data", progress=False).verified
    with ReplayBuffer.from_folder(tmp_path / "data", read_only=True) as reopened:
        assert state_of(reopened) == after


@pytest.mark.parametrize("call", ["open", "replace", "pwrite", "ftruncate", "close"])
@pytest.mark.parametrize("first", [2, 17])
@pytest.mark.parametrize("name", ["store_episode", "update of meta fields", "add_field", "clear"])
def test_an_interrupt_just_after_a_call_of_the_system(tmp_path, monkeypatch, name, call, first):
    with start(tmp_path / "new", circular=False) as buffer:
        before = state_of(buffer)
        CHANGES[name](buffer)
        changed = state_of(buffer)
    buffer = start(tmp_path / "data", circular=False)
    real, seen, stop = getattr(os, call), 0, Stop()

    def interrupted(*arguments, **options):
        nonlocal seen
        result = real(*arguments, **options)
        seen += 1
        if seen == first:
            raise stop
        return result

    with monkeypatch.context() as patch:
        patch.setattr(os, call, interrupted)
        try:
            CHANGES[name](buffer)
        except Stop as error:
            assert error is stop  # noqa: PT017
    found = state_of(buffer)
    assert found in (before, changed)
    store(buffer, 11)
    buffer.close()
    assert check_buffer(tmp_path / "data", progress=False).verified


@pytest.mark.parametrize("at", [1, 40, 150, 300, 500, 700, 850])
@pytest.mark.parametrize("end", ["close", "release"])
def test_a_second_close_does_what_an_interrupted_one_did_not(tmp_path, end, at):
    buffer = start(tmp_path, circular=False)
    interrupt = Interrupt(at)
    with pytest.raises(Stop), interrupt:
        getattr(buffer, end)()
    getattr(buffer, end)()
    report = check_buffer(tmp_path, progress=False)
    assert report.verified, str(report)
    with ReplayBuffer.from_folder(tmp_path) as other:
        store(other, 5)


@pytest.mark.parametrize("at", [1, 120, 1000, 2500])
@pytest.mark.parametrize("overwrite", [False, True])
def test_an_interrupt_while_a_buffer_is_made(tmp_path, overwrite, at):
    if overwrite:
        with make_plain(tmp_path / "data") as old:
            add(old, 2)
    try:
        with Interrupt(at):
            buffer = ReplayBuffer(tmp_path / "data", fields={"y": "float"}, overwrite=overwrite)
    except Stop:
        buffer = None
    if overwrite and buffer is None:
        with ReplayBuffer.from_folder(tmp_path / "data", read_only=True) as found:
            assert list(found.metadata.fields) in (["x"], ["y"])
            if "x" in found.metadata.fields:
                assert contents(found) == [[0, 1]]
    with buffer or ReplayBuffer(tmp_path / "data", fields={"y": "float"}, overwrite=overwrite) as again:
        again.store_episode(y=[1.0])
        assert contents(again, "y") == [[1.0]]
    assert check_buffer(tmp_path / "data", progress=False).verified


IN_A_FINALIZER = """
import gc, os, signal, sys, time
from gym_replay import ReplayBuffer

def stop(number, frame):
    sys.exit(7)

signal.signal(signal.SIGTERM, stop)
number, real = int(sys.argv[2]), os.ftruncate

def trim(descriptor, size):
    real(descriptor, size)
    os.ftruncate = real
    os.kill(os.getpid(), number)

buffer = ReplayBuffer(sys.argv[1], fields={"x": "int64"})
buffer.store_episode(x=[1, 2])
os.ftruncate = trim
try:
    del buffer
    gc.collect()
    time.sleep(300)
except KeyboardInterrupt:
    sys.exit(8)
print("it went on")
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 7), (signal.SIGINT, 8)])
def test_no_signal_is_lost_where_a_buffer_is_garbage(tmp_path, number, status):
    assert run_script(IN_A_FINALIZER, tmp_path, int(number)) == (status, "")
    with ReplayBuffer.from_folder(tmp_path) as buffer:
        assert contents(buffer) == [[1, 2]]
    assert check_buffer(tmp_path, progress=False).verified


def test_nothing_of_the_package_runs_where_columns_and_maps_are_garbage(tmp_path):
    with make_plain(tmp_path, circular=True, max_episodes=3) as buffer:
        add(buffer, 2, 3)
        buffer.flush()
        reader = ReplayBuffer.from_folder(tmp_path, read_only=True)
        held = [reader.snapshots(), buffer.episode(0)["x"], reader]
        maps, is_linux = Path("/proc/self/maps"), sys.platform == "linux"
        mapped_before = maps.read_text().count(str(tmp_path)) if is_linux else 1
        del reader
        seen = []

        def trace(frame, event, _):
            if f"{os.sep}gym_replay{os.sep}" in frame.f_code.co_filename:
                seen.append(frame.f_code.co_name)
            return trace

        gc.collect()
        sys.settrace(trace)
        held.clear()
        gc.collect()
        sys.settrace(None)
        assert seen == []
        assert not is_linux or maps.read_text().count(str(tmp_path)) < mapped_before
