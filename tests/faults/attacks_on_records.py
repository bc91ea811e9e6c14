"""Attacks on counters and records, with check values that agree, and files that are larger than any disk."""

from __future__ import annotations

import functools
import os
import shutil
from typing import Any

import numpy as np
from format_helpers import COUNTERS, change_record, counter_word, record_crc
from format_helpers import records as table_of
from format_helpers import write_counters as store

from .attacks_on_files import encode_header, files_of, remove, sizes_text
from .attacks_on_metadata import Raw, entry, insert, load, replace_text, save, set_value
from .victims import Attacks, Site, Victim

SPARSE = 1 << 40


# --- counters and records ---


def _set_counters(site: Site, values: dict[int, int]) -> None:
    store(site.folder, **{COUNTERS[at]: value for at, value in values.items()})
    if (site.folder / "commit.npy.new").exists():
        shutil.copyfile(site.folder / "commit.npy", site.folder / "commit.npy.new")


def counters(victim: Victim) -> Attacks:
    now = [word & ((1 << 48) - 1) for word in np.load(victim.folder / "commit.npy").tolist()]
    values = (-1, -(2**63), 0, 1, 2**31, 2**40, 2**47, 2**48 - 1)
    for at, name in enumerate(COUNTERS):
        for value in (*values, now[at] - 1, now[at] + 1, now[at] + 7, now[at] + 10**6, now[at] + 10**8):
            yield f"{name} = {value}", functools.partial(_set_counters, values={at: value})
    for far in (2**40, 2**47, 2**48 - 4):
        yield f"all at {far}", functools.partial(_set_counters, values={1: far, 2: far, 3: far, 4: far})
        yield f"from first to {far}", functools.partial(_set_counters, values={3: far, 4: far})
        yield f"base {far}, next more", functools.partial(_set_counters, values={1: far, 2: far, 3: far + 3, 4: far})
    yield "shifted", functools.partial(_set_counters, values={at: now[at] + 1 for at in (1, 2, 3, 4)})
    yield "nothing live", functools.partial(_set_counters, values={2: now[3]})
    yield "nothing summed", functools.partial(_set_counters, values={4: now[1]})
    for at, name in enumerate(COUNTERS):
        for bit in (0, 5, 47, 48, 63):

            def flipped(site: Site, at: int = at, bit: int = bit) -> None:
                words = np.load(site.folder / "commit.npy", mmap_mode="r+")
                words[at] ^= np.uint64(1 << bit)

            yield f"bit {bit} of {name}", flipped
    for number in range(20):

        def at_random(site: Site) -> None:
            chosen = site.random.sample(range(6), site.random.randrange(2, 5))
            near = [now[1], now[2], now[3], now[3] + 1, now[3] - 1]
            _set_counters(site, {at: site.random.choice((*values, *near, *near)) for at in chosen})

        yield f"several, {number}", at_random


def slot_of(site: Site, episode: int) -> int:
    metadata = load(site)
    slot = episode - (int(np.load(site.folder / "commit.npy")[1]) & ((1 << 48) - 1))
    return slot % (metadata["max_episodes"] or metadata["max_steps"]) if metadata["circular"] else slot


def forge(site: Site, episode: int, **values: int) -> None:
    """Change start, length or flags of a record, and give it the check value that goes with it."""
    change_record(site.folder, slot_of(site, episode), **values)


def _forge_one(site: Site, at: int, how: str, value: int) -> None:
    episode = site.victim.live[at]
    if how.startswith("more "):
        how = how[5:]
        value += int(table_of(site.folder)[how][slot_of(site, episode)])
    forge(site, episode, **{how: value})


