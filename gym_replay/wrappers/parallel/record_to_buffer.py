"""RecordToBuffer for PettingZoo's parallel environments: every episode of every agent, stored as it is played."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

from gym_replay.buffer.door import has_buffer
from gym_replay.buffer.replay_buffer import ReplayBuffer
from gym_replay.errors import ConfigMismatchError, FieldError, StorageError
from gym_replay.extras import require
from gym_replay.files.folders import folder_of
from gym_replay.schema.names import encode_siblings
from gym_replay.wrappers.episode_meta import describe_run, options_to_json
from gym_replay.wrappers.other_kinds import warn_of_hidden_ends
from gym_replay.wrappers.parallel.agent_group import Agent, AgentGroup, ParallelStep, by_spaces
from gym_replay.wrappers.recorder import (
    Folder,
    OnlyWriter,
    RecorderOptions,
    refuse_second_thread,
    values_of,
    warn_of_pause,
)

if sys.version_info >= (3, 11):
    from typing import Unpack
else:
    from typing_extensions import Unpack

_pettingzoo = require("pettingzoo", "pettingzoo", "gym_replay.wrappers.parallel")
_Wrapper: Any = require("pettingzoo.utils", "pettingzoo", "gym_replay.wrappers.parallel").BaseParallelWrapper


class RecordToBuffer(OnlyWriter, _Wrapper):  # type: ignore[misc]
    """Records every agent of a parallel environment, and changes nothing else.

    What an agent sees and does from the step or reset that brings it in to the step that takes it out is one episode,
    as :class:`gym_replay.RecordToBuffer` would record it around an environment of that agent alone: agents may end at
    different times, and come late. The meta field ``agent`` is the agent's id as a string, and ``match`` is the same
    string in all episodes between two resets, and another one in every other match.

    Where all agents have equal spaces, the folder is one buffer. Otherwise it holds one buffer for each pair of spaces,
    in a folder that has the name of the agents without their numbers, such as ``adversary`` of ``adversary_0`` and
    ``adversary_1``, or that of the first of them where it would not be unique. :attr:`buffers` has each agent's.

    Args:
        env: the environment, a ``pettingzoo.ParallelEnv`` with ``possible_agents``.
        buffer: a folder, which is created or appended to, or where all agents have equal spaces a
            :class:`ReplayBuffer` that was made by recording. The other arguments are those of
            :class:`gym_replay.RecordToBuffer`: ``max_episodes``, ``max_timesteps``, ``max_steps`` and ``circular`` of
            each buffer, ``overwrite``, ``meta_fields``, ``extra_fields``, ``reward_shape``, ``dtypes``,
            ``record_info``, ``on_incomplete``, ``durability``, and ``on_episode`` for an episode of one agent.

    Raises:
        MissingExtraError: PettingZoo is not installed (raised where this module is imported).
        TypeError: it is no parallel environment.
        FieldError: the environment has no ``possible_agents``, or an argument is wrong.
        UnsupportedSpaceError: a part of a space cannot be stored.
        ConfigMismatchError: a buffer in the folder is of other agents or another config.
        BufferLockedError: somebody else writes to a buffer (raised by the first step where it exists already).

    Example:
        >>> import tempfile
        >>> from mpe2 import simple_spread_v3  # doctest: +SKIP
        >>> env = RecordToBuffer(simple_spread_v3.parallel_env(), tempfile.mkdtemp())  # doctest: +SKIP
        >>> observations, infos = env.reset(seed=0)  # doctest: +SKIP
        >>> while env.agents:  # doctest: +SKIP
        ...     _ = env.step({agent: env.action_space(agent).sample() for agent in env.agents})
        >>> env.close()  # doctest: +SKIP
        >>> [episode.meta["agent"] for episode in env.buffer]  # doctest: +SKIP
        ['agent_0', 'agent_1', 'agent_2']
    """

    def __init__(self, env: Any, buffer: Folder, **options: Unpack[RecorderOptions]) -> None:
        if isinstance(env, _pettingzoo.AECEnv):
            raise TypeError(
                f"expected a pettingzoo.ParallelEnv, got the AEC environment {env}; convert it with "
                "pettingzoo.utils.aec_to_parallel(env), or make it with parallel_env()"
            )
        if not isinstance(env, _pettingzoo.ParallelEnv):
            raise TypeError(
                f"expected a pettingzoo.ParallelEnv, got {type(env).__name__}; gym_replay.RecordToBuffer records a "
                "gymnasium.Env, and gym_replay.wrappers.vector.RecordToBuffer batched environments"
            )
        super().__init__(env)
        agents = by_spaces(env)
        run = describe_run()
        self._groups: list[AgentGroup] = []
        try:
            for members, target in zip(agents, _targets(agents, buffer), strict=True):
                self._groups.append(AgentGroup(env, members, target, run, options))
        except BaseException:
            for group in self._groups:
                group.close()
            raise
        self._group_of = {agent: group for group in self._groups for agent in group.agents}
        self._run, self._matches = json.loads(run)["run"], 0
        self._thread = threading.get_ident()
        warn_of_hidden_ends(env)

    @property
    def buffers(self) -> dict[Agent, ReplayBuffer]:
        """The buffer of each agent; readable also after :meth:`close`."""
        return {agent: group.buffer for agent, group in self._group_of.items()}

    @property
    def buffer(self) -> ReplayBuffer:
        """The buffer, where all agents have equal spaces.

        Raises:
            FieldError: there are several.
        """
        first, *others = self._groups
        if others:
            folders = [str(group.buffer.folder) for group in self._groups]
            raise FieldError(f"agents have different spaces, and so there are several buffers, {folders}: use buffers")
        return first.buffer

    @property
    def out_of_bounds(self) -> dict[str, int]:
        """How many committed rows of each field had values outside of their space's bounds, in all buffers."""
        return dict(sum((Counter(group.out_of_bounds) for group in self._groups), Counter[str]()))

    # --- matches ---

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[Agent, Any], dict[Agent, dict[str, Any]]]:
        """Reset the environment and open an episode for each agent; those that are running are cut.

        Raises:
            FieldError: what the environment returned does not fit.
            StorageError: the disk is full; the environment is not reset.
        """
        self._use_thread()
        for group in self._groups:
            group.cut()
        began = time.monotonic()
        result: tuple[Any, Any] = self.env.reset(seed=seed, options=options)
        names = "observations", "infos"
        observations, infos = map(_by_agent, names, values_of("reset", result, *names))
        live = self._live()
        with _Explained(self._groups):
            opened = [group.stage_reset(observations, infos, live) for group in self._groups]
        match = f"{self._run}-{self._matches}"
        self._matches += 1
        written = b"" if options is None else options_to_json(options)
        for group, mask in zip(self._groups, opened, strict=True):
            group.open(mask, match, seed, written, began)
        return result

    def step(self, actions: dict[Agent, Any]) -> tuple[dict[Agent, Any], ...]:
        """Step the environment and store each agent's transition; episodes that end are committed.

        Raises:
            FieldError: an action does not fit, or is missing; the environment is not stepped, and the episodes go on.
                Or what the environment returned does not fit: episodes committed so far are safe, and the running ones
                end with the step before.
            EpisodeTooLongError, BufferFullError: a buffer's limits leave no room; the environment is not stepped.
            StorageError: a disk is full. Finished episodes are kept, and committed by the next ``step``, ``reset`` or
                ``close`` that finds room.
        """
        if threading.get_ident() != self._thread:
            self._use_thread()
        groups = [group for group in self._groups if group.prepare()]
        if not groups:
            if self.env.agents:  # where nobody is there, nothing is left out
                warn_of_pause()
            return self.env.step(actions)  # type: ignore[no-any-return]
        with _Explained(groups):
            for group in groups:
                group.stage_actions(_by_agent("actions", actions))
        for group in groups:
            group.begin_step()
        began = time.monotonic()
        result = self.env.step(actions)
        try:
            with _Explained(groups):
                staged = self._staged(groups, result, began)
        except Exception:
            # The environment has moved on and this step cannot be stored, so none after it may be.
            for group in groups:
                group.lose_step()
            raise
        if failures := _failures(partial(group.advance, step) for group, step in zip(groups, staged, strict=True)):
            raise failures[0]
        return result  # type: ignore[no-any-return]

    def _staged(self, groups: list[AgentGroup], result: Any, began: float) -> list[Any]:
        names = "observations", "rewards", "terminations", "truncations", "infos"
        values = map(_by_agent, names, values_of("step", result, *names))
        observations, rewards, terminations, truncations, infos = values
        step = ParallelStep(observations, rewards, terminations, truncations, infos, self._live())
        return [group.stage(step, began) for group in groups]

    def _live(self) -> set[Agent]:
        """The agents that are there now."""
        live = set(self.env.agents)
        if unknown := live - self._group_of.keys():
            raise FieldError(
                f"agent {min(map(repr, unknown))} is there, and possible_agents did not have it when the environment "
                "was wrapped; name all agents there that may ever come"
            )
        return live

    def _use_thread(self) -> None:
        """Let this thread step and reset from now on, unless another one is in the middle of that."""
        for group in self._groups:
            group.refuse_within_on_episode()
        refuse_second_thread(self)
        self._thread = threading.get_ident()

    # --- what the user adds ---

    def annotate(self, /, **meta: Any) -> None:
        """Set meta fields of the running episodes: one value for all agents, or a dict of values by agent.

        Raises:
            FieldError: a field is unknown, the recorder's own, or its value does not fit.
            EpisodeStateError: no episode is running.
        """
        groups = self._of(meta)
        for group in [group for group in groups if group.is_running] or groups:
            group.annotate_agents(meta)

    def annotate_step(self, /, **extra: Any) -> None:
        """Set extra fields of the next step: one value for all agents, or a dict of values by agent.

        Raises:
            FieldError: a field is unknown or its value does not fit.
        """
        for group in self._of(extra):
            group.annotate_step(**extra)

    def _of(self, values: Mapping[str, Any]) -> list[AgentGroup]:
        """All groups, if the agents that values are given for are known."""
        for name, value in values.items():
            if isinstance(value, Mapping) and (unknown := [agent for agent in value if agent not in self._group_of]):
                raise FieldError(f"{name}: unknown agent {unknown[0]!r}; there are {list(self._group_of)}")
        return self._groups

    # --- the end ---

    def close(self) -> None:
        """End the running episodes, release the folders, and close the environment.

        Raises:
            StorageError: a disk has no room for the episodes; the environment is not closed yet, so that ``close`` can
                be called again once there is.
        """
        for group in self._groups:
            group.refuse_within_on_episode()
        failures = _failures(group.close for group in self._groups)
        refused = [error for error in failures if isinstance(error, StorageError)]
        if not refused:
            super().close()
        if failures:
            raise [*refused, *failures][0]


