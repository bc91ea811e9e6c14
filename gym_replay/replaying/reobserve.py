"""reobserve: recorded episodes executed again, and recorded with other observations."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np

from gym_replay.buffer.concat import ConcatReplayBuffer, opened
from gym_replay.buffer.door import Snapshot, read_labels, set_labels
from gym_replay.buffer.episode import Episode
from gym_replay.buffer.loading.selection import EpisodeValues, selected
from gym_replay.buffer.reading import Readable
from gym_replay.buffer.replay_buffer import ReplayBuffer
from gym_replay.collecting.environments import EnvLike, describe
from gym_replay.collecting.folder import give_same_fields
from gym_replay.collecting.plan import check_count
from gym_replay.errors import ConfigMismatchError, EmptyBufferError, EpisodeEvictedError, FieldError, GymReplayError
from gym_replay.files.folders import folder_of
from gym_replay.notices import bar, names_nearest_keyword
from gym_replay.replaying.executing import require_recorded
from gym_replay.replaying.observing import Stopped, View, Wrap
from gym_replay.replaying.pieces import (
    Chosen,
    Journal,
    Piece,
    as_json,
    check_one_piece,
    counts_in,
    counts_of,
    digest_of,
    divided,
    done_in,
    folders_of,
    read_journal,
)
from gym_replay.replaying.reobserver import RESTORED, SOURCE_BUFFER, SOURCE_EPISODE, Reobserver
from gym_replay.schema.codec_choice import Codecs, plain_codecs
from gym_replay.wrappers.simulator_state import RestoreState

if TYPE_CHECKING:
    from gym_replay.buffer.loading.selection import Episodes

_SECONDS_BETWEEN_LOOKS = 0.2


@dataclass(frozen=True)
class LeftOut:
    """An episode that did not come out as it was recorded, and is not in the result.

    Attributes:
        index: in the source.
        episode: its id in its buffer.
        reason: what differs, or why it could not be executed.
    """

    index: int
    episode: int
    reason: str

    def __str__(self) -> str:
        return f"index {self.index}, episode {self.episode}: {self.reason}"


@dataclass(frozen=True)
class Reobserved:
    """What came of observing episodes again.

    Attributes:
        buffer: the new buffer, open for reading; with several workers all pieces as one.
        restored: the indices, in the source, of episodes that were not executed, but restored from recorded states of
            the simulator.
        left_out: the episodes that are not in it.
    """

    buffer: ReplayBuffer | ConcatReplayBuffer
    restored: tuple[int, ...]
    left_out: tuple[LeftOut, ...]

    def __str__(self) -> str:
        text = f"{len(self.buffer)} episodes"
        if self.restored:
            text += f", {len(self.restored)} of them restored from states of the simulator"
        if self.left_out:
            text += f"; {len(self.left_out)} left out, the first one: {self.left_out[0]}"
        return text


@names_nearest_keyword
def reobserve(
    source: str | os.PathLike[str] | Readable,
    folder: str | os.PathLike[str],
    *,
    env: EnvLike | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    wrappers: Sequence[Wrap | str] = (),
    frames: str | None = None,
    episodes: Episodes | None = None,
    where: str | None = None,
    restore: RestoreState | None = None,
    codecs: Codecs | None = None,
    dtypes: Mapping[str, Any] | None = None,
    record_info: bool | Sequence[str] | None = None,
    durability: str = "process",
    overwrite: bool = False,
    num_workers: int = 1,
    trust: bool = False,
    progress: bool = True,
) -> Reobserved:
    """Execute recorded episodes again, and record them with other observations: frames, other cameras, other wrappers.

    Each episode is executed from its seed or the state of its generator, as :func:`~gym_replay.replay` does it, inside
    of the wrappers, and recorded by :class:`~gym_replay.RecordToBuffer`. Its rewards, flags and length must come out
    bit for bit as they were recorded, and so must the observations of the environment inside of the wrappers where they
    are of the recorded space. An episode of which this is not true is left out, and the result names it. Where states
    of the simulator were recorded (:class:`~gym_replay.wrappers.SimulatorState`), such an episode is restored from
    them instead: ``docs/reobserving.md`` says what that cannot reproduce.

    Actions, rewards, flags, extra fields of the steps, labels and meta fields come along, and episodes keep the order
    of the source. The recorder's own meta fields are of the new recording, except for seed, options and generator. The
    meta fields ``source_buffer`` (uuid), ``source_episode`` (id) and ``source_restored`` say where each is from.

    A run that was interrupted or killed goes on where it was when it is started again with the same arguments.

    Args:
        source: a folder, a ReplayBuffer or a ConcatReplayBuffer that was made by recording.
        folder: where the episodes go; one that holds a part of the same reobservation is completed.
        env: what is made instead of the recorded environment: an id, an ``EnvSpec``, or a function. It takes the
            recorded actions.
        env_kwargs: arguments of the environment; they replace the recorded ones.
        wrappers: functions that put a wrapper around the environment, the innermost first, such as
            ``gymnasium.wrappers.GrayscaleObservation``; or their names, ``"module:name"``.
        frames: ``"only"`` to observe what the environment renders, ``"beside"`` to observe that too, as
            ``{"state": ..., "pixels": ...}``. The environment is made with ``render_mode="rgb_array"``.
        episodes, where: which episodes, as for :func:`~gym_replay.select`; None for all.
        restore: puts the simulator of an environment into a recorded state, ``restore(env, state)`` with arrays by
            name; None for that of MuJoCo, where the environment is one.
        codecs, dtypes, durability: as for :class:`~gym_replay.RecordToBuffer`, such as ``{"images": "zstd"}``.
        record_info: as there; None records the entries that the source has.
        overwrite: begin anew, and replace the buffer that is in the folder; it goes with one process.
        num_workers: how many processes execute episodes. Each records into a buffer below ``folder/shards``. A script
            calls this below ``if __name__ == "__main__":`` then, since each process imports it.
        trust: whether recorded arguments and reset options are handed on, whatever they are.
        progress: show a bar on stderr.

    Returns:
        A :class:`Reobserved`: the new buffer, and which episodes were restored or left out.

    Raises:
        FieldError: the source was not made by recording, or an argument is wrong.
        EmptyBufferError: no episode is chosen.
        MakeEnvError: the environment cannot be made here; pass ``env``.
        ConfigMismatchError: the environment takes other actions than the recorded ones; or the folder holds something
            else, or was begun with other arguments or episodes, and is not to be replaced.
        BufferLockedError: somebody else is writing to the folder.
        KeyboardInterrupt: Ctrl-C; the episodes that are complete are in the folder.

    Example:
        >>> import tempfile
        >>> from gym_replay import collect
        >>> from gymnasium.wrappers import RescaleObservation
        >>> states = collect("CartPole-v1", tempfile.mkdtemp(), episodes=3, progress=False)
        >>> found = reobserve(states, tempfile.mkdtemp(), wrappers=[lambda env: RescaleObservation(env, 0.0, 1.0)])
        ... # doctest: +SKIP
        >>> print(reobserve("data/cheetah", "data/frames", frames="only", codecs={"images": "zstd"}))  # doctest: +SKIP
        100 episodes
    """
    check_count("num_workers", num_workers)
    view = View(
        env=env,
        env_kwargs=dict(env_kwargs or {}),
        wrappers=tuple(wrappers) if not isinstance(wrappers, str) else wrappers,
        frames=frames,
        restore=restore,
        trust=trust,
    )
    recording = {
        "codecs": plain_codecs(codecs),
        "dtypes": None if dtypes is None else dict(dtypes),
        "record_info": record_info if record_info is None or isinstance(record_info, bool) else list(record_info),
        "durability": durability,
    }
    target = folder_of(folder)
    if overwrite and num_workers > 1:
        raise FieldError("reobserve: overwrite=True replaces one buffer; pass num_workers=1, or choose another folder")
    with opened(source) as buffer:
        snapshots = buffer.snapshots()
        indices = _chosen_indices(snapshots, episodes, where)
        chosen = _chosen(snapshots, indices)
        if target in [each.folder for each in chosen]:
            raise FieldError(f"reobserve: {target} is the source itself; choose another folder")
        identity = as_json({**view.identity(), "recording": describe(recording), "episodes": digest_of(chosen)})
        lengths = np.concatenate([part.lengths for part in snapshots])[indices]
        if overwrite:
            check_one_piece(target)
        begun = None if overwrite else counts_in(target, identity)
        counts = begun or counts_of(lengths, num_workers)
        pieces = divided(chosen, counts)
        tasks = [
            _Task(view, recording, piece, where_to, Journal(identity, counts), overwrite)
            for piece, where_to in zip(pieces, folders_of(target, len(counts)), strict=True)
        ]
        with bar(len(indices), "reobserve", "episode", progress=progress) as shown:
            _run(tasks, _registered(snapshots), num_workers, shown)
        return _result(tasks, snapshots)


def _chosen_indices(snapshots: Sequence[Snapshot], episodes: Any, where: str | None) -> Any:
    values = EpisodeValues(snapshots)
    indices = np.flatnonzero(selected(values, episodes) & selected(values, where))
    if not len(indices):
        raise EmptyBufferError("reobserve: there is no episode to observe")
    return indices


def _chosen(snapshots: Sequence[Snapshot], indices: Any) -> list[Chosen]:
    """The chosen episodes of each source.

    Raises:
        FieldError: a source was not made by recording.
    """
    found, edge, first = [], 0, 0
    for part in snapshots:
        mine = indices[(indices >= edge) & (indices < edge + len(part))] - edge
        edge += len(part)
        if len(mine):
            if part.metadata.environment is None:
                raise FieldError("reobserve: no environment is stored; the buffer was not made by RecordToBuffer")
            require_recorded(part.metadata)
            found.append(Chosen.of(part, mine, first))
            first += len(mine)
    return found


def _registered(snapshots: Sequence[Snapshot]) -> dict[str, Any]:
    """How the recorded environments are registered in this process, by their ids."""
    specs = [(part.metadata.environment or {}).get("env_spec") for part in snapshots]
    names = {spec["id"] for spec in specs if isinstance(spec, dict) and isinstance(spec.get("id"), str)}
    return {name: gym.registry[name] for name in names if name in gym.registry}


# --- the work ---


@dataclass(frozen=True)
class _Task:
    """One piece, in a form that can be sent to another process."""

    view: View
    recording: Mapping[str, Any]
    piece: Piece
    folder: Path
    journal: Journal
    overwrite: bool


def _run(tasks: Sequence[_Task], specs: Mapping[str, Any], num_workers: int, shown: Any) -> None:
    """Do all tasks, in this process or in several others.

    Args:
        tasks: what there is to do.
        specs: how the recorded environments are registered here, by id: other processes may not know them.
        num_workers: how many processes.
        shown: the bar, which is told of each episode.
    """
    if num_workers == 1 or len(tasks) == 1:
        for task in tasks:
            _observe(task, shown.update, lambda: False)
        return
    import cloudpickle  # a requirement of Gymnasium's

    # Not forked: a process that has rendered, or has threads of torch, must not be.
    context = multiprocessing.get_context("spawn")
    stop, done = context.Event(), context.Value("q", 0)
    pool = ProcessPoolExecutor(num_workers, context, _begin_worker, (stop, done))
    futures: set[Future[None]] = {pool.submit(_work, cloudpickle.dumps((task, specs))) for task in tasks}
    try:
        waiting = futures
        while waiting:
            ended, waiting = wait(waiting, _SECONDS_BETWEEN_LOOKS)
            shown.update(done.value - shown.n)
            for future in ended:
                future.result()
    except BrokenProcessPool as error:
        raise GymReplayError(
            "reobserve: a worker process ended before its time. Where memory was short, the same call goes on from "
            "what is in the folder; where this is a script, call it below `if __name__ == '__main__':`, since each "
            "worker imports the script"
        ) from error
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)
        shown.update(done.value - shown.n)


_worker: dict[str, Any] = {}
"""What a worker process was begun with."""


def _begin_worker(stop: Any, done: Any) -> None:
    """In a worker process: Ctrl-C does nothing, since the process that asked for the work decides."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _worker.update(stop=stop, done=done)


