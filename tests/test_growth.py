"""The measurements of growth, with little data: that they run, and what they leave behind."""

import importlib.util
import json
import mmap
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HAS_PLOTS = importlib.util.find_spec("matplotlib") is not None

GROWN = {
    "record": {
        *("step, RecordToBuffer", "last step, RecordToBuffer", "reset, RecordToBuffer"),
        *("step, environment alone", "longest last step"),
    },
    "load": {"gym_replay", "numpy.take"},
    "open": {"opened", "first batch"},
    "memory": {"the recorder", "a reader, opened", "a reader, 3 batches later"},
}
LOADED = {"gym_replay", "numpy.take"}
WORKED = {"nothing but loading", "1 ms of training elsewhere", "a transform of 1 ms"}
PAGES = {"pages of 4 KB", "pages of 2 MB"} if hasattr(mmap, "MADV_HUGEPAGE") else {"pages"}
CURVES = {
    "steps": (GROWN, [1000, 3000]),
    "episodes": (GROWN, [30, 60]),
    "rows": ({"record": {"environment alone", "one pwrite a step", "RecordToBuffer"}, "load": LOADED}, [4, 4096]),
    "batches": ({"batch": LOADED, "transition": LOADED}, [1, 64]),
    "workers": ({"frames": WORKED, "vectors": WORKED}, [0, 1]),
    "caches": ({"take": PAGES}, [1 << 16, 1 << 20]),
}


def _run(module, *arguments, code=0):
    command = [sys.executable, "-m", f"benchmarks.{module}", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == code, done.stderr
    return done


@pytest.fixture(scope="module")
def grown(tmp_path_factory):
    """All studies, in a file that holds another one already; the folder, and what was printed."""
    folder = tmp_path_factory.mktemp("grown")
    (folder / "growth.json").write_text('{"another": {"title": "kept"}}')
    plots = [] if HAS_PLOTS else ["--no-plots"]
    done = _run("growth", "--small", "--out", folder, "--folder", folder, *plots)
    return folder, json.loads((folder / "growth.json").read_text()), done.stdout


@pytest.mark.parametrize("name", CURVES)
def test_each_study_has_all_its_curves_with_all_their_points(grown, name):
    folder, studies, printed = grown
    study, (panels, sizes) = studies[name], CURVES[name]
    assert {key: set(panel["curves"]) for key, panel in study["panels"].items()} == panels
    for panel in study["panels"].values():
        assert panel["title"] in printed
        for points in panel["curves"].values():
            assert sorted(map(float, points)) == sizes
            assert all(values and min(values) > 0 for values in points.values())
    assert study["measured"]["versions"]["numpy"]
    assert study["measured"]["machine"]["cores"] >= 1
    plot = folder / f"growth_{name}.png"
    assert plot.exists() == HAS_PLOTS
    if HAS_PLOTS:
        assert plot.read_bytes().startswith(b"\x89PNG")


def test_growth_leaves_other_studies_in_the_file_and_no_buffers(grown):
    folder, studies, _ = grown
    assert list(studies) == ["another", *CURVES]
    assert studies["another"] == {"title": "kept"}
    assert {path.suffix for path in folder.iterdir()} <= {".json", ".png"}


@pytest.mark.skipif(not HAS_PLOTS, reason="needs matplotlib")
def test_plots_are_drawn_again_from_what_was_measured(grown, tmp_path):
    folder, studies, printed = grown
    (tmp_path / "growth.json").write_text(json.dumps(studies))
    done = _run("growth", "rows", "--redraw", "--out", tmp_path)
    assert done.stdout.strip() in printed
    assert (tmp_path / "growth_rows.png").read_bytes() == (folder / "growth_rows.png").read_bytes()
    assert json.loads((tmp_path / "growth.json").read_text()) == studies


def test_plots_without_matplotlib_are_an_error_before_anything_is_measured(tmp_path):
    code = "import sys; sys.modules['matplotlib'] = None; sys.argv[1:] = ['--out', sys.argv[1]]\n"
    code += "from benchmarks.growth import main; main()"
    command = [sys.executable, "-c", code, str(tmp_path / "out")]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode != 0
    assert 'pip install -c constraints.txt -e ".[bench]"' in done.stderr
    assert not (tmp_path / "out").exists()


def test_an_unknown_study_is_named(tmp_path):
    assert "nonsense" in _run("growth", "nonsense", "--no-plots", "--out", tmp_path, code=2).stderr


def test_the_page_about_performance_shows_plots_that_are_there():
    page = ROOT / "docs" / "performance.md"
    plots = re.findall(r"!\[.*?\]\((.*?)\)", page.read_text())
    assert {Path(plot).name for plot in plots} == {f"growth_{name}.png" for name in CURVES}
    for plot in plots:
        assert 1000 < (page.parent / plot).stat().st_size < 80_000, plot
