"""RecordToBuffer: every episode of an environment, stored as it is played."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
from typing_extensions import Unpack

from gym_replay.buffer.door import Stage
from gym_replay.errors import FieldError
from gym_replay.schema.fields import make_encoder
from gym_replay.spaces import Node, make_space_encoder
from gym_replay.wrappers.episode_meta import describe_run, meta_of_reset
from gym_replay.wrappers.infos import Infos
from gym_replay.wrappers.other_kinds import refuse_other_kinds
from gym_replay.wrappers.recorded_schema import warn_of_dtype
from gym_replay.wrappers.recorder import (
    Folder,
    Recorder,
    RecorderOptions,
    parse_flag,
    refuse_second_thread,
    values_of,
    warn_of_pause,
    wrong_result,
)
from gym_replay.wrappers.single_session import Episode, SingleSession
from gym_replay.wrappers.vector.adapters.registry import find_adapter

_LOOKS = 20
_ndarray, _float64 = np.ndarray, np.float64  # found at once: a step asks for them several times
_BROKEN = -1
"""In the place of the steps that there is room for: a step or reset was begun, and has not ended or never will."""


class RecordToBuffer(Recorder, gym.Wrapper[Any, Any, Any, Any]):
    """Records every episode of an environment into a replay buffer, and changes nothing else.

    An episode is opened at each ``reset`` and committed inside the ``step`` that ends it, before that step returns.
    What the inner environment returns is passed on untouched, and copied before anybody can change it. The fields are
    ``observation`` and ``action`` (with ``.key`` for each part of a composite space) in their spaces' dtypes,
    ``reward`` (float64), ``terminated``, ``truncated``, the extra fields, and ``info.<key>`` where infos are recorded.

    Args:
        env: the environment.
        buffer: a folder, which is created or appended to, or a :class:`ReplayBuffer` that was made by recording; such
            a buffer stays open for writing after :meth:`close`.
        max_episodes, max_timesteps, max_steps, circular: as for :class:`ReplayBuffer`.
        overwrite: replace the buffer that is in the folder. Not among the arguments that ``env.spec`` remembers: an
            environment that is rebuilt from its spec appends.
        meta_fields: fields that an episode has once, set by :meth:`annotate`.
        extra_fields: fields that each step has, set by :meth:`annotate_step`.
        reward_shape: the shape of a reward, such as ``(2,)``, or ``()`` for a number. None: the shape of the first
            reward, which counts more than a ``reward_space`` that the environment declares.
        dtypes: storage dtypes other than the spaces' own, by field name or by a group such as ``"observation"``; for
            an entry of infos, such as ``"info.x"``, also a :class:`Field`.
        codecs: what fields are stored encoded with: ``{"observation": "zstd"}`` by field name or by a group such as
            ``"observation"``, of which the images are meant (uint8 of two or three axes), as ``"images"`` means those
            of all fields; see ``codec`` of :class:`Field`. None goes on with what the buffer in the folder has.
        record_info: True to record what is numeric in the infos, or dotted names of the entries to record. Entries
            that are not in ``dtypes`` take a wider dtype where a later value needs one.
        on_incomplete: what becomes of an episode that a reset or ``close`` cuts: ``"keep"`` commits it with
            ``truncated`` True at its last transition and ``episode_complete`` False, ``"discard"`` forgets it.
        on_episode: is called with each episode before its commit, a :class:`FinishedEpisode`; it may return a dict of
            meta fields to set, or False to discard the episode. Not among the arguments that ``env.spec`` remembers.
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

    _session: SingleSession
    _instead_of_pickling = ", or pickle env.spec"

    def __init__(self, env: gym.Env[Any, Any], buffer: Folder, **options: Unpack[RecorderOptions]) -> None:
        if isinstance(env, gym.vector.VectorEnv) or find_adapter(env) is not None:
            raise TypeError(
                f"expected a gymnasium.Env, got the batched environment {type(env).__name__}; wrap it in "
                "gym_replay.wrappers.vector.RecordToBuffer"
            )
        if not isinstance(env, gym.Env):
            refuse_other_kinds(env)
            remedy = f"; pass gymnasium.make({env!r:.60})" if isinstance(env, str) else ""
            raise TypeError(f"RecordToBuffer: expected a gymnasium.Env, got {type(env).__name__}{remedy}")
        self._take_options(buffer, options)
        gym.Wrapper.__init__(self, env)
        observation, action = self._open_buffer(env, buffer, env.observation_space, env.action_space, env.spec)
        self._make_encoders(observation, action)
        given, fields = self._given, self._buffer.metadata.fields
        self._extra_encoders = {name: make_encoder(name, fields[name]) for name in self._extra_names}
        self._extra_defaults = {name: fields[name].default_value().tobytes() for name in self._extra_names}
        self._extras = self._extra_defaults
        leaves = [*observation.leaves, *action.leaves]
        forgotten = self._be_between_episodes
        self._use_session(SingleSession(self, self._buffer, leaves, self._extra_names, given, forgotten=forgotten))
        # Where a step is an observation, an action and a number, it is added without a call.
        is_plain = len(leaves) == 2 and not self._extra_names and not given["record_info"]
        self._plain = _array_of(observation) if is_plain else (None, None)
        self._choose_path()
        if given["record_info"]:
            self._infos = Infos(given["record_info"], given["dtypes"] or {}, self._session)
        self._room = 0  # steps until _make_room must be asked again
        self._run = describe_run()
        self._autoreset = _layer_in(env, gym.wrappers.Autoreset)
        if _layer_in(env, gym.wrappers.FrameStackObservation) is not None:
            warnings.warn(
                "FrameStackObservation inside RecordToBuffer stores each frame several times over; put RecordToBuffer "
                "inside of it, and stack frames when loading",
                stacklevel=2,
            )

    def _choose_path(self) -> None:
        plain: tuple[Any, Any] = (None, None) if self._rewards.field.shape else self._plain
        self._plain_dtype, self._plain_shape = plain
        self._plain_length = _length_of(self._plain_shape)

    def _spaces(self) -> tuple[gym.Space[Any], gym.Space[Any]]:
        return self.env.observation_space, self.env.action_space

    def _make_encoders(self, observation: Node, action: Node) -> None:
        self._encode_observation = _warning_encoder(observation)
        self._encode_action = _warning_encoder(action)
        self._action_dtype, self._action_shape = _array_of(action)
        self._action_length = _length_of(self._action_shape)
        # And the numbers that are kept as they are until the commit, buffers of their bytes: to take these costs more.
        self._action_number: type | None = None
        is_number = isinstance(action.space, gym.spaces.Discrete) and action.is_leaf
        if is_number and action.leaves[0].field.dtype == np.int64:
            self._action_number = np.int64
        if len(action.leaves) == 1:
            self._encode_action = _single_of(self._encode_action)

    # --- the episode ---

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset the environment and open an episode; one that is running is cut."""
        room, self._room = self._room, _BROKEN
        self._note_lost_step(room)
        self._end_episodes()
        self._room = _BROKEN
        meta = meta_of_reset(self.env, self._run, seed, options)
        result = self.env.reset(seed=seed, options=options)
        observation, info = values_of("reset", result, "observation", "info")
        self._open_at(observation, info, meta)
        self._room = 0
        return result

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Step the environment and store the transition; one that ends the episode commits it.

        Raises:
            FieldError: the action does not fit its field; the environment is not stepped, and the episode goes on. Or
                what the environment returned does not fit: episodes committed so far are safe, and the running one
                ends with the transition before.
            EpisodeTooLongError, BufferFullError: the buffer's limits leave no room; the environment is not stepped.
            StorageError: the disk is full. A finished episode is kept, and committed by the next ``reset`` or
                ``close`` that finds room.
        """
        room = self._room
        if room <= 0:
            room = self._make_room(room)
            if room == 0:
                return self._step_between_episodes(action)
        self._room = _BROKEN
        acted: Any
        # To ask for the number of axes and the length takes half of the time of asking for the shape.
        if (
            type(action) is _ndarray
            and action.dtype is self._action_dtype
            and ((action.ndim == 1 and len(action) == self._action_length) or action.shape == self._action_shape)
        ):
            acted = action.tobytes()
        elif type(action) is self._action_number:
            acted = action
        else:
            acted = self._encode_slowly(action, room)
        result = self.env.step(action)
        try:
            observation, reward, terminated, truncated, _ = result
        except (TypeError, ValueError):
            raise wrong_result("step", result, "observation", "reward", "terminated", "truncated", "info") from None
        if (
            type(observation) is _ndarray
            and observation.dtype is self._plain_dtype
            and (
                (observation.ndim == 1 and len(observation) == self._plain_length)
                or observation.shape == self._plain_shape
            )
            and (type(reward) is float or type(reward) is _float64)
        ):
            if terminated is False and truncated is False:
                self._extend((observation.tobytes(), acted, reward))
                self._room = room - 1
                return result
            if type(terminated) is bool and type(truncated) is bool:
                last = observation.tobytes(), acted, reward
                self._session.add_last(last, terminated=terminated, truncated=truncated)
                self._end_episodes()
                return result
        self._add(result, acted, room)
        return result

    def _encode_slowly(self, action: Any, room: int) -> Any:
        try:
            return self._encode_action(action)
        except BaseException as error:
            self._room = room  # the environment is not stepped, and the episode goes on
            self._explain(error)
            raise

    def _add(self, result: tuple[Any, ...], acted: Any, room: int) -> None:
        """Store a transition of any kind, and end the episode where it ends it."""
        session = self._session
        try:
            observation, reward, terminated, truncated, info = result
            seen = self._encode_observation(observation)
            if self._rewards.is_undecided:
                room = min(room, self._decide_rewards(reward, room))
            ends = {"terminated": parse_flag("terminated", terminated), "truncated": parse_flag("truncated", truncated)}
            extend = self._extend
            acts = acted if type(acted) is tuple else (acted,)
            row = [*seen, *acts, self._encode_reward(reward), *self._extras.values()]
            if self._infos is not None:
                row += self._encode_info(self._infos, info)
        except Exception as error:
            # The environment has moved on and this transition cannot be stored, so none after it may be.
            session.note_lost_step()
            self._end_episodes()
            self._explain(error)
            raise
        self._extras = self._extra_defaults
        if any(ends.values()):
            session.add_last(row, **ends)
            self._end_episodes()
        else:
            self._extend(row)
            self._room = room - 1 if self._extend == extend else 0  # of wider rows fewer are kept in memory

    def _decide_rewards(self, reward: Any, room: int) -> int:
        """Let the first reward decide the shape of all; how many steps may follow."""
        if not self._rewards.decide(reward):
            return room
        self._choose_path()
        assert self._session.stage is not None
        return self._ask_for_room(self._session.stage)

    def _encode_reward(self, reward: Any) -> Any:
        """A float, or the bytes of a reward of several values."""
        rewards = self._rewards
        if type(reward) in (float, np.float64) and not rewards.field.shape:
            return reward
        array = rewards.fit(reward)
        return array.tobytes() if rewards.field.shape else float(array)

    def _open_at(self, observation: Any, info: Any, meta: dict[str, bytes]) -> None:
        """Note the first row of an episode; the buffer is claimed for it by its first step."""
        if (
            type(observation) is _ndarray
            and observation.dtype is self._plain_dtype
            and observation.shape == self._plain_shape
        ):
            first = {self._observation_names[0]: observation.tobytes()}
        else:
            try:
                first = dict(zip(self._observation_names, self._encode_observation(observation), strict=True))
            except FieldError as error:
                self._explain(error)
                raise
        self._session.episode = Episode(first, meta)
        self._extras = self._extra_defaults
        if self._infos is not None:
            row = self._encode_info(self._infos, info)
            first.update(zip(self._infos.names, row, strict=True))

    def _encode_info(self, infos: Infos, info: Any) -> tuple[bytes, ...]:
        (row,) = infos.encode([info])
        if (stage := self._session.stage) is not None:  # it may have written early what it had
            self._extend = stage.extend
        return row

    def _encode_extra(self, name: str, value: Any) -> bytes:
        return self._extra_encoders[name](value)

    def _note_lost_step(self, room: int) -> None:
        """See whether the step or reset before was left in the middle; if another thread is in it, refuse this one."""
        self._session.refuse_within_on_episode()
        if room == _BROKEN:
            refuse_second_thread(self)
            self._session.note_lost_step()

    def _make_room(self, room: int) -> int:
        """Claim the buffer for a new episode, write a long one early, and keep the limits; how many steps may follow.

        0 where no episode is running.
        """
        self._note_lost_step(room)
        self._room = _BROKEN
        try:
            session = self._session
            if session.episode is not None and (session.episode.is_broken or session.episode.has_ended):
                self._end_episodes()  # as was not done, or refused, before
            if (episode := session.episode) is None:
                return 0
            stage = episode.stage
            if stage is None:
                stage = session.begin(episode, self._infos.names if self._infos else ())
            room = self._ask_for_room(stage)
            if room <= 0:
                session.claim.require_longer(stage)
                room = self._ask_for_room(stage)
            return room
        finally:
            self._room = 0

    def _ask_for_room(self, stage: Stage) -> int:
        self._extend, room = stage.make_room()
        return room

    def _end_episodes(self) -> None:
        if self._session.episode is not None:
            self._room = _BROKEN  # nobody steps meanwhile
            try:
                self._session.end()
            finally:
                self._room = 0

    def _be_between_episodes(self) -> None:
        """No episode is open, as after the buffer was released: what comes until the next reset is not recorded."""
        self._room = 0

    def _step_between_episodes(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """A step that is no transition: after an end, or that of an inner Autoreset, which begins an episode."""
        if self._autoreset is not None and self._autoreset.autoreset:
            meta = meta_of_reset(self.env, self._run)
            result = self.env.step(action)
            self._open_at(result[0], result[4], meta)
            return result
        warn_of_pause()
        return self.env.step(action)


def _array_of(tree: Node) -> tuple[Any, Any]:
    """Dtype and shape of the arrays that are stored as they are, where a space has such values; else what none has."""
    if tree.is_leaf and (field := tree.leaves[0].field).shape:
        return np.dtype(field.dtype.type), field.shape
    return None, None


def _length_of(shape: tuple[int, ...] | None) -> int:
    """The length of arrays of one axis; what none has where there are more."""
    return shape[0] if shape is not None and len(shape) == 1 else -1


def _warning_encoder(tree: Node) -> Callable[[Any], Any]:
    """The space's encoder, which warns once where a value is not of the space's own dtype.

    Of composite spaces, whose encoders take longer, only the first values are looked at.
    """
    encode, leaves = make_space_encoder(tree), tree.leaves
    numbers = [leaf for leaf in leaves if not leaf.field.ragged and leaf.space.dtype is not None]
    looks = _LOOKS if len(leaves) > 1 else 1 << 62
    warned: set[str] = set()
    dtype, _ = _array_of(tree)
    is_leaf = tree.is_leaf

    def encode_and_warn(value: Any) -> Any:
        nonlocal looks
        encoded = encode(value)
        if value.dtype is dtype if isinstance(value, np.ndarray) else is_leaf:
            return encoded
        if looks and len(warned) < len(numbers):
            looks -= 1
            for leaf, part in zip(leaves, tree.flatten(value), strict=True):
                if leaf.name in warned or leaf not in numbers or not isinstance(part, np.ndarray):
                    continue
                if part.dtype not in (leaf.space.dtype, leaf.field.dtype):
                    warned.add(leaf.name)
                    warn_of_dtype(leaf, part.dtype)
        return encoded

    return encode_and_warn


def _single_of(encode: Callable[[Any], Any]) -> Callable[[Any], bytes]:
    """The bytes of the only field, as the fast path has them."""
    return lambda value: encode(value)[0]


def _layer_in(env: gym.Env[Any, Any], kind: type[gym.Wrapper[Any, Any, Any, Any]]) -> Any:
    """The outermost wrapper of a kind; None where there is none."""
    layer: Any = env
    while isinstance(layer, gym.Wrapper):
        if isinstance(layer, kind):
            return layer
        layer = layer.env
    return None
