"""The example in memmap-replay-buffer 0.1.4's README, with only the import changed."""
# ruff: noqa: C408

import pytest
import torch

from gym_replay import ReplayBuffer


@pytest.fixture
def buffer(tmp_path):
    buffer = ReplayBuffer(
        str(tmp_path / "replay_data"),
        max_episodes=1000,
        max_timesteps=500,
        fields=dict(state=("float", (3, 16, 16), 0.0), action=("int", 2), reward="float"),
        meta_fields=dict(task_id="int"),
        circular=True,
        overwrite=True,
    )
    for _ in range(4):
        with buffer.one_episode(task_id=1):
            for _ in range(100):
                buffer.store(state=torch.randn(3, 16, 16), action=torch.randint(0, 4, (2,)).numpy(), reward=1.0)
    yield buffer
    buffer.close()


def test_a_second_buffer_sees_the_episodes_while_the_first_is_open(buffer):
    rehydrated = ReplayBuffer.from_folder(buffer.folder)
    assert rehydrated.num_episodes == 4
    assert rehydrated.num_steps == 400


def test_trajectories(buffer):
    loader = buffer.dataloader(
        batch_size=2,
        return_mask=True,
        to_named_tuple=("state", "action", "reward", "task_id", "_mask", "_lens"),
    )
    batches = 0
    for state, action, reward, task_id, mask, lens in loader:
        assert state.shape == (2, 100, 3, 16, 16)
        assert action.shape == (2, 100, 2)
        assert reward.shape == (2, 100)
        assert task_id.shape == (2,)
        assert mask.shape == (2, 100)
        assert lens.shape == (2,)
        assert mask.all()
        assert (reward == 1).all()
        batches += 1
    assert batches == len(loader) == 2


def test_timesteps(buffer):
    loader = buffer.dataloader(
        batch_size=8,
        filter_meta=dict(task_id=1),
        to_named_tuple=("state", "action", "task_id"),
        timestep_level=True,
        drop_last=True,
    )
    batches = 0
    for state, action, task_id in loader:
        assert state.shape == (8, 3, 16, 16)
        assert action.shape == (8, 2)
        assert task_id.shape == (8,)
        batches += 1
    assert batches == 50


def test_n_steps(buffer):
    loader = buffer.dataloader(
        batch_size=4,
        n_steps=5,
        current_fields=("state",),
        next_fields=("state",),
        sequence_fields=("action", "reward"),
        to_named_tuple=("state", "next_state", "action_chunk", "rewards", "n_step_lens"),
        fieldname_map={"seq_action": "action_chunk", "seq_reward": "rewards"},
    )
    batches = 0
    for state, next_state, action_chunk, rewards, n_step_lens in loader:
        assert state.shape == next_state.shape == (4, 3, 16, 16)
        assert action_chunk.shape == (4, 5, 2)
        assert rewards.shape == (4, 5)
        assert n_step_lens.shape == (4,)
        assert (rewards.sum(1) == n_step_lens).all()
        batches += 1
    assert batches == 99  # the state has no row T here, so the last transition of each episode has no next state
