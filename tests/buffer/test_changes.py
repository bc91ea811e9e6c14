"""ReplayBuffer, changing what is stored: update, add_field, delete, clear, and changes that failed."""

import os
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from buffer_helpers import FIELDS, add, contents, filled, ids, leftovers, make_plain
from format_helpers import change_metadata, read_metadata
from internals import layout

from gym_replay import EpisodeStateError, Field, FieldError, ReplayBuffer, StorageError, check_buffer


def test_update_of_one_episode(tmp_path):
    with filled(tmp_path) as buffer:
        buffer.update(1, action=[7, 8, 9], seed=70)
        buffer.update(-1, state=[[5, 5, 5], [6, 6, 6]])
        assert contents(buffer, "action") == [[0, 1], [7, 8, 9], [20]]
        assert [int(episode.meta["seed"]) for episode in buffer] == [0, 70, 2]
        assert [episode.meta["score"].tolist() for episode in buffer] == [[0, 0], [1, 0], [2, 0]]
        assert buffer.episode(2)["state"].tolist() == [[5, 5, 5], [6, 6, 6]]
        buffer.update(2, state=[[9, 9, 9]])  # T rows leave the last observation as it is
        assert buffer.episode(2)["state"].tolist() == [[9, 9, 9], [6, 6, 6]]
    assert check_buffer(tmp_path, progress=False).ok


@pytest.mark.parametrize(
    "episodes", [None, slice(None), [0, 1, 2], np.arange(3), [True] * 3, np.array([-3, -2, -1], np.int8)], ids=repr
)
def test_update_of_all_episodes(tmp_path, episodes):
    with filled(tmp_path) as buffer:
        buffer.update(episodes, action=[[5, 6], [7, 8, 9], [4]], reward=torch.ones(3, 4), seed=[9, 8, 7])
        assert contents(buffer, "action") == [[5, 6], [7, 8, 9], [4]]
        assert contents(buffer, "reward") == [[1, 1], [1, 1, 1], [1]]
        assert [int(episode.meta["seed"]) for episode in buffer] == [9, 8, 7]
        assert ids(buffer) == [0, 1, 2]


def test_update_in_another_order(tmp_path):
    with filled(tmp_path) as buffer:
        buffer.update([2, 0], action=[[4], [5, 6]], seed=[9, 8])
        assert contents(buffer, "action") == [[5, 6], [10, 11, 12], [4]]
        assert [int(episode.meta["seed"]) for episode in buffer] == [8, 1, 9]


BAD_UPDATES = {
    "nothing": (None, {}, FieldError),
    "unknown": (0, {"x": [1]}, FieldError),
    "shape": (0, {"state": [[1, 2], [3, 4]]}, FieldError),
    "dtype": (0, {"action": [0.5, 1.5]}, FieldError),
    "too short": (0, {"action": [1]}, FieldError),
    "too long list": ([0, 1], {"action": [[1, 2, 3], [1, 2, 3, 4]]}, FieldError),
    "one episode too few": (None, {"action": [[1, 2], [1, 2, 3]]}, FieldError),
    "meta": ([0, 1], {"seed": [1]}, FieldError),
    "meta dtype": ([0], {"seed": [1.5]}, FieldError),
    "second is bad": ([0], {"action": [[1, 2]], "seed": [1.5]}, FieldError),
    "index": (3, {"action": [1]}, IndexError),
    "indices": ([0, -4], {"seed": [1, 2]}, IndexError),
    "twice": ([0, 0], {"seed": [1, 2]}, FieldError),
    "twice by sign": ([0, -3], {"seed": [1, 2]}, FieldError),
    "mask": ([True, False], {"seed": [1]}, FieldError),
    "float": (1.0, {"seed": 1}, FieldError),
    "two axes": ([[0, 1]], {"seed": [1, 2]}, FieldError),
}


@pytest.mark.parametrize(("episodes", "arrays", "error"), BAD_UPDATES.values(), ids=BAD_UPDATES)
def test_a_wrong_update_changes_nothing(tmp_path, episodes, arrays, error):
    with filled(tmp_path) as buffer:
        before = [[array.tolist() for _, array in episode.items()] for episode in buffer]
        with pytest.raises(error):
            buffer.update(episodes, **arrays)
        assert [[array.tolist() for _, array in episode.items()] for episode in buffer] == before
        assert [int(episode.meta["seed"]) for episode in buffer] == [0, 1, 2]
        assert leftovers(tmp_path) == []
        buffer.update(0, seed=5)
        assert buffer.episode(0).meta["seed"] == 5


