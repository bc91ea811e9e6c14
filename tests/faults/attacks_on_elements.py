"""Attacks on what varies in size: spans and elements of ragged fields, strings of meta fields, and their metadata."""

from __future__ import annotations

import functools
import os
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from format_helpers import records, spans_path, values_path

from .attacks_on_files import encode_header, sizes_text
from .attacks_on_metadata import HOSTILE_VALUES, load, save
from .attacks_on_records import forge, slot_of
from .victims import Attacks, Site, Victim

NUMBERS = (-1, -(2**63), 0, 1, 3, 2**31, 2**32, 2**40, 2**59, 2**60 - 1, 2**60, 2**62, 2**63 - 1)
ENDLESS = 1 << 40


def _column(site: Site, path: str) -> np.memmap:
    return np.load(site.folder / path, mmap_mode="r+")


def _rows(site: Site, at: int) -> slice:
    """The rows of the live episode at a place, row T included."""
    record = records(site.folder)[slot_of(site, site.victim.live[at])]
    start, length = int(record["start"]), int(record["length"])
    return slice(start, start + length + 1)


# --- spans ---


def _set_span(site: Site, name: str, at: int, row: int, which: int, value: int, *, more: bool = False) -> None:
    spans = _column(site, spans_path(name))[_rows(site, at)]
    with np.errstate(over="ignore"):
        spans[row, which] = spans[row, which] + np.int64(value) if more else value


def _change_spans(site: Site, name: str, at: int, change: Callable[[np.ndarray, int], Any]) -> None:
    """Give an episode other spans; ``change`` takes those it has and how many elements the file has."""
    held = len(_column(site, values_path(name)))
    rows = _rows(site, at)
    spans = _column(site, spans_path(name))
    spans[rows] = change(np.array(spans[rows]), held)


def _grow(site: Site, name: str, count: int) -> None:
    """Make the elements' file as long as that: sparse, and sound in itself."""
    path = site.folder / values_path(name)
    elements = np.load(path, mmap_mode="r")
    offset, width = elements.offset, elements.itemsize * int(np.prod(elements.shape[1:]))
    header = encode_header(repr(elements.dtype.str), "False", sizes_text(elements.shape[1:], count))
    assert len(header) == offset
    with path.open("r+b") as stream:
        stream.write(header)
    os.truncate(path, offset + count * width)


def _sparse(site: Site, name: str, at: int, count: int, change: Callable[[np.ndarray, int], Any]) -> None:
    site.endless = count >= ENDLESS
    _grow(site, name, count)
    _change_spans(site, name, at, change)


def _all_whole(spans: np.ndarray, held: int) -> np.ndarray:
    return np.stack((np.zeros(len(spans), np.int64), np.full(len(spans), held)), axis=1)


def _last_is_long(spans: np.ndarray, held: int) -> np.ndarray:
    """Still one row after another: only the checksum tells."""
    spans[-1, 1] = held - spans[-1, 0]
    return spans


def _first_is_long(spans: np.ndarray, held: int) -> np.ndarray:
    spans[0] = 0, held
    return spans


def _follow(spans: np.ndarray, held: int) -> np.ndarray:
    """All of the file's elements in equal parts."""
    part = held // len(spans)
    return np.stack((np.arange(len(spans)) * part, np.full(len(spans), part)), axis=1)


def _negative_total(spans: np.ndarray, held: int) -> np.ndarray:
    """The episode ends before it begins."""
    spans[0, 0], spans[-1] = held, (0, 0)
    return spans