def _work(sent: bytes) -> None:
    """In a worker process: observe the episodes of one piece."""
    import cloudpickle

    def count(number: int) -> None:
        with _worker["done"].get_lock():
            _worker["done"].value += number

    task, specs = cloudpickle.loads(sent)
    for name, spec in specs.items():
        gym.registry.setdefault(name, spec)
    try:
        _observe(task, count, _worker["stop"].is_set)
    except Stopped:
        return


def _observe(task: _Task, count: Callable[[int], Any], stops: Callable[[], bool]) -> None:
    """Observe the episodes of a piece, those that were observed before left out.

    Args:
        count: is told of each episode that is done.
        stops: is asked before each step whether to stop.
    """
    with ExitStack() as stack:
        metadata = None
        reobserver: Reobserver | None = None
        done = 0
        for each in task.piece:
            part = stack.enter_context(_opened_part(each))
            if reobserver is None:
                metadata = part.metadata
                made = Reobserver(task.view, task.recording, metadata, task.folder, stops, overwrite=task.overwrite)
                reobserver = stack.enter_context(closing(made))
                noted = read_journal(task.folder)
                task.journal.left_out[:] = noted.left_out if noted is not None else []
                task.journal.write(reobserver.buffer)
                done = done_in(task.piece, reobserver.buffer, task.journal.left_out)
                count(done)
            skipped = min(done, len(each.ids))
            done -= skipped
            for index in _indices_in(part, each, skipped):
                episode = Episode(part, index)
                if reason := reobserver.observe(episode):
                    task.journal.leave_out(each.uuid, episode.id, reason)
                    task.journal.write(reobserver.buffer)
                count(1)
        assert reobserver is not None
        _label(task.piece, reobserver.buffer)