def records(victim: Victim) -> Attacks:
    ends = (0, 1, len(victim.live) - 1) if victim.live else ()
    for at in sorted(set(ends)):
        for value in (0, -1, 1, 2**31, 2**59, 2**60 - 1, 2**60, 2**62, 2**63 - 1, -(2**63)):
            yield f"length of {at} = {value}", functools.partial(_forge_one, at=at, how="length", value=value)
            yield f"start of {at} = {value}", functools.partial(_forge_one, at=at, how="start", value=value)
        for value in (1, -1, 2, 10, 100):
            yield f"length of {at} + {value}", functools.partial(_forge_one, at=at, how="more length", value=value)
            yield f"start of {at} + {value}", functools.partial(_forge_one, at=at, how="more start", value=value)
        for value in (0, 1, 2, 3, 4, 7, 8, 15, 128, 255):
            yield f"flags of {at} = {value}", functools.partial(_forge_one, at=at, how="flags", value=value)

        def overflow(site: Site, at: int = at) -> None:
            forge(site, site.victim.live[at], start=2**60 - 1, length=2**60 - 1)

        yield f"start and length of {at} past int64", overflow
    if len(victim.live) < 2:
        return

    def alike(site: Site) -> None:
        start = int(table_of(site.folder)["start"][0])
        for episode in site.victim.live:
            forge(site, episode, start=start)

    def swapped(site: Site) -> None:
        one, other = site.victim.live[0], site.victim.live[1]
        starts = table_of(site.folder)["start"]
        mine, theirs = int(starts[slot_of(site, one)]), int(starts[slot_of(site, other)])
        forge(site, one, start=theirs)
        forge(site, other, start=mine)

    def hidden_overlap(site: Site) -> None:
        """Episodes that overlap although each one's neighbour in the order of starts does not."""
        forge(site, site.victim.live[0], start=0, length=12)
        forge(site, site.victim.live[1], start=1, length=1)

    def exchanged_crcs(site: Site) -> None:
        crcs = table_of(site.folder)["crc"]
        crcs[0], crcs[1] = int(crcs[1]), int(crcs[0])

    yield "all starts alike", alike
    yield "two starts swapped", swapped
    yield "hidden overlap", hidden_overlap
    yield "check values swapped", exchanged_crcs
    for number in range(30):

        def at_random(site: Site) -> None:
            for episode in site.random.sample(site.victim.live, 2):
                start, length = site.random.randrange(40), site.random.randrange(9)
                forge(site, episode, start=start, length=length, flags=site.random.randrange(4))

        yield f"two at random, {number}", at_random


# --- sizes ---


def _sparse(site: Site, name: str, size: int) -> None:
    path = site.folder / name
    if not path.exists():
        path.write_bytes(b"")
    os.truncate(path, size)


def forge_buffer(
    site: Site,
    fields: list[dict[str, Any]],
    episodes: list[tuple[int, int, int]] = (),
    *,
    rows: int = 0,
    meta: list[dict[str, Any]] = (),
    next_id: int | None = None,
    **config: Any,
) -> None:
    """A whole buffer by a stranger: every file sound in itself, sparse where it is large."""
    site.forged = True
    for room in ("steps", "episodes.npy", "checksums.npy", "strings.npy", "commit.npy.new"):
        remove(site.folder / room)
    count = len(episodes) if next_id is None else next_id
    metadata = {**load(site), "fields": fields, "meta_fields": meta, "pending": [], "environment": None, **config}
    save(site, metadata)

    def column(path: str, dtype: Any, shape: tuple[int, ...], length: int, values: Any = None) -> None:
        dtype = np.dtype(dtype)
        descr = repr(np.lib.format.dtype_to_descr(dtype.newbyteorder("<") if dtype.names is None else dtype))
        header = encode_header(descr, "False", sizes_text(shape, length))
        (site.folder / path).parent.mkdir(parents=True, exist_ok=True)
        content = b"" if values is None else np.asarray(values, dtype).tobytes()
        (site.folder / path).write_bytes(header + content)
        nbytes = dtype.itemsize * length
        for size in shape:
            nbytes *= size
        os.truncate(site.folder / path, min(len(header) + max(nbytes, len(content)), 1 << 44))

    values = {"revision": metadata["revision"], "next": count, "base": 0, "first": 0, "summed": 0, "deletions": 0}
    column("commit.npy", "uint64", (), 6, [counter_word(metadata["uuid"], name, values[name]) for name in COUNTERS])
    for info in fields:
        path = info["name"].replace(".", "/")
        column(f"steps/{path}.npy", info["dtype"], tuple(info["shape"]), rows)
    column("checksums.npy", "<u4", (len(fields),), count)
    metas = [(m["name"], m["dtype"], tuple(m["shape"])) for m in meta if np.prod(m["shape"], dtype=float) < 1 << 26]
    dtype = np.dtype([("id", "<i8"), ("start", "<i8"), ("length", "<i8"), *metas, ("flags", "<u4"), ("crc", "<u4")])
    table = np.zeros(len(episodes), dtype)
    for at, episode in enumerate(episodes):
        table[["id", "start", "length", "flags"]][at] = (at, *episode)
        table["crc"][at] = record_crc(table[at : at + 1], metadata["uuid"])
    column("episodes.npy", dtype, (), count, table)


