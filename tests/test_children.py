"""The suite under a shell that ignores Ctrl-C, and what tests leave behind."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

TESTS = Path(__file__).parent

LEAVING = """
import subprocess, sys
import pytest

def test_that_leaves_a_child_and_a_grandchild():
    child = "import subprocess, sys, time; print(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']).pid, flush=True); time.sleep(600)"
    process = subprocess.Popen([sys.executable, "-c", child], stdout=subprocess.PIPE, text=True)
    open({marks!r}, "w").write(f"{{process.pid}} {{process.stdout.readline()}}")
    raise AssertionError("as a test fails")
"""  # noqa: E501


def is_running(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
def test_what_a_failing_test_leaves_is_killed(tmp_path):
    (tmp_path / "conftest.py").write_text((TESTS / "conftest.py").read_text())
    (tmp_path / "test_leaving.py").write_text(LEAVING.format(marks=str(tmp_path / "pids")))
    done = run_pytest(f"exec {sys.executable} -m pytest -q -p no:cacheprovider -c /dev/null --rootdir . .", tmp_path)
    assert "as a test fails" in done.stdout
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert len(pids) == 2
    until = time.monotonic() + 300
    while any(map(is_running, pids)) and time.monotonic() < until:
        time.sleep(0.01)
    assert not any(map(is_running, pids))


def test_under_a_shell_that_ignores_ctrl_c():
    chosen = "tests/collecting/test_stopping.py::test_ctrl_c_ends_after_the_step[num_envs=1]"
    done = run_pytest(f"trap '' INT; exec {sys.executable} -m pytest -q -p no:cacheprovider {chosen!r}", TESTS.parent)
    assert "1 passed" in done.stdout, done.stdout


def run_pytest(command, folder):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    return subprocess.run(["sh", "-c", command], capture_output=True, text=True, cwd=folder, env=environment)
