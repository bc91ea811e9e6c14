"""Folders that a stranger made, or that lie on a machine at its limits: links, sizes, depth, escapes, descriptors."""

import contextlib
import json
import os
import subprocess
import sys
import textwrap
import time

import gymnasium as gym
import numpy as np
import pytest
from format_helpers import read_metadata, write_metadata
from internals import WriterLock, open_journal

import gym_replay
from gym_replay import (
    BufferLockedError,
    BufferNotFoundError,
    CorruptBufferError,
    Field,
    GymReplayError,
    NotABufferError,
    RecordToBuffer,
    ReplayBuffer,
    StorageError,
    check_buffer,
)
from gym_replay.cli import main

PRECIOUS = b"precious\n" * 100
ESCAPE = "\x1b[2Jgone\x07\u202e"


@pytest.fixture
def folder(tmp_path):
    with make(tmp_path / "data") as buffer:
        store(buffer, 3)
    return tmp_path / "data"


def make(folder, **options):
    fields = {"observation": Field("float32", (2,), state=True), "words": Field("uint8", ragged=True)}
    return ReplayBuffer(folder, fields={**fields, "reward": "float"}, meta_fields={"task": "str"}, **options)


def store(buffer, episodes=1):
    for _ in range(episodes):
        words = [np.ones(2, np.uint8)] * 3
        buffer.store_episode(observation=np.ones((4, 2)), words=words, reward=np.ones(3), task="walk")


def recorded(folder, episodes=2):
    env = RecordToBuffer(gym.make("FrozenLake-v1", is_slippery=False), folder)
    for seed in range(episodes):
        env.reset(seed=seed)
        env.step(1)
    env.close()
    return folder


