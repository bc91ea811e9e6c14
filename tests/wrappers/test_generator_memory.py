"""Reading a generator's state where it lies in memory."""

from types import SimpleNamespace

import gymnasium as gym
import numpy as np

from gym_replay.wrappers import generator_memory
from gym_replay.wrappers.generator_state import GeneratorStates, generator_state


def test_a_generator_that_stays_is_read_where_its_state_lies():
    """From the third episode on; each state must be the one that NumPy tells."""
    env, states = gym.make("CartPole-v1"), GeneratorStates()
    env.reset(seed=3)
    for draws in range(6):
        assert states.pack(env) == generator_state(env).tobytes()
        env.reset()
        env.np_random.integers(9, size=draws, dtype=np.uint32)  # leaves half of 64 bits behind, or not
    first = states.pack(env)
    env.reset(seed=4)  # another generator
    assert first != states.pack(env) == generator_state(env).tobytes() == states.pack(env)


def test_a_state_that_lies_otherwise_is_asked_for(monkeypatch):
    monkeypatch.setattr(generator_memory, "_lies_as_expected", lambda: False)
    env, states = gym.make("CartPole-v1"), GeneratorStates()
    assert [states.pack(env) for _ in range(3)] == [generator_state(env).tobytes()] * 3


def test_only_the_memory_of_the_generator_is_read(monkeypatch):
    """A struct that begins with something else than the address of the numbers."""
    generator = np.random.PCG64()
    numbers = generator.ctypes.state_address
    assert generator_memory._reader(generator) is not None
    elsewhere = SimpleNamespace(ctypes=SimpleNamespace(state_address=numbers))
    assert generator_memory._reader(elsewhere) is None
    monkeypatch.setattr(generator_memory, "_memory", lambda *_: (1 << 40).to_bytes(8, "little"))
    assert generator_memory._reader(generator) is None
