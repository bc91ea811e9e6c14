"""Discounted returns of n-step samples and of whole buffers, next fields, and added fields in every kind of sample."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from internals import small_sizes
from loading_helpers import FIELDS, RAGGED, assert_equal, assert_rows, by_index, samples_of, world, worlds

from gym_replay import (
    EmptyBufferError,
    Field,
    FieldError,
    ReplayBuffer,
    crop_loader,
    n_step_loader,
    returns_to_go,
    timestep_loader,
    trajectory_loader,
    window_loader,
)


def reference(episodes, n, discount):
    """Every n-step sample, one at a time, by episode and step."""
    samples = {}
    for e, episode in enumerate(episodes):
        last = len(list(episode["observation"])) - 1
        for t in range(last):
            m = min(n, last - t)
            total, factor, ended = 0.0, 1.0, False
            for k in range(m):
                total += factor * episode["reward"][t + k]
                ended = ended or episode["terminated"][t + k]
                factor *= discount
            exists = t + m < len(episode)
            samples[e, t] = {
                "n_step_lens": m,
                "n_step_return": total,
                "n_step_discount": 0.0 if ended else factor,
                "next_observation": episode["observation"][t + m],
                "next_seen": episode["seen"][t + m],
                "next_action": episode["action"][t + m] if exists else 0,
                "next_action_is_pad": not exists,
                "next_words": episode["words"][t + m] if exists else np.empty(0),
                "next_words_is_pad": not exists,
                "reward": episode["reward"][t],
            }
    return samples


@settings(max_examples=40)
@given(how=worlds(), n=st.integers(1, 12), discount=st.sampled_from([0, 0.5, 0.99, 1]), batch_size=st.integers(1, 7))
def test_n_step_samples_equal_the_reference(tmp_path_factory, how, n, discount, batch_size):
    with world(tmp_path_factory.mktemp("b"), **how) as (buffer, episodes):
        expected = reference(episodes, n, discount)
        options = {"discount": discount, "next_fields": ("observation", "seen", "action", "words")}
        if not expected:
            with pytest.raises(EmptyBufferError):
                n_step_loader(buffer, batch_size, n, **options)
            return
        loader = n_step_loader(buffer, batch_size, n, shuffle=True, return_indices=True, dtype="stored", **options)
        found = by_index(loader)
        assert found.keys() == expected.keys()
        for key, sample in expected.items():
            for name, value in sample.items():
                if name.removeprefix("next_") in RAGGED:
                    assert_rows(found[key], name, np.asarray(value))
                else:
                    np.testing.assert_allclose(found[key][name], value, rtol=1e-12, err_msg=name)


def test_truncation_keeps_bootstrapping(tmp_path):
    fields = {"o": Field("float", state=True), "reward": "float64", "terminated": "bool", "truncated": "bool"}
    with ReplayBuffer(tmp_path, fields=fields) as buffer:
        for terminated in (True, False):
            ends = np.array([False, False, True])
            buffer.store_episode(
                o=np.zeros(4), reward=np.ones(3), terminated=ends & terminated, truncated=ends & (not terminated)
            )
        batch = next(iter(n_step_loader(buffer, 6, 2, discount=0.5)))
        assert batch["n_step_return"].tolist() == [1.5, 1.5, 1.0, 1.5, 1.5, 1.0]
        assert batch["n_step_discount"].tolist() == [0.25, 0.0, 0.0, 0.25, 0.25, 0.5]
        assert batch["n_step_return"].dtype == batch["n_step_discount"].dtype == batch["reward"].dtype == torch.float32


def test_returns_are_delivered_like_rewards(tmp_path):
    fields = {"x": Field("float", state=True), "r": ("float32", (2,)), "done": "bool", "points": "int"}
    with ReplayBuffer(tmp_path, fields=fields) as buffer:
        buffer.store_episode(x=np.zeros(4), r=[[1, 2], [3, 4], [5, 6]], done=[0, 0, 1], points=[1, 2, 3])
        options = {"discount": 0.5, "terminated_field": "done", "dtype": "stored"}
        batch = next(iter(n_step_loader(buffer, 3, 3, reward_field="r", **options)))
        assert batch["n_step_return"].dtype == torch.float32
        assert batch["n_step_return"].tolist() == [[3.75, 5.5], [5.5, 7], [5, 6]]
        batch = next(iter(n_step_loader(buffer, 3, 3, reward_field="points", **options)))
        assert batch["n_step_return"].dtype == torch.float64
        assert batch["n_step_return"].tolist() == [2.75, 3.5, 3]
        with pytest.raises(FieldError, match="reward_field"):
            n_step_loader(buffer, 3, discount=0.5)
        with pytest.raises(FieldError, match="terminated_field"):
            n_step_loader(buffer, 3, discount=0.5, reward_field="r")
        for discount in (-0.1, 1.1, True, "0.9", float("nan")):
            with pytest.raises(FieldError, match="discount"):
                n_step_loader(buffer, 3, discount=discount, reward_field="r", terminated_field="done")


def test_without_state_fields_every_next_row_exists(tmp_path):
    with ReplayBuffer(tmp_path, fields={"x": "int"}) as buffer:
        buffer.store_episode(x=np.arange(4))
        batch = next(iter(n_step_loader(buffer, 3)))
        assert batch["next_x"].tolist() == [1, 2, 3]
        assert "next_x_is_pad" not in batch


@settings(max_examples=30)
@given(how=worlds(), discount=st.sampled_from([0, 0.3, 0.99, 1]))
def test_returns_to_go_equal_the_recursion(tmp_path_factory, how, discount):
    with world(tmp_path_factory.mktemp("b"), **how) as (buffer, episodes):
        returns = returns_to_go(buffer, discount)
        assert len(returns) == len(episodes)
        for episode, found in zip(episodes, returns, strict=True):
            ahead, expected = 0.0, []
            for reward in episode["reward"][::-1]:
                ahead = reward + discount * ahead
                expected.append(ahead)
            assert found.dtype == np.float64
            np.testing.assert_allclose(found, expected[::-1], rtol=1e-12)


def test_returns_to_go_of_many_steps(tmp_path, monkeypatch):
    small_sizes(monkeypatch, episode_rows=50)
    rng = np.random.default_rng(0)
    with ReplayBuffer(tmp_path, fields={"gain": ("float32", (2,))}) as buffer:
        for length in (1, 700, 3, 49, 50, 51, 1):
            buffer.store_episode(gain=rng.normal(size=(length, 2)))
        for episode, found in zip(buffer, returns_to_go(buffer, 0.9, reward_field="gain"), strict=True):
            expected = episode["gain"].astype(np.float64)
            for t in range(len(episode) - 2, -1, -1):
                expected[t] += 0.9 * expected[t + 1]
            np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-13)
        with pytest.raises(FieldError, match="gain"):
            returns_to_go(buffer)
        with pytest.raises(FieldError, match="discount"):
            returns_to_go(buffer, 2, reward_field="gain")
        buffer.clear()
        assert returns_to_go(buffer, reward_field="gain") == []


@settings(max_examples=12)
@given(how=worlds().filter(lambda how: how["kind"] != "concatenated"))
def test_an_added_field_loads_like_recorded_ones(tmp_path_factory, how):
    """Added are copies of the recorded fields: in every kind of sample they are equal to them."""
    pairs = {"observation": "embedding", "seen": "tokens", "reward": "relabelled", "words": "said"}
    with world(tmp_path_factory.mktemp("b"), **how) as (buffer, episodes):
        for name, added in pairs.items():
            buffer.add_field(added, FIELDS[name], [[np.array(row) for row in episode[name]] for episode in episodes])
        buffer.add_field("return_to_go", "float64", returns_to_go(buffer))
        offsets = {name: (-1, 0, 2) for both in pairs.items() for name in both}
        loaders = [
            trajectory_loader(buffer, 2),
            timestep_loader(buffer, 3),
            window_loader(buffer, 3, offsets=offsets),
            crop_loader(buffer, 2, (1, 5)),
        ]
        if any(episode.has_final or len(episode) > 1 for episode in episodes):
            every = (*pairs, *pairs.values())
            loaders.append(n_step_loader(buffer, 3, 2, next_fields=every, sequence_fields=every))
        for loader in loaders:
            for sample in samples_of(loader):
                for name in sample:
                    for recorded, added in pairs.items():
                        if recorded in name:
                            assert torch.equal(sample[name], sample[name.replace(recorded, added)])
        for key, sample in by_index(timestep_loader(buffer, 3, return_indices=True)).items():
            assert_equal(sample["return_to_go"].numpy(), np.float32(episodes[key[0]]["reward"][key[1] :].sum()))


@pytest.mark.parametrize(
    ("shape", "returned", "discounted"),
    [
        ((), (4,), (4,)),
        ((1,), (4,), (4,)),
        ((1, 1), (4,), (4,)),
        ((4,), (4, 4), (4, 1)),
        ((2, 3), (4, 2, 3), (4, 1, 1)),
    ],
)
def test_the_target_has_the_shape_of_the_rewards(tmp_path, shape, returned, discounted):
    """Four samples and, in one case, rewards of four numbers: no axis may be taken for another."""
    fields = {"o": Field("float", state=True), "reward": ("float64", shape), "terminated": "bool"}
    rewards = np.random.default_rng(0).normal(size=(4, *shape))
    with ReplayBuffer(tmp_path, fields=fields) as buffer:
        buffer.store_episode(o=np.zeros(5), reward=rewards, terminated=[0, 0, 0, 1])
        batch = next(iter(n_step_loader(buffer, 4, 2, discount=0.5, dtype="stored")))
    assert (tuple(batch["n_step_return"].shape), tuple(batch["n_step_discount"].shape)) == (returned, discounted)
    value = np.random.default_rng(1).normal(size=returned)
    target = batch["n_step_return"].numpy() + batch["n_step_discount"].numpy() * value
    flat = rewards.reshape(4, -1)
    for t, factor in enumerate([0.25, 0.25, 0, 0]):  # the last two end within their steps
        expected = flat[t] + (0.5 * flat[t + 1] if t < 3 else 0) + factor * value.reshape(4, -1)[t]
        np.testing.assert_allclose(target.reshape(4, -1)[t], expected)
