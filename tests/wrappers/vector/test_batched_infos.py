"""Infos that are taken as arrays are what they are one sub-environment after another."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gym_replay.wrappers.infos import Infos, is_info
from gym_replay.wrappers.vector.batched_infos import FINAL, BatchInfos, split_infos

COUNT = 4
DTYPES = ("f8", "f4", "i8", "i4", "u1", "?")
KEYS = ("x", "y", "a.b", "é", "final_info", "_z", "z")


@st.composite
def arrays(draw):
    shape = draw(st.sampled_from([(), (), (2,)]))
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    raw = draw(st.binary(min_size=64, max_size=64))
    array = np.frombuffer(raw, np.uint8)[: COUNT * 2].reshape(COUNT, 2).astype(dtype)
    if dtype.kind == "f":
        array = np.where(array == 0, np.nan, array).astype(dtype)
    return array[:, 0] if shape == () else array


@st.composite
def masks(draw):
    return np.array(draw(st.lists(st.booleans(), min_size=COUNT, max_size=COUNT)))


ODD = st.one_of(
    st.just("text"),
    st.none(),
    st.integers(0, 9),
    st.just(np.array(["a"] * COUNT, object)),
    st.just(np.arange(COUNT + 1)),
    st.just(np.float32(1.5)),
)


@st.composite
def infos(draw, depth=2):
    found = {}
    for key in draw(st.lists(st.sampled_from(KEYS), unique=True, max_size=4)):
        if depth and draw(st.integers(0, 3)) == 0:
            found[key] = draw(infos(depth=depth - 1))
        else:
            found[key] = draw(arrays() if draw(st.integers(0, 6)) else ODD)
        if draw(st.booleans()):
            found[f"_{key}"] = draw(masks() if draw(st.integers(0, 8)) else ODD)
    return found


class Fields:
    """Grants the fields that infos ask for."""

    def __init__(self, known=()):
        self.fields = dict(known)

    def change_fields(self, fields):
        self.fields = self.fields | dict(fields)


def one_by_one(taker, given_infos, left_out):
    """The rows of each sub-environment by field, as they are taken where nothing is known of arrays."""
    rows = taker.encode(split_infos(given_infos, COUNT, range(COUNT), has_finals=bool(left_out)))
    return {name: b"".join(row[at] for row in rows) for at, name in enumerate(taker.names)}


@given(st.lists(infos(), min_size=2, max_size=4), st.booleans(), st.sampled_from([True, ["x"], ["y", "a.b", "z.x"]]))
@settings(max_examples=120)
def test_columns_are_the_rows_of_each(steps, has_finals, wanted):
    left_out = FINAL if has_finals else ()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fields = Fields()
        batch = BatchInfos(wanted, {}, fields)
        for step in [*steps, *steps]:
            before = dict(fields.fields)
            columns = batch.columns(step, COUNT, left_out)
            assert fields.fields == before
            expected = one_by_one(batch, step, left_out)
            if columns is None:
                continue
            assert fields.fields == before  # all that is taken so is known
            assert [name for name, _ in columns] == list(expected)
            for name, values in columns:
                field = fields.fields[name]
                whole = np.broadcast_to(values, (COUNT, *field.shape))
                assert whole.dtype == field.dtype
                assert whole.tobytes() == expected[name], name


def test_arrays_are_taken_as_they_are_once_they_have_fields():
    """What this is for is taken in this way, so that the test above says something."""
    step = {
        "x": np.array([1.5, np.nan, 0.0, 2.0]),
        "_x": np.array([True, True, False, True]),
        "n": {"deep": np.arange(8).reshape(4, 2), "_deep": np.array([False, True, True, True])},
        "_n": np.array([True, False, True, True]),
        "all": np.array([True, False, True, False]),
    }
    fields = Fields()
    batch = BatchInfos(True, {}, fields)
    assert batch.columns(step, COUNT, ()) is None
    expected = one_by_one(batch, step, ())
    columns = dict(batch.columns(step, COUNT, ()))
    np.testing.assert_array_equal(columns["info_present.n.deep"], [False, False, True, True])
    np.testing.assert_array_equal(columns["info.n.deep"], [[0, 0], [0, 0], [4, 5], [6, 7]])
    assert columns["info_present.all"].tolist() is True
    whole = {name: np.broadcast_to(v, (4, *fields.fields[name].shape)).tobytes() for name, v in columns.items()}
    assert whole == expected
    assert all(is_info(name) for name in columns)
    assert dict(batch.columns({}, COUNT, ())).keys() == columns.keys()  # rows without infos are written too


@pytest.mark.parametrize(
    "step",
    [
        {"x": np.zeros(4, np.float32)},
        {"x": np.zeros((4, 1))},
        {"x": np.zeros(3)},
        {"x": 1.0},
        {"x": [0.0] * 4},
        {"x": np.zeros(4), "_x": [True] * 4},
        {"x": np.zeros(4), "_x": np.ones(3, bool)},
        {"x": np.zeros(4), "new": np.zeros(4)},
        {"x": np.zeros(4), 1: np.zeros(4)},
        [{"x": 0.0}] * 4,
        None,
    ],
)
def test_all_else_is_taken_one_by_one(step):
    fields = Fields()
    batch = BatchInfos(True, {}, fields)
    one_by_one(batch, {"x": np.zeros(4)}, ())
    assert batch.columns({"x": np.ones(4)}, COUNT, ()) is not None
    assert batch.columns(step, COUNT, ()) is None


def test_what_is_not_wanted_is_not_looked_at():
    fields = Fields()
    batch = BatchInfos(["x"], {}, fields)
    one_by_one(batch, {"x": np.zeros(4)}, ())
    columns = dict(batch.columns({"x": np.ones(4), "y": ["any"], "final_info": None}, COUNT, FINAL))
    assert columns["info.x"].tolist() == [1, 1, 1, 1]


def test_fields_of_a_buffer_are_known():
    fields = Fields()
    one_by_one(Infos(True, {}, fields), {"x": np.zeros(4)}, ())
    assert BatchInfos(True, {}, fields).columns({"x": np.ones(4)}, COUNT, ()) is not None


@pytest.mark.parametrize("mask", [None, [True, True, False, True]])
def test_entries_are_removed_where_they_are_of_what_has_ended(mask):
    fields = Fields()
    batch = BatchInfos(True, {}, fields)
    episode = {"r": np.arange(4.0), "_r": np.ones(4, bool)}
    step = {"episode": episode, "x": np.ones(4)} | ({} if mask is None else {"_episode": np.array(mask)})
    given_keys = list(step)
    one_by_one(batch, step, ())
    ended = np.array([False, True, True, False])
    columns = dict(batch.columns(step, COUNT, (), {"episode": ended, "absent": ended}))
    np.testing.assert_array_equal(columns["info_present.episode.r"], [True, False, False, True])
    np.testing.assert_array_equal(columns["info.episode.r"], [0, 0, 0, 3])
    assert list(step) == given_keys
    assert columns["info_present.x"].tolist() is True
