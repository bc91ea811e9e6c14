"""The writer's lock: who has it, when it is let go of, and what it leaves alone."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from gym_replay import BufferLockedError, CorruptBufferError
from gym_replay.files.lock import WriterLock


def holder(folder, code=""):
    """A process that holds the lock until its standard input is closed."""
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            textwrap.dedent(f"""
            import os, sys, time
            from pathlib import Path
            from gym_replay.files.lock import WriterLock
            lock = WriterLock(Path({str(folder)!r}))
            {code}
            print("held", flush=True)
            sys.stdin.read()
        """),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    return process


def end(process):
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()


def test_one_at_a_time_and_who_it_is(tmp_path):
    lock = WriterLock(tmp_path)
    assert lock.is_held
    assert (tmp_path / "writer.lock").read_text() == f"{os.getpid()}\n"
    with pytest.raises(BufferLockedError, match=rf"this process \({os.getpid()}\)"):
        WriterLock(tmp_path)
    lock.release()
    lock.release()
    assert not lock.is_held
    other = holder(tmp_path)
    with pytest.raises(BufferLockedError, match=f"process {other.pid} is writing"):
        WriterLock(tmp_path)
    end(other)
    WriterLock(tmp_path).release()


def test_a_process_id_that_comes_again_is_not_this_process(tmp_path):
    other = holder(tmp_path)
    (tmp_path / "writer.lock").write_text(f"{os.getpid()}\n")  # as in another container
    with pytest.raises(BufferLockedError, match=f"^[^(]*process {os.getpid()} is writing") as caught:
        WriterLock(tmp_path)
    assert "this process" not in str(caught.value)
    end(other)


def test_a_forked_child_does_not_keep_the_lock_of_a_killed_parent(tmp_path):
    other = holder(tmp_path, "child = os.fork()\n            if not child: time.sleep(60); os._exit(0)")
    children = subprocess.run(["pgrep", "-P", str(other.pid)], capture_output=True, text=True, check=True).stdout
    end(other)
    WriterLock(tmp_path).release()
    os.kill(int(children), signal.SIGKILL)


def test_a_child_that_ends_leaves_the_lock_to_its_parent(tmp_path):
    other = holder(
        tmp_path, "child = os.fork()\n            if not child: lock.release(); os._exit(0)\n            os.wait()"
    )
    with pytest.raises(BufferLockedError):
        WriterLock(tmp_path)
    end(other)


@pytest.mark.parametrize("content", [b"", b"12", b"not a number", b"\xff" * 1000])
def test_what_is_in_the_file_does_not_matter(content, tmp_path):
    (tmp_path / "writer.lock").write_bytes(content)
    lock = WriterLock(tmp_path)
    assert (tmp_path / "writer.lock").read_text() == f"{os.getpid()}\n"
    (tmp_path / "writer.lock").write_bytes(content)
    with pytest.raises(BufferLockedError):
        WriterLock(tmp_path)
    lock.release()


@pytest.mark.parametrize("kind", ["hard link", "link", "dangling link", "folder", "fifo"])
def test_a_link_or_no_file_is_refused_and_left_alone(kind, tmp_path):
    mine, path = tmp_path / "mine", tmp_path / "writer.lock"
    mine.write_text("precious")
    {
        "hard link": lambda: os.link(mine, path),
        "link": lambda: path.symlink_to(mine),
        "dangling link": lambda: path.symlink_to(tmp_path / "new"),
        "folder": path.mkdir,
        "fifo": lambda: os.mkfifo(path),
    }[kind]()
    began = time.monotonic()
    with pytest.raises(CorruptBufferError, match=r"writer\.lock"):
        WriterLock(tmp_path)
    assert time.monotonic() - began < 5
    assert mine.read_text() == "precious"
    assert not (tmp_path / "new").exists()


def test_a_file_that_was_deleted_meanwhile_is_made_anew(tmp_path, monkeypatch):
    import fcntl

    real, seen = fcntl.flock, []

    def flock(descriptor, how):
        if not seen:
            (tmp_path / "writer.lock").unlink()
        seen.append(descriptor)
        return real(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    lock = WriterLock(tmp_path)
    assert (tmp_path / "writer.lock").exists()
    lock.check()
    with pytest.raises(BufferLockedError):
        WriterLock(tmp_path)
    lock.release()
