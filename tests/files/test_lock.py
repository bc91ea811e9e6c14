"""The writer's lock: who has it, when it is released, and what it leaves alone."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from gym_replay import BufferLockedError, CorruptBufferError, RecordToBuffer, ReplayBuffer


@pytest.fixture
def folder(tmp_path):
    """A buffer, the lock of which nobody has."""
    ReplayBuffer(tmp_path / "buffer", fields={"x": "int"}).close()
    (tmp_path / "buffer" / "writer.lock").unlink(missing_ok=True)
    return tmp_path / "buffer"


def locked(folder):
    buffer = ReplayBuffer.from_folder(folder)
    try:
        buffer.acquire()
    except BaseException:
        buffer.close()
        raise
    return buffer


def holder(folder, code=""):
    """A process that holds the lock until its standard input is closed."""
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            textwrap.dedent(f"""
            import os, sys, time
            from gym_replay import ReplayBuffer
            buffer = ReplayBuffer.from_folder({str(folder)!r})
            buffer.acquire()
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


def test_one_at_a_time_and_who_it_is(folder):
    buffer = locked(folder)
    assert (folder / "writer.lock").read_text() == f"{os.getpid()}\n"
    with pytest.raises(BufferLockedError, match=rf"this process \({os.getpid()}\)"):
        locked(folder)
    buffer.release()
    buffer.release()
    other = holder(folder)
    with pytest.raises(BufferLockedError, match=f"process {other.pid} is writing"):
        locked(folder)
    end(other)
    locked(folder).close()


def test_the_second_process_that_records_is_told_of_the_first(tmp_path):
    gymnasium = pytest.importorskip("gymnasium")
    with RecordToBuffer(gymnasium.make("CartPole-v1"), tmp_path / "data") as env:
        env.reset(seed=0)
        env.step(0)
    process = holder(tmp_path / "data")
    with RecordToBuffer(gymnasium.make("CartPole-v1"), tmp_path / "data") as env:
        env.reset(seed=0)
        with pytest.raises(BufferLockedError, match=f"process {process.pid} is writing") as caught:
            env.step(0)
    command = [sys.executable, "-m", "gym_replay", "record", "CartPole-v1", str(tmp_path / "data"), "--episodes", "9"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    for text in (str(caught.value), done.stderr):
        assert f"process {process.pid} is writing" in text
        assert "Errno" not in text
    end(process)
    with ReplayBuffer.from_folder(tmp_path / "data", read_only=True) as buffer:
        assert buffer.episode_lens.tolist() == [1]


def test_a_process_id_that_comes_again_is_not_this_process(folder):
    other = holder(folder)
    (folder / "writer.lock").write_text(f"{os.getpid()}\n")  # as in another container
    with pytest.raises(BufferLockedError, match=f"^[^(]*process {os.getpid()} is writing") as caught:
        locked(folder)
    assert "this process" not in str(caught.value)
    end(other)


def test_a_forked_child_does_not_keep_the_lock_of_a_killed_parent(folder):
    other = holder(folder, "child = os.fork()\n            if not child: time.sleep(60); os._exit(0)")
    children = subprocess.run(["pgrep", "-P", str(other.pid)], capture_output=True, text=True, check=True).stdout
    end(other)
    locked(folder).close()
    os.kill(int(children), signal.SIGKILL)


def test_a_child_that_ends_leaves_the_lock_to_its_parent(folder):
    other = holder(
        folder, "child = os.fork()\n            if not child: buffer.release(); os._exit(0)\n            os.wait()"
    )
    with pytest.raises(BufferLockedError):
        locked(folder)
    end(other)


@pytest.mark.parametrize("content", [b"", b"12", b"not a number", b"\xff" * 1000])
def test_what_is_in_the_file_does_not_matter(content, folder):
    (folder / "writer.lock").write_bytes(content)
    buffer = locked(folder)
    assert (folder / "writer.lock").read_text() == f"{os.getpid()}\n"
    (folder / "writer.lock").write_bytes(content)
    with pytest.raises(BufferLockedError):
        locked(folder)
    buffer.release()


@pytest.mark.parametrize("kind", ["hard link", "link", "dangling link", "folder", "fifo"])
def test_a_link_or_no_file_is_refused_and_left_alone(kind, folder):
    mine, path = folder / "mine", folder / "writer.lock"
    mine.write_text("precious")
    {
        "hard link": lambda: os.link(mine, path),
        "link": lambda: path.symlink_to(mine),
        "dangling link": lambda: path.symlink_to(folder / "new"),
        "folder": path.mkdir,
        "fifo": lambda: os.mkfifo(path),
    }[kind]()
    began = time.monotonic()
    with pytest.raises(CorruptBufferError, match=r"writer\.lock"):
        locked(folder)
    assert time.monotonic() - began < 5
    assert mine.read_text() == "precious"
    assert not (folder / "new").exists()


def test_a_file_that_was_deleted_meanwhile_is_made_anew(folder, monkeypatch):
    import fcntl

    real, seen = fcntl.flock, []

    def flock(descriptor, how):
        if not seen:
            (folder / "writer.lock").unlink()
        seen.append(descriptor)
        return real(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    buffer = locked(folder)
    assert (folder / "writer.lock").exists()
    buffer.store_episode(x=[1])
    with pytest.raises(BufferLockedError):
        locked(folder)
    buffer.release()
