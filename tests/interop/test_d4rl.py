"""Data sets in D4RL's layout, from files and from memory."""

import builtins
import warnings
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from internals import open_episode

from gym_replay import (
    CorruptBufferError,
    EmptyBufferError,
    FieldError,
    MissingExtraError,
    NotABufferError,
    ReplayBuffer,
    from_d4rl,
)


def dataset(episodes, *, following=True, timeouts=True):
    """Episodes as (length, how): "terminal", "timeout", or "cut", of which nothing tells but the observations."""
    rows = {name: [] for name in ("observations", "next_observations", "terminals", "timeouts")}
    for number, (length, how) in enumerate(episodes):
        steps = 100.0 * number + np.arange(length + 1)
        last = np.arange(length) == length - 1
        rows["observations"].append(steps[:-1])
        rows["next_observations"].append(steps[1:])
        rows["terminals"].append(last & (how == "terminal"))
        rows["timeouts"].append(last & (how == "timeout"))
    made = {name: np.concatenate(parts) for name, parts in rows.items()}
    for name in ("observations", "next_observations"):
        made[name] = np.stack((made[name], -made[name]), axis=1).astype(np.float32)
    count = len(made["terminals"])
    made |= {"actions": np.arange(count, dtype=np.float32)[:, None], "rewards": np.arange(count) / 8}
    made["infos/qpos"] = np.arange(count * 3).reshape(count, 3).astype(np.float64)
    for name, kept in (("next_observations", following), ("timeouts", timeouts)):
        if not kept:
            del made[name]
    return made


ENDS = st.sampled_from(["terminal", "timeout", "cut"])


@settings(max_examples=40)
@given(episodes=st.lists(st.tuples(st.integers(1, 5), ENDS), min_size=1, max_size=6))
def test_each_episode_is_whole(tmp_path_factory, episodes):
    folder = tmp_path_factory.mktemp("new")
    report = from_d4rl(dataset(episodes), folder / "a")
    with ReplayBuffer.from_folder(folder / "a") as buffer:
        assert report.num_episodes == len(buffer) == len(episodes)
        place = 0
        for number, (episode, (length, how)) in enumerate(zip(buffer, episodes, strict=True)):
            assert len(episode) == length
            assert episode.has_final
            assert episode.complete == (how != "cut")
            assert episode["observation"][:, 0].tolist() == [100.0 * number + t for t in range(length + 1)]
            assert episode["terminated"].tolist() == [False] * (length - 1) + [how == "terminal"]
            assert episode["truncated"].tolist() == [False] * (length - 1) + [how != "terminal"]
            assert episode["reward"].tolist() == [k / 8 for k in range(place, place + length)]
            assert episode["infos.qpos"][:, 0].tolist() == [3 * k for k in range(place, place + length)]
            place += length
    assert sum("ended" in each for each in report.not_known) == any(how == "cut" for _, how in episodes)


def test_without_next_observations_the_last_one_is_not_invented(tmp_path):
    report = from_d4rl(dataset([(3, "terminal"), (2, "timeout"), (4, "cut")], following=False), tmp_path / "a")
    assert "the last observation of 3 episodes" in str(report)
    assert "how 1 episodes ended" in str(report)
    assert "whether infos.qpos belong" in str(report)
    with ReplayBuffer.from_folder(tmp_path / "a") as buffer:
        assert [len(episode["observation"]) for episode in buffer] == [3, 2, 4]
        assert not any(episode.has_final for episode in buffer)
        assert [episode.complete for episode in buffer] == [True, True, False]


def test_without_timeouts_the_limit_must_be_given(tmp_path):
    rows = dataset([(3, "timeout"), (3, "timeout"), (2, "terminal"), (3, "timeout"), (1, "cut")], timeouts=False)
    del rows["next_observations"]
    with pytest.raises(FieldError, match="pass max_episode_steps"):
        from_d4rl(rows, tmp_path / "a")
    report = from_d4rl(rows, tmp_path / "a", max_episode_steps=3)
    with ReplayBuffer.from_folder(tmp_path / "a") as buffer:
        assert buffer.episode_lens.tolist() == [3, 3, 2, 3, 1]
        assert [episode.complete for episode in buffer] == [True] * 4 + [False]
        assert [bool(episode["truncated"][-1]) for episode in buffer] == [True, True, False, True, True]
    assert report.num_steps == 12
    for wrong in (0, True, 2.0):
        with pytest.raises(FieldError, match="max_episode_steps"):
            from_d4rl(rows, tmp_path / "b", max_episode_steps=wrong)


