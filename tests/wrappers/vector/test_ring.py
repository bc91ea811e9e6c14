"""A ring over time beside a list of all rows: it grows, moves and goes to a file, and loses none that are needed."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gym_replay import Field
from gym_replay.wrappers.vector import ring
from gym_replay.wrappers.vector.ring import Ring

FIELDS = {
    "observation": Field("float32", (3,), state=True),
    "action": Field("int64", default=7),
    "flag": Field("bool"),
}


def row_of(time, num_envs):
    numbers = np.arange(num_envs) + 100 * time
    return {
        "observation": np.stack([numbers, -numbers, numbers / 2], axis=1).astype(np.float32),
        "action": numbers,
        "flag": numbers % 3 == 0,
    }


@settings(max_examples=60)
@given(
    num_envs=st.integers(1, 4),
    lags=st.lists(st.integers(0, 60), min_size=1, max_size=120),
    addresses=st.sampled_from([0, 1 << 10, 1 << 26]),
    budget=st.sampled_from([1, 1 << 11, 1 << 30]),
)
def test_rows_that_are_needed_are_there(tmp_path_factory, num_envs, lags, addresses, budget):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ring, "_ARENA_BYTES", addresses)
        held = Ring(FIELDS, num_envs, 8, tmp_path_factory.mktemp("ring"))
        low = 0
        for now, lag in enumerate(lags):
            low = max(low, now - lag)  # what was let go of never comes back
            if now >= held.full_at:
                held.make_room(now, low, budget)
            for name, values in row_of(now, num_envs).items():
                held.rows[name][now & held.mask][...] = values
        check(held, num_envs, low, len(lags))
        held.release()


def check(held, num_envs, low, end):
    """The rows from ``low`` to ``end - 1`` of each sub-environment, taken out together and each by itself."""
    numbers, count = np.arange(num_envs), end - low
    edges = np.arange(num_envs + 1) * count
    places = np.concatenate([(np.arange(low, end) & held.mask) * num_envs + number for number in numbers])
    found = {}
    held.add_columns(found, numbers, np.full(num_envs, low), edges, places)
    played = [row_of(time, num_envs) for time in range(low, end)]
    for number in numbers.tolist():
        for name in FIELDS:
            expected = np.stack([row[name][number] for row in played])
            np.testing.assert_array_equal(found[name][edges[number] : edges[number + 1]], expected, err_msg=name)
        if low < held.hot:
            continue
        alone = {}
        held.add_one(alone, number, low, count)
        for name, info in FIELDS.items():
            assert alone[name].dtype == info.dtype
            np.testing.assert_array_equal(alone[name], np.stack([row[name][number] for row in played]), err_msg=name)
