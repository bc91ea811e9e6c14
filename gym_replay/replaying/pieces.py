"""The folder that observed episodes go to: its pieces, each a buffer, and what `reobserve.json` in them says.

``reobserve.json`` lies beside a buffer's files and is no part of the buffer. It says how the episodes were observed,
into which pieces they were divided, and which ones were left out and why. Like everything in a folder it is read as if
a stranger had written it. Which episodes are there is not in it: each says so itself, in its meta fields.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from gym_replay.buffer.door import Snapshot, has_buffer
from gym_replay.buffer.finding import SHARDS
from gym_replay.buffer.replay_buffer import ReplayBuffer
from gym_replay.errors import ConfigMismatchError, CorruptBufferError, FieldError
from gym_replay.files.directory import content_beneath
from gym_replay.files.documents import LARGEST, parse_json
from gym_replay.replaying.reobserver import SOURCE_BUFFER, SOURCE_EPISODE
from gym_replay.schema.arrays import Ints

_NAME = "reobserve.json"
_KIND = {"format": "gym_replay reobservation", "version": 1}
_MOST_LEFT_OUT = 20_000
_LONGEST_REASON = 300


@dataclass(frozen=True)
class Chosen:
    """Episodes of one source, in its order.

    Attributes:
        folder, uuid: of the buffer.
        ids: of the episodes.
        first: the index of the first of them among all that are observed.
    """

    folder: Path
    uuid: str
    ids: Ints
    first: int

    @classmethod
    def of(cls, part: Snapshot, indices: Ints, first: int) -> Chosen:
        return cls(part.reader.folder, part.metadata.uuid, part.ids[indices], first)


Piece = Sequence[Chosen]


def counts_of(lengths: Ints, pieces: int) -> list[int]:
    """How many episodes each of so many pieces gets, so that all have about as many steps; fewer pieces of fewer."""
    pieces = max(min(pieces, len(lengths)), 1)
    ends = np.searchsorted(np.cumsum(lengths), np.arange(1, pieces) * (lengths.sum() / pieces), side="left") + 1
    bounds = np.unique([0, *np.minimum(ends, len(lengths)), len(lengths)])
    counts: list[int] = np.diff(bounds).tolist()
    return counts


def divided(chosen: Sequence[Chosen], counts: Sequence[int]) -> list[list[Chosen]]:
    """Episodes in pieces of so many that follow one another."""
    ends = np.cumsum([0, *counts]).tolist()
    return [_between(chosen, low, high) for low, high in pairwise(ends)]


def _between(chosen: Sequence[Chosen], low: int, high: int) -> list[Chosen]:
    found = []
    for each in chosen:
        start, end = max(low - each.first, 0), min(high - each.first, len(each.ids))
        if start < end:
            found.append(Chosen(each.folder, each.uuid, each.ids[start:end], each.first + start))
    return found


def digest_of(chosen: Sequence[Chosen]) -> str:
    """What tells these episodes from other ones."""
    digest = sha256()
    for each in chosen:
        digest.update(each.uuid.encode() + each.ids.astype("<i8").tobytes())
    return digest.hexdigest()


def folders_of(folder: Path, count: int) -> list[Path]:
    """Where so many pieces go: one is the buffer in the folder itself, several are shards."""
    return [folder] if count == 1 else [folder / SHARDS / f"part-{number:05}" for number in range(count)]


@dataclass
class Journal:
    """What is known of a piece beside its episodes.

    Attributes:
        identity: how episodes are observed, and which ones.
        counts: how many episodes each piece has.
        left_out: the episodes of this piece that did not come out as they were: uuid, id and why.
    """

    identity: dict[str, Any]
    counts: list[int]
    left_out: list[tuple[str, int, str]] = field(default_factory=list)

    def leave_out(self, uuid: str, episode: int, reason: str) -> None:
        """Note that an episode is left out.

        Raises:
            FieldError: that is true of too many of them.
        """
        if len(self.left_out) >= _MOST_LEFT_OUT:
            raise FieldError(
                f"reobserve: {_MOST_LEFT_OUT} episodes did not come out as they were recorded, the last one because it "
                f"{reason}; is this the environment that they were recorded in?"
            )
        self.left_out.append((uuid, episode, reason[:_LONGEST_REASON]))

    def write(self, buffer: ReplayBuffer) -> None:
        """Put ``reobserve.json`` beside the buffer's files."""
        document = {
            **_KIND,
            "uuid": buffer.metadata.uuid,
            "identity": self.identity,
            "counts": self.counts,
            "left_out": [list(each) for each in self.left_out],
        }
        buffer.put_file(_NAME, json.dumps(document).encode())


