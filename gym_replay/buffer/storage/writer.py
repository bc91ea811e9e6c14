"""The writing side of a folder: the lock, the place of each episode, and the commit.

A commit writes the rows, then the record in the episode table, then the counter ``next``. Whoever sees the counter
sees the rest; a process killed before it has changed nothing that anybody looks at.
"""

from __future__ import annotations

import errno
import os
import struct
import sys
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from threading import get_ident
from typing import Any, TypeAlias
from zlib import crc32

import numpy as np
import numpy.typing as npt

from gym_replay.buffer.storage.checksums import SumsJob
from gym_replay.buffer.storage.columns import Buffer, ColumnWriter
from gym_replay.buffer.storage.counters import COUNTERS, Counters
from gym_replay.buffer.storage.creation import clear_files
from gym_replay.buffer.storage.directory import refusal, sync_entry
from gym_replay.buffer.storage.layout import (
    METADATA,
    STEPS,
    Metadata,
    finish_switch,
    read_metadata,
    remove_leftovers,
    switch_files,
    values_path,
    write_metadata,
)
from gym_replay.buffer.storage.lock import WriterLock
from gym_replay.buffer.storage.open_files import LiveEpisodes, OpenFiles
from gym_replay.buffer.storage.ragged import Ragged, spans_of
from gym_replay.buffer.storage.reader import FolderReader
from gym_replay.buffer.storage.records import (
    COMPLETE,
    DELETED,
    EPISODES,
    HAS_FINAL,
    MetaColumn,
    meta_column,
    slots_of,
)
from gym_replay.buffer.storage.ring import RowRing
from gym_replay.buffer.storage.staging import (
    CHUNK_BYTES,
    RING_CHUNK_BYTES,
    UNLIMITED,
    FileSpill,
    Packer,
    Piece,
    Place,
    RowFormat,
    Spill,
    Stage,
    TailSpill,
)
from gym_replay.buffer.storage.strings import STRINGS, StringWriter
from gym_replay.errors import (
    BufferClosedError,
    BufferFullError,
    BufferLockedError,
    ConfigMismatchError,
    EpisodeTooLongError,
    GymReplayError,
    StorageError,
)

CHECKSUM_RUN = 1 << 20
"""Bytes of rows after which missing checksums are filled in."""

LARGE_EPISODE = 1 << 15
"""Bytes of an episode from which on a call for each of its checksums takes less time than the summing itself. Such
checksums are computed at the commit from what is in memory, and otherwise beside the recording."""

STRINGS_RUN = 1 << 20
"""Bytes of strings from which on those of a ring's episodes that have left are removed."""

NewElements: TypeAlias = tuple[str, int, Sequence[int]]
"""What episodes bring to a ragged field: its name, the first element, and how many of them each episode has."""

_SHARE_OF_RING = 8
"""Episodes that are committed at once take no more than this part of a ring, unless a single one does."""

_pack_sum = struct.Struct("<I").pack


@contextmanager
def _saying(what: str) -> Iterator[None]:
    """Let an error of the operating system be one of ours, and say what it means."""
    try:
        yield
    except OSError as error:
        if isinstance(error, GymReplayError) and not isinstance(error, StorageError):
            raise
        raise _said(error, what) from error


def _said(error: OSError, what: str) -> StorageError:
    return refusal(error, error.filename or "a file of the buffer", what)


_WRITERS: weakref.WeakSet[FolderWriter] = weakref.WeakSet()


def _disown_writers() -> None:
    for writer in _WRITERS:
        writer.owner = -1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_disown_writers)


