"""The folder: which files there are, the metadata that lists them, and how several change at once.

Files are replaced together in one way only (:func:`switch_files`): the new ones are written beside the old ones
under ``<name>.new``, the metadata that names them as pending is renamed into place, and from that moment they
count. Then they are renamed, and the metadata is written once more without the list. Whoever opens the folder in
between, or after the writer was killed in between, takes ``<name>.new`` where it is still there.
"""

from __future__ import annotations

import json
import math
import os
import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

from gym_replay.buffer.storage.counters import COUNTERS, CheckValueError
from gym_replay.buffer.storage.ragged import SPAN
from gym_replay.buffer.storage.records import CHECKSUM, CHECKSUMS, EPISODES, RecordFormat
from gym_replay.buffer.storage.reference_returns import (
    REFERENCE_RETURNS,
    ReferenceReturns,
    reference_from_json,
    reference_to_json,
)
from gym_replay.buffer.storage.strings import STRINGS, STRINGS_DTYPE
from gym_replay.cached import cached_property
from gym_replay.errors import (
    BufferNotFoundError,
    CorruptBufferError,
    FieldError,
    GymReplayError,
    UnsupportedFormatError,
)
from gym_replay.files.directory import Directory, Folder, exists_beneath, open_beneath
from gym_replay.files.documents import LARGEST, parse_json, size_fault
from gym_replay.files.folders import entries_beneath, is_too_deep
from gym_replay.files.lock import LOCK_NAME
from gym_replay.files.writing import replace_file
from gym_replay.schema.codecs import UnknownCodecError
from gym_replay.schema.fields import Field, default_from_json, default_to_json
from gym_replay.schema.names import check_distinct, check_field_name

METADATA = "metadata.json"
NEW = ".new"
FORMAT = "gym_replay"
FORMAT_VERSION = 1
RAGGED_FEATURE, TEXT_FEATURE, CODECS_FEATURE = "ragged", "strings", "codecs"
KNOWN_FEATURES = frozenset((RAGGED_FEATURE, TEXT_FEATURE, CODECS_FEATURE))

_CHECK = b',\n "crc32": '
_CHECK_VALUE = b"%d\n}"
_OWN = re.compile(
    rb'\{\n "format": "[^"]*",\n "format_version": \d+,\n "features": \[[^\]]*\],\n '
    rb'"uuid": "([0-9a-f]*)",\n "revision": (\d{1,18}),\n'
)
"""How the file begins, with the two entries that no other buffer of the schema has."""

STEPS = "steps"
"""The directory of the fields' files; all others lie beside it."""
LABELS = "labels.json"
"""Labels of episodes, which belong to whoever looked at them; see :mod:`~gym_replay.buffer.storage.labels`."""

TOP_FILES = (METADATA, COUNTERS, EPISODES, CHECKSUMS, STRINGS)

_LARGEST_RECORD = 1 << 26


