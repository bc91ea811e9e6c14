"""What the recorders of single and of vector environments have in common: their options, their buffer, the end."""

from __future__ import annotations

import inspect
import os
import warnings
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from types import FrameType
from typing import Any, ClassVar, NoReturn, TypeAlias

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from typing_extensions import TypedDict

from gym_replay.buffer.replay_buffer import ReplayBuffer
from gym_replay.errors import EpisodeStateError, FieldError, GymReplayError, StorageError
from gym_replay.files.folders import folder_of
from gym_replay.files.threads import frames_of_others
from gym_replay.notices import did_you_mean
from gym_replay.schema.codec_choice import Codecs, plain_codecs
from gym_replay.schema.fields import Field, FieldLike, describe, to_array
from gym_replay.spaces import Node, space_from_json, space_to_json
from gym_replay.wrappers.infos import Infos, is_info
from gym_replay.wrappers.recorded_schema import (
    LIMITS,
    check_arguments,
    core_fields,
    open_for,
    plain_arguments,
    refuse_own_meta,
    trees_of,
)
from gym_replay.wrappers.rewards import Rewards, RewardShape, declared_shape, parse_reward_shape
from gym_replay.wrappers.session import OnEpisode, Session

Folder: TypeAlias = str | os.PathLike[str] | ReplayBuffer


class RecordingOptions(TypedDict, total=False):
    """The keywords of recorders that :func:`gym_replay.collect` has too; see :class:`gym_replay.RecordToBuffer`."""

    max_timesteps: int | None
    overwrite: bool
    meta_fields: Mapping[str, FieldLike] | None
    extra_fields: Mapping[str, FieldLike] | None
    reward_shape: RewardShape | None
    dtypes: Mapping[str, Any] | None
    codecs: Codecs | None
    record_info: bool | Iterable[str]
    on_episode: OnEpisode | None
    durability: str


class RecorderOptions(RecordingOptions, total=False):
    """The keywords of both recorders; see :class:`gym_replay.RecordToBuffer`."""

    max_episodes: int | None
    max_steps: int | None
    circular: bool
    on_incomplete: str


_DEFAULTS: dict[str, Any] = {
    **dict.fromkeys(RecorderOptions.__annotations__),
    "circular": False,
    "overwrite": False,
    "record_info": False,
    "on_incomplete": "keep",
    "durability": "process",
}


def wrong_result(call: str, result: Any, *expected: str) -> FieldError:
    """The error of a ``step`` or ``reset`` that returned something else than a tuple of what is expected."""
    if isinstance(result, (tuple, list)):
        got = f"{len(result)} values: " + ", ".join(type(value).__name__ for value in result)
    else:
        got = describe(result)
    is_old = len(result) == 4 if call == "step" and isinstance(result, tuple) else call == "reset"
    if is_old and (call == "step" or not isinstance(result, (tuple, list))):
        remedy = "wrap an environment of the old gym with the shimmy package"
    elif isinstance(result, (tuple, list)) and len(result) > len(expected):
        remedy = f"return these {len(expected)} values, and put what is more into the info"
    else:
        remedy = f"return these {len(expected)} values"
    return FieldError(f"{call}: expected ({', '.join(expected)}), got {got}; {remedy}")


def values_of(call: str, result: Any, *expected: str) -> Sequence[Any]:
    """What a ``step`` or ``reset`` returned, which is a tuple or list of what is expected.

    Raises:
        FieldError: it is something else.
    """
    if not isinstance(result, (tuple, list)) or len(result) != len(expected):
        raise wrong_result(call, result, *expected)
    return result


def parse_flag(name: str, value: Any) -> bool:
    """``terminated`` or ``truncated`` of one environment or agent, as a bool.

    Raises:
        FieldError: it is no boolean.
    """
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if "bool" in str(getattr(value, "dtype", "")):  # arrays and tensors
        array = to_array(value, name)
        if array.size == 1:
            return bool(array.item())
    raise FieldError(f"field {name!r}: expected a bool, got {describe(value)}; return True or False")


def outside_level() -> int:
    """The ``stacklevel`` with which a warning of the function that asks points at the first caller outside."""
    frame, level = inspect.currentframe(), 0
    while frame is not None and str(frame.f_globals.get("__name__")).startswith("gym_replay."):
        frame, level = frame.f_back, level + 1
    return level


