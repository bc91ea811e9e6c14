"""Calls of the operating system that are refused, one by one: what a change says then, and what is there afterwards.

``python -m tests.faults.refused_calls`` refuses each call of each change; the test a part of them.
"""

from __future__ import annotations

import errno
import itertools
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from gym_replay import Field, ReferenceReturns, ReplayBuffer, StorageError, check_buffer

CALLS = ("open", "replace", "unlink", "pwrite", "ftruncate", "fsync", "mkdir", "rmdir", "listdir")
ERRORS = (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EINTR, errno.EMFILE)
MADE = ("the change was made", "what was to be stored is committed")
NOT_MADE = ("nothing was changed", "nothing was committed", "; nothing is")
FIELDS = {"o": Field("float32", (2,), state=True), "a": "int64", "deep.w": Field("uint8", ragged=True)}
META = {"s": "int64", "t": "str"}


def store(buffer: ReplayBuffer, number: int) -> None:
    length = 3 + number % 3
    values = {
        "o": np.full((length + 1, 2), number, np.float32),
        "a": np.arange(length) + number * 10,
        "deep.w": [np.full(t % 3, number, np.uint8) for t in range(length)],
        "s": number,
        "t": f"text {number}" if number % 2 else "",
    }
    known = (*buffer.fieldnames, *buffer.meta_fieldnames)
    buffer.store_episode(**{name: value for name, value in values.items() if name in known})


def step_by_step(buffer: ReplayBuffer) -> None:
    with buffer.one_episode(s=77) as final:
        for t in range(40):
            buffer.store(a=t, o=[t, t], **{"deep.w": [1]})
        final["t"] = "known later"


def in_a_block(buffer: ReplayBuffer) -> None:
    with buffer.batched_episode(2, s=5):
        for t in range(3):
            buffer.store_batch(a=[t, t + 1], o=[[t, t]] * 2, **{"deep.w": [[1], [1, 2]]})


CHANGES: dict[str, Callable[[ReplayBuffer], Any]] = {
    "store_episode": lambda buffer: store(buffer, 9),
    "one_episode": step_by_step,
    "batched_episode": in_a_block,
    "update": lambda buffer: buffer.update([0, 1], a=[np.zeros(3, int), np.zeros(4, int)]),
    "update of meta fields": lambda buffer: buffer.update(None, s=np.arange(4), t=["x", "y", "zz", ""]),
    "update of a ragged field": lambda buffer: buffer.update(0, **{"deep.w": [np.array([7], np.uint8)] * 3}),
    "add_field": lambda buffer: buffer.add_field("new.f", "float32"),
    "add_meta_field": lambda buffer: buffer.add_meta_field("m", ("float", 2), np.ones((4, 2))),
    "add_meta_field of strings": lambda buffer: buffer.add_meta_field("u", "str", ["", "é", "x" * 99, "x" * 99]),
    "rename_field": lambda buffer: buffer.rename_field("a", "new.a"),
    "rename_field of a ragged field": lambda buffer: buffer.rename_field("deep.w", "w"),
    "rename_field of a meta field": lambda buffer: buffer.rename_field("t", "title"),
    "drop_field": lambda buffer: buffer.drop_field("a"),
    "drop_field of a ragged field": lambda buffer: buffer.drop_field("deep.w"),
    "drop_field of the strings": lambda buffer: buffer.drop_field("t"),
    "set_reference_returns": lambda buffer: buffer.set_reference_returns(ReferenceReturns(1, 2)),
    "delete": lambda buffer: buffer.delete(1),
    "clear": lambda buffer: buffer.clear(),
    "flush": lambda buffer: buffer.flush(),
}

State = tuple[Any, ...]