@dataclass(frozen=True)
class Metadata:
    """What ``metadata.json`` says. ``revision`` grows with every change of the metadata or of the set of files.

    ``derived`` has the derived fields, whose values are not stored with an episode but computed later: episodes with
    lower ids than the number of the field have them.
    """

    fields: dict[str, Field]
    meta_fields: dict[str, Field]
    recorder_meta: tuple[str, ...] = ()
    derived: Mapping[str, int] = field(default_factory=dict)
    circular: bool = False
    max_episodes: int | None = None
    max_timesteps: int | None = None
    max_steps: int | None = None
    environment: dict[str, Any] | None = None
    reference_returns: ReferenceReturns | None = None
    uuid: str = field(default_factory=lambda: uuid.uuid4().hex)
    revision: int = 0
    pending: tuple[str, ...] = ()
    obsolete: tuple[str, ...] = ()

    @property
    def features(self) -> tuple[str, ...]:
        """What a reader must understand beyond the first page of the format."""
        fields = self.fields.values()
        used = (
            (RAGGED_FEATURE, any(info.ragged for info in fields)),
            (TEXT_FEATURE, bool(self.text_fields)),
            (CODECS_FEATURE, any(info.codec is not None for info in fields)),
        )
        return tuple(name for name, is_used in used if is_used)

    @cached_property
    def element_fields(self) -> list[str]:
        """The names of the fields whose rows are elements: of ragged fields, and of those with a codec."""
        return [name for name, info in self.fields.items() if info.has_elements]

    @cached_property
    def text_fields(self) -> list[str]:
        """The names of the meta fields that are strings."""
        return [name for name, info in self.meta_fields.items() if info.is_text]

    @cached_property
    def has_state(self) -> bool:
        """Whether an episode of T transitions takes T+1 rows."""
        return any(info.state for info in self.fields.values())

    @cached_property
    def record(self) -> RecordFormat:
        """How the record of an episode is encoded and checked."""
        return RecordFormat(self.meta_fields, self.uuid)

    def check_sizes(self) -> None:
        """Raise FieldError where the record of one episode, or the header of its table, would be too large."""
        nbytes = sum(info.nbytes for info in self.meta_fields.values())
        if nbytes > _LARGEST_RECORD:
            largest = max(self.meta_fields, key=lambda name: self.meta_fields[name].nbytes)
            raise FieldError(
                f"meta field {largest!r}: the meta fields of one episode take {nbytes} bytes, more than "
                f"{_LARGEST_RECORD}; store what is this large as a field of the steps"
            )
        _ = self.columns  # raises where the header of a table would be too long

    @property
    def table_capacity(self) -> int | None:
        """Slots of the episode table; None where it grows."""
        if not self.circular:
            return None
        return self.max_episodes if self.max_episodes is not None else self.max_steps

    @cached_property
    def columns(self) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]]:
        """Dtype and row shape of every array file but the counters, by path."""
        columns: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {}
        for name, info in self.fields.items():
            if info.has_elements:
                columns[spans_path(name)] = (SPAN, (2,))
            columns[paths_of(name, info)[-1]] = (info.stored.dtype, info.stored.shape)
        columns[EPISODES] = (self.record.dtype, ())
        columns[CHECKSUMS] = (CHECKSUM, (len(self.fields),))
        if self.text_fields:
            columns[STRINGS] = (STRINGS_DTYPE, ())
        return columns

    def rows_path(self, name: str) -> str:
        """Path of a field's file that has one entry per row."""
        return spans_path(name) if self.fields[name].has_elements else step_path(name)

    def paths_of(self, name: str) -> list[str]:
        """Paths of a field's files: its rows, or its spans and its elements."""
        return paths_of(name, self.fields[name])


@dataclass(frozen=True)
class Choice:
    """Which fields and meta fields of a buffer are shown, in this order.

    Attributes:
        fields, meta_fields: their names.
        recorder_meta: those of the meta fields that are the recorder's own.
    """

    fields: tuple[str, ...]
    meta_fields: tuple[str, ...]
    recorder_meta: tuple[str, ...] = ()

    def of(self, metadata: Metadata) -> Metadata:
        """The metadata with these fields only; those that a buffer has lost or never had are left out."""
        return replace(
            metadata,
            fields=(fields := {name: metadata.fields[name] for name in self.fields if name in metadata.fields}),
            derived={name: end for name, end in metadata.derived.items() if name in fields},
            meta_fields={name: metadata.meta_fields[name] for name in self.meta_fields if name in metadata.meta_fields},
            recorder_meta=tuple(name for name in self.recorder_meta if name in metadata.meta_fields),
        )

    @classmethod
    def all_of(cls, metadata: Metadata) -> Choice:
        """The whole schema."""
        return cls(tuple(metadata.fields), tuple(metadata.meta_fields), metadata.recorder_meta)


def step_path(name: str) -> str:
    """Path of a field's rows."""
    return f"steps/{name.replace('.', '/')}.npy"


def spans_path(name: str) -> str:
    """Path of the spans of a field that has elements."""
    return f"steps/{name.replace('.', '/')}.spans.npy"


def values_path(name: str) -> str:
    """Path of a field's elements."""
    return f"steps/{name.replace('.', '/')}.values.npy"


def paths_of(name: str, info: Field) -> list[str]:
    """Paths of a field's files: its rows, or its spans and its elements."""
    return [spans_path(name), values_path(name)] if info.has_elements else [step_path(name)]


def metadata_to_json(metadata: Metadata) -> dict[str, Any]:
    """The metadata as plain JSON values."""
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "features": list(metadata.features),
        "uuid": metadata.uuid,
        "revision": metadata.revision,
        "circular": metadata.circular,
        "max_episodes": metadata.max_episodes,
        "max_timesteps": metadata.max_timesteps,
        "max_steps": metadata.max_steps,
        "fields": [
            {
                **_field_to_json(name, info),
                "state": info.state,
                **({"derived": metadata.derived[name]} if name in metadata.derived else {}),
            }
            for name, info in metadata.fields.items()
        ],
        "meta_fields": [
            {**_field_to_json(name, info), "recorder": name in metadata.recorder_meta}
            for name, info in metadata.meta_fields.items()
        ],
        "environment": metadata.environment,
        **({REFERENCE_RETURNS: reference_to_json(found)} if (found := metadata.reference_returns) else {}),
        "pending": list(metadata.pending),
        "obsolete": list(metadata.obsolete),
    }


