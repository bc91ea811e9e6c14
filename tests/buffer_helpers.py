"""What the tests of ReplayBuffer share: schemas, small buffers, and ways to look at a folder."""

import subprocess
import sys

import numpy as np

from gym_replay import Field, ReplayBuffer

FIELDS = {
    "state": Field("float32", (3,), state=True),
    "action": Field("int64", default=-1),
    "reward": Field("float64", default=0.5),
    "done": Field("bool"),
}

META = {"seed": Field("int64", default=-7), "score": Field("float32", (2,))}


def make(folder, **options):
    return ReplayBuffer(folder, **{"fields": FIELDS, "meta_fields": META, **options})


def make_plain(folder, **options):
    """One int64 field ``x``: episode k of T steps holds k*100 .. k*100+T-1."""
    return ReplayBuffer(folder, **{"fields": {"x": "int64"}, **options})


def add(buffer, *lengths, first=None):
    for length in lengths:
        number = buffer.num_episodes if first is None else first
        buffer.store_episode(x=number * 100 + np.arange(length))
        first = None if first is None else first + 1


def contents(buffer, name="x"):
    return [episode[name].tolist() for episode in buffer]


def ids(buffer):
    return [episode.id for episode in buffer]


def files_of(folder):
    """Every file and folder, with its bytes and its time of change."""
    return {
        path.relative_to(folder).as_posix(): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else None)
        for path in sorted(folder.rglob("*"))
    }


def leftovers(folder):
    return sorted(path.name for path in folder.rglob("*.new"))


def run_script(code, *arguments):
    """A process of its own; returns its exit status and what it printed."""
    done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True)
    return done.returncode, done.stdout.strip() + done.stderr[-2000:]


WRITES = {
    "store_episode": lambda buffer: buffer.store_episode(x=[1]),
    "one_episode": lambda buffer: buffer.one_episode().__enter__(),
    "batched_episode": lambda buffer: buffer.batched_episode(1).__enter__(),
    "update": lambda buffer: buffer.update([0], x=[[1, 2]]),
    "add_field": lambda buffer: buffer.add_field("new", "float"),
    "delete": lambda buffer: buffer.delete([0]),
    "clear": lambda buffer: buffer.clear(),
}

WRITE_ONE = """
import sys
from gym_replay import ReplayBuffer, BufferLockedError
try:
    with ReplayBuffer.from_folder(sys.argv[1]) as buffer:
        buffer.store_episode(x=[7])
    print("stored")
except BufferLockedError as error:
    print(error)
"""


def filled(folder):
    buffer = make(folder)
    for number, length in enumerate((2, 3, 1)):
        buffer.store_episode(
            state=np.full((length + 1, 3), number),
            action=number * 10 + np.arange(length),
            seed=number,
            score=[number, 0],
        )
    return buffer
