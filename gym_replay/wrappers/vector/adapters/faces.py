"""Of which kind a recorder is: it can stand wherever the environment that it records stood."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec

if TYPE_CHECKING:
    _Vector: TypeAlias = gym.vector.VectorWrapper[Any, Any, Any, Any, Any]
    _Single: TypeAlias = gym.Wrapper[Any, Any, Any, Any]
else:  # in Gymnasium 1.0 the first takes no types
    _Vector, _Single = gym.vector.VectorWrapper, gym.Wrapper

_UNRECORDED = ("send", "recv", "async_reset", "xla", "step_async", "step_wait", "reset_async", "reset_wait")
"""Ways to step or reset an environment that do not go through ``step`` and ``reset``."""


class _Forwarding:
    """Has the attributes of the environment inside, apart from those that would step it unseen."""

    env: Any

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "env":
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        if name in _UNRECORDED and hasattr(self.env, name):
            raise AttributeError(
                f"{name} of {type(self.env).__name__} goes past the recorder, which sees whole steps of all "
                "sub-environments: use step() and reset()"
            )
        layer = self.env
        while not hasattr(layer, name) and hasattr(layer, "env"):
            layer = layer.env
        return getattr(layer, name)


class VectorFace(_Vector):
    """A vector environment of Gymnasium."""


class OpenVectorFace(_Forwarding, VectorFace):
    """A vector environment that has attributes of its own."""


class EnvFace(_Forwarding, _Single):
    """An environment of Gymnasium that is a batch of them."""

    @property
    def spec(self) -> Any:  # type: ignore[override]
        """The spec with the recorder, so that ``gym.make`` makes both; of some, such as EnvPool's, their own object."""
        spec = self.env.spec
        return super().spec if spec is None or isinstance(spec, EnvSpec) else spec


class BothFace(EnvFace, gym.vector.VectorEnv[Any, Any, Any]):  # type: ignore[misc,override]
    """An object that is an environment and a vector environment, as EnvPool's are."""


class PlainFace(_Forwarding):
    """An object of no class of Gymnasium's that has ``step`` and ``reset``."""

    def __init__(self, env: Any) -> None:
        self.env = env

    def close(self, **kwargs: Any) -> None:
        """Close the environment, where it can be closed."""
        if hasattr(self.env, "close"):
            self.env.close(**kwargs)

    @property
    def unwrapped(self) -> Any:
        """The environment without any wrapper."""
        return getattr(self.env, "unwrapped", self.env)


def face_of(envs: Any, *, forwards: bool) -> type[Any]:
    """The class for an object of this kind."""
    is_env, is_vector = isinstance(envs, gym.Env), isinstance(envs, gym.vector.VectorEnv)
    if is_env:
        return BothFace if is_vector else EnvFace
    if is_vector:
        return OpenVectorFace if forwards else VectorFace
    return PlainFace
