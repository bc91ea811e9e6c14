"""Infos as fields: what is recorded, as what, where, and that nothing in an info stops a run."""

import errno
import re
import warnings
from contextlib import suppress
from types import MappingProxyType

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.wrappers import RecordEpisodeStatistics
from internals import Stage, edits, small_sizes
from wrappers.scripted import Scripted, full_disk, play

from gym_replay import ConfigMismatchError, Field, FieldError, RecordToBuffer, ReplayBuffer, StorageError, check_buffer


def infos_of(buffer):
    return [name for name in buffer.fieldnames if name.startswith("info.")]


def record(folder, given, *, episodes=1, length=4, **options):
    """The closed buffer of a recorder that saw these infos."""
    env = RecordToBuffer(Scripted(length, info=given), folder, **{"record_info": True, **options})
    play(env, episodes)
    env.close()
    assert check_buffer(folder, progress=False).ok
    return ReplayBuffer.from_folder(folder, read_only=True)


def assert_info(episode, name, expected):
    """``expected`` by row, None where the entry is missing; the first one that is not tells the type."""
    values, present = episode[f"info.{name}"], episode[f"info_present.{name}"]
    assert present.tolist() == [value is not None for value in expected]
    zero = np.zeros(values.shape[1:], values.dtype)
    np.testing.assert_array_equal(values, [zero if value is None else value for value in expected])


NUMBERS = [np.dtype(code) for code in "?bhilqBHILQefd"]
RECORDED = {
    "int": (3, "int64", ()),
    "negative": (-(1 << 63), "int64", ()),
    "beyond int64": ((1 << 64) - 1, "uint64", ()),
    "float": (0.1, "float64", ()),
    "nan": (np.nan, "float64", ()),
    "bool": (True, "bool", ()),
    **{f"scalar {dtype}": (dtype.type(1), dtype.name, ()) for dtype in NUMBERS},
    "0-d": (np.array(2.5, np.float32), "float32", ()),
    "array": (np.arange(6, dtype=np.int16).reshape(2, 3), "int16", (2, 3)),
    "big-endian": (np.array([1, 2], ">f8"), "float64", (2,)),
    "strided": (np.arange(12.0).reshape(3, 4)[::2, ::-1], "float64", (2, 4)),
    "empty": (np.zeros((2, 0), np.float32), "float32", (2, 0)),
    "31 axes": (np.ones((1,) * 31, np.int8), "int8", (1,) * 31),
    "list": ([[1, 2], [3, 4]], "int64", (2, 2)),
    "tuple of bools": ((True, False), "bool", (2,)),
    "tensor": (torch.tensor([1.5, 2.5]), "float32", (2,)),
    "tensor with gradient": (torch.ones(2, requires_grad=True), "float32", (2,)),
    "0-d tensor": (torch.tensor(True), "bool", ()),
    "bfloat16": (torch.tensor([0.5], dtype=torch.bfloat16), "float32", (1,)),
    "list of tensors": ([torch.tensor(1), torch.tensor(2)], "int64", (2,)),
}


@pytest.mark.parametrize("kind", RECORDED)
def test_what_is_recorded(tmp_path, kind):
    value, dtype, shape = RECORDED[kind]
    with record(tmp_path, {0: {"x": value}, 2: {"x": value}, 3: {"y": 1}}) as buffer:
        (episode,) = buffer
        assert episode["info.x"].dtype == dtype
        assert episode["info.x"].shape == (5, *shape)
        expected = value.detach().float().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
        assert_info(episode, "x", [expected, None, expected, None, None])
        assert_info(episode, "y", [None, None, None, 1, None])


class Hostile:
    """Raises whatever is asked of it."""

    def __getattribute__(self, name):
        raise RuntimeError("no")

    __repr__ = __str__ = __len__ = __bool__ = __iter__ = __array__ = __hash__ = lambda self: 1 / 0


