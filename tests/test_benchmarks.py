"""The benchmarks run, in a tiny size, and report what they measured."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import scale
from benchmarks.frames_peers import LOSSLESS, LOSSY
from benchmarks.peers import PACKAGES, Package, Use, installed
from benchmarks.report import OURS, Report, Table, Target
from benchmarks.suite import Suite

ROOT = Path(__file__).parents[1]


def test_all_of_them_in_a_tiny_size(tmp_path):
    command = [sys.executable, "-m", "benchmarks", "--smoke", "--out", str(tmp_path / "results")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "results" / "benchmarks.json").read_text())

    tables = found["tables"]
    counts = {"record": 4, "record_vector": 1, "load": 4, "learning": 2, "open": 2, "disk": 2}
    assert [table["benchmark"] for table in tables] == [name for name, count in counts.items() for _ in range(count)]
    for table in tables:
        contenders = table["contenders"]
        assert len(contenders) >= 2
        assert {OURS, table["baseline"]} <= set(contenders)
        assert table["title"] in done.stdout
        for measured in contenders.values():
            assert len(measured["measured"]) == (1 if table["benchmark"] == "disk" else 2)
            assert measured["ratio"]["lowest"] <= measured["ratio"]["median"] <= measured["ratio"]["highest"]
            if "added" not in table["unit"]:  # a difference of two loops, of a size that measures nothing
                assert measured["ratio"]["lowest"] > 0
        assert contenders[table["baseline"]]["ratio"]["median"] == 1

    there = {name.split(",")[0] for table in tables for name in table["contenders"]}
    of_frames = (
        {use.package for use in (*LOSSLESS.values(), *LOSSY.values())} - {"torchrl"} | {"imagecodecs"} | {"tianshou"}
    )
    for name, package in PACKAGES.items():
        if name in of_frames:  # a benchmark of its own
            continue
        line = [line for line in found["left_out"] if line.startswith(f"{name}: left out, not installed")]
        if package.missing() is None:
            assert name.split(",")[0] in there
            assert not line
        else:
            assert package.requirement in line[0]
            assert line[0] in done.stdout

    assert found["versions"]["numpy"] in done.stdout
    assert found["machine"]["cores"] >= 1
    assert found["command"].endswith(f"-m benchmarks --smoke --out {tmp_path / 'results'}")


def test_some_of_them_by_name(run_here, capsys):
    printed = run_here("benchmarks", "disk", "--smoke")
    assert "On the disk: CartPole" in printed
    assert "Recording alone" not in printed
    with pytest.raises(AssertionError, match="2"):
        run_here("benchmarks", "disc")
    assert "no benchmark is called disc" in capsys.readouterr().err


def test_frames(tmp_path, run_here):
    pytest.importorskip("numcodecs")
    run_here("benchmarks.frames", "--smoke", "--out", tmp_path)
    tables = json.loads((tmp_path / "benchmarks.json").read_text())["tables"]
    assert [table["unit"] for table in tables] == ["frames/s", "frames/s", "us added to a step"]
    raw = f"{OURS}, raw"
    for table in tables:
        assert {OURS, raw, f"{OURS}, lz4"} <= set(table["contenders"])
    assert tables[0]["extras"]["times smaller"][raw] == pytest.approx([1], rel=0.01)
    assert tables[0]["extras"]["times smaller"][OURS][0] > 1


def test_sample(tmp_path, run_here):
    run_here("benchmarks.sample", "--smoke", "--out", tmp_path)
    tables = json.loads((tmp_path / "benchmarks.json").read_text())["tables"]
    kinds = {OURS, f"{OURS}, open episodes too", f"{OURS}, by priority", f"{OURS}, n_steps=3"}
    assert [kinds <= set(table["contenders"]) for table in tables] == [True, True]


def test_scale(monkeypatch, capfd):
    monkeypatch.setattr(sys, "argv", ["scale", "--episodes", "3000", "--shards", "3"])
    with pytest.raises(SystemExit, match=r"^0$"):
        scale.main()  # whose process looks for it in its own module
    printed = capfd.readouterr().out
    assert "300000 steps in 3 folders" in printed
    assert "opened 3000 episodes, 300000 steps" in printed
    assert "every hundredth: loader" in printed


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("remote", ["--episodes", "1", "--latency", "0"], "the same epoch from the folder"),
        ("remote_windows", ["--episodes", "1", "--seconds", "0", "--latency", "0"], "gym_replay, disk: "),
    ],
)
def test_reading_from_an_address(name, options, expected, run_here):
    pytest.importorskip("numcodecs")
    assert expected in run_here(f"benchmarks.{name}", *options)


TABLE = Table(
    "Work",
    "us",
    "floor",
    {"floor": [1.0, 2.0, 4.0], OURS: [2.0, 3.0, 8.0], "peer": [20.0, 60.0, 80.0]},
    targets=[
        Target(OURS, 1.6, of="floor"),
        Target(OURS, 3.0),
        Target("peer", 10, of=OURS, at_least=True),
        Target("peer", 11, of=OURS, at_least=True),
        Target("absent", 1.0),
    ],
    extras={"closing": {OURS: [0.5, 0.25, 0.125]}},
)


def test_ratios_are_between_runs_of_one_round():
    assert TABLE.ratios(OURS) == [2.0, 1.5, 2.0]
    assert TABLE.ratio("peer", OURS) == 10.0  # not the ratio of the medians, 20


def test_targets_are_met_or_missed():
    lines = TABLE.lines()
    assert lines[-4:] == [
        "target 1.6: missed, 2 (gym_replay, at most, x of floor)",
        "target 3: met, 3 (gym_replay, at most, us)",
        "target 10: met, 10 (peer, at least, x of gym_replay)",
        "target 11: missed, 10 (peer, at least, x of gym_replay)",
    ]
    assert [target["met"] for target in TABLE.as_json()["targets"]] == [False, True, True, False]


def test_ratios_stand_first():
    head, _, ours, _ = TABLE.lines()[1:5]
    assert head.split() == ["x", "of", "floor", "x", "of", "gym_replay", "us", "closing"]
    assert ours.split() == [
        "gym_replay",
        "2.00",
        "(1.50",
        "..",
        "2.00)",
        "1.00",
        "3.00",
        "(2.00",
        "..",
        "8.00)",
        "0.25",
    ]


def test_a_note_is_shown_once():
    shown = []
    report = Report(shown.append)
    for title in ("first", "second"):
        report.add("some", Table(title, "us", "floor", {"floor": [1.0]}, notes=["peer (1.0): its settings"]))
    assert shown.count("peer (1.0): its settings") == 1
    assert all(table.notes == ["peer (1.0): its settings"] for _, table in report.tables)


def test_a_peer_that_is_not_installed_is_a_line(monkeypatch, tmp_path):
    monkeypatch.setitem(PACKAGES, "Absent", Package("absent", "absent[all]", ("gym_replay", "no_such_package_at_all")))
    uses = {"Absent": Use("Absent", "its settings", max), "Absent, whole": Use("Absent", "others", min)}
    found, notes, left_out = installed(uses)
    assert found == {}
    assert notes == left_out
    (line,) = left_out
    assert line.startswith("Absent: left out, not installed (No module named 'no_such_package_at_all')")
    assert line.endswith("pip install 'absent[all]'")
    report = Report(print)
    Suite("some", tmp_path, report).peers(uses)
    assert report.as_json()["left_out"] == [line]


def test_the_report_is_kept_as_json(tmp_path):
    report = Report(print)
    report.add("some", TABLE)
    report.save(tmp_path)
    assert json.loads((tmp_path / "benchmarks.json").read_text())["tables"][0]["contenders"]["peer"]["median"] == 60.0
