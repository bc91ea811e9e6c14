"""The ring of rows, against a plain set of the rows that live episodes own."""

from collections import deque

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gym_replay.buffer.storage.room import RowRing


class BruteForce:
    """Episodes as ``(start, rows)``, the oldest first, and every owned row by itself."""

    def __init__(self):
        self.episodes = deque()

    @property
    def owned(self):
        return {row for start, rows in self.episodes for row in range(start, start + rows)}

    @property
    def end(self):
        return max(self.owned, default=-1) + 1

    def place(self, rows, end=None):
        owned = self.owned
        start = 0
        while end is None or start + rows <= end:
            if owned.isdisjoint(range(start, start + rows)):
                return start
            start += 1
        return None

    def rebuilt(self):
        starts, rows = (np.array(column, np.int64) for column in zip(*self.episodes, strict=True))
        return RowRing.of_episodes(starts, rows)


def assert_same(ring, model, limit):
    rings = (
        [ring, model.rebuilt()] if model.episodes else [ring, RowRing.of_episodes(np.empty(0, int), np.empty(0, int))]
    )
    for each in rings:
        assert each.end == model.end
        for rows in range(1, 12):
            assert each.place(rows) == model.place(rows)
            for end in (0, rows, limit - 1, limit, model.end, model.end + rows):
                assert each.place(rows, end=end) == model.place(rows, end), (rows, end, model.episodes)


@settings(max_examples=120)
@given(st.integers(8, 24), st.lists(st.one_of(st.integers(1, 8), st.just(-1)), max_size=30))
@example(8, [4, 4, 4, 4, 8, 1])
@example(10, [3, 3, 3, 2, 2, 5, 1, 8])
@example(12, [5, -1, 5, 1, -1, -1, 3])
def test_the_ring_equals_a_set_of_rows(limit, steps):
    """A number is an episode of as many rows, placed below the limit as the writer does it; -1 evicts the oldest."""
    ring, model = RowRing(), BruteForce()
    for rows in steps:
        while rows > 0 and model.place(rows, limit) is None:
            assert ring.place(rows, end=limit) is None
            ring.release(model.episodes.popleft()[1])
        if rows > 0:
            start = ring.place(rows, end=limit)
            assert start == model.place(rows, limit)
            assert model.owned.isdisjoint(range(start, start + rows)), "an episode never lies on another"
            assert start + rows <= limit, "an episode never wraps"
            ring.take(start, rows)
            model.episodes.append((start, rows))
        elif model.episodes:
            ring.release(model.episodes.popleft()[1])
        assert_same(ring, model, limit)


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 3)), max_size=25))
def test_without_an_end_there_is_always_a_place(steps):
    ring, model = RowRing(), BruteForce()
    for rows, evictions in steps:
        start = ring.place(rows)
        assert start == model.place(rows)
        ring.take(start, rows)
        model.episodes.append((start, rows))
        for _ in range(min(evictions, len(model.episodes))):
            ring.release(model.episodes.popleft()[1])
        assert ring.end == model.end
    while model.episodes:
        ring.release(model.episodes.popleft()[1])
        assert ring.end == model.end
    assert ring.place(100) == 0


def test_episodes_of_one_length_go_round():
    ring = RowRing()
    starts = []
    for number in range(9):
        if number >= 3:
            ring.release(5)
        starts.append(ring.place(5, end=15))
        ring.take(starts[-1], 5)
    assert starts == [0, 5, 10] * 3


def test_the_lowest_place_is_taken_as_soon_as_it_fits():
    ring = RowRing.of_episodes(np.array([0, 4, 8]), np.array([4, 4, 4]))
    assert (ring.end, ring.place(1), ring.place(1, end=12)) == (12, 12, None)
    ring.release(4)
    assert [ring.place(rows, end=12) for rows in (1, 4, 5)] == [0, 0, None]
    ring.take(0, 2)
    assert [ring.place(rows, end=12) for rows in (2, 3)] == [2, None]
    ring.release(4)
    assert [ring.place(rows, end=12) for rows in (6, 7)] == [2, None]


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1], [1, 2, 0]])
def test_a_ring_that_has_wrapped_is_read_from_its_table(order):
    starts, rows = np.array([0, 3, 9])[order], np.array([3, 4, 2])[order]
    ring = RowRing.of_episodes(starts, rows)
    assert (ring.end, ring.place(2), ring.place(3), ring.place(3, end=11)) == (11, 7, 11, None)
    ring.release(int(rows[0]))
    assert [ring.place(count, end=11) for count in (3, 4)] == {0: [0, None], 1: [3, 3], 2: [7, 7]}[order[0]]
