"""Settings of all tests."""

from unittest import mock

import pytest
from hypothesis import settings

settings.register_profile("suite", deadline=None)  # how long an example takes says nothing about what it asserts
settings.load_profile("suite")


@pytest.fixture
def rules():
    """What a test registers is forgotten after it."""
    from gym_replay.spaces.node import RULES

    with mock.patch.dict(RULES):
        yield
