"""The episodes of a buffer as a table: columns, conditions, order, pages, and how values are distributed.

It knows nothing of how it is shown. Whatever is asked of a column is computed of the whole column at once, and cells
are made of the rows that are looked at, so that a table of a million episodes opens at once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gym_replay.buffer.concat import ConcatReplayBuffer
from gym_replay.buffer.door import LABEL, Snapshot, read_labels, set_labels
from gym_replay.buffer.episode import Episode
from gym_replay.buffer.loading.selection import EpisodeValues, selected
from gym_replay.buffer.replay_buffer import ReplayBuffer
from gym_replay.errors import CorruptBufferError, EpisodeEvictedError, FieldError
from gym_replay.viewing.text import number, short

Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

_OWN = ("episode_options", "episode_rng", "episode_complete", "episode_return", "episode_seed", "episode_run")
"""Meta fields that the recorder keeps for itself or that have a column of their own."""

FLAGS = ("terminated", "truncated")
NO_LAST = "no o_T"
"""What is said of an episode whose last observation was not stored."""

_DEFAULT_RATE = 30.0


@dataclass(frozen=True)
class Column:
    """One column of the table.

    Attributes:
        name: what it is called in conditions.
        title: what it is called above the column.
        is_number: whether the values are numbers, which are aligned at the right.
    """

    name: str
    title: str
    is_number: bool = True


@dataclass(frozen=True)
class Choice:
    """Which episodes are shown, and in which order.

    Attributes:
        where: a condition, as ``select`` and the loaders take it; empty for none.
        ranges: for names of values the least one, and the one below which they are (the last bar includes it).
        sort: the name of a column; empty for the buffer's own order.
        descending: whether the order is turned round.
    """

    where: str = ""
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    sort: str = ""
    descending: bool = False


@dataclass(frozen=True)
class Distribution:
    """How values are distributed over all episodes, and over the chosen ones.

    Attributes:
        name: of the values.
        edges: of the bins, ``(bins + 1,)``, ascending; a value belongs to a bin where it is not below its first edge,
            and below its second. The last edge is above the largest value.
        counts: finite values in each bin.
        chosen: of these, the values of chosen episodes.
    """

    name: str
    edges: npt.NDArray[np.float64]
    counts: Ints
    chosen: Ints


class EpisodeTable:
    """The episodes of a buffer, as they are at one moment; :meth:`refresh` goes on to the next.

    Args:
        buffer: one buffer, or several as one.

    Attributes:
        values: of all episodes by name, as conditions see them.
        columns: what is shown of an episode.
        moment: grows whenever there is something else to show.

    Example:
        >>> table = EpisodeTable(buffer)  # doctest: +SKIP
        >>> chosen = table.choose(Choice("length > 100", sort="episode_return"))  # doctest: +SKIP
        >>> table.rows(chosen[:20])  # doctest: +SKIP
    """

    def __init__(self, buffer: ReplayBuffer | ConcatReplayBuffer) -> None:
        self.buffer = buffer
        self._parts: list[Snapshot] = []
        self.moment = 0
        self._look()

    def _look(self) -> bool:
        parts = self.buffer.snapshots()
        changed = [id(part) for part in parts] != [id(part) for part in self._parts]
        if changed:
            self._parts = parts
            self.moment += 1
            self.values = EpisodeValues(parts)
            self._offsets = np.cumsum([0, *map(len, parts)])
            self.columns = self._columns()
            self._labels = [_labels_in(part) for part in parts]
        return changed

    def refresh(self) -> bool:
        """See what was committed, evicted or deleted since; whether anything was.

        Raises:
            GymReplayError: the buffer is gone, or another one is in its place.
        """
        self.buffer.refresh()
        return self._look()

    def __len__(self) -> int:
        return self.values.count

    @property
    def num_steps(self) -> int:
        """Transitions of all episodes."""
        return sum(part.num_steps for part in self._parts)

    def _columns(self) -> list[Column]:
        found = [Column("id", "id")]
        if len(self._parts) > 1:
            found.append(Column("buffer", "buffer", is_number=False))
        if "episode_return" in self.values and self._is_single("episode_return"):
            found.append(Column("episode_return", "return"))
        found.append(Column("length", "length"))
        if "episode_seed" in self.values and self._is_single("episode_seed"):
            found.append(Column("episode_seed", "seed"))
        found += [Column("ended", "ended", is_number=False), Column(LABEL, "label", is_number=False)]
        recorder_meta = {*_OWN, *self._parts[0].metadata.recorder_meta}
        for name, info in self.values.meta_fields.items():
            if name not in recorder_meta and name != LABEL and info.shape == ():
                found.append(Column(name, name, is_number=not info.is_text))
        return found

    def _is_single(self, name: str) -> bool:
        info = self.values.meta_fields.get(name)
        return info is None or (info.shape == () and not info.is_text)

    # --- which, and in which order ---

    def choose(self, choice: Choice) -> Ints:
        """The indices of the chosen episodes, in their order.

        Raises:
            FieldError: the condition is wrong; the message shows where.
        """
        mask = selected(self.values, choice.where or None)
        for name, (low, high) in choice.ranges.items():
            numbers = self.numbers(name)
            mask = mask & (numbers >= low) & (numbers < high)
        indices = np.flatnonzero(mask)
        if choice.sort:
            order = np.argsort(self._sortable(choice.sort)[indices], kind="stable")
            indices = indices[order[::-1] if choice.descending else order]
        elif choice.descending:
            indices = indices[::-1]
        return indices

    def numbers(self, name: str) -> npt.NDArray[np.float64]:
        """Values of one number for each episode, float64 ``(episodes,)``."""
        return np.asarray(self.values[name], np.float64)

    def _sortable(self, name: str) -> npt.NDArray[Any]:
        if name == "buffer":
            return np.repeat(np.arange(len(self._parts)), [len(part) for part in self._parts])
        if name == "ended":
            return self._ends()
        if name not in {column.name for column in self.columns}:
            raise FieldError(f"there is no column {name!r}; there are {[column.name for column in self.columns]}")
        return self.values[name]

    def distribution(self, name: str, chosen: Ints) -> Distribution:
        """How the values of a column of numbers are distributed."""
        numbers = self.numbers(name)
        finite = numbers[np.isfinite(numbers)]
        edges = bin_edges(finite)
        mine = numbers[chosen]
        counts = [np.histogram(each, edges)[0] for each in (finite, mine[np.isfinite(mine)])]
        return Distribution(name, edges, *counts)

    @property
    def distributed(self) -> list[Column]:
        """The columns of which distributions tell most."""
        return [column for column in self.columns if column.name in ("episode_return", "length")]

    # --- cells ---

    def place(self, index: int) -> tuple[Snapshot, int]:
        """The part that an episode is in, and its index there."""
        at = self._part_at(index)
        return self._parts[at], index - int(self._offsets[at])

    def _part_at(self, index: int) -> int:
        return int(np.searchsorted(self._offsets, index, side="right")) - 1

    def episode(self, index: int) -> Episode:
        """An episode of the moment that the table shows.

        Raises:
            IndexError: there is no such episode.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"episode {index}: there are {len(self)} episodes")
        return Episode(*self.place(index))

    def index_of(self, episode: Episode) -> int | None:
        """Where an episode of an earlier moment is now; None where it has gone."""
        for at, part in enumerate(self._parts):
            if part.metadata.uuid == episode.snapshot.metadata.uuid:
                found = int(np.searchsorted(part.ids, episode.id))
                if found < len(part) and part.ids[found] == episode.id:
                    return int(self._offsets[at]) + found
        return None

    def name_of(self, episode: Episode) -> str:
        """What an episode is called: by its id, and where there are several buffers by that of its own."""
        folder = short(episode.snapshot.reader.folder.name, 40)
        return f"Episode {episode.id}" + (f" of {folder}" if len(self._parts) > 1 else "")

    def part_of(self, episode: Episode) -> int:
        """Which of the buffers an episode is of.

        Raises:
            LookupError: none of them.
        """
        uuids = [part.metadata.uuid for part in self._parts]
        if episode.snapshot.metadata.uuid not in uuids:
            raise LookupError("the episode is of none of these buffers")
        return uuids.index(episode.snapshot.metadata.uuid)

    def find(self, part: int, uuid: str, episode_id: int) -> Episode:
        """An episode by its buffer, the beginning of that buffer's uuid, and its id.

        Raises:
            LookupError: there is none.
        """
        if not 0 <= part < len(self._parts) or not self._parts[part].metadata.uuid.startswith(uuid):
            raise LookupError("there is no such buffer")
        ids = self._parts[part].ids
        found = int(np.searchsorted(ids, episode_id))
        if found == len(ids) or ids[found] != episode_id:
            raise LookupError(f"there is no episode {episode_id}")
        return Episode(self._parts[part], found)

    def rows(self, indices: Iterable[int], columns: Sequence[Column] | None = None) -> list[list[str]]:
        """The cells of these episodes, a text for each column; None for all columns, others may be of meta fields."""
        return [self._row(int(index), self.columns if columns is None else columns) for index in indices]

    def _row(self, index: int, columns: Sequence[Column]) -> list[str]:
        episode = self.episode(index)
        try:
            meta = episode.meta
        except (EpisodeEvictedError, CorruptBufferError):
            meta = {}
        return [self._cell(column.name, index, episode, meta) for column in columns]

    def _cell(self, name: str, index: int, episode: Episode, meta: Mapping[str, Any]) -> str:
        if name in ("id", "index"):
            return str(episode.id if name == "id" else index)
        if name == "buffer":
            return short(episode.snapshot.reader.folder.name, 40)
        if name == "length":
            return str(len(episode))
        if name == "ended":
            return end_of(episode)
        if name == LABEL:
            return self.label(index)
        if name == "episode_return" and name not in meta:
            return number(np.sum(episode["reward"], dtype=np.float64)) if "reward" in episode else ""
        if name == "episode_seed" and name in meta:
            return "" if meta[name] < 0 else number(meta[name])
        return short(meta[name], 60) if name in meta else ""

    def _ends(self) -> npt.NDArray[Any]:
        """How each episode ended, as numbers that sort like that."""
        order = np.zeros(len(self), np.int64)
        for rank, name in enumerate(("truncated", "terminated"), 1):
            if name in self.values and self.values[name].ndim == 1:
                order[self.values[name].astype(np.bool_)] = rank
        order[~self.values["complete"]] = 3
        return 2 * order + (~self.values["has_final"] & self._parts[0].metadata.has_state)

    # --- labels ---

    def label(self, index: int) -> str:
        """What is said of an episode; empty where nothing is."""
        part, inside = self.place(index)
        given = self._labels[self._part_at(index)].get(int(part.ids[inside]))
        if given is not None:
            return short(given)
        info = part.metadata.meta_fields.get(LABEL)
        return short(part.meta_of(inside)[LABEL]) if info is not None and info.is_text else ""

    def set_label(self, index: int, text: str) -> None:
        """Say something of an episode; at once on the disk. An empty text takes it away.

        Raises:
            FieldError: the text is too long.
            StorageError: the folder cannot be written to.
        """
        self.set_labels([index], text)

    def set_labels(self, indices: Iterable[int], text: str) -> None:
        """Say the same of several episodes, as :meth:`set_label` does of one."""
        labels: dict[int, dict[int, str | None]] = defaultdict(dict)
        for index in indices:
            at = self._part_at(index)
            says_nothing = not text and LABEL not in self._parts[at].metadata.meta_fields
            labels[at][int(self._parts[at].ids[index - self._offsets[at]])] = None if says_nothing else text
        for at, given in labels.items():
            folder, uuid = self._parts[at].reader.folder, self._parts[at].metadata.uuid
            set_labels(folder, uuid, given)
            self._labels[at] = read_labels(folder, uuid)
        self.values.forget(LABEL)
        self.moment += 1

    @property
    def labelled(self) -> dict[Path, int]:
        """The folders of buffers with a ``labels.json`` that says something of them, and of how many episodes."""
        found = zip(self._parts, self._labels, strict=True)
        return {part.reader.folder: len(labels) for part, labels in found if labels}


