"""A short round of hostile folders; ``python -m tests.faults --rounds 300`` runs the long one."""

import sys

import pytest
from faults.attacks import catalogue, choose
from faults.hostile import causes, run_cases
from faults.victims import build

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="needs fork, /proc and a limit on address space"),
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
]

COUNT = 200


@pytest.fixture(scope="module")
def victims(tmp_path_factory):
    return build(tmp_path_factory.mktemp("victims"))


@pytest.fixture(scope="module")
def results(victims):
    return run_cases(choose(catalogue(victims), COUNT, 1, slow=False), victims)


def test_sound_buffers_stay_sound(victims, results):
    sound = [result for result in results if result.case.kind == "nothing"]
    assert len(sound) == len(victims)
    assert all(result.outcome == "opened" and not result.problems for result in sound), causes(sound)


def test_damage_is_refused_or_does_no_harm(results):
    wrong = [result for result in results if result.problems]
    assert not wrong, f"{len(wrong)} of {len(results)} cases\n{causes(wrong)}"
    assert {result.outcome for result in results} == {"opened", "refused", "skipped"}


def test_every_kind_is_tried(victims, results):
    assert {result.case.kind for result in results} == set(catalogue(victims))
    assert sum(result.outcome == "skipped" for result in results) < COUNT / 20
