"""Data sets in D4RL's layout, from files and from memory."""

import builtins

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

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


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
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
    from gym_replay.buffer import open_episode

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
