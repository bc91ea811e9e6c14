"""A replay buffer in memory, as plain as it can be, and what it takes to compare a real one with it.

The model says which episodes are live and what is in them. It knows nothing of rows, files or rings, with one
exception: where ``max_steps`` bounds a ring, the bound on its files may cost more episodes than the limit itself, so
there the model is told how many went (:meth:`ModelBuffer.follow`) and checks that this was allowed.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import numpy.typing as npt
from format_helpers import read_counters, record_crc

from gym_replay import BufferFullError, EpisodeTooLongError, Field

Array = npt.NDArray[Any]

HAS_FINAL, COMPLETE, DELETED = 1, 2, 4


@dataclass
class ModelEpisode:
    """One committed episode: T rows per field, T+1 for a state field where the last observation is known."""

    id: int
    length: int
    columns: dict[str, Array]
    meta: dict[str, Array]
    has_final: bool
    complete: bool = True
    deleted: bool = False

    def rows(self, info: Field) -> int:
        return self.length + (info.state and self.has_final)


@dataclass
class ModelBuffer:
    """The episodes that a buffer with these fields and limits holds."""

    fields: dict[str, Field]
    meta_fields: dict[str, Field] = field(default_factory=dict)
    circular: bool = False
    max_episodes: int | None = None
    max_timesteps: int | None = None
    max_steps: int | None = None
    next_id: int = 0
    held: list[ModelEpisode] = field(default_factory=list)

    @property
    def live(self) -> list[ModelEpisode]:
        return [episode for episode in self.held if not episode.deleted]

    @property
    def num_steps(self) -> int:
        return sum(episode.length for episode in self.live)

    @property
    def has_state(self) -> bool:
        return any(info.state for info in self.fields.values())

    def refusal(self, episodes: int, length: int) -> type[ValueError] | None:
        """The error that committing ``episodes`` episodes of ``length`` transitions at once must raise, if any."""
        if self.max_timesteps is not None and length > self.max_timesteps:
            return EpisodeTooLongError
        held_episodes, held_steps = (0, 0) if self.circular else (len(self.live), self.num_steps)
        if self.max_episodes is not None and held_episodes + episodes > self.max_episodes:
            return BufferFullError
        if self.max_steps is not None and held_steps + episodes * length > self.max_steps:
            return EpisodeTooLongError if self.circular else BufferFullError
        return None

    def commit(
        self,
        length: int,
        blocks: Sequence[Mapping[str, Array]],
        metas: Sequence[Mapping[str, Array]],
        *,
        has_final: bool,
    ) -> None:
        """Add episodes of one length at once; fields and meta fields left out take their defaults."""
        assert length >= 1
        assert self.refusal(len(blocks), length) is None
        if self.circular:
            self._evict_for(len(blocks), len(blocks) * length)
        for columns, meta in zip(blocks, metas, strict=True):
            episode = ModelEpisode(self.next_id, length, {}, {}, has_final and self.has_state)
            for name, info in self.fields.items():
                shape = (episode.rows(info), *info.shape)
                episode.columns[name] = exact(columns.get(name, default_of(info)), info, shape)
            for name, info in self.meta_fields.items():
                episode.meta[name] = exact(meta.get(name, default_of(info)), info, info.shape)
            self.held.append(episode)
            self.next_id += 1

    def _evict_for(self, episodes: int, steps: int) -> None:
        while self.held and self._exceeds(len(self.held) + episodes, steps):
            del self.held[0]

    def _exceeds(self, episodes: int, steps: int) -> bool:
        held_steps = sum(episode.length for episode in self.held)
        return (self.max_episodes is not None and episodes > self.max_episodes) or (
            self.max_steps is not None and held_steps + steps > self.max_steps
        )

    def follow(self, first: int, newest: int) -> None:
        """Take the real buffer's word for the oldest episode that it kept when the last ``newest`` came."""
        if not self.circular or self.max_steps is None:
            return
        allowed = [episode.id for episode in self.held] or [self.next_id]
        assert allowed[0] <= first <= allowed[-1] + 1 - newest, (allowed, first, newest)
        self.held = [episode for episode in self.held if episode.id >= first]

    def delete(self, places: Sequence[int]) -> None:
        for episode in [self.live[place] for place in places]:
            episode.deleted = True

    def update(self, places: Sequence[int], columns: Mapping[str, Sequence[Array]], meta: Mapping[str, Array]) -> None:
        """Replace meta values and the first rows of fields of live episodes; rows not given stay as they are."""
        episodes = [self.live[place] for place in places]
        for name, values in columns.items():
            for episode, value in zip(episodes, values, strict=True):
                episode.columns[name][: len(value)] = value
        for name, value in meta.items():
            for episode, one in zip(episodes, value, strict=True):
                episode.meta[name][...] = one

    def add_field(self, name: str, info: Field, values: Sequence[Array] | None) -> None:
        self.fields = {**self.fields, name: info}
        for place, episode in enumerate(self.live):
            column = exact(default_of(info), info, (episode.rows(info), *info.shape))
            if values is not None:
                column[: len(values[place])] = values[place]
            episode.columns[name] = column

    def clear(self) -> None:
        self.held = []