def test_not_a_number_is_as_good_as_itself(tmp_path):
    rows = dataset([(4, "terminal")])
    rows["observations"][2], rows["next_observations"][1] = np.nan, np.nan
    assert from_d4rl(rows, tmp_path / "a").num_episodes == 1


@pytest.mark.parametrize("compressed", [False, True])
def test_an_npz_file(tmp_path, compressed):
    rows = dataset([(3, "terminal"), (2, "timeout")])
    (np.savez_compressed if compressed else np.savez)(tmp_path / "file.npz", **rows)
    from_d4rl(tmp_path / "file.npz", tmp_path / "a")
    from_d4rl(rows, tmp_path / "b")
    assert_same(tmp_path / "a", tmp_path / "b")


def test_an_npz_file_with_objects_is_refused(tmp_path):
    rows = dataset([(3, "terminal")]) | {"extra": np.array([print, 1, 2])}
    np.savez(tmp_path / "file.npz", **rows)
    with pytest.raises(CorruptBufferError, match="Python objects"):
        from_d4rl(tmp_path / "file.npz", tmp_path / "a")
    (tmp_path / "other.hdf5").write_bytes(b"something else")
    with pytest.raises(CorruptBufferError, match="begins with"):
        from_d4rl(tmp_path / "other.hdf5", tmp_path / "a")
    (tmp_path / "cut.npz").write_bytes((tmp_path / "file.npz").read_bytes()[:200])
    with pytest.raises(CorruptBufferError):
        from_d4rl(tmp_path / "cut.npz", tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_an_hdf5_file(tmp_path):
    h5py = pytest.importorskip("h5py")
    rows = dataset([(3, "terminal"), (2, "timeout"), (1, "cut")])
    with h5py.File(tmp_path / "file.hdf5", "w") as file:
        for name, array in rows.items():
            file[name] = array
        file["metadata/algorithm"] = np.bytes_(b"SAC")
    report = from_d4rl(tmp_path / "file.hdf5", tmp_path / "a")
    assert report.left_out == ("metadata/algorithm: it has no row for each transition",)
    from_d4rl(rows, tmp_path / "b")
    assert_same(tmp_path / "a", tmp_path / "b")


def test_an_hdf5_file_without_h5py(tmp_path, monkeypatch):
    (tmp_path / "file.hdf5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'gym-replay\[hdf5\]'"):
        from_d4rl(tmp_path / "file.hdf5", tmp_path / "a")


def test_nested_observations(tmp_path):
    rows = dataset([(3, "terminal")])
    rows["observations"] = {"state": rows["observations"], "a.b": rows["observations"][:, :1]}
    rows["next_observations"] = {"state": rows["next_observations"], "a.b": rows["next_observations"][:, :1]}
    from_d4rl(rows, tmp_path / "a")
    with ReplayBuffer.from_folder(tmp_path / "a") as buffer:
        assert set(buffer.fieldnames) >= {"observation.state", "observation.a%2Eb"}
        assert buffer.episode(0)["observation.a%2Eb"].shape == (4, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rewards": None}, "no 'rewards'"),
        ({"terminals": None}, "no 'terminals'"),
        ({"actions": None}, "no actions"),
        ({"actions": np.zeros(2)}, "expected 3 rows"),
        ({"timeouts": np.zeros(2)}, "expected 3 rows"),
        ({"next_observations/x": np.zeros(3)}, "expected those of"),
    ],
)
def test_what_is_missing_is_named(tmp_path, change, message):
    rows = {name: array for name, array in (dataset([(3, "terminal")]) | change).items() if array is not None}
    with pytest.raises(FieldError, match=message):
        from_d4rl(rows, tmp_path / "a")
    assert not any(tmp_path.iterdir())


