"""Reading while another process writes: a ring that is overwritten as fast as it can be, and a buffer that changes.

Every value follows from the episode's id and the step, and in the changing buffer from one version for all episodes.
A torn batch or half a change therefore contradicts itself.
"""

from __future__ import annotations

import json
import mmap
import os
import random
import struct
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gym_replay import EpisodeEvictedError, Field, ReplayBuffer, check_buffer

from . import children
from .scenarios import length_of, same_rows

FIELDS = {
    "observation": Field("int64", (16,), state=True),
    "image": Field("uint8", (24, 24), state=True),
    "action": "int64",
    "reward": "float64",
}
FACTORS = np.arange(1, 17)
STRIDE = 1000  # numbers of an episode's rows begin at its id times this
N = 3
REFRESHES = 1000


def image_of(numbers: np.ndarray) -> np.ndarray:
    return (numbers[..., None, None] + np.arange(24)).astype(np.uint8) + np.zeros((24, 24), np.uint8)


def rows_of(number: int, length: int) -> dict[str, np.ndarray]:
    """Rows number ``STRIDE * number + t``; all fields follow from it."""
    numbers = STRIDE * number + np.arange(length + 1)
    return {
        "observation": numbers[:, None] * FACTORS,
        "image": image_of(numbers),
        "action": numbers[:-1] * 3,
        "reward": numbers[:-1] / 7,
    }


def store(buffer: ReplayBuffer, number: int, **more: Any) -> None:
    length = length_of(number)
    buffer.store_episode(**rows_of(number, length), number=number, **more)