def warn_of_pause() -> None:
    """Warn of a step that is no transition of any episode."""
    warnings.warn(
        "a step without a running episode is not recorded; call reset() after episodes have ended, after an exception "
        "inside a step, or after the buffer was released",
        stacklevel=outside_level() + 1,
    )


def refuse_second_thread(recorder: object) -> None:
    """Raise EpisodeStateError where another thread is inside of ``step`` or ``reset`` of a recorder."""
    codes = {getattr(getattr(type(recorder), name), "__code__", None) for name in ("step", "reset")}
    for frame in frames_of_others().values():
        found: FrameType | None = frame
        while found is not None:
            if found.f_code in codes and found.f_locals.get("self") is recorder:
                raise EpisodeStateError(
                    "another thread is inside of a step or reset of this recorder: one recorder belongs to one "
                    "thread; give each thread an environment of its own with a recorder and a folder of its own"
                )
            found = found.f_back


class OnlyWriter:
    """What writes to a folder, or to several, and cannot be pickled or copied."""

    _instead_of_pickling: ClassVar[str] = ""

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a recorder is the only writer of its folder and cannot be pickled or copied; make one environment in each "
            f"process, with a folder of its own{self._instead_of_pickling}"
        )

    def __deepcopy__(self, memo: Any) -> NoReturn:
        self.__reduce__()


