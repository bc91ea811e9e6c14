"""Environments of other kinds than a recorder takes: what to do with each, and wrappers that hide how episodes end."""

from __future__ import annotations

import warnings
from typing import Any

_PARALLEL = "gym_replay.wrappers.parallel.RecordToBuffer"

_OTHERS = {
    ("pettingzoo", "ParallelEnv"): f"an environment of several agents; wrap it in {_PARALLEL}",
    ("pettingzoo", "AECEnv"): (
        f"an environment of several agents; wrap its pettingzoo.utils.aec_to_parallel(env) in {_PARALLEL}"
    ),
    ("envpool", "DMEnvPoolMixin"): (
        "EnvPool's environments as dm_env has them, which lacks batched spaces; record envpool.make_gymnasium(...)"
    ),
    ("gym", "Env"): (
        "an environment of the old gym; record shimmy.GymV26CompatibilityV0(env=env), or of a gym before 0.26 "
        "shimmy.GymV21CompatibilityV0(env=env)"
    ),
    ("dm_env", "Environment"): (
        "an environment of dm_env; record shimmy.DmControlCompatibilityV0(env), or "
        "shimmy.bsuite_compatibility.BSuiteCompatibilityV0(env) of bsuite"
    ),
}
"""What environments are, and what to do with them, by the package and the name of a base class."""

_HIDE_ENDS = {
    "black_death_par": "shows agents that have died as if they went on, with zeros",
    "MultiEpisodeParallelEnv": "shows several episodes as one",
}
"""Wrappers that leave agents' ends out, by the names of their classes."""

_INNER = ("env", "aec_env", "par_env", "venv", "vec_envs")
"""What wrappers of PettingZoo and SuperSuit call what they wrap; the last one is a list."""


def refuse_other_kinds(env: Any) -> None:
    """Raise TypeError where it is an environment of a known kind that no recorder, or another one, takes."""
    for base in type(env).__mro__:
        what = _OTHERS.get((base.__module__.partition(".")[0], base.__name__))
        if what is not None:
            raise TypeError(f"{type(env).__name__} is {what}")


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