def default_of(info: Field) -> Array:
    """A field's default, worked out here and not by the package."""
    return np.zeros(info.shape, info.dtype) if info.default is None else np.asarray(info.default)


def exact(value: Array, info: Field, shape: tuple[int, ...]) -> Array:
    """A copy in the field's dtype; a single value stands for all rows."""
    return np.array(np.broadcast_to(value, shape), info.dtype)


def random_values(rng: np.random.Generator, info: Field, lead: tuple[int, ...] = ()) -> Array:
    """Values of every bit pattern that the dtype has: NaNs with payloads and subnormals among them."""
    shape = (*lead, *info.shape)
    count = int(np.prod(shape))
    if info.dtype == np.bool_:
        return rng.integers(0, 2, shape).astype(np.bool_)
    return np.frombuffer(rng.bytes(count * info.dtype.itemsize), info.dtype).reshape(shape).copy()


def assert_same(got: Any, expected: Array, what: str) -> None:
    """Bit for bit, NaN payloads and the sign of zero included."""
    got = np.asarray(got)
    assert got.dtype == expected.dtype, (what, got.dtype, expected.dtype)
    assert got.shape == expected.shape, (what, got.shape, expected.shape)
    assert got.tobytes() == expected.tobytes(), (what, got, expected)


def assert_equal(buffer: Any, model: ModelBuffer) -> None:
    """Everything that a buffer shows of its episodes is what the model holds."""
    live = model.live
    assert buffer.num_episodes == len(buffer) == len(live)
    assert buffer.num_steps == model.num_steps
    assert_same(buffer.episode_lens, np.array([episode.length for episode in live], np.int64), "episode_lens")
    assert buffer.fieldnames == tuple(model.fields)
    assert buffer.meta_fieldnames == tuple(model.meta_fields)
    found = list(buffer)
    assert [episode.id for episode in found] == [episode.id for episode in live]
    for episode, expected in zip(found, live, strict=True):
        assert len(episode) == expected.length
        assert episode.has_final == expected.has_final
        assert episode.complete == expected.complete
        assert list(episode) == list(model.fields)
        for name in model.fields:
            assert_same(episode[name], expected.columns[name], f"{name} of episode {episode.id}")
        meta = episode.meta
        assert list(meta) == list(model.meta_fields)
        for name in model.meta_fields:
            assert_same(meta[name], expected.meta[name], f"meta {name} of episode {episode.id}")


def plain_path(room: str, name: str) -> str:
    return f"{room}/{name.replace('.', '/')}.npy"


