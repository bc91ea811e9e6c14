"""Statistics, against NumPy over all recorded values at once in extended precision."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from internals import small_sizes
from internals import statistics_module as module

from gym_replay import (
    ConcatReplayBuffer,
    EmptyBufferError,
    EpisodeEvictedError,
    Field,
    FieldError,
    ReplayBuffer,
    statistics,
)


def values_of(buffer, name, episodes=None):
    chosen = range(len(buffer)) if episodes is None else episodes
    return np.concatenate([np.asarray(buffer.episode(k)[name]) for k in chosen])


def expect(found, values, floor=module.STD_FLOOR, rtol=1e-11):
    """Compare with what NumPy gives for all values, ``(rows, *shape)``."""
    exact = values.astype(np.longdouble)
    missing = np.isnan(exact)
    count = (~missing).sum(axis=0)
    np.testing.assert_array_equal(found.count, count)
    filled = np.where(missing, 0, exact)
    mean = filled.sum(axis=0) / count
    std = np.sqrt((np.where(missing, 0, exact - mean) ** 2).sum(axis=0) / count)
    largest = float(np.abs(filled).max(initial=0))
    np.testing.assert_allclose(found.mean, mean.astype(np.float64), rtol=1e-14, atol=1e-15 * largest)
    np.testing.assert_allclose(found.std, np.maximum(std, floor).astype(np.float64), rtol=rtol, atol=0)
    np.testing.assert_array_equal(found.min, np.nanmin(values, axis=0).astype(np.float64))
    np.testing.assert_array_equal(found.max, np.nanmax(values, axis=0).astype(np.float64))
    for probability, quantile in found.quantiles.items():
        np.testing.assert_allclose(quantile, np.nanquantile(values.astype(np.float64), probability, axis=0), rtol=1e-14)


kinds = st.sampled_from(["normal", "offset", "constant", "large offset", "heavy"])


@settings(max_examples=40)
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=8),
    kind=kinds,
    missing=st.sampled_from([0, 0, 0.3]),
    dtype=st.sampled_from(["float64", "float32", "int32", "uint8", "bool"]),
    chunk=st.sampled_from([8, 200, 1 << 24]),
    seed=st.integers(0, 1000),
)
def test_statistics_equal_those_of_numpy(tmp_path_factory, lengths, kind, missing, dtype, chunk, seed):
    generator = np.random.default_rng(seed)
    field = Field(dtype, (3,), state=True)
    with (
        ReplayBuffer(tmp_path_factory.mktemp("b"), fields={"x": field, "r": "float64"}) as buffer,
        pytest.MonkeyPatch.context() as patch,
    ):
        for length in lengths:
            noise = generator.standard_normal((length + 1, 3))
            values = {
                "normal": noise,
                "offset": noise + 1000,
                "constant": np.full_like(noise, 0.1),
                "large offset": 1e8 + noise * (0.01 if dtype == "float64" else 100),
                "heavy": np.sign(noise) * 10 ** (2 * np.minimum(np.abs(noise), 4)),
            }[kind]
            if dtype in ("uint8", "bool"):
                values = values > 0 if dtype == "bool" else np.abs(values) % 256
            elif missing and dtype.startswith("float"):
                values[1:][generator.random((length, 3)) < missing] = np.nan
            buffer.store_episode(x=values.astype(dtype), r=np.arange(length))
        small_sizes(patch, statistics_bytes=chunk)
        found = statistics(buffer, cache=False, progress=False)
        expect(found["x"], values_of(buffer, "x"), rtol=1e-7)
        expect(found["r"], values_of(buffer, "r"))
        assert (found["x"].std >= module.STD_FLOOR).all()


def test_small_noise_on_a_large_offset(tmp_path):
    generator = np.random.default_rng(0)
    with ReplayBuffer(tmp_path / "b", fields={"x": "float64"}) as buffer:
        for _ in range(5):
            buffer.store_episode(x=1e8 + 1e-3 * generator.standard_normal(100_000))
        found = statistics(buffer, std_floor=0)["x"]
        values = values_of(buffer, "x").astype(np.longdouble)
        np.testing.assert_allclose(found.std, float(values.std()), rtol=1e-9)
        np.testing.assert_allclose(found.mean - 1e8, float(values.mean() - 10**8), atol=2e-8)


@pytest.mark.parametrize("chunk", [64, 1 << 24])
def test_only_chosen_episodes_count(tmp_path, monkeypatch, chunk):
    small_sizes(monkeypatch, statistics_bytes=chunk)
    fields = {"s": Field("float32", (2,), state=True), "a": Field("float32", default=1e6)}
    with ReplayBuffer(tmp_path / "b", fields=fields, meta_fields={"task": "int"}) as buffer:
        for k, length in enumerate((4, 3, 1, 6)):
            final = k != 1
            s = k + np.arange(2 * (length + final)).reshape(-1, 2)
            buffer.store_episode(s=s, a=np.full(length, k), task=k % 2)
        for episodes in ([0, 2], [3], [-1, 1], np.array([True, False, False, True]), range(1, 4)):
            chosen = sorted({int(k) % 4 for k in np.arange(4)[np.asarray(list(episodes))]})
            found = statistics(buffer, episodes=episodes)
            for name in fields:
                expect(found[name], values_of(buffer, name, chosen), rtol=1e-9)
        for predicate in (lambda meta: meta["task"] == 1, slice(1, 4, 2)):
            expect(statistics(buffer, episodes=predicate)["a"], values_of(buffer, "a", [1, 3]), rtol=1e-9)
        for name in fields:
            expect(statistics(buffer, filter_meta={"task": 1})[name], values_of(buffer, name, [1, 3]), rtol=1e-9)
        assert statistics(buffer, ["a"], episodes=[3]).keys() == {"a"}
        with pytest.raises(IndexError, match="there are 4"):
            statistics(buffer, episodes=[4])
        with pytest.raises(EmptyBufferError, match="no episode meets"):
            statistics(buffer, episodes=[])
        with pytest.raises(EmptyBufferError, match="no episode meets"):
            statistics(buffer, episodes=[0], filter_meta={"task": 1})
        for wrong in ([0.5], [[0]], np.array([True])):
            with pytest.raises(FieldError, match="episodes: expected"):
                statistics(buffer, episodes=wrong)
        with pytest.raises(FieldError, match="named twice"):
            statistics(buffer, episodes=[2, 0, 2])


def test_images_have_one_value_for_each_channel(tmp_path, monkeypatch):
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (30, 6, 5, 3), np.uint8)
    with ReplayBuffer(tmp_path / "b", fields={"x": ("uint8", (6, 5, 3)), "grey": ("uint8", (6, 5))}) as buffer:
        buffer.store_episode(x=images, grey=images[..., 0])
        for chunk in (1000, 1 << 24):
            small_sizes(monkeypatch, statistics_bytes=chunk)
            found = statistics(buffer, cache=False)
            expect(found["x"], images.reshape(-1, 1, 1, 3))
            assert found["x"].mean.shape == (1, 1, 3)
            expect(found["grey"], images[..., 0])


def test_sampled_quantiles_are_near(tmp_path, monkeypatch):
    small_sizes(monkeypatch, quantile_bytes=2 * 4 * 3000, statistics_bytes=1 << 14)
    generator = np.random.default_rng(0)
    with ReplayBuffer(tmp_path / "b", fields={"x": ("float32", 2), "one": "float32"}) as buffer:
        for _ in range(20):
            buffer.store_episode(x=np.sort(generator.standard_normal((2500, 2)), axis=0), one=np.ones(2500))
        found = statistics(buffer, cache=False)
        values = values_of(buffer, "x")
        for probability, quantile in found["x"].quantiles.items():
            below = (values < quantile).mean(axis=0)
            np.testing.assert_allclose(below, probability, atol=4 * np.sqrt(0.25 / 3000))
        assert found["one"].quantiles[0.5] == 1
        again = statistics(buffer, cache=False)["x"].quantiles
        assert all((again[p] == found["x"].quantiles[p]).all() for p in again)
        np.testing.assert_array_equal(found["x"].min, values.min(axis=0))


def test_odd_values(tmp_path):
    fields = {"nan": "float", "inf": "float", "none": ("float", (0, 2)), "deep": ("float16", (2, 2)), "big": "int64"}
    with ReplayBuffer(tmp_path / "b", fields=fields) as buffer:
        buffer.store_episode(
            nan=np.full(3, np.nan),
            inf=[1, np.inf, 2],
            none=np.empty((3, 0, 2)),
            deep=np.ones((3, 2, 2)),
            big=[2**60, -(2**60), 5],
        )
        for _ in range(2):  # computed, then from the folder
            found = statistics(buffer)
            assert found["nan"].count == 0
            assert np.isnan([found["nan"].mean, found["nan"].std, found["nan"].min, found["nan"].quantiles[0.5]]).all()
            assert found["inf"].mean == np.inf
            assert found["inf"].max == np.inf
            assert np.isnan(found["inf"].std)
            assert found["none"].mean.shape == (0, 2)
            assert found["deep"].std.tolist() == [[module.STD_FLOOR] * 2] * 2
            assert found["big"].max == 2.0**60
        with pytest.raises(FieldError, match="positive standard deviations"):
            buffer.dataloader(2, normalize=("inf",))


def test_arguments(tmp_path):
    with ReplayBuffer(tmp_path / "b", fields={"x": "float", "r": Field("float", ragged=True)}) as buffer:
        with pytest.raises(EmptyBufferError):
            statistics(buffer)
        buffer.store_episode(x=[1, 2], r=[[1], []])
        assert list(statistics(buffer)) == ["x"]
        for arguments, message in (
            ((["y"],), "unknown field 'y'"),
            ((["r"],), "'r' is ragged"),
            (("x",), "write"),
        ):
            with pytest.raises(FieldError, match=message):
                statistics(buffer, *arguments)
        for options in ({"std_floor": -1}, {"quantiles": [1.5]}):
            with pytest.raises(FieldError, match=next(iter(options))):
                statistics(buffer, **options)
        with pytest.raises(FieldError, match="no statistics of 'y'"):
            statistics(buffer).only("y")
        assert statistics(buffer, quantiles=())["x"].quantiles == {}


def test_concatenations_equal_their_parts(tmp_path):
    with (
        ReplayBuffer(tmp_path / "a", fields={"x": "float"}) as a,
        ReplayBuffer(tmp_path / "b", fields={"x": "float"}) as b,
    ):
        a.store_episode(x=[1, 2, 3])
        b.store_episode(x=[10, 20])
        a.store_episode(x=[5])
        both = ConcatReplayBuffer([a, b])
        expect(statistics(both)["x"], np.array([1, 2, 3, 5, 10, 20.0]))
        expect(statistics(both, episodes=[1, 2])["x"], np.array([5, 10, 20.0]))
    assert not list(tmp_path.rglob(module.CACHE))


def test_a_ring(tmp_path, monkeypatch):
    with ReplayBuffer(tmp_path / "b", fields={"x": "float"}, max_steps=20, circular=True) as buffer:
        for k in range(9):
            buffer.store_episode(x=np.arange(6) + 10 * k)
        expect(statistics(buffer)["x"], values_of(buffer, "x"))
        old = buffer.snapshots()
        for k in range(5):
            buffer.store_episode(x=np.arange(6) + 100 * k)
        monkeypatch.setattr(buffer, "snapshots", lambda: old)
        with pytest.raises(EpisodeEvictedError, match="while its statistics were taken"):
            statistics(buffer)


@pytest.fixture
def counted(monkeypatch):
    """How many fields were computed."""
    calls = []
    real = module._pieces
    monkeypatch.setattr(module, "_pieces", lambda source, name, *rest: calls.append(name) or real(source, name, *rest))
    return calls


def same(first, second):
    assert list(first) == list(second)
    for name in first:
        for attribute in ("count", "mean", "std", "min", "max"):
            one, other = getattr(first[name], attribute), getattr(second[name], attribute)
            np.testing.assert_array_equal(one, other)
            assert one.dtype == other.dtype
            assert one.shape == other.shape
        assert first[name].quantiles.keys() == second[name].quantiles.keys()
        for probability, value in first[name].quantiles.items():
            np.testing.assert_array_equal(value, second[name].quantiles[probability])


def test_kept_until_the_buffer_changes(tmp_path, counted):
    with ReplayBuffer(tmp_path / "b", fields={"x": ("float", 2), "y": "int"}) as buffer:
        for k in range(3):
            buffer.store_episode(x=np.random.default_rng(k).standard_normal((5, 2)), y=np.arange(5))
        first = statistics(buffer, ["x"])
        same(first, statistics(buffer, ["x"]))
        assert counted == ["x"]
        with ReplayBuffer.from_folder(tmp_path / "b", read_only=True) as reader:
            both = statistics(reader)
        assert counted == ["x", "y"]
        same(both, statistics(buffer))
        statistics(buffer, episodes=[0])
        statistics(buffer, quantiles=[0.5])
        assert counted == ["x", "y"] * 3
        same(both, statistics(buffer))
        assert statistics(buffer, std_floor=7)["x"].std.tolist() == [7, 7]
        statistics(buffer, episodes=[0])
        assert len(counted) == 6
        changes = (
            lambda: buffer.store_episode(x=np.ones((1, 2)), y=[4]),
            lambda: buffer.update(0, y=np.arange(5) + 100),
            lambda: buffer.delete([1]),
            lambda: buffer.add_field("z", "float"),
        )
        for change in changes:
            change()
            counted.clear()
            found = statistics(buffer)
            assert counted == list(found)
            for name in found:
                expect(found[name], values_of(buffer, name))


def test_nothing_in_the_folder_is_trusted(tmp_path, counted):
    path = tmp_path / "b" / module.CACHE
    with ReplayBuffer(tmp_path / "b", fields={"x": ("float", 2)}) as buffer:
        buffer.store_episode(x=np.arange(8).reshape(4, 2))
        expected = statistics(buffer)
        sound = json.loads(path.read_text())
        ((key, fields),) = sound["entries"].items()

        def broken(**changes):
            return json.dumps(sound | {"entries": {key: {"x": fields["x"] | changes}}})

        damaged = [
            "",
            "{",
            "[" * 100_000,
            "[]",
            "null",
            json.dumps(sound | {"version": 2}),
            json.dumps(sound | {"entries": 5}),
            json.dumps(sound | {"entries": [5, {}]}),
            json.dumps(sound | {"entries": {key: 5}}),
            json.dumps(sound | {"entries": {"0" * 64: fields}}),
            broken(mean=[1]),
            broken(mean=[1, "x"]),
            broken(mean=[1, None]),
            broken(mean="ab"),
            broken(mean=[1, 10**400]),
            broken(std=[-1, 1]),
            broken(count=[-1, 4]),
            broken(count=[0.5, 4]),
            broken(count=["nan", 4]),
            broken(quantiles=[]),
            broken(quantiles=[[1, 2]] * 4 + [[1]]),
            json.dumps(sound | {"entries": {key: {"x": 3}}}),
        ]
        for text in damaged:
            path.write_text(text)
            counted.clear()
            same(statistics(buffer), expected)
            assert counted == ["x"], text[:80]
        path.unlink()
        path.symlink_to(tmp_path / "elsewhere")
        same(statistics(buffer), expected)
        assert not (tmp_path / "elsewhere").exists()
        path.unlink(missing_ok=True)
        path.mkdir()
        same(statistics(buffer), expected)


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    with ReplayBuffer(tmp_path / "b", fields={"x": "float"}) as buffer:
        buffer.store_episode(x=[1, 2])

        def refuse(*arguments):
            raise PermissionError(13, "no")

        monkeypatch.setattr(module, "open_beneath", refuse)
        monkeypatch.setattr(module, "Directory", refuse)
        assert statistics(buffer)["x"].mean == 1.5
        monkeypatch.undo()
        new = tmp_path / "b" / (module.CACHE + ".new")
        new.write_text("half")  # of a process that was killed
        statistics(buffer)
        assert not new.exists()
        assert (tmp_path / "b" / module.CACHE).exists()


def test_the_buffer_lives_on_beside_the_file(tmp_path):
    with ReplayBuffer(tmp_path / "b", fields={"x": "float"}) as buffer:
        buffer.store_episode(x=[1, 2])
        statistics(buffer)
    with ReplayBuffer(tmp_path / "b", fields={"x": "float"}, overwrite=True) as buffer:
        buffer.store_episode(x=[10, 20])
        assert statistics(buffer)["x"].mean == 15
