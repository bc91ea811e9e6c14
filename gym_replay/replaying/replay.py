"""replay: a recorded episode executed again, and compared with the record bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, overload

from gym_replay.buffer.door import require_buffer
from gym_replay.buffer.env_spec import make_env
from gym_replay.buffer.episode import Episode
from gym_replay.buffer.reading import Readable
from gym_replay.errors import EpisodeStateError, FieldError
from gym_replay.notices import names_nearest_keyword
from gym_replay.replaying.executing import (
    Difference,
    Player,
    What,
    differences,
    note_on_lossy,
    origins_of,
    require_recorded,
    states_of,
)

if TYPE_CHECKING:
    import gymnasium as gym

Status = Literal["equal", "differs", "not replayable"]


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
        TypeError: ``env`` is none, or ``buffer`` is none.
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
    if env is not None and not hasattr(env, "step"):
        remedy = "; call it" if callable(env) else ""
        raise TypeError(f"replay: env: expected a gymnasium.Env, got {type(env).__name__}{remedy}")
    if not isinstance(episode, Episode):
        episode = buffer.episode(episode)
    if episode.snapshot.metadata.environment is None:
        raise FieldError("replay: no environment is stored; the buffer was not made by RecordToBuffer")
    require_recorded(episode.snapshot.metadata)
    if not render:
        with _players(episode, env, trust=trust) as make:
            return _report(episode, make)
    if env is not None and env.render_mode is None:
        raise FieldError("render: env has no render mode; make it with render_mode='rgb_array'")
    return _frames(episode, env, trust=trust)


@contextmanager
def _players(
    episode: Episode, env: gym.Env[Any, Any] | None, *, trust: bool, **kwargs: Any
) -> Iterator[Callable[[], Player]]:
    """A function that gives an environment to play in, a fresh one at each call unless one was passed in."""
    metadata = episode.snapshot.metadata
    with ExitStack() as made:

        def make() -> Player:
            if env is not None:
                return Player(metadata, env, trust=trust)
            made.close()
            fresh = make_env((metadata.environment or {}).get("env_spec"), trust=trust, **kwargs)
            made.callback(fresh.close)
            return Player(metadata, fresh, trust=trust)

        yield make


def _report(episode: Episode, make: Callable[[], Player]) -> ReplayReport:
    found = []
    for origin in origins_of(episode):
        difference = next(differences(make(), episode, origin), None)
        if difference is None:
            return ReplayReport(episode.id, "equal", origin.name, detail=note_on_lossy(episode))
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
    detail = "; ".join(filter(None, (difference.detail, note_on_lossy(episode))))
    return ReplayReport(episode.id, "differs", origin.name, difference.step, difference.what, detail)


def _frames(episode: Episode, env: gym.Env[Any, Any] | None, *, trust: bool) -> Iterator[Any]:
    with _players(episode, env, trust=trust, render_mode="rgb_array") as make:
        tried = (origin for origin in origins_of(episode) if next(differences(make(), episode, origin), None) is None)
        origin = next(tried, None)
        if origin is None:
            raise EpisodeStateError(f"{_report(episode, make)}; there are no frames of an episode that does not replay")
        player = make()
        for state in states_of(player, episode, origin):
            if isinstance(state, Difference):
                raise EpisodeStateError(
                    f"episode {state.episode} replays without rendering, but not with it: {state.detail}"
                )
            if state == episode.id:
                yield player.env.render()