def bytes_in_files(arrays: dict[str, Array], name: str, info: Field, start: int, end: int) -> tuple[Array, bytes]:
    """The rows from ``start`` to ``end`` of a field, decoded as its codec's own package does, and what is summed."""
    if info.codec is None:
        rows = arrays[plain_path("steps", name)][start:end]
        return rows, rows.tobytes()
    path = plain_path("steps", name).removesuffix(".npy")
    spans, elements = arrays[f"{path}.spans.npy"][start:end], arrays[f"{path}.values.npy"]
    assert len(spans) == end - start
    codec, decoded = numcodecs.get_codec(info.codec), b""
    for begin, count in spans.tolist():
        row = codec.decode(elements[begin : begin + count].tobytes()) if count else default_of(info).tobytes()
        assert len(row) == info.nbytes
        decoded += row
    relative = spans - np.array([spans[0, 0], 0])
    own = elements[spans[0, 0] : spans[-1].sum()]
    return np.frombuffer(decoded, info.dtype).reshape(-1, *info.shape), relative.tobytes() + own.tobytes()


def assert_folder_holds(folder: Path, model: ModelBuffer) -> None:
    """The folder, read with nothing but json and ``numpy.load``, holds the model's episodes as the format says."""
    metadata = json.loads((folder / "metadata.json").read_text())
    arrays = {
        path.relative_to(folder).as_posix(): np.load(path, mmap_mode="r", allow_pickle=False)
        for path in sorted(folder.rglob("*.npy"))
    }
    named = ["commit.npy", "episodes.npy", "checksums.npy"]
    for name, info in model.fields.items():
        path = plain_path("steps", name)
        kinds = [".npy"] if info.codec is None else [".spans.npy", ".values.npy"]
        named += [path.removesuffix(".npy") + kind for kind in kinds]
    table, sums = arrays["episodes.npy"], arrays["checksums.npy"]
    reserved = ("reserved",) if "reserved" in table.dtype.names else ()
    assert table.dtype.names == ("id", "start", "length", *model.meta_fields, *reserved, "flags", "crc")
    assert (sums.dtype, sums.shape[1:]) == (np.dtype("<u4"), (len(model.fields),))
    assert table.dtype.itemsize % 8 == 0
    assert table.dtype.fields["flags"][1] == table.dtype.itemsize - 5
    assert sorted(arrays) == sorted(named)
    assert not list(folder.rglob("*.new"))
    assert [entry["name"] for entry in metadata["fields"]] == list(model.fields)
    counters = read_counters(folder)
    assert counters["next"] == model.next_id
    held = np.arange(counters["first"], counters["next"])
    capacity = None
    if model.circular:
        capacity = model.max_steps if model.max_episodes is None else model.max_episodes
        assert len(held) <= capacity
    live = {episode.id: episode for episode in model.live}
    owned = []
    for episode_id in held.tolist():
        slot = episode_id - counters["base"]
        slot = slot if capacity is None else slot % capacity
        record = np.asarray(table[slot : slot + 1])
        start, length, flags = (int(record[name][0]) for name in ("start", "length", "flags"))
        assert record["id"][0] == episode_id
        assert record["crc"][0] == record_crc(record, metadata["uuid"])
        owned.append((start, start + length + model.has_state))
        assert bool(flags & DELETED) == (episode_id not in live)
        if flags & DELETED:
            continue
        episode = live.pop(episode_id)
        assert length == episode.length
        assert flags == HAS_FINAL * episode.has_final + COMPLETE * episode.complete
        for name, info in model.fields.items():
            rows, summed = bytes_in_files(arrays, name, info, start, owned[-1][1])
            assert len(rows) == length + model.has_state
            assert_same(rows[: episode.rows(info)], episode.columns[name], name)
            if episode_id < counters["summed"]:
                assert int(sums[slot, list(model.fields).index(name)]) == zlib.crc32(summed), name
        for name in model.meta_fields:
            assert_same(record[name][0], episode.meta[name], name)
    assert not live
    owned.sort()
    assert all(end <= start for (_, end), (start, _) in pairwise(owned))
