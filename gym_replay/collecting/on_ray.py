"""Collecting with Ray: several workers, on one machine or many, each with a folder of its own.

The process that calls collect() hands out the indices of episodes, a few at a time, and the workers play and record
them. A worker is an actor and the only writer of ``folder/shards/worker-00003``. It is asked again and again to play
for a while, and answers with what has ended. Where one dies, another is made instead, which opens the same folder: what
was committed there counts, and the rest of its indices is handed out again.
"""

from __future__ import annotations

import logging
import math
import time
import warnings
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from gym_replay.buffer.concat import ConcatReplayBuffer
from gym_replay.buffer.door import has_buffer
from gym_replay.buffer.finding import SHARDS
from gym_replay.buffer.replay_buffer import ReplayBuffer
from gym_replay.collecting.driving import drive, journal_of, tell_of_nothing
from gym_replay.collecting.folder import (
    Journal,
    delete_unneeded,
    episodes_in,
    give_same_fields,
    open_journal,
    shards_of,
)
from gym_replay.collecting.plan import Goal, Plan, Played, check_count
from gym_replay.collecting.players import Player, open_player
from gym_replay.collecting.request import Request
from gym_replay.errors import BufferLockedError, ConfigMismatchError, EmptyBufferError
from gym_replay.extras import require
from gym_replay.files.lock import WriterLock

_SECONDS_BETWEEN_ANSWERS = 0.5
_LOCK_SECONDS = 30.0
"""How long a worker waits for the process before it to be gone: Ray may say so a little early."""

_PATIENCE = 30.0
"""Seconds without a single worker after which there is a warning."""

_MOST_DEATHS = 3
"""How often in a row a worker may die without an episode."""


class Report(NamedTuple):
    """What a worker says after a while of playing.

    Attributes:
        played: the episodes that have ended since its last report.
        lengths: the steps of the episodes that are being played, by index.
        steps: transitions that it has played so far.
    """

    played: list[Played]
    lengths: dict[int, int]
    steps: int


class ShardWorker:
    """What runs in an actor: plays the indices that it is given into one shard. It is the feed of its player."""

    is_complete = False

    def __init__(self, request: Request, shard: Path) -> None:
        self._request, self._shard = request, shard
        self._waiting: deque[int] = deque()
        self._played: list[Played] = []

    def next(self) -> int | None:
        return self._waiting.popleft() if self._waiting else None

    def next_of(self, env_index: int, num_envs: int) -> int | None:
        raise NotImplementedError("engine='ray' does not go with vectorization='native'")

    def note_lengths(self, lengths: Mapping[int, int]) -> None:
        """The next report has them."""

    def settle(self, episode: Played) -> None:
        self._played.append(episode)

    def open(self, indices: set[int]) -> list[Played]:
        """Make the environment and open the shard; those of the episodes that are in it."""
        self._player = self._open_player()
        self._player.feed = self
        journal_of(self._player.buffer, self._request).write()
        return [episode for episode in episodes_in([self._player.buffer]) if episode.index in indices]

    def _open_player(self) -> Player:
        give_up = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                return open_player(self._request, self._shard)
            except BufferLockedError:
                if time.monotonic() > give_up:
                    raise
            time.sleep(0.2)

    def play(self, indices: list[int], seconds: float) -> Report:
        """Play on, with these indices too, for so long or until there are none left."""
        self._waiting.extend(indices)
        try:
            self._player.play(time.monotonic() + seconds)
        except BaseException:
            self.close()
            raise
        played, self._played = self._played, []
        return Report(played, self._player.lengths(), self._player.steps)

    def close(self) -> None:
        """Commit what has ended, forget what has not, and close the shard."""
        try:
            self._player.close()
        finally:
            self._player.buffer.close()


@dataclass
class _Worker:
    """The driver's side of a worker.

    Attributes:
        actor: the actor; None where it is dead or was closed.
        indices: the episodes that it has to play, those that it is playing included.
        deaths: how often it died since its last episode.
        wanted: how many indices it is to have next.
        steps: the transitions of its last report.
    """

    shard: Path
    actor: Any = None
    is_open: bool = False
    indices: set[int] = field(default_factory=set)
    deaths: int = 0
    wanted: int = 0
    steps: int = 0