def run(code):
    """Run code in a process of its own; its output."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


# --- links ---

WRITTEN = ("writer.lock", "commit.npy", "steps/reward.npy", "steps/words.values.npy", "episodes.npy")


@pytest.mark.parametrize("link", [os.link, os.symlink])
@pytest.mark.parametrize("name", WRITTEN)
def test_nothing_is_written_through_a_link(name, link, folder, tmp_path):
    content = (folder / name).read_bytes() if name != "writer.lock" else PRECIOUS
    mine = tmp_path / "mine"
    mine.write_bytes(content)
    (folder / name).unlink()
    link(mine, folder / name)
    with pytest.raises(CorruptBufferError, match="link") as caught, ReplayBuffer.from_folder(folder) as buffer:
        store(buffer)
    assert name in str(caught.value)
    with contextlib.suppress(GymReplayError):
        check_buffer(folder, repair=True, progress=False)
    with contextlib.suppress(GymReplayError), ReplayBuffer.from_folder(folder) as buffer:
        store(buffer)
    assert mine.read_bytes() == content


def test_a_hard_linked_copy_is_read_and_not_written(folder, tmp_path):
    subprocess.run(["cp", "-al", folder, tmp_path / "snapshot"], check=True)
    with ReplayBuffer.from_folder(folder, read_only=True) as buffer:
        assert [len(episode) for episode in buffer] == [3, 3, 3]
    assert check_buffer(folder, progress=False).ok
    with pytest.raises(CorruptBufferError, match="cp -r"), ReplayBuffer.from_folder(folder) as buffer:
        store(buffer)
    subprocess.run(["cp", "-r", folder, tmp_path / "copy"], check=True)
    with ReplayBuffer.from_folder(tmp_path / "copy") as buffer:
        store(buffer)
        assert len(buffer) == 4


@pytest.mark.parametrize("name", ["collect.json", "statistics.json", "metadata.json"])
@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_what_is_replaced_as_a_whole_leaves_a_linked_file_alone(name, link, tmp_path):
    folder = tmp_path / "data"
    gym_replay.collect("CartPole-v1", folder, episodes=2, progress=False).close()
    gym_replay.statistics(ReplayBuffer.from_folder(folder, read_only=True))
    mine = tmp_path / "mine"
    mine.write_bytes((folder / name).read_bytes())
    before = mine.read_bytes()
    (folder / name).unlink()
    link(mine, folder / name)
    try:
        gym_replay.collect("CartPole-v1", folder, episodes=3, progress=False).close()
        gym_replay.statistics(ReplayBuffer.from_folder(folder, read_only=True))
        with ReplayBuffer.from_folder(folder) as buffer:
            buffer.clear()
    except CorruptBufferError:
        assert link is os.symlink
    assert mine.read_bytes() == before


def test_a_link_where_a_copy_is_made_is_not_followed(folder, tmp_path):
    with make(tmp_path / "other") as buffer:
        store(buffer, 2)
    (tmp_path / ".out.gym-replay-new").symlink_to("other")
    with pytest.raises(NotABufferError, match="link"):
        gym_replay.merge([folder], tmp_path / "out", progress=False)
    with ReplayBuffer.from_folder(tmp_path / "other", read_only=True) as buffer:
        assert len(buffer) == 2


# --- sizes ---

SMALL = {
    "one run": [[0, (1 << 24) - 1]],
    "a run to the end": [[0, 1 << 62]],
    "several runs": [[0, 1 << 22], [1 << 23, 1 << 24]],
}


@pytest.mark.parametrize("runs", SMALL.values(), ids=list(SMALL))
def test_a_small_note_of_a_collection_takes_little_memory(runs, tmp_path):
    gym_replay.collect("CartPole-v1", tmp_path, episodes=1, progress=False).close()
    told = json.loads((tmp_path / "collect.json").read_text())
    (tmp_path / "collect.json").write_text(json.dumps({**told, "discarded": runs}))
    peak = run(f"""
        import resource, gym_replay
        gym_replay.collect
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            gym_replay.collect("CartPole-v1", {str(tmp_path)!r}, episodes=2, progress=False)
        except gym_replay.CorruptBufferError as error:
            assert "discarded" in str(error)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """)
    assert int(peak) < 400_000  # KiB, Gymnasium and torch included


NESTED = {
    "deep": b"[" * 100_000 + b"]" * 100_000,
    "many lists": b"[" + b"[]," * 4_000_000 + b"[]]",
    "many objects": b"[" + b"{}," * 4_000_000 + b"{}]",
    "long": b'"' + b"x" * (1 << 25) + b'"',
}


@pytest.mark.parametrize("content", NESTED.values(), ids=list(NESTED))
@pytest.mark.parametrize("name", ["collect.json", "statistics.json", "metadata.json"])
def test_json_is_parsed_within_limits(name, content, tmp_path):
    gym_replay.collect("CartPole-v1", tmp_path, episodes=1, progress=False).close()
    (tmp_path / name).write_bytes(content)
    began = time.monotonic()
    if name == "statistics.json":
        with ReplayBuffer.from_folder(tmp_path, read_only=True) as buffer:
            assert gym_replay.statistics(buffer)["reward"].mean == 1.0
    else:
        with pytest.raises(CorruptBufferError, match=name):
            gym_replay.collect("CartPole-v1", tmp_path, episodes=2, progress=False)
    assert time.monotonic() - began < 10


def test_more_discarded_episodes_than_are_noted_are_forgotten(tmp_path):
    def put(name, content):
        (tmp_path / name).write_bytes(content)

    open_journal(tmp_path, {}, put).note(range(0, 2_000_000, 2))
    found = open_journal(tmp_path, {}, put).discarded
    assert found == set(range(0, 2 * len(found), 2))
    assert 100_000 < len(found) < 1_000_000


# --- depth, and links that go round ---


def deepen(folder, levels=1100):
    """Make folders inside of one another, far deeper than a path can be long."""
    current = os.open(folder, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir("d", dir_fd=current)
        below = os.open("d", os.O_RDONLY, dir_fd=current)
        os.close(current)
        current = below
    os.close(current)


@pytest.fixture
def removed(tmp_path):
    yield
    subprocess.run(["rm", "-rf", tmp_path], check=True)  # pytest's own removal gives up


@pytest.mark.parametrize("room", [".", "steps"])
def test_a_deep_folder_is_no_obstacle(room, folder, removed, capsys):
    deepen(folder / room)
    with ReplayBuffer.from_folder(folder) as buffer:
        store(buffer)
        buffer.clear()
        store(buffer, 2)
    assert main(["info", str(folder)]) == 0
    assert check_buffer(folder, progress=False).ok
    assert len(gym_replay.merge([folder], folder.parent / "made", progress=False)) == 2
    with pytest.raises(NotABufferError, match="d/d"):
        gym_replay.merge([folder.parent / "made"], folder, overwrite=True, progress=False)
    assert "episodes" in capsys.readouterr().out


def test_a_deep_folder_without_a_buffer_is_refused(tmp_path, removed):
    for name in ("a", "b/steps"):
        (tmp_path / name).mkdir(parents=True)
        deepen(tmp_path / name)
    for name in ("a", "b"):
        with pytest.raises(NotABufferError):
            make(tmp_path / name)
        with pytest.raises(NotABufferError):
            recorded(tmp_path / name)
        with pytest.raises(BufferNotFoundError):
            gym_replay.ConcatReplayBuffer(tmp_path / name)
    with pytest.raises(BufferNotFoundError):
        gym_replay.ConcatReplayBuffer(f"{tmp_path}/**")


def test_links_that_go_round_end(folder, tmp_path):
    for name in ("one", "two", "three"):
        (tmp_path / name).symlink_to(".")
    (tmp_path / "self").symlink_to("self")
    (folder / "up").symlink_to("..")
    began = time.monotonic()
    with gym_replay.ConcatReplayBuffer(f"{tmp_path}/**/data") as found:
        assert found.folders == [folder]
    assert time.monotonic() - began < 5
    with ReplayBuffer.from_folder(folder) as buffer:
        store(buffer)
    assert main(["info", str(folder)]) == 0
    assert not check_buffer(tmp_path / "self").ok
    for call in (
        lambda: gym_replay.ConcatReplayBuffer(tmp_path / "self"),
        lambda: make(tmp_path / "self"),
        lambda: gym_replay.merge([folder], tmp_path / "self", progress=False),
        lambda: gym_replay.collect("CartPole-v1", tmp_path / "self", episodes=1, progress=False),
    ):
        with pytest.raises(GymReplayError):
            call()


@pytest.mark.parametrize("name", ["steps", "episodes.npy", "metadata.json", "steps/reward.npy", "writer.lock"])
def test_a_link_to_itself_is_refused(name, folder):
    subprocess.run(["rm", "-rf", folder / name], check=True)
    (folder / name).symlink_to(os.path.basename(name))
    with pytest.raises(GymReplayError), ReplayBuffer.from_folder(folder) as buffer:
        store(buffer)


# --- limits of the system ---


def test_a_check_without_descriptors_says_so(folder, tmp_path):
    said = run(f"""
        import os, resource, gym_replay
        gym_replay.check_buffer  # imported before
        names = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 10
        for spare in range(2, 16):
            resource.setrlimit(resource.RLIMIT_NOFILE, (names + spare, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
            try:
                report = gym_replay.check_buffer({str(folder)!r}, progress=False)
            except gym_replay.StorageError as error:
                assert "ulimit -n" in str(error), error
                print("said")
            else:
                assert report.ok, report
    """)
    assert said.count("said") > 3


def test_readers_and_writers_without_descriptors_say_so(folder):
    said = run(f"""
        import os, resource, gym_replay, numpy as np
        from gym_replay import ReplayBuffer
        names = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 10
        for spare in range(1, 24):
            resource.setrlimit(resource.RLIMIT_NOFILE, (names + spare, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
            for read_only in (True, False):
                try:
                    with ReplayBuffer.from_folder({str(folder)!r}, read_only=read_only) as buffer:
                        [episode.copy() for episode in buffer]
                        read_only or buffer.update
                        read_only or buffer.store_episode(
                            observation=np.ones((2, 2)), words=[np.ones(1, np.uint8)], reward=np.ones(1), task="")
                except gym_replay.StorageError as error:
                    assert "ulimit -n" in str(error), error
                    print("said")
        report = gym_replay.check_buffer({str(folder)!r}, progress=False)
        print("sound" if report.ok else report)
    """)
    assert said.count("said") > 5
    assert said.endswith("sound\n")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_what_may_not_be_read_is_not_called_faulty(folder, tmp_path):
    os.chmod(folder / "steps/reward.npy", 0o600)
    subprocess.run(["chmod", "a+rx", *(str(parent) for parent in (*folder.parents,) if str(parent) != "/")], check=True)
    said = run(f"""
        import os, gym_replay
        from gym_replay import ReplayBuffer, check_buffer
        os.setresuid(65534, 65534, 65534)
        for call in (
            lambda: gym_replay.check_buffer({str(folder)!r}, progress=False),
            lambda: ReplayBuffer.from_folder({str(folder)!r}, read_only=True).episode(0).copy(),
        ):
            try:
                call()
            except gym_replay.StorageError as error:
                print(error)
    """)
    assert said.count("Permission denied") == 2
    assert "steps/reward.npy" in said


# --- characters that a terminal acts on ---


def hostile(folder, place):
    """Put escapes where a stranger can have them."""
    told = read_metadata(folder)
    environment = told["environment"]
    if place == "dropped":
        environment["env_spec"]["dropped"] = [f"kwargs.{ESCAPE}"]
    elif place == "wrapper":
        wrapper = {"name": ESCAPE, "entry_point": f"{ESCAPE}:X", "kwargs": {}}
        environment["env_spec"]["additional_wrappers"] = [wrapper]
    elif place == "argument":
        environment["env_spec"]["kwargs"] = {ESCAPE: ESCAPE}
    elif place == "entry point":
        environment["env_spec"] |= {"id": "Nowhere-v0", "entry_point": f"{ESCAPE}.x:y"}
    elif place == "space":
        environment["observation_space"] = {"type": ESCAPE}
    elif place == "type":
        environment["env_spec"]["id"] = [ESCAPE]
    elif place == "file":
        (folder / ESCAPE.replace("/", "")).write_text("")
    write_metadata(folder, told)


PLACES = ("dropped", "wrapper", "argument", "entry point", "space", "type", "file")


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("verb", ["replay", "info", "check", "head", "stats"])
def test_no_escape_reaches_the_terminal(verb, place, tmp_path, capfd):
    hostile(recorded(tmp_path / "data"), place)
    for arguments in ([], ["--debug"], ["--json"]):
        main([verb, str(tmp_path / "data"), *arguments])
        main(["merge", str(tmp_path / "data"), str(tmp_path / "data"), "--overwrite", *arguments])
    text = "".join(capfd.readouterr())
    assert text
    assert not [char for char in text if not char.isprintable() and char != "\n"]


@pytest.mark.parametrize("text", [ESCAPE, "\x9b31m", "a\rb", "\u2028", "\x00"])
def test_each_error_is_printable(text):
    for error in (gym_replay.CorruptBufferError(text), StorageError(5, text), gym_replay.MakeEnvError(f"x{text}\ny")):
        assert all(char.isprintable() or char == "\n" for char in str(error))
    assert str(gym_replay.CorruptBufferError("as it is: ü\nand more")) == "as it is: ü\nand more"


# --- two that make one folder ---


def test_who_loses_the_race_to_create_a_folder_hears_that_it_is_locked(tmp_path):
    code = """
        import sys, numpy as np
        from gym_replay import BufferLockedError, ReplayBuffer
        folder = sys.argv[1]
        print("ready", flush=True)
        for line in sys.stdin:
            try:
                buffer = ReplayBuffer(f"{folder}/{line.strip()}", fields={f"a{n}": "float" for n in range(8)})
            except BufferLockedError:
                print("locked", flush=True)
            else:
                print("made", flush=True)
                sys.stdin.readline()
                buffer.close()
    """
    several = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    for one in several:
        one.stdout.readline()
    for number in range(40):
        for one in several:
            one.stdin.write(f"{number}\n")
        for one in several:
            one.stdin.flush()
        answers = [one.stdout.readline().strip() for one in several]
        assert set(answers) <= {"locked", "made"}
        assert "made" in answers  # more than one, where it was there before another began
        for one, answer in zip(several, answers, strict=True):
            if answer == "made":
                one.stdin.write("\n")
                one.stdin.flush()
    for one in several:
        one.stdin.close()
        assert one.wait() == 0
        one.stdout.close()


def test_a_copy_to_where_a_buffer_is_being_created_hears_that_it_is_locked(folder, tmp_path):

    (tmp_path / "new").mkdir()
    lock = WriterLock(tmp_path / "new")
    with pytest.raises(BufferLockedError):
        gym_replay.merge([folder], tmp_path / "new", progress=False)
    lock.release()


# --- files that are missing ---


@pytest.mark.parametrize("name", ["checksums.npy", "episodes.npy", "steps/words.spans.npy", "commit.npy"])
def test_what_is_missing_is_named(name, folder):
    with ReplayBuffer.from_folder(folder) as buffer:
        subprocess.run(["rm", "-r", folder / name], check=True)
        for attempt in (
            buffer.flush,
            lambda: store(buffer),
            lambda: gym_replay.merge([buffer], folder.parent / "made"),
        ):
            with pytest.raises(CorruptBufferError, match=f"{name}.*missing"):
                attempt()
    assert not check_buffer(folder, progress=False).ok


def test_a_folder_under_the_name_of_a_new_file_is_an_error_of_ours(folder):
    for name in ("metadata.json.new", "commit.npy.new"):
        (folder / name / "below").mkdir(parents=True)
        with pytest.raises(GymReplayError, match=name), ReplayBuffer.from_folder(folder) as buffer:
            buffer.clear()
        subprocess.run(["rm", "-r", folder / name], check=True)
    with ReplayBuffer.from_folder(folder, read_only=True) as buffer:
        assert len(buffer) == 3
