"""The agents of a multi-agent environment that have equal spaces: one folder, and an episode for each agent's stay."""

from __future__ import annotations

import json
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from gym_replay.errors import FieldError, StorageError
from gym_replay.schema.fields import Field
from gym_replay.spaces import space_to_json
from gym_replay.wrappers.episode_meta import storable_seed
from gym_replay.wrappers.recorder import Folder, RecorderOptions, parse_flag
from gym_replay.wrappers.vector.autoreset import EnvIndices, Mask, TransitionKinds
from gym_replay.wrappers.vector.batch_recorder import BatchRecorder
from gym_replay.wrappers.vector.batches import Column, default_of
from gym_replay.wrappers.vector.ended import Finals

AGENT, MATCH = "agent", "match"
_OWN_META = {AGENT: Field("str"), MATCH: Field("str")}

Agent = Any
"""The id of an agent: mostly a string, or anything hashable."""


class ParallelStep(NamedTuple):
    """What ``step`` returned, each by agent, and which agents there are after it."""

    observations: Mapping[Agent, Any]
    rewards: Mapping[Agent, Any]
    terminations: Mapping[Agent, Any]
    truncations: Mapping[Agent, Any]
    infos: Mapping[Agent, Any]
    live: Collection[Agent]

    def is_about(self, agent: Agent) -> bool:
        """Whether it says what the agent's action brought."""
        return agent in self.rewards or agent in self.terminations or agent in self.truncations


class _Staged(NamedTuple):
    """What a step was for the agents of a group.

    Attributes:
        kinds: as of a vector step; None where no episode ended or began.
        rewards, flags: of all agents, zeros and False of those without an episode.
        finals: which last observations there are, where one is missing.
        left: those that left after this step without terminating or being truncated.
        began: when the step began.
    """

    kinds: TransitionKinds | None
    rewards: npt.NDArray[Any]
    flags: tuple[Mask, Mask]
    finals: Finals | None
    left: Mask
    began: float


def by_spaces(env: Any) -> list[list[Agent]]:
    """The agents that may ever be there, divided into those with equal spaces, in the order of the first of each.

    Raises:
        FieldError: the environment does not say which agents there may be, or there are none.
        UnsupportedSpaceError: a part of a space cannot be stored.
    """
    agents = list(getattr(env, "possible_agents", None) or ())
    if not agents:
        raise FieldError(
            f"{env}: expected possible_agents, all agents that may ever be there, since the fields of each must be "
            "known before the first step; define it in the environment"
        )
    groups: dict[str, list[Agent]] = {}
    for agent in agents:
        spaces = [space_to_json(getattr(env, f"{name}_space")(agent), name) for name in ("observation", "action")]
        groups.setdefault(json.dumps(spaces), []).append(agent)
    return list(groups.values())