class Flag:
    """One number that forked processes share."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, mmap.PAGESIZE)

    def put(self, value: int) -> None:
        self._memory[:8] = struct.pack("<q", value)

    def get(self) -> int:
        return int(struct.unpack("<q", self._memory[:8])[0])


# --- a ring ---


def verify_batch(batch: dict[str, Any]) -> None:
    """Whether an n-step batch contradicts itself."""
    arrays = {name: tensor.numpy() for name, tensor in batch.items()}
    numbers = arrays["observation"][:, 0]
    steps = numbers % STRIDE
    lengths = np.array([length_of(number) for number in (numbers // STRIDE).tolist()])
    taken = np.minimum(N, lengths - steps)
    assert (arrays["number"] == numbers // STRIDE).all(), "the meta field is another episode's"
    assert (arrays["n_step_lens"] == taken).all(), "the number of steps"
    assert (arrays["observation"] == numbers[:, None] * FACTORS).all(), "a torn observation"
    assert (arrays["image"] == image_of(numbers)).all(), "a torn image, or another row's"
    assert (arrays["action"] == numbers * 3).all(), "another row's action"
    assert (arrays["reward"] == numbers / 7).all(), "another row's reward"
    following = numbers + taken
    assert (arrays["next_observation"] == following[:, None] * FACTORS).all(), "another row's next observation"
    assert (arrays["next_image"] == image_of(following)).all(), "another row's next image"
    inside = np.arange(N) < taken[:, None]
    assert (arrays["seq_action"] == np.where(inside, (numbers[:, None] + np.arange(N)) * 3, 0)).all(), "the sequence"


def verify_copy(episode: Any) -> None:
    assert len(episode) == length_of(episode.id), f"episode {episode.id} has {len(episode)} steps"
    assert episode.meta["number"] == episode.id, f"episode {episode.id} has the meta of {episode.meta['number']}"
    for name, values in rows_of(episode.id, len(episode)).items():
        assert episode[name].tobytes() == values.tobytes(), f"episode {episode.id}, {name}"


@dataclass(frozen=True)
class Content:
    """What a ring holds, how an episode gets there, and what must be true of what is read."""

    fields: dict[str, Any]
    meta_fields: dict[str, Any]
    store: Callable[[ReplayBuffer, int], None]
    verify_batch: Callable[[dict[str, Any]], None]
    verify_copy: Callable[[Any], None]
    options: dict[str, Any]


def _write_ring(folder: Path, stop: Flag, content: Content, options: dict[str, Any]) -> dict[str, int]:
    number = 0
    schema = {"fields": content.fields, "meta_fields": content.meta_fields}
    while not stop.get():
        with ReplayBuffer(folder, **schema, circular=True, **options) as buffer:
            for _ in range(3000):
                content.store(buffer, number)
                number += 1
                if stop.get():
                    break
    return {"episodes": number}


def _read_ring(folder: Path, content: Content, seed: str, batches: int) -> dict[str, int]:
    generator = random.Random(seed)
    counts = {"batches": 0, "copies": 0, "evicted": 0, "most refreshes": 0}
    buffer = ReplayBuffer.from_folder(folder, read_only=True)
    failed = 0  # refreshes since the last success
    while counts["batches"] < batches:
        try:
            buffer.refresh()
            if len(buffer) == 0:
                continue
            dataset = buffer.dataset(n_steps=N, dtype="stored", **content.options)
            for _ in range(generator.randrange(1, 12)):
                samples = np.array([generator.randrange(len(dataset)) for _ in range(generator.choice((1, 8, 48)))])
                batch = dataset[samples]
                content.verify_batch(batch)
                counts["batches"] += 1
                failed = 0
            copy = buffer.episode(generator.randrange(len(buffer))).copy()
            content.verify_copy(copy)
            counts["copies"] += 1
        except EpisodeEvictedError:
            counts["evicted"] += 1
            failed += 1
            counts["most refreshes"] = max(counts["most refreshes"], failed)
            assert failed < REFRESHES, f"evicted {failed} times in a row, each time after a refresh"
    return counts


def _load_ring(folder: Path, content: Content, seed: int, batches: int, refresh: str, workers: int) -> dict[str, int]:
    """The same through a loader that refreshes its snapshot."""
    buffer = ReplayBuffer.from_folder(folder, read_only=True)
    while len(buffer) < 3:
        time.sleep(0.001)
        buffer.refresh()
    more = {"num_workers": workers, "persistent_workers": True, "multiprocessing_context": "fork"} if workers else {}
    options = {"n_steps": N, "dtype": "stored", "shuffle": True, "seed": seed, "refresh": refresh}
    loader = buffer.dataloader(16, **options, **content.options, **more)
    counts = {"batches": 0, "epochs": 0, "ended": 0}
    while counts["batches"] < batches:
        counts["epochs"] += 1
        try:
            for batch in loader:
                content.verify_batch(batch)
                counts["batches"] += 1
        except EpisodeEvictedError:  # faster than a batch could be copied, again and again: said, and not hidden
            counts["ended"] += 1
            assert counts["ended"] < REFRESHES
    return counts


def follow_ring_by_loader(batches: int, seed: int, *, workers: int, refresh: str, **options: Any) -> dict[str, int]:
    """One writer of a ring, and a loader that follows it; returns how much was read.

    Raises:
        ChildError: a batch held what nobody wrote, or anybody died.
    """
    with tempfile.TemporaryDirectory() as parent:
        folder, stop = Path(parent) / "ring", Flag()
        with ReplayBuffer(folder, fields=PLAIN.fields, meta_fields=PLAIN.meta_fields, circular=True, **options):
            pass
        return _follow(
            folder,
            stop,
            lambda: _write_ring(folder, stop, PLAIN, options),
            [_reading(_load_ring, folder, PLAIN, seed, batches, refresh, workers)],
        )


def follow_ring(
    readers: int, batches: int, seed: int, *, content: Content | None = None, **options: Any
) -> dict[str, int]:
    """One writer and several readers of a ring; returns how much was read.

    Raises:
        ChildError: a reader read what nobody wrote, or anybody died.
    """
    with tempfile.TemporaryDirectory() as parent:
        folder, stop, held = Path(parent) / "ring", Flag(), content or PLAIN
        schema = {"fields": held.fields, "meta_fields": held.meta_fields}
        with ReplayBuffer(folder, **schema, circular=True, **options):
            pass
        return _follow(
            folder,
            stop,
            lambda: _write_ring(folder, stop, held, options),
            [_reading(_read_ring, folder, held, f"{seed} {k}", -(-batches // readers)) for k in range(readers)],
        )


def _reading(read: Callable[..., dict[str, int]], *arguments: Any) -> Callable[[], dict[str, int]]:
    def work() -> dict[str, int]:
        import torch

        torch.set_num_threads(1)  # a forked child has none of the threads that torch may have started
        warnings.simplefilter("error")
        return read(*arguments)

    return work


def _follow(
    folder: Path, stop: Flag, write: Callable[[], dict[str, int]], readings: list[Callable[[], dict[str, int]]]
) -> dict[str, int]:
    writer = children.Child(write)
    total: dict[str, int] = {}
    readers = [children.Child(reading) for reading in readings]
    results = [child.outcome() for child in readers]
    stop.put(1)
    written = writer.result()
    for result in results:
        if isinstance(result, children.ChildError):
            raise result
        for name, count in result.items():
            total[name] = max(total.get(name, 0), count) if "most" in name else total.get(name, 0) + count
    total |= written
    report = check_buffer(folder, progress=False)
    assert report.ok, str(report)
    assert not list(folder.rglob("*.new"))
    return total


# --- a ring of ragged fields and strings ---

RAGGED_FIELDS = {
    "counter": Field("int64", state=True),
    "words": Field("int64", state=True, ragged=True),
    "points": Field("float32", (2,), ragged=True),
}
RAGGED_META = {"number": "int", "name": "str"}


def words_in(counter: np.ndarray) -> np.ndarray:
    """How many elements a row of ``words`` has."""
    return counter * 7 % 11 * (counter % 5 != 4)


def points_in(counter: np.ndarray) -> np.ndarray:
    """The same of ``points``."""
    return counter * 3 % 7


def name_of(number: int) -> str:
    """Each for several episodes, so that strings are shared; some are long, some are empty."""
    return f"the name of {number // 3} " * (number // 3 * 5 % 40)


def ragged_rows_of(number: int, length: int) -> dict[str, Any]:
    """Rows of which each element is the row's counter, or follows from it."""
    counters = STRIDE * number + np.arange(length + 1)
    sizes = zip(counters.tolist(), words_in(counters).tolist(), points_in(counters).tolist(), strict=True)
    words, points = zip(*((np.full(w, c), np.full((p, 2), c % 4096, np.float32)) for c, w, p in sizes), strict=True)
    return {"counter": counters, "words": list(words), "points": list(points[:-1])}


