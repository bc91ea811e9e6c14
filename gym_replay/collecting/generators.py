"""Random draws from global generators, kept apart for each episode.

Stable-Baselines3's policies draw from the generators of torch, NumPy and Python that the whole process shares, and from
that of their action space. With these put into an episode's own state before each action, and back after it, what the
episode draws depends on its seed alone, and nobody else's draws change.
"""

from __future__ import annotations

import random
import sys
from typing import Any

import numpy as np


class OwnGenerators:
    """A context in which the global generators are in one episode's states.

    Args:
        space: an action space whose generator counts too, if any.
    """

    def __init__(self, space: Any = None) -> None:
        self._space = space
        self._own: tuple[Any, ...] = ()
        self._outer: tuple[Any, ...] = ()

    def seed(self, seed: int) -> None:
        """The states that go with a seed; the global ones stay as they are."""
        outer = self._take()
        random.seed(seed)
        np.random.seed(np.random.SeedSequence(seed).generate_state(4))  # noqa: NPY002 - what others draw from
        torch = sys.modules.get("torch")
        if torch is not None:
            torch.default_generator.manual_seed(seed)
            if torch.cuda.is_initialized():
                torch.cuda.manual_seed_all(seed)
        if self._space is not None:
            self._space.seed(seed)
        self._own = self._take()
        self._put(outer)

    def __enter__(self) -> None:
        self._outer = self._take()
        self._put(self._own)

    def __exit__(self, *details: object) -> None:
        self._own = self._take()
        self._put(self._outer)

    def _take(self) -> tuple[Any, ...]:
        torch = sys.modules.get("torch")  # recording needs no torch: where it is not imported, nobody draws from it
        on_cpu = None if torch is None else torch.get_rng_state()
        on_cuda = torch.cuda.get_rng_state_all() if torch is not None and torch.cuda.is_initialized() else None
        of_space = None if self._space is None else self._space.np_random.bit_generator.state
        return random.getstate(), np.random.get_state(), on_cpu, on_cuda, of_space  # noqa: NPY002

    def _put(self, states: tuple[Any, ...]) -> None:
        of_python, of_numpy, on_cpu, on_cuda, of_space = states
        random.setstate(of_python)
        np.random.set_state(of_numpy)  # noqa: NPY002
        torch = sys.modules.get("torch")
        if torch is not None and on_cpu is not None:
            torch.set_rng_state(on_cpu)
            if on_cuda is not None:
                torch.cuda.set_rng_state_all(on_cuda)
        if of_space is not None:
            self._space.np_random.bit_generator.state = of_space
