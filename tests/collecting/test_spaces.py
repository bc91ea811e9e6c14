"""Environments of all kinds of spaces are played the same, one or several at once."""

import numpy as np
import pytest
from collecting_helpers import facts_of
from wrappers.vector.pairs import SPACES, UNSHARED, Varied

from gym_replay import collect

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # AsyncVectorEnv, since Python 3.12


class Valued(Varied):
    """Its rewards depend on the values of actions only: some come as NumPy scalars or as arrays without axes."""

    def step(self, action):
        return super().step(_plain(action))


def _plain(value):
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(_plain(item) for item in value)
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value


EVERY = {**SPACES, **UNSHARED}


@pytest.mark.parametrize("observation", SPACES)
@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_observations(tmp_path, observation, vectorization):
    _compare(tmp_path, SPACES[observation], SPACES["box"], vectorization)


@pytest.mark.parametrize("observation", UNSHARED)
def test_observations_that_cannot_be_shared(tmp_path, observation):
    _compare(tmp_path, UNSHARED[observation], SPACES["box"], "sync")


@pytest.mark.parametrize("action", EVERY)
def test_actions(tmp_path, action):
    _compare(tmp_path, SPACES["discrete"], EVERY[action], "sync")


def _compare(tmp_path, observation_space, action_space, vectorization):
    def make():
        return Valued(observation_space, action_space)

    options = {"episodes": 7, "seed": 5, "progress": False}
    alone = collect(make, tmp_path / "alone", **options)
    together = collect(make, tmp_path / "together", num_envs=3, vectorization=vectorization, **options)
    assert facts_of(together) == facts_of(alone)