LEFT_OUT = {
    "string": "walking",
    "bytes": b"x",
    "None": None,
    "object": object(),
    "hostile object": Hostile(),
    "class": int,
    "set": {1, 2},
    "list of strings": ["a"],
    "ragged list": [[1], [1, 2]],
    "object array": np.array([None, 1], object),
    "strings": np.array(["a", "b"]),
    "structured": np.zeros(2, [("a", "f4")]),
    "time": np.datetime64("2020-01-01"),
    "complex": 1j,
    "beyond uint64": 1 << 64,
    "long double": np.longdouble(1),
    "masked": np.ma.masked_array([1, 2], [True, False]),
    "32 axes": np.ones((1,) * 32),
    "meta tensor": torch.empty(2, device="meta"),
    "sparse tensor": torch.eye(2).to_sparse(),
    "nine mappings": {1: {2: {3: {4: {5: {6: {7: {8: 0}}}}}}}},
}


@pytest.mark.parametrize("kind", LEFT_OUT)
def test_what_is_left_out_is_warned_about_once(tmp_path, kind):
    given = {t: {"bad": LEFT_OUT[kind], "x": 1} for t in range(9)}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        buffer = record(tmp_path, given, episodes=2)
    first, last = map(str, (warning.message for warning in caught))
    assert re.match(r"info\.bad.* is left out", first)
    assert re.match(r"10 values.*info\.bad", last)  # at the end of the run
    assert infos_of(buffer) == ["info.x"]
    assert [episode["info.x"].tolist() for episode in buffer] == [[1] * 5] * 2


KEYS = {
    "nested": ({"a": {"b": {"c": 1}}}, "info.a.b.c"),
    "dot": ({"a.b": 1}, "info.a%2Eb"),
    "slash": ({"../a": 1}, "info.%2E%2E%2Fa"),
    "int": ({3: 1}, "info.3"),
    "digits": ({"3": 1}, "info.%33"),
    "unicode": ({"größe": 1}, "info.größe"),
    "not composed": ({"e\u0301": 1}, "info.e%CC%81"),
    "surrogate": ({"\ud800": 1}, "info.%ED%A0%80"),
    "empty": ({"": 1}, "info.%_"),
    "None": ({None: 1}, "info.%jnull"),
    "bool": ({True: 1}, "info.%j{%22bool%22%3A true}"),
    "npy": ({"npy": {"npy": 1}}, "info.npy.npy"),
    "mapping proxy": (MappingProxyType({"a": MappingProxyType({"b": 1})}), "info.a.b"),
}


@pytest.mark.parametrize("kind", KEYS)
def test_names(tmp_path, kind):
    info, name = KEYS[kind]
    with record(tmp_path, {0: info, 2: info}) as buffer:
        assert infos_of(buffer) == [name]
        assert_info(buffer.episode(0), name.partition(".")[2], [1, None, 1, None, None])


def test_a_key_is_a_number_now_and_a_mapping_then(tmp_path):
    with record(tmp_path, {1: {"a": 1}, 2: {"a": {"b": 2}}, 3: {"a": {}}}) as buffer:
        assert_info(buffer.episode(0), "a", [None, 1, None, None, None])
        assert_info(buffer.episode(0), "a.b", [None, None, 2, None, None])


class Raising(dict):
    def items(self):
        raise RuntimeError("no items")


@pytest.mark.parametrize(
    "info",
    [{np.int64(1): 1}, {frozenset(): 1}, {object(): 1}, {"a": Raising()}, Raising()],
    ids=["NumPy", "set", "object", "mapping inside", "mapping"],
)
def test_keys_and_mappings_that_cannot_be_looked_at(tmp_path, info):
    with pytest.warns(UserWarning, match="info.* left out") as caught:
        buffer = record(tmp_path, {0: {"x": 1}, 2: info, 3: info})
    assert len(caught) == 2
    assert "2 values" in str(caught[-1].message)
    assert_info(buffer.episode(0), "x", [1, None, None, None, None])


