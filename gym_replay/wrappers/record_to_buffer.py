"""RecordToBuffer: every episode of an environment, stored as it is played."""

from __future__ import annotations

import os
import warnings
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np

from gym_replay.buffer.env_spaces import space_to_json
from gym_replay.buffer.env_spec import spec_to_json
from gym_replay.buffer.open_episode import OpenEpisode
from gym_replay.buffer.replay_buffer import ReplayBuffer, check_match, open_buffer
from gym_replay.buffer.storage.fields import Field, FieldLike, make_encoder, parse_fields
from gym_replay.buffer.storage.reader import has_buffer
from gym_replay.buffer.storage.staging import Row, Stage
from gym_replay.errors import ConfigMismatchError, EpisodeStateError, FieldError, StorageError
from gym_replay.wrappers.spaces import Leaf, make_space_encoder, space_leaves

RECORDER_META: dict[str, FieldLike] = {
    "episode_seed": Field("int64", default=-1),
    "episode_return": Field("float64"),
    "episode_complete": Field("bool"),
}
"""Meta fields of the recorder's own. A seed of -1 stands for none."""

_STEP_FIELDS: dict[str, FieldLike] = {
    "reward": Field("float64"),
    "terminated": Field("bool"),
    "truncated": Field("bool"),
}
_FLAGS = {False: b"\x00", True: b"\x01"}
_ON_INCOMPLETE = ("keep", "discard")


