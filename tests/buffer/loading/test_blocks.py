"""Block shuffle: each sample once, few blocks at a time, and as well mixed as is said."""

from __future__ import annotations

import itertools
import math
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gym_replay.buffer.loading.blocks import BlockOrder, default_sizes

epochs = st.integers(0, 2**40)


@st.composite
def block_orders(draw, **fixed):
    """The same order as seen by every rank."""
    world_size = draw(st.integers(1, 4))
    block = draw(st.integers(1, 40))
    arguments = {
        "num_samples": draw(st.integers(0, 400)),
        "batch_size": draw(st.integers(1, 60)),
        "shuffle": True,
        "seed": draw(st.integers(0, 2**70)),
        "drop_last": draw(st.booleans()),
        "block_size": block,
        "pool_size": block * draw(st.integers(1, 8)) + draw(st.integers(0, 5)),
    } | fixed
    return [BlockOrder(**arguments, rank=rank, world_size=world_size) for rank in range(world_size)]


def as_lists(batches):
    return [batch.tolist() for batch in batches]


@settings(max_examples=50)
@given(block_orders(drop_last=False), epochs)
def test_every_sample_once_over_all_ranks(ranks, epoch):
    visited = [sample for order in ranks for batch in order.batches(epoch) for sample in batch.tolist()]
    assert sorted(visited) == list(range(ranks[0].num_samples))
    assert max(map(len, ranks)) - min(map(len, ranks)) <= 1


@settings(max_examples=50)
@given(block_orders(drop_last=True), epochs)
def test_drop_last_gives_every_rank_the_same(ranks, epoch):
    visited = [sample for order in ranks for batch in order.batches(epoch) for sample in batch.tolist()]
    assert len({len(list(order.batches(epoch))) for order in ranks}) == 1
    assert len(set(visited)) == len(visited) == sum(map(len, ranks)) * ranks[0].batch_size


@settings(max_examples=50)
@given(block_orders(), epochs, st.integers(0, 410))
def test_resume_is_exact(ranks, epoch, start):
    for order in ranks:
        batches = as_lists(order.batches(epoch))
        assert as_lists(order.batches(epoch, start)) == batches[start:]
        if batches:
            index = start % len(batches)
            assert order.draw(epoch, index).samples.tolist() == batches[index]
            assert order.visit(order.positions(index), epoch).tolist() == batches[index]


@settings(max_examples=50)
@given(block_orders(), epochs)
def test_the_world_size_does_not_change_the_global_batches(ranks, epoch):
    first = ranks[0]
    alone = BlockOrder(
        first.num_samples, first.batch_size, True, first.seed, block_size=first.block_size, pool_size=first.pool_size
    )
    together = as_lists(alone.batches(epoch))
    for rank, order in enumerate(ranks):
        assert as_lists(order.batches(epoch)) == together[rank :: len(ranks)][: len(order)]


@settings(max_examples=50)
@given(block_orders(), epochs)
def test_a_pool_is_few_runs_of_consecutive_samples(ranks, epoch):
    order = ranks[0]
    size, most = order.num_samples, order.pool_size / order.block_size
    positions = np.arange(size)
    samples = order.visit(positions, epoch)
    pools = np.array([order.pool_of(position) for position in range(size)])
    for pool in range(order.num_pools):
        held = samples[pools == pool]
        assert abs(len(held) - size / order.num_pools) < 1
        spans = order.spans(epoch, pool)
        assert sorted(held.tolist()) == sorted(itertools.chain.from_iterable(range(*span) for span in spans))
        # Each block is one run; one is cut at either end of a pool, one is short, and one wraps around.
        assert len(spans) <= math.ceil(most) + 4
        assert all(end - first <= order.block_size for first, end in spans)


@settings(max_examples=50)
@given(block_orders(), epochs, st.integers(0, 50))
def test_what_a_batch_needs_was_announced_before(ranks, epoch, start):
    for order in ranks:
        announced = set()
        times = 0
        for draw in order.draws(epoch, start):
            for span in draw.reads:
                announced.update(range(*span))
                times += span[1] - span[0]
            assert set(draw.samples.tolist()) <= announced
        assert times <= order.num_samples


def test_the_next_pool_is_asked_for_where_one_is_entered():
    order = BlockOrder(64_000, 64, True, seed=2, block_size=100, pool_size=6400)
    announced = set()
    counts = []
    for draw in order.draws(3):
        for span in draw.reads:
            announced.update(range(*span))
        counts.append(sum(end - first for first, end in draw.reads))
        assert set(draw.samples.tolist()) <= announced
    assert len(announced) == sum(counts) == 64_000
    assert [count for count in counts if count] == [6400] * 10
    # The second pool with the second batch: the first one waits for its own pool, and for no other.
    assert np.flatnonzero(counts).tolist() == [0, 1, *range(100, 900, 100)]