@pytest.mark.parametrize("info", [None, [], (), 5, "text", np.zeros(3), np.zeros(0), {}], ids=repr)
def test_infos_that_are_no_mappings(tmp_path, info):
    with record(tmp_path, {1: info, 2: {"x": 1}}) as buffer:
        assert_info(buffer.episode(0), "x", [None, None, 1, None, None])


LIMITS = {
    "linear": {},
    "rows in a ring": {"circular": True, "max_steps": 45},
    "ring": {"circular": True, "max_episodes": 3},
}

CHANGES = {
    # what comes; as what it is stored, and the values: None where one is lost
    "ints, then floats": ([1, 2.0, 2.5, np.float32(3), np.inf], "float64", [1, 2, 2.5, 3, np.inf]),
    "ints, then NaN": ([1, None, np.nan, 0, -(1 << 53)], "float64", [1, None, np.nan, 0, -(1 << 53)]),
    "ints that are floats": ([1, 2.0, np.float32(3), True, -4.0], "int64", [1, 2, 3, 1, -4]),
    "floats, then ints": ([0.5, 1, True, 1 << 60, np.nan], "float64", [0.5, 1, 1, 1 << 60, np.nan]),
    "bools, then ints": ([True, 1, 0, 2, 0.0], "int64", [1, 1, 0, 2, 0]),
    "bools, then floats": ([True, False, 0.25, -3, True], "float64", [1, 0, 0.25, -3, 1]),
    "bools, ints, floats": ([True, -7, 1 << 40, 0.5, False], "float64", [1, -7, 1 << 40, 0.5, 0]),
    "beyond int64": (
        [1, (1 << 63) - 1, 1 << 63, 2, (1 << 64) - 1],
        "uint64",
        [1, (1 << 63) - 1, 1 << 63, 2, (1 << 64) - 1],
    ),
    "below uint64": ([1 << 63, 5, 1 << 62, 0, -1], "float64", [1 << 63, 5, 1 << 62, 0, -1]),
    "between": ([-1, 1 << 63, 5, -(1 << 63), 0.5], "float64", [-1, 1 << 63, 5, -(1 << 63), 0.5]),
    "too exact for floats": ([(1 << 60) + 1, 0.5, 7, 1e300, 2.0], "int64", [(1 << 60) + 1, None, 7, None, 2]),
    "far beyond int64": ([1, 1 << 64, 2, 1e300, 1 << 70], "float64", [1, None, 2, 1e300, None]),
    "small ints": ([np.uint8(1), 255, 256, -1, 7.0], "int64", [1, 255, 256, -1, 7]),
    "small and smaller ints": ([np.uint8(200), np.int8(-1), np.int16(9), 1, 2], "int16", [200, -1, 9, 1, 2]),
    "narrow floats": ([np.float16(1), 65504, 1e6, 0.1, 2], "float64", [1, 65504, 1e6, 0.1, 2]),
    "float32, then Python's": (
        [np.float32(0.1), 0.1, 1, np.float16(2), 3.5],
        "float64",
        [np.float32(0.1), 0.1, 1, 2, 3.5],
    ),
    "small ints and small floats": ([np.int8(-3), np.float16(0.5), 1, True, 2.0], "float16", [-3, 0.5, 1, 1, 2]),
    "shapes": ([[1, 2], [3], 4, [[5, 6]], [7, 8.5]], "float64", [[1, 2], None, None, None, [7, 8.5]]),
    "() and (1,)": ([1, [2.5], np.array([3]), [[4]], 5], "float64", [1, 2.5, 3, None, 5]),
    "strings between": ([1, "two", None, object(), 5.5], "float64", [1, None, None, None, 5.5]),
    "first a string": (["one", 2, "three", 0.5, None], "float64", [None, 2, None, 0.5, None]),
    "tensors": ([torch.tensor(1), 2, torch.tensor(3.5), np.int8(4), torch.tensor([5])], "float64", [1, 2, 3.5, 4, 5]),
}


