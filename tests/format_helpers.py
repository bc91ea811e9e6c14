"""The format's check values and tables, read and written here as docs/format.md says and not by the package."""

from __future__ import annotations

import json
import uuid
import zlib
from binascii import crc_hqx
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

COUNTERS = ("revision", "base", "first", "next", "summed", "deletions")
_CHECK = b',\n "crc32": '


def sign(content: bytes) -> bytes:
    """A JSON object with the check value behind its other entries, instead of one that may be there."""
    body = content.rpartition(_CHECK)[0] or content.rstrip().removesuffix(b"}")
    return body + _CHECK + b"%d\n}" % zlib.crc32(body)


def read_metadata(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metadata.json").read_bytes())


def write_metadata(folder: Path, value: dict[str, Any]) -> None:
    value = {key: item for key, item in value.items() if key != "crc32"}
    (folder / "metadata.json").write_bytes(sign(json.dumps(value, indent=1).encode()))


def change_metadata(folder: Path, **values: Any) -> None:
    write_metadata(folder, read_metadata(folder) | values)


def as_of_a_recorder(folder: Path, names: Collection[str]) -> None:
    """Mark meta fields as a recorder's own."""
    meta_fields = read_metadata(folder)["meta_fields"]
    for info in meta_fields:
        info["recorder"] = info["name"] in names
    change_metadata(folder, meta_fields=meta_fields)


def uuid_of(folder: Path) -> str:
    return read_metadata(folder)["uuid"]


def counter_word(uuid: str, name: str, value: int) -> int:
    """A counter with its check value: any number, so that a stranger's can be made too."""
    value &= (1 << 48) - 1
    seed = zlib.crc32(f"{uuid}/{name}".encode("utf-8", "surrogatepass")) & 0xFFFF
    return crc_hqx(value.to_bytes(6, "little"), seed) << 48 | value


def read_counters(folder: Path, name: str = "commit.npy") -> dict[str, int]:
    """The counters by name, each compared with its check value."""
    words = np.load(folder / name, allow_pickle=False).tolist()
    values = {counter: word & ((1 << 48) - 1) for counter, word in zip(COUNTERS, words, strict=True)}
    identity = uuid_of(folder)
    assert words == [counter_word(identity, counter, value) for counter, value in values.items()]
    return values


def write_counters(folder: Path, **values: int) -> None:
    """Store counters, with check values that agree."""
    words, identity = np.load(folder / "commit.npy", mmap_mode="r+"), uuid_of(folder)
    for name, value in values.items():
        words[COUNTERS.index(name)] = counter_word(identity, name, value)
    words.flush()


def records(folder: Path) -> np.memmap:
    """The table of episodes, to be written to."""
    return np.load(folder / "episodes.npy", mmap_mode="r+")


def record_crc(record: np.ndarray, uuid: str) -> int:
    """The check value of a record, ``(1,)``."""
    return zlib.crc32(record.tobytes()[:-4]) ^ zlib.crc32(uuid.encode("utf-8", "surrogatepass"))


def change_record(folder: Path, slot: int, **values: Any) -> None:
    """Change a record, and give it the check value that goes with it."""
    table = records(folder)
    for name, value in values.items():
        table[name][slot] = value
    table["crc"][slot] = record_crc(table[slot : slot + 1], uuid_of(folder))
    table.flush()


def another_uuid(folder: Path) -> None:
    """Make a copied folder a buffer of its own: another uuid, and the check values that go with it."""
    counters = read_counters(folder)
    change_metadata(folder, uuid=uuid.uuid4().hex)
    write_counters(folder, **counters)
    for slot in range(len(records(folder))):
        change_record(folder, slot)


def step_path(name: str) -> str:
    """Path of a field's rows."""
    return f"steps/{name.replace('.', '/')}.npy"


def spans_path(name: str) -> str:
    """Path of the spans of a ragged field's rows."""
    return f"steps/{name.replace('.', '/')}.spans.npy"


def values_path(name: str) -> str:
    """Path of a ragged field's elements."""
    return f"steps/{name.replace('.', '/')}.values.npy"


def paths_of(folder: Path) -> list[str]:
    """The paths of all array files but the counters."""
    metadata = read_metadata(folder)
    paths = ["episodes.npy", "checksums.npy"]
    for field in metadata["fields"]:
        name = field["name"]
        paths += [spans_path(name), values_path(name)] if field.get("ragged") else [step_path(name)]
    if any(field["dtype"] == "str" for field in metadata["meta_fields"]):
        paths.append("strings.npy")
    return paths


def current_path(folder: Path, path: str) -> str:
    """Where the content of a file lies while a change of several files is under way."""
    is_new = path in read_metadata(folder)["pending"] and (folder / f"{path}.new").exists()
    return f"{path}.new" if is_new else path
