"""Stores that lose, damage, delay and refuse: a file system in memory with faults, and ways to look at one."""

import threading
import time
from collections import Counter
from contextlib import contextmanager
from typing import ClassVar

import fsspec
import numpy as np
from fsspec.implementations.memory import MemoryFileSystem

from gym_replay import Field, ReplayBuffer, crop_loader, n_step_loader, trajectory_loader, window_loader

FIELDS = {
    "observation": Field("float32", (3,), state=True),
    "frame": Field("uint8", (8, 8), codec="zstd"),
    "words": Field("int16", ragged=True),
    "reward": "float64",
    "terminated": "bool",
    "truncated": "bool",
}
META = {"note": "str", "episode_return": "float64"}


class FaultyFileSystem(MemoryFileSystem):
    """``faulty://``: what :attr:`before` raises, and the answers that :attr:`answer` changes.

    Attributes:
        before: called with the name of a method and a path before each call.
        answer: called with a path and the bytes that were asked for; returns those that come.
        calls: how often each method was called, and how many bytes came and went.
    """

    protocol = "faulty"
    store: ClassVar = {}
    pseudo_dirs: ClassVar = [""]
    before = staticmethod(lambda method, path: None)
    answer = staticmethod(lambda path, content: content)
    calls: ClassVar = Counter()
    lock = threading.Lock()

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.replace("faulty://", "memory://"))

    def _call(self, method, path):
        with self.lock:
            self.calls[method] += 1
        FaultyFileSystem.before(method, path)

    def cat_file(self, path, start=None, end=None, **options):
        self._call("read", path)
        content = FaultyFileSystem.answer(path, super().cat_file(path, start=start, end=end, **options))
        with self.lock:
            self.calls["read bytes"] += len(content)
        return content

    def pipe_file(self, path, value, **options):
        self._call("write", path)
        with self.lock:
            self.calls["written bytes"] += len(value)
        super().pipe_file(path, value, **options)


fsspec.register_implementation("faulty", FaultyFileSystem, clobber=True)


@contextmanager
def store(before=None, answer=None):
    """An empty store at ``faulty://data`` that behaves like this until the end of the context."""
    FaultyFileSystem.store.clear()
    FaultyFileSystem.calls.clear()
    with behaving(before, answer):
        yield FaultyFileSystem


@contextmanager
def behaving(before=None, answer=None):
    kept = FaultyFileSystem.before, FaultyFileSystem.answer
    FaultyFileSystem.before = staticmethod(before or (lambda method, path: None))
    FaultyFileSystem.answer = staticmethod(answer or (lambda path, content: content))
    try:
        yield
    finally:
        FaultyFileSystem.before, FaultyFileSystem.answer = map(staticmethod, kept)


URL = "faulty://data/set"


def late(seconds):
    """Every answer takes so long, and others that were asked for later are not held up."""
    return lambda method, path: time.sleep(seconds)


class Fails:
    """Raises an error in the calls of a method with these numbers, from 1 on, and in all after ``always_from``."""

    def __init__(self, method, numbers=(), error=None, always_from=1 << 60):
        self.method, self.numbers, self.always_from = method, set(numbers), always_from
        self.error = error or TimeoutError("late")
        self.count = 0

    def __call__(self, method, path):
        if method == self.method:
            self.count += 1
            if self.count in self.numbers or self.count >= self.always_from:
                raise self.error


def cut(content):
    return content[: len(content) // 2]


def changed(content):
    return content[:-1] + bytes([content[-1] ^ 1])


def objects():
    """The paths of all parts in the store, the largest first."""
    found = {path: len(file.getvalue()) for path, file in FaultyFileSystem.store.items() if "/objects/" in path}
    return sorted(found, key=found.get, reverse=True)


def replace_object(path, content):
    fsspec.filesystem("memory").__class__.pipe_file(FaultyFileSystem(), path, content)


def make(folder, episodes=12, seed=0, **options):
    """A buffer with fields of all kinds."""
    buffer = ReplayBuffer(folder, **{"fields": FIELDS, "meta_fields": META, **options})
    add(buffer, episodes, seed)
    return buffer


def add(buffer, episodes, seed=0, length=20):
    rng = np.random.default_rng(seed)
    for number in range(buffer.num_episodes, buffer.num_episodes + episodes):
        steps = int(rng.integers(1, length))
        buffer.store_episode(
            observation=rng.standard_normal((steps + 1, 3)),
            frame=rng.integers(0, 255, (steps, 8, 8), dtype=np.uint8),
            words=[np.arange(step % 4) for step in range(steps)],
            reward=rng.standard_normal(steps),
            terminated=np.arange(steps) == steps - 1,
            truncated=np.zeros(steps, bool),
            note=f"note {number % 3}",
            episode_return=float(number),
        )


def values(episode):
    """All that an episode has, as plain values."""
    found = {name: np.asarray(episode[name]).tolist() for name in episode if name != "words"}
    words = {"words": episode["words"].tolist()} if "words" in episode else {}
    return {**found, **words, **{name: np.asarray(value).tolist() for name, value in episode.meta.items()}}


def all_values(buffer):
    return [values(episode) for episode in buffer]


LOADERS = {
    "n_step": lambda buffer, **options: n_step_loader(buffer, 32, n_steps=3, **options),
    "window": lambda buffer, **options: window_loader(buffer, 16, length=6, **options),
    "trajectory": lambda buffer, **options: trajectory_loader(buffer, 4, **options),
    "crop": lambda buffer, **options: crop_loader(buffer, 8, crop=4, **options),
}


def batches(loader):
    return [{name: value if isinstance(value, list) else value.tolist() for name, value in b.items()} for b in loader]
