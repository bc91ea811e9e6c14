"""Plans as index arithmetic: which range a number is in, the rows of samples, and draws that belong to one."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gym_replay.buffer.loading.plans import Anchors, Lookup, draw, n_step_lengths


@st.composite
def laid_out(draw):
    """Lengths of episodes, whether each has its last observation, and where each begins: back to back, or anywhere."""
    lengths = np.array(draw(st.lists(st.integers(1, 6), min_size=1, max_size=12)))
    has_final = np.array(draw(st.lists(st.booleans(), min_size=len(lengths), max_size=len(lengths))))
    if draw(st.booleans()):
        has_final[:] = draw(st.booleans())
    between = draw(st.integers(0, 3))
    starts = np.cumsum([0, *(lengths + between)])[:-1] + draw(st.integers(0, 50))
    if draw(st.booleans()):
        starts = starts[draw(st.permutations(range(len(starts))))]
    return lengths, has_final, starts


def one_by_one(anchors, counts):
    """Episode and step of each sample of stride 1."""
    every = [(episode, step) for episode, count in enumerate(counts) for step in range(count)]
    return every if anchors.kept is None else [every[number] for number in anchors.kept]


@given(given=laid_out(), n_steps=st.integers(1, 4), some=st.booleans(), seed=st.integers(0, 9))
def test_rows_and_lengths(given, n_steps, some, seed):
    lengths, has_final, starts = given
    for counts in (lengths, lengths - 1 + has_final):
        anchors = Anchors.of(starts, counts)
        kept = anchors.keep(np.random.default_rng(seed).random(len(anchors)) < 0.5) if some else anchors
        expected = one_by_one(kept, counts.tolist())
        assert len(kept) == len(expected)
        samples = kept.find(np.arange(len(kept)))
        assert list(zip(samples.episodes.tolist(), samples.steps.tolist(), strict=True)) == expected
        assert samples.rows.tolist() == [starts[episode] + step for episode, step in expected]
        assert samples.left.tolist() == [counts[episode] - step for episode, step in expected]
        ahead = n_step_lengths(samples, n_steps).tolist()
        assert ahead == [min(n_steps, counts[episode] - step) for episode, step in expected]


def test_rows_of_samples_that_are_apart():
    anchors = Anchors.of(np.array([0, 10]), np.array([2, 1]), first=np.array([1, 0]), stride=3)
    assert anchors.find(np.arange(3)).rows.tolist() == [1, 4, 10]


# --- ranges ---


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


@settings(max_examples=120)
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


@settings(max_examples=100)
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


# --- draws ---


def test_draws_do_not_hang_together():
    """Numbers of one sample, of neighbouring samples, seeds and epochs are uniform and uncorrelated."""
    episodes, steps = np.divmod(np.arange(40_000), 200)
    base, *others = draw(5, 7, 6, episodes, steps)
    np.testing.assert_array_equal(draw(5, 7, 1, episodes, steps), base[None])
    assert ((base >= 0) & (base < 1)).all()
    others += [np.roll(base, 1), np.roll(base, 200), *draw(5, 7, 1, steps, episodes)]
    for seed, epoch in ((5, 8), (6, 7), (7, 5), (5 + 2**40, 7)):
        others += [*draw(seed, epoch, 1, episodes, steps)]
    counts = np.histogram(base, 100, (0, 1))[0]
    assert ((counts - 400) ** 2 / 400).sum() < 160
    for other in others:
        assert abs(np.corrcoef(base, other)[0, 1]) < 5 / 200
        counts = np.histogram2d(base, other, 10, ((0, 1), (0, 1)))[0]
        assert ((counts - 400) ** 2 / 400).sum() < 165