def _store_ragged(buffer: ReplayBuffer, number: int) -> None:
    rows = ragged_rows_of(number, length_of(number))
    buffer.store_episode(**rows, number=number, name=name_of(number))


def _verify_padded(batch: dict[str, Any], name: str, counters: np.ndarray) -> None:
    """Whether a ragged field holds the rows of these counters."""
    words, lens = batch[name].numpy(), batch[f"{name}_lens"].numpy()
    sizes = (points_in if "points" in name else words_in)(counters)
    values = counters % 4096 if "points" in name else counters
    assert (lens == sizes).all(), f"{name}: other numbers of elements"
    assert words.shape[1] == sizes.max(), f"{name}: padded to {words.shape[1]}, not {sizes.max()}"
    expected = np.where(np.arange(words.shape[1]) < sizes[:, None], values[:, None], 0)
    expected = expected[..., None] if "points" in name else expected
    assert (words == expected).all(), f"{name}: elements of other rows"


def verify_ragged_batch(batch: dict[str, Any]) -> None:
    """Whether an n-step batch contradicts itself."""
    counters = batch["counter"].numpy()
    numbers = counters // STRIDE
    lengths = np.array([length_of(number) for number in numbers.tolist()])
    assert (batch["number"].numpy() == numbers).all(), "the meta field is another episode's"
    assert batch["name"] == [name_of(number) for number in numbers.tolist()], "the string is another episode's"
    _verify_padded(batch, "words", counters)
    _verify_padded(batch, "points", counters)
    _verify_padded(batch, "next_words", counters + np.minimum(N, lengths - counters % STRIDE))


