"""Data sets in OGBench's layout."""

import numpy as np
import pytest
from interop_helpers import by_hand

from gym_replay import EmptyBufferError, FieldError, ReplayBuffer, from_ogbench, to_ogbench

LENGTHS = (3, 1, 4)


def rows_of_a_file():
    """As an ``.npz`` file has them: a row for each observation, and positions of the simulator beside them."""
    rows = {name: [] for name in ("observations", "actions", "terminals", "qpos")}
    for number, length in enumerate(LENGTHS):
        steps = 10.0 * number + np.arange(length + 1)
        rows["observations"].append(np.stack([steps, -steps], 1).astype(np.float32))
        rows["actions"].append(np.float32(steps[:, None]))
        rows["terminals"].append(np.float32(np.arange(length + 1) == length))
        rows["qpos"].append(steps[:, None] + 0.5)
    return {name: np.concatenate(values) for name, values in rows.items()}


@pytest.mark.parametrize("kind", ["file", "arrays"])
def test_a_file(tmp_path, kind):
    rows = rows_of_a_file()
    np.savez(tmp_path / "a.npz", **rows)
    report = from_ogbench(tmp_path / "a.npz" if kind == "file" else rows, tmp_path / "b")
    assert (report.num_episodes, report.num_steps) == (3, sum(LENGTHS))
    assert report.not_known == (
        "rewards: there are none",
        "whether trajectories terminated or were truncated: there are no masks",
        "how 3 episodes ended: they are stored as cut (Episode.complete is False)",
    )
    with ReplayBuffer.from_folder(tmp_path / "b") as buffer:
        assert buffer.fieldnames == ("observation", "action", "qpos", "terminated", "truncated")
        for number, episode in enumerate(buffer):
            steps = 10 * number + np.arange(LENGTHS[number] + 1)
            assert episode.has_final
            assert episode["observation"][:, 0].tolist() == steps.tolist()
            assert episode["qpos"][:, 0].tolist() == (steps + 0.5).tolist()
            assert episode["action"][:, 0].tolist() == steps[:-1].tolist()


@pytest.mark.parametrize("compact", [False, True])
def test_what_was_exported_comes_back(tmp_path, compact):
    with by_hand(tmp_path / "a", [3, 1, 5], [True] * 3) as expected:
        report = from_ogbench(to_ogbench(expected, compact=compact, dtype=None), tmp_path / "b")
        assert report.not_known == ()
        with ReplayBuffer.from_folder(tmp_path / "b") as buffer:
            for mine, theirs in zip(buffer, expected, strict=True):
                assert mine.has_final
                for name in expected.fieldnames:
                    np.testing.assert_array_equal(mine[name], theirs[name])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"terminals": None}, "has no 'terminals'"),
        ({"actions": np.zeros((3, 1))}, "'actions': expected 11 rows"),
        ({"terminals": np.full(11, 2)}, "got 2"),
        ({"next_observations": np.zeros((11, 3))}, "expected shape"),
    ],
)
def test_what_does_not_fit(tmp_path, change, message):
    rows = {name: value for name, value in {**rows_of_a_file(), **change}.items() if value is not None}
    with pytest.raises(FieldError, match=message):
        from_ogbench(rows, tmp_path / "b")
    assert not any(tmp_path.iterdir())


def test_trajectories_of_one_observation(tmp_path):
    rows = {"observations": np.zeros((2, 1)), "actions": np.zeros((2, 1)), "terminals": np.ones(2)}
    with pytest.raises(EmptyBufferError):
        from_ogbench(rows, tmp_path / "b")
    assert not any(tmp_path.iterdir())
