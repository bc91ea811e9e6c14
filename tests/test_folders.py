"""What a folder argument means, at every place that takes one."""

import os
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from buffer_helpers import add, make_plain

import gym_replay
from gym_replay import BufferNotFoundError, FieldError, ReplayBuffer
from gym_replay.cli import main
from gym_replay.wrappers import vector

CARTPOLE = "CartPole-v1"


def _trajectory():
    return [{"observations": np.zeros((3, 2), np.float32), "actions": np.zeros(2), "rewards": np.zeros(2)}]


def _record(folder):
    gym_replay.RecordToBuffer(gym.make(CARTPOLE), folder).close()


def _record_vector(folder):
    vector.RecordToBuffer(gym.make_vec(CARTPOLE, num_envs=1), folder).close()


def _collect(folder):
    gym_replay.collect(CARTPOLE, folder, episodes=1, progress=False).close()


MAKERS = {
    "ReplayBuffer": lambda folder, source: ReplayBuffer(folder, fields={"x": "float"}).close(),
    "RecordToBuffer": lambda folder, source: _record(folder),
    "vector.RecordToBuffer": lambda folder, source: _record_vector(folder),
    "collect": lambda folder, source: _collect(folder),
    "merge": lambda folder, source: gym_replay.merge([source], folder, progress=False).close(),
    "select": lambda folder, source: gym_replay.select(source, folder, progress=False).close(),
    "split_into": lambda folder, source: [
        made.close() for made in gym_replay.split_into(source, {folder: 1.0}, progress=False)
    ],
    "from_trajectories": lambda folder, source: gym_replay.from_trajectories(_trajectory(), folder),
}
READERS = {
    "from_folder": lambda folder: ReplayBuffer.from_folder(folder).close(),
    "read-only": lambda folder: ReplayBuffer(folder, read_only=True).close(),
    "concatenation": lambda folder: gym_replay.ConcatReplayBuffer(folder).close(),
    "one of several": lambda folder: gym_replay.ConcatReplayBuffer([folder]).close(),
    "check": lambda folder: gym_replay.check_buffer(folder, progress=False),
    "source of merge": lambda folder: gym_replay.merge([folder], "never-made", progress=False),
    "source of select": lambda folder: gym_replay.select(folder, "never-made", progress=False),
}
COMMANDS = {
    "record": lambda folder: ["record", CARTPOLE, folder, "--episodes", "1", "--quiet"],
    "info": lambda folder: ["info", folder],
    "check": lambda folder: ["check", folder],
    "stats": lambda folder: ["stats", folder],
    "head": lambda folder: ["head", folder],
    "replay": lambda folder: ["replay", folder],
    "merge": lambda folder: ["merge", folder, "never-made"],
    "select": lambda folder: ["select", folder, "never-made"],
    "split": lambda folder: ["split", folder, "--into", "never-made=1"],
}
ADDRESSES = ["s3://bucket/run", "gs://bucket/run", "hf://datasets/me/run", "file:///tmp/run", "simplecache::s3://b/x"]


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder, and another one to be in."""
    for name in ("home", "here"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "home"


@pytest.fixture
def source(home):
    with make_plain(home / "source") as buffer:
        add(buffer, 2, 1)
    return home / "source"


def _nothing_is_here():
    return os.listdir(".") == []


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("kind", [str, Path])
def test_a_home_folder_is_meant_wherever_a_buffer_is_made(name, kind, home, source):
    MAKERS[name](kind("~/made"), source)
    assert (home / "made" / "metadata.json").is_file()
    assert _nothing_is_here()


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("kind", [str, Path])
def test_a_home_folder_is_meant_wherever_one_is_read(name, kind, source):
    READERS[name](kind("~/source"))
    assert set(os.listdir(".")) <= {"never-made"}


def test_a_pattern_may_begin_at_home(source):
    with gym_replay.ConcatReplayBuffer("~/sour*") as both:
        assert both.folders == [source]


@pytest.mark.parametrize("address", ADDRESSES)
def test_an_address_is_refused_and_nothing_is_made(address, home, source):
    for make in MAKERS.values():
        with pytest.raises(FieldError, match="looks like a URL"):
            make(address, source)
    for read in READERS.values():
        with pytest.raises(FieldError, match="looks like a URL"):
            read(address)
    assert _nothing_is_here()


@pytest.mark.parametrize("text", [str(Path("s3://bucket/run")), "me@host:/data", "C:\\data", "c:/data", "s3://b/run-*"])
def test_what_a_path_object_or_another_machine_makes_of_an_address_is_refused_too(text, home):
    with pytest.raises(FieldError, match="only folders of this machine"):
        gym_replay.ConcatReplayBuffer(text)
    with pytest.raises(FieldError, match="only folders of this machine"):
        ReplayBuffer(Path(text), fields={"x": "float"})
    assert _nothing_is_here()


@pytest.mark.parametrize(("text", "said"), [("", "empty string"), ("data\0", "NUL"), ("~nobody-here/x", "no home")])
def test_what_names_no_folder_is_refused(text, said, home, source):
    for make in MAKERS.values():
        with pytest.raises(FieldError, match=said):
            make(text, source)
    for read in READERS.values():
        with pytest.raises(FieldError, match=said):
            read(text)
    assert _nothing_is_here()


@pytest.mark.parametrize("given", [3, None, ["a"]])
def test_what_is_no_path_is_a_type_error(given):
    with pytest.raises(TypeError, match="path"):
        ReplayBuffer(given, fields={"x": "float"})
    with pytest.raises(TypeError):
        gym_replay.check_buffer(given)


def test_names_with_colons_and_tildes_inside_are_plain_names(home):
    for name in ("run:1", "./s3:/x", "a~b", "12:30/x"):
        ReplayBuffer(name, fields={"x": "float"}).close()
        assert os.path.isfile(f"{name}/metadata.json")


class _Pointer(os.PathLike):
    def __init__(self, path):
        self.path = path

    def __fspath__(self):
        return self.path


@pytest.mark.parametrize("encode", [str, os.fsencode])
def test_any_path_like_object_is_a_folder(encode, home, source):
    for name, make in MAKERS.items():
        make(_Pointer(encode(f"~/{name}")), source)
        READERS["from_folder"](_Pointer(encode(str(home / name))))


@pytest.mark.parametrize("verb", COMMANDS)
def test_the_command_line_means_the_same(verb, home, source, capsys):
    for address, said in (("s3://bucket/x", "looks like a URL"), ("", "empty string")):
        assert main(COMMANDS[verb](address)) == 2
        assert said in capsys.readouterr().err
        assert _nothing_is_here()
    if verb == "replay":
        return
    assert main(COMMANDS[verb]("~/made" if verb == "record" else "~/source")) == 0
    assert not os.path.exists("~")


def test_a_missing_folder_is_named_in_full(home):
    with pytest.raises(BufferNotFoundError) as caught:
        ReplayBuffer.from_folder("~/nothing")
    assert str(home / "nothing") in str(caught.value)
