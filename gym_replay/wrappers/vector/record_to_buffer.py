"""RecordToBuffer for vector environments: every episode of every sub-environment, stored as it is played."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable, Mapping
from types import new_class
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from typing_extensions import Unpack

from gym_replay.errors import FieldError
from gym_replay.schema.fields import describe, to_array
from gym_replay.wrappers.bounds import BoundsCheck
from gym_replay.wrappers.episode_meta import describe_run, options_to_json
from gym_replay.wrappers.infos import is_info
from gym_replay.wrappers.other_kinds import warn_of_hidden_ends
from gym_replay.wrappers.recorder import Folder, Recorder, RecorderOptions, outside_level, refuse_second_thread
from gym_replay.wrappers.rewards import fit_rewards, shape_of_first
from gym_replay.wrappers.vector.adapters.adapter import Adapter
from gym_replay.wrappers.vector.adapters.gymnasium import are_same_arrays, share_memory
from gym_replay.wrappers.vector.adapters.registry import adapter_for
from gym_replay.wrappers.vector.adapters.tensors import HostCopies, arrays_of, held, is_tensor, mapped, tensors_in
from gym_replay.wrappers.vector.autoreset import Autoreset, EnvIndices, Mask, transition_kinds
from gym_replay.wrappers.vector.autoreset_check import AutoresetCheck
from gym_replay.wrappers.vector.batched_infos import (
    FINAL,
    LAST_OBSERVATIONS,
    BatchInfos,
    InfoColumn,
    final_observations,
    info_columns,
    lacks_final_infos,
    split_final_infos,
    split_infos,
)
from gym_replay.wrappers.vector.batches import BatchEncoder, Column, default_of, ragged_column
from gym_replay.wrappers.vector.ended import Finals
from gym_replay.wrappers.vector.session import VectorSession

_FLOATS, _BOOL = (np.dtype(np.float64), np.dtype(np.float32)), np.dtype(np.bool_)


if TYPE_CHECKING:
    _Face: TypeAlias = gym.vector.VectorWrapper[Any, Any, Any, Any, Any]
else:  # another one for each kind of environment, see RecordToBuffer.__new__
    _Face = object


_classes: dict[tuple[type[Any], type[Any]], type[Any]] = {}


def _with_face(recorder: type[Any], face: type[Any]) -> type[Any]:
    """A recorder's class that is also of the kind of what it records."""
    if (recorder, face) not in _classes:
        names = {"__module__": recorder.__module__, "__qualname__": recorder.__qualname__, "__doc__": recorder.__doc__}
        made = new_class(recorder.__name__, (recorder, face), exec_body=lambda body: body.update(names))
        _classes[recorder, face] = made
    return _classes[recorder, face]


