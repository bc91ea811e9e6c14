"""Splits by episode: disjoint, complete, of the right size, and the same when more is recorded."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gym_replay import ConcatReplayBuffer, FieldError, ReplayBuffer, split, split_into


def of(*parts):
    """As much of a buffer as a split looks at."""
    return SimpleNamespace(snapshots=lambda: [SimpleNamespace(ids=np.array(ids, np.int64)) for ids in parts])


ids = st.lists(st.integers(0, 500), unique=True, max_size=40).map(sorted)
fractions = st.lists(st.integers(0, 10), min_size=1, max_size=4).filter(any).map(lambda f: [x / sum(f) for x in f])


@settings(max_examples=50)
@given(st.lists(ids, min_size=1, max_size=4), fractions, st.integers(0, 2**70))
def test_each_episode_is_in_one_subset(parts, fractions, seed):
    subsets = split(of(*parts), fractions, seed)
    assert sorted(np.concatenate(subsets).tolist()) == list(range(sum(map(len, parts))))
    assert all(subset.dtype == np.int64 and (np.diff(subset) > 0).all() for subset in subsets)
    assert all(len(subset) == 0 for subset, fraction in zip(subsets, fractions, strict=True) if fraction == 0)
    named = split(of(*parts), {f"part {k}": fraction for k, fraction in enumerate(fractions)}, seed)
    assert [named[f"part {k}"].tolist() for k in range(len(fractions))] == [subset.tolist() for subset in subsets]


@settings(max_examples=50)
@given(st.lists(ids, min_size=1, max_size=4), fractions, st.integers(0, 100), st.data())
def test_episodes_stay_where_they_are(parts, fractions, seed, data):
    """While others are appended, evicted, deleted, or come with another buffer at the end."""

    def places(buffer):
        everything = [(p, i) for p, part in enumerate(buffer.snapshots()) for i in part.ids.tolist()]
        return {everything[k]: n for n, subset in enumerate(split(buffer, fractions, seed)) for k in subset.tolist()}

    later = [[i for i in part if data.draw(st.booleans())] + list(range(501, 505)) for part in parts]
    before, after = places(of(*parts)), places(of(*later, [0, 1, 2]))
    assert all(after[key] == subset for key, subset in before.items() if key in after)


@settings(max_examples=30)
@given(st.integers(1, 3000), st.floats(0, 1), st.integers(0, 10**9), st.integers(0, 10**6))
def test_sizes(count, fraction, seed, first):
    subsets = split(of(range(first, first + count)), (fraction, 1 - fraction), seed)
    assert abs(len(subsets[0]) - fraction * count) <= 2 + math.log2(count)


def test_sizes_are_mostly_near():
    errors = [
        len(split(of(range(count)), (0.1, 0.9), seed)[0]) - 0.1 * count
        for seed in range(20)
        for count in (10, 37, 100, 1000)
    ]
    assert np.mean(np.abs(errors)) < 1
    firsts = [len(split(of(*[[0]] * 100), (0.2, 0.8), seed)[0]) for seed in range(10)]
    assert 15 <= min(firsts) <= max(firsts) <= 25  # the first episodes of many buffers are spread as well


def test_it_is_random():
    chances = np.empty((200, 64))
    for seed, row in enumerate(chances):
        for part, found in enumerate(split(of(range(64)), (1 / 256,) * 256, seed)):
            row[found] = (part + 0.5) / 256
    assert abs(chances.mean(axis=0) - 0.5).max() < 5 * math.sqrt(1 / 12 / 200)
    assert np.unique(chances, axis=0).shape == chances.shape
    # Even and odd ids are in other halves of [0, 1), and within its half each is anywhere.
    assert ((chances[:, ::2] < 0.5) != (chances[:, 1::2] < 0.5)).all()
    within = chances * 2 % 1
    assert np.abs(np.corrcoef(within[:, 0], within[:, 1])[0, 1]) * math.sqrt(200) < 5


def test_a_split_never_changes():
    assert split(of(range(20)), (0.3, 0.7), 1)[0].tolist() == SPLIT


SPLIT = [1, 3, 5, 9, 13, 17]


def test_of_buffers(tmp_path):
    with (
        ReplayBuffer(tmp_path / "a", fields={"x": "int"}) as first,
        ReplayBuffer(tmp_path / "b", fields={"x": "int"}) as second,
    ):
        for number in range(30):
            first.store_episode(x=[number])
            second.store_episode(x=[number])
        before = split(first, {"train": 0.8, "valid": 0.2}, seed=3)
        assert 3 <= len(before["valid"]) <= 9
        first.store_episode(x=[30])
        after = split(first, {"train": 0.8, "valid": 0.2}, seed=3)
        for name, episodes in before.items():
            assert set(episodes.tolist()) <= set(after[name].tolist())
        both = split(ConcatReplayBuffer([first, second]), (0.5, 0.5))
        assert sorted(np.concatenate(both).tolist()) == list(range(61))


@pytest.mark.parametrize(
    ("fractions", "message"),
    [((0.5, 0.6), "sum of 1, got 1.1"), ((-0.5, 1.5), "from 0 on"), ((), "at least one"), (("a",), "numbers"),
     ((math.nan, 1), "finite")],
)  # fmt: skip
def test_fractions_that_cannot_be(fractions, message):
    with pytest.raises(FieldError, match=message):
        split(of([0, 1]), fractions)
    with pytest.raises(FieldError, match="seed"):
        split(of([0]), (1.0,), -1)


def test_chosen_episodes_are_divided_as_all_would_be(tmp_path):
    with ReplayBuffer(tmp_path / "all", fields={"x": "int"}, meta_fields={"skill": "int"}) as buffer:
        for number in range(30):
            buffer.store_episode(x=np.arange(3), skill=number % 3)
        whole = split(buffer, (0.5, 0.5), seed=2)
        chosen = split(buffer, (0.5, 0.5), seed=2, episodes="skill == 1")
        assert [indices.tolist() for indices in chosen] == [[n for n in part.tolist() if n % 3 == 1] for part in whole]
        with pytest.raises(FieldError, match="skil"):
            split(buffer, (0.5, 0.5), episodes="skil == 1")
        folders = {tmp_path / "train": 0.5, tmp_path / "held out": 0.5}
        for made, indices in zip(split_into(buffer, folders, seed=2, episodes="skill == 1"), chosen, strict=True):
            with made:
                assert made.meta["skill"].tolist() == [1] * len(indices)