class _Explained:
    """A block whose errors of values that do not fit say so where an agent's spaces have changed."""

    def __init__(self, groups: list[AgentGroup]) -> None:
        self._groups = groups

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if error is not None:
            for group in self._groups:
                with suppress(KeyError):  # an agent that has no spaces any more
                    group.explain(error)


def _failures(calls: Iterable[Callable[[], None]]) -> list[Exception]:
    """Make all of the calls; what they raised."""
    failures = []
    for call in calls:
        try:
            call()
        except Exception as error:  # noqa: PERF203
            failures.append(error)
    return failures


def _targets(groups: list[list[Agent]], buffer: Folder) -> list[Folder]:
    """Where each group's episodes go.

    Raises:
        FieldError: it is one buffer, and there are several groups.
        ConfigMismatchError: the folder of several groups is a buffer itself.
    """
    if len(groups) == 1:
        return [buffer]
    spaces = (
        f"the agents have {len(groups)} different pairs of spaces ({', '.join(str(agents[0]) for agents in groups)})"
    )
    if isinstance(buffer, ReplayBuffer):
        raise FieldError(f"{spaces}, which go to folders of their own; pass a folder instead of a ReplayBuffer")
    folder = folder_of(buffer)
    if has_buffer(folder):
        raise ConfigMismatchError(f"{folder} is a buffer, and {spaces}, which need one each; choose another folder")
    kinds = [str(agents[0]).rstrip("0123456789").rstrip("_-") for agents in groups]
    names = [
        kind if kind and kinds.count(kind) == 1 else str(agents[0]) for kind, agents in zip(kinds, groups, strict=True)
    ]
    return [folder / name for name in encode_siblings(names)]


def _by_agent(what: str, values: Any) -> Mapping[Agent, Any]:
    if not isinstance(values, Mapping):
        raise FieldError(f"{what}: expected a dict by agent, got {type(values).__name__}; return one")
    return values