@pytest.mark.parametrize("limits", ["linear", "ring"])
@pytest.mark.parametrize("kind", CHANGES)
def test_entries_that_change(tmp_path, kind, limits):
    values, dtype, expected = CHANGES[kind]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        buffer = record(tmp_path, {t: {"x": value} for t, value in enumerate(values)}, episodes=2, **LIMITS[limits])
    lost = 2 * sum(value is None for value in expected)
    assert len(caught) == 2 * (lost > 0)
    assert not lost or str(caught[-1].message).startswith(f"{lost} values in infos")
    assert buffer.metadata.fields["info.x"].dtype == dtype
    for episode in buffer:
        assert_info(episode, "x", expected)


LATE = (0, 1, 4, 8, 9, 20)


def rising(env, t):
    """An entry that comes at each of some times for the first time, and is there at some places only."""
    now = {
        f"at{first}": np.float32([100 * env.number + t, first])
        for first in LATE
        if env.number > 1 or (env.number == 1 and t >= first and (t - first) % 3 != 1)
    }
    return {**now, "nested": {"always": t}} if env.number else {"early": True}


@pytest.mark.parametrize("limits", LIMITS)
@pytest.mark.parametrize(("chunk_rows", "is_nested"), [(3, False), (3, True), (1 << 14, True)])
def test_entries_seen_late(tmp_path, monkeypatch, limits, chunk_rows, is_nested):
    small_sizes(monkeypatch, chunk_rows=chunk_rows)
    env = Scripted(20, info=rising)
    if is_nested:
        env.observation_space = spaces.Dict({"said": spaces.Text(9), "at": Scripted.observation_space})
        env.answers["observation"] = lambda _, t: {"said": "x" * (t % 7), "at": np.full(2, t, np.float32)}
    env = RecordToBuffer(
        env, tmp_path, record_info=True, extra_fields={"value": ("float64", (), -1.0)}, **LIMITS[limits]
    )
    reader = None
    for number in range(5):
        env.reset()
        for t in range(1, 21):
            if t == 13:
                env.annotate_step(value=number)
            env.step(t % 3)
        reader = reader or ReplayBuffer.from_folder(tmp_path, read_only=True)
        reader.refresh()
        assert reader.fieldnames == env.buffer.fieldnames
        for episode in reader:
            inner = env.unwrapped
            inner.number, now = episode.id, inner.number
            given = [rising(inner, t) for t in range(21)]
            inner.number = now
            for name in infos_of(reader):
                entry = name.partition(".")[2]
                values = [info.get(entry, info.get("nested", {}).get(entry.partition(".")[2])) for info in given]
                assert_info(episode, entry, values)
            observed = episode["observation.at" if is_nested else "observation"]
            assert observed[:, 0].tolist() == list(range(21))
            assert episode["reward"].tolist() == list(range(1, 21))
            assert episode["action"].tolist() == [t % 3 for t in range(1, 21)]
            assert episode["value"].tolist() == [episode.id if t == 13 else -1.0 for t in range(1, 21)]
            assert np.flatnonzero(episode["terminated"]).tolist() == [19]
        assert check_buffer(tmp_path, progress=False).ok
    assert len(infos_of(reader)) == 2 + len(LATE)
    env.close()
    assert check_buffer(tmp_path, progress=False).ok
    reader.close()


def test_statistics_that_come_with_the_last_step(tmp_path, monkeypatch):
    small_sizes(monkeypatch, chunk_rows=5)
    env = RecordToBuffer(RecordEpisodeStatistics(gym.make("CartPole-v1")), tmp_path, record_info=True)
    play(env, 3)
    env.reset()
    env.step(0)
    env.close()
    for number, episode in enumerate(env.buffer):
        length, is_whole = len(episode), number < 3
        for name, value in (("r", episode.meta["episode_return"]), ("l", length)):
            assert_info(episode, f"episode.{name}", [None] * length + [value if is_whole else None])
    assert env.buffer.metadata.fields["info.episode.l"].state


