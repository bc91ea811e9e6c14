"""RecordToBuffer for vector environments: every episode of every sub-environment, stored as it is played."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from types import new_class
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

import gymnasium as gym
import numpy as np
from typing_extensions import Unpack

from gym_replay.errors import FieldError
from gym_replay.wrappers.episode_meta import describe_run, options_to_json
from gym_replay.wrappers.other_kinds import warn_of_hidden_ends
from gym_replay.wrappers.recorder import Folder, Recorder, RecorderOptions, refuse_second_thread, warn_of_pause
from gym_replay.wrappers.vector.adapters.adapter import Adapter
from gym_replay.wrappers.vector.adapters.registry import adapter_for
from gym_replay.wrappers.vector.adapters.tensors import HostCopies, arrays_of, held, is_tensor, mapped, tensors_in
from gym_replay.wrappers.vector.autoreset import Mask
from gym_replay.wrappers.vector.autoreset_check import AutoresetCheck
from gym_replay.wrappers.vector.batch_recorder import BatchRecorder
from gym_replay.wrappers.vector.batches import Column, default_of
from gym_replay.wrappers.vector.intake import Intake

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


class RecordToBuffer(BatchRecorder, _Face):
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

    _adapter: Adapter

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
        observation, action = self._open_buffer(env, buffer, *self._spaces(), adapter.spec(), adapter.count)
        self._begin_session(observation, action, adapter.count, describe_run())
        self._encode_actions: Callable[[Any], dict[str, Column]] = self._actions.encode
        if adapter.acts_on_one:
            self._encode_actions = lambda actions: self._actions.encode(mapped(actions, _batch_of_one))
        self._intake = Intake(adapter, self._check, self._session, self._observations, self._rewards, self._infos)
        warn_of_hidden_ends(env)
        self._thread = threading.get_ident()
        self._copies, self._stores_late = HostCopies(), False
        self._late: Callable[[], Any] | None = None  # waits for the actions and the results of the step before
        if self._adapter.loses_strings():
            self._intake.warn_once(
                "strings",
                "an AsyncVectorEnv with shared memory returns the same strings (and OneOf values) for ever, whatever "
                "its sub-environments observe; make it with shared_memory=False",
            )

    @property
    def autoreset_mode(self) -> str:
        """How the sub-environments are taken to be reset: ``"NextStep"``, ``"SameStep"`` or ``"Disabled"``."""
        return self._check.mode.value

    def _spaces(self) -> tuple[gym.Space[Any], gym.Space[Any]]:
        return self._adapter.space("observation_space"), self._adapter.space("action_space")

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
        unsure = session.state.waiting & mask if adapter.forgets_resets(self._check.mode) else ~mask & mask
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
            opened = self._intake.take_reset(observations, infos, given, unsure)
        except FieldError as error:
            self._explain(error)
            raise
        session.open(opened, seeds, generators, b"" if seen is None else options_to_json(seen), began)
        if unsure.any():
            self._intake.warn_once(
                "unsure",
                f"sub-environments {np.flatnonzero(unsure).tolist()} had just ended when they were reset, and an "
                "AsyncVectorEnv without shared memory resets such ones again in the next step: their episodes are "
                "recorded from the one after on; with shared_memory=True nothing is lost",
            )
        return result

    def _options_seen(self, options: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
        """What the sub-environments see of the options of a reset: a dict, though an empty one, if there is a mask."""
        return options

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
        is_recorded = self._begin_step(actions)
        result: tuple[Any, Any, Any, Any, Any] = self._envs.step(actions)
        if is_recorded:
            self._end_step(result)
        return result

    def _begin_step(self, actions: Any) -> bool:
        """Have room for a step, and stage its actions; whether it can be a transition, or open an episode.

        Warns of one that can be neither.
        """
        if threading.get_ident() != self._thread:
            self._use_thread()
        if self._late is not None:
            self._store_late()
        session = self._session
        if not session.prepare():
            warn_of_pause()
            self._extras = {}
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
        self._put_extras()
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
                step = self._intake.wanted(self._adapter.step_result(result))
                self._late = self._copies.begin((self._acted, step))
            else:
                self._intake.take_step(self._adapter.step_result(result), self._generators, self._began)
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
            self._intake.take_step(step, self._generators, self._began)
        except Exception as error:
            self._give_up(error)

    def _use_thread(self) -> None:
        """Let this thread step and reset from now on, unless another one is in the middle of that."""
        self._session.refuse_within_on_episode()
        refuse_second_thread(self)
        self._thread = threading.get_ident()

    def annotate(self, /, **meta: Any) -> None:
        self._store_late()
        super().annotate(**meta)

    annotate.__doc__ = Recorder.annotate.__doc__

    def _end_episodes(self) -> None:
        self._store_late()
        super()._end_episodes()

    def _forget_extras(self, mask: Mask | None) -> None:
        """Take extra fields back that were set for the next step: of the sub-environments in a mask, or of all."""
        if mask is None:
            self._extras = {}
            return
        for name, column in self._extras.items():
            column[mask] = default_of(self._buffer.metadata.fields[name])


def _batch_of_one(value: Any) -> Any:
    return (value if is_tensor(value) else np.asarray(value))[None]
