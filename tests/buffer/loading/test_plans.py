"""Rows and what is left of an episode, next to one sample after another."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gym_replay.buffer.loading.plans import Anchors, n_step_lengths


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