def verify_ragged_copy(episode: Any) -> None:
    """Whether a copied episode is that of its id."""
    assert (len(episode), episode.meta["number"]) == (length_of(episode.id), episode.id)
    assert episode.meta["name"] == name_of(episode.id), f"episode {episode.id}: {episode.meta['name']!r:.60}"
    expected = ragged_rows_of(episode.id, len(episode))
    assert episode["counter"].tolist() == expected["counter"].tolist()
    for name in ("words", "points"):
        assert same_rows(episode[name], expected[name]), f"episode {episode.id}, {name}"


# --- a buffer that changes ---

META = {"number": "int", "version": "int"}
ADDED = 12


def _write_changes(folder: Path, stop: Flag, seed: str) -> dict[str, int]:
    """Commit, update, add fields, clear, close and reopen, in random order; all episodes are of one version."""
    generator = random.Random(seed)
    counts = dict.fromkeys(("episodes", "updates", "added", "cleared", "reopened"), 0)
    buffer = ReplayBuffer.from_folder(folder)
    number, version = 0, 0
    added: list[str] = []
    while not stop.get():
        act = generator.random()
        if act < 0.86:
            length = length_of(number)
            more = {name: rows_of(number, length)["reward"] * k for k, name in enumerate(added)}
            store(buffer, number, version=version, label=np.full(length, version), **more)
            number += 1
            counts["episodes"] += 1
        elif act < 0.93 and len(buffer):
            version += 1
            labels = [np.full(length, version) for length in buffer.episode_lens]
            numbers = [rows_of(episode.id, len(episode))["action"] + version for episode in buffer]
            buffer.update(label=labels, action=numbers, version=np.full(len(buffer), version))
            buffer.update(action=[rows_of(episode.id, len(episode))["action"] for episode in buffer])
            counts["updates"] += 1
        elif act < 0.94 and len(added) < ADDED:
            name = f"extra.number{len(added)}"
            values = [rows_of(episode.id, len(episode))["reward"] * len(added) for episode in buffer]
            buffer.add_field(name, "float64", values or None, derived=False)
            added.append(name)
            counts["added"] += 1
        elif act < 0.97 or len(buffer) > 60:
            buffer.clear()
            counts["cleared"] += 1
        else:
            buffer.close()
            buffer = ReplayBuffer.from_folder(folder)
            counts["reopened"] += 1
    buffer.close()
    return counts


def verify_state(episodes: list[Any]) -> None:
    """Whether the live episodes of one moment contradict one another."""
    ids = [episode.id for episode in episodes]
    assert ids == list(range(ids[0], ids[0] + len(ids))), f"a gap: {ids}"
    versions = {int(episode.meta["version"]) for episode in episodes}
    assert len(versions) == 1, f"versions {versions} at one moment"
    (version,) = versions
    for episode in episodes:
        assert len(episode) == length_of(episode.id), f"episode {episode.id} has {len(episode)} steps"
        assert episode.meta["number"] == episode.id
        assert set(episode["label"].tolist()) == {version}, f"labels {set(episode['label'])} of version {version}"
        expected = rows_of(episode.id, len(episode))
        offset = int(episode["action"][0] - expected["action"][0])
        assert offset in (0, version), f"actions of version {offset}, meta of version {version}"
        expected["action"] += offset
        expected |= {name: expected["reward"] * k for k, name in enumerate(_added(episode))}
        for name, values in expected.items():
            assert episode[name].tobytes() == values.tobytes(), f"episode {episode.id}, {name}"
    assert len({int(episode["action"][0]) - 3 * STRIDE * episode.id for episode in episodes}) <= 1, "half an update"


def _added(episode: Any) -> list[str]:
    names = [name for name in episode if name.startswith("extra.")]
    assert names == [f"extra.number{k}" for k in range(len(names))], names
    return names