def test_a_field_whose_name_is_an_argument_can_be_updated(tmp_path):
    fields = dict.fromkeys(("name", "self", "fields", "values"), "int")
    with ReplayBuffer(tmp_path, fields=fields, meta_fields={"batch_size": "int", "meta": "int"}) as buffer:
        with buffer.one_episode(batch_size=1, meta=2):
            buffer.store(**dict.fromkeys(fields, 3))
        buffer.store_episode(**{name: [4] for name in fields}, batch_size=5, meta=6)
        assert [[array.tolist() for _, array in episode.items()] for episode in buffer] == [[[3]] * 4, [[4]] * 4]
        buffer.update(0, **{name: [5] for name in fields})
        assert buffer.episode(0)["self"].tolist() == [5]


def test_add_field(tmp_path):
    with filled(tmp_path) as buffer:
        buffer.add_field("label", ("int", (), 3))
        buffer.add_field("info.value", "float64", [[1, 2], [3, 4, 5], [6]])
        buffer.add_field("next", Field("float", (1,), 9, state=True), [np.full((n + 1, 1), n) for n in (2, 3, 1)])
        buffer.add_field("partly", Field("float", default=9, state=True), [np.full(n, n) for n in (2, 3, 1)])
        buffer.add_field("padded", "uint8", np.arange(12).reshape(3, 4))
        assert contents(buffer, "label") == [[3, 3], [3, 3, 3], [3]]
        assert contents(buffer, "info.value") == [[1, 2], [3, 4, 5], [6]]
        assert contents(buffer, "next") == [[[2]] * 3, [[3]] * 4, [[1]] * 2]
        assert contents(buffer, "partly") == [[2, 2, 9], [3, 3, 3, 9], [1, 9]]
        assert contents(buffer, "padded") == [[0, 1], [4, 5, 6], [8]]
        assert buffer.fieldnames[-5:] == ("label", "info.value", "next", "partly", "padded")
        with buffer.one_episode():
            buffer.store(label=8)
            buffer.store()
        assert buffer.episode(-1)["label"].tolist() == [8, 3]
    assert (tmp_path / "steps/info/value.npy").exists()
    assert check_buffer(tmp_path, progress=False).ok


BAD_FIELDS = {
    "exists": ("action", "int", None),
    "meta exists": ("seed", "int", None),
    "case": ("Action", "int", None),
    "name": ("a/b", "int", None),
    "no name": ("", "int", None),
    "dtype": ("z", "text", None),
    "default": ("z", ("int", (), 0.5), None),
    "too few": ("z", "int", [[1, 2], [1, 2, 3]]),
    "lengths": ("z", "int", [[1, 2], [1, 2], [1]]),
    "values": ("z", "int", [[0.5, 2], [1, 2, 3], [1]]),
    "shape": ("z", ("int", 2), [[1, 2], [1, 2, 3], [1]]),
}


@pytest.mark.parametrize(("name", "info", "values"), BAD_FIELDS.values(), ids=BAD_FIELDS)
def test_a_wrong_field_is_not_added(tmp_path, name, info, values):
    with filled(tmp_path) as buffer:
        with pytest.raises(FieldError):
            buffer.add_field(name, info, values)
        assert buffer.fieldnames == tuple(FIELDS)
        assert leftovers(tmp_path) == []
        buffer.add_field("z", "int")
        assert contents(buffer, "z") == [[0, 0], [0, 0, 0], [0]]


def test_a_state_field_needs_the_rows_that_only_state_fields_bring(tmp_path):
    with make_plain(tmp_path) as buffer:
        add(buffer, 2)
        with pytest.raises(FieldError, match="state=False"):
            buffer.add_field("s", Field("float", state=True))
        assert buffer.fieldnames == ("x",)


def test_delete(tmp_path):
    with make_plain(tmp_path) as buffer, ReplayBuffer.from_folder(tmp_path, read_only=True) as reader:
        add(buffer, 1, 2, 3, 4, 5, 6)
        buffer.delete(1)
        assert ids(buffer) == [0, 2, 3, 4, 5]
        buffer.delete([-1, 0])
        assert ids(buffer) == [2, 3, 4]
        buffer.delete([])
        buffer.delete(np.zeros(3, bool))
        buffer.delete(slice(0, 0))
        assert buffer.num_steps == 12
        buffer.delete([True, False, False])
        assert contents(buffer) == [[300, 301, 302, 303], [400, 401, 402, 403, 404]]
        assert buffer.episode_lens.tolist() == [4, 5]
        reader.refresh()
        assert ids(reader) == [3, 4]
        buffer.delete(slice(None))
        assert (len(buffer), buffer.num_steps) == (0, 0)
        add(buffer, 1)
        assert ids(buffer) == [6]
    assert check_buffer(tmp_path, progress=False).ok