CHANGES: dict[str, Callable[[np.ndarray, int], Any]] = {
    "reversed": lambda spans, held: spans[::-1],
    "two rows swapped": lambda spans, held: spans[[1, 0, *range(2, len(spans))]],
    "the first again": lambda spans, held: spans[:1],
    "all of the file in each": _all_whole,
    "all of the file in equal parts": _follow,
    "all at 0": lambda spans, held: spans * [0, 1],
    "all empty": lambda spans, held: spans * [1, 0],
    "all empty at the end": lambda spans, held: [held, 0],
    "all empty past the end": lambda spans, held: [held + 1, 0],
    "all empty far away": lambda spans, held: [2**60 - 1, 0],
    "all zero": lambda spans, held: 0,
    "all past the end": lambda spans, held: spans + [held, 0],
    "one on": lambda spans, held: spans + [1, 0],
    "one back": lambda spans, held: spans - [1, 0],
    "to the end": lambda spans, held: spans + [held - int(spans[-1].sum()), 0],
    "to the beginning": lambda spans, held: spans - [int(spans[0, 0]), 0],
    "one over the end": lambda spans, held: spans + [held - int(spans[-1].sum()) + 1, 0],
    "overlapping by one": lambda spans, held: spans + np.stack((-np.arange(len(spans)), np.ones(len(spans))), 1),
    "with gaps": lambda spans, held: spans + np.stack((np.arange(len(spans)), np.zeros(len(spans))), 1),
    "the last is long": _last_is_long,
    "the first is long": _first_is_long,
    "an end before the beginning": _negative_total,
    "sums past int64": lambda spans, held: 2**62,
    "sums that are negative": lambda spans, held: [2**63 - 1, 2**63 - 1],
    "numbers that cancel out": lambda spans, held: [[-(2**62), 2**62]] * len(spans),
}


def _take_from(site: Site, name: str, at: int, other: int) -> None:
    """An episode with the elements of another one."""
    mine, theirs = _rows(site, at), _rows(site, other)
    spans = _column(site, spans_path(name))
    count = min(mine.stop - mine.start, theirs.stop - theirs.start)
    spans[mine.start : mine.start + count] = np.array(spans[theirs.start : theirs.start + count])


def _exchange(site: Site, name: str, one: int, other: int) -> None:
    rows, others = _rows(site, one), _rows(site, other)
    spans = _column(site, spans_path(name))
    count = min(rows.stop - rows.start, others.stop - others.start)
    first, second = slice(rows.start, rows.start + count), slice(others.start, others.start + count)
    spans[first], spans[second] = np.array(spans[second]), np.array(spans[first])


def _random_spans(site: Site, name: str) -> None:
    for at in range(len(site.victim.live)):
        if site.random.random() < 0.6:
            rows = _rows(site, at)
            held = len(_column(site, values_path(name)))
            spans = _column(site, spans_path(name))
            for row in range(rows.start, rows.stop):
                spans[row] = site.random.randrange(held + 2), site.random.randrange(4)


def _as_ragged(site: Site, change: Callable[[Site, dict], None]) -> None:
    metadata = load(site)
    change(site, metadata)
    save(site, metadata)


def _entry_of(metadata: dict, name: str) -> dict:
    return next(entry for key in ("fields", "meta_fields") for entry in metadata[key] if entry["name"] == name)


def _set_entry(site: Site, metadata: dict, name: str, **values: Any) -> None:
    _entry_of(metadata, name).update(values)


def _ragged_action(site: Site, metadata: dict) -> None:
    """A plain field said to be ragged, with files of another field in the place of its own."""
    for path_of in (spans_path, values_path):
        (site.folder / path_of("action")).write_bytes((site.folder / path_of("words")).read_bytes())
    _set_entry(site, metadata, "action", ragged=True, dtype="uint8", state=True)
    site.forged = True


def _plain_words(site: Site, metadata: dict) -> None:
    """A ragged field said to be plain, whose file is that of another one."""
    (site.folder / "steps/words.npy").write_bytes((site.folder / "steps/action.npy").read_bytes())
    _set_entry(site, metadata, "words", ragged=False, dtype="int64")
    site.forged = True


def _same_values(site: Site, metadata: dict) -> None:
    """Two ragged fields, one of which has the other's spans."""
    (site.folder / spans_path("points")).write_bytes((site.folder / spans_path("words")).read_bytes())