def test_nothing_half_written_is_left(tmp_path, monkeypatch):
    empty = {name: array[:0] for name, array in dataset([(3, "terminal")]).items()}
    with pytest.raises(EmptyBufferError):
        from_d4rl(empty, tmp_path / "a")
    rows = dataset([(3, "terminal")] * 5)

    whole, stored = open_episode.store_whole, []

    def fail(*arguments, **options):
        stored.append(whole(*arguments, **options))
        if len(stored) == 3:
            raise builtins.OSError("no more")

    monkeypatch.setattr(open_episode, "store_whole", fail)
    with pytest.raises(OSError, match="no more"):
        from_d4rl(rows, tmp_path / "a")
    assert not any(tmp_path.iterdir())
    (tmp_path / "a").write_text("mine")
    with pytest.raises(NotABufferError):
        from_d4rl(rows, tmp_path / "a")
    assert (tmp_path / "a").read_text() == "mine"


def assert_same(one, other):
    with ReplayBuffer.from_folder(one) as a, ReplayBuffer.from_folder(other) as b:
        assert set(a.fieldnames) == set(b.fieldnames)
        for mine, theirs in zip(a, b, strict=True):
            for name in a.fieldnames:
                np.testing.assert_array_equal(mine[name], theirs[name])


# --- values of two dtypes ---


@settings(max_examples=30)
@given(
    kinds=st.tuples(*[st.sampled_from(["float16", "float32", "float64"])] * 2),
    lengths=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    seed=st.integers(0, 99),
)
def test_next_observations_of_another_float_dtype_are_the_same_observations(tmp_path_factory, kinds, lengths, seed):
    states = [np.random.default_rng(seed + k).normal(size=(length + 1, 2)) for k, length in enumerate(lengths)]
    rows = dataset([(length, "terminal") for length in lengths])
    rows["observations"] = np.concatenate([values[:-1] for values in states]).astype(kinds[0])
    rows["next_observations"] = np.concatenate([values[1:] for values in states]).astype(kinds[1])
    report = from_d4rl(rows, tmp_path_factory.mktemp("new") / "a")
    assert (report.num_episodes, report.doubtful) == (len(lengths), ())
    with ReplayBuffer.from_folder(report.folder) as buffer:
        assert buffer.metadata.fields["observation"].dtype == kinds[0]
        for episode, values in zip(buffer, states, strict=True):
            expected = np.concatenate([values[:-1].astype(kinds[0]), values[-1:].astype(kinds[1]).astype(kinds[0])])
            np.testing.assert_array_equal(episode["observation"], expected)


@pytest.mark.parametrize(
    ("own", "following", "message"),
    [
        (np.zeros((3, 2), np.uint8), np.zeros((3, 2), np.float32), "one of both was converted"),
        (np.zeros((3, 2), np.uint8), np.full((3, 2), 300), "300"),
        (np.zeros((3, 1)), np.zeros(3), r"expected shape \(3, 1\)"),
    ],
)
def test_next_observations_that_no_row_could_hold_are_refused(tmp_path, own, following, message):
    rows = dataset([(3, "terminal")]) | {"observations": own, "next_observations": following}
    with pytest.raises(FieldError, match=message):
        from_d4rl(rows, tmp_path / "a")
    assert not any(tmp_path.iterdir())


# --- contradictions ---


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"terminals": np.array([0, 0.5, 1])}, "0.5 at row 1"),
        ({"terminals": np.array([0, np.nan, 1])}, "nan at row 1"),
        ({"timeouts": np.array([0, -1, 0])}, "-1 at row 1"),
        ({"terminals": np.array(["False", "False", "True"])}, "got <U5"),
        ({"terminals": np.zeros((1, 3))}, "expected 3 rows"),
        ({"terminated": np.array([0, 1, 1])}, "'terminated' is another name for 'terminals'.* 1 rows, first in row 1"),
        ({"truncations": np.array([1, 0, 0])}, "'truncations' is another name for 'timeouts'"),
        ({"masks": np.array([1, 1, 1.0])}, "'masks' and 'terminals' contradict"),
        ({"valids": np.array([1, 1, 0.0])}, "compact layout"),
        ({"rewards": np.float64(1)}, "no 'rewards', one for each"),
    ],
)
def test_what_contradicts_itself_is_refused(tmp_path, change, message):
    with pytest.raises(FieldError, match=message):
        from_d4rl(dataset([(3, "terminal")]) | change, tmp_path / "a")
    assert not any(tmp_path.iterdir())