class _Crew:
    """All workers, who play the episodes of a plan.

    Args:
        ray: the module.
        request: what is played.
        plan: which episodes.
        shards: of each worker.
        ray_options: how an actor is made.
    """

    def __init__(
        self, ray: Any, request: Request, plan: Plan, shards: list[Path], ray_options: Mapping[str, Any]
    ) -> None:
        self._ray, self._plan = ray, plan
        self._make = ray.remote(ShardWorker).options(**{"num_cpus": 1, "max_restarts": 0, **ray_options})
        self._sent = ray.put(request)
        self._least = request.make.num_envs
        self._workers = [_Worker(shard) for shard in shards]
        self._calls: dict[Any, _Worker] = {}
        self._warn_at = time.monotonic() + _PATIENCE
        self.stopped = False
        self.steps = 0
        for worker in self._workers:  # those for which there is no room yet begin when there is
            self._make_actor(worker)

    def _make_actor(self, worker: _Worker) -> None:
        worker.actor = self._make.remote(self._sent, worker.shard)
        worker.is_open, worker.wanted, worker.steps = False, self._least, 0
        self._calls[worker.actor.open.remote(worker.indices)] = worker

    def play(self, until: float) -> bool:
        """Wait for answers, note them, and give those who answered something to do.

        Raises:
            Exception: what the environment, the policy or the recorder raised in a worker.
        """
        errors = self._ray.exceptions
        if time.monotonic() > self._warn_at:
            self._warn_of_no_room()
        seconds = max(until - time.monotonic(), 0.0)
        done, _ = self._ray.wait(list(self._calls), num_returns=len(self._calls), timeout=seconds)
        for call in done:
            worker = self._calls.pop(call)
            try:
                answer = self._ray.get(call)
            except errors.RayTaskError as error:
                worker.actor = None  # it has closed its shard itself
                raise (error.cause if isinstance(error.cause, Exception) else error) from error
            except errors.RayError as error:
                self._replace(worker, error)
                continue
            if isinstance(answer, Report):
                self._note(worker, answer)
            else:
                self._note_open(worker, answer)
            if not self._plan.is_complete:
                indices = self._hand_out(worker)
                self._calls[worker.actor.play.remote(indices, _SECONDS_BETWEEN_ANSWERS)] = worker
        return True

    def _warn_of_no_room(self) -> None:
        self._warn_at = math.inf
        if not any(worker.is_open for worker in self._workers):
            warnings.warn(
                f"no worker has begun: Ray has {self._ray.available_resources().get('CPU', 0):g} processors free, and "
                "each worker takes one, or what ray_options says; collect() goes on waiting",
                stacklevel=5,
            )

    def _replace(self, worker: _Worker, error: Exception) -> None:
        """Have another actor play for one that died."""
        worker.deaths += 1
        if worker.deaths > _MOST_DEATHS:
            raise error
        self._ray.kill(worker.actor)  # where only the connection broke
        self._warn_at = time.monotonic() + _PATIENCE  # it had room
        self._make_actor(worker)

    def _note_open(self, worker: _Worker, there: list[Played]) -> None:
        worker.is_open = True
        for episode in there:  # of the actor that died
            self._plan.settle(episode)
        for index in sorted(worker.indices - {episode.index for episode in there}):
            self._plan.give_back(index)
        worker.indices.clear()

    def _note(self, worker: _Worker, report: Report) -> None:
        self._plan.note_lengths(report.lengths)
        for episode in report.played:
            worker.indices.discard(episode.index)
            self._plan.settle(episode)
            worker.deaths = 0
        self.steps, worker.steps = self.steps + report.steps - worker.steps, report.steps
        # For the next while twice as many as in the last one, of which some may be left.
        waiting = len(worker.indices) - len(report.lengths)
        worker.wanted = max(2 * len(report.played), self._least) - waiting

    def _hand_out(self, worker: _Worker) -> list[int]:
        """Indices for a worker, of the last ones only its share."""
        wanted, episodes = worker.wanted, self._plan.goal.episodes
        if episodes is not None:
            left = episodes - len(self._plan.kept) - len(self._plan.playing)
            wanted = min(wanted, max(-(-left // len(self._workers)), self._least))
        given: list[int] = []
        while len(given) < wanted and (index := self._plan.next()) is not None:
            given.append(index)
        worker.indices.update(given)
        return given

    def close(self) -> None:
        """Have all workers commit what has ended and close their shards."""
        ray = self._ray
        calls = [worker.actor.close.remote() for worker in self._workers if worker.actor is not None and worker.is_open]
        if calls:
            ray.wait(calls, num_returns=len(calls), timeout=_LOCK_SECONDS)
        for worker in self._workers:
            if worker.actor is not None:
                ray.kill(worker.actor)
                worker.actor = None


def collect_on_ray(
    request: Request, folder: Path, goal: Goal, num_workers: int, ray_options: Mapping[str, Any], *, progress: bool
) -> ConcatReplayBuffer:
    """Collect into the shards of a folder, with actors of Ray.

    Raises:
        ConfigMismatchError: the folder was collected with other arguments, or without Ray.
        BufferLockedError: somebody else is collecting into the folder.
        MissingExtraError: Ray is not installed.
        KeyboardInterrupt: Ctrl-C was pressed; all that has ended is committed.
    """
    check_count("num_workers", num_workers)
    ray = require("ray", "ray", "engine='ray'")
    if has_buffer(folder):
        raise ConfigMismatchError(f"{folder} was not collected with engine='ray'; choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as cleanup:
        lock = WriterLock(folder)
        cleanup.callback(lock.release)
        holds = SHARDS if shards_of(folder) else ""
        journal = open_journal(folder, request.identity(), lock.put_file, holds=holds)
        with _opened(folder, read_only=True) as buffers:
            plan = Plan(goal, episodes_in(buffers), journal.discarded, may_discard=request.may_discard)
        journal.ask(goal)  # before there is anything that it is about
        tell_of_nothing(request, plan, folder)
        if not plan.is_complete:
            shards = [folder / SHARDS / f"worker-{number:05}" for number in range(num_workers)]
            with _running(ray):
                drive(_Crew(ray, request, plan, shards, ray_options), plan, journal, folder, progress=progress)
        _finish(folder, journal)
    if not (found := shards_of(folder)):
        raise EmptyBufferError(f"{folder}: there are no shards")
    return ConcatReplayBuffer(found)


@contextmanager
def _running(ray: Any) -> Iterator[None]:
    """Ray, as it runs; where it does not, connected to the cluster that there is or started here, and ended again."""
    if ray.is_initialized():
        yield
        return
    ray.init(include_dashboard=False, logging_level=logging.WARNING)
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _opened(folder: Path, *, read_only: bool) -> Iterator[list[ReplayBuffer]]:
    """All shards of a folder."""
    with ExitStack() as stack:
        yield [stack.enter_context(ReplayBuffer.from_folder(shard, read_only=read_only)) for shard in shards_of(folder)]


def _finish(folder: Path, journal: Journal) -> None:
    """Delete what does not belong to the collection, and give all shards the same fields."""
    with _opened(folder, read_only=False) as buffers:
        delete_unneeded(buffers, journal.goals)
        give_same_fields(buffers)
