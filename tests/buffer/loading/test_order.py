"""Order: every sample once or drawn with replacement, resumable, and shuffles that look random."""

from __future__ import annotations

import itertools
import math
import pickle
import tracemalloc
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from internals import small_sizes

from gym_replay import FieldError
from gym_replay.buffer.loading.order import ROUNDS, Order, ReplacementOrder, cumulative_weights, permute, uniforms

# Standard deviations that a statistic may be off. Seeds are fixed, so that a test passes always or never; a sound
# permutation exceeds five for fewer than one seed in a hundred.
LIMIT = 5.0

SIZES = [1000, 1024, 1025, 40_000]


def whole_order(size, seed=0, epoch=0):
    return permute(np.arange(size), size, seed, epoch)


def excess(observed, expected, degrees):
    """Chi-square of counts, as standard deviations above its mean."""
    return (((observed - expected) ** 2 / expected).sum() - degrees) / math.sqrt(2 * degrees)


def joint_excess(left, right, bins):
    """`excess` of the contingency table of two labellings in ``range(bins)`` whose margins are fixed."""
    table = np.zeros((bins, bins))
    np.add.at(table, (left, right), 1)
    expected = table.sum(1)[:, None] * table.sum(0)[None] / table.sum()
    return excess(table, expected, (bins - 1) ** 2)


@st.composite
def orders(draw, **fixed):
    """The same order as seen by every rank."""
    world_size = draw(st.integers(1, 5))
    arguments = {
        "num_samples": draw(st.integers(0, 300)),
        "batch_size": draw(st.one_of(st.integers(1, 40), st.sampled_from([300, 10**6, 2**70]))),
        "shuffle": draw(st.booleans()),
        "drop_last": draw(st.booleans()),
        "seed": draw(st.integers(0, 2**80)),
    } | fixed
    return [Order(**arguments, rank=rank, world_size=world_size) for rank in range(world_size)]


epochs = st.integers(0, 2**40)


def as_lists(batches):
    return [batch.tolist() for batch in batches]


@given(orders(drop_last=False), epochs)
def test_every_sample_once(ranks, epoch):
    visited = [sample for order in ranks for batch in order.batches(epoch) for sample in batch.tolist()]
    assert sorted(visited) == list(range(ranks[0].num_samples))


