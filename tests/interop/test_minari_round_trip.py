"""A buffer written as a Minari dataset and read back is the same buffer, of every space that both have."""

import itertools
import tempfile
import warnings
from contextlib import contextmanager
from pathlib import Path

import catalogue
import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from interop.minari_helpers import FORMATS, Playing, assert_same_buffer, record, same, stacked

from gym_replay import FieldError, RecordToBuffer, UnsupportedSpaceError, check_buffer, export_minari, import_minari

pytest.importorskip("minari")

_versions = itertools.count()


@contextmanager
def own_datasets():
    """A folder of Minari datasets for one example."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", f"{folder}/datasets")
        yield Path(folder)


def fault(space, data_format):
    """Whether Minari cannot hold a space in a format; what the format's documentation and its reader say."""
    if isinstance(space, (spaces.Sequence, spaces.Graph, spaces.OneOf)):
        return True
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        children = list(space.spaces.values()) if isinstance(space, spaces.Dict) else list(space.spaces)
        if not children and data_format != "hdf5":
            return True
        keys = list(space.spaces) if isinstance(space, spaces.Dict) else []
        return any(bad_key(key, data_format) for key in keys) or any(fault(child, data_format) for child in children)
    if isinstance(space, spaces.Text):
        return False
    if isinstance(space, spaces.Box) and np.shape(space.low.tolist()) != space.shape:  # its JSON loses axes
        return True
    return data_format != "hdf5" and 0 in space.shape


def bad_key(key, data_format):
    return (
        not isinstance(key, str)
        or bad_text(key, data_format)
        or (data_format == "hdf5" and ("/" in key or key in ("", ".")))
    )


def bad_text(text, data_format):
    return any(0xD800 <= ord(c) < 0xE000 for c in text) or (data_format == "hdf5" and "\0" in text)


def texts(space, value):
    if isinstance(space, spaces.Dict):
        return [text for key, child in space.spaces.items() for text in texts(child, value[key])]
    if isinstance(space, spaces.Tuple):
        return [text for child, part in zip(space.spaces, value, strict=True) for text in texts(child, part)]
    return [value] if isinstance(space, spaces.Text) else []


def check_round_trip(space, data_format):
    """Record values of a space as observations and as actions, export, read with Minari, import, compare."""
    values = catalogue.examples(space)
    with own_datasets() as folder:
        env = Playing(space, values, space)
        buffer = record(folder / "a", env, [(3, *values[:2]), (None, values[2])])
        dataset_id = f"ns/b-v{next(_versions)}"
        if fault(space, data_format):
            with pytest.raises(UnsupportedSpaceError, match="observation"):
                export_minari(buffer, dataset_id, data_format=data_format)
            return
        if any(bad_text(text, data_format) for value in values for text in texts(space, value)):
            with pytest.raises(FieldError, match="string"):
                export_minari(buffer, dataset_id, data_format=data_format)
            return
        dataset = export_minari(buffer, dataset_id, data_format=data_format)
        first = dataset[0]
        assert same(first.observations, stacked(space, values))
        assert same(first.actions, stacked(space, values[:2]))
        assert same(first.rewards, np.array([1 / 3, 2 / 3]))
        with import_minari(dataset_id, folder / "b") as back:
            assert_same_buffer(buffer, back)
        assert check_buffer(folder / "b", progress=False).ok


@pytest.mark.parametrize("data_format", ["hdf5", "arrow"])
@pytest.mark.parametrize("name", catalogue.SPACES)
def test_every_space_of_the_catalogue(name, data_format):
    check_round_trip(catalogue.SPACES[name], data_format)


KEYS = st.one_of(st.text(max_size=6), st.sampled_from([key for key in catalogue.ODD_KEYS if isinstance(key, str)]))
LEAVES = st.one_of(catalogue._boxes(), catalogue._DISCRETE, catalogue._FIXED, catalogue._TEXTS)
SPACES = st.recursive(
    LEAVES,
    lambda children: st.one_of(
        st.dictionaries(KEYS, children, max_size=3).map(lambda d: spaces.Dict(list(d.items()))),
        st.lists(children, max_size=3).map(spaces.Tuple),
    ),
    max_leaves=5,
)


@settings(max_examples=30)
@given(space=SPACES, data_format=st.sampled_from(FORMATS))
def test_random_spaces(space, data_format):
    check_round_trip(space, data_format)