class Recorder(OnlyWriter, gym.utils.RecordConstructorArgs):
    """The only writer of a folder: a wrapper, or a part of one that writes to several."""

    _buffer: ReplayBuffer
    _session: Session[Any]
    _given: dict[str, Any]
    _infos: Infos | None = None

    # --- the beginning ---

    def _take_options(self, buffer: Folder, options: RecorderOptions, **others: Any) -> None:
        """Check options before anything is created, and remember them for ``env.spec``, which is written as JSON.

        Raises:
            TypeError: there is no such option.
            FieldError: one of them is wrong.
        """
        for name in options:
            if name not in _DEFAULTS:
                near = did_you_mean(name, _DEFAULTS)
                raise TypeError(f"RecordToBuffer: unexpected keyword argument {name!r}{near}")
        self._given = given = {**_DEFAULTS, **options}
        given["record_info"] = check_arguments(given["on_incomplete"], given["record_info"], given["dtypes"])
        parse_reward_shape(given["reward_shape"])
        limits: dict[str, Any] = {name: value for name, value in given.items() if name in LIMITS}
        gym.utils.RecordConstructorArgs.__init__(
            self,
            buffer=str(buffer.folder if isinstance(buffer, ReplayBuffer) else folder_of(buffer)),
            reward_shape=given["reward_shape"],
            record_info=given["record_info"],
            on_incomplete=given["on_incomplete"],
            durability=given["durability"],
            codecs=plain_codecs(given["codecs"]),
            **plain_arguments(given["meta_fields"], given["extra_fields"], given["dtypes"]),
            **limits,
            **others,
        )

    def _open_buffer(
        self,
        env: Any,
        buffer: Folder,
        observation_space: gym.Space[Any],
        action_space: gym.Space[Any],
        spec: EnvSpec | None,
        num_envs: int | None = None,
        more_own_meta: Mapping[str, Field] | None = None,
    ) -> tuple[Node, Node]:
        """Open or create the buffer; the trees of the observation space and of the action space.

        Args:
            env: the environment, single or vector.
            buffer: as passed.
            observation_space, action_space, spec: those of a single environment.
            num_envs: how many sub-environments there are; None of a single environment.
            more_own_meta: meta fields that this recorder sets beside those of all recorders.
        """
        options = self._given
        observation, action = trees_of(observation_space, action_space, options["dtypes"] or {})
        self._owns_buffer = not isinstance(buffer, ReplayBuffer)
        declared = declared_shape(env, num_envs)
        self._buffer = open_for(
            observation, action, spec, buffer, options, declared=declared, more_own_meta=more_own_meta
        )
        if self._owns_buffer:
            self._buffer.tell_of_episodes()
        fields = self._buffer.metadata.fields
        core = core_fields(observation, action, ())
        self._observation_names = [leaf.name for leaf in observation.leaves]
        derived = self._buffer.metadata.derived
        self._extra_names = [name for name in fields if not (name in core or name in derived or is_info(name))]
        self._extras: dict[str, Any] = {}
        return observation, action

    def _use_session(self, session: Session[Any]) -> None:
        self._session = session
        is_undecided = self._given["reward_shape"] is None
        self._rewards = Rewards(self._buffer, session.adopt_reward_shape, is_undecided=is_undecided)

    # --- the episodes ---

    @abstractmethod
    def _spaces(self) -> tuple[gym.Space[Any], gym.Space[Any]]:
        """The observation space and the action space of a single environment, as they are now."""

    def _explain(self, error: BaseException) -> None:
        """Raise a better error of a value that does not fit, where its space is not the one that was wrapped."""
        if not isinstance(error, FieldError):
            return
        recorded = self._buffer.metadata.environment or {}
        for name, space in zip(("observation_space", "action_space"), self._spaces(), strict=True):
            try:
                is_same = space_to_json(space, name) == recorded.get(name)
            except GymReplayError:
                is_same = False
            if not is_same:
                was = space_from_json(recorded[name])
                raise FieldError(
                    f"the environment's {name} changed after it was wrapped, from {was} to {space}, and the buffer's "
                    f"fields are those of the first one ({error}); give the environment its last spaces before it is "
                    "wrapped, or record each into a folder of its own"
                ) from error

    # --- what the user asks and adds ---

    @property
    def buffer(self) -> ReplayBuffer:
        """The buffer; readable also after :meth:`close`."""
        return self._buffer

    @property
    def out_of_bounds(self) -> dict[str, int]:
        """How many committed rows of each field had values outside of their space's bounds; they are kept."""
        self._session.bounds.finish()
        return dict(self._session.bounds.counts)

    def annotate(self, /, **meta: Any) -> None:
        """Set meta fields of the running episode, or, in a vector environment, of all running episodes.

        There each value is ``(num_envs, *field.shape)``, or one for all. Values for sub-environments without a running
        episode count for nothing: where the next step resets one, its new episode begins with that step.

        Raises:
            FieldError: a field is unknown, the recorder's own, or its value does not fit.
            EpisodeStateError: no episode is running.
        """
        metadata = self._buffer.metadata
        refuse_own_meta(meta, metadata)
        if unknown := [name for name in meta if name not in metadata.meta_fields]:
            known = [name for name in metadata.meta_fields if name not in metadata.recorder_meta]
            near = did_you_mean(unknown[0], known, remedy="meta_fields=... of the recorder declares one")
            raise FieldError(f"unknown meta field {unknown[0]!r}{near}")
        self._session.annotate(meta)

    def annotate_step(self, /, **extra: Any) -> None:
        """Set extra fields of the next step; those not set take their defaults.

        In a vector environment each value is ``(num_envs, *field.shape)``.

        Raises:
            FieldError: a field is unknown or its value does not fit.
        """
        if unknown := [name for name in extra if name not in self._extra_names]:
            near = did_you_mean(unknown[0], self._extra_names, remedy="extra_fields=... of the recorder declares one")
            raise FieldError(f"unknown extra field {unknown[0]!r}{near}")
        self._extras = {**self._extras, **{name: self._encode_extra(name, value) for name, value in extra.items()}}

    @abstractmethod
    def _encode_extra(self, name: str, value: Any) -> Any:
        """The value of an extra field as a step is staged with it."""

    # --- the end ---

    def _end_episodes(self) -> None:
        self._session.end()

    def close(self, **kwargs: Any) -> None:
        """End the running episodes, release the buffer's folder, and close the environment.

        Raises:
            StorageError: the disk has no room for the episodes; nothing is closed yet, so that ``close`` can be called
                again once there is. ``env.buffer.release()`` gives the episodes up.
        """
        self._session.refuse_within_on_episode()
        for put_off in (self._session.turns.puts_off, self._buffer.puts_off):
            if put_off(partial(self.close, **kwargs)):  # in a signal handler, in the middle of a commit
                return
        refused = False
        try:
            self._end_episodes()
        except StorageError:
            refused = True
            raise
        except BaseException:
            with suppress(Exception):  # an interrupt: what is open is ended all the same
                self._session.end()
            raise
        finally:
            if not refused:
                self._let_go(**kwargs)
        if self._infos is not None:
            self._infos.warn_of_losses()

    def _let_go(self, **kwargs: Any) -> None:
        try:
            try:
                self._session.bounds.finish()
            finally:
                if self._owns_buffer:
                    self._buffer.release()
        finally:
            self._close_environment(**kwargs)

    def _close_environment(self, **kwargs: Any) -> None:
        super().close(**kwargs)  # type: ignore[misc]