@given(orders(drop_last=False), epochs)
def test_ranks_differ_by_one_batch_and_only_the_last_is_short(ranks, epoch):
    counts = [len(order) for order in ranks]
    assert max(counts) - min(counts) <= 1
    num_samples, batch_size = ranks[0].num_samples, ranks[0].batch_size
    sizes = [len(batch) for order in ranks for batch in order.batches(epoch)]
    assert all(size == batch_size for size in sorted(sizes)[1:])
    assert sum(counts) == len(sizes) == -(-num_samples // batch_size)


@given(orders(drop_last=True), epochs)
def test_drop_last_gives_full_batches_and_equal_ranks(ranks, epoch):
    first = ranks[0]
    visited = []
    for order in ranks:
        batches = as_lists(order.batches(epoch))
        assert len(batches) == len(order) == len(first)
        assert all(len(batch) == first.batch_size for batch in batches)
        visited += itertools.chain.from_iterable(batches)
    assert len(set(visited)) == len(visited)
    assert 0 <= first.num_samples - len(visited) < first.world_size * first.batch_size


@given(orders(), epochs)
def test_global_batches_are_dealt_round_robin(ranks, epoch):
    first = ranks[0]
    samples = whole_order(first.num_samples, first.seed, epoch) if first.shuffle else np.arange(first.num_samples)
    for rank, order in enumerate(ranks):
        for index, batch in enumerate(order.batches(epoch)):
            begin = (index * len(ranks) + rank) * first.batch_size
            assert batch.dtype == np.int64
            assert batch.tolist() == samples[begin : begin + first.batch_size].tolist()


@given(orders(), epochs, st.integers(0, 310), st.data())
def test_resume_is_exact(ranks, epoch, start, data):
    for order in ranks:
        batches = as_lists(order.batches(epoch))
        assert as_lists(order.batches(epoch, start)) == batches[start:]
        if batches:
            index = data.draw(st.integers(0, len(order) - 1))
            assert order.draw(epoch, index).samples.tolist() == batches[index]


@pytest.mark.parametrize("block", [1, 2, 7, 64, 1000])
def test_blocks_do_not_show(monkeypatch, block):
    small_sizes(monkeypatch, order_block=block)
    for batch_size, rank in itertools.product((1, 3, 10, 101, 1000), (0, 2)):
        order = Order(101, batch_size, shuffle=True, seed=3, rank=rank, world_size=3)
        expected = [order.draw(1, index).samples.tolist() for index in range(len(order))]
        assert as_lists(order.batches(1)) == expected
        assert as_lists(order.batches(1, 2)) == expected[2:]


@pytest.mark.parametrize("shuffle", [False, True])
def test_batches_are_the_readers_own(monkeypatch, shuffle):
    small_sizes(monkeypatch, order_block=12)
    order = Order(50, 4, shuffle=shuffle)
    expected = as_lists(order.batches(0))
    kept = []
    for batch in order.batches(0):
        kept.append((batch, batch.tolist()))
        batch += 1000
    assert [before for _, before in kept] == expected
    assert [(batch - 1000).tolist() for batch, _ in kept] == expected


def test_without_shuffle_the_order_is_the_identity():
    assert as_lists(Order(7, 3).batches(epoch=5)) == [[0, 1, 2], [3, 4, 5], [6]]


def test_order_is_a_value():
    order = Order(np.int32(10), np.int64(3), shuffle=True, seed=np.uint64(2**64 - 1))
    assert order == Order(10, 3, True, 2**64 - 1)
    assert type(order.num_samples) is int
    copy = pickle.loads(pickle.dumps(order))
    assert as_lists(copy.batches(4)) == as_lists(order.batches(4))


def test_batches_larger_than_the_data():
    assert as_lists(Order(3, 10**12).batches(0)) == [[0, 1, 2]]
    assert as_lists(Order(3, 10**12, drop_last=True).batches(0)) == []
    assert as_lists(Order(0, 10**12, shuffle=True).batches(0)) == []
    assert as_lists(Order(3, 2, rank=1, world_size=2**80).batches(0)) == [[2]]


@pytest.mark.parametrize("num_samples", [10**8, 2**63 - 1])
@pytest.mark.parametrize("rank", [0, 6])
def test_memory_does_not_grow_with_the_data(num_samples, rank):
    tracemalloc.start()
    try:
        order = Order(num_samples, 256, shuffle=True, rank=rank, world_size=7)
        batches = list(itertools.islice(order.batches(0, start=len(order) - 300), 400))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(batches) == 300
    assert peak < 2**23
    samples = np.concatenate(batches)
    assert len(np.unique(samples)) == len(samples)
    assert samples.min() >= 0
    assert samples.max() < num_samples


def test_permute_is_a_bijection_of_every_small_size():
    for size in range(1, 2001):
        assert np.array_equal(np.sort(whole_order(size, seed=size)), np.arange(size)), size


@pytest.mark.parametrize("size", [4095, 4096, 4097, 2**16, 2**16 + 1, 99_991, 300_000, 2**19 + 1])
@pytest.mark.parametrize("seed", [0, 2**64 + 1])
def test_permute_is_a_bijection_of_larger_sizes(size, seed):
    assert np.array_equal(np.sort(whole_order(size, seed, epoch=2)), np.arange(size))


def reference_permute(position, size, seed, epoch):
    """`permute` for one position in Python's integers, which do not overflow."""
    bits = max(1, (size - 1).bit_length())
    state = np.random.SeedSequence(seed, spawn_key=(epoch,)).generate_state(2 * ROUNDS, np.uint64).tolist()
    while True:
        for add, multiply in zip(state[::2], state[1::2], strict=True):
            position = (position + add) * (multiply | 1) % 2**bits
            position ^= position >> max(1, bits // 2)
        if position < size:
            return position


@given(st.data(), st.integers(0, 2**80), epochs)
def test_permute_equals_exact_arithmetic(data, seed, epoch):
    bits = data.draw(st.integers(0, 62))
    size = data.draw(st.one_of(st.integers(2**bits, 2 ** (bits + 1) - 1), st.sampled_from([2**bits, 2**bits + 1])))
    positions = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=8))
    expected = [reference_permute(position, size, seed, epoch) for position in positions]
    assert permute(np.array(positions), size, seed, epoch).tolist() == expected


