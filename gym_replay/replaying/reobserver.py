"""Reobserver: executes recorded episodes again, and records them as the wrappers around the environment see them."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from gym_replay.buffer.door import Metadata
from gym_replay.buffer.episode import Episode
from gym_replay.buffer.replay_buffer import ReplayBuffer
from gym_replay.errors import GymReplayError
from gym_replay.replaying.executing import Origin, Player, origins_of
from gym_replay.replaying.observing import Executor, Gate, Restored, States, Stopped, View, Watched, states_in
from gym_replay.schema.fields import Field
from gym_replay.spaces import space_tree, unflatten
from gym_replay.wrappers.infos import is_info
from gym_replay.wrappers.record_to_buffer import RecordToBuffer
from gym_replay.wrappers.recorded_schema import RECORDER_META, open_for, trees_of
from gym_replay.wrappers.rewards import declared_shape
from gym_replay.wrappers.session import FinishedEpisode
from gym_replay.wrappers.simulator_state import has_mujoco, mujoco_state

SOURCE_BUFFER, SOURCE_EPISODE, RESTORED = "source_buffer", "source_episode", "source_restored"
OWN_META = {
    SOURCE_BUFFER: Field("str"),
    SOURCE_EPISODE: Field("int64", default=-1),
    RESTORED: Field("bool"),
}
"""Meta fields of an episode that was observed again: the uuid of the buffer that it is from, its id there, and whether
it was restored from states of the simulator."""

_COMPARED = ("reward", "terminated", "truncated")
_OF_RECORDER = ("observation", "action", *_COMPARED)
"""The fields of every recorder, or what their names begin with."""


class Reobserver:
    """Executes the episodes of one buffer after another, and records those that come out as they were.

    Args:
        view: how they are observed.
        recording: ``codecs``, ``dtypes``, ``record_info`` and ``durability``, as for the recorder.
        metadata: of the buffer that the episodes are of.
        folder: where they are recorded.
        stops: is asked before each step whether to stop.
        overwrite: replace the buffer that is in the folder, once the environment is made.

    Attributes:
        buffer: where they are recorded.
    """

    def __init__(
        self,
        view: View,
        recording: Mapping[str, Any],
        metadata: Metadata,
        folder: Path,
        stops: Callable[[], bool] = lambda: False,
        *,
        overwrite: bool = False,
    ) -> None:
        self._view, self._metadata, self._stops = view, metadata, stops
        self._extras = _extra_fields(metadata)
        self._meta = {name: info for name, info in metadata.meta_fields.items() if name not in RECORDER_META}
        self._options = {**recording, "extra_fields": self._extras, "reward_shape": metadata.fields["reward"].shape}
        if self._options["record_info"] is None:
            self._options["record_info"] = _infos_in(metadata)
        self._expected: tuple[Episode, bool] | None = None
        self._reason = ""
        self._is_recorded = False
        self._last: tuple[str, int] | None = None
        self._bare: Executor | None = None
        self._restoring: tuple[Restored, Gate, RecordToBuffer] | None = None
        self._closing, self._replaced = ExitStack(), ExitStack()
        with ExitStack() as cleanup:
            gate = self._make_gate()
            cleanup.callback(gate.close)
            self.buffer = self._open(gate, folder, overwrite)
            self._closing.callback(self.buffer.close)
            cleanup.callback(self._closing.close)
            self.buffer.acquire()
            self._use(gate)
            cleanup.pop_all()
        self._closing.callback(lambda: self._replaced.close())

    def _open(self, env: gym.Env[Any, Any], folder: Path, overwrite: bool) -> ReplayBuffer:
        own = {name: info for name, info in self._meta.items() if name in self._metadata.recorder_meta}
        self._users = {name: info for name, info in self._meta.items() if name not in {**own, **OWN_META}}
        self._options["meta_fields"] = self._users
        trees = trees_of(env.observation_space, env.action_space, dict(self._options["dtypes"] or {}))
        return open_for(
            *trees,
            env.spec,
            folder,
            {**self._options, "overwrite": overwrite},
            declared=declared_shape(env, None),
            more_own_meta={**own, **OWN_META},
        )

    def close(self) -> None:
        """Close the environments and the buffer; what is under way is not recorded."""
        self._expected = None
        self._closing.close()

    # --- environments ---

    def _observed(self, wrap: Callable[[gym.Env[Any, Any]], gym.Env[Any, Any]]) -> gym.Env[Any, Any]:
        inner = self._view.make(self._metadata)
        try:
            return self._view.wrap(wrap(inner), self._metadata)
        except BaseException:
            inner.close()
            raise

    def _recorder(self, gate: Gate) -> RecordToBuffer:
        return RecordToBuffer(gate, self.buffer, on_episode=self._judge, **self._options)

    def _make_gate(self) -> Gate:
        """The environment, watched, inside of the wrappers."""
        # A renderer of MuJoCo that becomes garbage later empties the context of this one: all frames would be black.
        # The wrapper that observes frames refers to itself, so only the collector frees what it holds.
        gc.collect()
        found: list[Watched] = []

        def watch(inner: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
            found.append(Watched(inner))
            return found[0]

        with ExitStack() as cleanup:
            gate = Gate(self._observed(watch))
            cleanup.callback(gate.close)
            self._executor = self._executor_in(found[0])
            cleanup.pop_all()
        return gate

    def _executor_in(self, env: Watched) -> Executor:
        return Executor(self._metadata, env, trust=self._view.trust, stops=self._stops)

    def _use(self, gate: Gate) -> None:
        """Record what an environment, which nobody has acted in, returns from now on."""
        self._gate, self._episodes = gate, self._recorder(gate)
        self._replaced.callback(self._episodes.close)
        self._is_fresh, self._last = True, None

    # --- episodes ---

    def observe(self, episode: Episode) -> str:
        """Execute an episode and record it; why it was left out, empty where it was not.

        Raises:
            Stopped: somebody asked for that.
        """
        reasons: list[str] = []
        for origin, anew in self._attempts(episode):
            if anew and not self._is_fresh:
                self._replaced.close()
                del self._gate, self._episodes, self._executor  # see _make_gate
                self._use(self._make_gate())
            self._execute_from(origin, episode)
            if self._is_recorded:
                return ""
            reasons.append(self._why(origin, episode))
        if states := states_in(episode) or self._executed_states(episode):
            self._restore(episode, states)
            if self._is_recorded:
                return ""
            reasons.append(self._reason)
        return reasons[0] if reasons else "neither a seed nor the state of a generator was kept"

    def _attempts(self, episode: Episode) -> Iterator[tuple[Origin, bool]]:
        """From what an episode is executed, in turn, and whether in an environment that was made for it."""
        origins = list(origins_of(episode))
        goes_on = self._last == (episode.snapshot.metadata.uuid, episode.id - 1)
        if origins and origins[0].first == episode.index and not self._is_fresh and self._last is not None:
            yield origins[0], False
        elif goes_on and not self._is_fresh:
            yield Origin("the episode before it", episode.index), False
        for origin in origins:
            yield origin, True

    def _why(self, origin: Origin, episode: Episode) -> str:
        found = self._executor.difference
        if found is None:
            return self._reason
        if found.episode != episode.id:
            return f"it was not reached from {origin.name}"
        where = "in the observation of reset" if found.step == -1 else f"at step {found.step}"
        return f"differs, from {origin.name} {where}: {found.detail}"

    def _execute_from(self, origin: Origin, episode: Episode) -> None:
        """Execute the episodes from an origin to one, and record that one where all come out as they were."""
        self._is_recorded, self._reason, self._is_fresh, self._expected = False, "", False, None
        for index in range(origin.first, episode.index):
            self._executor.execute(self._gate, Episode(episode.snapshot, index))
            if self._executor.difference is not None:
                return

        def begun() -> None:  # now that the reset has cut what was under way
            self._expected = episode, False

        self._executor.execute(self._episodes, episode, begun=begun, acts=self._annotating(episode, self._episodes))
        if self._executor.difference is None and not episode.complete:
            self._cut(self._gate, self._episodes)
        self._expected = None
        self._cut(self._gate, self._episodes)
        self._last = (episode.snapshot.metadata.uuid, episode.id)
        if not self._is_recorded:
            episode.snapshot.require_live(episode.id)  # or other rows may have been compared

    def _annotating(self, episode: Episode, recorder: RecordToBuffer) -> Callable[[int], bool]:
        """A function that gives the recorder the extra fields of a step, and says whether the step is of any use."""
        extras = {name: episode[name] for name in self._extras}

        def acts(t: int) -> bool:
            if extras and not self._reason:
                recorder.annotate_step(**{name: rows[t] for name, rows in extras.items()})
            return not self._reason

        return acts

    @staticmethod
    def _cut(gate: Gate, recorder: RecordToBuffer) -> None:
        """Have a recorder end what is under way."""
        gate.is_shut = True
        try:
            recorder.reset()
        finally:
            gate.is_shut = False

    def _judge(self, found: FinishedEpisode) -> Mapping[str, Any] | bool:
        """The recorder's ``on_episode``: whether an episode came out as it was, and its meta fields."""
        if self._expected is None or self._reason:
            return False
        episode, is_restored = self._expected
        if not is_restored and self._executor.difference is not None:
            return False
        if len(found) != len(episode):
            self._reason = f"differs: it ended after {len(found)} steps, and was recorded with {len(episode)}"
        for name in _COMPARED if not self._reason else ():
            if found[name].tobytes() != episode[name].tobytes():
                self._reason = f"differs: {name!r}, as it is recorded outside of the wrappers"
        if not self._reason and found.complete != episode.complete:
            self._reason = "differs: it ended by itself, and was cut where it was recorded"
        if self._reason:
            return False
        self._is_recorded = True
        meta = {name: episode.meta[name] for name in self._meta if name not in OWN_META}
        source = {SOURCE_BUFFER: episode.snapshot.metadata.uuid, SOURCE_EPISODE: episode.id, RESTORED: is_restored}
        return {**meta, **source}

    # --- simulator states ---

    def _executed_states(self, episode: Episode) -> States:
        """The states of the simulator that an episode goes through, executed without the wrappers; empty if it differs.

        To render changes what some environments do next, such as those of Fetch.
        """
        if self._bare is None:
            env = self._view.make(self._metadata)
            self._closing.callback(env.close)
            self._bare_env = Watched(env)
            self._bare = self._executor_in(self._bare_env)
        if not has_mujoco(self._bare_env) or not self._bare.player.sees:
            return {}
        found: list[States] = []
        for origin in origins_of(episode):
            for index in range(origin.first, episode.index + 1):
                found.clear()
                each = episode if index == episode.index else Episode(episode.snapshot, index)
                self._bare.execute(self._bare_env, each, seen=lambda: found.append(mujoco_state(self._bare_env)))
            if len(found) == len(episode) + 1:
                return {name: np.stack([state[name] for state in found]) for name in found[0]}
        return {}

    def _restore(self, episode: Episode, states: States) -> None:
        """Record an episode of which each state of the simulator is known, one state after another."""
        self._is_recorded, self._reason, self._expected = False, "", None
        if self._restoring is None and (reason := self._make_restoring()):
            self._reason = reason
            return
        assert self._restoring is not None
        restored, gate, recorder = self._restoring
        restored.show(episode, _observations_of(episode, restored), states)
        recorder.reset(**Player(self._metadata, restored, trust=self._view.trust).prepare_reset(episode))
        self._expected, acts = (episode, True), self._annotating(episode, recorder)
        for t, action in enumerate(self._executor.player.actions_of(episode)):
            if not acts(t):
                break
            if self._stops():
                raise Stopped
            recorder.step(action)
        if not episode.complete:
            self._cut(gate, recorder)
        self._expected = None
        self._cut(gate, recorder)

    def _make_restoring(self) -> str:
        """Make an environment whose simulator is put into recorded states; why there is none, or an empty text."""
        found: list[Restored] = []

        def wrap(inner: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
            restore = self._view.restoring(inner)
            if restore is None:
                raise _NothingRestores
            found.append(Restored(inner, restore))
            return found[0]

        if not self._executor.player.sees:
            return "its states cannot be restored: the environment has other observations than the recorded ones"
        try:
            gate = Gate(self._observed(wrap))
        except _NothingRestores:
            return "its states cannot be restored: pass restore=..., which puts the simulator into a state"
        recorder = self._recorder(gate)
        self._closing.callback(recorder.close)
        self._restoring = found[0], gate, recorder
        return ""


class _NothingRestores(GymReplayError):
    """No function is known that puts the environment's simulator into a state."""


def _extra_fields(metadata: Metadata) -> dict[str, Field]:
    """The fields of the steps that whoever recorded added, which come along."""
    return {
        name: info
        for name, info in metadata.fields.items()
        if name.partition(".")[0] not in _OF_RECORDER and not (is_info(name) or info.state or name in metadata.derived)
    }


def _infos_in(metadata: Metadata) -> list[str] | bool:
    """The entries of the infos that are recorded, as the recorder is told to record them."""
    names = {name.partition(".")[2] for name in metadata.fields if is_info(name)}
    return sorted(names - {""}) or False


def _observations_of(episode: Episode, env: gym.Env[Any, Any]) -> list[Any]:
    """The recorded observations of an episode, as the environment returned them."""
    tree = space_tree(env.observation_space, "observation", state=True)
    columns = [np.asarray(episode[leaf.name]) if not leaf.field.ragged else episode[leaf.name] for leaf in tree.leaves]
    return [unflatten(tree, [column[t] for column in columns]) for t in range(len(episode) + 1)]
