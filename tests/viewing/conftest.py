"""One browser, and one process that serves, for all tests of this folder."""

import pytest
from viewing_helpers import Browser, Served, find_chromium


@pytest.fixture(scope="session")
def served():
    pytest.importorskip("nicegui", reason="the extra `view` is not installed")
    process = Served()
    yield process
    process.stop()


@pytest.fixture(scope="session")
def started():
    find_chromium()
    browser = Browser()
    yield browser
    browser.driver.quit()


@pytest.fixture
def browser(started):
    """The browser, 1440 pixels wide and light; whatever it complains of fails the test."""
    started.size(1440, 900)
    yield started
    assert started.faults() == []