def test_the_info_is_kept_as_it_was_when_it_came(tmp_path):
    shared = {"x": np.zeros(2)}

    def counting(env, t):
        shared["x"] += 1
        return shared

    with record(tmp_path, counting) as buffer:
        assert_info(buffer.episode(0), "x", [[t, t] for t in (1, 2, 3, 4, 5)])


NAMED = {"a": 1, "b": {"c": 2, "d": 3}, "e.f": 4, "g": {"h": {"i": 5}}, 6: 6, "unwanted": object()}


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (["a"], ["info.a"]),
        (("b", "never"), ["info.b.c", "info.b.d"]),
        ({"b.d"}, ["info.b.d"]),
        (iter(["e.f", "g.h"]), ["info.e%2Ef", "info.g.h.i"]),
        (["6"], ["info.6"]),
        ([], []),
        (False, []),
    ],
)
def test_some_entries_by_name(tmp_path, wanted, expected):
    with record(tmp_path, {1: NAMED}, record_info=wanted) as buffer:
        assert infos_of(buffer) == expected


def test_storage_dtypes(tmp_path):
    dtypes = {"info.x": "float64", "info.group": "float16", "info.group.b": "uint8", "info.never": "int8"}
    given = {1: {"x": 1, "group": {"a": 1, "b": 2}, "y": 1}, 2: {"x": 2.5}}
    with record(tmp_path, given, dtypes=dtypes) as buffer:
        assert_info(buffer.episode(0), "x", [None, 1, 2.5, None, None])
        found = {name: buffer.metadata.fields[name].dtype.name for name in infos_of(buffer)}
    assert found == {"info.x": "float64", "info.group.a": "float16", "info.group.b": "uint8", "info.y": "int64"}
    with pytest.raises(ConfigMismatchError, match=r"info\.x.*float64.*float32"):
        RecordToBuffer(Scripted(), tmp_path, record_info=True, dtypes={"info.x": "float32"})


@pytest.mark.parametrize(
    "options",
    [
        {"record_info": "x"},
        {"record_info": 5},
        {"record_info": [1]},
        {"dtypes": {"info.x": "text"}, "record_info": True},
    ],
    ids=str,
)
def test_wrong_arguments_create_nothing(tmp_path, options):
    with pytest.raises(FieldError, match="expected"):
        RecordToBuffer(Scripted(), tmp_path, **options)
    assert list(tmp_path.iterdir()) == []


def test_names_that_differ_in_case_only(tmp_path):
    """The first one is recorded, and so is all else."""
    with pytest.warns(UserWarning, match=r"case|5 values .* info\.speed \(5\)") as caught:
        buffer = record(tmp_path, lambda env, t: {"x": 1, "Speed": 2, "speed": 3, "y": 4})
    assert len(caught) == 2
    assert infos_of(buffer) == ["info.x", "info.Speed", "info.y"]
    assert buffer.episode(0)["info.Speed"].tolist() == [2] * 5


def test_a_file_in_the_way_is_left_alone(tmp_path):
    env = RecordToBuffer(Scripted(info={2: {"x": 1, "taken": 2, "y": 3}}), tmp_path, record_info=True)
    (tmp_path / "steps" / "info").mkdir()
    (tmp_path / "steps" / "info" / "taken.npy").write_bytes(b"mine")
    with pytest.warns(UserWarning, match=r"info\.taken .*something else"):
        play(env)
    with pytest.warns(UserWarning, match=r"1 values .* info\.taken \(1\)"):
        env.close()
    assert infos_of(env.buffer) == ["info.x", "info.y"]
    assert (tmp_path / "steps" / "info" / "taken.npy").read_bytes() == b"mine"


