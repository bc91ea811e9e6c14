"""The writer of a folder: who may write, and how its files are opened, changed and closed."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from gym_replay.buffer.storage.block import Block, EarlyRows, Rows
from gym_replay.buffer.storage.checksums import Checksums
from gym_replay.buffer.storage.columns import ColumnWriter
from gym_replay.buffer.storage.counters import COUNTERS, Counters
from gym_replay.buffer.storage.creation import create_files
from gym_replay.buffer.storage.encoded import Encoded
from gym_replay.buffer.storage.layout import (
    METADATA,
    Metadata,
    finish_switch,
    read_metadata,
    remove_leftovers,
    switch_files,
    write_metadata,
)
from gym_replay.buffer.storage.open_files import OpenFiles
from gym_replay.buffer.storage.ragged import Ragged
from gym_replay.buffer.storage.reader import FolderReader
from gym_replay.buffer.storage.records import DELETED
from gym_replay.buffer.storage.room import Room
from gym_replay.buffer.storage.staging import CHUNK_BYTES, RING_CHUNK_BYTES, Packer, RowFormat, Stage
from gym_replay.buffer.storage.turns import Owner, Turns, here
from gym_replay.errors import (
    BufferClosedError,
    BufferLockedError,
    ConfigMismatchError,
    GymReplayError,
    StorageError,
)
from gym_replay.files.directory import refusal, sync_entry
from gym_replay.files.garbage import Descriptor
from gym_replay.files.lock import WriterLock


@contextmanager
def _saying(what: str) -> Iterator[None]:
    """Let an error of the operating system be one of ours, and say what it means."""
    try:
        yield
    except OSError as error:
        if isinstance(error, GymReplayError) and not isinstance(error, StorageError):
            raise
        raise refusal(error, error.filename or "a file of the buffer", what) from error


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
        self._owner, self.turns = Owner(), Turns()
        self._power = durability == "power"
        self._uuid = uuid
        self._lock = lock or WriterLock(folder)
        self.directory = self._lock.directory
        self._is_stale = False  # something was interrupted, and only the files tell what is in them
        self._has_given_up = False
        self._format: tuple[Metadata, Sequence[str] | None, RowFormat] | None = None
        self._early: EarlyRows | None = None
        self._least_rows: dict[str, int] = {}  # by path, how many rows are never cut off
        try:
            with _saying("the folder cannot be written to"):
                self._open_files(None)
                if self._power:  # what lies there already may have been written without syncing
                    self._sync_all()
        except BaseException:
            self._lock.release()
            raise

    @property
    def metadata(self) -> Metadata:
        """What the buffer is."""
        return self._files.metadata

    @property
    def counters(self) -> Counters:
        """What makes episodes visible."""
        return self._files.counters

    @property
    def next_id(self) -> int:
        """The id of the next episode."""
        return self._files.counters.next if self._is_stale else self._files.next_id

    @property
    def room(self) -> Room:
        """What is live, and where the next episodes go."""
        return self._files.room

    @property
    def is_limited(self) -> bool:
        """Whether the buffer can be full, or evict."""
        return self._files.room.is_limited

    # --- the files ---

    def _open_files(self, before: OpenFiles | None) -> None:
        """Finish what an interrupted change of files left, and open them as they are now.

        Args:
            before: those that were open until now.
        """
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
        reader = FolderReader(self.folder, directory=directory)
        reader.refresh()
        if reader.valid_end < counters.next:  # the reader has warned
            metadata = self._give_up_from(reader.valid_end, metadata, counters)
            reader = FolderReader(self.folder, directory=directory)
        files = OpenFiles(directory, metadata, counters, reader, power=self._power)
        reader.close()
        # Readers of a ring, and of records that were given up, may still look at any row that ever was committed.
        least = {}
        if metadata.circular or self._has_given_up:
            least = {path: column.capacity for path, column in files.columns.items()}
            if before is not None and before.base == files.base:  # otherwise it was cleared, and these are other files
                least |= {path: max(rows, self._least_rows.get(path, 0)) for path, rows in before.rows_used().items()}
        self._files, self._checksums, self._least_rows = files, Checksums(files, power=self._power), least
        self._is_stale = False

    def _give_up_from(self, episode_id: int, metadata: Metadata, counters: Counters) -> Metadata:
        """Give up a damaged record and all after it; the metadata as it is then."""
        counters.cut(episode_id)
        self._has_given_up = True
        derived = {name: min(end, episode_id) for name, end in metadata.derived.items()}
        metadata = replace(metadata, revision=metadata.revision + 1, derived=derived)  # readers start anew
        write_metadata(self.directory, metadata)
        counters.put("revision", metadata.revision)
        if self._power:  # before records of the old episodes are overwritten by new ones
            counters.sync()
        return metadata

    def _settle(self) -> None:
        """Open the files anew, as they are now; until that is through, what was open before stays."""
        before = self._files
        self._checksums.join()
        self._open_files(before)
        before.close()

    @property
    def is_settled(self) -> bool:
        """Whether the counts here are those of the files: no change was interrupted, and this is no forked child."""
        return not self._is_stale and self._lock.is_held

    # --- who may write ---

    def check_owner(self) -> None:
        """Raise where it is not for the caller to write; take the files' word after an interrupted change.

        Raises:
            BufferLockedError: this is a forked child, or another thread than the one that writes, or a signal handler
                has interrupted a write.
            BufferClosedError: it was closed: somebody else may be the writer by now.
        """
        if self.turns.lock._is_owned():
            self.turns.refuse_inside(self.folder)
        self._require_owner()
        if self._is_stale:
            with self.turns.one(self.folder):
                self._require_owner()  # a signal handler may have closed it
                self._settle_again()

    def _require_owner(self) -> None:
        """Raise as :meth:`check_owner` does, also in the middle of a write."""
        owner = self._owner
        is_free = owner.thread() is here.thread or self._lock.is_inherited or self.turns.is_guest or owner.claim()
        if not is_free:
            self.check_thread()
        if not self._lock.is_held:
            if not self._lock.is_inherited:
                raise BufferClosedError(f"{self.folder}: the buffer was released; what is written from now on is lost")
            raise BufferLockedError(
                errno.EAGAIN,
                "this buffer was opened for writing before the process forked, and a forked child is no writer; open "
                "the folder with read_only=True, or record to a folder of the child's own",
                str(self.folder),
            )

    def _settle_again(self) -> None:
        with _saying("the files could not be opened again"):
            self._settle()

    def written(self) -> tuple[int, ...]:
        """What changes where episodes are committed, deleted or cleared."""
        counters = self._files.counters
        return counters.first, counters.next, counters.deletions

    def check_thread(self) -> None:
        """Raise where another thread writes.

        Raises:
            BufferLockedError: another thread of this process has written, and is still there.
        """
        if self.is_for_another_thread and not self._lock.is_inherited:
            raise BufferLockedError(
                errno.EAGAIN,
                "another thread of this process is writing to this buffer, and a buffer is written by one thread; "
                "write there, call buffer.release() there before this thread writes, or use a buffer for each thread",
                str(self.folder),
            )

    @property
    def is_closed(self) -> bool:
        """Whether it has released the folder."""
        return not self._lock.is_held

    @property
    def is_inherited(self) -> bool:
        """Whether this is a forked child of the process that writes."""
        return self._lock.is_inherited

    @property
    def is_for_another_thread(self) -> bool:
        """Whether another thread has written, and is still there."""
        return self._owner.is_another

    def begin_change(self) -> None:
        """In a write: be ready to change what is stored, and see that the folder is still there.

        Raises:
            BufferLockedError, BufferClosedError: as :meth:`check_owner` does.
            BufferNotFoundError, ConfigMismatchError, BufferLockedError: as :meth:`WriterLock.check` does.
        """
        self._require_owner()
        if self._is_stale:
            self._settle_again()
        self._lock.check()

    def put_file(self, name: str, content: bytes) -> None:
        """Put a file beside the buffer's into the folder, whole or not at all."""
        with self.turns.one(self.folder):
            self._require_owner()
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
        with _saying("nothing was changed"):  # held open, so that no other file can be taken for it
            metadata = Descriptor(self.directory.open(METADATA, os.O_RDONLY))
        counters = self._files.counters
        before = counters.next, counters.deletions
        self._is_stale = True
        try:
            yield self._files
            self._settle()
        except BaseException:
            with suppress(OSError, GymReplayError):  # the next look or change tries again
                self._settle()
            is_counted = (counters.next, counters.deletions) != before
            was_made = is_counted or not self.directory.has(METADATA, metadata.number)
            with _saying("the change was made all the same" if was_made else "nothing was changed"):
                raise
        finally:
            metadata.close()

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
        metadata, known = self.metadata, self._format
        if known is None or known[0] is not metadata or known[1] != names:
            size = RING_CHUNK_BYTES if metadata.circular else CHUNK_BYTES
            self._format = known = (metadata, names, RowFormat(metadata.fields, names, packers, chunk_bytes=size))
        self._early = None
        stage = Stage(known[2], initial or {}, self._write_early, self._read_early)
        if self.is_limited:
            self.room.require(1, 1)
            stage.longest = self.room.longest()
        return stage

    def require_longer(self, stage: Stage, length: int) -> None:
        """Let the open episode have so many transitions where there is room by now: others may have been deleted.

        Raises:
            EpisodeTooLongError, BufferFullError: which limit there is.
        """
        self.room.require(1, length)
        stage.longest = self.room.longest()

    def _write_early(self, rows: Mapping[str, Rows], length: int, early: EarlyRows | None) -> EarlyRows:
        with self.turns.one(self.folder):
            self.begin_change()
            if early is None:
                early = EarlyRows(*self.room.end)
            self._early = early = self._files.write_early(rows, length, early)
            return early

    def _read_early(self, name: str, early: EarlyRows) -> bytes:
        """The bytes of the rows of a field that is not ragged, decoded where it has a codec."""
        info, files = self.metadata.fields[name], self._files
        if info.codec is None:
            return files.steps[name].read(early.row, early.length)
        base = early.elements.get(name, 0)
        spans = files.steps[name].read_array(early.row, early.length) - np.array([base, 0])
        elements = files.elements[name].read_array(base, early.counts.get(name, 0))
        return Encoded(Ragged.of_spans(spans, elements), info).copy().tobytes()

    # --- the commit ---

    def commit(self, block: Block) -> int:
        """Make the episodes of a block visible.

        Returns:
            The first episode's id; the others follow.

        Raises:
            EpisodeTooLongError, BufferFullError: they do not fit.
            StorageError: the operating system refused; the message says whether they are committed.
        """
        if self.turns.lock._is_owned():
            self.turns.refuse_inside(self.folder)
        return self.turns.take(self._commit, block)

    def _commit(self, block: Block) -> int:
        self.begin_change()
        room, first_id = self._files.room, self._files.next_id
        if room.is_limited:
            room.require(len(block.lengths), max(block.lengths), sum(block.lengths))
        try:
            self._write(block, first_id)
        except Exception:
            was_made = self.counters.next > first_id
            made = "what was to be stored is committed, but may not have reached the disk"
            with _saying(made if was_made else "nothing was committed"):
                raise
        except BaseException:  # an interrupt: the episodes have ended, and are kept
            with suppress(Exception):
                self.begin_change()
                if self.counters.next <= first_id:
                    self._write(block, first_id)
            raise
        return first_id

    def _write(self, block: Block, first_id: int) -> None:
        self._is_stale = True  # until the commit is through: an interrupt anywhere leaves the files to tell
        nbytes = self._files.commit(block)
        self._is_stale = False
        self._checksums.follow(block, first_id, nbytes)

    # --- changes to what is stored; edits.py prepares them ---

    def delete_one(self, slot: int) -> None:
        """Hide the episode whose record is in a slot, with one small write; edits.py hides several at once."""
        with self._changing() as files:
            record, record_format = files.table.read_array(slot, 1), files.metadata.record
            tail = record_format.tail_with(record, int(record["flags"][0]) | DELETED)
            files.table.write_part(slot, record_format.tail_offset, tail)
            files.counters.put("deletions", files.counters.deletions + 1)  # from here on the episode is hidden
            if self._power:
                files.table.sync()

    def clear(self, metadata: Metadata | None = None) -> None:
        """Let all episodes go, and their disk space; the buffer is as ``metadata`` say from then on, where given."""
        with self._changing() as files:
            create_files(self.directory, metadata or files.metadata, first_id=files.counters.next, sync=self._power)

    def switch(self, metadata: Metadata, paths: Sequence[str], obsolete: Sequence[str] = ()) -> None:
        """Let the files written under ``<path>.new`` take their places, together with the metadata; others go."""
        with self._changing():
            switch_files(self.directory, metadata, paths, obsolete=obsolete)

    @property
    def has_idle_strings(self) -> bool:
        """Whether a ring's strings take twice the room that they took when it was last known which ones are live."""
        files = self._files
        strings = files.strings
        return files.capacity is not None and strings is not None and strings.end > files.most_strings

    def put_text(self, content: bytes) -> int:
        """The offset of a meta field's string, written if it is new."""
        with self.turns.one(self.folder), _saying("nothing was changed"):
            self.begin_change()
            strings = self._files.strings
            assert strings is not None
            return int.from_bytes(strings.put(content), "little", signed=True)

    def column(self, path: str) -> ColumnWriter:
        """The open column of a path."""
        return self._files.columns[path]

    @property
    def end_row(self) -> int:
        """One past the highest row that a live episode owns, or that was written of the open one."""
        early = 0 if self._early is None else self._early.end
        return max(self.room.rows.end, early)

    # --- checksums and the end ---

    def fill_checksums(self) -> None:
        """In a write: the checksums of all committed episodes that have none yet."""
        self.begin_change()
        self._checksums.fill()

    def flush(self) -> None:
        """Fill in the checksums, and have everything on the disk before returning."""
        with self.turns.one(self.folder), _saying("what is committed may not have reached the disk"):
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
        if self._lock.is_inherited:
            self._files.close()
        if not self._lock.is_held:
            return
        with self.turns.one(self.folder):
            if self._lock.is_held:  # no signal handler has closed it meanwhile
                self._close()

    def _close(self) -> None:
        try:
            if not self._lock.is_in_folder:
                self._lock.check()
            with _saying("the next writer will do what is left"):
                if self._is_stale:
                    self._settle()
                self._checksums.fill()
                self._trim()
                if self._power:
                    self._sync_all()
        except Exception:
            self._end()
            raise
        self._end()

    def _end(self) -> None:
        self._is_stale = True  # where an interrupt comes in between, and it is closed again
        self._checksums.join()
        self._files.close()
        self._lock.release()

    def _trim(self) -> None:
        """Give back the room past the last row."""
        for path, rows in self._files.rows_used().items():
            self._files.columns[path].trim(max(rows, self._least_rows.get(path, 0)))

    def _sync_all(self) -> None:
        """Have everything on the disk: the bytes of each file, its name, and the names of the folders above it."""
        columns = self._files.columns
        for column in columns.values():
            column.sync()
        self.counters.sync()
        self.directory.sync_files((METADATA,))  # a folder that was copied just now is on no disk yet
        self.directory.sync_parents(columns)
        sync_entry(self.folder)
