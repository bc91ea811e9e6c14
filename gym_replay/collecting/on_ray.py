"""Collecting with Ray: several workers, on one machine or many, each with a folder of its own.

The process that calls collect() hands out the numbers of episodes, a few at a time, and the workers play and record
them. A worker is an actor and the only writer of ``folder/shards/worker-00003``. It is asked again and again to play
for a while, and answers with what has ended. Where one dies, another is made in its place, which opens the same folder:
what was committed there counts, and the rest of its numbers is handed out again.
"""

from __future__ import annotations

import logging
import math
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gym_replay.buffer.concat import ConcatReplayBuffer
from gym_replay.buffer.door import has_buffer
from gym_replay.buffer.replay_buffer import ReplayBuffer
from gym_replay.collecting.feed import Played, Verdicts
from gym_replay.collecting.journal import Journal, read_journal
from gym_replay.collecting.local import make_environment, make_player
from gym_replay.collecting.plan import Goal, Plan
from gym_replay.collecting.policies import load_policy
from gym_replay.collecting.progress import OnInterrupt, Progress
from gym_replay.collecting.request import Request, check_count
from gym_replay.collecting.target import (
    SHARDS,
    delete_numbers,
    episodes_in,
    open_journal,
    open_target,
    returns_in,
    shards_of,
)
from gym_replay.errors import BufferLockedError, ConfigMismatchError, EmptyBufferError, MissingExtraError
from gym_replay.files.lock import WriterLock
from gym_replay.schema.fields import Field

_SLICE = 0.5
"""Seconds that a worker plays between two answers."""