class FolderWriter:
    """The one writer of a folder, from construction to :meth:`close`.

    Args:
        folder: holds a buffer.
        uuid: of the buffer that is expected in the folder.
        durability: ``"process"`` syncs nothing: what is committed survives the death of the process.
            ``"power"`` syncs rows, then the record, then the counter at each commit.
        lock: taken before, where the folder was created just now.

    Raises:
        BufferLockedError: another writer holds the folder.
        ConfigMismatchError: the folder holds another buffer than expected.
    """

    def __init__(
        self, folder: Path, *, durability: str, uuid: str | None = None, lock: WriterLock | None = None
    ) -> None:
        self.folder = folder
        self.owner = os.getpid()
        self.thread = 0
        self.power = durability == "power"
        self._uuid = uuid
        self._lock = lock or WriterLock(folder)
        self.directory = self._lock.directory
        self._stale = False
        self._job: SumsJob | None = None
        self._format: tuple[Metadata, Sequence[str] | None, RowFormat] | None = None
        self._unsummed = 0
        # Readers of a ring may still look at any row that ever was committed, so none of those is ever cut off.
        self._may_cut = True
        self._kept_rows: dict[str, int] = {}
        self._highest_row = self._highest_slot = 0
        self._highest_element: dict[str, int] = {}
        try:
            with _saying("the folder cannot be written to"):
                self._files = self._open_files()
                if self.power:  # what lies there already may have been written without syncing
                    self._sync_all()
        except BaseException:
            self._lock.release()
            raise
        _WRITERS.add(self)

    @property
    def metadata(self) -> Metadata:
        """What the buffer is."""
        return self._files.metadata

    @property
    def counters(self) -> Counters:
        """What makes episodes visible."""
        return self._files.counters

    @property
    def num_episodes(self) -> int:
        """Live episodes."""
        return self._files.live.num_episodes

    @property
    def num_steps(self) -> int:
        """Transitions of all live episodes."""
        return self._files.live.num_steps

    @property
    def is_limited(self) -> bool:
        """Whether the buffer can be full, or evict."""
        return self._files.is_limited

    # --- the files ---

    def _open_files(self) -> OpenFiles:
        """Finish what an interrupted change of files left, and open them as they are now."""
        directory = self.directory
        metadata = read_metadata(directory)
        if self._uuid is not None and metadata.uuid != self._uuid:
            raise ConfigMismatchError(f"{self.folder}: another buffer was created in its place; open it anew")
        self._uuid = metadata.uuid
        metadata = finish_switch(directory, metadata)
        remove_leftovers(directory)
        counters = Counters(directory, COUNTERS, metadata.uuid, writable=True)
        counters.check()
        counters.put("revision", metadata.revision)
        columns = {
            path: ColumnWriter.open(directory, path, dtype, shape)
            for path, (dtype, shape) in metadata.columns().items()
        }
        for column in columns.values():
            column.ordered = self.power
        reader = FolderReader(self.folder, directory=directory)
        reader.snapshot()
        if reader.valid_end < counters.next:  # the reader has warned
            metadata = self._give_up_from(reader.valid_end, metadata, counters)
            reader = FolderReader(self.folder, directory=directory)
        return self._count(metadata, counters, columns, reader)

    def _give_up_from(self, episode_id: int, metadata: Metadata, counters: Counters) -> Metadata:
        """Let go of a damaged record and all after it; the metadata as it is then."""
        counters.cut(episode_id)
        self._may_cut = False
        metadata = replace(metadata, revision=metadata.revision + 1)  # readers start anew
        write_metadata(self.directory, metadata)
        counters.put("revision", metadata.revision)
        if self.power:  # before records of the old episodes are overwritten by new ones
            counters.sync()
        return metadata

    def _count(
        self, metadata: Metadata, counters: Counters, columns: Mapping[str, ColumnWriter], reader: FolderReader
    ) -> OpenFiles:
        """What is live in these files."""
        snapshot = reader.snapshot()
        ids = np.arange(counters.first, counters.next, dtype=np.int64)
        slots = slots_of(ids, counters.base, metadata.table_capacity)
        records = columns[EPISODES].read_scattered(slots)
        starts, lengths, flags = records["start"], records["length"], records["flags"]
        rows = lengths + metadata.has_state
        live = LiveEpisodes(
            RowRing.of_episodes(starts, rows),
            num_episodes=len(snapshot),
            num_steps=snapshot.num_steps,
            table_steps=int(lengths.sum()),
        )
        for name in metadata.ragged_fields:
            begins, counts = reader.elements_of(name, starts, rows, (flags & DELETED) != 0)
            live.element_rings[name] = RowRing.of_episodes(begins[counts > 0], counts[counts > 0])
            if metadata.circular:
                live.element_counts[name] = deque(counts.tolist())
        strings, most_strings = None, 0
        if metadata.text_fields:
            end = reader.end_of_strings(np.concatenate([records[meta_column(name)] for name in metadata.text_fields]))
            strings, most_strings = StringWriter(columns[STRINGS], end), max(2 * end, STRINGS_RUN)
        reader.close()
        self._note_rows(metadata, columns, live)
        return OpenFiles(metadata, counters, columns, strings, live, most_strings)

    def _note_rows(self, metadata: Metadata, columns: Mapping[str, ColumnWriter], live: LiveEpisodes) -> None:
        """Take note of the room that must stay."""
        ends = {name: ring.end for name, ring in live.element_rings.items()}
        if metadata.circular:
            self._may_cut = False
            self._highest_row = max(self._highest_row, live.ring.end)
            self._highest_element = {name: max(end, self._highest_element.get(name, 0)) for name, end in ends.items()}
        else:
            self._highest_row, self._highest_element = live.ring.end, ends
        self._kept_rows = {path: column.capacity for path, column in columns.items()} | self._kept_rows

    def _settle(self) -> None:
        """Open the files anew, as they are now; until that is through, what was open before stays."""
        self._join_job()
        before = self._files
        self._files = self._open_files()
        self._stale = False
        before.close()

    def _join_job(self) -> SumsJob | None:
        """The checksums that were computed meanwhile, once they are through."""
        job = self._job
        if job is not None:
            job.join()
            self._job = None
        return job

    @property
    def is_settled(self) -> bool:
        """Whether the counts here are those of the files: no change was interrupted, and this is no forked child."""
        return not self._stale and self.owner == os.getpid()

    # --- who may write ---

    def check_owner(self) -> None:
        """Raise where it is not for the caller to write; take the files' word after an interrupted change.

        Raises:
            BufferLockedError: this is a forked child, or another thread than the one that writes.
            BufferClosedError: it was closed: somebody else may be the writer by now.
        """
        if self.owner != os.getpid():
            raise BufferLockedError(
                errno.EAGAIN,
                "this buffer was opened for writing before the process forked, and a forked child is no writer; open "
                "the folder with read_only=True, or record to a folder of the child's own",
                str(self.folder),
            )
        if self.thread != get_ident():
            self.check_thread()
            self.thread = get_ident()  # the one that writes from now on
        if not self._lock.is_held:
            raise BufferClosedError(f"{self.folder}: the buffer was released; what is written from now on is lost")
        if self._stale:
            with _saying("the files could not be opened again"):
                self._settle()

    def check_thread(self) -> None:
        """Raise where another thread writes.

        Raises:
            BufferLockedError: another thread of this process has written, and is still there.
        """
        if self.owner == os.getpid() and self.is_for_another_thread:
            raise BufferLockedError(
                errno.EAGAIN,
                "another thread of this process is writing to this buffer, and a buffer is written by one thread; "
                "write there, call buffer.release() there before this thread writes, or use a buffer for each thread",
                str(self.folder),
            )

    @property
    def is_closed(self) -> bool:
        """Whether it has let the folder go."""
        return not self._lock.is_held

    @property
    def is_for_another_thread(self) -> bool:
        """Whether another thread has written, and is still there."""
        return self.thread not in (0, get_ident()) and self.thread in sys._current_frames()

    def begin_change(self) -> None:
        """:meth:`check_owner`, and see that the folder is still there.

        Raises:
            BufferNotFoundError, ConfigMismatchError, BufferLockedError: as :meth:`WriterLock.check` does.
        """
        self.check_owner()
        self._lock.check()

    def put_file(self, name: str, content: bytes) -> None:
        """Put a file beside the buffer's into the folder, whole or not at all."""
        self.check_owner()
        self._lock.put_file(name, content)

    @contextmanager
    def preparing(self) -> Iterator[None]:
        """What comes before a change: its files are written beside those that they replace."""
        with _saying("nothing was changed"):
            self.begin_change()
            yield

    @contextmanager
    def _changing(self) -> Iterator[OpenFiles]:
        """A change of what is stored: afterwards this object shows what the files hold, also where it failed.

        Raises:
            StorageError: the operating system refused; the message says whether the change was made.
        """
        self.begin_change()
        files = self._files
        before = files.live.num_episodes, files.counters.deletions
        with _saying("nothing was changed"):
            held = self.directory.open(METADATA, os.O_RDONLY)  # so that no other file can be taken for it
        self._stale = True
        try:
            yield files
            self._settle()
        except OSError as error:
            with suppress(OSError, GymReplayError):  # the next look or change tries again
                self._settle()
            after = self._files.live.num_episodes, files.counters.deletions
            was_made = after != before or not self.directory.has(METADATA, held)
            raise _said(error, "the change was made all the same" if was_made else "nothing was changed") from error
        except BaseException:
            with suppress(OSError, GymReplayError):  # the exception is the one that came
                self._settle()
            raise
        finally:
            os.close(held)

    # --- the open episode ---

    def stage(
        self,
        initial: Mapping[str, bytes] | None = None,
        names: Sequence[str] | None = None,
        packers: Mapping[str, Packer] | None = None,
    ) -> Stage:
        """An open episode; the arguments are those of :class:`Stage` and of its :class:`RowFormat`.

        Raises:
            BufferFullError: there is no room for one more.
        """
        if self.is_limited:
            self.require_room(1, 1)
        metadata, known = self.metadata, self._format
        if known is None or known[0] is not metadata or known[1] is not names:
            size = RING_CHUNK_BYTES if metadata.circular else CHUNK_BYTES
            self._format = known = (metadata, names, RowFormat(metadata.fields, names, packers, chunk_bytes=size))
        stage = Stage(known[2], self._open_spill, initial=initial)
        if self.is_limited:
            stage.longest = self._longest()
        return stage

    def _open_spill(self) -> Spill:
        self.check_owner()
        metadata = self.metadata
        if metadata.circular:
            return FileSpill(self.directory, metadata.fields, self.begin_change)
        return TailSpill(self._end_place(), self.begin_change)

    def _place(self, start: int, bases: Mapping[str, int]) -> Place:
        return Place(lambda: self._files, start, bases)

    def _end_place(self) -> Place:
        """Behind all that is live."""
        live = self._files.live
        return self._place(live.ring.end, {name: ring.end for name, ring in live.element_rings.items()})

    def _longest(self) -> int:
        """How many transitions the next episode may have."""
        metadata = self.metadata
        limits = [UNLIMITED]
        if metadata.max_timesteps is not None:
            limits.append(metadata.max_timesteps)
        if metadata.max_steps is not None:
            limits.append(metadata.max_steps - (0 if metadata.circular else self.num_steps))
        return min(limits)

    def require_room(self, episodes: int, length: int, steps: int | None = None) -> None:
        """Raise where ``episodes`` episodes of ``length`` transitions, or of up to that and ``steps``, do not fit.

        Raises:
            EpisodeTooLongError: each one is longer than the buffer takes at all.
            BufferFullError: they do not fit beside what is stored.
        """
        if not self.is_limited:
            return
        metadata = self.metadata
        if metadata.max_timesteps is not None and length > metadata.max_timesteps:
            raise EpisodeTooLongError(
                f"an episode of {length} steps exceeds max_timesteps={metadata.max_timesteps}; create the buffer with "
                "a larger max_timesteps (or none)"
            )
        held_episodes, held_steps = (0, 0) if metadata.circular else (self.num_episodes, self.num_steps)
        steps = episodes * length if steps is None else steps
        if metadata.max_episodes is not None and held_episodes + episodes > metadata.max_episodes:
            raise BufferFullError(
                f"{episodes} more episodes do not fit: the buffer holds {self.num_episodes} of "
                f"max_episodes={metadata.max_episodes}; create it with circular=True or a larger max_episodes"
            )
        if metadata.max_steps is not None and held_steps + steps > metadata.max_steps:
            kind = EpisodeTooLongError if metadata.circular else BufferFullError
            raise kind(
                f"{steps} more steps do not fit: the buffer holds {self.num_steps} of "
                f"max_steps={metadata.max_steps}; create it with circular=True or a larger max_steps"
            )

    def commit(
        self, stage: Stage, pieces: Sequence[Piece], length: int, meta: Mapping[str, bytes], *, complete: bool
    ) -> int:
        """Make the staged episode of ``length`` transitions, at least one, visible; ``pieces`` are the stage's.

        Returns:
            The episode's id.
        """
        self.begin_change()
        if self.is_limited:
            self.require_room(1, length)
        flags = (HAS_FINAL if stage.has_final else 0) | (COMPLETE if complete else 0)
        try:
            return self._commit_stage(stage, pieces, length, flags, meta)
        except Exception as error:
            raise self._of_commit(error, stage.commit_id) from error.__cause__
        except BaseException:  # an interrupt: the episode has ended, and is kept
            with suppress(Exception):
                self.begin_change()
                self._commit_stage(stage, pieces, length, flags, meta)
            raise

    def _of_commit(self, error: Exception, episode_id: int | None) -> Exception:
        """The error of a commit; one of the disk says whether it came through."""
        if not isinstance(error, StorageError):
            return error
        if episode_id is None or self.counters.next <= episode_id:
            return _said(error, "nothing was committed")
        return _said(error, "what was to be stored is committed, but may not have reached the disk")

    def _commit_stage(
        self, stage: Stage, pieces: Sequence[Piece], length: int, flags: int, meta: Mapping[str, bytes]
    ) -> int:
        """Commit the staged episode, unless that was done before an interrupt."""
        episode_id = self.counters.next
        if stage.commit_id is not None and stage.commit_id < episode_id:
            return stage.commit_id
        stage.commit_id = episode_id
        self._stale = True  # until the commit is through: an interrupt anywhere leaves the files to tell
        files = self._files
        rows = length + stage.format.has_state
        elements: Sequence[NewElements] = ()
        sums: Sequence[bytes] = ()
        if stage.spill is None and files.is_plain:
            start, data = files.live.ring.end, [piece[3] for piece in pieces]
            files.rows.write(start, start + rows, data)
            if rows * files.row_nbytes >= LARGE_EPISODE and self.counters.summed == episode_id and not self.power:
                sums = [_pack_sum(crc32(content)) for content in data]  # while the processor has the bytes at hand
        else:
            start, elements = self._write_pieces(stage, pieces, length, rows)
        if self.power or files.sizeless:
            self._before_records(start + rows)
        slot = episode_id - files.base if files.capacity is None else files.slot(episode_id)
        self._write_record(slot, episode_id, start, length, flags, meta)
        self._make_visible(episode_id + 1, slot, start, rows, length, 1, elements=elements)
        if sums and self.counters.summed == episode_id:
            with suppress(StorageError):  # the episode is committed; flush and close try again and say so
                files.sums.write(slot, b"".join(sums))
                self.counters.put("summed", episode_id + 1)
                self._unsummed = 0
        if stage.watch is not None:
            stage.watch(pieces, True)
        return episode_id

    def _write_pieces(
        self, stage: Stage, pieces: Sequence[Piece], length: int, rows: int
    ) -> tuple[int, list[NewElements]]:
        """Write what is left of an episode to where it belongs; its first row, and its elements."""
        spill = stage.spill
        elements = stage.num_elements(pieces)
        if self.metadata.circular:
            place = self._find_place(1, length, rows, elements)
        else:
            place = spill.place if isinstance(spill, TailSpill) else self._end_place()
        if isinstance(spill, FileSpill):
            for piece in spill.pieces():
                place.write(piece)
        for piece in pieces:
            place.write(piece)
        return place.start, [(name, place.bases[name], [count]) for name, count in elements.items()]

    def commit_block(
        self,
        rows: Mapping[str, npt.NDArray[Any] | Ragged],
        lengths: Sequence[int],
        metas: Sequence[Mapping[str, bytes]],
        *,
        has_final: bool,
        complete: bool = True,
    ) -> int:
        """Make several whole episodes visible at once.

        Args:
            rows: per field the rows of all episodes, one after another, row T of each included.
            lengths: T of each episode.
            metas: each episode's meta values in bytes.
            has_final: whether row T of each holds the last observation.
            complete: whether none of them was cut.

        Returns:
            The first episode's id; the others follow.
        """
        self.begin_change()
        self.require_room(len(lengths), max(lengths))
        flags = (COMPLETE if complete else 0) | (HAS_FINAL if has_final else 0)
        taken = [length + self.metadata.has_state for length in lengths]
        first_id = self.counters.next
        try:
            first_row, elements = self._write_rows(rows, sum(lengths), taken)
            self._commit_records(first_id, first_row, lengths, flags, metas, elements=elements)
        except Exception as error:
            raise self._of_commit(error, first_id) from error.__cause__
        return first_id

    def _commit_records(
        self,
        first_id: int,
        first_row: int,
        lengths: Sequence[int],
        flags: int,
        metas: Sequence[Mapping[str, bytes]],
        *,
        elements: Sequence[NewElements] = (),
        sums_may_wait: bool = False,
    ) -> None:
        """Write the records of a few episodes whose rows are written, one by one, and make them visible."""
        files = self._files
        has_state, count, steps = files.metadata.has_state, len(lengths), sum(lengths)
        all_rows = steps + count * has_state
        if self.power or files.sizeless:
            self._before_records(first_row + all_rows)
        episode_id, start, slot = first_id, first_row, 0
        for length, meta in zip(lengths, metas, strict=True):
            slot = files.slot(episode_id)
            self._write_record(slot, episode_id, start, length, flags, meta)
            if slot >= self._highest_slot:
                self._highest_slot = slot + 1
            episode_id, start = episode_id + 1, start + length + has_state
        self._make_visible(
            first_id + count, slot, first_row, all_rows, steps, count, elements=elements, sums_may_wait=sums_may_wait
        )

    def commit_few(
        self,
        data: Sequence[Buffer],
        lengths: Sequence[int],
        flags: int,
        metas: Sequence[Mapping[str, bytes]],
        begin: Callable[[int], None],
    ) -> int:
        """As :meth:`commit_episodes` where no field is ragged, from bytes: for a few episodes this is much faster.

        Args:
            data: of each field the rows of all episodes, one after another, row T of each included.
            lengths: T of each episode.
            flags: of all of them.
            metas: each episode's meta values in bytes.
            begin: as of :meth:`commit_episodes`.

        Returns:
            The first episode's id; the others follow.
        """
        self.begin_change()
        files = self._files
        metadata, count, steps = files.metadata, len(lengths), sum(lengths)
        if files.is_limited:
            self.require_room(count, max(lengths), steps=steps)
        first_id = files.counters.next
        begin(first_id)
        self._stale = True
        rows = steps + count * metadata.has_state
        try:
            start = self._find_rows(count, steps, rows) if metadata.circular else files.live.ring.end
            files.rows.write(start, start + rows, data)
            self._commit_records(first_id, start, lengths, flags, metas, sums_may_wait=True)
        except Exception as error:
            raise self._of_commit(error, first_id) from error.__cause__
        return first_id

    def commit_episodes(
        self,
        rows: Mapping[str, npt.NDArray[Any] | Ragged],
        lengths: npt.NDArray[np.int64],
        edges: npt.NDArray[np.int64],
        flags: npt.NDArray[np.uint8] | bytes,
        meta: Mapping[str, MetaColumn],
        begin: Callable[[int], None],
    ) -> int:
        """As :meth:`commit_block`, with flags for each episode, and as few calls for many episodes as for one.

        Args:
            rows: per field the rows of all episodes, one after another, row T of each included, in contiguous arrays.
            lengths: T of each episode.
            edges: the first of each one's rows, and the end.
            flags: of each episode, or the byte of all.
            meta: each meta field's values ``(episodes, *shape)``, contiguous, of string fields one for each
                episode; or the bytes of one value, or string, for all.
            begin: is told the first id before anything is written. The commit is through once the counter ``next`` is
                past it, whatever exception came then.

        Returns:
            The first episode's id; the others follow.
        """
        self.begin_change()
        files = self._files
        count, all_rows = len(lengths), int(edges[-1])
        steps, first_id = all_rows - count * files.metadata.has_state, files.counters.next
        if files.is_limited:
            self.require_room(count, int(lengths.max()), steps=steps)
        begin(first_id)
        try:
            self._commit_arrays(files, first_id, (rows, lengths, edges, flags, meta), steps)
        except Exception as error:
            raise self._of_commit(error, first_id) from error.__cause__
        return first_id

    def _commit_arrays(self, files: OpenFiles, first_id: int, block: tuple[Any, ...], steps: int) -> None:
        """Write whole episodes, given as to :meth:`commit_episodes`, and make them visible."""
        rows, lengths, edges, flags, meta = block
        count, all_rows = len(lengths), int(edges[-1])
        elements: Sequence[NewElements] = ()
        if files.is_plain:
            self._stale = True
            start = files.live.ring.end
            files.rows.write(start, start + all_rows, [rows[name] for name in files.steps])
        else:
            start, elements = self._write_rows(rows, steps, lengths + files.metadata.has_state)
        if self.power or files.sizeless:
            self._before_records(start + all_rows)
        ids = np.arange(first_id, first_id + count)
        starts = edges[:-1] + start
        slot = files.slot(first_id)
        turn = count if files.capacity is None else min(count, files.capacity - slot)
        self._write_records(slot, turn, ids, starts, lengths, flags, meta)
        self._make_visible(
            first_id + count, slot + turn - 1, start, all_rows, steps, count, elements=elements, sums_may_wait=True
        )

    def _write_record(
        self, slot: int, episode_id: int, start: int, length: int, flags: int, meta: Mapping[str, bytes]
    ) -> None:
        """Put the record of an episode into a slot; ``meta`` has every meta field, of string fields the string."""
        files = self._files
        values = [meta[name] for name in files.metadata.meta_fields]
        if files.strings is not None:
            for index in files.text_indices:
                values[index] = files.strings.put(values[index])
        files.table.write(slot, files.metadata.record.encode_one(episode_id, start, length, flags, values))

    def _write_records(
        self,
        slot: int,
        turn: int,
        ids: npt.NDArray[np.int64],
        starts: npt.NDArray[np.int64],
        lengths: npt.NDArray[np.int64],
        flags: npt.NDArray[np.uint8] | bytes,
        meta: Mapping[str, MetaColumn],
    ) -> None:
        """Put the records of several episodes into slots: ``turn`` of them from ``slot`` on, the others from 0 on."""
        files = self._files
        columns: dict[str, Any] = dict(meta)
        if files.strings is not None:
            put = files.strings.put
            for name in files.metadata.text_fields:
                texts = columns[name]
                columns[name] = (
                    put(texts) if isinstance(texts, bytes) else np.frombuffer(b"".join(map(put, texts)), np.int64)
                )
        common = flags[0] if isinstance(flags, bytes) else flags
        records = files.metadata.record.encode(ids, starts, lengths, common, columns)
        files.table.write(slot, records[:turn].tobytes())
        if turn < len(ids):
            files.table.write(0, records[turn:].tobytes())

    def largest_block(self) -> tuple[int, int]:
        """How many episodes, and transitions, to commit at once: in a ring, so few that not many others leave."""
        metadata = self.metadata
        if not metadata.circular:
            return 1 << 62, 1 << 62
        limits = (metadata.max_episodes, metadata.max_steps)
        episodes, steps = (1 << 62 if limit is None else limit // _SHARE_OF_RING for limit in limits)
        return max(episodes, 1), steps

    def _write_rows(
        self, rows: Mapping[str, npt.NDArray[Any] | Ragged], steps: int, taken: Sequence[int] | npt.NDArray[np.int64]
    ) -> tuple[int, list[NewElements]]:
        """Write the rows of whole episodes of ``taken`` rows each; the first of them, and their elements."""
        files = self._files
        edges = np.cumsum([0, *taken]) if files.elements else None
        elements = {
            name: np.diff(np.concatenate(([0], np.cumsum(values.lengths)))[edges]).tolist()
            for name, values in rows.items()
            if isinstance(values, Ragged)
        }
        self._stale = True
        sizes = {name: sum(counts) for name, counts in elements.items()}
        all_rows = steps + len(taken) * self.metadata.has_state
        place = self._find_place(len(taken), steps, all_rows, sizes)
        data = {}
        for name, values in rows.items():
            if isinstance(values, Ragged):
                counts, whole = values.compact()
                place.write((name, True, 0, whole.tobytes()))
                place.write((name, False, 0, spans_of(counts).tobytes()))
            else:
                data[name] = np.ascontiguousarray(values)
        if elements:
            for name, array in data.items():
                files.steps[name].write(place.start, array.reshape(-1).view(np.uint8).data)
        else:
            files.rows.write(place.start, place.start + all_rows, [data[name].data for name in files.steps])
        return place.start, [(name, place.bases[name], counts) for name, counts in elements.items()]

    def _episodes_are_large(self) -> bool:
        """Whether those without checksums are, on average."""
        return self._unsummed >= LARGE_EPISODE * (self.counters.next - self.counters.summed)

    def _before_records(self, end: int) -> None:
        """See that the rows up to ``end`` are there before any record says so."""
        files = self._files
        for column in files.sizeless:
            column.reserve(end)
        if self.power:
            self._sync([*files.steps.values(), *files.elements.values()])

    def _make_visible(
        self,
        next_id: int,
        slot: int,
        start: int,
        rows: int,
        steps: int,
        episodes: int,
        *,
        elements: Sequence[NewElements] = (),
        sums_may_wait: bool = False,
    ) -> None:
        """Store the counter, and count here, episodes whose rows and records (the highest in ``slot``) are written.

        The checksums of many short episodes may wait for flush and close: a call for each of them and each field would
        take longer than to record them.
        """
        files = self._files
        counters, live = files.counters, files.live
        if self.power:
            self._sync([*([files.columns[STRINGS]] if files.strings is not None else []), files.table])
        counters.put_next(next_id)
        if self.power:
            counters.sync()
        if slot >= self._highest_slot:
            self._highest_slot = slot + 1
        live.ring.take(start, rows)
        if live.ring.end > self._highest_row:
            self._highest_row = live.ring.end
        live.num_episodes += episodes
        live.num_steps += steps
        live.table_steps += steps
        self._unsummed += rows * files.row_nbytes
        if elements:
            self._take_elements(elements)
        self._stale = False
        if self._unsummed >= CHECKSUM_RUN and not (sums_may_wait and not self._episodes_are_large()):
            with suppress(StorageError):  # the episode is committed; flush and close try again and say so
                self._sum_a_run()

    def _find_elements(self, name: str, count: int) -> int:
        """Where the elements of the next episodes go."""
        ring = self._files.live.element_rings[name]
        return (ring.place(count) or 0) if self.metadata.circular else ring.end

    def _take_elements(self, elements: Sequence[NewElements]) -> None:
        files = self._files
        live = files.live
        for name, base, counts in elements:
            if self.metadata.circular:
                live.element_counts[name].extend(counts)
            if count := sum(counts):
                live.element_rings[name].take(base, count)
                self._highest_element[name] = max(self._highest_element[name], base + count)
                self._unsummed += count * files.elements[name].row_nbytes

    def _sync_all(self) -> None:
        """Have everything on the disk: the bytes of each file, its name, and the names of the folders above it."""
        self._sync(self._files.columns.values())
        self.counters.sync()
        self.directory.sync_files((METADATA,))  # a folder that was copied just now is on no disk yet
        self.directory.sync_parents(self._files.columns)
        sync_entry(self.folder)

    def _sync(self, columns: Iterable[ColumnWriter]) -> None:
        for column in columns:
            column.sync()

    # --- the ring ---

    def _find_place(self, episodes: int, steps: int, rows: int, elements: Mapping[str, int]) -> Place:
        """Where the next episodes go; in a ring the oldest ones leave for them."""
        start = self._find_rows(episodes, steps, rows) if self.metadata.circular else self._files.live.ring.end
        return self._place(start, {name: self._find_elements(name, count) for name, count in elements.items()})

    def _find_rows(self, episodes: int, steps: int, rows: int) -> int:
        first, live = self.counters.first, self._files.live
        while self._over_limits(episodes, steps):
            self._evict()
        while (start := live.ring.place(rows, end=self._row_limit(episodes, rows))) is None:
            self._evict()
        if self.power and self.counters.first != first:
            self.counters.sync()  # before the rows are overwritten
        return start

    def _over_limits(self, episodes: int, steps: int) -> bool:
        metadata = self.metadata
        held = self.counters.next - self.counters.first
        too_many = metadata.max_episodes is not None and held + episodes > metadata.max_episodes
        return held > 0 and (
            too_many or (metadata.max_steps is not None and self._files.live.table_steps + steps > metadata.max_steps)
        )

    def _row_limit(self, episodes: int, rows: int) -> int | None:
        """Rows that the files may have: what max_steps takes, and one episode's worth where gaps are too short."""
        metadata = self.metadata
        if metadata.max_steps is None:
            return None
        held = self.counters.next - self.counters.first + episodes
        return metadata.max_steps + held * metadata.has_state + rows

    def _evict(self) -> None:
        files = self._files
        live, oldest = files.live, self.counters.first
        slot = files.slot(oldest)
        record = files.table.read_array(slot, 1)[0]
        length, deleted = int(record["length"]), int(record["flags"]) & DELETED
        self.counters.put("first", oldest + 1)
        if self.counters.summed <= oldest:
            self.counters.put("summed", oldest + 1)
        rows = length + self.metadata.has_state
        for name, counts in live.element_counts.items():
            if count := counts.popleft():
                live.element_rings[name].release(count)
        live.ring.release(rows)
        live.table_steps -= length
        if not deleted:
            live.num_episodes -= 1
            live.num_steps -= length

    # --- changes to what is stored; edits.py prepares them ---

    def delete_one(self, slot: int) -> None:
        """Hide the episode whose record is in a slot, with one small write; edits.py hides several at once."""
        with self._changing() as files:
            record, record_format = files.table.read_array(slot, 1), files.metadata.record
            tail = record_format.tail_with(record, int(record["flags"][0]) | DELETED)
            files.table.write_part(slot, record_format.tail_offset, tail)
            if self.power:
                files.table.sync()
            files.counters.put("deletions", files.counters.deletions + 1)

    def clear(self, metadata: Metadata | None = None) -> None:
        """Let all episodes go, and their disk space; the buffer is as ``metadata`` say from then on, where given."""
        with self._changing() as files:
            try:
                clear_files(self.directory, metadata or files.metadata, next_id=files.counters.next, sync=self.power)
            finally:  # where it was not made, they are counted again
                self._highest_row = self._highest_slot = 0
                self._highest_element, self._kept_rows = {}, {}

    def switch(self, metadata: Metadata, paths: Sequence[str]) -> None:
        """Let the files written under ``<path>.new`` take their places, together with the metadata."""
        with self._changing():
            switch_files(self.directory, metadata, paths)

    @property
    def has_idle_strings(self) -> bool:
        """Whether a ring's strings take twice the room that they took when it was last known which ones are live."""
        files = self._files
        strings = files.strings
        return files.capacity is not None and strings is not None and strings.end > files.most_strings

    def put_text(self, content: bytes) -> int:
        """The place of a meta field's string, written if it is new."""
        self.begin_change()
        strings = self._files.strings
        assert strings is not None
        with _saying("nothing was changed"):
            return int.from_bytes(strings.put(content), "little", signed=True)

    def column(self, path: str) -> ColumnWriter:
        """The open column of a path."""
        return self._files.columns[path]

    @property
    def end_row(self) -> int:
        """One past the highest row that a live episode owns."""
        return self._files.live.ring.end

    # --- checksums and the end ---

    def fill_checksums(self) -> None:
        """Write the checksums of all committed episodes that have none yet."""
        self.begin_change()
        self._take_sums()
        job = self._sums_job()
        if job is not None:
            self._store_sums(job, job.compute())
        self._unsummed = 0

    def _sum_a_run(self) -> None:
        """Write the checksums of a run of episodes, or have them computed meanwhile where the episodes are large."""
        if not self._episodes_are_large():
            self.fill_checksums()
        elif self._job is None or not self._job.is_alive():
            self._take_sums()
            self._job = self._sums_job()
            self._unsummed = 0
            if self._job is not None:
                self._job.start()

    def _sums_job(self) -> SumsJob | None:
        """What is to be summed; None where there is nothing."""
        files = self._files
        counters = files.counters
        ids = np.arange(max(counters.summed, counters.first), counters.next, dtype=np.int64)
        if len(ids) == 0:
            return None
        slots = slots_of(ids, files.base, files.capacity)
        records = files.table.read_scattered(slots)
        kept = (records["flags"] & DELETED) == 0  # the rows of others may be what was damaged
        starts, lengths = records["start"][kept], records["length"][kept]
        fields = [(name, column, files.elements.get(name)) for name, column in files.steps.items()]
        return SumsJob(fields, int(ids[-1]) + 1, ids[kept], slots[kept], starts, lengths + files.metadata.has_state)

    def _take_sums(self) -> None:
        """Write what was computed meanwhile."""
        job = self._join_job()
        if job is not None and job.sums is not None:
            self._store_sums(job, job.sums)

    def _store_sums(self, job: SumsJob, found: Mapping[str, npt.NDArray[np.uint32]]) -> None:
        files = self._files
        live = job.ids >= files.counters.first  # the rows and slots of others may have been given to newer ones since
        sums = np.zeros(len(job.slots), files.sums.dtype)
        for name, column in found.items():
            sums[name] = column
        files.sums.write_scattered(job.slots[live], sums[live])
        if self.power:
            files.sums.sync()
        self.counters.put("summed", max(job.end, self.counters.summed))

    def flush(self) -> None:
        """Fill in the checksums, and have everything on the disk before returning."""
        with _saying("what is committed may not have reached the disk"):
            self.fill_checksums()
            self._sync_all()

    def close(self) -> None:
        """Fill in the checksums, give back the room past the last row, and let the next writer in.

        Where an interrupt comes in between, it can be called again, and does the rest. In a folder that was moved all
        of this is done where it is now.

        Raises:
            BufferNotFoundError: the folder was deleted.
            BufferLockedError: another thread writes, or the ``writer.lock`` was deleted, so that nothing was done.
            StorageError: the operating system refused; the next writer will do what is left.
        """
        if self.owner != os.getpid():
            self._files.close()
            self._lock.release()
            return
        if not self._lock.is_held:
            return
        try:
            if not self._lock.is_in_folder:
                self._lock.check()
            with _saying("the next writer will do what is left"):
                self._finish()
        except Exception:
            self._end()
            raise
        self._end()

    def _finish(self) -> None:
        if self._stale:
            self._settle()
        self._take_sums()
        job = self._sums_job()
        if job is not None:
            self._store_sums(job, job.compute())
        self._trim()
        if self.power:
            self._sync_all()

    def _end(self) -> None:
        self._join_job()
        self._files.close()
        _WRITERS.discard(self)
        self._lock.release()

    def _trim(self) -> None:
        files = self._files
        ids = np.arange(files.counters.first, files.counters.next, dtype=np.int64)
        slots = int(slots_of(ids, files.base, files.capacity).max()) + 1 if len(ids) else 0
        elements = {values_path(name): self._highest_element[name] for name in files.elements}
        if files.strings is not None:
            elements[STRINGS] = files.strings.end
        for path, column in files.columns.items():
            rows = self._highest_row if path.startswith(STEPS) else max(slots, self._highest_slot)
            used = elements.get(path, rows)
            column.trim(used if self._may_cut else max(used, self._kept_rows[path]))
