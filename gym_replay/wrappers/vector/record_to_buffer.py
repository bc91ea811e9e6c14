"""RecordToBuffer for vector environments: every episode of every sub-environment, stored as it is played."""

from __future__ import annotations

import os
import threading
import time
import warnings
import weakref
from collections.abc import Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from gym_replay.buffer.replay_buffer import ReplayBuffer
from gym_replay.errors import EpisodeStateError, FieldError
from gym_replay.files.folders import folder_of
from gym_replay.files.garbage import finalize
from gym_replay.schema.fields import FieldLike, describe, elements_of, fit, to_array
from gym_replay.wrappers.bounds import BoundsCheck
from gym_replay.wrappers.episode_facts import describe_run, options_to_json
from gym_replay.wrappers.infos import is_info
from gym_replay.wrappers.recorded_schema import (
    check_arguments,
    core_fields,
    open_for,
    plain_arguments,
    refuse_own_meta,
    trees_of,
)
from gym_replay.wrappers.recorder import Recorder, refuse_other_spaces, wrong_result
from gym_replay.wrappers.recording import OnEpisode
from gym_replay.wrappers.rewards import (
    RewardShape,
    declared_shape,
    fit_rewards,
    parse_reward_shape,
    shape_of_first,
)
from gym_replay.wrappers.vector.autoreset import Autoreset, Mask, transition_kinds
from gym_replay.wrappers.vector.autoreset_check import AutoresetCheck
from gym_replay.wrappers.vector.batches import BatchEncoder, Column
from gym_replay.wrappers.vector.info_columns import BatchInfos, InfoColumn
from gym_replay.wrappers.vector.infos import (
    FINAL,
    final_observations,
    lacks_final_infos,
    split_final_infos,
    split_infos,
)
from gym_replay.wrappers.vector.recording import VectorRecording
from gym_replay.wrappers.vector.ring import Numbers
from gym_replay.wrappers.vector.sub_environments import RESET_MASK, SubEnvironments, are_same_arrays, share_memory
from gym_replay.wrappers.vector.take_out import Finals

_FLOAT64, _FLOAT32, _BOOL = np.dtype(np.float64), np.dtype(np.float32), np.dtype(np.bool_)


if TYPE_CHECKING:
    _VectorWrapper: TypeAlias = gym.vector.VectorWrapper[Any, Any, Any, Any, Any]
else:  # in Gymnasium 1.0 it takes no types
    _VectorWrapper = gym.vector.VectorWrapper


