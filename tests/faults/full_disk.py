"""A really full disk: a small tmpfs, and a limit on the size of files.

A round has three parts. A buffer is made and a disk filled, but for a random rest. Then one way of writing goes on
until the disk refuses: that is a StorageError which says how many bytes were needed, and every committed episode is
as it was. Then there is room again, and the same object goes on.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from internals import small_sizes

from gym_replay import Field, RecordToBuffer, ReplayBuffer, StorageError, check_buffer

from . import children
from .scenarios import (
    FIELDS,
    RAGGED_FIELDS,
    RAGGED_META,
    Deterministic,
    WithInfos,
    assert_episode,
    assert_infos,
    assert_ragged,
    extra_of,
    length_of,
    open_quietly,
    ragged_episode,
    ragged_of,
    rows_of,
    same_rows,
    step_by_step,
    texts_of,
)

PAGE = os.sysconf("SC_PAGE_SIZE")
META = {"number": "int", "version": "int"}


# --- disks ---


class Disk(Protocol):
    """Somewhere to write that can be filled and emptied."""

    folder: Path

    def fill(self, spare: int) -> None:
        """Leave room for about ``spare`` more bytes."""

    def free(self) -> None:
        """Give the room back."""


class SmallDisk:
    """A tmpfs of its own. The filler is a file beside the buffer."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def fill(self, spare: int) -> None:
        self.free()
        with open(self.folder / "filler", "wb", buffering=0) as filler:
            with contextlib.suppress(OSError):
                while True:
                    filler.write(bytes(1 << 16))
            with contextlib.suppress(OSError):
                while True:
                    filler.write(bytes(PAGE))
            filler.truncate(max(filler.tell() // PAGE - spare // PAGE, 0) * PAGE)

    def free(self) -> None:
        (self.folder / "filler").unlink(missing_ok=True)


class SmallFiles:
    """A soft limit on the size of files; the signal that comes with it is ignored."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        self._hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]

    def fill(self, spare: int) -> None:
        """Every file may have the size of one that is there, and a little more or less."""
        sizes = sorted({path.stat().st_size for path in self.folder.rglob("*") if path.is_file()})
        limit = sizes[spare // PAGE % len(sizes)] + spare % 97 - 48
        resource.setrlimit(resource.RLIMIT_FSIZE, (max(limit, 0), self._hard))

    def free(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (self._hard, self._hard))


@cache
def why_not_mounted() -> str | None:
    """Why this process cannot mount a tmpfs; None where it can."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        return "mounting a tmpfs needs root on Linux"
    try:
        with mounted(1):
            return None
    except (OSError, subprocess.CalledProcessError) as error:
        return f"no tmpfs could be mounted: {error}"


@contextlib.contextmanager
def mounted(megabytes: float, options: str = "") -> Iterator[Path]:
    """A tmpfs of that many MiB, for the time of the context."""
    folder = Path(tempfile.mkdtemp(prefix="small-disk-"))
    try:
        command = ["mount", "-t", "tmpfs", "-o", f"size={int(megabytes * 1024)}k{options}", "tmpfs", str(folder)]
        subprocess.run(command, check=True, capture_output=True)
        try:
            yield folder
        finally:
            subprocess.run(["umount", "-l", str(folder)], check=True, capture_output=True)
    finally:
        folder.rmdir()


@contextlib.contextmanager
def disk_of(kind: str, megabytes: float = 4) -> Iterator[Callable[[], Disk]]:
    """A disk, by kind; it is made by the process that is to fill it."""
    if kind == "tmpfs":
        with mounted(megabytes) as folder:
            yield lambda: SmallDisk(folder)
    else:
        folder = Path(tempfile.mkdtemp())
        try:
            yield lambda: SmallFiles(folder)
        finally:
            shutil.rmtree(folder)


DISKS = ("tmpfs", "file size")


# --- what must be there ---


@dataclass
class Expected:
    """What a buffer must hold: lengths by id, the version of labels and meta, and the fields that were added."""

    lengths: dict[int, int] = field(default_factory=dict)
    version: int = 0
    added: list[str] = field(default_factory=list)
    recorded: bool = False

    def verify(self, buffer: ReplayBuffer) -> None:
        assert [episode.id for episode in buffer] == list(self.lengths), f"{len(buffer)} of {len(self.lengths)}"
        assert (len(buffer), buffer.num_steps) == (len(self.lengths), sum(self.lengths.values()))
        names = ("observation", "action", "reward") if self.recorded else tuple(FIELDS)
        for episode in buffer:
            assert_episode(episode, names, length=self.lengths[episode.id])
            if self.recorded:
                assert episode.meta["episode_complete"]
                assert_infos(episode, whole=False)
                continue
            assert (episode.meta["number"], episode.meta["version"]) == (episode.id, self.version)
            assert episode["label"].tolist() == [float(self.version)] * len(episode)
            for name in self.added:
                assert episode[name].tolist() == (rows_of(episode.id, len(episode))["reward"] * 2).tolist()
        infos = {name for name in buffer.fieldnames if name.startswith("info")}
        extra = set(buffer.fieldnames) - {*FIELDS, "label", *self.added, "terminated", "truncated", *infos}
        assert not extra, extra

    def verify_all(self, buffer: ReplayBuffer) -> None:
        """In the writer's own object, and in a reader that opens the folder now."""
        self.verify(buffer)
        with open_quietly(buffer.folder, read_only=True) as reader:
            self.verify(reader)


class ExpectedRagged(Expected):
    """The same with ragged fields and strings, of one version in all episodes."""

    def verify(self, buffer: ReplayBuffer) -> None:
        assert [episode.id for episode in buffer] == list(self.lengths), f"{len(buffer)} of {len(self.lengths)}"
        assert buffer.fieldnames == (*RAGGED_FIELDS, *self.added)
        for episode in buffer:
            assert_episode(episode, length=self.lengths[episode.id])
            assert (episode.meta["number"], episode.meta["version"]) == (episode.id, self.version)
            assert_ragged(episode, self.version)
            for k, name in enumerate(self.added):
                assert same_rows(episode[name], extra_of(episode.id, len(episode), k)), f"{episode.id}, {name}"


def refused(error: StorageError) -> int:
    """How many bytes were missing, as the error says."""
    assert isinstance(error, OSError)
    assert error.errno in (28, 27), error  # no space, or the file too large
    found = re.search(r"(\d+) more bytes were needed", str(error))
    assert found, f"no number of bytes: {error}"
    assert int(found[1]) > 0, error
    return int(found[1])


# --- ways of writing ---


class Way:
    """Makes a buffer, writes to it until the disk refuses, and goes on."""

    episodes = 6

    def __init__(self, disk: Disk, generator: random.Random) -> None:
        self.disk, self.generator = disk, generator
        self.folder = disk.folder / "buffer"
        self.expected = Expected()
        self.buffer = self.make()

    def make(self) -> ReplayBuffer:
        buffer = ReplayBuffer(self.folder, fields={**FIELDS, "label": "float64"}, meta_fields=META)
        self.buffer = buffer
        for _ in range(self.episodes):
            self.store(self.length())
        return buffer

    def length(self) -> int:
        return length_of(self.number)

    @property
    def number(self) -> int:
        return max(self.expected.lengths, default=-1) + 1

    def whole(self, length: int) -> dict[str, Any]:
        rows = rows_of(self.number, length)
        rows |= {"label": np.full(length, float(self.expected.version))}
        return rows | dict.fromkeys(self.expected.added, rows["reward"] * 2)

    def store(self, length: int) -> None:
        self.buffer.store_episode(**self.whole(length), number=self.number, version=self.expected.version)
        self.expected.lengths[self.number] = length

    def attempt(self) -> None:
        """One piece of work that may be refused."""
        self.store(self.length())

    def until_refused(self) -> int | None:
        """Work until the disk refuses; returns how many bytes were missing, or None where it never did."""
        try:
            while True:
                self.attempt()
        except StorageError as error:
            return refused(error)

    def go_on(self) -> None:
        """There is room again: what was refused is done, and more."""
        self.attempt()
        self.store(self.length())

    def finish(self) -> None:
        self.buffer.close()


class Commits(Way):
    """store_episode, with episodes short and long."""

    def length(self) -> int:
        return self.generator.choice((1, 5, 23, 200))


class Growth(Way):
    """Long episodes, for which the files grow."""

    def length(self) -> int:
        return 400 + self.number


class StepByStep(Way):
    """one_episode; the error leaves the context, and the episode is forgotten."""

    def attempt(self) -> None:
        length = 20 + self.generator.randrange(200)
        rows = self.whole(length)
        with self.buffer.one_episode(number=self.number, version=self.expected.version):
            for t in range(length):
                self.buffer.store(**{name: values[t] for name, values in rows.items()})
            self.buffer.store_final(observation=rows["observation"][-1], image=rows["image"][-1])
        self.expected.lengths[self.number] = length


class EarlyWrites(StepByStep):
    """The same with episodes that are written long before their commit."""

    def __init__(self, disk: Disk, generator: random.Random) -> None:
        small_sizes(chunk_rows=8)
        super().__init__(disk, generator)


class Blocks(Way):
    """batched_episode."""

    def attempt(self) -> None:
        length, first = 1 + self.generator.randrange(60), self.number
        all_rows = [rows_of(first + k, length) for k in range(3)]
        numbers = np.arange(first, first + 3)
        with self.buffer.batched_episode(3, number=numbers, version=self.expected.version):
            label = np.full(3, float(self.expected.version))
            for t in range(length):
                self.buffer.store_batch(
                    **{name: np.stack([rows[name][t] for rows in all_rows]) for name in FIELDS}, label=label
                )
            names = ("observation", "image")
            self.buffer.store_final(**{name: np.stack([rows[name][-1] for rows in all_rows]) for name in names})
        self.expected.lengths.update(dict.fromkeys(numbers.tolist(), length))


class OneShot(Way):
    """Work that is tried once: it is refused, and nothing has changed, or it is done."""

    def until_refused(self) -> int | None:
        try:
            self.attempt()
        except StorageError as error:
            return refused(error)
        return None


class Clear(OneShot):
    def attempt(self) -> None:
        self.after = self.number
        try:
            self.buffer.clear()
        except StorageError as error:  # there was room for the change, and none to bring it to its end
            if "the change was made all the same" in str(error):
                self.expected.lengths = {}
            raise
        self.expected.lengths = {}

    @property
    def number(self) -> int:
        return max(self.expected.lengths, default=getattr(self, "after", 0) - 1) + 1


class Ragged(Way):
    """Fields of variable size and strings."""

    def make(self) -> ReplayBuffer:
        self.expected = ExpectedRagged()
        self.buffer = ReplayBuffer(self.folder, fields=RAGGED_FIELDS, meta_fields=RAGGED_META)
        for _ in range(self.episodes):
            self.store(self.length())
        return self.buffer

    def length(self) -> int:
        return self.generator.choice((1, 5, 23, 200))

    def whole(self, length: int) -> dict[str, Any]:
        added = {name: extra_of(self.number, length, k) for k, name in enumerate(self.expected.added)}
        return {**ragged_episode(self.number, length, self.expected.version), **added}

    def store(self, length: int) -> None:
        self.buffer.store_episode(**self.whole(length))
        self.expected.lengths[self.number] = length


class RaggedGrowth(Ragged):
    """Long episodes of them."""

    def length(self) -> int:
        return 400 + self.number


class RaggedEarly(Ragged):
    """The same, a step at a time and written early."""

    def __init__(self, disk: Disk, generator: random.Random) -> None:
        small_sizes(ragged_chunk_rows=8)
        super().__init__(disk, generator)

    def attempt(self) -> None:
        length = self.length()
        step_by_step(self.buffer, self.whole(length), length)
        self.expected.lengths[self.number] = length


class RaggedUpdate(Ragged, OneShot):
    def attempt(self) -> None:
        version = self.expected.version + 1
        episodes = self.expected.lengths.items()
        rows = [ragged_of(number, length, version) for number, length in episodes]
        texts = [texts_of(number, version) for number in self.expected.lengths]
        self.buffer.update(
            words=[each["words"] for each in rows],
            points=[each["points"] for each in rows],
            note=[each["note"] for each in texts],
            version=np.full(len(rows), version),
        )
        self.expected.version = version


class RaggedAddField(Ragged, OneShot):
    def attempt(self) -> None:
        name = f"extra{len(self.expected.added)}"
        values = [extra_of(k, length, len(self.expected.added)) for k, length in self.expected.lengths.items()]
        self.buffer.add_field(name, Field("int64", ragged=True), values, derived=False)
        self.expected.added.append(name)


class RaggedClose(Ragged, OneShot):
    """The folder is let go also where the checksums could not be written."""

    episodes = 400

    def __init__(self, disk: Disk, generator: random.Random) -> None:
        small_sizes(checksum_run=1 << 40)
        super().__init__(disk, generator)

    def length(self) -> int:
        return 1

    def attempt(self) -> None:
        try:
            self.buffer.close()
        finally:
            self.buffer = open_quietly(self.folder)


class AddField(OneShot):
    def attempt(self) -> None:
        name = f"nested.extra{len(self.expected.added)}"
        values = [rows_of(k, length)["reward"] * 2 for k, length in self.expected.lengths.items()]
        self.buffer.add_field(name, "float64", values, derived=False)
        self.expected.added.append(name)


class Update(OneShot):
    def attempt(self) -> None:
        version = self.expected.version + 1
        labels = [np.full(length, float(version)) for length in self.expected.lengths.values()]
        self.buffer.update(label=labels, version=np.full(len(labels), version))
        self.expected.version = version


class Overwrite(OneShot):
    """A new buffer in the place of the old one, which stays whole until the new one is there."""

    def make(self) -> ReplayBuffer:
        super().make().close()
        return ReplayBuffer.from_folder(self.folder, read_only=True)

    def attempt(self) -> None:
        self.buffer.release()
        fields = {**FIELDS, "label": "float64", "extra": "float64"}
        self.buffer = ReplayBuffer(self.folder, fields=fields, meta_fields=META, overwrite=True)
        self.expected = Expected(added=["extra"])


class Create(OneShot):
    """A buffer in a folder that does not exist yet, beside the one that must stay."""

    def attempt(self) -> None:
        with ReplayBuffer(self.disk.folder / "another", fields=FIELDS, meta_fields=META) as buffer:
            assert len(buffer) == 0

    def finish(self) -> None:
        super().finish()
        with open_quietly(self.disk.folder / "another") as buffer:
            rows = rows_of(0, 3)
            buffer.store_episode(**rows)
        assert check_buffer(self.disk.folder / "another", progress=False).ok


class FirstWrite(Way):
    """The first write after the folder was opened, which takes the lock."""

    def make(self) -> ReplayBuffer:
        super().make().close()
        return ReplayBuffer.from_folder(self.folder)


class Flush(OneShot):
    """So many episodes without checksums that their file must grow."""

    episodes = 400

    def __init__(self, disk: Disk, generator: random.Random) -> None:
        small_sizes(checksum_run=1 << 40)
        super().__init__(disk, generator)

    def length(self) -> int:
        return 1

    def attempt(self) -> None:
        self.buffer.flush()


class Close(Flush):
    """The folder is let go also where the checksums could not be written."""

    def attempt(self) -> None:
        try:
            self.buffer.close()
        finally:
            self.buffer = open_quietly(self.folder)


class Recorder(Way):
    """RecordToBuffer: an episode whose commit failed is committed by the next reset."""

    environment: type[Deterministic] = Deterministic
    record_info = False

    def make(self) -> ReplayBuffer:
        self.expected.recorded = True
        self.env = RecordToBuffer(self.environment(0), self.folder, record_info=self.record_info)
        self.buffer = self.env.buffer
        for _ in range(self.episodes):
            self.attempt()
        return self.buffer

    def attempt(self) -> None:
        self.env.reset()
        self.play()

    def play(self) -> None:
        number, inner = self.number, self.env.unwrapped
        while inner.t < inner.length:
            self.env.step((1000 * number + inner.t) * 3)
        self.expected.lengths[number] = inner.length

    def until_refused(self) -> int:
        missing = super().until_refused()
        length = self.env.unwrapped.t
        if self.generator.random() < 0.5:  # once more, while there still is no room: nothing may be lost by that
            try:
                self.env.reset()
            except StorageError as error:
                refused(error)
            else:
                self.expected.lengths[self.number] = length
        return missing

    def go_on(self) -> None:
        inner = self.env.unwrapped
        if inner.number == self.number:
            self.play()  # the rest of the episode, where an early write was refused
            if self.generator.random() < 0.5:
                self.env.close()
                self.expected.verify_all(self.buffer)
        for _ in range(3):
            self.attempt()

    def finish(self) -> None:
        self.env.close()


class LongEpisodes(Deterministic):
    """Episodes of 400 steps and more."""

    def reset(self, **options: Any) -> tuple:
        result = super().reset(**options)
        self.length = 400 + self.number
        self.rows = rows_of(self.number, self.length)
        return result


class LongRecorder(Recorder):
    """The same with long episodes."""

    environment = LongEpisodes


class EarlyRecorder(Recorder):
    """The same, written early."""

    def __init__(self, disk: Disk, generator: random.Random) -> None:
        small_sizes(chunk_rows=4)
        super().__init__(disk, generator)


class InfoRecorder(EarlyRecorder):
    """The same with infos, whose fields come while an episode is written; a refused one is left out of it."""

    environment = WithInfos
    record_info = True

    def __init__(self, disk: Disk, generator: random.Random) -> None:
        warnings.simplefilter("ignore")
        super().__init__(disk, generator)


WAYS: dict[str, type[Way]] = {
    "store_episode": Commits,
    "growth": Growth,
    "one_episode": StepByStep,
    "early writes": EarlyWrites,
    "batched_episode": Blocks,
    "RecordToBuffer": Recorder,
    "RecordToBuffer, long": LongRecorder,
    "RecordToBuffer, early": EarlyRecorder,
    "RecordToBuffer, infos": InfoRecorder,
    "first write": FirstWrite,
    "clear": Clear,
    "overwrite": Overwrite,
    "create": Create,
    "add_field": AddField,
    "update": Update,
    "flush": Flush,
    "close": Close,
    "ragged": Ragged,
    "ragged growth": RaggedGrowth,
    "ragged early writes": RaggedEarly,
    "ragged update": RaggedUpdate,
    "ragged add_field": RaggedAddField,
    "ragged close": RaggedClose,
}


def _round(name: str, disk: Disk, generator: random.Random) -> int | None:
    way = WAYS[name](disk, generator)
    way.expected.verify_all(way.buffer)
    disk.fill(int(60 * PAGE * generator.random() ** 3))
    try:
        missing = way.until_refused()
        if missing is not None:
            way.expected.verify_all(way.buffer)
    finally:
        disk.free()
    way.go_on()
    way.expected.verify_all(way.buffer)
    way.finish()
    with open_quietly(way.folder, read_only=True) as reader:
        way.expected.verify(reader)
    report = check_buffer(way.folder, progress=False)
    assert report.ok, str(report)
    assert not report.without_checksum, str(report)
    assert report.num_checked == report.num_episodes > 0
    leftovers = [path.name for path in disk.folder.rglob("*.new")]
    assert not leftovers, f"left behind: {leftovers}"
    return missing


def one_round(name: str, kind: str, seed: str) -> int | None:
    """A round in a child of its own; returns how many bytes were missing, None where there was enough room."""
    with disk_of(kind) as make:
        return children.run(lambda: _round(name, make(), random.Random(seed)))  # type: ignore[no-any-return]


def rounds(name: str, kind: str, count: int, seed: int) -> tuple[int, list[str]]:
    """Several rounds; returns how often the disk refused, and what went wrong."""
    refusals, failures = 0, []
    for number in range(count):
        key = f"{seed} {name} {kind} {number}"
        try:
            refusals += one_round(name, kind, key) is not None
        except AssertionError as error:
            failures.append(f"{key}: {error}")
    return refusals, failures


# --- how full it gets ---


FILLING = ("store_episode", "growth", "early writes", "RecordToBuffer, long")


def fraction_used(kind: str, megabytes: int, way: str) -> float:
    """Bytes of committed rows over the size of the disk (or the longest file's over its limit) when it is full."""

    def fill(disk: Disk) -> float:
        if kind != "tmpfs":
            resource.setrlimit(resource.RLIMIT_FSIZE, (megabytes << 20, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        written = WAYS[way](disk, random.Random(0))
        written.until_refused()
        written.expected.verify_all(written.buffer)
        rows = sum(length + 1 for length in written.expected.lengths.values())
        fields = written.buffer.metadata.fields.values()
        widths = [info.nbytes for info in fields]
        with contextlib.suppress(StorageError):
            written.buffer.release()  # an episode that found no room is given up
        return rows * (sum(widths) if kind == "tmpfs" else max(widths)) / (megabytes << 20)

    with disk_of(kind, megabytes) as make:
        return children.run(lambda: fill(make()))  # type: ignore[no-any-return]


def table(count: int, seed: int) -> tuple[list[str], list[str]]:
    """The long rounds, as lines of a table, and what went wrong."""
    kinds = [kind for kind in DISKS if kind != "tmpfs" or why_not_mounted() is None]
    lines = [f"{'full disk while':<24} {'made full by':<14} {'tried':>6} {'refused':>8} {'wrong':>6}"]
    wrong = []
    for name in WAYS:
        for kind in kinds:
            refusals, failures = rounds(name, kind, count, seed)
            lines.append(f"{name:<24} {kind:<14} {count:>6} {refusals:>8} {len(failures):>6}")
            wrong += failures
    for kind in kinds:
        for way in FILLING:
            used = fraction_used(kind, 16, way)
            lines.append(f"{way:<24} {kind:<14} {used:>22.1%} of 16 MiB used when full")
    return lines, wrong