def test_what_is_hardly_meant_is_reported(tmp_path):
    rows = dataset([(3, "terminal"), (2, "cut"), (2, "timeout")])
    rows["rewards"][0], rows["actions"][6] = np.nan, np.inf
    rows["timeouts"][2] = True
    report = from_d4rl(rows, tmp_path / "a")
    assert set(report.doubtful) == {
        "1 next observations are not those of the next row: an episode is cut after each",
        "reward: NaN or infinite in 1 episodes",
        "action: NaN or infinite in 1 episodes",
        "1 episodes are both terminated and truncated; loaders take the first",
    }
    assert "doubtful: reward: NaN" in str(report)
    with ReplayBuffer.from_folder(tmp_path / "a") as buffer:  # as it was
        assert np.isnan(buffer.episode(0)["reward"][0])
        assert buffer.episode(0)["truncated"].tolist() == buffer.episode(0)["terminated"].tolist() == [0, 0, 1]


# --- axes of one ---


def test_one_number_a_step_is_a_single_number(tmp_path):
    rows = dataset([(3, "terminal"), (2, "timeout")])
    columns = {name: rows[name][:, None] for name in ("rewards", "terminals", "timeouts")}
    columns["actions"] = np.arange(5)[:, None]
    from_d4rl(rows | columns, tmp_path / "a")
    with ReplayBuffer.from_folder(tmp_path / "a") as buffer:
        shapes = {name: field.shape for name, field in buffer.metadata.fields.items()}
        assert [shapes[name] for name in ("reward", "terminated", "truncated", "action")] == [()] * 4
        batch = next(iter(buffer.dataloader(batch_size=4, n_steps=2, discount=0.5)))
        value = np.arange(4.0)
        assert (batch["n_step_return"].numpy() + batch["n_step_discount"].numpy() * value).shape == (4,)
        assert np.concatenate([episode["action"] for episode in buffer]).tolist() == [0, 1, 2, 3, 4]
    from_d4rl(rows | {"rewards": np.ones((5, 3))}, tmp_path / "b")  # neither vectors nor actions of a Box
    with ReplayBuffer.from_folder(tmp_path / "b") as buffer:
        assert buffer.metadata.fields["reward"].shape == (3,)
        assert buffer.metadata.fields["action"].shape == (1,)


# --- columns that want one name ---


def test_flags_under_the_names_of_gymnasium(tmp_path):
    rows = dataset([(3, "terminal"), (2, "timeout")])
    from_d4rl(rows, tmp_path / "a")
    renamed = {{"terminals": "terminated", "timeouts": "truncated"}.get(name, name): a for name, a in rows.items()}
    assert from_d4rl(renamed, tmp_path / "b").left_out == ()
    assert_same(tmp_path / "a", tmp_path / "b")
    both = from_d4rl({**rows, **renamed}, tmp_path / "c")
    assert both.left_out == ("terminated: it is 'terminals' once more", "truncated: it is 'timeouts' once more")
    assert_same(tmp_path / "a", tmp_path / "c")


@pytest.mark.parametrize("taken", ["observation", "action", "reward", "reward/x", "observation/x"])
def test_a_column_whose_name_is_taken_is_reported(tmp_path, taken):
    rows = dataset([(3, "terminal")])
    report = from_d4rl(rows | {taken: np.full(3, 7.0)}, tmp_path / "a")
    (line,) = report.left_out
    assert line.startswith(f"{taken}: the name of the field")
    from_d4rl(rows, tmp_path / "b")
    assert_same(tmp_path / "a", tmp_path / "b")


