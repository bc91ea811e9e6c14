"""The commit: the rows of whole episodes, then their records, then the counter that makes them visible.

Whoever sees the counter sees the rest. A process that is killed before the counter is stored has changed nothing that
anybody looks at.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any

import numpy as np

from gym_replay.buffer.storage.block import Block
from gym_replay.buffer.storage.checksums import Checksums
from gym_replay.buffer.storage.columns import ColumnWriter
from gym_replay.buffer.storage.open_files import OpenFiles
from gym_replay.buffer.storage.records import MetaColumn
from gym_replay.buffer.storage.room import Room
from gym_replay.buffer.storage.strings import STRINGS

_NO_ELEMENTS: Mapping[str, int] = {}


class Commits:
    """Commits episodes to the files of one revision.

    Args:
        files: the files.
        power: whether rows, then records, then the counter are on the disk before the next of them is written.

    Attributes:
        room: where the next episodes go.
        checksums: follow the commits.
    """

    def __init__(self, files: OpenFiles, *, power: bool) -> None:
        self.files, self._power = files, power
        self.room = Room(files, power=power)
        self.checksums = Checksums(files, power=power)

    def write(self, block: Block, first_id: int) -> None:
        """Make the episodes of a block visible, the first of them with this id.

        Raises:
            StorageError: the operating system refused. Only where it refused to sync the counter is the block visible.
        """
        files = self.files
        counters, live = files.counters, files.live
        lengths = block.lengths if isinstance(block.lengths, list) else block.lengths.tolist()
        count, steps = len(lengths), sum(lengths)
        rows = steps + count * files.metadata.has_state
        if files.is_plain:
            start, bases = live.ring.end, _NO_ELEMENTS
        else:
            start, bases = self.room.find(count, steps, rows, block.elements)
        pieces = block.pieces if block.spill is None else chain(block.spill.pieces(), block.pieces)
        files.write(pieces, start, bases)
        for column in files.sizeless:
            column.reserve(start + rows)
        if self._power:
            _sync([*files.steps.values(), *files.elements.values()])
        self._write_records(block, first_id, start)
        if self._power:
            _sync([*([files.columns[STRINGS]] if files.strings else []), files.table])
        counters.put_next(first_id + count)
        if self._power:
            counters.sync()
        live.take(start, rows, count, steps)
        nbytes = rows * files.row_nbytes
        for name, counts in block.elements.items():
            live.take_elements(name, bases[name], counts, is_ring=files.metadata.circular)
            nbytes += sum(counts) * files.elements[name].row_nbytes
        self.checksums.follow(block, first_id, nbytes)

    def _write_records(self, block: Block, first_id: int, start: int) -> None:
        """Put the records of a block, whose rows begin at ``start``, into their slots."""
        files, lengths = self.files, block.lengths
        metadata, slot, count = files.metadata, files.slot(first_id), len(lengths)
        meta: dict[str, Any] = {**block.meta}
        for name in metadata.text_fields:
            meta[name] = self._places(block.meta[name])
        if count == 1:  # "CartPole-v1" of benchmarks.record pays for it: arrays of one value take 15 us more
            flags = block.flags if isinstance(block.flags, int) else int(block.flags[0])
            values = [meta[name] for name in metadata.meta_fields]
            files.table.write(slot, metadata.record.encode_one(first_id, start, int(lengths[0]), flags, values))
            return
        rows = np.add(lengths, metadata.has_state)
        starts = np.cumsum(rows) + (start - rows)
        ids = np.arange(first_id, first_id + count)
        records = metadata.record.encode(ids, starts, np.asarray(lengths), block.flags, meta)
        turn = count if files.capacity is None else min(count, files.capacity - slot)  # the others begin at slot 0
        files.table.write(slot, records[:turn].tobytes())
        if turn < count:
            files.table.write(0, records[turn:].tobytes())

    def _places(self, texts: MetaColumn) -> Any:
        """Where the strings of a meta field are, each written if it is new."""
        strings = self.files.strings
        assert strings is not None
        if isinstance(texts, bytes):
            return strings.put(texts)
        places = {text: strings.put(text) for text in dict.fromkeys(texts)}
        return np.frombuffer(b"".join([places[text] for text in texts]), np.int64)


def _sync(columns: Iterable[ColumnWriter]) -> None:
    for column in columns:
        column.sync()