def _read_changes(folder: Path, seed: str, states: int) -> dict[str, int]:
    generator = random.Random(seed)
    counts = {"states": 0, "empty": 0, "different": 0, "held": 0}
    buffer = ReplayBuffer.from_folder(folder, read_only=True)
    last: tuple[int, ...] = ()
    held: list[Any] = []
    while counts["states"] < states:
        if generator.random() < 0.05:
            buffer.close()
            buffer = ReplayBuffer.from_folder(folder, read_only=True)
        buffer.refresh()
        episodes = list(buffer)
        if not episodes:
            counts["empty"] += 1
            time.sleep(0.0005)
            continue
        verify_state(episodes)
        now = (episodes[-1].id, int(episodes[-1].meta["version"]), len(buffer.fieldnames))
        assert now >= last or now[0] < last[0], f"back in time: {last}, then {now}"
        counts["different"] += now != last
        counts["states"] += 1
        last = now
        if held:
            verify_state(held)  # what was looked at before goes on to show its moment
            counts["held"] += 1
        held = episodes if generator.random() < 0.5 else []
    return counts


def memory() -> str | None:
    """A folder in memory, where a change of files takes no time to sync; None where there is none."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def follow_changes(readers: int, states: int, seed: int, *, parent: str | None = None) -> dict[str, int]:
    """One writer that changes all there is, and several readers; returns how much was seen.

    Raises:
        ChildError: a reader saw half of a change, or anybody died.
    """
    with tempfile.TemporaryDirectory(dir=parent) as inside:
        folder, stop = Path(inside) / "buffer", Flag()
        with ReplayBuffer(folder, fields={**FIELDS, "label": "int64"}, meta_fields=META):
            pass
        return _follow(
            folder,
            stop,
            lambda: _write_changes(folder, stop, f"{seed} writer"),
            [_reading(_read_changes, folder, f"{seed} {k}", -(-states // readers)) for k in range(readers)],
        )


PLAIN = Content(FIELDS, {"number": "int"}, store, verify_batch, verify_copy, {"sequence_fields": ("action",)})
RAGGED = Content(RAGGED_FIELDS, RAGGED_META, _store_ragged, verify_ragged_batch, verify_ragged_copy, {})
RINGS: dict[str, dict[str, Any]] = {
    "max_steps=2000": {"max_steps": 2000},
    "max_steps=120": {"max_steps": 120},
    "max_episodes=8": {"max_episodes": 8},
    "both": {"max_episodes": 30, "max_steps": 200},
    "ragged, max_steps=2000": {"max_steps": 2000, "content": RAGGED},
    "ragged, max_steps=120": {"max_steps": 120, "content": RAGGED},
}


def table(rounds: int, seed: int) -> tuple[list[str], list[str]]:
    """The long rounds, as lines of a table, and what went wrong."""
    lines, wrong = [], []
    work: dict[str, Callable[[], dict[str, int]]] = {
        f"ring, {name}": lambda options=options: follow_ring(3, 120 * rounds, seed, **options)  # type: ignore[misc]
        for name, options in RINGS.items()
    }
    for refresh in ("epoch", "batch"):
        work[f"loader, {refresh}"] = lambda refresh=refresh: follow_ring_by_loader(  # type: ignore[misc]
            120 * rounds, seed, workers=2, refresh=refresh, max_steps=2000
        )
    work["changes"] = lambda: follow_changes(3, 30 * rounds, seed)
    work["changes, in memory"] = lambda: follow_changes(3, 30 * rounds, seed, parent=memory())
    for name, follow in work.items():
        begin = time.monotonic()
        try:
            counts = follow()
        except AssertionError as error:
            wrong.append(f"live, {name}: {error}")
            counts = {}
        seconds = time.monotonic() - begin
        text = json.dumps(counts).strip("{}").replace('"', "")
        lines.append(f"read live: {name:<20} {seconds:>6.0f} s  {text or 'WRONG'}")
    return lines, wrong