@pytest.mark.parametrize(
    ("episodes", "error"),
    [
        (3, IndexError),
        (-4, IndexError),
        ([0, 3], IndexError),
        ([0, 0], FieldError),
        ([0, -3], FieldError),
        (1.0, FieldError),
        ("0", FieldError),
        ([[0]], FieldError),
        ([True, False], FieldError),
        pytest.param(None, (FieldError, TypeError), id="None"),
    ],
    ids=repr,
)
def test_a_wrong_delete_hides_nothing(tmp_path, episodes, error):
    with make_plain(tmp_path) as buffer:
        add(buffer, 1, 2, 3)
        with pytest.raises(error):
            buffer.delete(episodes)
        assert ids(buffer) == [0, 1, 2]


def test_indices_of_a_small_dtype_reach_all_episodes(tmp_path):
    with make_plain(tmp_path) as buffer:
        with buffer.batched_episode(300):
            buffer.store_batch(x=np.arange(300))
        buffer.delete(np.array([0, 255], np.uint8))
        assert [episode.id for episode in buffer] == [k for k in range(300) if k not in (0, 255)]
        buffer.delete(np.array([-1, 127, -128], np.int8))
        assert len(buffer) == 295
        assert {299, 128, 171}.isdisjoint(ids(buffer))
        buffer.update(np.uint8(200), x=[-5])
        assert buffer.episode(200)["x"].tolist() == [-5]


@pytest.mark.parametrize("circular", [False, True])
def test_an_id_is_never_used_again(tmp_path, circular):
    options = {"max_episodes": 3, "circular": circular}
    used = set()
    buffer = make_plain(tmp_path, **options)
    for act in (
        "nothing",
        "delete",
        "nothing",
        "clear",
        "nothing",
        "delete all",
        "reopen",
        "clear",
        "reopen",
        "overfill",
    ):
        if act == "delete":
            buffer.delete([-1])
        elif act == "delete all":
            buffer.delete(slice(None))
        elif act == "clear":
            buffer.clear()
        elif act == "reopen":
            buffer.close()
            buffer = ReplayBuffer(tmp_path)
        elif act == "overfill" and circular:
            buffer.store_episode(x=np.arange(2))
            used.add(buffer.episode(-1).id)
        if len(buffer) == 3 and not circular:
            buffer.clear()
        buffer.store_episode(x=np.arange(3))
        newest = buffer.episode(-1).id
        assert newest not in used
        assert not used or newest > max(used)
        used.add(newest)
    buffer.close()
    assert check_buffer(tmp_path, progress=False).ok


def _fail_at(monkeypatch, calls):
    """Let the metadata be refused at these calls, counted from 1."""
    real, count = layout.write_metadata, 0

    def write(folder, metadata):
        nonlocal count
        count += 1
        if count in calls:
            raise StorageError(28, "No space left on device", str(folder))
        real(folder, metadata)

    monkeypatch.setattr(layout, "write_metadata", write)


CHANGES = {
    "clear": lambda buffer: buffer.clear(),
    "update": lambda buffer: buffer.update(0, x=[-1, -1]),
    "add_field": lambda buffer: buffer.add_field("y", "int"),
}

NEXT = {
    "store_episode": lambda buffer: buffer.store_episode(x=[7, 8]),
    "one_episode": lambda buffer: _plain_episode(buffer),
    "batched_episode": lambda buffer: _plain_block(buffer),
    "update": lambda buffer: (buffer.store_episode(x=[1, 2]), buffer.update(-1, x=[7, 8])),
    "reopen": lambda buffer: None,
}


def _plain_episode(buffer):
    with buffer.one_episode():
        buffer.store(x=7)
        buffer.store(x=8)


def _plain_block(buffer):
    with buffer.batched_episode(1):
        buffer.store_batch(x=[7])
        buffer.store_batch(x=[8])


@pytest.mark.parametrize("calls", [(1,), (2,), (2, 3), (1, 2)], ids=repr)
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("then", NEXT)
def test_a_change_that_failed_leaves_a_buffer_that_goes_on(tmp_path, monkeypatch, change, calls, then):
    with make_plain(tmp_path) as buffer:
        add(buffer, 2, 3)
        _fail_at(monkeypatch, calls)
        with pytest.raises(StorageError):
            CHANGES[change](buffer)
        monkeypatch.undo()
        # All or nothing: before the first metadata is in place nothing has changed, after it everything has.
        happened = calls[0] > 1
        kept = {"clear": [], "update": [[-1, -1], [100, 101, 102]]}.get(change) if happened else None
        kept = [[0, 1], [100, 101, 102]] if kept is None else kept
        if then == "reopen":
            buffer.close()
            buffer = ReplayBuffer.from_folder(tmp_path)
            buffer.store_episode(x=[7, 8])
        else:
            NEXT[then](buffer)
        assert contents(buffer) == [*kept, [7, 8]]
        assert len(buffer) == len(kept) + 1
        assert ids(buffer)[-1] >= 2
        assert buffer.fieldnames == (("x", "y") if change == "add_field" and happened else ("x",))
        if change == "add_field" and happened:
            assert all(set(episode["y"].tolist()) == {0} for episode in buffer)
        buffer.add_field("z", "int")
        assert leftovers(tmp_path) == []
        buffer.close()
    report = check_buffer(tmp_path, progress=False)
    assert report.ok, str(report)


