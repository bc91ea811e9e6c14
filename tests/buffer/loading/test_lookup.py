"""Which range a number is in, against a search through all of them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gym_replay.buffer.loading.lookup import Lookup


@settings(max_examples=150, deadline=None)
@given(st.lists(st.one_of(st.just(0), st.integers(0, 5), st.integers(0, 3000)), min_size=1, max_size=60))
def test_every_number_is_found(counts):
    if not sum(counts):
        counts = [*counts, 1]
    offsets = np.concatenate(([0], np.cumsum(counts)))
    numbers = np.arange(offsets[-1])
    expected = np.repeat(np.arange(len(counts)), counts)
    np.testing.assert_array_equal(Lookup(offsets).find(numbers), expected)
    np.testing.assert_array_equal(Lookup(offsets).find(numbers[::-1]), expected[::-1])


def test_many_short_ranges_behind_a_long_one():
    counts = [10**9, *[1] * 10_000, 10**9, *[0, 1] * 50]
    offsets = np.concatenate(([0], np.cumsum(counts)))
    numbers = np.random.default_rng(0).integers(0, offsets[-1], 2000)
    numbers = np.concatenate((numbers, 10**9 + np.arange(10_000), offsets[-1] - 1 - np.arange(50)))
    np.testing.assert_array_equal(Lookup(offsets).find(numbers), np.searchsorted(offsets, numbers, side="right") - 1)


def test_numbers_far_outside_are_refused():
    with pytest.raises(IndexError):
        Lookup(np.array([0, 3, 5])).find(np.array([10**6]))


def test_shapes_stay():
    found = Lookup(np.array([0, 3, 5])).find(np.array([[0, 3], [4, 2]]))
    assert found.tolist() == [[0, 1], [1, 0]]
    assert Lookup(np.array([0, 3])).find(np.empty((0, 2), np.int64)).shape == (0, 2)