def elements(victim: Victim) -> Attacks:
    if spans_path("words") not in victim.arrays:
        return
    ends = (0, 1, len(victim.live) - 1)
    for name in ("words", "points"):
        for at in ends:
            for row in (0, 1, -2, -1):
                for which, what in enumerate(("first", "number")):
                    label = f"{name}, {what} in row {row} of {at}"
                    for value in NUMBERS:
                        yield (
                            f"{label} = {value}",
                            functools.partial(_set_span, name=name, at=at, row=row, which=which, value=value),
                        )
                    for value in (1, -1, 5, -5, 100, 2**62):
                        yield (
                            f"{label} + {value}",
                            functools.partial(
                                _set_span, name=name, at=at, row=row, which=which, value=value, more=True
                            ),
                        )
            for label, change in CHANGES.items():
                yield f"{name} of {at} {label}", functools.partial(_change_spans, name=name, at=at, change=change)
            for count in (1 << 20, 1 << 22, 1 << 29, ENDLESS):
                for change in (_all_whole, _last_is_long, _first_is_long, _follow):
                    yield (
                        f"{name} of {at}, {count} sparse elements {change.__name__}",
                        functools.partial(_sparse, name=name, at=at, count=count, change=change),
                    )
        for one, other in ((0, 1), (1, 0), (0, -1), (-1, 0)):
            yield (
                f"{name}, elements of {other} for {one}",
                functools.partial(_take_from, name=name, at=one, other=other),
            )
            yield f"{name}, {one} and {other} exchanged", functools.partial(_exchange, name=name, one=one, other=other)
        for number in range(15):
            yield f"{name}, spans at random, {number}", functools.partial(_random_spans, name=name)
    changes: dict[str, Callable[[Site, dict], None]] = {
        f"{name} ragged = {label}": functools.partial(_set_entry, name=name, ragged=value)
        for name in ("words", "action", "number", "task")
        for label, value in HOSTILE_VALUES.items()
        if label in ("None", "True", "False", "0", "1", "text 'x'", "[]", "{}", "0.5")
    }
    changes |= {
        "a plain field with the files of a ragged one": _ragged_action,
        "a ragged field with the file of a plain one": _plain_words,
        "the spans of another field": _same_values,
        "no features": lambda site, metadata: metadata.update(features=[]),
        "feature ragged missing": lambda site, metadata: metadata.update(features=["strings"]),
        "feature strings missing": lambda site, metadata: metadata.update(features=["ragged"]),
        "features twice": lambda site, metadata: metadata.update(features=metadata["features"] * 2),
        "elements of no bytes": functools.partial(_set_entry, name="words", shape=[0]),
        "elements of another shape": functools.partial(_set_entry, name="points", shape=[1, 2]),
        "huge elements": functools.partial(_set_entry, name="words", shape=[1 << 33]),
        "a default": functools.partial(_set_entry, name="words", default=0),
        "a list for a default": functools.partial(_set_entry, name="points", default=[[0, 1]]),
        "an empty default": functools.partial(_set_entry, name="words", default=[]),
        "another dtype": functools.partial(_set_entry, name="words", dtype="bool"),
        "strings in a ragged field": functools.partial(_set_entry, name="words", dtype="str"),
    }
    for label, change in changes.items():
        yield label, functools.partial(_as_ragged, change=change)


# --- strings ---

HEAD = struct.Struct("<II")


def _put_place(site: Site, at: int, name: str, place: int, *, more: bool = False) -> None:
    """Let a record point elsewhere, with a check value that agrees."""
    site.forged = True
    episode = site.victim.live[at]
    now = int(records(site.folder)[name][slot_of(site, episode)])
    forge(site, episode, **{name: now + place if more else place})


def _from_end(site: Site, at: int, name: str, distance: int) -> None:
    _put_place(site, at, name, len(_column(site, "strings.npy")) - distance)


def _first_place(site: Site) -> int:
    places = np.load(site.folder / "episodes.npy")["note"]
    return int(places[places >= 0].min())


def _change_string(site: Site, change: Callable[[bytes], bytes]) -> None:
    """Write something else where a string lies."""
    site.forged = True
    place = _first_place(site)
    strings = _column(site, "strings.npy")
    size, _ = HEAD.unpack(strings[place : place + HEAD.size].tobytes())
    content = change(strings[place : place + HEAD.size + size].tobytes())
    strings[place : place + len(content)] = np.frombuffer(content, np.uint8)[: len(strings) - place]


def _with_content(content: bytes) -> Callable[[bytes], bytes]:
    """A string in the place of one that is no shorter, with its check value."""

    def change(old: bytes) -> bytes:
        assert len(content) <= len(old) - HEAD.size
        return HEAD.pack(len(content), zlib.crc32(content)) + content

    return change


def _append(site: Site, content: bytes) -> int:
    """Write bytes behind the strings; returns their place."""
    path = site.folder / "strings.npy"
    strings = np.load(path)
    np.save(path, np.concatenate((strings, np.frombuffer(content, np.uint8))))
    return len(strings)