def _field_to_json(name: str, info: Field) -> dict[str, Any]:
    return {
        "name": name,
        "dtype": info.dtype_name,
        "shape": list(info.shape),
        "default": default_to_json(info.default),
        **({"ragged": True} if info.ragged else {}),
        **({"codec": info.codec} if info.codec is not None else {}),
    }


class DamagedMetadataError(CheckValueError):
    """The metadata can be read, but does not match its check value.

    Attributes:
        metadata: what it says.
    """

    def __init__(self, message: str, metadata: Metadata) -> None:
        super().__init__(message)
        self.metadata = metadata


class _Fault(Exception):
    """What is wrong with the metadata; becomes a CorruptBufferError that names the file."""


def _take(value: Mapping[str, Any], key: str, *types: type) -> Any:
    if key not in value:
        raise _Fault(f"{key!r} is missing")
    found = value[key]
    if type(found) not in types:
        raise _Fault(f"{key!r}: expected {' or '.join(t.__name__ for t in types)}, got {found!r:.60}")
    return found


def _take_limit(value: Mapping[str, Any], key: str) -> int | None:
    limit = _take(value, key, int, type(None))
    if limit is not None and not 1 <= limit < 1 << 62:
        raise _Fault(f"{key!r}: expected a positive number, got {str(limit)[:30]}")
    return limit  # type: ignore[no-any-return]


def _take_strings(value: Mapping[str, Any], key: str) -> tuple[str, ...]:
    found = _take(value, key, list)
    if not all(isinstance(item, str) for item in found):
        raise _Fault(f"{key!r}: expected strings")
    return tuple(found)


def _take_fields(value: Mapping[str, Any], key: str, flag: str) -> tuple[dict[str, Field], tuple[str, ...]]:
    fields: dict[str, Field] = {}
    flagged = []
    for entry in _take(value, key, list):
        if not isinstance(entry, dict):
            raise _Fault(f"{key!r}: expected objects")
        name = check_field_name(_take(entry, "name", str))
        if name in fields:
            raise _Fault(f"{key!r}: {name!r} is listed twice")
        shape = tuple(_take(entry, "shape", list))
        if len(shape) > 32 or any(type(size) is not int or not 0 <= size < 1 << 40 for size in shape):
            raise _Fault(f"{key!r}: shape {shape!r:.60} of {name!r}")
        if math.prod(max(size, 1) for size in shape) > 1 << 33:
            raise _Fault(f"{key!r}: one row of {name!r} would have over {1 << 33} values")
        is_flagged = _take(entry, flag, bool)
        default = default_from_json(entry.get("default"))
        if isinstance(default, list) and _count(default) != math.prod(shape):
            raise _Fault(f"{key!r}: the default of {name!r} has another shape than the field")
        ragged = "ragged" in entry and _take(entry, "ragged", bool)
        state = flag == "state" and is_flagged
        codec = _take(entry, "codec", dict) if "codec" in entry else None
        fields[name] = Field(_take(entry, "dtype", str), shape, default, state=state, ragged=ragged, codec=codec)
        has_elements = fields[name].has_elements
        if (has_elements or fields[name].is_text) and flag != ("state" if has_elements else "recorder"):
            raise _Fault(f"{key!r}: {name!r} cannot be of this kind")
        if is_flagged:
            flagged.append(name)
    check_distinct(fields)
    return fields, tuple(flagged)


def _take_derived(entries: list[dict[str, Any]]) -> dict[str, int]:
    """Up to which id the derived fields have values."""
    derived = {entry["name"]: _take(entry, "derived", int) for entry in entries if "derived" in entry}
    if wrong := [name for name, end in derived.items() if not 0 <= end < 1 << 48]:
        raise _Fault(f"'derived' of {wrong[0]!r}: expected the id of an episode")
    return derived


def _take_reference(value: Mapping[str, Any]) -> ReferenceReturns | None:
    """The reference returns, where there are any."""
    return reference_from_json(_take(value, REFERENCE_RETURNS, dict)) if REFERENCE_RETURNS in value else None


def _count(value: Any) -> int:
    """How many numbers there are in nested lists."""
    return sum(map(_count, value)) if isinstance(value, list) else 1