def sizes(victim: Victim) -> Attacks:
    for name in files_of(victim):
        yield f"{name} of a terabyte", functools.partial(_sparse, name=name, size=SPARSE)
    for name in ("metadata.json", "writer.lock", "metadata.json.new"):
        for size in (1 << 26, (1 << 26) + 1, 1 << 29, 1 << 32):
            yield f"{name} of {size} bytes", functools.partial(_sparse, name=name, size=size)
    for size in (1 << 20, 1 << 24, 63 << 20):

        def blank(site: Site, size: int = size) -> None:
            replace_text(site, lambda content: content + b" " * (size - len(content)))

        def listed(site: Site, size: int = size) -> None:
            replace_text(site, insert(b'"x": [' + b"[]," * (size // 3) + b"0],"))

        def keyed(site: Site, size: int = size) -> None:
            replace_text(site, insert(b'"x": [' + b'{"":0},' * (size // 7) + b"0],"))

        def numbered(site: Site, size: int = size) -> None:
            replace_text(site, insert(b'"x": [' + b"0.5," * (size // 4) + b"0],"))

        def features(site: Site, size: int = size) -> None:
            set_value(site, ("features",), Raw("[" + '"",' * (size // 3) + '"x"]'))

        def defaults(site: Site, size: int = size) -> None:
            set_value(site, ("fields", 0, "default"), Raw("[" + "1," * (size // 2) + "1]"))

        for attack in (blank, listed, keyed, numbered, features, defaults):
            yield f"metadata of {size} bytes, {attack.__name__}", attack
    if victim.name != "plain":
        return
    for rows in (1, 1000, 1 << 20, 1 << 34, 1 << 40, 1 << 58):
        for start in (0, rows - 1):

            def far(site: Site, rows: int = rows, start: int = start) -> None:
                forge_buffer(site, [entry("x", "float64")], [(start, 1, 2)], rows=rows)

            yield f"{rows} sparse rows, the episode at {start}", far
    for length in (1, 1000, 1 << 31, 1 << 59):

        def nothing(site: Site, length: int = length) -> None:
            forge_buffer(site, [entry("x", "float64", [0])], [(0, length, 2)], rows=1 << 61)

        yield f"an episode of {length} rows of no bytes", nothing
    huge = 1 << 39
    for shape in ([1 << 10], [1 << 27], [1 << 33], [huge, 0], [0, huge, huge], [huge, huge, 0], [1] * 32, [0] * 32):

        def wide(site: Site, shape: list[int] = shape) -> None:
            forge_buffer(site, [entry("x", "float64", shape)])

        def wide_meta(site: Site, shape: list[int] = shape) -> None:
            m = {"name": "m", "dtype": "float64", "shape": shape, "default": None, "recorder": False}
            forge_buffer(site, [entry("x", "float64")], [(0, 1, 2)], rows=4, meta=[m])

        yield f"rows of shape {shape}, empty", wide
        yield f"meta of shape {shape}", wide_meta
    for count in (10_000, 1 << 22, 1 << 26, 1 << 30, 1 << 40):

        def many(site: Site, count: int = count) -> None:
            forge_buffer(site, [entry("x", "float64")], rows=4, next_id=count)

        def many_of_ring(site: Site, count: int = count) -> None:
            forge_buffer(
                site, [entry("x", "float64")], rows=4, next_id=count, circular=True, max_episodes=1 << 61, max_steps=9
            )

        yield f"{count} sparse records", many
        yield f"{count} sparse records of a ring", many_of_ring
    for limit in (1, 2**31, 2**62 - 1):

        def ring(site: Site, limit: int = limit) -> None:
            fields = [entry("x", "float64", state=True)]
            forge_buffer(site, fields, [(0, 1, 3)], rows=4, circular=True, max_episodes=None, max_steps=limit)

        yield f"a ring of {limit} steps", ring
