"""Which range a number is in, against a search through all of them."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gym_replay.buffer.loading.plans import Lookup


def searched(offsets, numbers):
    return np.searchsorted(offsets, numbers, side="right") - 1


@st.composite
def ranges(draw):
    """Lengths of ranges: of all sorts, equal ones, equal ones but for one, and few among many empty ones."""
    some = st.one_of(st.just(0), st.integers(0, 5), st.integers(0, 3000))
    counts = draw(st.lists(some, min_size=1, max_size=60))
    if draw(st.booleans()):
        counts = [draw(st.sampled_from([1, 2, 3, 7, 64, 1000]))] * len(counts)
        counts[draw(st.sampled_from([0, len(counts) // 2, -1]))] = draw(st.integers(0, 1100))
    if draw(st.booleans()):
        counts = [0] * draw(st.integers(0, 40)) + counts + [0] * draw(st.integers(0, 40))
    return np.array(counts)


@settings(max_examples=300, deadline=None)
@given(ranges())
def test_every_number_is_found(counts):
    offsets = np.concatenate(([0], np.cumsum(counts)))
    numbers = np.arange(offsets[-1])
    expected = np.repeat(np.arange(len(counts)), counts)
    found = Lookup(offsets).find(numbers)
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(Lookup(offsets).find(numbers[::-1]), expected[::-1])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(Lookup(offsets))).find(numbers), expected)
    np.testing.assert_array_equal(numbers, np.arange(offsets[-1]))  # what was asked with is left as it is


@settings(max_examples=100, deadline=None)
@given(
    counts=st.lists(st.one_of(st.integers(0, 3), st.integers(1 << 20, 1 << 45)), min_size=1, max_size=200),
    seed=st.integers(0, 99),
)
def test_numbers_beyond_32_bits_are_found(counts, seed):
    offsets = np.concatenate(([0], np.cumsum(counts)))
    if offsets[-1] == 0:
        return
    near = (offsets[:, None] + np.arange(-2, 3)).ravel()
    numbers = np.concatenate((near, np.random.default_rng(seed).integers(0, offsets[-1], 100)))
    numbers = numbers[(numbers >= 0) & (numbers < offsets[-1])]
    np.testing.assert_array_equal(Lookup(offsets).find(numbers), searched(offsets, numbers))


@pytest.mark.parametrize("kind", ["equal", "last is shorter", "last is longer", "50 to 150", "any", "with empty ones"])
def test_a_million_ranges(kind):
    generator = np.random.default_rng(0)
    counts = np.full(1_000_000, 100)
    if kind.startswith("last"):
        counts[-1] = 3 if kind == "last is shorter" else 103
    elif kind == "50 to 150":
        counts = generator.integers(50, 151, len(counts))
    elif kind != "equal":
        counts = generator.geometric(0.01, len(counts)) - (kind != "any")
    offsets = np.concatenate(([0], np.cumsum(counts)))
    numbers = np.concatenate(
        (generator.integers(0, offsets[-1], 200_000), offsets[:1000], offsets[-1] - [1, 3, 4, 104])
    )
    lookup = Lookup(offsets)
    np.testing.assert_array_equal(lookup.find(numbers), searched(offsets, numbers))
    assert sum(array.nbytes for array in vars(lookup).values() if isinstance(array, np.ndarray)) <= 48 * len(offsets)


def test_many_short_ranges_behind_a_long_one():
    counts = [10**9, *[1] * 10_000, 10**9, *[0, 1] * 50]
    offsets = np.concatenate(([0], np.cumsum(counts)))
    numbers = np.random.default_rng(0).integers(0, offsets[-1], 2000)
    numbers = np.concatenate((numbers, 10**9 + np.arange(10_000), offsets[-1] - 1 - np.arange(50)))
    np.testing.assert_array_equal(Lookup(offsets).find(numbers), searched(offsets, numbers))


def test_shapes_stay():
    found = Lookup(np.array([0, 3, 5])).find(np.array([[0, 3], [4, 2]]))
    assert found.tolist() == [[0, 1], [1, 0]]
    for offsets in ([0, 3], [0, 3, 5, 5, 9], [0, 0], [0]):
        assert Lookup(np.array(offsets)).find(np.empty((0, 2), np.int64)).shape == (0, 2)


@pytest.mark.parametrize("order", ["C", "F"])
def test_numbers_in_two_axes(order):
    counts = np.random.default_rng(1).geometric(0.01, 3000)
    offsets = np.concatenate(([0], np.cumsum(counts)))
    numbers = np.asarray(np.random.default_rng(2).integers(0, offsets[-1], (50, 40)), order=order)
    np.testing.assert_array_equal(Lookup(offsets).find(numbers), searched(offsets, numbers))
