"""A multi-agent environment that does what a table says, and a wrapper that keeps each agent's stream by hand."""

import copy
from typing import NamedTuple

import numpy as np
from gymnasium import spaces
from pettingzoo import ParallelEnv
from pettingzoo.utils import BaseParallelWrapper


class Stay(NamedTuple):
    """When an agent is there.

    Attributes:
        come: the step that brings it in; 0 is the reset.
        end: its last step.
        how: ``"terminated"``, ``"truncated"``, ``"both"``; or it is no more among the agents: ``"left"`` with an
            observation and flags that are False, ``"vanished"`` without any word.
        has_last: whether its last step has an observation.
    """

    come: int
    end: int
    how: str = "terminated"
    has_last: bool = True


class Table(ParallelEnv):
    """Observation of agent i at time t is ``(i, t)``, the reward of step t is ``10 i + t``.

    Args:
        stays: by agent, one or several stays, one after another; each match is the same.
        narrow: agents with an observation of three numbers and a continuous action.
        answer: changes what a step returns, a function of the environment and the five dicts.
    """

    metadata = {"name": "table"}  # noqa: RUF012
    render_mode = None

    def __init__(self, stays, narrow=(), answer=None):
        self.stays = {agent: [given] if isinstance(given, Stay) else list(given) for agent, given in stays.items()}
        self.possible_agents, self.agents = list(stays), []
        self.narrow, self.answer, self.t = set(narrow), answer, -1
        self.action_spaces = {agent: self._spaces_of(agent)[1] for agent in stays}
        self.observation_spaces = {agent: self._spaces_of(agent)[0] for agent in stays}

    def _spaces_of(self, agent):
        if agent in self.narrow:
            return spaces.Box(-1e6, 1e6, (3,), np.float64), spaces.Box(-1, 1, (2,), np.float32)
        return spaces.Box(-1e6, 1e6, (2,), np.float32), spaces.Discrete(5)

    def observation_space(self, agent):
        return self.observation_spaces[agent]

    def action_space(self, agent):
        return self.action_spaces[agent]

    def _observe(self, agent):
        row = [self.possible_agents.index(agent), self.t, -self.t]
        space = self.observation_space(agent)
        return np.array(row[: space.shape[0]], space.dtype)

    def _there(self, agent):
        return next((stay for stay in self.stays[agent] if stay.come <= self.t < stay.end), None)

    def reset(self, seed=None, options=None):
        self.t = 0
        self.agents = [agent for agent in self.possible_agents if self._there(agent)]
        return {agent: self._observe(agent) for agent in self.agents}, {agent: {"t": 0} for agent in self.agents}

    def step(self, actions):
        assert set(actions) >= set(self.agents)
        acting, self.t = self.agents, self.t + 1
        self.agents = [agent for agent in self.possible_agents if self._there(agent)]
        results = {}, {}, {}, {}, {}
        for agent in dict.fromkeys([*acting, *self.agents]):
            ending = next((stay for stay in self.stays[agent] if stay.end == self.t), None)
            if agent not in acting or ending is None:
                how, has_last = "", True
            else:
                how, has_last = ending.how, ending.has_last
            if how == "vanished":
                continue
            values = (
                self._observe(agent),
                10.0 * self.possible_agents.index(agent) + self.t,
                how in ("terminated", "both"),
                how in ("truncated", "both"),
                {"t": self.t},
            )
            for result, value in zip(results, values, strict=True):
                result[agent] = value
            if not has_last:
                del results[0][agent]
        return results if self.answer is None else self.answer(self, results)


class Stream(NamedTuple):
    """What an agent saw and did from its coming to its end: T+1 observations and infos, T of the others."""

    observations: list
    infos: list
    actions: list
    rewards: list
    flags: list
    complete: bool


class ByHand(BaseParallelWrapper):
    """Keeps the streams of all agents, in the order in which they end; ``cut`` ends those that are running."""

    def __init__(self, env):
        super().__init__(env)
        self.ended, self.running = [], {}

    def cut(self):
        self.ended += [(agent, stream) for agent, stream in self.running.items() if stream.actions]
        self.running = {}

    def _begin(self, agent, observations, infos):
        self.running[agent] = Stream(
            [copy.deepcopy(observations[agent])], [dict(infos.get(agent, {}))], [], [], [], False
        )

    def reset(self, seed=None, options=None):
        observations, infos = self.env.reset(seed=seed, options=options)
        self.cut()
        for agent in self.env.agents:
            self._begin(agent, observations, infos)
        return observations, infos

    def step(self, actions):
        given = copy.deepcopy(actions)
        result = observations, rewards, terminations, truncations, infos = self.env.step(actions)
        for agent, stream in list(self.running.items()):
            if agent in rewards:
                stream.observations.append(copy.deepcopy(observations.get(agent)))
                stream.infos.append(dict(infos.get(agent, {})))
                stream.actions.append(given[agent])
                stream.rewards.append(rewards[agent])
                stream.flags.append((terminations[agent], truncations[agent]))
                done = terminations[agent] or truncations[agent]
            if agent not in rewards or agent not in self.env.agents:
                self.ended.append((agent, stream._replace(complete=bool(agent in rewards and done))))
                del self.running[agent]
        for agent in self.env.agents:
            if agent not in self.running:
                self._begin(agent, observations, infos)
        return result


def play(env, matches=1, *, limit=1000, seed=0):
    """Whole matches of sampled actions."""
    for agent in env.possible_agents:
        env.action_space(agent).seed(seed)
    for number in range(matches):
        env.reset(seed=seed + number)
        for _ in range(limit):
            if not env.agents:
                break
            env.step({agent: env.action_space(agent).sample() for agent in env.agents})


def assert_streams(buffers, ended, infos=()):
    """The buffers hold these streams, those of each agent in their order.

    Args:
        buffers: by agent.
        ended: pairs of agent and stream.
        infos: names of numeric entries of infos that were recorded.
    """
    expected = {}
    for agent, stream in ended:
        if stream.actions:
            expected.setdefault(str(agent), []).append(stream)
    found = {}
    for buffer in {id(buffer): buffer for buffer in buffers.values()}.values():
        for episode in buffer:
            found.setdefault(episode.meta["agent"], []).append(episode)
    assert {agent: len(episodes) for agent, episodes in found.items()} == {
        agent: len(streams) for agent, streams in expected.items()
    }
    for agent, streams in expected.items():
        for episode, stream in zip(found[agent], streams, strict=True):
            seen = [observation for observation in stream.observations if observation is not None]
            assert len(episode) == len(stream.actions)
            assert episode.has_final is (len(seen) == len(stream.actions) + 1)
            np.testing.assert_array_equal(episode["observation"], seen)
            np.testing.assert_array_equal(episode["action"], stream.actions)
            np.testing.assert_array_equal(episode["reward"], stream.rewards)
            terminated, truncated = map(list, zip(*stream.flags, strict=True))
            assert episode["terminated"].tolist() == terminated
            assert episode["truncated"].tolist() == [*truncated[:-1], truncated[-1] or not stream.complete]
            assert episode.complete is stream.complete
            for name in infos:
                values = [info.get(name, 0) for info in stream.infos]
                np.testing.assert_array_equal(episode[f"info.{name}"], values[: len(episode[f"info.{name}"])])