class AgentGroup(BatchRecorder):
    """Records agents with equal spaces into one folder.

    Args:
        env: the environment.
        agents: the agents, whether they are there from the start or come later.
        buffer: the folder or buffer.
        run: the meta field ``episode_run``.
        options: of the recorder.
    """

    def __init__(self, env: Any, agents: Sequence[Agent], buffer: Folder, run: bytes, options: RecorderOptions) -> None:
        self._take_options(buffer, options)
        self._env, self._agents = env, tuple(agents)
        observation, action = self._open_buffer(env, buffer, *self._spaces(), None, more_own_meta=_OWN_META)
        self._begin_session(observation, action, len(agents), run)
        self._acted: tuple[dict[str, Column], EnvIndices] = {}, np.arange(0)
        self._match = ""
        self._has_warned = False

    @property
    def agents(self) -> tuple[Agent, ...]:
        """The agents; the meta field ``env_index`` of an episode is the index of its agent among them."""
        return self._agents

    def _spaces(self) -> tuple[gym.Space[Any], gym.Space[Any]]:
        return self._env.observation_space(self._agents[0]), self._env.action_space(self._agents[0])

    def _mask(self, are_meant: Iterable[bool]) -> Mask:
        return np.fromiter(are_meant, bool, len(self._agents))

    def _names(self, slots: EnvIndices) -> list[str]:
        return [f"agent {self._agents[slot]!r}" for slot in slots.tolist()]

    def _values(self, values: Mapping[Agent, Any], slots: EnvIndices) -> list[Any]:
        return [values[self._agents[slot]] for slot in slots.tolist()]

    def _require(self, what: str, values: Mapping[Agent, Any], slots: EnvIndices) -> None:
        """Raise FieldError where one of these agents has no value."""
        for slot in slots.tolist():
            if self._agents[slot] not in values:
                raise FieldError(
                    f"step: expected {what} of each agent that is there, got none of {self._agents[slot]!r}"
                )

    def refuse_within_on_episode(self) -> None:
        """Raise EpisodeStateError where ``on_episode`` is looking at an episode."""
        self._session.refuse_within_on_episode()

    @property
    def is_running(self) -> bool:
        """Whether an episode is running."""
        return bool(self._session.state.running.any())

    def explain(self, error: BaseException) -> None:
        """Raise a better error of a value that does not fit, where the spaces are not those that were wrapped."""
        self._explain(error)

    # --- a reset ---

    def cut(self) -> None:
        """End all episodes, and expect none until the next reset.

        Raises:
            StorageError: the disk refused; what is running goes on.
        """
        session = self._session
        everyone = np.ones(len(self._agents), bool)
        session.settle()
        session.cut(everyone)
        session.lose(everyone)
        self._extras = {}

    def stage_reset(
        self, observations: Mapping[Agent, Any], infos: Mapping[Agent, Any], live: Collection[Agent]
    ) -> Mask:
        """Stage what a reset returned; whose episodes it opens."""
        opened = self._mask(agent in live and observations.get(agent) is not None for agent in self._agents)
        self._stage_state(self._session.state.now, observations, infos, np.flatnonzero(opened))
        return opened

    def open(self, opened: Mask, match: str, seed: Any, options: bytes, began: float) -> None:
        """Open the episodes of those whose observations a reset returned; others may come with any step."""
        session = self._session
        seeds = np.full(len(self._agents), storable_seed(seed))
        session.open(opened, seeds, None, options, began)
        session.expect(np.ones(len(self._agents), bool))
        self._match = match
        self._name(opened)

    def _name(self, opened: Mask) -> None:
        """Set the meta fields that say whose episodes these are, and of which match."""
        if opened.any():
            self._session.annotate({AGENT: list(map(str, self._agents)), MATCH: self._match}, opened)

    # --- a step ---

    def prepare(self) -> bool:
        """Finish what was left of the step before, and have room for another one.

        Returns:
            Whether the step can be a transition of an agent, or open an episode of one.
        """
        return self._session.prepare()

    def stage_actions(self, actions: Mapping[Agent, Any]) -> None:
        """Stage the actions of the agents that are running.

        Raises:
            FieldError: one is missing, or does not fit.
        """
        slots = np.flatnonzero(self._session.state.running)
        self._require("an action", actions, slots)
        columns = self._actions.encode_each(self._values(actions, slots), self._names(slots)) if len(slots) else {}
        self._acted = columns, slots
        self._put_actions()

    def _put_actions(self) -> None:
        session = self._session
        session.staging.put_some(session.state.now, *self._acted)
        self._put_extras()

    def begin_step(self) -> None:
        """The environment is stepped now: until :meth:`advance` the step counts as lost."""
        self._session.begun_at = self._session.state.now

    def stage(self, step: ParallelStep, began: float) -> _Staged:
        """Stage what a step returned; nothing ends before :meth:`advance`.

        Raises:
            FieldError: a value is missing or does not fit.
        """
        session, agents = self._session, self._agents
        running, is_live = session.state.running, self._mask(agent in step.live for agent in agents)
        is_told = running & self._mask(map(step.is_about, agents))
        is_seen = self._mask(step.observations.get(agent) is not None for agent in agents)
        terminated, truncated = (
            self._flags(name, values, is_told, is_live)
            for name, values in (("terminated", step.terminations), ("truncated", step.truncations))
        )
        done = terminated | truncated
        gone = running & ~(is_told & (done | is_seen))  # of their last step too little is known
        if (is_gone_wrong := gone & is_live).any():
            raise FieldError(
                f"step: expected observation, reward and flags of each agent that is there, got none of "
                f"{self._names(np.flatnonzero(is_gone_wrong))[0]}; return them, or take it out of agents"
            )
        told, opened = running & ~gone, ~running & is_live & is_seen & ~done
        left = told & ~done & ~is_live
        self._warn_of_leaving(gone | left)
        if gone.any():
            with suppress(StorageError):  # they wait for the commit in advance()
                session.cut(gone, may_go_on=False)
            self._put_actions()  # the cut put defaults there
        rewards = self._rewards_of(step.rewards, np.flatnonzero(told))
        now = session.state.now
        session.staging.put(now, {"reward": rewards})
        self._stage_state(now + 1, step.observations, step.infos, np.flatnonzero(told | opened))
        ended, goes_on = told & done, (told & ~done & ~left) | opened
        finals = None
        if (ended & ~is_seen).any():
            finals = Finals({}, is_seen[ended])
        kinds = None
        if not goes_on.all() or opened.any():
            waiting = ~goes_on if step.live else np.zeros_like(goes_on)
            kinds = TransitionKinds(ended, opened, goes_on | left, waiting)
        return _Staged(kinds, rewards, (terminated & told, truncated & told), finals, left, began)

    def _stage_state(
        self, time: int, observations: Mapping[Agent, Any], infos: Mapping[Agent, Any], slots: EnvIndices
    ) -> None:
        """Put the observations and infos of some agents into the row of a time; defaults where one is missing."""
        staging = self._session.staging
        are_seen = [observations.get(self._agents[slot]) is not None for slot in slots.tolist()]
        seen = slots[are_seen]
        if len(seen) < len(slots):
            staging.put(time, {leaf.name: default_of(leaf.field) for leaf in self._observations.leaves})
        if len(seen):
            values = self._values(observations, seen)
            staging.put_some(time, self._observations.encode_each(values, self._names(seen)), seen)
        if self._infos is not None and len(slots):
            found = [infos.get(self._agents[slot]) or {} for slot in slots.tolist()]
            columns = self._infos.encode_columns(found)  # may make the rows wider
            staging.put_some(time, columns, slots)

    def _flags(self, name: str, values: Mapping[Agent, Any], is_told: Mask, is_live: Mask) -> Mask:
        """A flag of each agent: those that were told of have it, those that have come now may, all others are False."""
        self._require(f"{name!r}", values, np.flatnonzero(is_told))
        flags = np.zeros(len(self._agents), bool)
        for slot in np.flatnonzero(is_told | is_live).tolist():
            flags[slot] = parse_flag(name, values.get(self._agents[slot], False))
        return flags

    def _rewards_of(self, given: Mapping[Agent, Any], slots: EnvIndices) -> npt.NDArray[Any]:
        """The rewards of all agents, ``(agents, *reward shape)``: zeros of those that are not in ``slots``."""
        self._require("a reward", given, slots)
        values = self._rewards.fit(self._values(given, slots), (len(slots),)) if len(slots) else 0.0
        rewards = np.zeros((len(self._agents), *self._rewards.field.shape))
        rewards[slots] = values
        return rewards

    def _warn_of_leaving(self, leaving: Mask) -> None:
        if leaving.any() and not self._has_warned:
            self._has_warned = True
            warnings.warn(
                f"{self._names(np.flatnonzero(leaving))[0]} left agents without having terminated or been truncated; "
                "its episode counts as cut, and so will those of others; return a flag that is True in an agent's last "
                "step",
                stacklevel=4,
            )

    def advance(self, staged: _Staged) -> None:
        """The step is over: commit the episodes that it ended, and open those that it began.

        Raises:
            StorageError: the disk refused; what has ended waits for the next commit.
        """
        session = self._session
        self._extras = {}
        session.advance(
            staged.kinds, staged.rewards, staged.flags, finals=staged.finals, generators=None, began=staged.began
        )
        if staged.kinds is not None:
            self._name(staged.kinds.opened)
        if staged.left.any():
            session.cut(staged.left, may_go_on=False)

    def lose_step(self) -> None:
        """The environment was stepped and the step cannot be staged: all episodes end with the one before."""
        self._session.settle()

    # --- what the user adds ---

    def annotate_agents(self, meta: Mapping[str, Any]) -> None:
        """Set meta fields; a value that is a dict has those of the agents in it, any other one is that of all.

        Raises:
            FieldError: a field is unknown, the recorder's own, or its value does not fit.
            EpisodeStateError: no episode is running.
        """
        if own := sorted(meta.keys() & _OWN_META):
            raise FieldError(f"meta field {own[0]!r} is set by the recorder itself")
        for name, value in meta.items():
            if not isinstance(value, Mapping):
                self.annotate(**{name: value})
            elif (mask := self._mask(agent in value for agent in self._agents)).any():
                field = self._buffer.metadata.meta_fields.get(name)
                default = "" if field is None or field.is_text else field.default_value()
                self._session.annotate({name: [value.get(agent, default) for agent in self._agents]}, mask)

    def _encode_extra(self, name: str, value: Any) -> Column:
        """A column over all agents: of a dict by agent, or of one value for all."""
        field, agents = self._buffer.metadata.fields[name], self._agents
        values = [value.get(agent, field.default_value()) if isinstance(value, Mapping) else value for agent in agents]
        return super()._encode_extra(name, values)

    # --- the end ---

    def _close_environment(self, **kwargs: Any) -> None:
        """The environment is that of other groups too."""
