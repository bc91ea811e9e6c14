"""Derived fields know up to which episode they were computed; nothing serves rows beyond."""

import gymnasium as gym
import numpy as np
import pytest

from gym_replay import (
    ConcatReplayBuffer,
    Field,
    FieldError,
    GoalSampler,
    RecordToBuffer,
    ReplayBuffer,
    StaleFieldError,
    check_buffer,
    merge,
    n_step_loader,
    returns_to_go,
    select,
    split_into,
    statistics,
    to_d4rl,
    trajectory_loader,
    window_loader,
)
from gym_replay.wrappers import vector

CALL = r"field 'return_to_go'.*no values for 1 of them.*buffer\.update\(return_to_go=\.\.\.\)"


def play(folder, episodes=1):
    with RecordToBuffer(gym.make("CartPole-v1"), folder) as env:
        for seed in range(episodes):
            env.reset(seed=seed)
            while not any(env.step(env.action_space.sample())[2:4]):
                pass


@pytest.fixture
def stale(tmp_path):
    """A recorded buffer whose last episode came after a field was added."""
    play(tmp_path / "data", 3)
    with ReplayBuffer.from_folder(tmp_path / "data") as buffer:
        buffer.add_field("return_to_go", "float", returns_to_go(buffer))
    play(tmp_path / "data")
    return ReplayBuffer.from_folder(tmp_path / "data")


READINGS = {
    "an episode": lambda buffer: buffer.episode(-1)["return_to_go"],
    "a copied episode": lambda buffer: buffer.episode(-1).copy(),
    "timesteps": lambda buffer: buffer.dataloader(8, timestep_level=True),
    "trajectories": lambda buffer: trajectory_loader(buffer, 2, fields=("return_to_go",)),
    "n steps": lambda buffer: n_step_loader(buffer, 8),
    "rewards": lambda buffer: n_step_loader(
        buffer, 8, discount=0.9, reward_field="return_to_go", current_fields=("observation",)
    ),
    "windows": lambda buffer: window_loader(buffer, 8, offsets={"return_to_go": (0, 1)}, fields=()),
    "filters": lambda buffer: buffer.dataloader(
        8, timestep_level=True, fields=("action",), filter_fields={"return_to_go": lambda values: values > 1}
    ),
    "a dataset": lambda buffer: buffer.dataset(timestep_level=True),
    "everything": lambda buffer: buffer.get_all_data(),
    "statistics": lambda buffer: statistics(buffer),
    "a concatenation": lambda buffer: ConcatReplayBuffer([buffer]).dataloader(8, timestep_level=True),
    "sums of it": lambda buffer: returns_to_go(buffer, reward_field="return_to_go"),
    "another format": lambda buffer: to_d4rl(buffer, names={"reward": "return_to_go"}),
    "a copy": lambda buffer: select(buffer, buffer.folder.parent / "copy", progress=False),
    "a merge": lambda buffer: merge([buffer.folder], buffer.folder.parent / "copy", progress=False),
}


@pytest.mark.parametrize("reading", READINGS)
def test_reading_what_was_not_computed(stale, reading):
    with pytest.raises(StaleFieldError, match=CALL):
        READINGS[reading](stale)
    assert not (stale.folder.parent / "copy").exists()


def test_what_is_served_without_it(stale):
    assert stale.episode(0)["return_to_go"].tolist() == list(range(len(stale.episode(0)), 0, -1))
    assert "return_to_go" not in next(iter(stale.dataloader(4, timestep_level=True, fields=("action",))))
    batch = next(iter(stale.dataloader(4, timestep_level=True, episodes=slice(3))))
    assert (batch["return_to_go"] > 0).all()
    goals = n_step_loader(stale, 4, current_fields=("action",), goal_sampler=GoalSampler())
    assert "value_goal_observation" in next(iter(goals))
    assert stale.episode(-1)["action"].shape == (len(stale.episode(-1)),)


def test_bringing_it_up_to_date(stale):
    stale.update(return_to_go=returns_to_go(stale))
    assert [episode["return_to_go"][0] for episode in stale] == stale.episode_lens.tolist()
    (batch,) = stale.dataloader(10**6, timestep_level=True)
    assert (batch["return_to_go"] > 0).all()
    stale.close()
    play(stale.folder)
    with pytest.raises(StaleFieldError):
        ReplayBuffer.from_folder(stale.folder).get_all_data()


def test_a_part_of_the_episodes_may_be_computed(stale):
    stale.close()
    play(stale.folder)
    with ReplayBuffer.from_folder(stale.folder) as buffer:
        assert len(buffer) == 5
        to_go = returns_to_go(buffer)
        buffer.update(4, return_to_go=to_go[4])
        with pytest.raises(StaleFieldError, match="2 of them"):
            buffer.get_all_data()
        buffer.update(3, return_to_go=to_go[3])
        assert buffer.episode(3)["return_to_go"].tolist() == to_go[3].tolist()
        buffer.update([3, 4], return_to_go=to_go[3:])
        assert len(buffer.get_all_data()["return_to_go"]) == 5


def test_a_stale_episode_that_is_deleted(stale):
    stale.delete(-1)
    assert len(stale.get_all_data()["return_to_go"]) == 3