def _labels_in(part: Snapshot) -> dict[int, str]:
    """What ``labels.json`` says; nothing where it is damaged, which the first label that is set tells."""
    try:
        return read_labels(part.reader.folder, part.metadata.uuid)
    except CorruptBufferError:
        return {}


def end_of(episode: Episode) -> str:
    """How an episode ended, in a few words."""
    words = []
    if not episode.complete:
        words.append("cut")
    else:
        words += [name for name in FLAGS if name in episode and _is_set(episode[name])]
    if episode.snapshot.metadata.has_state and not episode.has_final:
        words.append(NO_LAST)
    return ", ".join(words)


def recorded_rate(episode: Episode) -> float:
    """Steps a second as an episode was recorded; 30 where that was not in real time, below 1 or above 120."""
    duration = episode.meta.get("episode_duration", 0)
    seconds = float(duration) if isinstance(duration, (int, float, np.number)) else 0.0
    found = len(episode) / seconds if seconds > 0 else 0
    return found if 1 <= found <= 120 else _DEFAULT_RATE


def _is_set(flags: Any) -> bool:
    return isinstance(flags, np.ndarray) and flags.ndim == 1 and len(flags) > 0 and bool(flags[-1])


def bin_edges(finite: npt.NDArray[np.float64], most: int = 30) -> npt.NDArray[np.float64]:
    """The edges of so many bins at most, on whole numbers where all values are; the last one is above all values."""
    if len(finite) == 0:
        return np.array([0.0, 1.0])
    low, high = float(finite.min()), float(finite.max())
    if not np.isfinite(high - low):
        return np.array([low, np.finfo(np.float64).max])
    if high - low < 1 << 53 and bool((finite == np.round(finite)).all()):
        step = -(-(int(high - low) + 1) // most)
        return low + step * np.arange(-(-(int(high - low) + 1) // step) + 1, dtype=np.float64)
    edges = np.linspace(low, high, most + 1)
    edges[-1] = np.nextafter(high, np.inf)
    return np.unique(edges)