class RecordToBuffer(Recorder, _Face):
    """Records every episode of every sub-environment into one replay buffer, and changes nothing else.

    The buffer is the same as that of :class:`gym_replay.RecordToBuffer` around a single environment: the fields are
    those of the single spaces, and each episode is whole and by itself. ``env_index`` says which sub-environment it is
    of. Episodes that end in a step are committed inside it, before it returns. ``docs/semantics.md`` has what each
    step of each autoreset mode holds.

    Args:
        env: the vector environment, or another batch of environments: EnvPool's, ManiSkill's, Isaac Lab's, mjlab's, or
            one that :func:`register_adapter` knows. The recorder is of the same kind, and has its attributes.
        buffer: the folder, or a buffer, as for :class:`gym_replay.RecordToBuffer`. So are ``max_episodes``,
            ``max_timesteps``, ``max_steps``, ``circular``, ``overwrite``, ``meta_fields``, ``extra_fields``,
            ``dtypes``, ``codecs``, ``record_info``, ``on_incomplete``, ``on_episode`` and ``durability``.
        reward_shape: the same; of the rewards of one sub-environment.
        autoreset_mode: how ``env`` resets its sub-environments, an ``AutoresetMode`` or its value, such as
            ``"SameStep"``. None: what its metadata name; and where it is no environment of Gymnasium's or ale-py's, or
            they name none, what the first episodes show.

    Raises:
        UnsupportedSpaceError: a part of a space cannot be stored.
        ConfigMismatchError: the buffer in the folder is of another environment or config.
        BufferLockedError: somebody else writes to the buffer (raised by the first step where it exists already).
        FieldError: an argument is wrong. Or, raised by ``step``: the environment resets its sub-environments in another
            way than it says, and ``autoreset_mode`` is needed.

    Example:
        >>> import tempfile
        >>> envs = RecordToBuffer(gym.make_vec("CartPole-v1", num_envs=4), tempfile.mkdtemp())
        >>> _ = envs.reset(seed=0)
        >>> for _ in range(200):
        ...     _ = envs.step(envs.action_space.sample())
        >>> envs.close()
        >>> {int(episode.meta["env_index"]) for episode in envs.buffer} == {0, 1, 2, 3}
        True
    """

    _session: VectorSession
    _adapter: Adapter
    _instead_of_pickling = ""

    def __new__(cls, env: Any, *arguments: Any, **options: Any) -> RecordToBuffer:
        """A recorder of the kind of ``env``."""
        adapter = adapter_for(env)
        recorder: RecordToBuffer = object.__new__(_with_face(cls, adapter.face()))
        recorder._adapter = adapter
        return recorder

    def __init__(
        self,
        env: Any,
        buffer: Folder,
        *,
        autoreset_mode: Any = None,
        **options: Unpack[RecorderOptions],
    ) -> None:
        self._take_options(buffer, options, autoreset_mode=autoreset_mode)
        adapter = self._adapter
        adapter.face().__init__(self, env)
        self._envs = env
        self._check = AutoresetCheck(adapter, autoreset_mode)
        self._use_mode()
        observation, action = self._open_buffer(env, buffer, *self._spaces(), adapter.spec(), adapter.count)
        count, given = adapter.count, self._given
        self._flags_shape = (count,)
        self._use_rewards()
        self._observations = BatchEncoder(observation, count)
        self._actions = BatchEncoder(action, count)
        self._encode_actions: Callable[[Any], dict[str, Column]] = self._actions.encode
        if adapter.acts_on_one:
            self._encode_actions = lambda actions: self._actions.encode(mapped(actions, _batch_of_one))
        self._statistics = adapter.statistics()
        leaves, fields = [*observation.leaves, *action.leaves], self._buffer.metadata.fields
        self._extra_defaults = {name: default_of(fields[name]) for name in self._extra_names}
        infos = [name for name in fields if is_info(name)] if given["record_info"] else []
        self._session = VectorSession(
            self,
            self._buffer,
            names=[*(leaf.name for leaf in leaves), "reward", *self._extra_names, *infos],
            num_envs=count,
            run=describe_run(),
            keep=given["on_incomplete"] == "keep",
            bounds=BoundsCheck(self._stored_leaves(leaves)),
            on_episode=given["on_episode"],
        )
        self._infos: BatchInfos | None = None
        if given["record_info"]:
            self._infos = BatchInfos(given["record_info"], given["dtypes"] or {}, self._session)
        warn_of_hidden_ends(env)
        self._thread = threading.get_ident()
        self._warned: set[str] = set()
        self._copies, self._stores_late = HostCopies(), False
        self._late: Callable[[], Any] | None = None  # waits for the actions and the results of the step before
        if self._adapter.loses_strings():
            self._warn_once(
                "strings",
                "an AsyncVectorEnv with shared memory returns the same strings (and OneOf values) for ever, whatever "
                "its sub-environments observe; make it with shared_memory=False",
            )

    @property
    def autoreset_mode(self) -> str:
        """How the sub-environments are taken to be reset: ``"NextStep"``, ``"SameStep"`` or ``"Disabled"``."""
        return self._check.mode.value

    def _use_mode(self) -> None:
        mode = self._mode = self._check.mode
        self._is_same_step, self._is_disabled = mode is Autoreset.SAME_STEP, mode is Autoreset.DISABLED

    def _spaces(self) -> tuple[gym.Space[Any], gym.Space[Any]]:
        return self._adapter.space("observation_space"), self._adapter.space("action_space")

    def _use_rewards(self) -> None:
        self._reward_field = self._buffer.metadata.fields["reward"]
        self._rewards_shape = (self._adapter.count, *self._reward_field.shape)

    # --- the episodes ---

    def reset(self, *arguments: Any, **keywords: Any) -> tuple[Any, Any]:
        """Reset all sub-environments, or some, and open their episodes; those of them that are running are cut.

        Args:
            arguments, keywords: those of the environment's own ``reset``: ``seed`` and ``options`` of Gymnasium's,
                where ``options["reset_mask"]`` is which to reset. They are not changed.

        Raises:
            EpisodeStateError: it is called by ``on_episode``.
            FieldError: the mask or the seed is none, or what the environment returned does not fit.
            StorageError: the disk is full; nothing is reset, and the episodes go on.
        """
        self._use_thread()
        self._store_late()
        adapter, session = self._adapter, self._session
        call = adapter.reset_call(arguments, keywords)
        given, seeds = call.mask, call.seeds
        mask = np.ones(adapter.count, bool) if given is None else given
        session.settle()
        session.cut(mask)
        unsure = session.state.waiting & mask if adapter.forgets_resets(self._mode) else ~mask & mask
        session.lose(mask)
        self._forget_extras(given)
        generators = adapter.generators(mask & (seeds < 0), create=True)
        seen = self._options_seen(call.options)
        began = time.monotonic()
        result: tuple[Any, Any] = self._envs.reset(*call.arguments, **call.keywords)
        observations, infos = adapter.reset_result(result, call)
        self._stores_late = adapter.stores_late(observations)
        if tensors_in(observations):
            observations, infos = arrays_of((observations, infos if self._infos is not None else {}))
        try:
            columns = self._observations.encode(observations)
        except FieldError as error:
            self._explain(error)
            raise
        if given is None and not self._check.is_certain:
            self._check.note_start(columns)
        if given is not None and not adapter.honours_masks:
            mask = self._really_reset(mask, columns)
        opened = mask & ~unsure
        now, env_indices = session.state.now, np.flatnonzero(opened)
        # Those that are running keep what is in the row of now.
        some = {name: column[env_indices] for name, column in columns.items()}
        session.staging.put_some(now, some, env_indices)
        self._stage_infos(now, infos, env_indices)
        written = b"" if seen is None else options_to_json(seen)
        session.open(opened, seeds, generators, written, began)
        if unsure.any():
            self._warn_once(
                "unsure",
                f"sub-environments {np.flatnonzero(unsure).tolist()} had just ended when they were reset, and an "
                "AsyncVectorEnv without shared memory resets such ones again in the next step: their episodes are "
                "recorded from the one after on; with shared_memory=True nothing is lost",
            )
        return result

    def _options_seen(self, options: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
        """What the sub-environments see of the options of a reset: a dict, though an empty one, if there is a mask."""
        return options

    def _really_reset(self, mask: Mask, columns: Mapping[str, Column]) -> Mask:
        """Which sub-environments a reset with a mask changed that may not have known of the mask."""
        session = self._session
        changed: Mask = mask.copy()
        for name, column in columns.items():
            before = session.staging.read(session.state.now, name)
            changed |= np.array([_bytes(one) != _bytes(two) for one, two in zip(before, column, strict=True)], bool)
        if (changed & ~mask).any():
            self._warn_once(
                "mask",
                f"{self._envs} does not know options['reset_mask']: it reset other sub-environments too, whose "
                "episodes are cut",
            )
            session.cut(changed & ~mask, may_go_on=False)
        return changed

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, Any]:
        """Step all sub-environments and store their transitions; episodes that end are committed.

        Raises:
            FieldError: the actions do not fit; nothing is stepped, and the episodes go on. Or what the environment
                returned does not fit: episodes committed so far are safe, and the running ones end with the step
                before.
            EpisodeTooLongError, BufferFullError: the buffer's limits leave no room; nothing is stepped.
            StorageError: the disk is full. Finished episodes are kept, and committed by the next ``step``, ``reset`` or
                ``close`` that finds room.
        """
        if not self._begin_step(actions):
            return self._step_between_episodes(actions)
        result: tuple[Any, Any, Any, Any, Any] = self._envs.step(actions)
        self._end_step(result)
        return result

    def _begin_step(self, actions: Any) -> bool:
        """Have room for a step, and stage its actions; whether it can be a transition, or open an episode."""
        if threading.get_ident() != self._thread:
            self._use_thread()
        if self._late is not None:
            self._store_late()
        session = self._session
        if not session.prepare():
            return False
        state, staging = session.state, session.staging
        now = state.now
        if self._stores_late:
            self._acted = held(actions)
        else:
            try:
                staging.put(now, self._encode_actions(actions))
            except FieldError as error:
                self._explain(error)
                raise
        if self._extra_names:
            staging.put(now, self._extra_defaults | self._extras)
        self._generators = None
        if state.has_waiting and self._adapter.can_be_asked:  # only in next-step mode
            self._generators = self._adapter.generators(state.waiting, create=True)
        self._began = time.monotonic()
        session.begun_at = now
        if self._extras:
            self._extras = {}
        return True

    def _end_step(self, result: Any) -> None:
        """Store what the step that was begun returned, and commit what ended."""
        try:
            if self._stores_late:
                step = self._wanted(self._adapter.step_result(result))
                self._late = self._copies.begin((self._acted, step))
            else:
                self._store(self._adapter.step_result(result))
        except Exception as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> NoReturn:
        """Raise the error of a step that cannot be stored."""
        if self._session.is_broken:
            # The environments have moved on and this step cannot be stored, so none after it may be.
            self._session.settle()
        self._explain(error)
        raise error

    def _store_late(self) -> None:
        """Store the step before, where it was copied from a device meanwhile."""
        if self._late is None:
            return
        late, self._late = self._late, None
        try:
            actions, step = late()
            self._session.staging.put(self._session.state.now, self._encode_actions(actions))
            self._store(step)
        except Exception as error:
            self._give_up(error)

    def _wanted(self, step: tuple[Any, Any, Any, Any, Any]) -> tuple[Any, Any, Any, Any, Any]:
        """What a step returned, of the infos only what is stored."""
        *values, infos = step
        if self._infos is None and isinstance(infos, Mapping):
            infos = {name: infos[name] for name in LAST_OBSERVATIONS if name in infos}
        return (*values, infos)

    def _use_thread(self) -> None:
        """Let this thread step and reset from now on, unless another one is in the middle of that."""
        self._session.refuse_within_on_episode()
        refuse_second_thread(self)
        self._thread = threading.get_ident()

    def _store(self, step: tuple[Any, Any, Any, Any, Any]) -> None:
        """Stage what a step returned, and commit what ended."""
        observations, rewards, terminations, truncations, infos = step
        session = self._session
        if type(rewards) is not np.ndarray and is_tensor(rewards):
            observations, rewards, terminations, truncations, infos = arrays_of(self._wanted(step))
        if type(rewards) is not np.ndarray or rewards.dtype not in _FLOATS or rewards.shape != self._rewards_shape:
            rewards = self._fitted_rewards(rewards)
        now, staging = session.state.now, session.staging
        staging.put(now + 1, self._observations.encode(observations))
        terminated, truncated = self._flag("terminated", terminations), self._flag("truncated", truncations)
        staging.put(now, {"reward": rewards})
        done = terminated | truncated
        if not self._check.is_certain:
            self._look(infos, observations, rewards, done)
        state, kinds, finals = session.state, None, None
        has_done = 1 in done.tobytes()  # in a quarter of the time that NumPy takes to count them
        if has_done or self._infos is not None:
            infos = self._check.with_known_names(infos)
        if has_done or state.has_waiting or state.ended:
            kinds = transition_kinds(self._mode, state.running, state.waiting, done)
            if self._is_same_step and 1 in kinds.ended.tobytes():
                finals = self._finals(np.flatnonzero(kinds.ended), infos, observations)
        if self._infos is not None:
            ended = None if kinds is None else kinds.ended
            recorded = state.running if kinds is None else kinds.running | kinds.ended
            self._stage_infos(now + 1, infos, np.flatnonzero(recorded), ended)
            if finals is not None:
                finals = self._with_late_infos(finals)
        if self._is_disabled:
            self._warn_of_unreset(state.running)
        flags = terminated, truncated
        session.advance(kinds, rewards, flags, finals=finals, generators=self._generators, began=self._began)

    def _look(self, infos: Any, observations: Any, rewards: npt.NDArray[Any], done: Mask) -> None:
        """Look whether a step fits the autoreset mode."""
        session, state, check = self._session, self._session.state, self._check
        try:
            if state.has_waiting or check.is_pending:
                before, after = (
                    {name: session.staging.read(time, name) for name in self._observation_names}
                    for time in (state.now, state.now + 1)
                )
                check.look_after(state.waiting, rewards, done, before, after)
                session.on_hold = False
            ended = np.flatnonzero(state.running & done)
            if len(ended):
                check.look_at_end(ended, infos, observations, self._observations)
        except FieldError:
            session.trusts_last = False
            raise
        self._use_mode()
        if len(ended) and check.holds_commits:
            session.on_hold, session.trusts_last = True, check.is_declared

    def _fitted_rewards(self, rewards: Any) -> npt.NDArray[Any]:
        """Rewards as floats, ``(num_envs, *reward shape)``."""
        lead = (self._adapter.count,)
        if self._believes_rewards:
            shape = shape_of_first(rewards, self._reward_field.shape, lead)
            if shape is not None and self._session.adopt_reward_shape(shape):
                self._use_rewards()
            self._believes_rewards = False
        return np.ascontiguousarray(fit_rewards(rewards, self._reward_field, lead))

    def _flag(self, name: str, values: Any) -> Mask:
        """A flag of each sub-environment.

        Raises:
            FieldError: they are no booleans, or another number of them.
        """
        array: npt.NDArray[Any] = values if type(values) is np.ndarray else to_array(values, name)
        if array.dtype == _BOOL and array.shape == self._flags_shape:
            return array
        if array.dtype == np.uint8 and array.shape == self._flags_shape and (array <= 1).all():
            return array.astype(bool)  # as SuperSuit has them
        expected = f"a bool array of shape {self._flags_shape}"
        raise FieldError(f"field {name!r}: expected {expected}, got {describe(values)}")

    # --- last observations, where the next episode has begun in the same step ---

    def _finals(self, env_indices: EnvIndices, infos: Any, observations: Any) -> Finals:
        """The last observations, and infos, of the episodes that ended."""
        count = self._adapter.count
        given, there = final_observations(infos, count, env_indices.tolist())
        has_final = np.array(there, bool)
        if not isinstance(given, list):  # dense arrays over all sub-environments
            finals = {name: column[env_indices] for name, column in self._observations.encode(given).items()}
        else:
            for index in np.flatnonzero(has_final).tolist():
                # That a part holds what it held in all rows before proves nothing: a flag may change in the last row.
                if share_memory(given[index], self._adapter.first_observation(int(env_indices[index]))):
                    has_final[index] = False
                    self._warn_of_reused_arrays()
            finals = self._fill_final(given, has_final, env_indices)
        if not all(there):
            self._warn_once("final", self._adapter.without_last)
        if self._infos is not None:
            finals |= self._info_columns(self._final_infos(infos, env_indices))
        if not self._adapter.can_be_asked and isinstance(given, list):
            self._look_for_reused_arrays(given, finals, observations, env_indices)
        return Finals(finals, has_final)

    def _fill_final(
        self, given: list[Any], has_final: npt.NDArray[np.bool_], env_indices: EnvIndices
    ) -> dict[str, Column]:
        """The columns of last observations, with defaults where there is none."""
        indices = np.flatnonzero(has_final)
        values = [given[index] for index in indices.tolist()]
        found = self._observations.encode_each(values, env_indices[indices].tolist()) if values else {}
        columns: dict[str, Column] = {}
        for leaf in self._observations.leaves:
            default = default_of(leaf.field)
            columns[leaf.name] = np.broadcast_to(default, (len(given), *default.shape)).copy()
            if found:
                columns[leaf.name][indices] = found[leaf.name]
        return columns

    def _look_for_reused_arrays(
        self, given: list[Any], finals: Mapping[str, Column], observations: Any, env_indices: EnvIndices
    ) -> None:
        """Warn where last observations are what the next episodes begin with, as reused arrays look from outside."""
        encoded = self._observations.encode(observations)
        for index, env_index in enumerate(env_indices.tolist()):
            last = {name: finals[name][index] for name in encoded}
            first = {name: encoded[name][env_index] for name in encoded}
            if isinstance(given[index], (np.ndarray, Mapping, tuple)) and are_same_arrays(last, first):
                self._warn_of_reused_arrays(is_certain=False)
                return

    def _warn_of_reused_arrays(self, *, is_certain: bool = True) -> None:
        if is_certain:
            what = "the last observations are overwritten before anybody sees them, and are not stored"
        else:
            what = "last observations may have been overwritten: some equal the first ones of the next episodes"
        self._warn_once(
            "arrays",
            "an environment that returns one array again and again does not go with same-step autoreset: "
            + what
            + "; return copies, or use the next-step mode",
        )

    # --- infos ---

    def _stage_infos(self, time: int, infos: Any, env_indices: EnvIndices, ended: Mask | None = None) -> None:
        """Put the infos of some sub-environments into the row of a time; ``ended`` is where an episode has ended."""
        if self._infos is None:
            return
        is_same_step, has_finals = self._is_same_step, self._check.has_finals
        # Those that a wrapper adds in a step of this mode are of the episodes that have ended in it.
        removed = dict.fromkeys(self._statistics, ended) if is_same_step and ended is not None else {}
        batch = self._infos.columns(infos, self._adapter.count, FINAL if has_finals else (), removed)
        if batch is not None:
            self._stage_batch(time, batch, env_indices)
            return
        is_of_step = time > self._session.state.now
        if is_of_step and self._adapter.joins_infos and isinstance(infos, Mapping):
            for name in self._infos.cut_entries(infos):
                self._warn_once(
                    "cut",
                    f"{name} came as integers, though it is a float: Gymnasium gives an entry of all sub-environments "
                    "the type of the first one's, and may have cut the others' fractions off; have the environment "
                    "always return a float",
                )
        found = split_infos(infos, self._adapter.count, env_indices.tolist(), has_finals=has_finals)
        for key, mask in removed.items():
            for info, env_index in zip(found, env_indices.tolist(), strict=True):
                if mask[env_index]:
                    info.pop(key, None)
        self._session.staging.put_some(time, self._info_columns(found), env_indices)

    def _stage_batch(self, time: int, batch: list[InfoColumn], env_indices: EnvIndices) -> None:
        """Put values of all sub-environments, of which some are asked for, into the row of a time."""
        staging, fields = self._session.staging, self._session.fields  # not the presence of what was added by hand
        columns = {name: values for name, values in batch if name in fields}
        if len(env_indices) == self._adapter.count:
            staging.put(time, columns)
            return
        are_of_each = {name: values.ndim > len(fields[name].shape) for name, values in columns.items()}
        some = {name: values[env_indices] if are_of_each[name] else values for name, values in columns.items()}
        staging.put_some(time, some, env_indices)

    def _final_infos(self, infos: Any, env_indices: EnvIndices) -> list[dict[Any, Any]]:
        """The infos of the last rows of the episodes that ended."""
        count, chosen = self._adapter.count, env_indices.tolist()
        found = split_final_infos(infos, count, chosen)
        if self._statistics:
            for info, of_step in zip(found, split_infos(infos, count, chosen), strict=True):
                info |= {key: of_step[key] for key in self._statistics if key in of_step}
        if "final_info" not in self._warned and lacks_final_infos(infos, count, chosen, self._statistics):
            self._warn_once(
                "final_info",
                "there is no infos['final_info'], though the autoreset mode is same-step: the infos that came with "
                "last observations are lost, and the rows of those have none",
            )
        return found

    def _with_late_infos(self, finals: Finals) -> Finals:
        """With the fields that were found since in what the resets returned: the episodes that ended have no values."""
        assert self._infos is not None
        rows = self._info_columns([{}] * len(finals.has_final))
        return Finals({**rows, **finals.columns}, finals.has_final)

    def _info_columns(self, infos: list[dict[Any, Any]]) -> dict[str, Column]:
        """The info fields' values, a row for each info."""
        assert self._infos is not None
        return info_columns(self._infos, infos, self._session)

    # --- what is no transition ---

    def _step_between_episodes(self, actions: Any) -> tuple[Any, Any, Any, Any, Any]:
        self._warn_of_pause(stacklevel=4)
        return self._envs.step(actions)  # type: ignore[no-any-return]

    def _warn_of_pause(self, stacklevel: int) -> None:
        """A step begins that is no transition of any sub-environment."""
        warnings.warn(
            "a step without a running episode is not recorded; call reset() after an exception inside a step, after "
            "the buffer was released, and, where autoreset is disabled, after episodes have ended",
            stacklevel=stacklevel,
        )
        self._extras = {}

    def _warn_of_unreset(self, running: Mask) -> None:
        if not running.all():
            self._warn_once(
                "unreset",
                f"sub-environments {np.flatnonzero(~running).tolist()} have ended and were not reset; until they are, "
                "with reset(options={'reset_mask': mask}), their steps are not recorded",
            )

    def _warn_once(self, what: str, message: str) -> None:
        if what not in self._warned:
            self._warned.add(what)
            warnings.warn(message, stacklevel=outside_level())

    def annotate(self, /, **meta: Any) -> None:
        self._store_late()
        super().annotate(**meta)

    annotate.__doc__ = Recorder.annotate.__doc__

    def _end_episodes(self) -> None:
        self._store_late()
        super()._end_episodes()

    def _encode_extra(self, name: str, value: Any) -> Column:
        column = self._buffer.encoders().column(name, value, self._adapter.count)
        return ragged_column(column) if isinstance(column, list) else column

    def _forget_extras(self, mask: Mask | None) -> None:
        """Take extra fields back that were set for the next step: of the sub-environments in a mask, or of all."""
        if mask is None:
            self._extras = {}
            return
        for name, column in self._extras.items():
            column[mask] = default_of(self._buffer.metadata.fields[name])


def _batch_of_one(value: Any) -> Any:
    return (value if is_tensor(value) else np.asarray(value))[None]


def _bytes(value: Any) -> bytes:
    return np.asarray(value).tobytes()
