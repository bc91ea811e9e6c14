"""Labels of episodes: what somebody who looked at them says of them, in ``labels.json`` beside a buffer's files.

A label is a short text, such as ``good``, of one episode. The file belongs to whoever looks, and not to the buffer:
writing it needs no lock and changes nothing of the data. Each label is kept under the buffer's uuid and the episode's
id, so that it stays with its episode whatever is recorded, deleted or evicted, and is nobody's where another buffer was
created in the folder.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gym_replay.buffer.storage.layout import LABELS as FILE
from gym_replay.buffer.storage.reader import Snapshot
from gym_replay.errors import CorruptBufferError, FieldError, StorageError, printable
from gym_replay.files.directory import Directory, open_beneath
from gym_replay.files.documents import LARGEST, parse_json, size_fault
from gym_replay.files.garbage import Descriptor
from gym_replay.files.writing import replace_file

LABEL = "label"
"""The name under which conditions see labels, and that of the meta field that they become."""

LONGEST_LABEL = 200

_FORMAT = {"format": "gym_replay labels", "version": 1}
_LOCK = f"{FILE}.lock"
_ATTEMPTS = 10_000
_changing = threading.RLock()
os.register_at_fork(before=_changing.acquire, after_in_parent=_changing.release, after_in_child=_changing.release)


def read_labels(folder: Path, uuid: str) -> dict[int, str]:
    """The labels of a buffer by the ids of their episodes; empty where there is no file.

    Raises:
        CorruptBufferError: the file holds something else; the message says what to do.
    """
    return _labels_of(_read(folder), uuid)


def set_labels(folder: Path, uuid: str, labels: Mapping[int, str | None]) -> None:
    """Give episodes a label, instead of the one that they have.

    The file is read anew and replaced whole, so that what another process has written before is kept.

    Args:
        folder: the buffer's.
        uuid: the buffer's.
        labels: by the ids of the episodes; texts of up to 200 characters, or None where the file is to say nothing.
            An empty text says that there is no label, whatever the meta field ``label`` says.

    Raises:
        FieldError: a label is no such text, or there is no room for more.
        CorruptBufferError: the file holds something else; it is left as it is.
        StorageError: the folder cannot be written to.
    """
    checked = {int(episode): None if text is None else _checked(text) for episode, text in labels.items()}
    with _changing, Directory(folder) as directory, _alone(directory):
        found = _read(folder)
        changed = {**_labels_of(found, uuid), **checked}
        kept = {str(episode): text for episode, text in sorted(changed.items()) if text is not None}
        content = json.dumps({**_FORMAT, "labels": {**found, uuid: kept}}, indent=1).encode()
        if fault := size_fault(content):
            raise FieldError(f"{folder / FILE}: there is no room for more labels ({fault}); make a meta field of them")
        replace_file(directory, FILE, f"{FILE}.new", content)


@contextmanager
def _alone(folder: Directory) -> Iterator[None]:
    """Wait until no other process changes the labels, and let none begin: each of them locks a file meanwhile."""
    lock = _locked(folder)
    try:
        yield
    finally:
        with suppress(StorageError):  # an empty file is left
            folder.unlink(_LOCK)
        lock.close()


def _locked(folder: Directory) -> Descriptor:
    for _ in range(_ATTEMPTS):
        lock = Descriptor(folder.open(_LOCK, os.O_RDWR | os.O_CREAT))
        with suppress(OSError):  # not every file system can lock
            fcntl.flock(lock.number, fcntl.LOCK_EX)
        if folder.has(_LOCK, lock.number):  # otherwise whoever had it has removed it
            return lock
        lock.close()
    raise StorageError(errno.EBUSY, "other processes change the labels; nothing was changed", str(folder / _LOCK))


def _checked(text: str) -> str:
    if not isinstance(text, str):
        raise FieldError(f"label {text!r:.60}: expected a text")
    text = printable(" ".join(text.split()))
    if len(text) > LONGEST_LABEL:
        raise FieldError(f"label {text[:30]!r}...: expected at most {LONGEST_LABEL} characters, got {len(text)}")
    return text


def _read(folder: Path) -> dict[str, Any]:
    """What the file holds, by uuid."""
    try:
        with os.fdopen(open_beneath(folder, FILE, os.O_RDONLY), "rb") as stream:
            document = parse_json(stream.read(LARGEST + 1))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise CorruptBufferError(f"{folder / FILE}: {error}; {_REMEDY}") from None
    labels = document.get("labels") if isinstance(document, dict) and _FORMAT.items() <= document.items() else None
    if not isinstance(labels, dict):
        raise CorruptBufferError(f"{folder / FILE}: expected labels of version {_FORMAT['version']}; {_REMEDY}")
    return labels


_REMEDY = "move the file away, and label the episodes anew"


def _labels_of(found: Mapping[str, Any], uuid: str) -> dict[int, str]:
    """Those of one buffer; what is no label is left out."""
    labels = found.get(uuid)
    if not isinstance(labels, dict):
        return {}
    return {
        int(episode): printable(text)
        for episode, text in labels.items()
        if isinstance(text, str) and len(text) <= LONGEST_LABEL and re.fullmatch(r"[0-9]{1,18}", episode)
    }


def labels_of(part: Snapshot) -> npt.NDArray[Any]:
    """The label of each episode, an array of strings ``(episodes,)``; empty where there is none.

    Where the buffer has a meta field of strings that is called ``label``, its values count for episodes that the file
    has no label of.
    """
    info = part.metadata.meta_fields.get(LABEL)
    labels = part.meta(LABEL) if info is not None and info.is_text else np.full(len(part), "", object)
    given = read_labels(part.reader.folder, part.metadata.uuid)
    if given:
        ids = np.array(list(given), np.int64)
        places = np.searchsorted(part.ids, ids)  # ids ascend
        there = np.flatnonzero(places < len(part))
        there = there[part.ids[places[there]] == ids[there]]
        texts = np.array(list(given.values()), object)
        labels[places[there]] = texts[there]
    return labels