def test_entries_without_end(tmp_path, monkeypatch):
    """A key that is another one at each step neither fills the folder nor the screen."""
    small_sizes(monkeypatch, info_fields=6, info_warnings=4)
    with pytest.warns(UserWarning, match="left out") as caught:
        buffer = record(tmp_path, lambda env, t: {f"key {t}": t, f"text {t}": "x", "last": t}, length=20)
    assert len(caught) == 5
    assert "no more entries" in str(caught[-2].message)
    assert "37 values" in str(caught[-1].message)  # 16 numbers and 21 texts
    assert "and 17 more" in str(caught[-1].message)
    assert len(infos_of(buffer)) == 6
    assert_info(buffer.episode(0), "key 3", [None] * 3 + [3] + [None] * 17)
    assert_info(buffer.episode(0), "last", list(range(21)))


def test_reopening(tmp_path):
    given = {1: {"x": 1}, 3: {"y": 2.0}}
    with record(tmp_path, given) as reader:
        record(tmp_path, {}).close()  # none come
        record(tmp_path, given, record_info=False).close()
        record(tmp_path, {0: {"x": 7, "z": True}}, record_info=["x"]).close()
        record(tmp_path, {2: {"y": 8, "z": True}}).close()
        reader.refresh()
        assert infos_of(reader) == ["info.x", "info.y", "info.z"]
        for name, expected in {
            "x": [[None, 1, None, None, None], [None] * 5, [None] * 5, [7, *[None] * 4], [None] * 5],
            "y": [[None, None, None, 2.0, None], [None] * 5, [None] * 5, [None] * 5, [None, None, 8, None, None]],
            "z": [[None] * 5] * 4 + [[None, None, True, None, None]],
        }.items():
            for episode, values in zip(reader, expected, strict=True):
                assert_info(episode, name, values)
        batch = next(iter(reader.dataloader(20, timestep_level=True, fields=("info.x", "info_present.x"))))
        assert batch["info.x"].tolist() == [0, 1, 0, 0] + [0] * 8 + [7, 0, 0, 0] + [0] * 4
        assert batch["info_present.x"].sum() == 2


def test_names_of_infos_are_reserved(tmp_path):
    for name in ("info.x", "info_present.x", "info"):
        with pytest.raises(FieldError, match=name):
            RecordToBuffer(Scripted(), tmp_path, extra_fields={name: "float"})


def test_observations_without_fields_have_no_place_for_infos(tmp_path):
    env = Scripted(info={1: {"x": 1}}, observation=lambda env, t: {})
    env.observation_space = spaces.Dict({})
    recorder = RecordToBuffer(env, tmp_path, record_info=True)
    with pytest.warns(UserWarning, match="no state field"):
        play(recorder, 2)
    with pytest.warns(UserWarning, match="2 values"):
        recorder.close()
    assert [episode["reward"].tolist() for episode in recorder.buffer] == [[1, 2, 3, 4]] * 2


def test_a_field_without_presence_goes_on_as_it_is(tmp_path):
    """Such as one that was added by hand."""
    record(tmp_path, {}).close()
    with ReplayBuffer.from_folder(tmp_path) as buffer:
        buffer.add_field("info.x", Field("float32", state=True))
    with record(tmp_path, {2: {"x": 1}}) as buffer:
        assert [episode["info.x"].tolist() for episode in buffer] == [[0] * 5, [0, 0, 1, 0, 0]]


def step(env, count):
    """Steps, of which the disk may refuse some before the environment is stepped."""
    until = env.unwrapped.t + count
    while env.unwrapped.t < until:
        with suppress(StorageError):
            env.step(1)


