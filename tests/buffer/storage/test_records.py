"""Records: many written together, with values that they have in common, and many read together."""

import contextlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gym_replay import Field, ReplayBuffer, check_buffer
from gym_replay.buffer.storage.block import Block
from gym_replay.buffer.storage.records import COMPLETE, HAS_FINAL, record_runs, slots_of

META = {"number": "int", "text": "str", "pair": ("float", (2,)), "empty": ("float", (0,)), "is_on": "bool"}
DTYPES = {"number": np.int64, "pair": np.float32, "empty": np.float32, "is_on": np.bool_}
VALUES = {
    "number": st.integers(-1, 2),
    "text": st.sampled_from([b"", b"one", b"two"]),
    "pair": st.sampled_from([(0.0, 0.0), (1.0, 2.0)]),
    "empty": st.just(()),
    "is_on": st.booleans(),
}


@st.composite
def writes(draw):
    """How many episodes, whether they are committed one by one, and by meta field one value for all or one for each."""
    count = draw(st.integers(1, 5))
    meta = {
        name: draw(values) if draw(st.booleans()) else [draw(values) for _ in range(count)]
        for name, values in VALUES.items()
    }
    return count, draw(st.booleans()), meta


def _bytes(name, value):
    return value if name == "text" else np.array(value, DTYPES[name]).tobytes()


FIELDS = {"x": Field("int", state=True)}


def _is_for_all(name, value):
    return not isinstance(value, list)


def _block(lengths, flags, meta):
    rows = np.concatenate([np.arange(length + 1) for length in lengths])
    columns = {
        name: _bytes(name, value)
        if _is_for_all(name, value)
        else value
        if name == "text"
        else np.array(value, DTYPES[name])
        for name, value in meta.items()
    }
    given_flags = flags[0] if len(set(flags)) == 1 else np.array(flags, np.uint8)
    return Block({"x": rows}, lengths, given_flags, columns)


def _write(writer, count, one_by_one, meta, lengths, flags):
    if not one_by_one:
        writer.commit(_block(lengths, flags, meta))
        return
    for at in range(count):
        own = {name: value if _is_for_all(name, value) else value[at : at + 1] for name, value in meta.items()}
        writer.commit(_block(lengths[at : at + 1], flags[at : at + 1], own))


@pytest.mark.parametrize("limits", [{}, {"max_episodes": 7, "circular": True}])
@given(steps=st.lists(writes(), min_size=1, max_size=12), repeats=st.integers(1, 3), data=st.data())
@settings(max_examples=25)
def test_each_record_has_its_values(tmp_path_factory, limits, steps, repeats, data):
    folder = tmp_path_factory.mktemp("records") / "buffer"
    buffer = ReplayBuffer(folder, fields=FIELDS, meta_fields=META, **limits)
    writer = buffer.writing()
    expected = []
    for count, one_by_one, meta in steps * repeats:
        lengths = data.draw(st.lists(st.integers(1, 3), min_size=count, max_size=count))
        flags = [HAS_FINAL | COMPLETE] * count
        if data.draw(st.booleans()):
            flags[-1] = HAS_FINAL
        _write(writer, count, one_by_one, meta, lengths, flags)
        for at in range(count):
            values = {name: value if _is_for_all(name, value) else value[at] for name, value in meta.items()}
            expected.append((lengths[at], bool(flags[at] & COMPLETE), values))
    buffer.refresh()
    held = list(buffer)
    assert len(held) == min(len(expected), limits.get("max_episodes", len(expected)))
    for episode, (length, complete, values) in zip(held, expected[len(expected) - len(held) :], strict=True):
        assert (len(episode), episode.complete) == (length, complete)
        assert episode["x"].tolist() == list(range(length + 1))
        assert episode.meta["text"].encode() == values["text"]
        for name, dtype in DTYPES.items():
            assert np.asarray(episode.meta[name]).tobytes() == np.array(values[name], dtype).tobytes(), name
    buffer.close()
    assert check_buffer(folder).ok


@pytest.fixture(scope="module")
def ten_episodes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ten") / "buffer"
    with ReplayBuffer(folder, fields=FIELDS, meta_fields=META) as buffer:
        for number in range(10):
            buffer.store_episode(x=range(number + 2), number=number, text="one", pair=(1, 2), empty=(), is_on=True)
    return folder


@given(
    slots=st.sets(st.integers(0, 9), min_size=1, max_size=10),
    changes=st.dictionaries(st.integers(0, 62), st.integers(1, 255), min_size=1, max_size=4),
)
@settings(max_examples=25)
def test_the_first_damaged_record_is_found_also_where_several_have_the_same_damage(ten_episodes, slots, changes):
    path = ten_episodes / "episodes.npy"
    sound = path.read_bytes()
    try:
        table = np.load(path, mmap_mode="r+")
        nbytes = table.dtype.itemsize
        flat = table.view(np.uint8).reshape(-1, nbytes)
        for at, change in changes.items():
            flat[sorted(slots), at % nbytes] ^= change
        before = np.frombuffer(sound, np.uint8)[table.offset :].reshape(flat.shape)
        damaged = np.flatnonzero((before != flat).any(1)).tolist()
        table.flush()
        with contextlib.ExitStack() as stack:
            if damaged:
                stack.enter_context(pytest.warns(UserWarning, match=f"record of episode {damaged[0]} does not match"))
            with ReplayBuffer.from_folder(ten_episodes, read_only=True) as buffer:
                assert [len(episode) for episode in buffer] == [*range(1, 11)][: min(damaged, default=10)]
    finally:
        path.write_bytes(sound)


@pytest.mark.parametrize(
    ("first", "end", "base", "capacity"),
    [(0, 0, 0, None), (0, 10, 0, None), (5, 12, 3, None), (0, 4, 0, 4), (6, 10, 0, 4), (9, 12, 3, 5), (4, 8, 4, 7)],
)
@pytest.mark.parametrize("record_nbytes", [21, 1 << 22, 1 << 25])
def test_runs_are_every_id_once_side_by_side(first, end, base, capacity, record_nbytes):
    runs = list(record_runs(first, end, base, capacity, record_nbytes))
    ids = np.concatenate([np.empty(0, np.int64), *(ids for ids, _ in runs)])
    assert ids.tolist() == list(range(first, end))
    for ids, slot in runs:
        slots = slots_of(ids, base, capacity)
        assert slots.tolist() == list(range(slot, slot + len(ids)))
        assert len(ids) * record_nbytes <= 1 << 24 or len(ids) == 1
