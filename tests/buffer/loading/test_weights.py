"""Draws with replacement: full batches, the proportions that were asked for, and a resume that is exact."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gym_replay import FieldError
from gym_replay.buffer.loading.order import ReplacementOrder, cumulative_weights, uniforms


def offsets_of(counts):
    return np.concatenate(([0], np.cumsum(counts))).astype(np.int64)


@settings(deadline=None)
@given(
    counts=st.lists(st.integers(0, 9), min_size=1, max_size=8).filter(any),
    draws=st.integers(1, 200),
    batch_size=st.integers(1, 40),
    world_size=st.integers(1, 4),
    seed=st.integers(0, 2**70),
    epoch=st.integers(0, 2**40),
    weighted=st.booleans(),
    data=st.data(),
)
def test_batches_are_full_equal_and_resumable(counts, draws, batch_size, world_size, seed, epoch, weighted, data):
    cumulative = None
    weights = np.array([data.draw(st.sampled_from([0.0, 0.5, 3.0])) for _ in counts])
    if weighted and (weights * counts).any():
        parts = np.zeros(len(counts), np.int64)
        cumulative = cumulative_weights(np.array(counts), parts, episode_weights=weights)
    ranks = [
        ReplacementOrder(
            draws, batch_size, True, seed, rank=rank, world_size=world_size, offsets=offsets_of(counts),
            cumulative=cumulative,
        )
        for rank in range(world_size)
    ]  # fmt: skip
    everyone = [[batch.tolist() for batch in order.batches(epoch)] for order in ranks]
    needed = math.ceil(draws / (batch_size * world_size))
    assert all(len(batches) == len(order) == needed for batches, order in zip(everyone, ranks, strict=True))
    assert all(len(batch) == batch_size for batches in everyone for batch in batches)
    start = data.draw(st.integers(0, needed))
    for order, batches in zip(ranks, everyone, strict=True):
        assert [batch.tolist() for batch in order.batches(epoch, start)] == batches[start:]
    alone = ReplacementOrder(draws, batch_size, True, seed, offsets=offsets_of(counts), cumulative=cumulative)
    for index, batch in enumerate(alone.batches(epoch)):
        assert everyone[index % world_size][index // world_size] == batch.tolist()
    possible = set(range(sum(counts)))
    if cumulative is not None:
        episodes = np.repeat(np.arange(len(counts)), counts)
        possible = set(np.flatnonzero(weights[episodes] > 0).tolist())
    assert {sample for batches in everyone for batch in batches for sample in batch} <= possible


def test_draws_are_in_proportion():
    counts, parts = np.array([5, 0, 20, 1, 10]), np.array([0, 0, 0, 1, 1])
    weights = np.array([1.0, 7.0, 3.0, 1.0, 1.0])
    cases = {
        (None, None): counts / counts.sum(),
        ("e", None): np.array([1, 0, 3, 1, 1]) / 6,
        (None, "b"): np.array([5 / 25, 0, 20 / 25, 3 * 1 / 11, 3 * 10 / 11]) / 4,
        ("e", "b"): np.array([1 / 4, 0, 3 / 4, 3 / 2, 3 / 2]) / 4,
    }
    total = 200_000
    for (episodes, buffers), expected in cases.items():
        cumulative = cumulative_weights(
            counts, parts, episode_weights=weights if episodes else None,
            buffer_weights=np.array([1.0, 3.0]) if buffers else None,
        )  # fmt: skip
        order = ReplacementOrder(total, 100, True, seed=4, offsets=offsets_of(counts), cumulative=cumulative)
        drawn = np.concatenate(list(order.batches(0)))
        each = expected[np.repeat(np.arange(5), counts)] / np.repeat(np.maximum(counts, 1), counts)
        found = np.bincount(drawn, minlength=36)
        excess = (((found - total * each) ** 2 / (total * each)).sum() - 35) / math.sqrt(70)
        assert abs(excess) < 5, (episodes, buffers)
        assert np.unique(drawn[:36]).size < 36  # with replacement


def test_uniforms_are_uniform_and_unrelated():
    positions = np.arange(100_000)
    first = uniforms(positions, 3, 0)
    assert 0 <= first.min() < first.max() < 1
    for other in (uniforms(positions, 3, 1), uniforms(positions, 4, 0), uniforms(positions, 3, 0, (1,)), first[1:]):
        joint = np.histogram2d(first[: len(other)], other, 10, [[0, 1], [0, 1]])[0]
        expected = len(other) / 100
        assert abs(((joint - expected) ** 2 / expected).sum() - 99) / math.sqrt(198) < 5
    assert uniforms(np.array([7, -1]), 3, 0)[0] == first[7]


def test_numbers_never_change():
    assert uniforms(np.array([0, 1]), 5, 2).tolist() == UNIFORMS


UNIFORMS = [0.24187005918416327, 0.635740859834663]


def test_weights_that_cannot_be():
    counts, parts = np.array([2, 0]), np.array([0, 1])
    for weights, message in (([1.0], "expected 2 weights"), ([1.0, -1.0], "from 0 on"), ([0.0, 1.0], "above 0")):
        with pytest.raises(FieldError, match=message):
            cumulative_weights(counts, parts, episode_weights=np.array(weights))
    with pytest.raises(FieldError, match="buffer 1 has weight 2"):
        cumulative_weights(counts, parts, buffer_weights=np.array([1.0, 2.0]))
    with pytest.raises(FieldError, match="from 0 on"):
        cumulative_weights(counts, parts, buffer_weights=np.array([np.nan, 2.0]))
