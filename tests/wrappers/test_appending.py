"""Whoever records into a folder that has episodes is told so once."""

import logging

import gymnasium as gym
import pytest

from gym_replay import RecordToBuffer, ReplayBuffer
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
