"""Orders within groups, and how buffers are cut into groups."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gym_replay.buffer.loading.groups import GroupOrder, group_edges
from gym_replay.buffer.storage.joined import maps_needed


@settings(deadline=None)
@given(
    sizes=st.lists(st.integers(0, 30), min_size=1, max_size=8).filter(sum),
    batch_size=st.integers(1, 40),
    world_size=st.integers(1, 4),
    drop_last=st.booleans(),
    seed=st.integers(0, 3),
    epoch=st.integers(0, 2),
)
def test_each_sample_once_group_after_group(sizes, batch_size, world_size, drop_last, seed, epoch):
    bounds = np.cumsum([0, *sizes])
    ranks = [
        GroupOrder(int(bounds[-1]), batch_size, True, seed, drop_last, rank, world_size, bounds=bounds)
        for rank in range(world_size)
    ]
    batches = [[*order.batches(epoch)] for order in ranks]
    # The batches of all ranks in turn are the positions of the epoch in order.
    visited = np.concatenate(
        [part[k] for k in range(max(map(len, batches))) for part in batches if k < len(part)] or [np.empty(0, int)]
    )
    if not drop_last:
        assert sorted(visited.tolist()) == list(range(int(bounds[-1])))
    groups = np.searchsorted(bounds, visited, side="right")
    assert np.count_nonzero(np.diff(groups)) == max(len(np.unique(groups)) - 1, 0)  # each group is one stretch
    for order, whole in zip(ranks, batches, strict=True):
        for start in range(len(whole)):
            assert order.batch(epoch, start).tolist() == whole[start].tolist()
        resumed = order.batches(epoch, len(whole) // 2)
        assert [batch.tolist() for batch in resumed] == [batch.tolist() for batch in whole[len(whole) // 2 :]]


def test_groups_and_samples_are_shuffled_anew_in_each_epoch():
    order = GroupOrder(600, 600, True, seed=1, bounds=np.arange(0, 601, 100))
    first, second = (order.batch(epoch, 0) for epoch in (0, 1))
    assert (first // 100)[::100].tolist() != (second // 100)[::100].tolist()
    inside = [sample[np.flatnonzero(sample // 100 == 0)] for sample in (first, second)]
    assert inside[0].tolist() != inside[1].tolist() != sorted(inside[1].tolist())
    assert order.num_groups == 6


def test_every_order_of_groups_and_samples_is_as_likely():
    firsts, samples = np.zeros(3, int), np.zeros(3, int)
    for seed in range(1500):
        batch = GroupOrder(9, 9, True, seed=seed, bounds=np.array([0, 3, 6, 9])).batch(0, 0)
        firsts[batch[0] // 3] += 1
        samples[batch[batch < 3][0]] += 1
    assert (np.abs(firsts - 500) < 90).all()
    assert (np.abs(samples - 500) < 90).all()


def test_bounds_that_do_not_fit_are_refused():
    for bounds in ([0, 5], [1, 10], [0, 7, 5, 10], []):
        with pytest.raises(ValueError, match="bounds"):
            GroupOrder(10, 2, True, bounds=np.array(bounds, np.int64))


@given(
    used=st.sets(st.integers(0, 59), min_size=1),
    most=st.integers(1, 400),
    columns=st.integers(1, 6),
)
def test_groups_cover_all_parts_and_two_of_them_fit(used, most, columns):
    ordered = np.array(sorted(used))
    edges = group_edges(ordered, 60, most, columns)
    assert edges[0] == 0
    assert edges[-1] == 60
    assert (np.diff(edges) > 0).all()
    counts = np.diff(np.searchsorted(ordered, edges))
    assert counts.sum() == len(used)
    if len(counts) == 1:
        assert columns * maps_needed(len(used)) <= most or len(used) == 1
    else:
        assert columns * maps_needed(len(used)) > most
        assert counts.max() - counts.min() <= 1
        assert counts.max() == 1 or 2 * columns * maps_needed(counts.max()) <= most
