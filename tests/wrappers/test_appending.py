"""Whoever records into a folder that has episodes is told so once; and what was left open there makes room."""

import gc
import logging

import gymnasium as gym
import pytest

from gym_replay import BufferLockedError, RecordToBuffer, ReplayBuffer
from gym_replay.wrappers import vector


def play(folder, **options):
    env = RecordToBuffer(gym.make("CartPole-v1"), folder, **options)
    env.reset(seed=0)
    env.step(0)
    env.close()


@pytest.fixture
def said(caplog):
    caplog.set_level(logging.WARNING, "gym_replay")
    return lambda: caplog.messages


def test_the_quick_start_twice(tmp_path, said):
    play(tmp_path / "data")
    assert not said()
    play(tmp_path / "data")
    assert [message.partition(" has ")[2] for message in said()] == [
        "1 episodes already, to which new ones are appended; overwrite=True replaces them"
    ]
    assert str(tmp_path / "data") in said()[0]
    play(tmp_path / "data")
    assert len(said()) == 1, "once in a process"
    play(tmp_path / "data", overwrite=True)
    assert len(said()) == 1


def test_vector_recorders_and_storing_by_hand(tmp_path, said):
    for folder in ("a", "b"):
        play(tmp_path / folder)
    vector.RecordToBuffer(gym.make_vec("CartPole-v1", num_envs=2), tmp_path / "a").close()
    ReplayBuffer(tmp_path / "b").close()
    ReplayBuffer(tmp_path / "c", fields={"x": "int"}).store_episode(x=[1])
    ReplayBuffer(tmp_path / "c", fields={"x": "int"}).close()
    assert [message.split(" has ")[0] for message in said()] == [str(tmp_path / "a"), str(tmp_path / "c")]


def test_one_can_let_nothing_through(tmp_path, caplog):
    logging.getLogger("gym_replay").setLevel("ERROR")
    try:
        for _ in range(2):
            play(tmp_path)
        assert not caplog.messages
    finally:
        logging.getLogger("gym_replay").setLevel(logging.NOTSET)


def test_the_same_cell_again_after_an_interrupt(tmp_path):
    """A notebook keeps the traceback of the last error, and with it the recorder; then it is garbage in a circle."""

    gc.disable()
    try:
        env = RecordToBuffer(gym.make("CartPole-v1"), tmp_path / "data")
        env.reset(seed=1)
        env.step(0)
        env.unwrapped.circle = env
        env.reset(seed=2)  # it holds the lock from here on
        env.step(0)
        with pytest.raises(BufferLockedError, match=r"this process .*; after an interrupt in a notebook, .* once more"):
            play(tmp_path / "data")
        del env
        play(tmp_path / "data")
    finally:
        gc.enable()
    buffer = ReplayBuffer.from_folder(tmp_path / "data")
    assert buffer.meta["episode_seed"].tolist() == [1, 2, 0]
