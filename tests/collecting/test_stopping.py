"""Runs that are ended from outside: by Ctrl-C, by a second one, and by kill -9."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from collecting_helpers import Wander, brightest, facts_of, is_alive

from gym_replay import ReplayBuffer, check_buffer, collect

TESTS = Path(__file__).parents[1]

SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
from collecting_helpers import Wander, brightest
from gym_replay import collect
collect(Wander, {folder!r}, policy=brightest, progress=False, {options})
"""


def _start(folder, options):
    script = SCRIPT.format(tests=str(TESTS), folder=str(folder), options=options)
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", "-c", script],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PAUSE": "0.01"},
    )


def _wait_for(folder, episodes, process, seconds=300):
    until = time.monotonic() + seconds
    while time.monotonic() < until and process.poll() is None:
        if (folder / "collect.json").exists() and len(ReplayBuffer.from_folder(folder, read_only=True)) >= episodes:
            return
        time.sleep(0.01)
    raise AssertionError(process.communicate()[1])


MODES = ["num_envs=1", "num_envs=3", "num_envs=3, vectorization='async'"]


@pytest.mark.parametrize("mode", MODES)
def test_killed_runs_end_with_the_same_episodes(tmp_path, mode):
    expected = facts_of(_collect(tmp_path / "whole"))
    for episodes in (5, 30):
        process = _start(tmp_path / "parts", f"episodes=120, {mode}")
        _wait_for(tmp_path / "parts", episodes, process)
        process.kill()
        process.communicate()
        there = facts_of(ReplayBuffer.from_folder(tmp_path / "parts", read_only=True))
        assert episodes <= len(there) < 120
        assert {number: expected[number] for number in there} == there
    assert facts_of(_collect(tmp_path / "parts", num_envs=2)) == expected
    assert check_buffer(tmp_path / "parts").ok


def _collect(folder, **options):
    return collect(Wander, folder, policy=brightest, episodes=120, progress=False, **options)


@pytest.mark.parametrize("mode", MODES)
def test_ctrl_c_ends_after_the_step(tmp_path, mode):
    process = _start(tmp_path, f"episodes=100_000, {mode}")
    _wait_for(tmp_path, 5, process)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers too
    _, printed = process.communicate(timeout=300)
    assert process.returncode in (-signal.SIGINT, 130)
    assert printed.rstrip().endswith("KeyboardInterrupt"), printed
    assert printed.count("Traceback") == 1, printed
    buffer = ReplayBuffer.from_folder(tmp_path)
    buffer.acquire()
    numbers = facts_of(buffer)
    assert 5 <= len(numbers) < 100_000
    assert all(episode.meta["episode_complete"] for episode in buffer)
    report = check_buffer(tmp_path)
    assert report.ok
    assert report.verified  # closed in order: with checksums


def test_workers_do_not_outlive_who_asked_for_them(tmp_path):
    process = _start(tmp_path, "episodes=100_000, num_envs=2, vectorization='async'")
    _wait_for(tmp_path, 3, process)
    children = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    process.kill()
    process.communicate()
    until = time.monotonic() + 300
    while any(map(is_alive, children)) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(map(is_alive, children))  # they do not outlive it


def test_interrupt_in_the_same_process(tmp_path):
    seen = []

    def policy(observation):
        seen.append(1)
        if len(seen) == 50:
            signal.raise_signal(signal.SIGINT)
        return brightest(observation)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        collect(Wander, tmp_path, policy=policy, episodes=1000, progress=False)
    assert signal.getsignal(signal.SIGINT) is before
    assert len(seen) == 50
    with ReplayBuffer.from_folder(tmp_path) as buffer:
        buffer.acquire()
        assert 0 < len(buffer) < 50


def test_the_second_interrupt_does_not_wait(tmp_path):
    def policy(observation):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("the second one came through at once")

    with pytest.raises(KeyboardInterrupt):
        collect(Wander, tmp_path, policy=policy, episodes=1000, progress=False)


def test_other_threads_collect_without_handling_signals(tmp_path):
    found = []
    thread = threading.Thread(
        target=lambda: found.append(len(collect(Wander, tmp_path, episodes=5, num_envs=2, progress=False)))
    )
    thread.start()
    thread.join()
    assert found == [5]