def _inside(site: Site) -> None:
    """A string inside another one, which reaches further."""
    inner = HEAD.pack(2, zlib.crc32(b"in")) + b"in"
    outer = b"before " + inner + b" and behind, as far as this"
    place = _append(site, HEAD.pack(len(outer), zlib.crc32(outer)) + outer)
    _put_place(site, 0, "note", place)
    _put_place(site, 1, "note", place + HEAD.size + 7)


def _long(site: Site, size: int, crc: int | None = None) -> None:
    """A string of zeros in a sparse file."""
    content = HEAD.pack(size & 0xFFFFFFFF, zlib.crc32(bytes(size)) if crc is None else crc)
    place = _append(site, content)
    offset = site.victim.header["strings.npy"]
    path = site.folder / "strings.npy"
    count = place + HEAD.size + size
    header = encode_header("'|u1'", "False", sizes_text((), count))
    assert len(header) == offset
    with path.open("r+b") as stream:
        stream.write(header)
    os.truncate(path, offset + count)
    _put_place(site, 0, "note", place)


def _all_point_to(site: Site, content: bytes) -> None:
    place = _append(site, HEAD.pack(len(content), zlib.crc32(content)) + content)
    for at in range(len(site.victim.live)):
        _put_place(site, at, "note", place)
        _put_place(site, at, "task", place)


CONTENTS = {
    "no UTF-8": b"\xff\xfe\x00",
    "UTF-8 that ends too early": "\u2603".encode()[:2],
    "UTF-8 that is too long": b"\xc0\x80\xe0\x80\xaf",
    "past Unicode": b"\xf4\x90\x80\x80",
    "a lone surrogate": b"\xed\xb3\xbf",
    "zeros": bytes(9),
    "escapes": b"\x1b[31m\n\r",
    "nothing": b"",
}


def strings(victim: Victim) -> Attacks:
    if "strings.npy" not in victim.arrays:
        return
    for name in ("task", "note"):
        for at in (1, len(victim.live) - 1):
            for place in (*NUMBERS, -2, -8, -(2**31)):
                yield f"{name} of {at} at {place}", functools.partial(_put_place, at=at, name=name, place=place)
            for place in (-1, 1, 4, 8, 11):
                yield (
                    f"{name} of {at} {place} on",
                    functools.partial(_put_place, at=at, name=name, place=place, more=True),
                )
            for distance in (-1, 0, 1, 7, 8, 9):
                yield (
                    f"{name} of {at}, {distance} before the end",
                    functools.partial(_from_end, at=at, name=name, distance=distance),
                )
    for size in (0, 1, 2**16, 2**26, 2**26 + 1, 2**31 - 1, 2**31, 2**32 - 1):
        yield (
            f"a length of {size}",
            functools.partial(_change_string, change=lambda old, n=size: n.to_bytes(4, "little") + old[4:]),
        )
    yield "a wrong check value", functools.partial(_change_string, change=lambda old: old[:4] + b"\x00\x01\x02\x03")
    yield "another letter", functools.partial(_change_string, change=lambda old: old[:9] + b"Z" + old[10:])
    for label, content in CONTENTS.items():
        yield f"a string of {label}", functools.partial(_change_string, change=_with_content(content))
        yield f"all strings of {label}", functools.partial(_all_point_to, content=content)
    yield "a string inside another", _inside
    for size in (1 << 16, 1 << 24, 1 << 26, (1 << 26) + 1, 1 << 30):
        yield f"{size} zeros for a string", functools.partial(_long, size=size)
    yield "a terabyte for a string", functools.partial(_long, size=1 << 40, crc=0)
    changes: dict[str, Callable[[Site, dict], None]] = {
        "numbers for strings": functools.partial(_set_entry, name="number", dtype="str"),
        "strings for numbers": functools.partial(_set_entry, name="task", dtype="int64"),
        "strings of a shape": functools.partial(_set_entry, name="task", shape=[1]),
        "strings with a default": functools.partial(_set_entry, name="task", default=0),
        "strings with a text for a default": functools.partial(_set_entry, name="task", default=""),
        "strings in a field": functools.partial(_set_entry, name="action", dtype="str"),
        "strings in a state field": functools.partial(_set_entry, name="observation", dtype="str"),
    }
    for label, change in changes.items():

        def forged(site: Site, metadata: dict, change: Callable[[Site, dict], None] = change) -> None:
            site.forged = True
            change(site, metadata)

        yield label, functools.partial(_as_ragged, change=forged)
