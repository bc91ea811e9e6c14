"""A short round of kills; ``python -m tests.faults --rounds 300`` runs the long one."""

import sys

import pytest
from faults.kill import SCENARIOS, VARIANTS, kill_at_call, rounds

pytestmark = [
    pytest.mark.skipif(not hasattr(sys, "platform") or sys.platform == "win32", reason="needs fork and SIGKILL"),
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
]


@pytest.mark.parametrize("name", SCENARIOS)
@pytest.mark.parametrize("calls", [False, True], ids=["time", "call"])
def test_committed_episodes_survive(name, calls):
    survived, failures = rounds(name, 6, 1, calls=calls)
    assert survived == 6, failures


@pytest.mark.parametrize("name", ["recorder", "vector recorder", "update"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_call_of_a_beginning(tmp_path, name, variant):
    for at in range(1, 130, 9):
        kill_at_call(name, tmp_path / str(at), at, variant)
