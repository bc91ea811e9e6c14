"""What the recorders of vector environments and of agents have in common: several environments are stepped at once."""

from __future__ import annotations

from typing import Any

from gym_replay.spaces import Node
from gym_replay.wrappers.recorder import Recorder
from gym_replay.wrappers.vector.batched_infos import BatchInfos
from gym_replay.wrappers.vector.batches import BatchEncoder, Column, default_of, ragged_column
from gym_replay.wrappers.vector.session import VectorSession


class BatchRecorder(Recorder):
    """A recorder whose session has an episode of each sub-environment, or agent."""

    _session: VectorSession
    _infos: BatchInfos | None = None

    def _begin_session(self, observation: Node, action: Node, count: int, run: bytes) -> None:
        """Make the session and what its rows are encoded with.

        Args:
            observation, action: the trees of the spaces of one sub-environment.
            count: how many there are.
            run: the meta field ``episode_run``.
        """
        given, fields, self._count = self._given, self._buffer.metadata.fields, count
        self._observations, self._actions = BatchEncoder(observation, count), BatchEncoder(action, count)
        self._extra_defaults = {name: default_of(fields[name]) for name in self._extra_names}
        leaves = [*observation.leaves, *action.leaves]
        session = VectorSession(self, self._buffer, leaves, self._extra_names, given, num_envs=count, run=run)
        self._use_session(session)
        if given["record_info"]:
            self._infos = BatchInfos(given["record_info"], given["dtypes"] or {}, session)

    def _put_extras(self) -> None:
        """Put the extra fields of the next step into the row of now."""
        if self._extra_names:
            self._session.staging.put(self._session.state.now, self._extra_defaults | self._extras)

    def _encode_extra(self, name: str, value: Any) -> Column:
        column = self._buffer.encoders().column(name, value, self._count)
        return ragged_column(column) if isinstance(column, list) else column