def read_journal(folder: Path) -> Journal | None:
    """What was noted of the piece in a folder; None where nothing was, or another buffer was created there since.

    Raises:
        CorruptBufferError: the file is damaged.
    """
    try:
        content = content_beneath(folder, _NAME, LARGEST)
        if content is None:
            return None
        found = parse_json(content)
        if not isinstance(found, dict) or {name: found.get(name) for name in _KIND} != _KIND:
            raise ValueError(f"expected an object with {_KIND}")
        identity, counts, left_out = (found.get(name) for name in ("identity", "counts", "left_out"))
        if not isinstance(identity, dict) or not isinstance(counts, list) or not isinstance(left_out, list):
            raise ValueError("expected 'identity', 'counts' and 'left_out'")
        if not counts or not all(type(count) is int and count > 0 for count in counts):
            raise ValueError("'counts': expected positive numbers")
        noted = [(str(uuid), int(episode), str(reason)) for uuid, episode, reason in left_out]
    except NotADirectoryError:
        return None
    except (ValueError, TypeError) as error:
        raise CorruptBufferError(f"{folder / _NAME}: {error}; choose another folder") from None
    with ReplayBuffer.from_folder(folder, read_only=True) as buffer:
        return Journal(identity, counts, noted) if buffer.metadata.uuid == found.get("uuid") else None


def counts_in(folder: Path, identity: dict[str, Any]) -> list[int] | None:
    """Into which pieces a reobservation was divided that was begun in a folder; None where none was.

    Args:
        folder: the one that the user named.
        identity: how episodes are observed now.

    Raises:
        ConfigMismatchError: the folder holds something else, or was begun with other arguments.
    """
    shards = _shards_of(folder)
    there = [each for each in [folder, *shards] if has_buffer(each)]
    remedy = "choose another folder" if shards else "choose another folder, or overwrite=True to replace the buffer"
    found = next((journal for each in there if (journal := read_journal(each)) is not None), None)
    if found is None:
        if there:
            raise ConfigMismatchError(f"{folder} holds a buffer that reobserve() did not make; {remedy}")
        return None
    if differing := [name for name in {**found.identity, **identity} if found.identity.get(name) != identity.get(name)]:
        name = differing[0]
        raise ConfigMismatchError(
            f"{folder} was begun with other arguments: {', '.join(differing)} (of {name!r}, stored is "
            f"{found.identity.get(name)!r:.200}, passed {identity.get(name)!r:.200}); pass the same ones, "
            f"{remedy}"
        )
    return found.counts


def check_one_piece(folder: Path) -> None:
    """Raise ConfigMismatchError where a folder has pieces of several processes, which nothing replaces as one."""
    if _shards_of(folder):
        raise ConfigMismatchError(
            f"{folder} holds what several processes observed, in {SHARDS}, and overwrite=True replaces one buffer; "
            "choose another folder, or delete this one"
        )


def _shards_of(folder: Path) -> list[Path]:
    return sorted((folder / SHARDS).glob("part-*")) if (folder / SHARDS).is_dir() else []


def done_in(piece: Piece, buffer: ReplayBuffer, left_out: Sequence[tuple[str, int, str]]) -> int:
    """How many episodes of a piece were observed or left out already: those up to the last one of them."""
    noted = {(uuid, episode) for uuid, episode, _ in left_out}
    noted |= set(zip(buffer.meta[SOURCE_BUFFER], buffer.meta[SOURCE_EPISODE].tolist(), strict=True))
    order = [(each.uuid, episode) for each in piece for episode in each.ids.tolist()]
    return max((place + 1 for place, each in enumerate(order) if each in noted), default=0)


def as_json(value: Mapping[str, Any]) -> dict[str, Any]:
    """An identity as it will be read again."""
    found: dict[str, Any] = json.loads(json.dumps(value, default=str))
    return found