WIDER = {
    "ints": ("int32", [1, -2, 1 << 30], "float64"),
    "bools": ("bool", [True, False, True], "uint8"),
    "arrays": (("uint8", (2,)), [[1, 2], [255, 0], [3, 4]], "int16"),
    "negative zeros": ("float32", [-0.0, -0.0, -0.0], "float64"),
}


@pytest.mark.parametrize("kind", WIDER)
@pytest.mark.parametrize("limits", [{}, {"circular": True, "max_episodes": 2}])
def test_a_wider_dtype(tmp_path, kind, limits):
    info, values, dtype = WIDER[kind]
    with ReplayBuffer(tmp_path, fields={"x": info, "o": Field("float", state=True)}, **limits) as buffer:
        for count in (1, 2, 3):
            buffer.store_episode(x=values[:count], o=np.arange(count + 1.0))
        other = ReplayBuffer.from_folder(tmp_path, read_only=True)
        before = [episode["x"] for episode in other]
        wider = replace(buffer.metadata.fields["x"], dtype=dtype)
        with buffer.one_episode(), pytest.raises(EpisodeStateError, match="widen_schema"):
            buffer.widen_schema({"x": wider})
        buffer.widen_schema({"x": wider, "y": Field("int", default=7)})
        assert next(iter(other))["x"].dtype == before[0].dtype
        other.refresh()
        for old, new in zip(before, other, strict=True):
            np.testing.assert_array_equal(old, new["x"])
            assert np.signbit(new["x"].astype(float)).tolist() == np.signbit(old.astype(float)).tolist()
            assert new["x"].dtype == dtype
            assert new["y"].tolist() == [7] * len(new)
        buffer.store_episode(x=values, o=np.arange(4.0))
        assert buffer.episode(-1)["x"].tolist() == np.asarray(values, dtype).tolist()
        other.close()
    assert check_buffer(tmp_path, progress=False).ok


@pytest.mark.parametrize(
    ("info", "value", "wider", "match"),
    [
        ("int64", (1 << 53) + 1, ("float64",), "recorded value is never changed"),
        ("int64", -1, ("uint64",), "-1 does not fit uint64"),
        ("float64", 0.1, ("float32",), "0.1 does not fit float32"),
        ("int64", 1, ("float64", 2), "only another dtype"),
        (Field("int", ragged=True), [1], Field("float64", ragged=True), "only another dtype"),
    ],
)
def test_a_dtype_that_is_not_wider(tmp_path, info, value, wider, match):
    with ReplayBuffer(tmp_path, fields={"x": info}) as buffer:
        buffer.store_episode(x=[value])
        with pytest.raises(FieldError, match=match):
            buffer.widen_schema({"y": Field("int"), "x": wider if isinstance(wider, Field) else Field(*wider)})
        assert list(buffer.fieldnames) == ["x"]
        assert np.asarray(buffer.episode(0)["x"][0]).tolist() == value
    assert check_buffer(tmp_path, progress=False).ok


@pytest.mark.parametrize("name", ["steps/label.npy", "episodes.npy"])
def test_files_of_a_change_that_is_being_prepared_are_not_read(tmp_path: Path, name: str) -> None:
    """A reader that came during one change does not take the files of the next one, which do not count yet."""
    folder = tmp_path / "buffer"
    with ReplayBuffer(folder, fields={"label": "int64"}) as buffer:
        buffer.store_episode(label=np.arange(3))
    settled = (folder / "metadata.json").read_bytes()
    change_metadata(folder, revision=read_metadata(folder)["revision"] - 1, pending=[name])
    reader = ReplayBuffer.from_folder(folder, read_only=True)
    (folder / "metadata.json").write_bytes(settled)
    with ReplayBuffer.from_folder(folder) as writer:
        writer.store_episode(label=np.arange(4))
        prepared = np.load(folder / name)
        np.save(folder / "prepared.npy", np.full_like(prepared, 9))
        os.replace(folder / "prepared.npy", folder / f"{name}.new")
        reader.refresh()
        assert [episode["label"].tolist() for episode in reader] == [[0, 1, 2], [0, 1, 2, 3]]
        again = pickle.loads(pickle.dumps(reader))
        assert [episode["label"].tolist() for episode in again] == [[0, 1, 2], [0, 1, 2, 3]]
