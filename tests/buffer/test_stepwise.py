"""Storing without a context, as code written for memmap-replay-buffer does, and what else that code calls."""

import numpy as np
import pytest
import torch

from gym_replay import (
    BufferFullError,
    ConcatReplayBuffer,
    EpisodeStateError,
    Field,
    FieldError,
    ReadOnlyError,
    ReplayBuffer,
    check_buffer,
    returns_to_go,
)

FIELDS = {"state": Field("float", state=True), "action": "int"}


def make(folder, **options):
    return ReplayBuffer(folder, **{"fields": FIELDS, "meta_fields": {"label": "int"}, **options})


def test_store_and_advance(tmp_path):
    with make(tmp_path) as buffer:
        for episode in range(3):
            for t in range(episode + 1):
                buffer.store(state=t, action=episode)
            if episode == 1:
                buffer.store_final(state=9)
            assert len(buffer) == episode
            buffer.advance_episode()
        assert buffer.episode_lens.tolist() == [1, 2, 3]
        assert buffer.episode(1)["state"].tolist() == [0, 1, 9]
        assert [episode.complete for episode in buffer] == [True] * 3
        buffer.advance_episode()
        assert len(buffer) == 3, "an episode has a transition"


def test_batches_and_advance(tmp_path):
    with make(tmp_path, max_episodes=4) as buffer:
        buffer.store_meta_batch(label=[5, 6, 7])
        buffer.store_batch(state=torch.ones(3), action=[1, 2, 3])
        buffer.store_batch(state=torch.zeros(3), action=[4, 5, 6])
        with pytest.raises(EpisodeStateError, match="3 episodes open"):
            buffer.advance_episode(2)
        buffer.advance_episode(3)
        assert buffer.meta["label"].tolist() == [5, 6, 7]
        assert [episode["action"].tolist() for episode in buffer] == [[1, 4], [2, 5], [3, 6]]
        with pytest.raises(BufferFullError):
            buffer.store_batch(state=torch.ones(2))
        buffer.store_batch(state=torch.ones(1))
        buffer.advance_episode(1)
        assert len(buffer) == 4


def test_what_does_not_fit_opens_nothing(tmp_path):
    with make(tmp_path) as buffer:
        for bad in (
            lambda: buffer.store_batch(),
            lambda: buffer.store_batch(state=1.0),
            lambda: buffer.store_meta_batch(nothing=[1]),
            lambda: buffer.store_meta_batch(label=[1.5]),
        ):
            with pytest.raises(FieldError):
                bad()
        buffer.store_episode(action=[1])
        assert len(buffer) == 1


def test_one_way_at_a_time(tmp_path):
    with make(tmp_path) as buffer:
        buffer.store(action=1)
        with pytest.raises(EpisodeStateError, match="advance_episode"), buffer.one_episode():
            pass
        with pytest.raises(EpisodeStateError):
            buffer.store_batch(action=[1])
        with pytest.raises(EpisodeStateError):
            buffer.store_meta_batch(label=[1])
        buffer.advance_episode()
        with buffer.one_episode():
            buffer.store(action=2)
            with pytest.raises(EpisodeStateError, match="inside of a context"):
                buffer.advance_episode()
        assert [episode["action"].tolist() for episode in buffer] == [[1], [2]]


def test_closing_keeps_what_was_stored(tmp_path):
    buffer = make(tmp_path)
    for t in range(3):
        buffer.store(action=t)
    buffer.close()
    with ReplayBuffer.from_folder(tmp_path) as again:
        assert again.episode(0)["action"].tolist() == [0, 1, 2]
        assert not again.episode(0).complete
    assert check_buffer(tmp_path, progress=False).verified


def test_single_meta_values_and_the_index(tmp_path):
    with make(tmp_path, max_episodes=3, circular=True) as buffer:
        for k in range(4):
            buffer.store_episode(action=[k])
        assert buffer.episode_index == 1
        buffer.store_meta_datapoint(0, "label", 5)
        assert buffer.meta["label"].tolist() == [5, 0, 0]
        with pytest.raises(FieldError, match="action"):
            buffer.store_meta_datapoint(0, "action", 5)
    assert make(tmp_path / "b").episode_index == 0


def test_update_with_fewer_rows(tmp_path):
    with make(tmp_path, max_timesteps=9) as buffer:
        buffer.store_episode(state=[1, 1, 1, 1, 1], action=[1, 2, 3, 4])
        buffer.store_episode(state=[1, 1, 1], action=[5, 6])
        buffer.update(action=np.array([[7, 7, 7], [8, 8, 8]]), state=torch.zeros(2, 2))
        assert [episode["action"].tolist() for episode in buffer] == [[7, 7, 7, 4], [8, 8]]
        assert [episode["state"].tolist() for episode in buffer] == [[0, 0, 1, 1, 1], [0, 0, 1]]
        with pytest.raises(FieldError, match="max_timesteps=9"):
            buffer.update(0, action=np.zeros(12, int))
        buffer.add_field("to_go", "float64", returns_to_go(buffer, reward_field="action"))
        with pytest.raises(FieldError):
            buffer.update(0, to_go=np.zeros(2))


def test_a_concatenation_has_limits_and_writes_nothing(tmp_path):
    make(tmp_path / "a", max_episodes=2, max_timesteps=5).close()
    make(tmp_path / "b", max_episodes=3, max_timesteps=7).close()
    make(tmp_path / "c").close()
    both = ConcatReplayBuffer([tmp_path / "a", tmp_path / "b"])
    assert (both.max_episodes, both.max_timesteps) == (5, 7)
    all_three = ConcatReplayBuffer([tmp_path / "a", tmp_path / "b", tmp_path / "c"])
    assert (all_three.max_episodes, all_three.max_timesteps) == (None, None)
    for name in ("clear", "store", "update", "one_episode", "drop_field"):
        for kind in (ReadOnlyError, NotImplementedError, ValueError, OSError):
            with pytest.raises(kind, match="a concatenation reads"):
                getattr(both, name)()
