"""Environments of several agents, as every recorder sees them: which recorder takes them, and what hides their ends."""

from __future__ import annotations

import warnings
from typing import Any

_HIDE_ENDS = {
    "black_death_par": "shows agents that have died as if they went on, with zeros",
    "MultiEpisodeParallelEnv": "shows several episodes as one",
}
"""Wrappers that leave agents' ends out, by the names of their classes."""

_INNER = ("env", "aec_env", "par_env", "venv", "vec_envs")
"""What wrappers of PettingZoo and SuperSuit call what they wrap; the last one is a list."""


def refuse_multi_agent(env: Any) -> None:
    """Raise TypeError where it is a multi-agent environment of PettingZoo, which another recorder takes."""
    kinds = {cls.__name__ for cls in type(env).__mro__ if cls.__module__.partition(".")[0] == "pettingzoo"}
    if kinds & {"AECEnv", "ParallelEnv"}:
        how = "its pettingzoo.utils.aec_to_parallel(env)" if "AECEnv" in kinds else "it"
        raise TypeError(
            f"{type(env).__name__} is an environment of several agents; wrap {how} in "
            "gym_replay.wrappers.parallel.RecordToBuffer"
        )


def warn_of_hidden_ends(env: Any) -> None:
    """Warn where a wrapper of several agents, wherever in an environment, leaves out how their episodes end."""
    layer = env
    while layer is not None:
        name = type(layer).__name__
        if name in _HIDE_ENDS:
            warnings.warn(
                f"{name} inside of a recorder {_HIDE_ENDS[name]}, and so it is recorded; put "
                "gym_replay.wrappers.parallel.RecordToBuffer inside of it to record the episodes as they end",
                stacklevel=3,
            )
        inner = getattr(layer, "__dict__", {})
        layer = next((inner[name] for name in _INNER if name in inner), None)
        if isinstance(layer, (list, tuple)):
            layer = layer[0] if layer else None