class _opened_part:
    """A source, opened in this process; a context that gives its snapshot."""

    def __init__(self, chosen: Chosen) -> None:
        self._chosen = chosen

    def __enter__(self) -> Snapshot:
        self._buffer = ReplayBuffer.from_folder(self._chosen.folder, read_only=True)
        (part,) = self._buffer.snapshots()
        if part.metadata.uuid != self._chosen.uuid:
            self._buffer.close()
            raise ConfigMismatchError(f"{self._chosen.folder}: another buffer was created in its place; open it anew")
        return part

    def __exit__(self, *details: object) -> None:
        self._buffer.close()


def _indices_in(part: Snapshot, chosen: Chosen, skipped: int) -> Iterator[int]:
    """Where the episodes are in a snapshot.

    Raises:
        EpisodeEvictedError: one of them has left.
    """
    for episode in chosen.ids[skipped:].tolist():
        index = int(np.searchsorted(part.ids, episode))
        if index >= len(part) or part.ids[index] != episode:
            raise EpisodeEvictedError(
                f"{chosen.folder}: episode {episode} was evicted, or deleted, before its turn came"
            )
        yield index


def _label(piece: Piece, buffer: ReplayBuffer) -> None:
    """Give the episodes of a buffer the labels of those that they are from."""
    for each in piece:
        labels = read_labels(each.folder, each.uuid)
        if not labels:
            continue
        (part,) = buffer.snapshots()
        sources = zip(part.ids.tolist(), part.meta(SOURCE_BUFFER), part.meta(SOURCE_EPISODE).tolist(), strict=True)
        found = {made: labels[source] for made, uuid, source in sources if uuid == each.uuid and source in labels}
        if found:
            set_labels(buffer.folder, buffer.metadata.uuid, dict(found))