def state_of(buffer: ReplayBuffer) -> State:
    """All that readers see."""
    names, metas = buffer.fieldnames, buffer.meta_fieldnames
    return (*names, *metas, buffer.reference_returns), tuple(
        (
            episode.id,
            *(tuple(np.asarray(row).tobytes() for row in episode[name]) for name in names),
            *(np.asarray(episode.meta[name]).tolist() for name in metas),
        )
        for episode in buffer
    )


def start(folder: Path, *, circular: bool, durability: str = "process") -> ReplayBuffer:
    buffer = ReplayBuffer(
        folder,
        fields=FIELDS,
        meta_fields=META,
        circular=circular,
        max_episodes=50 if circular else None,
        durability=durability,
    )
    for number in range(4):
        store(buffer, number)
    return buffer


class Refusal:
    """Refuses the calls of one kind from the ``first`` on: that one only, or all of them until it is over."""

    def __init__(self, call: str, first: int, number: int, *, once: bool) -> None:
        self.call, self.first, self.number, self.once = call, first, number, once
        self.seen = self.refused = 0

    @contextmanager
    def installed(self) -> Iterator[None]:
        real = getattr(os, self.call)

        def refusing(*arguments: Any, **options: Any) -> Any:
            self.seen += 1
            if self.seen == self.first or (self.seen > self.first and not self.once):
                self.refused += 1
                raise OSError(self.number, os.strerror(self.number))
            return real(*arguments, **options)

        setattr(os, self.call, refusing)
        try:
            yield
        finally:
            setattr(os, self.call, real)


def attempt(folder: Path, name: str, refusal: Refusal, *, circular: bool, durability: str = "process") -> list[str]:
    """One change with one refusal; what is wrong afterwards."""
    wrong = []
    buffer = start(folder, circular=circular, durability=durability)
    before = state_of(buffer)
    error: BaseException | None = None
    with refusal.installed():
        try:
            CHANGES[name](buffer)
        except Exception as caught:
            error = caught
    after = state_of(buffer)
    if buffer.num_episodes != len(after[1]):
        wrong.append(f"num_episodes is {buffer.num_episodes}, there are {len(after[1])}")
    if error is not None and not isinstance(error, StorageError):
        wrong.append(f"{type(error).__name__}: {error}")
    elif error is not None and name != "flush":
        says = [made for texts, made in ((MADE, True), (NOT_MADE, False)) if any(text in str(error) for text in texts)]
        if says != [after != before]:
            wrong.append(f"the change was {'' if after != before else 'not '}made, and it says: {error}")
    elif error is None and refusal.refused and name != "flush" and after == before:
        wrong.append("nothing was done, and nothing was said")
    store(buffer, 11)
    later = state_of(buffer)
    if later[1][:-1] != after[1]:
        wrong.append("it showed something else until the next write")
    buffer.close()
    report = check_buffer(folder, progress=False)
    if not report.ok or not report.verified:
        wrong.append(str(report))
    with ReplayBuffer.from_folder(folder, read_only=True) as reopened:
        if state_of(reopened) != later:
            wrong.append("another one sees something else")
    return wrong


def main() -> int:
    warnings.simplefilter("ignore")
    found = 0
    numbers = itertools.cycle(ERRORS)
    where = sys.argv[1] if len(sys.argv) > 1 else None
    for name, call, once in itertools.product(CHANGES, CALLS, (True, False)):
        for first in itertools.count(1):
            refusal = Refusal(call, first, next(numbers), once=once)
            with tempfile.TemporaryDirectory(dir=where) as folder:
                try:
                    wrong = attempt(Path(folder) / "data", name, refusal, circular=first % 2 == 0)
                except Exception as error:
                    wrong = [f"afterwards {error!r}"]
            for text in wrong:
                found += 1
                which = f"{call} {first}{'' if once else ' and on'}, {errno.errorcode[refusal.number]}"
                print(f"{name}: {which}: {text}", flush=True)
            if not refusal.refused:
                break
        print(name, call, once, first - 1, "refused", flush=True)
    return found


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        sys.exit(min(main(), 1))
