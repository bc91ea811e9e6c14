"""A few pulled plugs on ext4 images; ``python -m tests.faults`` pulls more."""

import pytest
from faults.ext4 import MOUNTS, trials, why_no_ext4

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@pytest.fixture(autouse=True)
def _images():
    if reason := why_no_ext4():
        pytest.skip(reason)


@pytest.mark.parametrize("name", ["new folder", "changes"])
@pytest.mark.parametrize("options", MOUNTS)
def test_what_was_promised_is_there_after_a_pulled_plug(name, options):
    wrong = [found for found in trials(name, options, 2, 1) if found]
    assert not wrong, wrong[0]
