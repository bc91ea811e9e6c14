"""One vector recorder has the same episodes as n single ones, bit for bit."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from hypothesis import given, settings
from hypothesis import strategies as st
from wrappers.scripted import MEMORY

from .pairs import SPACES, UNSHARED, Play, Varied, assert_same, play_both

SIDE = settings(derandomize=True)
MODES = list(AutoresetMode)


@st.composite
def moves_of(draw, num_envs, most=30):
    """Steps, and now and then a reset of all, seeded or not, or of some."""
    seeds = st.one_of(st.integers(0, 99), st.lists(st.integers(0, 99), min_size=num_envs, max_size=num_envs))
    mask = st.lists(st.booleans(), min_size=num_envs, max_size=num_envs).map(np.array)
    resets = st.one_of(seeds.map(lambda seed: (seed,)), mask, st.just(()))
    moves = draw(st.lists(st.one_of(st.none(), st.none(), st.none(), st.none(), st.none(), resets), max_size=most))
    steps = draw(st.integers(0, most))
    return [*moves, *[None] * steps]


@st.composite
def plays(draw, *, asynchronous=False):
    num_envs = draw(st.integers(1, 3 if asynchronous else 8))
    mode = draw(st.sampled_from(MODES))
    shared = asynchronous and draw(st.booleans())
    catalogue = SPACES if asynchronous else {**SPACES, **UNSHARED}
    if shared:
        catalogue = {name: space for name, space in catalogue.items() if "text" not in name}  # Gymnasium loses strings
    observation = catalogue[draw(st.sampled_from(sorted(catalogue)))]
    action = {**SPACES}[draw(st.sampled_from(["box", "discrete", "dict", "tuple", "text"]))]
    longest = draw(st.sampled_from([1, 2, 5, 40]))
    reuses = draw(st.booleans()) and mode is not AutoresetMode.SAME_STEP  # it overwrites last observations there
    infos = draw(st.booleans())
    options = {"copy": draw(st.booleans())}
    if asynchronous:
        options["shared_memory"] = shared
    if isinstance(observation, (spaces.Box, spaces.Discrete)):
        options["observation_mode"] = draw(st.sampled_from(["same", "different"]))
    moves = draw(moves_of(num_envs))
    if asynchronous and not shared and mode is AutoresetMode.NEXT_STEP:
        moves = [None for move in moves if move is None]  # Gymnasium resets twice there
    on_incomplete = draw(st.sampled_from(["keep", "keep", "discard"]))

    def make(i):
        return Varied(observation, action, longest=1 + (longest - 1) * (i % 3), reuses=reuses, infos=infos)

    recorder = {"on_incomplete": on_incomplete, "record_info": infos}
    return Play(make, num_envs, mode, moves, asynchronous, options, recorder)


def run(play):
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        recorded, singles = play_both(play, Path(folder))
        assert_same(recorded, singles, generators=not play.asynchronous and play.mode is not AutoresetMode.SAME_STEP)


@settings(SIDE, max_examples=20)
@given(plays())
def test_sync(play):
    run(play)


@settings(SIDE, max_examples=10)
@given(plays(asynchronous=True))
def test_async(play):
    run(play)


@pytest.mark.parametrize("name", [*SPACES, *UNSHARED])
def test_each_space(name):
    """In one of the modes, by turns: those of above are tried with many more."""
    mode = MODES[[*SPACES, *UNSHARED].index(name) % len(MODES)]
    space = {**SPACES, **UNSHARED}[name]
    run(Play(lambda i: Varied(space, space, longest=4 + i), 3, mode, [None] * 12))
