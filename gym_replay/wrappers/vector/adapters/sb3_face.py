"""A recorder that is a vector environment of Stable-Baselines3, on which its agents learn."""

from __future__ import annotations

import warnings
from typing import Any

from stable_baselines3.common.vec_env import VecEnvWrapper

_CHANGING = {
    "VecNormalize": "what is stored was normalized by statistics that change while it is recorded",
    "VecFrameStack": "each frame is stored several times over",
}


class StableBaselinesFace(VecEnvWrapper):  # type: ignore[misc]
    """A ``VecEnvWrapper`` that records, whether it is stepped whole or in two parts."""

    def __init__(self, venv: Any) -> None:
        super().__init__(venv)
        self._is_transition = False
        layer = venv
        while isinstance(layer, VecEnvWrapper):
            if (name := type(layer).__name__) in _CHANGING:
                warnings.warn(
                    f"{name} inside RecordToBuffer: {_CHANGING[name]}; put RecordToBuffer inside of it", stacklevel=3
                )
            layer = layer.venv

    def __getattr__(self, name: str) -> Any:
        if "class_attributes" not in vars(self):  # before it is made the wrapper's own way asks itself for ever
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return super().__getattr__(name)

    def reset(self) -> Any:
        """Reset all sub-environments; the recorder has its own."""
        raise NotImplementedError

    def step_async(self, actions: Any) -> None:
        """Begin a step of all sub-environments."""
        self._is_transition = self._begin_step(actions)
        self.venv.step_async(actions)

    def step_wait(self) -> Any:
        """Wait for the step that was begun, and store what it was."""
        result = self.venv.step_wait()
        if self._is_transition:
            self._is_transition = False
            self._end_step(result)
        return result
