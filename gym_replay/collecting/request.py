"""What a call of collect() asks for, checked, in a form that can be sent to another process."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from gym_replay.collecting.environments import EnvMaker, describe, name_of
from gym_replay.collecting.fingerprints import Fingerprint, fingerprint
from gym_replay.collecting.plan import check_count
from gym_replay.collecting.policies import check_policy, find_policy, sb3_file
from gym_replay.errors import FieldError
from gym_replay.wrappers.session import FinishedEpisode, OnEpisode

Keep = Callable[[FinishedEpisode], Any]


@dataclass(frozen=True, kw_only=True)
class Request:
    """Everything that says what episodes there are to be, and how they are played and recorded.

    Attributes:
        make: makes the environment.
        policy: as passed; a name is not looked up yet.
        policy_name: what the folder calls the policy; None for its name in the code.
        deterministic, batched, seed, options, keep, on_episode: as for :func:`gym_replay.collect`.
        recorder: further arguments of the recorder: meta_fields, extra_fields, reward_shape, dtypes, codecs,
            record_info, max_timesteps, durability.
        code: what is seen of the policy, ``keep`` and ``on_episode`` where the call was made: in another process they
            may look different.
    """

    make: EnvMaker
    policy: Any
    policy_name: str | None
    deterministic: bool
    batched: bool | None
    seed: int
    options: Mapping[str, Any] | None
    keep: Keep | None
    on_episode: OnEpisode | None
    recorder: Mapping[str, Any]
    code: dict[str, Fingerprint] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        check_policy(self.policy)
        check_count("num_envs", self.make.num_envs)
        if type(self.seed) is not int or self.seed < 0:
            raise FieldError(f"seed: expected an integer from 0 on, got {self.seed!r}")
        for name in ("keep", "on_episode"):
            if getattr(self, name) is not None and not callable(getattr(self, name)):
                raise FieldError(f"{name}: expected a function of a FinishedEpisode, got {getattr(self, name)!r:.80}")

        if self.policy_name is None and (policy := find_policy(self.policy)) is not None:
            self.code["policy"] = fingerprint(policy)
        for name, function in (("keep", self.keep), ("on_episode", self.on_episode)):
            if function is not None:
                self.code[name] = fingerprint(function, with_arrays=False)

    @property
    def policy_told_by(self) -> str:
        """How the policy is told from another one, where that is not all that there is to it; else empty."""
        if find_policy(self.policy) is None:  # the folder says all that there is to it
            return ""
        if "policy" not in self.code:
            return f"the policy is identified by its name only, {self.policy_name!r}"
        unseen = self.code["policy"].unseen
        if not unseen:
            return ""
        shown = ", ".join(map(repr, dict.fromkeys(unseen)))
        return (
            f"the policy is identified by its name and code only, not by what {shown:.100} holds; where that has "
            "changed, choose another folder, or overwrite=True"
        )

    @property
    def may_discard(self) -> bool:
        """Whether an episode may turn out not to be kept."""
        return self.keep is not None or self.on_episode is not None

    def identity(self) -> dict[str, Any]:
        """What decides what each episode is, as JSON values by argument."""
        default_name = self.policy if isinstance(self.policy, str) else name_of(self.policy)
        identity: dict[str, Any] = {
            **self.make.identity(),
            "policy": default_name if self.policy_name is None else self.policy_name,
            "deterministic": self.deterministic,
            "seed": self.seed,
            "options": describe(self.options),
            "keep": None if self.keep is None else name_of(self.keep),
            "on_episode": None if self.on_episode is None else name_of(self.on_episode),
        }
        identity["code"] = {name: found.as_json() for name, found in self.code.items()}
        if isinstance(self.policy, str) and self.policy.startswith("sb3:"):
            identity["policy_sha256"] = hashlib.sha256(sb3_file(self.policy).read_bytes()).hexdigest()
        if self.recorder["codecs"] is not None:
            identity["codecs"] = self.recorder["codecs"]
        found: dict[str, Any] = json.loads(json.dumps(identity))  # as it will be read again
        return found
