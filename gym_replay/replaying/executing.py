"""Executing recorded episodes: what each is executed from, the actions, and what comes out otherwise than recorded.

What decides an episode is the seed that its reset was given or else the state of the environment's generator before
it. Where that is not enough, because an environment carries more than its generator from one episode to the next, the
episodes that led to it are executed first.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from gym_replay.buffer.door import Encoded, Metadata, Snapshot, as_stored
from gym_replay.buffer.env_spec import require_harmless
from gym_replay.buffer.episode import Episode
from gym_replay.errors import ConfigMismatchError, CorruptBufferError, FieldError
from gym_replay.files.documents import parse_json
from gym_replay.schema.fields import make_encoder, parse_fields
from gym_replay.spaces import Leaf, make_space_encoder, space_to_json, space_tree, unflatten
from gym_replay.wrappers.generator_state import NUMBERS, restore_generator
from gym_replay.wrappers.recorded_schema import RECORDER_META

if TYPE_CHECKING:
    import gymnasium as gym

What = Literal["observation", "reward", "terminated", "truncated"]

Outcome: TypeAlias = Mapping[str, "bytes | str"]
"""What reset or a step returned: the bytes of the stored fields by name, or why a value does not fit."""

_SPACES = ("observation_space", "action_space")
_OF_STEPS = ("reward", "terminated", "truncated")

_DECIDING = {
    **parse_fields({"terminated": "bool", "truncated": "bool"}),
    **parse_fields({name: RECORDER_META[name] for name in ("episode_seed", "episode_rng", "episode_options")}),
}


def require_recorded(metadata: Metadata) -> None:
    """Raise FieldError where what decides a replay is not stored as a recorder stores it."""
    there = {**metadata.fields, **metadata.meta_fields}
    for name, wanted in _DECIDING.items():
        found = there.get(name, wanted if name in RECORDER_META else None)
        if found is None or (found.dtype, found.shape, found.ragged) != (wanted.dtype, wanted.shape, False):
            raise FieldError(f"replay: {name!r} is not stored as RecordToBuffer stores it")
    if "reward" not in metadata.fields or metadata.fields["reward"].ragged:
        raise FieldError("replay: the buffer has no rewards as RecordToBuffer stores them")


class Origin(NamedTuple):
    """What an episode is executed from: itself, or an earlier episode and all since.

    Attributes:
        name: for messages.
        first: the index of the episode that is executed first.
    """

    name: str
    first: int


class Difference(NamedTuple):
    """What an environment returned otherwise than recorded.

    Attributes:
        episode: the id of the episode.
        step: the t of the step that returned it, -1 for the reset.
        what: of which kind it is.
        detail: the field and its values.
    """

    episode: int
    step: int
    what: What
    detail: str


def note_on_lossy(episode: Episode) -> str:
    """What to say of observations that are not stored as they were; empty where all are."""
    lossy = [name for name, info in episode.snapshot.metadata.fields.items() if info.state and info.is_lossy]
    if not lossy:
        return ""
    return f"{', '.join(lossy)}: compared after encoding, which is lossy and may depend on the version of its package"


def states_of(player: Player, episode: Episode, origin: Origin) -> Iterator[int | Difference]:
    """Execute the episodes from an origin to one; gives the id of the episode for each state, or what differs."""
    for index in range(origin.first, episode.index + 1):
        each = episode if index == episode.index else Episode(episode.snapshot, index)
        for difference in player.run(each):
            yield each.id if difference is None else difference


def differences(player: Player, episode: Episode, origin: Origin) -> Iterator[Difference]:
    """What differs where the episodes from an origin to one are executed; at most one for each of them."""
    return (state for state in states_of(player, episode, origin) if isinstance(state, Difference))


def origins_of(episode: Episode) -> Iterator[Origin]:
    """What decided the episode; then the episodes before it from the last seeded one on, and from the first known one.

    Some environments carry more than their generator from one episode to the next: Atari games a generator of their
    own, those of Box2D the memory of its solver.
    """
    snapshot, index = episode.snapshot, episode.index
    if _decided_by(episode):
        yield Origin(_decided_by(episode), index)
    gaps = np.flatnonzero(np.diff(snapshot.ids[: index + 1]) != 1)  # after which episodes others have gone
    oldest = int(gaps[-1]) + 1 if len(gaps) else 0
    is_seeded = (_meta_of(snapshot, "episode_seed", -1)[oldest:index] >= 0).any(axis=1)
    is_known = is_seeded | (_meta_of(snapshot, "episode_rng", 0)[oldest:index] != 0).any(axis=1)
    starts = [] if _seed_of(episode) is not None else (oldest + np.flatnonzero(is_seeded)[-1:]).tolist()
    starts += (oldest + np.flatnonzero(is_known)[:1]).tolist()
    for start in dict.fromkeys(starts):
        first = Episode(snapshot, start)
        yield Origin(f"{_decided_by(first)} of episode {first.id} and all episodes since", start)


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


class Player:
    """An environment in which episodes are executed, and what it returns compared with their rows.

    Args:
        metadata: of the buffer that the episodes are of.
        env: the environment.
        trust: whether recorded reset options are handed on, whatever they are.
        any_observations: whether the environment may have another observation space than the recorded one; then its
            observations are not compared.

    Attributes:
        env: the environment.
        sees: whether observations are compared.

    Raises:
        ConfigMismatchError: the environment has other spaces than the recorded ones.
    """

    def __init__(
        self, metadata: Metadata, env: gym.Env[Any, Any], *, trust: bool, any_observations: bool = False
    ) -> None:
        self.env, self._trust = env, trust
        recorded = metadata.environment or {}
        unequal = [name for name in _SPACES if _as_json(getattr(env, name), name) != recorded.get(name)]
        self.sees = not (any_observations and "observation_space" in unequal)
        if unequal := [name for name in unequal if self.sees or name != "observation_space"]:
            raise ConfigMismatchError(
                f"env has another {unequal[0].replace('_', ' ')} than the recorded one: {getattr(env, unequal[0])}, "
                f"recorded {recorded.get(unequal[0])}; build it as it was recorded, with the wrappers that were inside "
                "of the recorder"
            )
        # The environment's own spaces with the stored fields: just what the recorder encodes with.
        observation = space_tree(env.observation_space, "observation", state=True)
        leaves = _stored_leaves(metadata, observation.leaves) if self.sees else []
        self._observation_names = [leaf.name for leaf in leaves]
        self._lossy = {leaf.name: leaf.field for leaf in leaves if leaf.field.is_lossy}
        self._encode = make_space_encoder(observation, leaves) if self.sees else None
        self._encode_reward = make_encoder("reward", metadata.fields["reward"])
        self._action = space_tree(env.action_space, "action")
        self._action_names = [leaf.name for leaf in _stored_leaves(metadata, self._action.leaves)]

    def run(self, episode: Episode) -> Iterator[Difference | None]:
        """Execute an episode; gives, for each of the T+1 states, what differs, and ends with the first difference."""
        compare = self.comparison(episode)
        for outcome in self._execute(episode):
            difference = compare(outcome)
            yield difference
            if difference is not None:
                return

    def comparison(self, episode: Episode) -> Callable[[Outcome], Difference | None]:
        """A function that is called with the outcome of reset and of each step in turn, and says what differs."""
        stored = {name: episode[name] for name in (*self._observation_names, *_OF_STEPS)}
        cut_at = None if episode.complete else len(episode) - 1
        rows = count()

        def compare(outcome: Outcome) -> Difference | None:
            row = next(rows)
            for name, part in outcome.items():
                what, at = (name, row - 1) if name in _OF_STEPS else ("observation", row)
                detail = part if isinstance(part, str) else ""
                # Row T is missing where an episode was stored by hand.
                if not detail and at < len(column := stored[name]) and column[at].tobytes() != part:
                    detail = f"{name}[{at}]{_describe(column[at], cast(bytes, part))}"
                if detail and not (name == "truncated" and at == cut_at):
                    return Difference(episode.id, row - 1, cast(What, what), detail)
            return None

        return compare

    def trace(self, episode: Episode) -> list[int]:
        """A check value of all that the environment returns at each step."""
        return [
            zlib.crc32(b"".join(part if isinstance(part, bytes) else part.encode() for part in outcome.values()))
            for outcome in self._execute(episode)
        ]

    def _execute(self, episode: Episode) -> Iterator[Outcome]:
        """The outcome of reset and of each step, up to where the environment ends the episode."""
        actions = self.actions_of(episode)
        yield self.outcome(self.env.reset(**self.prepare_reset(episode)))
        for action in actions:
            result = self.env.step(action)
            yield self.outcome(result)
            if result[2] or result[3]:
                break

    def outcome(self, result: tuple[Any, ...]) -> Outcome:
        """What ``reset`` or ``step`` returned, as it is compared."""
        if len(result) == 2:
            return self._encoded(result[0])
        observation, reward, terminated, truncated, _ = result
        try:
            rewards: bytes | str = self._encode_reward(reward)
        except FieldError as error:
            rewards = str(error)
        flags = {"terminated": bytes([bool(terminated)]), "truncated": bytes([bool(truncated)])}
        return {"reward": rewards, **flags, **self._encoded(observation)}

    def _encoded(self, observation: Any) -> Outcome:
        if self._encode is None:
            return {}
        try:
            found = dict(zip(self._observation_names, self._encode(observation), strict=True))
        except FieldError as error:
            return {"observation": str(error)}
        for name, info in self._lossy.items():
            found[name] = Encoded(as_stored(info, [found[name]]), info).copy().tobytes()
        return found

    def prepare_reset(self, episode: Episode) -> dict[str, Any]:
        """The arguments of the reset that begins an episode; the environment's generator is put into its state.

        Raises:
            MakeEnvError: a reset option is not harmless.
        """
        restore_generator(self.env, _generator_of(episode))
        options = _options_of(episode)
        if not self._trust:
            require_harmless(options or {}, f"episode {episode.id}: the recorded reset options")
        return {"seed": _seed_of(episode), "options": options}

    def actions_of(self, episode: Episode) -> Iterator[Any]:
        """The actions of an episode, as the environment takes them."""
        columns = [episode[name].copy() for name in self._action_names]
        episode.snapshot.require_live(episode.id)
        if _is_wider(columns, self.env.action_space.dtype):
            return iter(columns[0])
        return (unflatten(self._action, [column[t] for column in columns]) for t in range(len(episode)))


def _as_json(space: gym.Space[Any], name: str) -> Any:
    return space_to_json(space, name.partition("_")[0])


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
