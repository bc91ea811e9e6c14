"""What is learned from recorded data: the examples of offline learning run, and a broken loader would show in them."""

import sys
from contextlib import suppress

import numpy as np
import pytest
import torch

from examples.offline_rl import pieces, results
from examples.offline_rl.__main__ import main


@pytest.fixture(scope="module")
def buffer(tmp_path_factory):
    with pieces.record(tmp_path_factory.mktemp("pieces") / "buffer") as recorded:
        yield recorded


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("method", pieces.METHODS)
def test_values_are_put_together_across_the_ends_of_episodes(buffer, method):
    assert pieces.reached(buffer, method) >= pieces.BAR


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("defect", pieces.DEFECTS)
def test_what_a_broken_loader_would_deliver_is_not_enough(buffer, defect, tmp_path):
    with pieces.with_defect(buffer, defect, tmp_path / "wrong") as wrong:
        assert pieces.reached(wrong, "iql") < pieces.BAR


@pytest.mark.filterwarnings("default", "error::UserWarning")
@pytest.mark.usefixtures("one_thread")
def test_all_methods_on_all_recordings(tmp_path, monkeypatch, capsys):
    pytest.importorskip("stable_baselines3")

    def run():
        with suppress(SystemExit):  # whether enough was learned in so few steps
            main()
        return capsys.readouterr().out

    sizes = ["--short", "--sac-steps", 1010, "--gradient-steps", 10, "--episodes", 2, "--folder", tmp_path]
    monkeypatch.setattr(sys, "argv", ["offline_rl", *map(str, sizes)])
    printed = run()
    runs = results.load(tmp_path / "results")
    found = {(run.dataset, run.method) for run in runs}
    assert found == {(data, of) for data in ("replay", "medium", "mixed") for of in ("behaviour", *results.METHODS)}
    assert all(-2000 < run.mean <= 0 and np.isfinite(run.score) for run in runs)
    table = "\n".join(results.lines(runs))
    assert table in printed
    assert "12 runs" in printed
    again = run()
    assert "0 runs" in again
    assert table in again


RUNS = [
    results.Run("hopper", "replay", results.BEHAVIOUR, 0, 0, 0.0, 900.0, 30.0),
    *(results.Run("hopper", "replay", "iql", seed, 10, 1.0, 1500.0, score) for seed, score in enumerate((40, 50, 60))),
    results.Run("hopper", "replay", "bc", 0, 10, 1.0, 600.0, 20.0),
    results.Run("pendulum", "medium", results.BEHAVIOUR, 0, 0, 0.0, -300.0, 80.0),
]


def test_the_table_has_means_and_spreads_over_seeds():
    assert list(results.lines(RUNS))[2:] == [
        "| pendulum medium | 80 |  |  |  |  |",
        "| hopper replay | 30 | 20 (1) |  | 50 ± 8 |  |",
    ]


def test_runs_are_read_as_they_were_written(tmp_path):
    for run in RUNS:
        run.save(tmp_path)
    assert sorted(results.load(tmp_path), key=RUNS.index) == RUNS


def test_the_plot(tmp_path):
    pytest.importorskip("matplotlib")
    results.plot(RUNS, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
