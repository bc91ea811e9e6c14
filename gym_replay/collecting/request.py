"""What a call of collect() asks for, checked, in a form that can be sent to another process."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from gym_replay.collecting.environments import VECTORIZATIONS, EnvMaker, describe, name_of
from gym_replay.collecting.plan import Goal
from gym_replay.collecting.policies import check_policy, sb3_file
from gym_replay.errors import FieldError
from gym_replay.wrappers.session import FinishedEpisode, OnEpisode

Keep = Callable[[FinishedEpisode], Any]


@dataclass(frozen=True)
class Request:
    """Everything that says what episodes there are to be, and how they are played and recorded.

    Attributes:
        make: makes the environment.
        policy: as passed; a name is not looked up yet.
        policy_name: what the folder calls it.
        deterministic, batched: as for :func:`gym_replay.collect`.
        seed, num_envs, vectorization, options, keep, on_episode: as for :func:`gym_replay.collect`.
        recorder: further arguments of the recorder: meta_fields, extra_fields, dtypes, record_info, max_timesteps,
            durability.
    """

    make: EnvMaker
    policy: Any = "random"
    policy_name: str = "random"
    deterministic: bool = True
    batched: bool | None = None
    seed: int = 0
    num_envs: int = 1
    vectorization: str = "sync"
    options: Mapping[str, Any] | None = None
    keep: Keep | None = None
    on_episode: OnEpisode | None = None
    recorder: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_policy(self.policy)
        check_count("num_envs", self.num_envs)
        if type(self.seed) is not int or self.seed < 0:
            raise FieldError(f"seed: expected an integer from 0 on, got {self.seed!r}")
        if self.is_native and self.make.is_fresh:
            raise FieldError("fresh_envs=True does not go with vectorization='native'")
        if self.vectorization not in VECTORIZATIONS:
            raise FieldError(f"vectorization={self.vectorization!r}: expected one of {VECTORIZATIONS}")
        for name in ("keep", "on_episode"):
            if getattr(self, name) is not None and not callable(getattr(self, name)):
                raise FieldError(f"{name}: expected a function of a FinishedEpisode, got {getattr(self, name)!r:.80}")

    @property
    def is_native(self) -> bool:
        """Whether the environment's own vector environment plays, and resets itself."""
        return self.vectorization == "native"

    @property
    def may_discard(self) -> bool:
        """Whether an episode may turn out not to be kept."""
        return self.keep is not None or self.on_episode is not None

    def identity(self) -> dict[str, Any]:
        """What decides what each episode is, as JSON values by argument."""
        identity: dict[str, Any] = {
            **self.make.identity(),
            "policy": self.policy_name,
            "deterministic": self.deterministic,
            "seed": self.seed,
            "options": describe(self.options),
            "keep": None if self.keep is None else name_of(self.keep),
            "on_episode": None if self.on_episode is None else name_of(self.on_episode),
            # Of a native one it matters how many episodes are played at once.
            "vectorization": f"native, {self.num_envs} environments" if self.is_native else None,
        }
        if isinstance(self.policy, str) and self.policy.startswith("sb3:"):
            identity["policy_sha256"] = hashlib.sha256(sb3_file(self.policy).read_bytes()).hexdigest()
        found: dict[str, Any] = json.loads(json.dumps(identity))  # as it will be read again
        return found


def policy_name_of(policy: Any) -> str:
    """What a folder calls a policy that was not given a name."""
    return policy if isinstance(policy, str) else name_of(policy)


def check_count(name: str, value: Any) -> None:
    """Raise FieldError where a number is not a positive integer."""
    if type(value) is not int or value < 1:
        raise FieldError(f"{name}: expected a positive integer, got {value!r}")


def goal_of(episodes: int | None, steps: int | None) -> Goal:
    """What is asked for.

    Raises:
        FieldError: nothing is, or no positive numbers.
    """
    if episodes is None and steps is None:
        raise FieldError("collect: say how much with episodes=... or steps=..., in total for the folder")
    for name, value in (("episodes", episodes), ("steps", steps)):
        if value is not None:
            check_count(name, value)
    return Goal(episodes, steps)