@pytest.mark.parametrize("size", [2**31, 2**31 + 1, 2**32 - 1, 2**32, 2**32 + 1, 2**33, 2**63 - 1])
def test_permute_at_the_edges_of_its_words(size):
    positions = [0, 1, size // 2, size - 2, size - 1]
    expected = [reference_permute(position, size, seed=1, epoch=1) for position in positions]
    assert permute(np.array(positions), size, seed=1, epoch=1).tolist() == expected


def test_permute_keeps_shape_and_input():
    positions = np.arange(12).reshape(3, 4)
    samples = permute(positions, 20, 1, 1)
    assert samples.shape == (3, 4)
    assert samples.dtype == np.int64
    assert np.array_equal(samples.ravel(), whole_order(20, 1, 1)[:12])
    assert np.array_equal(positions, np.arange(12).reshape(3, 4))
    assert permute(np.empty((0, 2), np.int64), 0, 1, 1).shape == (0, 2)


def test_orders_never_change():
    # A checkpoint resumes in the middle of an epoch: another version must visit the rest of it.
    assert whole_order(10).tolist() == [3, 1, 6, 7, 5, 9, 4, 8, 2, 0]
    assert permute(np.arange(4), 10**8, seed=2**64, epoch=3).tolist() == [72519088, 44233970, 12941928, 16355429]
    assert permute(np.arange(3), 10**12, seed=1, epoch=0).tolist() == [220639677489, 617221656621, 671205127232]


# Four samples show too few rounds most clearly: five rounds fail here.
@pytest.mark.parametrize(("size", "draws"), [(2, 1200), (3, 1200), (4, 8000), (5, 1200)])
def test_small_sizes_reach_all_permutations_evenly(size, draws):
    counts = Counter(tuple(whole_order(size, seed, epoch).tolist()) for seed in range(draws // 4) for epoch in range(4))
    observed = np.array(list(counts.values()))
    assert len(counts) == math.factorial(size)
    assert excess(observed, draws / len(counts), len(counts) - 1) < LIMIT


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("size", SIZES)
def test_sample_is_independent_of_position(size, seed):
    samples, positions, bins = whole_order(size, seed), np.arange(size), 8
    correlation = np.corrcoef(samples, positions)[0, 1]
    assert abs(correlation) * math.sqrt(size) < LIMIT
    for position_bin in (positions * bins // size, positions % bins):
        for sample_bin in (samples * bins // size, samples % bins):
            assert joint_excess(position_bin, sample_bin, bins) < LIMIT


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("size", SIZES)
def test_differences_of_near_positions_are_uniform(size, seed):
    samples, bins = whole_order(size, seed), 16
    # A difference of zero cannot be.
    possible = np.bincount(np.arange(1, size) * bins // size, minlength=bins)
    for lag in (1, 2, 16, 256):
        differences = (samples[lag:] - samples[:-lag]) % size
        observed = np.bincount(differences * bins // size, minlength=bins)
        assert excess(observed, possible / (size - 1) * (size - lag), bins - 1) < LIMIT
        assert np.bincount(differences).max() < 15


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("size", SIZES)
def test_rises_and_falls_alternate_as_by_chance(size, seed):
    rises = np.diff(whole_order(size, seed)) > 0
    turns = np.count_nonzero(rises[1:] != rises[:-1])
    assert abs(rises.sum() - (size - 1) / 2) / math.sqrt((size + 1) / 12) < LIMIT
    assert abs(turns - 2 * (size - 2) / 3) / math.sqrt((16 * size - 29) / 90) < LIMIT


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("size", SIZES)
def test_batches_are_fair_draws(size, seed):
    batch_size = 50
    batches = list(Order(size, batch_size, shuffle=True, seed=seed, drop_last=True).batches(0))
    means = np.array([batch.mean() for batch in batches])
    variance = size * size / 12 / batch_size * (size - batch_size) / size
    spread = (((means - (size - 1) / 2) ** 2).sum() / variance - len(means)) / math.sqrt(2 * len(means))
    assert abs(spread) < LIMIT
    # Which of ten stretches of the data the samples of a batch come from, over all batches.
    observed = np.array([np.bincount(batch * 10 // size, minlength=10) for batch in batches])
    assert abs(excess(observed, batch_size / 10, 9 * len(batches))) < LIMIT


@pytest.mark.parametrize("size", [100_000_000, 2**27 + 1, 2**40 - 1])
@pytest.mark.parametrize("begin", [0, 77_777_777])
def test_windows_of_large_orders_are_uniform(size, begin):
    count, bins = 2**16, 64
    samples = permute(np.arange(begin, begin + count), size, seed=1, epoch=1)
    pairs = samples[1:] - samples[:-1]
    for values in (samples // (size // bins + 1), samples % bins, pairs % size // (size // bins + 1), pairs % bins):
        assert excess(np.bincount(values, minlength=bins), len(values) / bins, bins - 1) < LIMIT


@pytest.mark.parametrize("size", SIZES)
def test_few_samples_stay_where_they_are(size):
    fixed = [np.count_nonzero(whole_order(size, seed) == np.arange(size)) for seed in range(50)]
    assert max(fixed) <= 8
    assert abs(np.mean(fixed) - 1) * math.sqrt(50) < LIMIT


@pytest.mark.parametrize("size", SIZES)
def test_near_seeds_and_epochs_give_unrelated_orders(size):
    this, bins = whole_order(size), 8
    for seed, epoch in ((0, 1), (1, 0), (1, 1), (2**32, 0), (2**64, 0), (0, 2**32), (2**200, 0)):
        that = whole_order(size, seed, epoch)
        assert np.count_nonzero(this == that) <= 8
        assert joint_excess(this * bins // size, that * bins // size, bins) < LIMIT
        assert joint_excess(this % bins, that % bins, bins) < LIMIT


def test_epochs_and_seeds_never_repeat_an_order():
    seen = {whole_order(50, seed, epoch).tobytes() for seed in (*range(10), 2**64, 2**64 + 1) for epoch in range(20)}
    assert len(seen) == 12 * 20


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_samples": -1}, "num_samples: expected an integer from 0 to 9223372036854775807, got -1"),
        ({"num_samples": 2**63}, "num_samples: expected an integer from 0 to 9223372036854775807"),
        ({"batch_size": 0}, "batch_size: expected an integer from 1 on, got 0"),
        ({"seed": -5}, "seed: expected an integer from 0 on, got -5"),
        ({"world_size": 0}, "world_size: expected an integer from 1 on, got 0"),
        ({"rank": -1, "world_size": 2}, "rank: expected an integer from 0 on, got -1"),
        ({"rank": 2, "world_size": 2}, "rank: expected 0 <= rank < world_size = 2, got 2"),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(FieldError, match=message):
        Order(**{"num_samples": 10, "batch_size": 2} | arguments)


@pytest.mark.parametrize("name", ["num_samples", "batch_size", "seed", "rank", "world_size"])
def test_arguments_that_are_no_integers(name):
    with pytest.raises(FieldError, match=f"{name}: expected an integer from . .*, got 1.0"):
        Order(**{"num_samples": 10, "batch_size": 2} | {name: 1.0})


def test_positions_out_of_range():
    for position in (-1, 10):
        with pytest.raises(IndexError, match="positions: expected 0 <= position < size = 10"):
            permute(np.array([3, position]), 10, 0, 0)


# --- with replacement ---


def offsets_of(counts):
    return np.concatenate(([0], np.cumsum(counts))).astype(np.int64)


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