@pytest.mark.parametrize("what", ["create", "switch", "write", "early"])
@pytest.mark.parametrize("limits", LIMITS)
def test_no_room_for_a_new_field(tmp_path, monkeypatch, what, limits):
    """The run goes on, the rows are whole, and the field comes some rows later, when there is room."""
    small_sizes(monkeypatch, chunk_rows=4, rows_between_info_changes=3)
    inner = Scripted(20, info=lambda env, t: {"x": t, "wide": np.full(3, t)} if env.number and t > 6 else {})
    env = RecordToBuffer(inner, tmp_path, record_info=True, **LIMITS[limits])
    play(env)
    env.reset()
    step(env, 6)
    times = 2 if what == "early" else 1
    with full_disk(monkeypatch, times=times, what=what) as refusals, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        step(env, 14)
        assert len(refusals) == times
        play(env)
        env.close()
    # A step that is refused since its rows cannot be written is taken again: nothing is left out.
    assert [re.findall(r"info[.]\w+|^\d+ values", str(warning.message)) for warning in caught] == (
        [] if what == "early" else [["info.x", "info.wide"], ["6 values", "info.x", "info.wide"]]
    )
    assert check_buffer(tmp_path, progress=False).ok
    assert len(env.buffer) == (2 if limits == "rows in a ring" else 3)
    for episode in env.buffer:
        assert episode["observation"][:, 0].tolist() == list(range(21))
        assert episode["reward"].tolist() == list(range(1, 21))
        first = (21, 7 if what == "early" else 10, 7)[episode.id]
        assert_info(episode, "x", [None] * first + list(range(first, 21)))
        assert_info(episode, "wide", [None] * first + [[t] * 3 for t in range(first, 21)])


def test_no_room_when_a_new_field_is_wide(tmp_path, monkeypatch):
    """It makes the open episode too long to be kept in memory."""
    given = {t: {"x": np.full(100_000, float(t))} for t in range(10, 99)}
    env = RecordToBuffer(Scripted(20, info=given), tmp_path, record_info=True)
    env.reset()
    step(env, 9)
    add_fields = edits.add_fields

    def refuse(*arguments):
        raise OSError(errno.ENOSPC, "no space left")

    with monkeypatch.context() as patch:

        def add_fields_and_fill_the_disk(*arguments):
            add_fields(*arguments)
            patch.setattr("os.pwrite", refuse)

        patch.setattr(edits, "add_fields", add_fields_and_fill_the_disk)
        env.step(1)
        with pytest.raises(StorageError):
            env.step(1)
        assert env.unwrapped.t == 10
    step(env, 10)
    env.close()
    (episode,) = env.buffer
    assert episode["reward"].tolist() == list(range(1, 21))
    assert episode["info.x"][:, 0].tolist() == [0] * 10 + list(range(10, 21))
    assert check_buffer(tmp_path, progress=False).ok


@pytest.mark.parametrize("chunk_rows", [3, 1 << 14])
@pytest.mark.parametrize("where", ["change_format", "_create_field"])
def test_an_interrupt_while_a_field_is_added(tmp_path, monkeypatch, chunk_rows, where):
    small_sizes(monkeypatch, chunk_rows=chunk_rows)
    env = RecordToBuffer(Scripted(20, info={t: {"x": t} for t in range(10, 99)}), tmp_path, record_info=True)
    env.reset()
    for _ in range(9):
        env.step(1)
    owner = edits if where == "_create_field" else Stage
    with monkeypatch.context() as patch:

        def interrupt(*arguments):
            raise KeyboardInterrupt

        patch.setattr(owner, where, interrupt)
        with pytest.raises(KeyboardInterrupt):
            env.step(1)
    with pytest.warns(UserWarning, match="not recorded"):
        env.step(1)
    play(env)
    env.close()
    first, second = env.buffer
    assert first["reward"].tolist() == list(range(1, 10))
    assert_info(first, "x", [None] * 10)
    assert_info(second, "x", [None] * 10 + list(range(10, 21)))
    assert check_buffer(tmp_path, progress=False).ok