class RecordToBuffer(gym.Wrapper[Any, Any, Any, Any], gym.utils.RecordConstructorArgs):
    """Records every episode of an environment into a replay buffer, and changes nothing else.

    An episode is opened at each ``reset`` and committed inside the ``step`` that ends it, before that step returns.
    What the inner environment returns is passed on untouched, and copied before anybody can change it. The fields are
    ``observation`` and ``action`` (with ``.key`` for each part of Dict and Tuple spaces) in their spaces' dtypes,
    ``reward`` (float64), ``terminated``, ``truncated``, and the extra fields.

    Args:
        env: the environment.
        buffer: a folder, which is created or appended to, or a :class:`ReplayBuffer` that was made by recording; such
            a buffer stays open for writing after :meth:`close`.
        max_episodes, max_timesteps, max_steps, circular: as for :class:`ReplayBuffer`.
        overwrite: replace the buffer that is in the folder. Not among the arguments that ``env.spec`` remembers: an
            environment that is rebuilt from its spec appends.
        meta_fields: fields that an episode has once, set by :meth:`annotate`.
        extra_fields: fields that each step has, set by :meth:`annotate_step`.
        dtypes: storage dtypes other than the spaces' own, by field name or by a group such as ``"observation"``.
        on_incomplete: what becomes of an episode that a reset or ``close`` cuts: ``"keep"`` commits it with
            ``truncated`` True at its last transition and ``episode_complete`` False, ``"discard"`` forgets it.
        durability: as for :class:`ReplayBuffer`; a buffer that is passed in keeps its own.

    Raises:
        UnsupportedSpaceError: a part of a space cannot be stored.
        ConfigMismatchError: the buffer in the folder is of another environment or config.
        BufferLockedError: somebody else writes to the buffer (raised by the first step where it exists already).

    Example:
        >>> import tempfile
        >>> env = RecordToBuffer(gym.make("CartPole-v1"), tempfile.mkdtemp())
        >>> _ = env.reset(seed=0)
        >>> while not any(env.step(env.action_space.sample())[2:4]):
        ...     pass
        >>> env.close()
        >>> len(env.buffer), env.buffer.episode(0)["observation"].shape[1]
        (1, 4)
    """

    def __init__(
        self,
        env: gym.Env[Any, Any],
        buffer: str | os.PathLike[str] | ReplayBuffer,
        *,
        max_episodes: int | None = None,
        max_timesteps: int | None = None,
        max_steps: int | None = None,
        circular: bool = False,
        overwrite: bool = False,
        meta_fields: Mapping[str, FieldLike] | None = None,
        extra_fields: Mapping[str, FieldLike] | None = None,
        dtypes: Mapping[str, Any] | None = None,
        on_incomplete: str = "keep",
        durability: str = "process",
    ) -> None:
        if not isinstance(env, gym.Env):
            raise TypeError(f"expected a gymnasium.Env, got {type(env).__name__}")
        if on_incomplete not in _ON_INCOMPLETE:
            raise FieldError(f"on_incomplete={on_incomplete!r}: expected one of {_ON_INCOMPLETE}")
        limits: dict[str, Any] = {
            "max_episodes": max_episodes,
            "max_timesteps": max_timesteps,
            "max_steps": max_steps,
            "circular": circular,
        }
        gym.utils.RecordConstructorArgs.__init__(
            self,
            buffer=str(buffer.folder if isinstance(buffer, ReplayBuffer) else buffer),
            meta_fields=meta_fields,
            extra_fields=extra_fields,
            dtypes=dtypes,
            on_incomplete=on_incomplete,
            durability=durability,
            **limits,
        )
        gym.Wrapper.__init__(self, env)
        dtypes = dict(dtypes or {})
        observation = _leaves(env.observation_space, "observation", dtypes, state=True)
        action = _leaves(env.action_space, "action", dtypes, state=False)
        environment = {
            "observation_space": space_to_json(env.observation_space, "observation"),
            "action_space": space_to_json(env.action_space, "action"),
            "env_spec": spec_to_json(env.spec),
        }
        core = {leaf.name: leaf.field for leaf in (*observation, *action)} | parse_fields(_STEP_FIELDS)
        self._owns_buffer = not isinstance(buffer, ReplayBuffer)
        self._buffer = _open(
            buffer,
            {**limits, "circular": circular or None},
            overwrite=overwrite,
            durability=durability,
            core=core,
            extra=None if extra_fields is None else parse_fields(extra_fields, "extra field"),
            meta=None if meta_fields is None else parse_fields(meta_fields, "meta field"),
            environment=environment,
        )
        self._encode_observation = make_space_encoder(env.observation_space, observation)
        self._encode_action = make_space_encoder(env.action_space, action)
        self._encode_reward = make_encoder("reward", core["reward"])
        extras = {name: info for name, info in self._buffer.metadata.fields.items() if name not in core}
        self._extra_encoders = {name: make_encoder(name, info) for name, info in extras.items()}
        self._extra_defaults = tuple(info.default_value().tobytes() for info in extras.values())
        self._extras = self._extra_defaults
        self._after_observation: Row = (b"",) * (len(core) - len(observation) + len(extras))

        self._running = _Running(keep=on_incomplete == "keep")
        self._guarded: object = None
        self._stage: Stage | None = None
        self._room = 0  # steps until _make_room must be asked again
        self._first_row: Row | None = None
        self._meta: dict[str, Any] = {}
        _warn_of_stacked_frames(env)

    @property
    def buffer(self) -> ReplayBuffer:
        """The buffer; readable also after :meth:`close`."""
        return self._buffer

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset the environment and open an episode; one that is running is cut."""
        self._end_episode()
        result = self.env.reset(seed=seed, options=options)
        self._first_row = (*self._encode_observation(result[0]), *self._after_observation)
        self._meta = {"episode_seed": _storable_seed(seed)}
        self._extras = self._extra_defaults
        return result

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Step the environment and store the transition; one that ends the episode commits it.

        Raises:
            FieldError: the action, or what the environment returned, does not fit its field. Episodes committed so
                far are safe; the running one ends with the transition before.
            EpisodeTooLongError, BufferFullError: the buffer's limits leave no room; the environment is not stepped.
            StorageError: the disk is full. A finished episode is kept, and committed by the next ``reset`` or
                ``close`` that finds room.
        """
        room = self._room
        if room == 0:
            if self._running.has_ended:
                self._end_episode()  # its commit was refused before
            if self._stage is None and self._first_row is None:
                return self._step_unrecorded(action)
            room = self._make_room()
        self._room = room - 1
        encoded_action = self._encode_action(action)
        result = self.env.step(action)
        try:
            observation, reward, terminated, truncated, _ = result
            row = (
                *self._encode_observation(observation),
                *encoded_action,
                self._encode_reward(reward),
                _FLAGS[terminated],
                _FLAGS[truncated],
                *self._extras,
            )
        except Exception as error:
            # The environment has moved on and this transition cannot be stored, so none after it may be.
            self._end_episode()
            if isinstance(error, (KeyError, TypeError)):
                raise FieldError(
                    f"terminated and truncated: expected bools, got {result[2]!r} and {result[3]!r}"
                ) from error
            raise
        if self._extras is not self._extra_defaults:
            self._extras = self._extra_defaults
        if terminated or truncated:
            self._running.has_ended = True
            self._append(row)
            self._end_episode()
        else:
            self._append(row)
        return result

    def annotate(self, /, **meta: Any) -> None:
        """Set meta fields of the running episode.

        Raises:
            FieldError: a field is unknown, the recorder's own, or its value does not fit.
            EpisodeStateError: no episode is running.
        """
        if own := [name for name in meta if name in self._buffer.metadata.recorder_meta]:
            raise FieldError(f"meta field {own[0]!r} is set by the recorder itself")
        self._buffer.encoders().meta(meta)
        copied = {name: np.array(value) if isinstance(value, np.ndarray) else value for name, value in meta.items()}
        if self._running.episode is not None:
            self._running.episode.final_meta.update(copied)
        elif self._first_row is not None:
            self._meta.update(copied)
        else:
            raise EpisodeStateError("annotate: no episode is running; call it between a reset and the episode's end")

    def annotate_step(self, /, **extra: Any) -> None:
        """Set extra fields of the next step; those not set take their defaults.

        Raises:
            FieldError: a field is unknown or its value does not fit.
        """
        known = list(self._extra_encoders)
        values = list(self._extras)
        for name, value in extra.items():
            if name not in self._extra_encoders:
                raise FieldError(f"unknown extra field {name!r}; there are {known}; declare it in extra_fields")
            values[known.index(name)] = self._extra_encoders[name](value)
        self._extras = tuple(values)

    def close(self) -> None:
        """End the running episode, release the buffer's folder, and close the environment.

        Raises:
            StorageError: the disk has no room for the episode; nothing is closed yet, so that ``close`` can be called
                again once there is. ``env.buffer.release()`` gives the episode up.
        """
        refused = False
        try:
            self._end_episode()
        except StorageError:
            refused = True
            raise
        finally:
            if not refused:
                self._close_all()

    def _close_all(self) -> None:
        try:
            if self._owns_buffer:
                self._buffer.release()
        finally:
            super().close()

    def _begin_episode(self, first_row: Row) -> Stage:
        episode = self._buffer.one_episode(**self._meta)
        stage = episode.open(first_row)
        self._running.begin(episode)
        self._longest = episode.longest
        self._stage = stage
        self._first_row = None
        if self._guarded is not episode.writer:
            # Made after the writer's own, so that at the interpreter's exit it runs before it.
            self._guarded = episode.writer
            weakref.finalize(self, self._running.end)
        return stage

    def _make_room(self) -> int:
        """Open the episode, write early what has become long, and see to the limits; how many steps may follow."""
        stage = self._stage
        if stage is None:
            assert self._first_row is not None
            stage = self._begin_episode(self._first_row)
        self._append, room = stage.make_room()
        room = min(room, self._longest - len(stage))
        if room <= 0:
            self._running.raise_too_long()
        return room

    def _end_episode(self) -> None:
        self._first_row = None
        self._room = 0
        try:
            self._running.end()
        finally:
            if self._running.episode is None:
                self._stage = None

    def _step_unrecorded(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        warnings.warn(
            "a step without a running episode is not recorded; call reset() after an episode has ended", stacklevel=3
        )
        return self.env.step(action)


class _Running:
    """The episode being recorded, apart from the environment: it can end after the wrapper is gone."""

    def __init__(self, *, keep: bool) -> None:
        self._keep = keep
        self.episode: OpenEpisode | None = None
        self.has_ended = False

    def begin(self, episode: OpenEpisode) -> None:
        self.has_ended = False
        self.episode = episode

    def end(self) -> None:
        """Commit the episode, or discard it where it was cut and cut ones are not kept."""
        episode = self.episode
        if episode is None:
            return
        stage = episode.stage
        if stage is None or len(stage) == 0 or not (self.has_ended or self._keep):
            episode.discard()
        elif episode.is_open:
            truncated = None if self.has_ended else stage.replace_last("truncated", b"\x01")
            episode.complete = self.has_ended
            total = np.cumsum(stage.column("reward"), dtype=np.float64)[-1]
            episode.final_meta.update(episode_return=total, episode_complete=self.has_ended)
            try:
                episode.commit()
            except StorageError:
                if truncated is not None:  # it may go on
                    stage.replace_last("truncated", truncated)
                raise
        self.episode = None
        self.has_ended = False

    def raise_too_long(self) -> None:
        assert self.episode is not None
        self.episode.raise_too_long()


def _leaves(space: gym.Space[Any], root: str, dtypes: Mapping[str, Any], *, state: bool) -> list[Leaf]:
    chosen = {name: dtype for name, dtype in dtypes.items() if name.partition(".")[0] == root}
    if unknown := [name for name in dtypes if name.partition(".")[0] not in ("observation", "action")]:
        raise FieldError(f"dtypes: {unknown[0]!r} is neither below 'observation' nor below 'action'")
    return space_leaves(space, root, state=state, dtypes=chosen)


def _open(
    buffer: str | os.PathLike[str] | ReplayBuffer,
    limits: Mapping[str, Any],
    *,
    overwrite: bool,
    durability: str,
    core: dict[str, Field],
    extra: dict[str, Field] | None,
    meta: dict[str, Field] | None,
    environment: dict[str, Any],
) -> ReplayBuffer:
    own_meta = parse_fields(RECORDER_META)
    for kind, given, taken in (("extra field", extra, core), ("meta field", meta, own_meta)):
        if clash := sorted(set(given or ()) & set(taken)):
            raise FieldError(f"{kind} {clash[0]!r} has the name of a field of the recorder's own; rename it")
    if isinstance(buffer, ReplayBuffer):
        if overwrite:
            raise FieldError("overwrite=True goes with a folder; clear() empties a buffer")
        check_match(buffer.metadata, limits, buffer.folder)
        opened = buffer
    elif has_buffer(Path(buffer)) and not overwrite:
        opened = open_buffer(buffer, limits, overwrite=False, durability=durability)
    else:
        config = {
            **limits,
            "fields": {**core, **(extra or {})},
            "meta_fields": {**own_meta, **(meta or {})},
            "recorder_meta": tuple(own_meta),
            "environment": environment,
        }
        return open_buffer(buffer, config, overwrite=overwrite, durability=durability)
    try:
        _check_recorded(opened, core, own_meta, extra, meta, environment)
    except BaseException:
        if opened is not buffer:
            opened.close()
        raise
    return opened


def _check_recorded(
    buffer: ReplayBuffer,
    core: dict[str, Field],
    own_meta: dict[str, Field],
    extra: dict[str, Field] | None,
    meta: dict[str, Field] | None,
    environment: dict[str, Any],
) -> None:
    """Raise ConfigMismatchError where an existing buffer was recorded from something else."""
    stored = buffer.metadata
    others = {name: info for name, info in stored.fields.items() if name not in core}
    other_meta = {name: info for name, info in stored.meta_fields.items() if name not in own_meta}
    expected = {
        "fields": {**core, **(others if extra is None else extra)},
        "meta_fields": {**own_meta, **(other_meta if meta is None else meta)},
    }
    check_match(stored, expected, buffer.folder)
    if list(stored.fields)[: len(core)] != list(core) or stored.recorder_meta != tuple(own_meta):
        raise ConfigMismatchError(f"{buffer.folder} was not made by RecordToBuffer; choose another folder")
    found = stored.environment or {}
    for name in ("observation_space", "action_space"):
        if found.get(name) != environment[name]:
            raise ConfigMismatchError(
                f"{buffer.folder} was created with a different {name.replace('_', ' ')}: stored {found.get(name)}, "
                f"passed {environment[name]}; choose another folder, or overwrite=True to replace the buffer"
            )
    stored_id, passed_id = ((value or {}).get("id") for value in (found.get("env_spec"), environment["env_spec"]))
    if stored_id != passed_id:
        raise ConfigMismatchError(
            f"{buffer.folder} was recorded from {stored_id!r}, this environment is {passed_id!r}; choose another folder"
        )


def _storable_seed(seed: int | None) -> int:
    if seed is None:
        return -1
    if not 0 <= seed < 1 << 63:
        warnings.warn(f"the seed {seed} does not fit int64 and is not kept with the episode", stacklevel=3)
        return -1
    return int(seed)


def _warn_of_stacked_frames(env: gym.Env[Any, Any]) -> None:
    layer: Any = env
    while isinstance(layer, gym.Wrapper):
        if isinstance(layer, gym.wrappers.FrameStackObservation):
            warnings.warn(
                "FrameStackObservation inside RecordToBuffer stores each frame several times over; put RecordToBuffer "
                "inside of it, and stack frames when loading",
                stacklevel=4,
            )
            return
        layer = layer.env
