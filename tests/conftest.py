"""Settings of all tests."""

from unittest import mock

import pytest
from hypothesis import HealthCheck, settings

# How long an example takes, or to make one, says nothing about what it asserts.
settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")


@pytest.fixture
def rules():
    """What a test registers is forgotten after it."""
    from gym_replay.spaces.custom import RULES
    from gym_replay.spaces.node import NODES

    with mock.patch.dict(RULES), mock.patch.dict(NODES):
        yield