def metadata_from_json(value: Any, path: Path) -> Metadata:
    """The metadata of a JSON document that nobody vouches for.

    Raises:
        UnsupportedFormatError: a newer version of this package wrote it.
        CorruptBufferError: anything in it is missing or of the wrong kind.
    """
    try:
        if not isinstance(value, dict) or value.get("format") != FORMAT:
            raise _Fault("this is not the metadata of a gym_replay buffer")
        version = _take(value, "format_version", int)
        if version != FORMAT_VERSION:
            raise UnsupportedFormatError(
                f"{path}: format version {version}; this version of gym_replay reads version {FORMAT_VERSION}; "
                "pip install --upgrade gym-replay"
            )
        features = _take_strings(value, "features")
        if unknown := sorted(set(features) - KNOWN_FEATURES):
            names = ", ".join(f"{name!r:.60}" for name in unknown[:10])
            raise UnsupportedFormatError(
                f"{path}: the buffer uses {names}, unknown to this version of gym_replay; "
                "pip install --upgrade gym-replay"
            )
        fields, _ = _take_fields(value, "fields", "state")
        derived = _take_derived(value["fields"])
        meta_fields, recorder_meta = _take_fields(value, "meta_fields", "recorder")
        metadata = Metadata(
            fields=fields,
            meta_fields=meta_fields,
            recorder_meta=recorder_meta,
            derived=derived,
            circular=_take(value, "circular", bool),
            max_episodes=_take_limit(value, "max_episodes"),
            max_timesteps=_take_limit(value, "max_timesteps"),
            max_steps=_take_limit(value, "max_steps"),
            environment=_take(value, "environment", dict, type(None)),
            reference_returns=_take_reference(value),
            uuid=_take(value, "uuid", str),
            revision=_take(value, "revision", int),
            pending=_take_strings(value, "pending"),
            obsolete=_take_strings(value, "obsolete"),
        )
        if not 0 <= metadata.revision < 1 << 61:
            raise _Fault(f"'revision': expected a number from 0 on, got {str(metadata.revision)[:30]}")
        if not fields:
            raise _Fault("'fields': a buffer has at least one")
        if missing := set(metadata.features) - set(features):
            raise _Fault(f"'features': {sorted(missing)[0]!r} is missing")
        metadata.check_sizes()
        if metadata.circular and metadata.table_capacity is None:
            raise _Fault("'circular': needs max_episodes or max_steps")
        known = {*metadata.columns, COUNTERS}
        if unlisted := [path for path in metadata.pending if path not in known]:
            raise _Fault(f"'pending': {unlisted[0]!r:.200} is no file of this buffer")
        for old in metadata.obsolete:
            _check_obsolete(old)
            if old in known:
                raise _Fault(f"'obsolete': {old!r:.200} is a file of this buffer")
    except UnknownCodecError as error:
        raise UnsupportedFormatError(
            f"{path}: the buffer uses a {error}; this version of gym_replay knows no other; "
            "pip install --upgrade gym-replay"
        ) from None
    except (_Fault, FieldError) as fault:
        raise CorruptBufferError(f"{path}: {fault}") from None
    return metadata


def _check_obsolete(relative: str) -> None:
    if relative == STRINGS:
        return
    room, _, rest = relative.partition("/")
    name = rest.removesuffix(".npy").removesuffix(".spans").removesuffix(".values").replace("/", ".")
    if room != "steps" or not rest.endswith(".npy"):
        raise _Fault(f"'obsolete': {relative!r:.200} is no path of a buffer")
    check_field_name(name)


def read_metadata_bytes(folder: Folder) -> bytes:
    """The bytes of ``metadata.json``.

    Raises:
        BufferNotFoundError: there is no such file.
        CorruptBufferError: it is no plain file, or far too large.
    """
    try:
        descriptor = open_beneath(folder, METADATA, os.O_RDONLY)
    except (FileNotFoundError, NotADirectoryError):
        raise BufferNotFoundError(
            2, f"no buffer here ({METADATA} is missing); check the path, or pass fields=... to create one", str(folder)
        ) from None
    with os.fdopen(descriptor, "rb") as stream:
        return stream.read(LARGEST + 1)