FIELD_DTYPES = st.sampled_from(["bool", "float16", "float32", "float64", "int8", "uint8", "int64", "uint64"])
META_TEXTS = st.text(st.characters(codec=None), max_size=8)


class Plain(gym.Env):
    observation_space = spaces.Box(-9, 9, (2,), np.float32)
    action_space = spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action):
        return np.full(2, action, np.float32), np.float64(action), False, False, {"n": {"x": action}, "y": [1.5, 2]}


def any_bits(data, dtype, shape, count):
    """Arrays of random bits: NaNs with payloads, infinities and denormal numbers among them."""
    dtype = np.dtype(dtype)
    size = int(np.prod(shape, dtype=int)) * count
    if dtype == np.bool_:
        flat = np.array(data.draw(st.lists(st.booleans(), min_size=size, max_size=size)), bool)
    else:
        content = data.draw(st.binary(min_size=size * dtype.itemsize, max_size=size * dtype.itemsize))
        flat = np.frombuffer(content, dtype)
    return flat.reshape(count, *shape)


@settings(max_examples=15)
@given(data=st.data(), data_format=st.sampled_from(FORMATS))
def test_meta_extra_and_info_fields_of_any_bits(data, data_format):
    dtype, shape = data.draw(FIELD_DTYPES), data.draw(st.sampled_from([(), (2,), (1,), (2, 3)]))
    name = data.draw(st.sampled_from(["value", "id", "seed", "rewards_sum", "a.b", "gym_replay", "options"]))
    with own_datasets() as folder:
        env = RecordToBuffer(
            Plain(),
            folder / "a",
            record_info=True,
            extra_fields={"extra": (dtype, shape), "action.mode": "int"},
            meta_fields={name: (dtype, shape), "text": "str"},
        )
        with env:  # data.draw may end the test
            lengths = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
            for number, length in enumerate(lengths):
                env.reset(seed=data.draw(st.one_of(st.none(), st.integers(0, 2**63 - 1))), options={"k": number})
                env.annotate(**{name: any_bits(data, dtype, shape, 1)[0], "text": data.draw(META_TEXTS)})
                for t, extra in enumerate(any_bits(data, dtype, shape, length)):
                    env.annotate_step(extra=extra, **{"action.mode": 7})
                    env.step(np.int64(t % 3))
        export_minari(env.buffer, "ns/b-v0", data_format=data_format)
        with import_minari("ns/b-v0", folder / "b") as back:
            assert_same_buffer(env.buffer, back)
        export_minari(folder / "b", "ns/b-v1", data_format="hdf5" if data_format == "arrow" else "arrow")
        with import_minari("ns/b-v1", folder / "c") as again:
            assert_same_buffer(env.buffer, again)


@pytest.mark.parametrize("data_format", FORMATS)
@pytest.mark.parametrize("dtypes", [{"observation": "float64"}, {"observation": "float16"}, {"action": "uint8"}])
def test_other_storage_dtypes(tmp_path, monkeypatch, dtypes, data_format):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    values = [np.array([1 / 3, -0.0], np.float32), np.array([np.nan, np.inf], np.float32), np.zeros(2, np.float32)]
    env = Playing(spaces.Box(-1, 1, (2,)), values)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        buffer = record(tmp_path / "a", env, [(0, 1, 2)], dtypes=dtypes)
    dataset = export_minari(buffer, "ns/b-v0", data_format=data_format)
    assert dataset[0].observations.dtype == dataset.observation_space.dtype == buffer.episode(0)["observation"].dtype
    with import_minari("ns/b-v0", tmp_path / "b") as back:
        assert_same_buffer(buffer, back)


def test_infos_that_come_and_go(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    env = gym.wrappers.RecordEpisodeStatistics(gym.make("CartPole-v1"))
    buffer = record(tmp_path / "a", env, [(seed, *[0] * 12) for seed in range(2)], record_info=["episode.l"])
    for data_format in FORMATS:
        export_minari(buffer, f"{data_format}-v0", data_format=data_format)
        with import_minari(f"{data_format}-v0", tmp_path / data_format) as back:
            assert_same_buffer(buffer, back)
            assert back.episode(0)["info_present.episode.l"].sum() == 1