def test_copies_know_it_too(stale, tmp_path):
    stale.update(return_to_go=returns_to_go(stale))
    copy = select(stale, tmp_path / "copy", episodes=[0, 3], progress=False)
    assert len(copy.get_all_data()["return_to_go"]) == 2
    both = merge([stale, copy], tmp_path / "both", progress=False)
    parts = split_into(both, {tmp_path / "left": 0.5, tmp_path / "right": 0.5}, progress=False)
    assert sum(len(part) for part in parts) == 6
    for buffer in (copy, both, *parts):
        buffer.get_all_data()
        count = len(buffer)
        buffer.close()
        play(buffer.folder)
        with pytest.raises(StaleFieldError, match=f"the first has the id {count}"):
            ReplayBuffer.from_folder(buffer.folder).get_all_data()
        assert check_buffer(buffer.folder, progress=False).ok


def test_a_loader_that_follows_a_buffer(tmp_path):
    buffer = ReplayBuffer(tmp_path, fields={"reward": "float64"})
    buffer.store_episode(reward=[1.0, 2.0])
    buffer.add_field("to_go", "float64", returns_to_go(buffer))
    loader = buffer.dataloader(2, timestep_level=True, refresh="epoch")
    assert len(list(loader)) == 1
    buffer.store_episode(reward=[1.0, 2.0])
    with pytest.raises(StaleFieldError):
        list(loader)


@pytest.mark.parametrize("way", ["store", "store_episode", "store_batch"])
def test_new_episodes_take_no_values_for_it(tmp_path, way):
    buffer = ReplayBuffer(tmp_path, fields={"x": "int"})
    buffer.store_episode(x=[1, 2])
    buffer.add_field("y", "int", [[3, 4]])
    with pytest.raises(FieldError, match=r"field 'y' is derived.*buffer\.update.*derived=False"):  # noqa: PT012
        if way == "store":
            with buffer.one_episode():
                buffer.store(x=1, y=2)
        elif way == "store_episode":
            buffer.store_episode(x=[1], y=[2])
        else:
            with buffer.batched_episode(2):
                buffer.store_batch(x=[1, 2], y=[3, 4])
    assert len(buffer) == 1
    buffer.store_episode(x=[5])
    buffer.update(1, y=[6])
    assert [episode["y"].tolist() for episode in buffer] == [[3, 4], [6]]


def test_a_field_that_is_not_derived(tmp_path):
    buffer = ReplayBuffer(tmp_path, fields={"x": "int"})
    buffer.store_episode(x=[1, 2])
    buffer.add_field("y", "int", [[3, 4]], derived=False)
    buffer.add_field("z", Field("int", default=7))
    buffer.store_episode(x=[1], y=[5], z=[6])
    buffer.store_episode(x=[1])
    assert [episode["y"].tolist() for episode in buffer] == [[3, 4], [5], [0]]
    assert [episode["z"].tolist() for episode in buffer] == [[7, 7], [6], [7]]


def test_recorders_leave_it_alone(stale):
    stale.close()
    with RecordToBuffer(gym.make("CartPole-v1"), stale.folder) as env:
        env.reset(seed=0)
        with pytest.raises(FieldError, match="return_to_go"):
            env.annotate_step(return_to_go=1.0)
    with pytest.raises(FieldError, match="'return_to_go' is a derived field"):
        RecordToBuffer(gym.make("CartPole-v1"), stale.folder, extra_fields={"return_to_go": "float"})
    envs = vector.RecordToBuffer(gym.make_vec("CartPole-v1", num_envs=2), stale.folder)
    envs.reset(seed=0)
    for _ in range(60):
        envs.step(envs.action_space.sample())
    envs.close()
    buffer = ReplayBuffer.from_folder(stale.folder)
    buffer.update(return_to_go=returns_to_go(buffer))
    assert len(buffer.get_all_data()["return_to_go"]) == len(buffer)
    assert check_buffer(stale.folder, progress=False).ok


def test_in_a_ring(tmp_path):
    buffer = ReplayBuffer(tmp_path, max_episodes=2, fields={"reward": "float64"}, circular=True)
    for k in range(4):
        buffer.store_episode(reward=[k])
    buffer.add_field("to_go", "float64", returns_to_go(buffer))
    buffer.store_episode(reward=[4])
    with pytest.raises(StaleFieldError, match="the first has the id 4"):
        buffer.get_all_data()
    buffer.update(to_go=returns_to_go(buffer))
    assert buffer.get_all_data()["to_go"].tolist() == [[3], [4]]


def test_an_episode_while_values_are_computed(tmp_path):
    """Values of fewer episodes than there are by then are an error, not a shift."""
    buffer = ReplayBuffer(tmp_path, fields={"reward": "float64"})
    buffer.store_episode(reward=[1.0])
    buffer.add_field("to_go", "float64", returns_to_go(buffer))
    values = returns_to_go(buffer)
    buffer.store_episode(reward=[1.0])
    with pytest.raises(FieldError, match="to_go"):
        buffer.update(to_go=values)
    assert np.isscalar(values[0][0])