def parse_metadata(content: bytes, folder: Folder) -> Metadata:
    """The metadata in the bytes of ``metadata.json``; raises as :func:`metadata_from_json` does."""
    body, _, check = content.rpartition(_CHECK)
    is_sound = check == _CHECK_VALUE % crc32(body)
    if is_sound and (own := _OWN.match(body)):
        with suppress(ValueError, GymReplayError):  # which are raised again below, where the file is named
            shared = _parsed(body[: own.start(1)] + body[own.end(1) : own.start(2)] + b"0" + body[own.end(2) :])
            return replace(shared, uuid=own[1].decode(), revision=int(own[2]))
    path = folder / METADATA
    try:
        value = parse_json(content)
    except ValueError as error:
        raise CorruptBufferError(f"{path}: {error}") from None
    metadata = metadata_from_json(value, path)
    if not is_sound:
        raise DamagedMetadataError(
            f"{path}: it does not match its check value: it was damaged, or changed by hand. "
            "check_buffer(folder, repair=True) accepts it where all files are what it says",
            metadata,
        )
    return metadata


@lru_cache(maxsize=16)
def _parsed(body: bytes) -> Metadata:
    """Metadata without its check value: a thousand folders that are read as one mostly share all but these two."""
    return metadata_from_json(parse_json(body + b"\n}"), Path(METADATA))


def read_metadata(folder: Folder) -> Metadata:
    """Read and check ``metadata.json``."""
    return parse_metadata(read_metadata_bytes(folder), folder)


def encode_metadata(metadata: Metadata) -> bytes:
    """The bytes of ``metadata.json``; the last entry is the CRC-32 of all that comes before it."""
    return sign_json(metadata_to_json(metadata))


def sign_json(value: Mapping[str, Any]) -> bytes:
    """A JSON object with the check value of ``metadata.json`` behind its other entries."""
    body = json.dumps(value, allow_nan=False, indent=1).encode().removesuffix(b"\n}")
    return body + _CHECK + _CHECK_VALUE % crc32(body)


def write_metadata(folder: Directory, metadata: Metadata) -> None:
    """Put ``metadata.json`` in place: written under another name, synced, renamed."""
    content = encode_metadata(metadata)
    if fault := size_fault(content):
        raise FieldError(f"{folder / METADATA}: the description of the buffer is too large ({fault}); use fewer fields")
    replace_file(folder, METADATA, METADATA + NEW, content)


def switch_files(
    folder: Directory, metadata: Metadata, paths: Sequence[str], *, obsolete: Iterable[str] = (), sync: bool = True
) -> Metadata:
    """Make ``metadata`` and the files written under ``<path>.new`` count, together; remove the obsolete ones.

    Args:
        sync: have the files on the disk before the metadata says so. Where they are not, a power loss may leave a
            folder that cannot be opened, so only those without content go without.

    Returns:
        The metadata as it stands afterwards.
    """
    marked = replace(metadata, revision=metadata.revision + 1, pending=tuple(paths), obsolete=tuple(obsolete))
    if sync:
        folder.sync_files(path + NEW for path in paths)
        folder.sync_parents(paths)
    write_metadata(folder, marked)
    return finish_switch(folder, marked)


def finish_switch(folder: Directory, metadata: Metadata) -> Metadata:
    """Carry a switch of files to its end; also after the process that began it was killed."""
    if not metadata.pending and not metadata.obsolete:
        return metadata
    for path in metadata.pending:
        folder.rename(path + NEW, path.rpartition("/")[2], missing_ok=True)
    for path in metadata.obsolete:
        folder.unlink(path)
        folder.remove_empty_parents(path)
    # Whoever finds the settled metadata removes what is still called <path>.new.
    folder.sync_parents((*metadata.pending, *metadata.obsolete))
    settled = replace(metadata, revision=metadata.revision + 1, pending=(), obsolete=())
    write_metadata(folder, settled)
    return settled


def remove_leftovers(folder: Directory) -> None:
    """Remove files that were prepared under a new name by a process that was killed before they counted.

    The caller holds the lock and has finished the switch that may have been under way.
    """
    for path in folder.files(STEPS):
        if path.endswith(".npy" + NEW):
            folder.unlink(path)
    for name in TOP_FILES:
        folder.unlink(name + NEW)


def current_path(folder: Folder, metadata: Metadata, path: str) -> str:
    """The path under which a file's present content lies."""
    return path + NEW if path in metadata.pending and exists_beneath(folder, path + NEW) else path


def foreign_files(folder: Path) -> list[str]:
    """Files in a folder without metadata that no interrupted creation can have left there."""
    found = []
    for relative, entry in entries_beneath(folder):
        prepared = relative in (LOCK_NAME, *(name + NEW for name in TOP_FILES))
        in_room = relative.partition("/")[0] == STEPS
        made = relative.endswith(".npy" + NEW) or entry.is_dir(follow_symlinks=False)
        if not (prepared or (in_room and made)) or entry.is_symlink() or is_too_deep(relative):
            found.append(relative)
    return sorted(found)