def joint(order, count):
    """For each sample how often it was at each tenth of the epoch, over many seeds."""
    table = np.zeros((10, 10))
    for seed in range(count):
        samples = BlockOrder(order.num_samples, 10, True, seed, block_size=order.block_size, pool_size=order.pool_size)
        visited = samples.visit(np.arange(order.num_samples), 0)
        np.add.at(table, (visited * 10 // order.num_samples, np.arange(order.num_samples) * 10 // order.num_samples), 1)
    return table


@pytest.mark.parametrize("size", [1000, 1037])
def test_every_sample_is_as_likely_everywhere(size):
    order = BlockOrder(size, 10, True, block_size=20, pool_size=200)
    seeds = 400
    table = joint(order, seeds)
    # Blocks move together: of a tenth's 5 blocks each is in a tenth of the epoch with probability 1/10.
    deviation = math.sqrt(seeds * 5 * 0.1 * 0.9) * 20
    assert np.abs(table - table.sum() / 100).max() < 4.5 * deviation


def cuts(order, epoch):
    """Where blocks begin, or go on in another pool."""
    return np.sort([first for pool in range(order.num_pools) for first, _ in order.spans(epoch, pool)])


def test_mixing_is_as_documented():
    """Pairs of one block in a batch, and the variance of the mean of a batch, against the formulas."""
    size, block, pool, batch = 64_000, 50, 3200, 64
    pairs, means = [], []
    for seed in range(40):
        order = BlockOrder(size, batch, True, seed, block_size=block, pool_size=pool)
        begins = cuts(order, 0)
        values = np.random.default_rng(seed).normal(size=len(begins))  # all samples of a block are alike
        values = (values - values.mean()) / values.std()
        for samples in order.batches(0):
            numbers = np.searchsorted(begins, samples, side="right") - 1
            counts = np.bincount(numbers)
            pairs.append((counts * (counts - 1)).sum() / (batch * (batch - 1)))
            means.append(values[numbers].mean())
    expected = (block - 1) / (pool - 1)
    assert abs(np.mean(pairs) / expected - 1) < 0.02
    factor = np.var(means) * batch
    assert 0.93 < factor / (1 + (batch - 1) * block / pool) < 1.07


def test_epochs_cut_elsewhere():
    order = BlockOrder(10_000, 100, True, seed=1, block_size=100, pool_size=1000)
    phases = {int(cuts(order, epoch)[1]) for epoch in range(50)}
    assert len(phases) > 30
    assert order.visit(np.arange(10_000), 0).tolist() != order.visit(np.arange(10_000), 1).tolist()


def test_memory_is_that_of_a_block_of_batches():
    tracemalloc.start()
    try:
        order = BlockOrder(10**8, 256, True, seed=1, rank=2, world_size=3)
        batches = list(itertools.islice(order.batches(0, start=len(order) // 2), 2000))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2**24
    samples = np.concatenate(batches)
    assert len(np.unique(samples)) == len(samples)


def test_orders_never_change():
    order = BlockOrder(10, 10, True, seed=1, block_size=3, pool_size=6)
    assert order.draw(0, 0).samples.tolist() == ORDER


ORDER = [3, 7, 4, 6, 5, 2, 0, 1, 8, 9]


@pytest.mark.parametrize(
    ("size", "seed", "block", "pool", "checksum"),
    [
        (1000, 1, 7, 50, 1188772180),
        (1003, 2, 20, 20, 2998773976),
        (50, 3, 60, 60, 1023715498),  # one block, shorter than it should be
        (10001, 4, 1, 3, 2579106763),
        (64, 5, 64, 64, 1703827965),
        (5000, 9, 100, 1000, 1499259134),  # no short block
    ],
)
def test_larger_orders_never_change_either(size, seed, block, pool, checksum):
    order = BlockOrder(size, 7, True, seed, block_size=block, pool_size=pool)
    assert zlib.crc32(np.concatenate(list(order.batches(3))).tobytes()) == checksum


def test_arguments():
    with pytest.raises(ValueError, match="pool_size=3"):
        BlockOrder(10, 2, True, block_size=4, pool_size=3)
    assert default_sizes(100.0, 10**9) == (83886, 2684354)
    assert default_sizes(1e9, 100) == (1, 1)
    block, pool = default_sizes(50_000.0, 10**6)
    assert 32 <= pool / block <= 33
    block, pool = default_sizes(8.0, 1000)
    assert block == 1000 // 16
