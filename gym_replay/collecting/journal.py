"""``collect.json``: what the episodes of a folder were collected with, what was asked for, and what was discarded.

It lies beside the buffer's files and is no part of the buffer. Like everything in a folder it is read as if a stranger
had written it. Which episodes there are is not in it: each says so itself, in the meta field ``collect_index``.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from gym_replay.collecting.plan import Goal
from gym_replay.errors import ConfigMismatchError, CorruptBufferError
from gym_replay.files.directory import open_beneath
from gym_replay.files.documents import LARGEST, parse_json

NAME = "collect.json"
_FORMAT = "gym_replay collection"
_VERSION = 1
_SECONDS_BETWEEN_NOTES = 10.0
_MOST_DISCARDED, _MOST_RUNS = 1 << 19, 50_000
"""How many discarded episodes are noted: a file of a few bytes can name any number. The others are played again."""

_MOST_GOALS = 1000
_LONGEST_SHOWN = 300


PutFile: TypeAlias = Callable[[str, bytes], None]
"""Puts a file into a folder that is held, by its name and content: ``put_file`` of a buffer or of a lock."""


@dataclass
class Journal:
    """What is known of a collection beside its episodes.

    Attributes:
        identity: what decides what each episode is, as JSON values by argument.
        uuid: of the buffer that it is about; empty for a folder of shards.
        goals: what was asked for, the last call's last; those that another one covers are left out.
        discarded: the numbers of the episodes that were played and not kept.
    """

    identity: dict[str, Any]
    uuid: str = ""
    goals: list[Goal] = field(default_factory=list)
    discarded: set[int] = field(default_factory=set)
    _noted: float = field(default_factory=time.monotonic)

    def ask(self, goal: Goal) -> None:
        """Note what is asked for now."""
        self.goals = [*(each for each in self.goals if not goal.covers(each)), goal]

    def check(self, passed: Mapping[str, Any], folder: Path) -> None:
        """Raise ConfigMismatchError where the episodes were collected with other arguments than those passed."""
        differences = [
            f"{name}: stored {_brief(self.identity.get(name))}, passed {_brief(passed.get(name))}"
            for name in {**self.identity, **passed}
            if self.identity.get(name) != passed.get(name)
        ]
        if differences:
            raise ConfigMismatchError(
                f"{folder} was collected with other arguments: {'; '.join(differences)}. Pass what is stored, or "
                "choose another folder"
            )

    def note(self, discarded: Collection[int], put: PutFile) -> None:
        """Write down which episodes were discarded, where there are more of them.

        What a process that is killed did not write down is played again, and discarded again; so are those past
        the first half a million.
        """
        if len(discarded) != len(self.discarded):
            self.discarded = set(discarded)
            self.write(put)
        self._noted = time.monotonic()

    def note_now_and_then(self, discarded: Collection[int], put: PutFile) -> None:
        """The same, if it was some time ago."""
        if time.monotonic() - self._noted > _SECONDS_BETWEEN_NOTES:
            self.note(discarded, put)

    def write(self, put: PutFile) -> None:
        """Put the file in place, whole or not at all.

        Raises:
            StorageError: the operating system refused.
        """
        document = {
            "format": _FORMAT,
            "version": _VERSION,
            "uuid": self.uuid,
            "identity": self.identity,
            "goals": [{"episodes": goal.episodes, "steps": goal.steps} for goal in self.goals],
            "discarded": _to_runs(self.discarded),
        }
        put(NAME, json.dumps(document, allow_nan=False).encode())


def read_journal(folder: Path) -> Journal | None:
    """What ``collect.json`` in a folder says; None where there is none.

    Raises:
        CorruptBufferError: it is damaged.
    """
    path = folder / NAME
    try:
        with os.fdopen(open_beneath(folder, NAME, os.O_RDONLY), "rb") as stream:
            content = stream.read(LARGEST + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        return _parse(parse_json(content))
    except ValueError as error:
        raise CorruptBufferError(
            f"{path}: {error}; without the file nothing can be collected into the folder"
        ) from None


def _brief(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= _LONGEST_SHOWN else text[:_LONGEST_SHOWN] + "..."


def _parse(document: Any) -> Journal:
    if not isinstance(document, dict) or document.get("format") != _FORMAT:
        raise ValueError("this does not say what was collected")
    if document.get("version") != _VERSION:
        raise ValueError(f"version {document.get('version')!r:.40}, expected {_VERSION}; pip install -U gym-replay")
    identity, uuid, goals, runs = (document.get(name) for name in ("identity", "uuid", "goals", "discarded"))
    if not isinstance(identity, dict) or not isinstance(uuid, str):
        raise ValueError("'identity' or 'uuid' is missing")
    if not isinstance(goals, list) or not all(isinstance(goal, dict) for goal in goals) or len(goals) > _MOST_GOALS:
        raise ValueError(f"'goals': expected a list of {_MOST_GOALS} objects at most")
    parsed = [Goal(_total(goal.get("episodes")), _total(goal.get("steps"))) for goal in goals]
    return Journal(identity, uuid, parsed, _from_runs(runs))


def _total(value: Any) -> int | None:
    if value is not None and (type(value) is not int or value < 1):
        raise ValueError(f"'goals': expected positive numbers, got {value!r:.40}")
    return value


def _to_runs(numbers: Iterable[int]) -> list[list[int]]:
    """The lowest of the numbers as runs ``[first, end]``, the end not included."""
    runs: list[list[int]] = []
    for number in sorted(numbers)[:_MOST_DISCARDED]:
        if runs and runs[-1][1] == number:
            runs[-1][1] += 1
        else:
            runs.append([number, number + 1])
    return runs[:_MOST_RUNS]


def _from_runs(runs: Any) -> set[int]:
    if not isinstance(runs, list):
        raise ValueError("'discarded': expected a list")
    found: set[int] = set()
    last = count = 0
    for run in runs:
        if not isinstance(run, list) or len(run) != 2 or not all(type(edge) is int for edge in run):
            raise ValueError(f"'discarded': expected pairs of numbers, got {run!r:.40}")
        count += run[1] - run[0]
        if not last <= run[0] < run[1] or count > _MOST_DISCARDED:
            raise ValueError(f"'discarded': the run {run!r:.60}")
        last = run[1]
        found.update(range(*run))
    return found
