"""The episodes that a vector recorder has under way, apart from the environment: they can end after it is gone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from itertools import repeat
from typing import Any

import numpy as np
import numpy.typing as npt

from gym_replay.buffer.open_episode import HeldEpisodes, encode_texts
from gym_replay.buffer.replay_buffer import ReplayBuffer
from gym_replay.buffer.storage.episodes import COMPLETE, HAS_FINAL
from gym_replay.buffer.storage.fields import Field, fit, to_array
from gym_replay.buffer.storage.layout import Metadata
from gym_replay.buffer.storage.ragged import Ragged
from gym_replay.buffer.storage.records import MetaColumn
from gym_replay.buffer.storage.writer import FolderWriter
from gym_replay.errors import FieldError, StorageError
from gym_replay.wrappers.generator_state import NUMBERS
from gym_replay.wrappers.recording import FinishedEpisode, OnEpisode
from gym_replay.wrappers.vector.autoreset import Mask, Turn
from gym_replay.wrappers.vector.batches import Column
from gym_replay.wrappers.vector.bounds import BlockBounds
from gym_replay.wrappers.vector.staging import Numbers, Staging

BLOCK_BYTES = 1 << 26
"""Bytes of rows that are taken out of the staging at once, unless a single episode has more."""


class Block:
    """Episodes that have ended and are committed together.

    Args:
        fields: the buffer's fields.
        numbers: the sub-environment of each.
        lengths: T of each.
        flags: of each, as the table has them.
        rows: by field, the rows of all of them, one episode after another; those of ragged fields as a list.
        meta: by meta field, the values of each.
    """

    def __init__(
        self,
        numbers: Numbers,
        lengths: Numbers,
        flags: npt.NDArray[np.uint8],
        rows: dict[str, Column],
        meta: dict[str, MetaColumn],
        edges: Numbers,
    ) -> None:
        self.numbers, self.lengths, self.flags = numbers, lengths, flags
        self.rows, self.meta, self.edges = rows, meta, edges
        self.first_id: int | None = None  # the id under which a commit was begun
        self.verdicts: list[bool] | None = None
        self.error: BaseException | None = None

    def __len__(self) -> int:
        return len(self.numbers)

    def begin(self, first_id: int) -> None:
        self.first_id = first_id

    def is_committed(self, writer: FolderWriter) -> bool:
        """Whether a commit that was begun came through."""
        return self.first_id is not None and self.first_id < writer.counters.next

    def without(self, kept: npt.NDArray[np.bool_]) -> Block:
        """Only the episodes that are kept."""
        rows = np.repeat(kept, np.diff(self.edges))
        of_kept = np.flatnonzero(kept).tolist()
        return Block(
            self.numbers[kept],
            self.lengths[kept],
            self.flags[kept],
            {
                name: column[rows] if isinstance(column, np.ndarray) else _chosen(column, rows)
                for name, column in self.rows.items()
            },
            {name: _of_episodes(value, kept, of_kept) for name, value in self.meta.items()},
            np.concatenate(([0], np.cumsum(np.diff(self.edges)[kept]))),
        )


def _chosen(column: list[npt.NDArray[Any]], rows: npt.NDArray[np.bool_]) -> list[npt.NDArray[Any]]:
    return [value for value, is_kept in zip(column, rows.tolist(), strict=True) if is_kept]


def _of_episodes(value: MetaColumn, kept: npt.NDArray[np.bool_], of_kept: list[int]) -> MetaColumn:
    if isinstance(value, np.ndarray):
        return value[kept]
    return value if isinstance(value, bytes) else [value[at] for at in of_kept]


class FinishedVectorEpisode(FinishedEpisode):
    """One of the episodes of a block.

    Attributes:
        env_index: the sub-environment.
    """

    def __init__(self, block: Block, place: int, fields: Mapping[str, Field], meta: Mapping[str, Any]) -> None:
        self._block, self._place, self._fields = block, place, fields
        self.env_index = int(block.numbers[place])
        self.complete = bool(block.flags[place] & COMPLETE)
        total = block.meta["episode_return"]
        assert isinstance(total, np.ndarray)
        self.episode_return = total[place] if total.ndim > 1 else float(total[place])
        self.meta = dict(meta)

    def __len__(self) -> int:
        return int(self._block.lengths[self._place])

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        field = self._fields.get(name)
        column = self._block.rows.get(name)
        if field is None or field.ragged or not isinstance(column, np.ndarray):
            raise FieldError(f"{name!r}: expected one of {list(self)}, and no ragged one")
        begin = int(self._block.edges[self._place])
        has_final = bool(self._block.flags[self._place] & HAS_FINAL)
        return np.array(column[begin : begin + len(self) + (field.state and has_final)])


class VectorRecording:
    """Stages, cuts and commits the episodes of one vector recorder.

    Args:
        buffer: where they go.
        names: the fields of which each step brings values, besides ``terminated`` and ``truncated``.
        num_envs: how many sub-environments there are.
        run: the meta field ``episode_run``.
        keep: whether episodes that are cut are kept.
        bounds: looks at what was committed.
        on_episode: looks at what is about to be.

    Attributes:
        now: the time, counted in vector steps and resets; its row holds the observations that are next acted on.
        running, waiting: as of :class:`~gym_replay.wrappers.vector.autoreset.Turn`.
        is_recording: whether the next step can be a transition, or open an episode.
        is_broken: a step was begun and never ended, so none may follow.
    """

    def __init__(
        self,
        buffer: ReplayBuffer,
        names: list[str],
        num_envs: int,
        *,
        run: bytes,
        keep: bool,
        bounds: BlockBounds,
        on_episode: OnEpisode | None,
    ) -> None:
        fields = buffer.metadata.fields
        self.buffer, self.bounds = buffer, bounds
        self.staging = Staging({name: fields[name] for name in names}, num_envs, buffer.folder)
        self._num_envs, self._keep, self._on_episode, self._run = num_envs, keep, on_episode, run
        self._held = HeldEpisodes(buffer, self._forget)
        self.now = 0
        self.running: Mask = np.zeros(num_envs, bool)
        self.waiting: Mask = np.zeros(num_envs, bool)
        self.is_broken = self.is_recording = False
        self._start = np.zeros(num_envs, np.int64)
        self._returns = np.zeros((num_envs, *fields["reward"].shape))
        self._seeds = np.full(num_envs, -1, np.int64)
        self._generators = np.zeros((num_envs, NUMBERS), np.uint64)
        self._began = np.zeros(num_envs)
        self._options: list[bytes] = [b""]
        self._option = np.zeros(num_envs, np.int64)  # of each sub-environment the place in these
        self._notes: dict[str, Any] = {}
        self._finished: list[Block] = []
        self._most: tuple[Metadata, int, int] | None = None

    # --- what each step asks ---

    @property
    def is_settled(self) -> bool:
        """Whether nothing is left of the step before."""
        return not self.is_broken and not self._finished

    def _look(self) -> None:
        self.is_recording = bool(self.running.any() or self.waiting.any())

    def settle(self) -> None:
        """Commit what has ended and could not be committed; cut what was running where a step was lost."""
        if self.is_broken:
            self._publish_cut(self.running)
            self.lose(np.ones(self._num_envs, bool))
        self.commit()

    def make_room(self) -> FolderWriter:
        """See to the buffer, its limits, and the staging, before a step.

        Raises:
            EpisodeTooLongError, BufferFullError: the buffer's limits leave no room for what is running.
            BufferLockedError: somebody else writes to the buffer.
            StorageError: the staging needs a file, and the disk refused.
        """
        writer = self._held.writer if self._held.is_open else None
        if writer is None:
            writer = self._held.open()
        metadata = writer.metadata
        if metadata.max_episodes or metadata.max_timesteps or metadata.max_steps:
            lengths = self.now + 1 - self._start[self.running]
            if len(lengths) and metadata.circular:
                writer.require_room(1, int(lengths.max()))
            elif len(lengths):
                writer.require_room(len(lengths), int(lengths.max()), steps=int(lengths.sum()))
        self.staging.make_room(self.now, self._lowest)
        return writer

    def _lowest(self) -> int:
        return int(self._start[self.running].min()) if self.running.any() else self.now

    def add_fields(self, fields: Mapping[str, Field]) -> None:
        """Add fields to the buffer; rows so far hold their defaults."""
        known = self.buffer.metadata.fields
        if other := [name for name, info in fields.items() if known.get(name, info) != info]:
            raise FieldError(f"field {other[0]!r} was added as {known[other[0]]} before; open the buffer anew")
        self.buffer.add_default_fields({name: info for name, info in fields.items() if name not in known})
        self.staging.add_fields(fields, self.now)

    # --- episodes begin and end ---

    def open(
        self, mask: Mask, seeds: Numbers, generators: npt.NDArray[np.uint64], options: bytes, began: float
    ) -> None:
        """Let episodes begin whose first observations are in the row of now: those of an explicit reset."""
        self._note_start(mask, began)
        self._seeds[mask] = seeds[mask]
        self._generators[mask] = generators[mask]
        known = [b"", *{self._options[place] for place in np.unique(self._option[~mask]).tolist()} - {b"", options}]
        known += [options] if options else []
        places = [known.index(text) if text in known else 0 for text in self._options]
        of_all = np.array(places)[self._option]
        of_all[mask] = known.index(options)
        self.__dict__.update(_options=known, _option=of_all)
        start, returns = self._start.copy(), self._returns.copy()
        start[mask], returns[mask] = self.now, 0.0
        self.__dict__.update(_start=start, _returns=returns, running=self.running | mask, waiting=self.waiting & ~mask)
        self._look()

    def _note_start(self, opened: npt.NDArray[Any], began: float) -> None:
        self._began[opened] = began
        for name, values in self._notes.items():
            values[opened] = _default_of(self.buffer.metadata.meta_fields[name])

    def advance(
        self,
        turn: Turn,
        rewards: npt.NDArray[Any],
        terminated: Mask,
        truncated: Mask,
        *,
        finals: Mapping[str, Column] | None,
        has_final: npt.NDArray[np.bool_] | None,
        generators: npt.NDArray[np.uint64] | None,
        began: float,
    ) -> None:
        """A step was staged: its observations and infos in the row after now, all else in that of now.

        Args:
            turn: what it was for each sub-environment.
            rewards, terminated, truncated: what it returned.
            finals: of the episodes that ended the last observations and infos by field, where the row after now has
                those of the next episodes.
            has_final: for which of them there is a last observation.
            generators: the generators' states before the resets that the step did, where they are known.
            began: when the step began.
        """
        now, finished = self.now, self._finished
        returns = self._returns + rewards
        numbers = turn.ended.nonzero()[0]
        if len(numbers):
            ends = terminated[numbers], truncated[numbers]
            finished = [
                *finished,
                *self._take_out(numbers, now + 1, returns, ends, complete=True, finals=finals, has_final=has_final),
            ]
        start, opened = self._start, turn.opened.nonzero()[0]
        if len(opened):
            start = start.copy()
            start[opened], returns[opened] = now + 1, 0.0
        # In one call each: an interrupt before it leaves the step undone, and one after it leaves it done.
        self.__dict__.update(
            now=now + 1,
            running=turn.running & ~turn.opened if len(opened) else turn.running,
            _returns=returns,
            waiting=turn.waiting,
            _finished=finished,
        )
        if len(opened):
            self._note_start(opened, began)
            self._seeds[opened] = -1
            self._generators[opened] = 0 if generators is None else generators[opened]
            self._option[opened] = 0
        self.__dict__.update(running=turn.running, _start=start, is_broken=False)
        if finished:
            self._look()
            self.commit()
            if not self.is_recording:
                self._held.end()

    def lose(self, mask: Mask) -> None:
        """Nothing is known of these sub-environments, none of which is running, until an episode of theirs begins."""
        self.waiting = self.waiting & ~mask
        self._look()

    def cut(self, mask: Mask, *, may_go_on: bool = True) -> None:
        """End what is running, before a reset or a close.

        Raises:
            StorageError: the disk refused. What could not be committed goes on where it was if it may, and else waits
                for the next commit.
        """
        running = self.running
        self._publish_cut(mask)
        try:
            self.commit()
        except StorageError:
            if not may_go_on:
                raise
            lost = [block.numbers for block in self._finished]
            still = running & mask & (self._start == self.now)  # no transition yet
            for numbers in lost:
                still[numbers] = True
            self.__dict__.update(running=self.running | still, _finished=[])
            self._look()
            raise

    def _publish_cut(self, mask: Mask) -> None:
        finished = self._finished
        numbers = np.flatnonzero(self.running & mask & (self._start < self.now))
        if len(numbers) and self._keep:
            ends = np.zeros(len(numbers), bool), np.ones(len(numbers), bool)
            finished = [*finished, *self._take_out(numbers, self.now, self._returns, ends, complete=False)]
        self.__dict__.update(running=self.running & ~mask, _finished=finished, is_broken=False)

    def end(self) -> None:
        """Cut and commit all that is running, and let the buffer go.

        Raises:
            StorageError: the disk refused; it can be called again.
        """
        if self._held.is_open:
            self.settle()
            self.cut(np.ones(self._num_envs, bool))
            self._held.end()
        self._forget()

    def _forget(self) -> None:
        nothing = np.zeros(self._num_envs, bool)
        self.__dict__.update(running=nothing, waiting=nothing, _finished=[], is_broken=False, is_recording=False)
        self.staging.release()

    # --- taking them out of the staging ---

    def _take_out(
        self,
        numbers: Numbers,
        until: int,
        returns: npt.NDArray[Any],
        ends: tuple[Mask, Mask],
        *,
        complete: bool,
        finals: Mapping[str, Column] | None = None,
        has_final: npt.NDArray[np.bool_] | None = None,
    ) -> list[Block]:
        """The episodes of some sub-environments, whose last observations are in the row of ``until``, in blocks."""
        lengths = until - self._start[numbers]
        blocks = []
        for part in self._parts(lengths):
            chosen = None
            if finals is not None:
                chosen = {name: column[part] for name, column in finals.items()}
            blocks.append(
                self._block(
                    numbers[part],
                    lengths[part],
                    returns[numbers[part]],
                    (ends[0][part], ends[1][part]),
                    complete=complete,
                    finals=chosen,
                    has_final=None if has_final is None else has_final[part],
                )
            )
        return blocks

    def _parts(self, lengths: Numbers) -> list[slice]:
        """Which episodes to commit at once: all, unless that is a large part of a ring or of the memory."""
        metadata = self.buffer.metadata
        if self._most is None or self._most[0] is not metadata:
            episodes, steps = self._held.open().largest_block()
            row_nbytes = max(sum(info.nbytes for info in metadata.fields.values()), 1)
            self._most = metadata, episodes, min(steps, BLOCK_BYTES // row_nbytes)
        _, episodes, steps = self._most
        if len(lengths) <= episodes and int(lengths.sum()) <= steps:
            return [slice(None)]
        parts, first, taken = [], 0, 0
        for place, length in enumerate(lengths.tolist()):
            if place > first and (place - first >= episodes or taken + length > steps):
                parts.append(slice(first, place))
                first, taken = place, 0
            taken += length
        return [*parts, slice(first, len(lengths))]

    def _block(
        self,
        numbers: Numbers,
        lengths: Numbers,
        returns: npt.NDArray[Any],
        ends: tuple[Mask, Mask],
        *,
        complete: bool,
        finals: Mapping[str, Column] | None,
        has_final: npt.NDArray[np.bool_] | None,
    ) -> Block:
        metadata = self.buffer.metadata
        has_state = metadata.has_state
        taken = lengths + has_state
        edges = np.zeros(len(numbers) + 1, np.int64)
        taken.cumsum(out=edges[1:])
        last_row = edges[1:] - 1
        last_step = last_row - 1 if has_state else last_row
        rows = self.staging.columns(numbers, self._start[numbers], edges)
        for name, column in rows.items():
            info = metadata.fields[name]
            if info.state and finals is not None and name in finals:
                _put(column, last_row, finals[name])
            elif not info.state and has_state:
                _put(column, last_row, repeat(info.default_value()) if info.ragged else info.default_value())
        for name, values in zip(("terminated", "truncated"), ends, strict=True):
            flags = np.zeros(int(edges[-1]), bool)
            flags[last_step] = values
            rows[name] = flags
        table_flags = np.full(len(numbers), (COMPLETE if complete else 0) | (HAS_FINAL if has_state else 0), np.uint8)
        if has_final is not None and has_state:
            table_flags[~has_final] &= np.uint8(255 - HAS_FINAL)
        meta = self._meta_of(numbers, returns, complete=complete)
        return Block(numbers, lengths, table_flags, rows, meta, edges)

    def _meta_of(self, numbers: Numbers, returns: npt.NDArray[Any], *, complete: bool) -> dict[str, MetaColumn]:
        count, known = len(numbers), self.buffer.metadata.meta_fields
        texts = self._options
        options = texts[0] if len(texts) == 1 else [texts[place] for place in self._option[numbers].tolist()]
        began = self._began[numbers]
        meta: dict[str, MetaColumn] = {
            "episode_seed": self._seeds[numbers],
            "episode_return": returns,
            "episode_complete": np.full(count, complete),
            "episode_options": options,
            "episode_rng": self._generators[numbers],
            "episode_start": began,
            "episode_duration": time.time() - began,
            "episode_run": self._run,
            "env_index": numbers,
        }
        for name, info in known.items():
            if name in self._notes:
                values = self._notes[name][numbers]
                meta[name] = values.tolist() if info.is_text else values
            elif name not in meta:
                meta[name] = b"" if info.is_text else np.array([info.default_value()] * count, info.dtype)
        return {name: meta[name] for name in known}

    # --- the commit ---

    def commit(self) -> None:
        """Commit all that has ended.

        Raises:
            StorageError: the disk refused; what is left is kept, and committed by the next call that finds room.
        """
        while self._finished:
            writer = self._held.open()
            block = self._finished[0]
            if not block.is_committed(writer):
                block = self._judged(block)
                if len(block):
                    self._commit(writer, block)
            self._finished = self._finished[1:]
            if block.first_id is not None:
                self.bounds.add_block(block.first_id, block.rows, block.edges)
            if block.error is not None:
                raise block.error

    def _commit(self, writer: FolderWriter, block: Block) -> None:
        fields = self.buffer.metadata.fields
        rows: dict[str, npt.NDArray[Any] | Ragged] = {}
        for name, info in fields.items():
            column = block.rows.get(name)
            if column is None:  # of fields added since: the default
                column = [info.default_value()] * int(block.edges[-1])
            if info.ragged:
                rows[name] = Ragged.of_rows(list(column), info.dtype, info.shape)
            else:
                rows[name] = column if isinstance(column, np.ndarray) else np.array(column, info.dtype)
        try:
            writer.commit_episodes(rows, block.lengths, block.edges, block.flags, block.meta, block.begin)
        except KeyboardInterrupt:
            writer.check_owner()
            if not block.is_committed(writer):
                writer.commit_episodes(rows, block.lengths, block.edges, block.flags, block.meta, block.begin)
            raise

    def _judged(self, block: Block) -> Block:
        """What ``on_episode`` leaves of a block; each episode is shown once."""
        if self._on_episode is None:
            return block
        if block.verdicts is None:
            block.verdicts = []
        while len(block.verdicts) < len(block):
            place = len(block.verdicts)
            keep = True
            try:
                keep = self._judge(self._on_episode, block, place)
            except Exception as error:  # the episode is not lost to what looks at it
                block.error = block.error or error
            except BaseException:
                block.verdicts.append(True)
                raise
            block.verdicts.append(keep)
        kept = np.array(block.verdicts, bool)
        if kept.all():
            return block
        left = block.without(kept)
        left.verdicts, left.error = [True] * len(left), block.error
        self._finished = [left, *self._finished[1:]]
        return left

    def _judge(self, on_episode: OnEpisode, block: Block, place: int) -> bool:
        metadata = self.buffer.metadata
        own = metadata.recorder_meta
        shown = {
            name: _shown(metadata.meta_fields[name], value, place)
            for name, value in block.meta.items()
            if name not in own and name in self._notes
        }
        said = on_episode(FinishedVectorEpisode(block, place, metadata.fields, shown))
        meta = said if isinstance(said, Mapping) else {}
        if taken := [name for name in meta if name in own]:
            raise FieldError(f"meta field {taken[0]!r} is set by the recorder itself")
        for name, encoded in self.buffer.encoders().meta(meta).items():
            info, values = metadata.meta_fields[name], block.meta[name]
            if isinstance(values, np.ndarray):
                values[place] = np.frombuffer(encoded, info.dtype).reshape(info.shape)
            else:
                texts = [values] * len(block) if isinstance(values, bytes) else list(values)
                texts[place] = encoded
                block.meta[name] = texts
        return not (isinstance(said, (bool, np.bool_)) and not said)

    # --- what the user adds ---

    def annotate(self, name: str, value: Any) -> Callable[[], None]:
        """Check the values of a meta field for all sub-environments; the result sets those of running episodes.

        Raises:
            FieldError: they do not fit.
        """
        info, count = self.buffer.metadata.meta_fields[name], self._num_envs
        if info.is_text:
            values = np.empty(count, object)
            values[:] = encode_texts(name, value, count)
        else:
            array = to_array(value, name)
            if array.shape in (info.shape, ()) and array.shape != (count, *info.shape):
                array = np.broadcast_to(array, (count, *array.shape))
            values = fit(name, array, info, lead=(count,))

        def note() -> None:
            if name not in self._notes:
                notes = np.empty((count, *info.shape), object if info.is_text else info.dtype)
                notes[:] = _default_of(info)
                self._notes[name] = notes
            self._notes[name][self.running] = values[self.running]

        return note


def _default_of(info: Field) -> Any:
    return b"" if info.is_text else info.default_value()


def _shown(info: Field, value: MetaColumn, place: int) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogatepass")
    return value[place].decode("utf-8", "surrogatepass") if info.is_text else value[place]


def _put(column: Column, places: Numbers, values: Any) -> None:
    """Set some rows of a column."""
    if isinstance(column, np.ndarray):
        column[places] = values
    else:
        for place, value in zip(places.tolist(), values, strict=False):
            column[place] = value