def test_two_columns_of_one_name_are_refused(tmp_path):
    rows = dataset([(3, "terminal")])
    with pytest.raises(FieldError, match="'infos/x' twice"):
        from_d4rl(rows | {"infos": {"x": np.zeros(3)}, "infos/x": np.ones(3)}, tmp_path / "a")
    with pytest.raises(FieldError, match="differ in case only"):
        from_d4rl(rows | {"extra": np.zeros(3), "Extra": np.ones(3)}, tmp_path / "a")
    assert not any(tmp_path.iterdir())


def test_what_no_field_holds_is_reported(tmp_path):
    rows = dataset([(3, "terminal")]) | {"c": np.zeros(3, complex), "l": np.zeros(3, np.longdouble), "s": ["a"] * 3}
    report = from_d4rl(rows, tmp_path / "a")
    assert [line.partition(":")[0] for line in report.left_out] == ["c", "l", "s"]


# --- sizes that a file claims ---


def _claims(file):
    file.create_dataset("rewards", (10**13,), "f8", chunks=(100,))


def _claims_together(file):
    for number in range(4):
        file.create_dataset(f"part{number}", (10**9,), "f8", chunks=(100,))


def _lies_elsewhere(file):
    file.create_dataset("rewards", (10,), "u1", external=[("/etc/passwd", 0, 10)])


def _is_virtual(file):
    import h5py

    layout = h5py.VirtualLayout((10,), "f8")
    layout[:] = h5py.VirtualSource("other.hdf5", "rewards", (10,))
    file.create_virtual_dataset("rewards", layout)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (_claims, "claims to hold 80000000000000 bytes"),
        (_claims_together, "claims to hold 32000000000 bytes"),
        (_lies_elsewhere, "values from other files"),
        (_is_virtual, "values from other files"),
    ],
)
def test_an_hdf5_file_that_is_less_than_it_claims_is_refused(tmp_path, write, message):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "file.hdf5", "w") as file:
        write(file)
    with pytest.raises(CorruptBufferError, match=message):
        from_d4rl(tmp_path / "file.hdf5", tmp_path / "a")


def test_links_of_an_hdf5_file_are_reported_and_not_followed(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "other.hdf5", "w") as file:
        file["secret"] = np.ones(3)
    with h5py.File(tmp_path / "file.hdf5", "w") as file:
        for name, array in dataset([(3, "terminal")]).items():
            file[name] = array
        file["inside"], file["outside"] = h5py.SoftLink("/rewards"), h5py.ExternalLink("other.hdf5", "/secret")
        file["infos/above"] = file["/"]
        file["again"] = file["rewards"]  # another name of it
    report = from_d4rl(tmp_path / "file.hdf5", tmp_path / "a")
    assert set(report.left_out) == {f"{name}: it is a link" for name in ("inside", "outside", "infos/above")}
    with ReplayBuffer.from_folder(tmp_path / "a") as buffer:
        assert buffer.episode(0)["again"].tolist() == buffer.episode(0)["reward"].tolist()


def test_an_npz_file_that_is_less_than_it_claims_is_refused(tmp_path):
    path = tmp_path / "file.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_BZIP2) as archive:  # which packs zeros a million times
        archive.writestr("rewards.npy", bytes(1 << 25))
    assert path.stat().st_size < 1000
    with pytest.raises(CorruptBufferError, match="claims to hold 33554432 bytes"):
        from_d4rl(path, tmp_path / "a")
    header = b"\x93NUMPY\x01\x00v\x00" + b"{'descr': '<f8', 'fortran_order': False, 'shape': (10000000000000,), }"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("rewards.npy", header.ljust(127) + b"\n" + bytes(80))
    with pytest.raises(CorruptBufferError):
        from_d4rl(path, tmp_path / "a")
    with zipfile.ZipFile(path, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(2):
            archive.write(_saved(tmp_path), "rewards.npy")
    with pytest.raises(CorruptBufferError, match="'rewards' twice"):
        from_d4rl(path, tmp_path / "a")


def _saved(folder):
    np.save(folder / "array.npy", np.zeros(3))
    return folder / "array.npy"
