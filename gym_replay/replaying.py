"""replay: a recorded episode executed again, and compared with the record bit for bit.

What decides an episode is the seed that its reset was given or else the state of the environment's generator before
it. Where that is not enough, because an environment carries more than its generator from one episode to the next, the
episodes that led to it are executed first.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast, overload

import numpy as np
import numpy.typing as npt

from gym_replay.buffer.door import Encoded, Metadata, Snapshot, as_stored, require_buffer
from gym_replay.buffer.env_spec import make_env, require_harmless
from gym_replay.buffer.episode import Episode
from gym_replay.buffer.reading import Readable
from gym_replay.errors import ConfigMismatchError, CorruptBufferError, EpisodeStateError, FieldError
from gym_replay.files.documents import parse_json
from gym_replay.notices import names_nearest_keyword
from gym_replay.schema.fields import make_encoder, parse_fields
from gym_replay.spaces import Leaf, make_space_encoder, space_to_json, space_tree, unflatten
from gym_replay.wrappers.generator_state import NUMBERS, restore_generator
from gym_replay.wrappers.recorded_schema import RECORDER_META

if TYPE_CHECKING:
    import gymnasium as gym

Status = Literal["equal", "differs", "not replayable"]
What = Literal["observation", "reward", "terminated", "truncated"]

_OF_STEPS = ("reward", "terminated", "truncated")

_DECIDING = {
    **parse_fields({"terminated": "bool", "truncated": "bool"}),
    **parse_fields({name: RECORDER_META[name] for name in ("episode_seed", "episode_rng", "episode_options")}),
}


@dataclass(frozen=True)
class ReplayReport:
    """What came of executing an episode again.

    Attributes:
        episode: the episode's id.
        status: ``"equal"``: every observation, reward and flag is the recorded one, bit for bit; of a field with a
            lossy codec, what the codec makes of it, as ``detail`` says then. ``"differs"``: one is not. ``"not
            replayable"``: what decided the episode was not recorded, so that nothing is said about it.
        origin: what the episode was executed from, such as ``"seed 3"``; empty where there was nothing.
        step: the t of the first ``env.step(a_t)`` that returned something else, -1 where ``reset`` did, or None.
        what: ``"observation"``, ``"reward"``, ``"terminated"`` or ``"truncated"``: what was the first to differ.
        detail: the field and its values, or why the episode cannot be replayed.
    """

    episode: int
    status: Status
    origin: str = ""
    step: int | None = None
    what: What | None = None
    detail: str = ""

    @property
    def equal(self) -> bool:
        """Whether the replay was the recorded episode."""
        return self.status == "equal"

    def __str__(self) -> str:
        text = f"episode {self.episode}: {self.status}"
        if self.origin and self.status != "not replayable":
            text += f", from {self.origin}"
        if self.step is not None:
            text += " in the observation of reset" if self.step == -1 else f" at step {self.step}"
        return text + (f": {self.detail}" if self.detail else "")


@overload
def replay(
    buffer: Readable,
    episode: int | Episode,
    *,
    env: gym.Env[Any, Any] | None = None,
    render: Literal[False] = False,
    trust: bool = False,
) -> ReplayReport: ...
@overload
def replay(
    buffer: Readable,
    episode: int | Episode,
    *,
    env: gym.Env[Any, Any] | None = None,
    render: Literal[True],
    trust: bool = False,
) -> Iterator[Any]: ...
@names_nearest_keyword
def replay(
    buffer: Readable,
    episode: int | Episode,
    *,
    env: gym.Env[Any, Any] | None = None,
    render: bool = False,
    trust: bool = False,
) -> ReplayReport | Iterator[Any]:
    """Execute a recorded episode again, and say whether the environment does what it did.

    The environment is reset with the recorded seed and options. Where no seed was given, its generator is put into
    the state that it had before the recorded reset. Then the recorded actions follow. What the environment returns is
    converted to the stored dtypes and compared bit for bit, except for the ``truncated`` flag that the recorder set
    at the last step of a cut episode. What a lossy codec keeps of an observation is not the observation: there the
    replayed one is encoded and decoded too, and the results are compared, bit for bit again. Another version of the
    codec's package may give other values; the report's ``detail`` names such fields.

    Some environments carry more than their generator from one episode to the next, such as Atari games with sticky
    actions, which have a second generator inside, and BipedalWalker. So where an episode differs, the episodes before
    it are executed as well, from the last seeded one on and from the first one on, as long as they are equal
    themselves. To compare a whole buffer of such an environment, pass one ``env`` and take the episodes in their
    order: each then goes on from the one before, as when they were recorded.

    An episode is not replayable where neither a seed nor a generator's state was kept, and where two replays differ
    from one another: the environment then depends on something that is not recorded.

    Args:
        buffer: a buffer that was made by recording, or several.
        episode: an index, as for ``buffer.episode``, or an episode of the buffer.
        env: the environment to use; it is reset, stepped, and left open. By default one is made as by
            ``buffer.make_env()``, a fresh one for each attempt.
        render: whether to give frames instead.
        trust: whether the recorded arguments of the environment and the recorded reset options are handed on whatever
            they are. Otherwise only harmless ones are, as for ``buffer.make_env()``, and any other one is an error: a
            folder may come from a stranger.

    Returns:
        A :class:`ReplayReport`; with ``render=True`` an iterator over the T+1 frames, one for each state, which
        ``env.render()`` gave in the render mode ``"rgb_array"``, or in that of ``env``.

    Raises:
        FieldError: the buffer was not made by recording, or frames are asked of an ``env`` without a render mode.
        ConfigMismatchError: ``env`` has other spaces than the recorded ones.
        MakeEnvError: the environment cannot be made here; pass ``env``. Or an argument or option is not harmless.
        EpisodeEvictedError: the episode left the circular buffer meanwhile.
        EpisodeStateError: with ``render=True``, before the first frame: the episode does not replay equal.

    Example:
        >>> import tempfile, gymnasium as gym
        >>> from gym_replay import RecordToBuffer
        >>> env = RecordToBuffer(gym.make("CartPole-v1"), tempfile.mkdtemp())
        >>> _ = env.reset(seed=3)
        >>> while not any(env.step(env.action_space.sample())[2:4]):
        ...     pass
        >>> env.close()
        >>> print(replay(env.buffer, 0))
        episode 0: equal, from seed 3
    """
    require_buffer(buffer)
    if not isinstance(episode, Episode):
        episode = buffer.episode(episode)
    if episode.snapshot.metadata.environment is None:
        raise FieldError("replay: no environment is stored; the buffer was not made by RecordToBuffer")
    _require_recorded(episode.snapshot.metadata)
    if not render:
        with _players(episode, env, trust=trust) as make:
            return _report(episode, make)
    if env is not None and env.render_mode is None:
        raise FieldError("render: env has no render mode; make it with render_mode='rgb_array'")
    return _frames(episode, env, trust=trust)


def _require_recorded(metadata: Metadata) -> None:
    """Raise FieldError where what decides a replay is not stored as a recorder stores it."""
    there = {**metadata.fields, **metadata.meta_fields}
    for name, wanted in _DECIDING.items():
        found = there.get(name, wanted if name in RECORDER_META else None)
        if found is None or (found.dtype, found.shape, found.ragged) != (wanted.dtype, wanted.shape, False):
            raise FieldError(f"replay: {name!r} is not stored as RecordToBuffer stores it")
    if "reward" not in metadata.fields or metadata.fields["reward"].ragged:
        raise FieldError("replay: the buffer has no rewards as RecordToBuffer stores them")


@contextmanager
def _players(
    episode: Episode, env: gym.Env[Any, Any] | None, *, trust: bool, **kwargs: Any
) -> Iterator[Callable[[], _Player]]:
    """A function that gives an environment to play in, a fresh one at each call unless one was passed in."""
    metadata = episode.snapshot.metadata
    with ExitStack() as made:

        def make() -> _Player:
            if env is not None:
                return _Player(metadata, env, trust=trust)
            made.close()
            fresh = make_env((metadata.environment or {}).get("env_spec"), trust=trust, **kwargs)
            made.callback(fresh.close)
            return _Player(metadata, fresh, trust=trust)

        yield make


class _Origin(NamedTuple):
    """What an episode is executed from: itself, or an earlier episode and all since.

    Attributes:
        name: for messages.
        first: the index of the episode that is executed first.
    """

    name: str
    first: int


class _Difference(NamedTuple):
    episode: int
    step: int
    what: What
    detail: str


def _report(episode: Episode, make: Callable[[], _Player]) -> ReplayReport:
    found = []
    for origin in _origins(episode):
        difference = next(_differences(make(), episode, origin), None)
        if difference is None:
            return ReplayReport(episode.id, "equal", origin.name, detail=_note_on_lossy(episode))
        found.append((origin, difference))
    if not found:
        detail = "neither a seed nor the state of a generator was kept"
        return ReplayReport(episode.id, "not replayable", detail=detail)
    episode.snapshot.require_live(episode.id)  # or other rows may have been compared
    origin, difference = found[0]
    detail = ""
    if origin.first != episode.index:
        # That the episodes before led to this one is a guess: what is not recorded may lie between them.
        detail = f"it was not reached from {origin.name}"
    elif make().trace(episode) != make().trace(episode):
        detail = f"two replays from {origin.name} differ from one another, so it depends on something else too"
    if detail:
        return ReplayReport(episode.id, "not replayable", detail=detail)
    detail = "; ".join(filter(None, (difference.detail, _note_on_lossy(episode))))
    return ReplayReport(episode.id, "differs", origin.name, difference.step, difference.what, detail)


def _note_on_lossy(episode: Episode) -> str:
    """What to say of observations that are not stored as they were; empty where all are."""
    lossy = [name for name, info in episode.snapshot.metadata.fields.items() if info.state and info.is_lossy]
    if not lossy:
        return ""
    return f"{', '.join(lossy)}: compared after encoding, which is lossy and may depend on the version of its package"


def _frames(episode: Episode, env: gym.Env[Any, Any] | None, *, trust: bool) -> Iterator[Any]:
    with _players(episode, env, trust=trust, render_mode="rgb_array") as make:
        tried = (origin for origin in _origins(episode) if next(_differences(make(), episode, origin), None) is None)
        origin = next(tried, None)
        if origin is None:
            raise EpisodeStateError(f"{_report(episode, make)}; there are no frames of an episode that does not replay")
        player = make()
        for state in _states(player, episode, origin):
            if isinstance(state, _Difference):
                raise EpisodeStateError(
                    f"episode {state.episode} replays without rendering, but not with it: {state.detail}"
                )
            if state == episode.id:
                yield player.env.render()


def _states(player: _Player, episode: Episode, origin: _Origin) -> Iterator[int | _Difference]:
    """Execute the episodes from an origin to one; gives the id of the episode for each state, or what differs."""
    for index in range(origin.first, episode.index + 1):
        each = episode if index == episode.index else Episode(episode.snapshot, index)
        for difference in player.run(each):
            yield each.id if difference is None else difference


def _differences(player: _Player, episode: Episode, origin: _Origin) -> Iterator[_Difference]:
    return (state for state in _states(player, episode, origin) if isinstance(state, _Difference))


def _origins(episode: Episode) -> Iterator[_Origin]:
    """What decided the episode; then the episodes before it from the last seeded one on, and from the first known one.

    Some environments carry more than their generator from one episode to the next: Atari games a generator of their
    own, those of Box2D the memory of its solver.
    """
    snapshot, index = episode.snapshot, episode.index
    if _decided_by(episode):
        yield _Origin(_decided_by(episode), index)
    gaps = np.flatnonzero(np.diff(snapshot.ids[: index + 1]) != 1)  # after which episodes others have gone
    oldest = int(gaps[-1]) + 1 if len(gaps) else 0
    is_seeded = (_meta_of(snapshot, "episode_seed", -1)[oldest:index] >= 0).any(axis=1)
    is_known = is_seeded | (_meta_of(snapshot, "episode_rng", 0)[oldest:index] != 0).any(axis=1)
    starts = [] if _seed_of(episode) is not None else (oldest + np.flatnonzero(is_seeded)[-1:]).tolist()
    starts += (oldest + np.flatnonzero(is_known)[:1]).tolist()
    for start in dict.fromkeys(starts):
        first = Episode(snapshot, start)
        yield _Origin(f"{_decided_by(first)} of episode {first.id} and all episodes since", start)


def _decided_by(episode: Episode) -> str:
    """What was kept that decides the episode; empty where nothing was."""
    seed = _seed_of(episode)
    if seed is not None:
        return f"seed {seed}"
    return "the generator's state" if _generator_of(episode).any() else ""


def _meta_of(snapshot: Snapshot, name: str, default: int) -> npt.NDArray[Any]:
    """A meta field of all episodes, ``(episodes, values)``."""
    is_there = name in snapshot.metadata.meta_fields
    return snapshot.meta(name).reshape(len(snapshot), -1) if is_there else np.full((len(snapshot), 1), default)


def _seed_of(episode: Episode) -> int | None:
    seed = int(episode.meta.get("episode_seed", -1))
    return None if seed < 0 else seed


def _generator_of(episode: Episode) -> npt.NDArray[np.uint64]:
    return np.asarray(episode.meta.get("episode_rng", np.zeros(NUMBERS, np.uint64)))


def _options_of(episode: Episode) -> dict[str, Any] | None:
    text = str(episode.meta.get("episode_options", ""))
    if not text:
        return None
    try:
        options = parse_json(text.encode(), finite=False)
    except ValueError:
        options = None
    if not isinstance(options, dict):
        raise CorruptBufferError(f"episode {episode.id}: 'episode_options' is no JSON object: {text[:60]!r}")
    return options


class _Player:
    """An environment in which episodes are executed, and what it returns compared with their rows.

    Raises:
        ConfigMismatchError: the environment has other spaces than the recorded ones.
    """

    def __init__(self, metadata: Metadata, env: gym.Env[Any, Any], *, trust: bool) -> None:
        self.env, self._trust = env, trust
        for name in ("observation_space", "action_space"):
            space, recorded = getattr(env, name), (metadata.environment or {}).get(name)
            if space_to_json(space, name.partition("_")[0]) != recorded:  # the recorder's own rule
                raise ConfigMismatchError(
                    f"env has another {name.replace('_', ' ')} than the recorded one: {space}, recorded {recorded}; "
                    "build it as it was recorded, with the wrappers that were inside of the recorder"
                )
        # The environment's own spaces with the stored fields: just what the recorder encodes with.
        observation = space_tree(env.observation_space, "observation", state=True)
        leaves = _stored_leaves(metadata, observation.leaves)
        self._observation_names = [leaf.name for leaf in leaves]
        self._lossy = {leaf.name: leaf.field for leaf in leaves if leaf.field.is_lossy}
        self._encode = make_space_encoder(observation, leaves)
        self._encode_reward = make_encoder("reward", metadata.fields["reward"])
        self._action = space_tree(env.action_space, "action")
        self._action_names = [leaf.name for leaf in _stored_leaves(metadata, self._action.leaves)]

    def run(self, episode: Episode) -> Iterator[_Difference | None]:
        """Execute an episode; gives, for each of the T+1 states, what differs, and ends with the first difference."""
        stored = {name: episode[name] for name in (*self._observation_names, *_OF_STEPS)}
        cut_at = None if episode.complete else len(episode) - 1
        for row, outcome in enumerate(self._execute(episode)):
            difference = None
            for name, part in outcome.items():
                what, at = (name, row - 1) if name in _OF_STEPS else ("observation", row)
                detail = part if isinstance(part, str) else ""
                # Row T is missing where an episode was stored by hand.
                if not detail and at < len(rows := stored[name]) and rows[at].tobytes() != part:
                    detail = f"{name}[{at}]{_describe(rows[at], cast(bytes, part))}"
                if detail and not (name == "truncated" and at == cut_at):
                    difference = _Difference(episode.id, row - 1, cast(What, what), detail)
                    break
            yield difference
            if difference is not None:
                return

    def trace(self, episode: Episode) -> list[int]:
        """A check value of all that the environment returns at each step."""
        return [
            zlib.crc32(b"".join(part if isinstance(part, bytes) else part.encode() for part in outcome.values()))
            for outcome in self._execute(episode)
        ]

    def _execute(self, episode: Episode) -> Iterator[Mapping[str, bytes | str]]:
        """What reset and each step return, up to where the environment ends the episode.

        Each is the bytes of the stored fields by name, or why the value does not fit.
        """
        actions = self._actions_of(episode)
        yield self._encoded(self._reset(episode))
        for action in actions:
            observation, reward, terminated, truncated, _ = self.env.step(action)
            try:
                rewards: bytes | str = self._encode_reward(reward)
            except FieldError as error:
                rewards = str(error)
            flags = {"terminated": bytes([bool(terminated)]), "truncated": bytes([bool(truncated)])}
            yield {"reward": rewards, **flags, **self._encoded(observation)}
            if terminated or truncated:
                break

    def _encoded(self, observation: Any) -> Mapping[str, bytes | str]:
        try:
            found = dict(zip(self._observation_names, self._encode(observation), strict=True))
        except FieldError as error:
            return {"observation": str(error)}
        for name, info in self._lossy.items():
            found[name] = Encoded(as_stored(info, [found[name]]), info).copy().tobytes()
        return found

    def _reset(self, episode: Episode) -> Any:
        restore_generator(self.env, _generator_of(episode))
        options = _options_of(episode)
        if not self._trust:
            require_harmless(options or {}, f"episode {episode.id}: the recorded reset options")
        return self.env.reset(seed=_seed_of(episode), options=options)[0]

    def _actions_of(self, episode: Episode) -> Iterator[Any]:
        columns = [episode[name].copy() for name in self._action_names]
        episode.snapshot.require_live(episode.id)
        if _is_wider(columns, self.env.action_space.dtype):
            return iter(columns[0])
        return (unflatten(self._action, [column[t] for column in columns]) for t in range(len(episode)))


def _stored_leaves(metadata: Metadata, leaves: Sequence[Leaf]) -> list[Leaf]:
    """The leaves of a space with the fields that are stored of them.

    Raises:
        FieldError: one is missing, or of another shape.
    """
    found = []
    for leaf in leaves:
        stored = metadata.fields.get(leaf.name)
        if stored is None or (stored.shape, stored.ragged) != (leaf.field.shape, leaf.field.ragged):
            raise FieldError(f"replay: field {leaf.name!r} is not stored as RecordToBuffer stores it")
        found.append(replace(leaf, field=stored))
    return found


def _is_wider(columns: Sequence[Any], dtype: Any) -> bool:
    """Whether actions were given, and stored, in one column of a dtype that the space's fits into."""
    if len(columns) != 1 or dtype is None or not isinstance(columns[0], np.ndarray):
        return False
    return columns[0].dtype != dtype and np.can_cast(dtype, columns[0].dtype)


def _describe(stored: Any, encoded: bytes) -> str:
    """What to say of two values of which the bytes differ."""
    stored = np.asarray(stored)
    values = np.frombuffer(encoded, stored.dtype)
    # Of a ragged field there may be another number of elements.
    replayed = values.reshape(stored.shape if values.size == stored.size else (-1, *stored.shape[1:]))
    if stored.shape != replayed.shape:
        return f" has shape {replayed.shape}, recorded {stored.shape}"
    if stored.ndim == 0:
        return f" is {replayed!s}, recorded {stored!s}"
    # By bytes: zeros may differ in their sign, and what is not a number is not equal to itself.
    width = (stored.size, stored.dtype.itemsize)
    unequal = (np.frombuffer(stored.tobytes(), np.uint8) != np.frombuffer(encoded, np.uint8)).reshape(width).any(axis=1)
    first = np.unravel_index(int(unequal.argmax()), stored.shape)
    place = ", ".join(str(int(index)) for index in first)
    return (
        f": {int(unequal.sum())} of {stored.size} values differ, the first at [{place}]: {replayed[first]!s}, "
        f"recorded {stored[first]!s}"
    )