class RecordToBuffer(Recorder, _VectorWrapper, gym.utils.RecordConstructorArgs):
    """Records every episode of every sub-environment into one replay buffer, and changes nothing else.

    The buffer is the same as that of :class:`gym_replay.RecordToBuffer` around a single environment: the fields are
    those of the single spaces, and each episode is whole and by itself. ``env_index`` says which sub-environment it is
    of. Episodes that end in a step are committed inside it, before it returns. ``docs/semantics.md`` has what each
    step of each autoreset mode holds.

    Args:
        env: the vector environment.
        buffer, max_episodes, max_timesteps, max_steps, circular, overwrite, meta_fields, extra_fields, dtypes,
        record_info, on_incomplete, on_episode, durability: as for :class:`gym_replay.RecordToBuffer`.
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

    _recording: VectorRecording
    _instead_of_pickling = ""

    def __init__(
        self,
        env: gym.vector.VectorEnv[Any, Any, Any],
        buffer: str | os.PathLike[str] | ReplayBuffer,
        *,
        max_episodes: int | None = None,
        max_timesteps: int | None = None,
        max_steps: int | None = None,
        circular: bool = False,
        overwrite: bool = False,
        meta_fields: Mapping[str, FieldLike] | None = None,
        extra_fields: Mapping[str, FieldLike] | None = None,
        reward_shape: RewardShape | None = None,
        autoreset_mode: Any = None,
        dtypes: Mapping[str, Any] | None = None,
        record_info: bool | Iterable[str] = False,
        on_incomplete: str = "keep",
        on_episode: OnEpisode | None = None,
        durability: str = "process",
    ) -> None:
        is_vector = isinstance(env, gym.vector.VectorEnv)  # EnvPool's are of both classes
        if isinstance(env, gym.Env) and not is_vector:
            raise TypeError(
                f"expected a gymnasium.vector.VectorEnv, got the single environment {type(env).__name__}; wrap it in "
                "gym_replay.RecordToBuffer"
            )
        if not is_vector:
            raise TypeError(f"expected a gymnasium.vector.VectorEnv, got {type(env).__name__}")
        record_info = check_arguments(on_incomplete, record_info, dtypes)
        shape = parse_reward_shape(reward_shape)
        limits: dict[str, Any] = {
            "max_episodes": max_episodes,
            "max_timesteps": max_timesteps,
            "max_steps": max_steps,
            "circular": circular,
        }
        gym.utils.RecordConstructorArgs.__init__(
            self,
            buffer=str(buffer.folder if isinstance(buffer, ReplayBuffer) else folder_of(buffer)),
            reward_shape=reward_shape,
            autoreset_mode=autoreset_mode,
            record_info=record_info,
            on_incomplete=on_incomplete,
            durability=durability,
            **plain_arguments(meta_fields, extra_fields, dtypes),
            **limits,
        )
        gym.vector.VectorWrapper.__init__(self, env)
        self._check = AutoresetCheck(env, autoreset_mode)
        self._use_mode()
        self._sub = SubEnvironments(env)
        dtypes = dict(dtypes or {})
        observation_space = self._sub.space("observation_space")
        action_space = self._sub.space("action_space")
        observation, action = trees_of(observation_space, action_space, dtypes)
        core = core_fields(observation, action, declared_shape(env) if shape is None else shape)
        self._owns_buffer = not isinstance(buffer, ReplayBuffer)
        self._buffer = open_for(
            observation_space,
            action_space,
            self._sub.spec(),
            core,
            buffer,
            {**limits, "circular": circular or None},
            overwrite=overwrite,
            durability=durability,
            extra=extra_fields,
            meta=meta_fields,
            keeps_reward_shape=shape is None,
        )
        count = self._sub.count
        fields = self._buffer.metadata.fields
        self._flags_shape = (count,)
        self._believes_rewards = shape is None  # the first ones decide their shape
        self._use_rewards()
        self._observations = BatchEncoder(observation, count)
        self._actions = BatchEncoder(action, count)
        self._observation_names = [leaf.name for leaf in observation.leaves]
        self._extra_names = [name for name in fields if name not in core and not is_info(name)]
        self._extras: dict[str, Column] = {}
        self._statistics = self._sub.statistics()
        infos = [name for name in fields if is_info(name)] if record_info else []
        self._recording = VectorRecording(
            self._buffer,
            [*self._observation_names, *(leaf.name for leaf in action.leaves), "reward", *self._extra_names, *infos],
            count,
            run=describe_run(),
            keep=on_incomplete == "keep",
            bounds=BoundsCheck([*observation.leaves, *action.leaves]),
            on_episode=on_episode,
        )
        self._infos: BatchInfos | None = BatchInfos(record_info, dtypes, self._recording) if record_info else None
        self._guarded: object = None
        self._thread = threading.get_ident()
        self._warned: set[str] = set()
        if self._sub.loses_strings():
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

    def _use_rewards(self) -> None:
        self._reward_field = self._buffer.metadata.fields["reward"]
        self._rewards_shape = (self._sub.count, *self._reward_field.shape)

    # --- the episodes ---

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Reset all sub-environments, or those in ``options["reset_mask"]``, and open their episodes.

        Those of them whose episodes are running are cut. ``options`` is not changed.

        Raises:
            EpisodeStateError: it is called by ``on_episode``.
            FieldError: the mask or the seed is none, or what the environment returned does not fit.
            StorageError: the disk is full; nothing is reset, and the episodes go on.
        """
        self._use_thread()
        recording = self._recording
        given = self._sub.mask_of(options)
        mask = np.ones(self._sub.count, bool) if given is None else given
        seeds = self._sub.seeds(seed, mask)
        recording.settle()
        recording.cut(mask)
        unsure = recording.waiting & mask if self._sub.forgets_resets(self._mode) else ~mask & mask
        recording.lose(mask)
        self._forget_extras(given)
        generators = self._sub.generators(mask & (seeds < 0), create=True)
        if options is not None and given is not None:
            options = dict(options)
        kept = self._options_seen(options)
        began = time.monotonic()
        result = self.env.reset(seed=seed, options=options)  # type: ignore[arg-type]
        if not isinstance(result, (tuple, list)) or len(result) != 2:
            raise wrong_result("reset", result, "observations", "infos")
        try:
            columns = self._observations.encode(result[0])
        except FieldError as error:
            self._explain(error)
            raise
        if given is None and not self._check.is_certain:
            self._check.note_start(columns)
        if given is not None and not self._sub.honours_masks():
            mask = self._really_reset(mask, columns)
        opened = mask & ~unsure
        now, numbers = recording.now, np.flatnonzero(opened)
        # Those that are running keep what is in the row of now.
        for name, column in zip(self._observation_names, columns, strict=True):
            recording.staging.write(now, name, _of(column, numbers), numbers)
        self._stage_infos(now, result[1], numbers)
        written = b"" if kept is None else options_to_json(kept)
        recording.open(opened, seeds, generators, written, began)
        if unsure.any():
            self._warn_once(
                "unsure",
                f"sub-environments {np.flatnonzero(unsure).tolist()} had just ended when they were reset, and an "
                "AsyncVectorEnv without shared memory resets such ones again in the next step: their episodes are "
                "recorded from the one after on; with shared_memory=True nothing is lost",
            )
        return result

    def _options_seen(self, options: dict[str, Any] | None) -> dict[str, Any] | None:
        """What the sub-environments see of the options of a reset: a dict, though an empty one, if there is a mask."""
        return None if options is None else {key: value for key, value in options.items() if key != RESET_MASK}

    def _really_reset(self, mask: Mask, columns: list[Column]) -> Mask:
        """Which sub-environments a reset with a mask changed that may not have known of the mask."""
        recording = self._recording
        changed: Mask = mask.copy()
        for name, column in zip(self._observation_names, columns, strict=True):
            before = recording.staging.read(recording.now, name)
            changed |= np.array([_bytes(one) != _bytes(two) for one, two in zip(before, column, strict=True)], bool)
        if (changed & ~mask).any():
            self._warn_once(
                "mask",
                f"{self.env} does not know options['reset_mask']: it reset other sub-environments too, whose episodes "
                "are cut",
            )
            recording.cut(changed & ~mask, may_go_on=False)
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
        if threading.get_ident() != self._thread:
            self._use_thread()
        recording = self._recording
        writer = recording.prepare()
        if writer is None:
            return self._step_between_episodes(actions)
        if self._guarded is not writer:
            # Made after the writer's own, so that at the interpreter's exit it runs before it.
            self._guarded = writer
            weakref.finalize(self, finalize, recording.end)
        now = recording.now
        staging = recording.staging
        try:
            staging.put(now, self._actions, actions)
        except FieldError as error:
            self._explain(error)
            raise
        for name in self._extra_names:
            if name in self._extras:
                staging.write(now, name, self._extras[name])
            else:
                staging.write_default(now, name)
        generators = None
        if recording.has_waiting and self._sub.knows_generators:  # only in next-step mode
            generators = self._sub.generators(recording.waiting, create=True)
        began = time.monotonic()
        recording.is_broken = True
        if self._extras:
            self._extras = {}
        result = self.env.step(actions)
        try:
            self._store(result, generators, began)
        except Exception as error:
            if recording.is_broken:
                # The environments have moved on and this step cannot be stored, so none after it may be.
                recording.settle()
            self._explain(error)
            raise
        return result

    def _use_thread(self) -> None:
        """Let this thread step and reset from now on, unless another one is in the middle of that."""
        self._recording.refuse_within_on_episode()
        self._refuse_second_thread()
        self._thread = threading.get_ident()

    def _explain(self, error: Exception) -> None:
        """Raise a better error of values that do not fit, where their space is not the one that was wrapped."""
        if isinstance(error, FieldError):
            spaces = (self._sub.space(name) for name in ("observation_space", "action_space"))
            refuse_other_spaces(error, self._buffer, *spaces)

    def _store(self, result: Any, generators: npt.NDArray[np.uint64] | None, began: float) -> None:
        """Stage what a step returned, and commit what ended."""
        try:
            observations, rewards, terminations, truncations, infos = result
        except (TypeError, ValueError):
            names = "observations", "rewards", "terminations", "truncations", "infos"
            raise wrong_result("step", result, *names) from None
        recording = self._recording
        if type(rewards) is not np.ndarray or rewards.dtype is not _FLOAT64 or rewards.shape != self._rewards_shape:
            rewards = self._fitted_rewards(rewards)
        now, staging = recording.now, recording.staging
        staging.put(now + 1, self._observations, observations)
        rewards = staging.write_reward(now, rewards)
        terminated, truncated = self._flags(terminations, truncations)
        done = terminated | truncated
        was_on_hold = recording.on_hold
        if not self._check.is_certain:
            self._look(infos, observations, rewards, done)
        if self._check.may_rename:
            infos = self._check.with_known_names(infos)
        if was_on_hold or 1 in done.tobytes():  # in a quarter of the time that NumPy takes to count them
            self._store_turn(observations, infos, rewards, (terminated, truncated, done), generators, began)
            return
        has_waiting = recording.has_waiting
        if self._infos is not None:
            running = recording.running | recording.waiting if has_waiting else recording.running
            self._stage_infos(now + 1, infos, np.flatnonzero(running))
        if has_waiting:
            recording.open_waiting(rewards, done, generators, began)
            return
        if self._is_disabled:
            self._warn_of_unreset(recording.running)
        recording.step_on(rewards)

    def _look(self, infos: Any, observations: Any, rewards: npt.NDArray[Any], done: Mask) -> None:
        """Look whether a step fits the autoreset mode."""
        recording, check = self._recording, self._check
        try:
            if recording.has_waiting or check.is_pending:
                before, after = (
                    [recording.staging.read(time, name) for name in self._observation_names]
                    for time in (recording.now, recording.now + 1)
                )
                check.look_after(recording.waiting, rewards, done, before, after)
                recording.on_hold = False
            ended = np.flatnonzero(recording.running & done)
            if len(ended):
                check.look_at_end(ended, infos, observations, self._observations)
        except FieldError:
            recording.trusts_last = False
            raise
        self._use_mode()
        if len(ended) and check.holds_commits:
            recording.on_hold, recording.trusts_last = True, check.is_declared

    def _store_turn(
        self,
        observations: Any,
        infos: Any,
        rewards: npt.NDArray[Any],
        flags: tuple[Mask, Mask, Mask],
        generators: npt.NDArray[np.uint64] | None,
        began: float,
    ) -> None:
        """The rest of a step in which episodes ended or began."""
        terminated, truncated, done = flags
        recording = self._recording
        turn = transition_kinds(self._mode, recording.running, recording.waiting, done)
        finals = None
        if self._is_same_step and np.count_nonzero(turn.ended):
            finals = self._finals(np.flatnonzero(turn.ended), infos, observations)
        if self._infos is not None:
            self._stage_infos(recording.now + 1, infos, np.flatnonzero(turn.running | turn.ended), turn.ended)
            if finals is not None:
                finals = self._with_late_infos(finals)
        if self._is_disabled:
            self._warn_of_unreset(recording.running)
        recording.advance(
            turn,
            rewards,
            terminated,
            truncated,
            finals=finals,
            generators=generators,
            began=began,
        )

    def _fitted_rewards(self, rewards: Any) -> npt.NDArray[Any]:
        """Rewards as floats, ``(num_envs, *reward shape)``."""
        if type(rewards) is np.ndarray and rewards.dtype is _FLOAT32 and rewards.shape == self._rewards_shape:
            return rewards  # what stores them takes both
        lead = (self._sub.count,)
        if self._believes_rewards:
            shape = shape_of_first(rewards, self._reward_field.shape, lead)
            if shape is not None and self._recording.adopt_reward_shape(shape):
                self._use_rewards()
            self._believes_rewards = False
        return np.ascontiguousarray(fit_rewards(rewards, self._reward_field, lead))

    def _flags(self, terminations: Any, truncations: Any) -> tuple[Mask, Mask]:
        """Both flags of each sub-environment.

        Raises:
            FieldError: they are no booleans, or another number of them.
        """
        if type(terminations) is np.ndarray and type(truncations) is np.ndarray:
            shape = self._flags_shape
            if terminations.dtype is _BOOL is truncations.dtype and terminations.shape == shape == truncations.shape:
                return terminations, truncations
        return self._fitted_flags("terminated", terminations), self._fitted_flags("truncated", truncations)

    def _fitted_flags(self, name: str, values: Any) -> Mask:
        array: npt.NDArray[Any] = values if type(values) is np.ndarray else to_array(values, name)
        if array.dtype == _BOOL and array.shape == self._flags_shape:
            return array
        if array.dtype == np.uint8 and array.shape == self._flags_shape and (array <= 1).all():
            return array.astype(bool)  # as SuperSuit has them
        expected = f"a bool array of shape {self._flags_shape}"
        raise FieldError(f"field {name!r}: expected {expected}, got {describe(values)}")

    # --- last observations, where the next episode has begun in the same step ---

    def _finals(self, numbers: Numbers, infos: Any, observations: Any) -> Finals:
        """The last observations, and infos, of the episodes that ended."""
        count = self._sub.count
        given, there = final_observations(infos, count, numbers.tolist())
        has_final = np.array(there, bool)
        if not isinstance(given, list):  # dense arrays over all sub-environments
            columns = [_of(column, numbers) for column in self._observations.encode(given)]
        else:
            for place in np.flatnonzero(has_final).tolist():
                number = int(numbers[place])
                if self._was_overwritten(number, given[place]):
                    has_final[place] = False
                    self._warn_of_reused_arrays()
            columns = self._fill_final(given, has_final, numbers)
        if not all(there):
            self._warn_once(
                "final",
                "there is no infos['final_obs'] for some episodes that ended, though the autoreset mode is same-step: "
                "they are stored without their last observation",
            )
        finals = dict(zip(self._observation_names, columns, strict=True))
        if self._infos is not None:
            finals |= self._info_columns(self._final_infos(infos, numbers))
        if not self._sub.knows_arrays and isinstance(given, list):
            self._look_for_reused_arrays(given, finals, observations, numbers)
        return Finals(finals, has_final)

    def _was_overwritten(self, number: int, final: Any) -> bool:
        """Whether an episode's last observation is in arrays that the reset may have written to since.

        That a part holds what it held in all rows before proves nothing: a flag may change in the last row alone.
        """
        return share_memory(final, self._sub.first_observation(number))

    def _fill_final(self, given: list[Any], has_final: npt.NDArray[np.bool_], numbers: Numbers) -> list[Column]:
        """The columns of last observations, with defaults where there is none."""
        places = np.flatnonzero(has_final)
        values = [given[place] for place in places.tolist()]
        found = self._observations.encode_each(values, numbers[places].tolist()) if values else []
        columns: list[Column] = []
        for at, leaf in enumerate(self._observations.leaves):
            default = leaf.field.default_value()
            column: Column
            if leaf.field.ragged:
                column = [default] * len(given)
            else:
                column = np.broadcast_to(default, (len(given), *default.shape)).copy()
            for place, row in zip(places.tolist(), found[at] if found else (), strict=True):
                column[place] = row
            columns.append(column)
        return columns

    def _look_for_reused_arrays(
        self, given: list[Any], finals: Mapping[str, Column], observations: Any, numbers: Numbers
    ) -> None:
        """Warn where last observations are what the next episodes begin with, as reused arrays look from outside."""
        encoded = dict(zip(self._observation_names, self._observations.encode(observations), strict=True))
        for place, number in enumerate(numbers.tolist()):
            last = {name: finals[name][place] for name in encoded}
            first = {name: encoded[name][number] for name in encoded}
            if isinstance(given[place], (np.ndarray, Mapping, tuple)) and are_same_arrays(last, first):
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

    def _stage_infos(self, at: int, infos: Any, numbers: Numbers, ended: Mask | None = None) -> None:
        """Put the infos of some sub-environments into the row of a time; ``ended`` is where an episode has ended."""
        if self._infos is None:
            return
        is_same_step, has_finals = self._is_same_step, self._check.has_finals
        # Those that a wrapper adds in a step of this mode are of the episodes that have ended in it.
        removed = dict.fromkeys(self._statistics, ended) if is_same_step and ended is not None else {}
        batch = self._infos.columns(infos, self._sub.count, FINAL if has_finals else (), removed)
        if batch is not None:
            self._stage_batch(at, batch, numbers)
            return
        if at > self._recording.now and self._sub.joins_infos and isinstance(infos, Mapping):  # not of a reset
            for name in self._infos.cut_entries(infos):
                self._warn_once(
                    "cut",
                    f"{name} came as integers, though it is a float: Gymnasium gives an entry of all sub-environments "
                    "the type of the first one's, and may have cut the others' fractions off; have the environment "
                    "always return a float",
                )
        found = split_infos(infos, self._sub.count, numbers.tolist(), has_finals=has_finals)
        for key, mask in removed.items():
            for info, number in zip(found, numbers.tolist(), strict=True):
                if mask[number]:
                    info.pop(key, None)
        columns = self._info_columns(found)
        for name, column in columns.items():
            self._recording.staging.write(at, name, column, numbers)

    def _stage_batch(self, at: int, columns: list[InfoColumn], numbers: Numbers) -> None:
        """Put values of all sub-environments, of which some are asked for, into the row of a time."""
        write = self._recording.staging.write
        for name, values in columns:
            if len(numbers) == self._sub.count:
                write(at, name, values)
            else:
                is_of_each = len(values.shape) > len(self._buffer.metadata.fields[name].shape)
                write(at, name, values[numbers] if is_of_each else values, numbers)

    def _final_infos(self, infos: Any, numbers: Numbers) -> list[dict[Any, Any]]:
        """The infos of the last rows of the episodes that ended."""
        count, chosen = self._sub.count, numbers.tolist()
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
        rows, fields = self._infos.encode(infos), self._recording.fields
        columns: dict[str, Column] = {}
        for at, name in enumerate(self._infos.names):
            info = fields.get(name)
            if info is None:  # the presence of one that was added by hand
                continue
            data = [row[at] for row in rows]
            if info.ragged:
                columns[name] = [np.frombuffer(row, info.dtype).reshape(-1, *info.shape) for row in data]
            else:
                columns[name] = np.frombuffer(b"".join(data), info.dtype).reshape(len(infos), *info.shape)
        return columns

    # --- what is no transition ---

    def _step_between_episodes(self, actions: Any) -> tuple[Any, Any, Any, Any, Any]:
        warnings.warn(
            "a step without a running episode is not recorded; call reset() after an exception inside a step, after "
            "the buffer was released, and, where autoreset is disabled, after episodes have ended",
            stacklevel=3,
        )
        self._extras = {}
        return self.env.step(actions)

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
            warnings.warn(message, stacklevel=4)

    # --- what the user adds ---

    def annotate(self, /, **meta: Any) -> None:
        """Set meta fields of the running episodes; each value is ``(num_envs, *field.shape)``, or one for all.

        Values for sub-environments without a running episode count for nothing: where the next step resets one, its
        new episode begins with that step.

        Raises:
            FieldError: a field is unknown, the recorder's own, or its values do not fit.
            EpisodeStateError: no episode is running.
        """
        known = self._buffer.metadata
        refuse_own_meta(meta, known)
        if unknown := [name for name in meta if name not in known.meta_fields]:
            raise FieldError(f"unknown meta field {unknown[0]!r}; there are {list(known.meta_fields)}")
        facts, running = self._recording.facts, self._recording.running
        notes = {name: facts.checked_note(name, value) for name, value in meta.items()}
        if not running.any():
            raise EpisodeStateError("annotate: no episode is running; call it between a reset and the episodes' ends")
        for name, values in notes.items():
            facts.annotate(name, values, running)

    def annotate_step(self, /, **extra: Any) -> None:
        """Set extra fields of the next step, ``(num_envs, *field.shape)`` each; those not set take their defaults.

        Raises:
            FieldError: a field is unknown or its values do not fit.
        """
        count = self._sub.count
        columns: dict[str, Column] = {}
        for name, value in extra.items():
            if name not in self._extra_names:
                raise FieldError(
                    f"unknown extra field {name!r}; there are {self._extra_names}; declare it in extra_fields"
                )
            field = self._buffer.metadata.fields[name]
            if field.ragged:
                if not hasattr(value, "__len__") or len(value) != count:
                    raise FieldError(f"field {name!r}: expected one array for each of {count} sub-environments")
                columns[name] = [np.array(elements_of(name, row, field)) for row in value]
            else:
                columns[name] = np.array(fit(name, to_array(value, name), field, lead=(count,)))
        self._extras = {**self._extras, **columns}

    def _forget_extras(self, mask: Mask | None) -> None:
        """Take extra fields back that were set for the next step: of the sub-environments in a mask, or of all."""
        if mask is None:
            self._extras = {}
            return
        for name, column in self._extras.items():
            for number in np.flatnonzero(mask).tolist():
                column[number] = self._buffer.metadata.fields[name].default_value()

    # --- the end ---

    def close(self, **kwargs: Any) -> None:
        """End the running episodes, release the buffer's folder, and close the environment.

        Raises:
            StorageError: the disk has no room for the episodes; nothing is closed yet, so that ``close`` can be called
                again once there is. ``env.buffer.release()`` gives the episodes up.
        """
        self._close_after(self._recording.end, partial(super().close, **kwargs))


def _of(column: Column, numbers: Numbers) -> Column:
    """The values of some sub-environments."""
    return column[numbers] if isinstance(column, np.ndarray) else [column[number] for number in numbers.tolist()]


def _bytes(value: Any) -> bytes:
    return np.asarray(value).tobytes()
