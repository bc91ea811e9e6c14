"""Prioritised sampling against lists and the formulas of the paper."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gym_replay import FieldError, PrioritizedSampler
from gym_replay.buffer.loading.prioritized import SumTree

values_of = st.one_of(st.just(0.0), st.floats(1e-6, 1e6))


@given(st.integers(1, 40), st.lists(st.tuples(st.integers(0, 39), values_of), max_size=60), st.integers(1, 9))
def test_a_tree_is_a_list_of_values(capacity, puts, size):
    tree, expected = SumTree(capacity), np.zeros(64)
    puts = [(place % capacity, value) for place, value in puts]
    for begin in range(0, len(puts), size):
        places, values = zip(*puts[begin : begin + size], strict=True)
        tree.put(np.array(places), np.array(values))
        for place, value in puts[begin : begin + size]:
            expected[place] = value
    assert tree.capacity >= capacity
    assert tree.values.tolist() == expected[: tree.capacity].tolist()
    assert math.isclose(tree.total, expected.sum(), rel_tol=1e-12)
    if tree.total > 0:
        sums = np.linspace(0, tree.total, 50, endpoint=False)
        found = tree.find(sums)
        assert (expected[found] > 0).all()
        # By the definition of the cumulative sum, up to rounding at its edges.
        cumulative = np.cumsum(expected)
        slack = 1e-9 * tree.total
        assert (sums <= cumulative[found] + slack).all()
        assert (sums >= cumulative[found] - expected[found] - slack).all()


def test_a_tree_is_fast():
    """A batch changes in steps of the logarithm: much less than a pass over all values."""
    tree, rng = SumTree(1 << 22), np.random.default_rng(0)
    tree.put(np.arange(1 << 22), np.ones(1 << 22))
    places = rng.integers(0, 1 << 22, 256)
    calls = []
    unique = np.unique
    try:
        np.unique = lambda nodes: calls.append(len(nodes)) or unique(nodes)
        tree.put(places, rng.random(256))
    finally:
        np.unique = unique
    assert len(calls) == 22
    assert sum(calls) <= 22 * 256


def followed(counts=(100,), **options):
    sampler = PrioritizedSampler(**options)
    sampler.follow(np.arange(len(counts)), np.array(counts))
    return sampler


def test_draws_and_weights_follow_the_formulas():
    sampler = followed((50,), alpha=0.7, beta=0.5, epsilon=0.0)
    errors = np.random.default_rng(0).exponential(size=50)
    sampler.update(np.arange(50), errors)
    probabilities = errors**0.7 / (errors**0.7).sum()
    draws = [sampler.draw(np.arange(first, first + 20), 3, 0) for first in range(0, 100_000, 20)]
    counts = np.bincount(np.concatenate([samples for samples, _ in draws]), minlength=50)
    # Stratified draws vary less than independent ones.
    assert np.abs(counts - 100_000 * probabilities).max() < 5 * math.sqrt(100_000 * probabilities.max())
    for samples, weights in draws[:50]:
        expected = (50 * probabilities[samples]) ** -0.5
        np.testing.assert_allclose(weights, expected / expected.max(), rtol=1e-9)
        # One of each of 20 equal stretches.
        ends = np.cumsum(probabilities) * 20
        assert (ends[samples] >= np.arange(20) - 1e-9).all()
        assert (ends[samples] - 20 * probabilities[samples] <= np.arange(1, 21) + 1e-9).all()


def test_extreme_settings():
    uniform = followed((10,), alpha=0.0)
    uniform.update(np.arange(10), np.arange(10) * 1e6)
    assert uniform.priorities(range(10)).tolist() == [1.0] * 10
    assert (uniform.draw(np.arange(4), 0, 0)[1] == 1).all()
    flat = followed((10,), beta=0.0)
    flat.update(np.arange(10), np.arange(10))
    assert (flat.draw(np.arange(4), 0, 0)[1] == 1).all()
    flat.beta = 1
    assert flat.draw(np.arange(4), 0, 0)[1].min() < 1
    none = followed((3,), epsilon=0.0)
    none.update([0, 1, 2], [0, 0, 0])
    with pytest.raises(FieldError, match="all priorities are 0"):
        none.draw(np.arange(2), 0, 0)
    none.update([1], [1e-3])
    assert none.draw(np.arange(9), 0, 0)[0].tolist() == [1] * 9


def test_tensors_are_taken():
    sampler = followed((10,), epsilon=0.0, alpha=1.0)
    errors = torch.tensor([1.0, 2.0], requires_grad=True)
    sampler.update(torch.tensor([3, 4]), errors)
    sampler.update(torch.tensor([5]), torch.tensor([4.0], dtype=torch.bfloat16))
    assert sampler.priorities(torch.tensor([3, 4, 5])).tolist() == [1.0, 2.0, 4.0]
    assert sampler.max_priority == 4.0
    sampler.update([3, 3], [7.0, 5.0])
    assert sampler.priorities([3]).tolist() == [5.0]


@pytest.mark.parametrize(
    ("samples", "priorities", "message"),
    [
        ([0, 1], [1.0], "one shape"),
        ([[0]], [[1.0]], "one shape"),
        ([0.0], [1.0], "integer samples"),
        ([0], [-1.0], "absolute value"),
        ([0], [math.nan], "finite"),
        ([10], [1.0], "below 10, got 10"),
        ([-2], [1.0], "below 10"),
    ],
)
def test_updates_that_cannot_be(samples, priorities, message):
    sampler = followed((10,))
    with pytest.raises(FieldError, match=message):
        sampler.update(samples, priorities)
    assert sampler.priorities(range(10)).tolist() == [1.0] * 10


@pytest.mark.parametrize("options", [{"alpha": -1}, {"beta": 1.5}, {"beta": -0.1}, {"epsilon": math.inf}])
def test_settings_that_cannot_be(options):
    with pytest.raises(FieldError, match=next(iter(options))):
        PrioritizedSampler(**options)


class Following(RuleBasedStateMachine):
    """A sampler that follows a live buffer, against a dict from (episode, sample) to priority."""

    def __init__(self):
        super().__init__()
        self.sampler = PrioritizedSampler(alpha=1.0, epsilon=0.0)
        self.next_id = 0
        self.episodes = {}  # id to count
        self.model = {}  # (id, k) to priority
        self.numbers = {}  # number, for good, to (id, k)
        self.end, self.largest = 0, 1.0

    @rule(counts=st.lists(st.integers(0, 6), max_size=5), evict=st.integers(0, 4), delete=st.integers(0, 20))
    def refresh(self, counts, evict, delete):
        for gone in list(self.episodes)[:evict]:
            del self.episodes[gone]
        if len(self.episodes) > 2 and delete < len(self.episodes):
            del self.episodes[list(self.episodes)[delete]]
        for count in counts:
            self.episodes[self.next_id] = count
            for k in range(count):
                self.model[self.next_id, k] = self.largest
                self.numbers[self.end] = (self.next_id, k)
                self.end += 1
            self.next_id += 1
        ids = np.array(list(self.episodes), np.int64)
        self.sampler.follow(ids, np.array(list(self.episodes.values()), np.int64))

    @precondition(lambda self: self.end)
    @rule(data=st.data())
    def update(self, data):
        pairs = data.draw(st.lists(st.tuples(st.integers(-1, self.end - 1), st.floats(0.01, 100)), max_size=6))
        samples, priorities = [s for s, _ in pairs], [p for _, p in pairs]
        self.sampler.update(np.array(samples, np.int64), np.array(priorities))
        for sample, priority in pairs:
            if sample >= 0 and self.numbers[sample][0] in self.episodes:
                self.model[self.numbers[sample]] = priority
                self.largest = max(self.largest, priority)

    @rule()
    def store_and_load(self):
        state = pickle.loads(pickle.dumps(self.sampler.state_dict()))
        self.sampler = PrioritizedSampler()
        self.sampler.load_state_dict(state)

    @invariant()
    def holds_what_the_dict_does(self):
        live = {n: key for n, key in self.numbers.items() if key[0] in self.episodes}
        assert len(self.sampler) == len(live)
        expected = [self.model[key] if n in live else 0.0 for n, key in self.numbers.items()]
        np.testing.assert_allclose(self.sampler.priorities(np.arange(self.end)), expected)
        if live:
            assert math.isclose(self.sampler._tree.total, sum(expected), rel_tol=1e-9)
            samples, _ = self.sampler.draw(np.arange(30), 1, 0)
            assert set(samples.tolist()) <= set(live)
            places, inside = self.sampler.locate(samples)
            ids = list(self.episodes)
            assert [(ids[p], k) for p, k in zip(places, inside, strict=True)] == [live[s] for s in samples.tolist()]


Following.TestCase.settings = settings(max_examples=25, stateful_step_count=20)
TestFollowing = Following.TestCase


def test_other_samples_are_refused():
    sampler = followed((10, 5))
    with pytest.raises(FieldError, match="for each loader"):
        sampler.follow(np.array([0, 1]), np.array([10, 6]))


def test_a_ring_needs_no_more_memory_over_time():
    sampler = PrioritizedSampler()
    for step in range(300):
        sampler.follow(np.arange(step, step + 100), np.full(100, 10))
    assert sampler._tree.capacity <= 4096
    assert len(sampler) == 1000
