"""JSON in a folder, parsed as if a stranger had written it: of bounded size, depth and number of parts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gym_replay.errors import CorruptBufferError

LARGEST = 1 << 24
_DEEPEST = 60
_MOST_CONTAINERS = 200_000
_MOST_MEMBERS = 500_000


def size_fault(content: bytes) -> str | None:
    """Why a document is too large to be parsed, if it is. Each list and object takes far more memory than text."""
    if len(content) > LARGEST:
        return f"larger than {LARGEST} bytes"
    if (found := content.count(b"[") + content.count(b"{")) > _MOST_CONTAINERS:
        return f"{found} brackets and braces, expected {_MOST_CONTAINERS} at most"
    if (found := content.count(b":")) > _MOST_MEMBERS:
        return f"{found} colons, expected {_MOST_MEMBERS} at most"
    return None


def parse_json(content: bytes, *, finite: bool = True) -> Any:
    """The value of a JSON document.

    Args:
        content: the document.
        finite: whether ``NaN`` and ``Infinity``, which are no JSON but which Python writes, are refused.

    Raises:
        ValueError: it is too large, nested too deep, or no valid JSON.
    """
    if fault := size_fault(content):
        raise ValueError(fault)
    constant = _refuse_constant if finite else None
    try:
        value = json.loads(content.decode("utf-8"), object_pairs_hook=_unique_object, parse_constant=constant)
    except (ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"not valid JSON ({error})") from None
    if _depth(value) > _DEEPEST:
        raise ValueError(f"nested deeper than {_DEEPEST} levels")
    return value


def read_object(content: bytes, path: Path) -> dict[str, Any]:
    """The JSON object that is a file's content, in which numbers may be infinite or NaN.

    Raises:
        CorruptBufferError: it is none, or too large.
    """
    try:
        found = parse_json(content, finite=False)
    except ValueError as error:
        raise CorruptBufferError(f"{path}: {error}") from None
    if not isinstance(found, dict):
        raise CorruptBufferError(f"{path}: expected an object of JSON, got {found!r:.60}")
    return found


def object_of_file(path: Path) -> dict[str, Any]:
    """The JSON object in a file, as :func:`read_object` gives it; no more of the file is read than may be in one.

    Raises:
        CorruptBufferError: it is none, or too large.
    """
    with open(path, "rb") as file:
        return read_object(file.read(LARGEST + 1), path)


def _unique_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a name appears twice in one object")
    return value


def _refuse_constant(text: str) -> Any:
    raise ValueError(f"{text} is no JSON number")


def _depth(value: Any) -> int:
    """How deep objects and lists are nested, counted without recursion."""
    depth, level = 0, [value]
    while level := [item for item in level if isinstance(item, (dict, list))]:
        depth += 1
        level = [inner for item in level for inner in (item.values() if isinstance(item, dict) else item)]
    return depth