def _result(tasks: Sequence[_Task], snapshots: Sequence[Snapshot]) -> Reobserved:
    """The new buffer, and what became of each episode."""
    edges = np.cumsum([0, *map(len, snapshots)])
    where = {part.metadata.uuid: (part, int(edge)) for part, edge in zip(snapshots, edges, strict=False)}

    def index_of(uuid: str, episode: int) -> int:
        part, edge = where[uuid]
        return edge + int(np.searchsorted(part.ids, episode))

    left_out = [
        LeftOut(index_of(uuid, episode), episode, reason)
        for task in tasks
        for journal in [read_journal(task.folder)]
        if journal is not None
        for uuid, episode, reason in journal.left_out
    ]
    folders = [task.folder for task in tasks]
    if len(folders) > 1:
        with ExitStack() as stack:
            give_same_fields([stack.enter_context(ReplayBuffer.from_folder(each)) for each in folders])
    buffer = ReplayBuffer.from_folder(folders[0]) if len(folders) == 1 else ConcatReplayBuffer(folders)
    meta = buffer.meta
    sources = zip(meta[RESTORED].tolist(), meta[SOURCE_BUFFER], meta[SOURCE_EPISODE].tolist(), strict=True)
    restored = [index_of(uuid, episode) for is_restored, uuid, episode in sources if is_restored]
    return Reobserved(buffer, tuple(restored), tuple(left_out))