_LOOK = 0.1
"""Seconds between two looks at the bar, and at Ctrl-C."""

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
        running: how many steps those have that are being played.
        waiting: how many numbers it has left.
        steps: transitions that it played since its last report.
    """

    played: list[Played]
    running: dict[int, int]
    waiting: int
    steps: int


class ShardWorker:
    """What runs in an actor: plays the numbers that it is given into one shard.

    Args:
        request: what is played.
        shard: the folder.
    """

    def __init__(self, request: Request, shard: Path) -> None:
        self._request, self._shard = request, shard
        self._queue: deque[int] = deque()
        self._played: list[Played] = []
        self._steps = 0
        self.is_over = False

    # --- the feed of its player ---

    def next(self) -> int | None:
        return self._queue.popleft() if self._queue else None

    def next_of(self, place: int, count: int) -> int | None:
        raise NotImplementedError("engine='ray' does not go with vectorization='native'")

    def playing(self, lengths: Mapping[int, int]) -> None:
        """The next report says it."""

    def played(self, episode: Played) -> None:
        self._played.append(episode)

    # --- what the driver calls ---

    def open(self) -> list[Played]:
        """Make the environment and open the shard; the episodes that are in it."""
        request = self._request
        policy = load_policy(request.policy)
        with ExitStack() as cleanup:
            self._env = make_environment(request)
            cleanup.callback(self._env.close)
            self._buffer = _once_unlocked(lambda: open_target(self._env, self._shard, request, overwrite=False))
            cleanup.callback(self._buffer.close)
            journal = open_journal(self._buffer, request)
            journal.write(self._buffer.put_file)
            lengths, returns = episodes_in(self._buffer), returns_in(self._buffer)
            self._verdicts = Verdicts(request.keep, request.on_episode)
            self._player = make_player(self._env, policy, request, self._buffer, self, self._verdicts)
            cleanup.pop_all()
        return [
            Played(number, length, one, True) for (number, length), one in zip(lengths.items(), returns, strict=True)
        ]

    def play(self, numbers: list[int], seconds: float) -> Report:
        """Play on, with these numbers too, for so long or until there are none left."""
        self._queue.extend(numbers)
        try:
            self._player.play(time.monotonic() + seconds)
        except BaseException:
            self.close()
            raise
        played, self._played = self._played, []
        steps, self._steps = self._player.steps - self._steps, self._player.steps
        return Report(played, self._player.running(), len(self._queue), steps)

    def close(self) -> None:
        """Commit what has ended, forget what has not, and let the shard go."""
        try:
            self._player.close()
            delete_numbers(self._buffer, self._verdicts.unjudged & episodes_in(self._buffer).keys())
        finally:
            self._buffer.close()


def _once_unlocked(open_it: Callable[[], ReplayBuffer]) -> ReplayBuffer:
    give_up = time.monotonic() + _LOCK_SECONDS
    while time.monotonic() < give_up:
        with suppress(BufferLockedError):
            return open_it()
        time.sleep(0.2)
    return open_it()


class _Worker:
    """The driver's side of a worker.

    Attributes:
        actor: the actor; None where it is dead or was closed.
        numbers: those that it has to play.
        deaths: how often it died since its last episode.
        ended: how many episodes its last report had.
    """

    def __init__(self, shard: Path) -> None:
        self.shard = shard
        self.actor: Any = None
        self.is_open = False
        self.numbers: set[int] = set()
        self.waiting = 0
        self.deaths = 0
        self.ended = 0


class _Crew:
    """All workers, and the plan that they work on.

    Args:
        ray: the module.
        request: what is played.
        plan: which episodes.
        bar: told what was played.
        shards: of each worker.
        ray_options: how an actor is made.
    """

    def __init__(
        self,
        ray: Any,
        request: Request,
        plan: Plan,
        bar: Progress,
        shards: list[Path],
        ray_options: Mapping[str, Any],
    ) -> None:
        self._ray, self._request, self._plan, self._bar = ray, request, plan, bar
        self._make = ray.remote(ShardWorker).options(**{"num_cpus": 1, "max_restarts": 0, **ray_options})
        self._sent = ray.put(request)
        self._workers = [_Worker(shard) for shard in shards]
        self._calls: dict[Any, _Worker] = {}
        self._warn_at = time.monotonic() + _PATIENCE
        self.steps = 0

    def start(self) -> None:
        """Have all workers made. Those for which there is no room yet begin when there is."""
        for worker in self._workers:
            self._make_actor(worker)

    def _make_actor(self, worker: _Worker) -> None:
        worker.actor, worker.is_open, worker.waiting = self._make.remote(self._sent, worker.shard), False, 0
        self._calls[worker.actor.open.remote()] = worker

    def look(self, seconds: float) -> None:
        """Wait for answers, note them, and give those who answered something to do.

        Raises:
            Exception: what the environment, the policy or the recorder raised in a worker.
        """
        errors = self._ray.exceptions
        if time.monotonic() > self._warn_at:
            self._warn_of_no_room()
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
            if worker.is_open:
                self._note(worker, answer)
            else:
                self._note_open(worker, answer)
            if not self._plan.is_complete:
                self._calls[worker.actor.play.remote(self._numbers_for(worker), _SLICE)] = worker

    def _warn_of_no_room(self) -> None:
        self._warn_at = math.inf
        if not any(worker.is_open for worker in self._workers):
            warnings.warn(
                f"no worker has begun: Ray has {self._ray.available_resources().get('CPU', 0):g} processors free, and "
                "each worker takes one, or what ray_options says; collect() goes on waiting",
                stacklevel=4,
            )

    def _replace(self, worker: _Worker, error: Exception) -> None:
        """Have another actor take the place of one that died."""
        worker.deaths += 1
        if worker.deaths > _MOST_DEATHS:
            raise error
        self._ray.kill(worker.actor)  # where only the connection broke
        self._make_actor(worker)

    def _note_open(self, worker: _Worker, there: list[Played]) -> None:
        worker.is_open = True
        by_number = {episode.number: episode for episode in there}
        for number in sorted(worker.numbers):  # of the one that died in its place
            if number in by_number:
                self._settle(by_number[number])
            else:
                self._plan.give_back(number)
        worker.numbers.clear()

    def _note(self, worker: _Worker, report: Report) -> None:
        self._plan.note_lengths(report.running)
        for episode in report.played:
            worker.numbers.discard(episode.number)
            self._settle(episode)
        worker.waiting, worker.ended = report.waiting, len(report.played)
        self.steps += report.steps
        if report.played:
            worker.deaths = 0

    def _settle(self, episode: Played) -> None:
        self._plan.settle(episode.number, episode.length, is_kept=episode.is_kept)
        self._bar.played(episode)

    def _numbers_for(self, worker: _Worker) -> list[int]:
        """Enough numbers for the next while: twice as many as in the last one, and no more than are likely needed."""
        share = math.ceil(min(self._plan.expected(), 1e9) / len(self._workers))
        wanted = max(min(2 * worker.ended, share), self._request.num_envs) - worker.waiting
        given: list[int] = []
        while len(given) < wanted:
            number = self._plan.next()
            if number is None:
                break
            given.append(number)
        worker.numbers.update(given)
        return given

    def stop(self) -> None:
        """Have all workers commit what has ended and let their shards go."""
        ray = self._ray
        calls = [worker.actor.close.remote() for worker in self._workers if worker.actor is not None and worker.is_open]
        if calls:
            ray.wait(calls, num_returns=len(calls), timeout=_LOCK_SECONDS)
        for worker in self._workers:
            if worker.actor is not None:
                ray.kill(worker.actor)
                worker.actor = None


def collect_on_ray(
    request: Request,
    folder: Path,
    goal: Goal,
    *,
    num_workers: int,
    ray_options: Mapping[str, Any],
    progress: bool,
) -> ConcatReplayBuffer:
    """Collect into the shards of a folder, with actors of Ray.

    Raises:
        ConfigMismatchError: the folder was collected with other arguments, or without Ray.
        BufferLockedError: somebody else is collecting into the folder.
        MissingExtraError: Ray is not installed.
        KeyboardInterrupt: Ctrl-C was pressed; all that has ended is committed.
    """
    check_count("num_workers", num_workers)
    try:
        import ray
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise MissingExtraError("engine='ray' needs Ray: pip install 'gym-replay[ray]'") from error
    if has_buffer(folder):
        raise ConfigMismatchError(f"{folder} was not collected with engine='ray'; choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    lock = WriterLock(folder)
    try:
        journal = _journal_of(folder, request)
        kept, returns = _read_shards(folder)
        plan = Plan(goal, kept, journal.discarded, may_discard=request.may_discard)
        journal.ask(goal)
        journal.write(lock.put_file)
        if not plan.is_complete:
            bar = Progress(goal, folder, kept.values(), returns, is_shown=progress)
            shards = [folder / SHARDS / f"worker-{number:05}" for number in range(num_workers)]
            with _running(ray):
                crew = _Crew(ray, request, plan, bar, shards, ray_options)
                try:
                    _drive(crew, plan, bar, lambda: journal.note_now_and_then(plan.discarded, lock.put_file))
                finally:
                    crew.stop()
                    bar.show(crew.steps, is_last=True)
                    journal.note(plan.discarded, lock.put_file)
        _tidy(folder, goal, journal, plan)
    finally:
        lock.release()
    return _union(folder)


def _drive(crew: _Crew, plan: Plan, bar: Progress, note: Callable[[], None]) -> None:
    with OnInterrupt(lambda: None) as interrupt:
        crew.start()
        while not plan.is_complete and not interrupt.came:
            crew.look(_LOOK)
            bar.show(crew.steps)
            note()
    if interrupt.came:
        raise KeyboardInterrupt


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


def _journal_of(folder: Path, request: Request) -> Journal:
    identity = request.identity()
    journal = read_journal(folder)
    if journal is None:
        if shards_of(folder):
            raise ConfigMismatchError(
                f"{folder} holds shards, and nothing says how collect() made them; choose another folder"
            )
        return Journal(identity)
    journal.check(identity, folder)
    return journal


def _read_shards(folder: Path) -> tuple[dict[int, int], list[float]]:
    """The lengths of all episodes by number, and their returns.

    Raises:
        CorruptBufferError: a number is there twice.
    """
    lengths: dict[int, int] = {}
    returns: list[float] = []
    for shard in shards_of(folder):
        with ReplayBuffer.from_folder(shard, read_only=True) as buffer:
            returns += returns_in(buffer)
            lengths |= episodes_in(buffer, beside=lengths)
    return lengths, returns


def _tidy(folder: Path, goal: Goal, journal: Journal, plan: Plan) -> None:
    """Delete what does not belong to the collection, and give all shards the same fields.

    An entry of the infos that came up in one shard only is a field of the others too, with nothing in it, and one whose
    numbers needed a wider dtype in one shard has it in all.
    """
    kept, _ = _read_shards(folder)
    unneeded = set(Plan(goal, kept, plan.discarded).unneeded(journal.goals))
    fields: dict[str, Field] = {}
    for shard in shards_of(folder):
        with ReplayBuffer.from_folder(shard) as buffer:
            for name, info in buffer.metadata.fields.items():
                dtype = np.promote_types(info.dtype, fields.get(name, info).dtype)
                fields[name] = replace(info, dtype=dtype)
            if unneeded & episodes_in(buffer).keys():
                delete_numbers(buffer, unneeded)
    for shard in shards_of(folder):
        with ReplayBuffer.from_folder(shard) as buffer:
            known = buffer.metadata.fields
            buffer.widen_schema({name: info for name, info in fields.items() if known.get(name) != info})


def _union(folder: Path) -> ConcatReplayBuffer:
    shards = shards_of(folder)
    if not shards:
        raise EmptyBufferError(f"{folder}: there are no shards")
    return ConcatReplayBuffer(shards)
