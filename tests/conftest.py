"""Settings of all tests."""

from hypothesis import settings

settings.register_profile("suite", deadline=None)  # how long an example takes says nothing about what it asserts
settings.load_profile("suite")
