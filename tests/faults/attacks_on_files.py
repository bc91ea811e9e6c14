"""Attacks on files and folders: cut, flipped, replaced, with other headers, or with code for whoever unpickles them."""

from __future__ import annotations

import functools
import os
import pickle
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .victims import Attacks, Site, Victim


def files_of(victim: Victim) -> list[str]:
    """Everything that is the buffer's."""
    news = [path.relative_to(victim.folder).as_posix() for path in victim.folder.rglob("*.new")]
    return [*victim.arrays, *sorted(news), "metadata.json", "writer.lock"]


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


# --- bytes ---


def _cut(site: Site, name: str, size: int) -> None:
    os.truncate(site.folder / name, size)


def _extend(site: Site, name: str, count: int) -> None:
    with (site.folder / name).open("ab") as stream:
        stream.write(site.random.randbytes(count))


def _zero(site: Site, name: str) -> None:
    path = site.folder / name
    path.write_bytes(bytes(path.stat().st_size))


def cuts(victim: Victim) -> Attacks:
    for name in files_of(victim):
        size = (victim.folder / name).stat().st_size
        header = victim.header.get(name, 40)
        for at in sorted({0, 1, 7, 9, header // 2, header - 1, header, header + 1, (header + size) // 2, size - 1}):
            if 0 <= at < size:
                yield f"{name} cut to {at}", functools.partial(_cut, name=name, size=at)
        for more in (1, 64, 5000):
            yield f"{name} longer by {more}", functools.partial(_extend, name=name, count=more)
        yield f"{name} zeroed", functools.partial(_zero, name=name)


def _flip(site: Site, name: str, count: int, low: int, high: int | None) -> None:
    path = site.folder / name
    content = bytearray(path.read_bytes())
    high = len(content) if high is None else min(high, len(content))
    for _ in range(count):
        if high > low:
            at = site.random.randrange(low, high)
            content[at] ^= 1 << site.random.randrange(8) if count < 4 else site.random.randrange(1, 256)
    path.write_bytes(content)


def flips(victim: Victim) -> Attacks:
    for name in files_of(victim):
        header = victim.header.get(name, 0)
        for count in (1, 2, 16, 200):
            yield f"{name} {count} flips", functools.partial(_flip, name=name, count=count, low=0, high=None)
        if header:
            for count in (1, 3):
                label = f"{name} {count} flips in the header"
                yield label, functools.partial(_flip, name=name, count=count, low=0, high=header)
                label = f"{name} {count} flips in the rows"
                yield label, functools.partial(_flip, name=name, count=count, low=header, high=None)


def _shuffle_bytes(site: Site, names: list[str], count: int) -> None:
    for name in site.random.sample(names, min(count, len(names))):
        _flip(site, name, site.random.choice((1, 3, 30)), 0, None)


def flips_everywhere(victim: Victim) -> Attacks:
    for count in (2, 3, 5, 8):
        for number in range(5):
            yield (
                f"flips in {count} files, {number}",
                functools.partial(_shuffle_bytes, names=list(victim.arrays), count=count),
            )


# --- something else in a file's or a folder's place ---


def hard_link(site: Site, name: str) -> None:
    """Give a file a second name outside of the folder."""
    path, outside = site.folder / name, site.outside / "linked" / name
    if not path.is_file():
        remove(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"1\n")
    outside.parent.mkdir(parents=True, exist_ok=True)
    if outside.exists():  # the second copy of the victim gets a link to the same file
        remove(path)
        os.link(outside, path)
    else:
        os.link(path, outside)


def replace(site: Site, name: str, how: str) -> None:
    if how == "hard link":
        hard_link(site, name)
        return
    path, outside = site.folder / name, site.outside / "copy" / name
    if how in ("link outside", "link to the same inside"):
        outside = outside if how == "link outside" else site.folder / ("hidden" + "".join(path.suffixes))
        outside.parent.mkdir(parents=True, exist_ok=True)
        remove(outside)
        if path.is_dir():
            shutil.copytree(path, outside, symlinks=True)
        elif path.exists():
            shutil.copyfile(path, outside)
        else:
            outside.write_bytes(b"outside")
    remove(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if how in ("link outside", "link to the same inside"):
        path.symlink_to(outside)
    elif how == "relative link outside":
        path.symlink_to(os.path.relpath(site.outside / "canary.txt", path.parent))
    elif how == "link to itself":
        path.symlink_to(path.name)
    elif how == "dangling link":
        path.symlink_to(site.outside / "not" / "there.npy")
    elif how == "link to a new file outside":
        path.symlink_to(site.outside / "made")
    elif how == "link to /dev/zero":
        path.symlink_to("/dev/zero")
    elif how == "directory":
        path.mkdir()
    elif how == "full directory":
        (path / "below").mkdir(parents=True)
        (path / "below" / "mine.npy").write_bytes(b"")
    elif how == "deep directory":
        (path / "/".join("d" * 90)).mkdir(parents=True)
    elif how == "FIFO":
        os.mkfifo(path)
    elif how == "file":
        path.write_bytes(b"a file")


INSTEAD = (
    "nothing",
    "directory",
    "full directory",
    "deep directory",
    "hard link",
    "link outside",
    "relative link outside",
    "link to the same inside",
    "link to itself",
    "dangling link",
    "link to a new file outside",
    "link to /dev/zero",
    "FIFO",
)


def _take_from(site: Site, name: str, other: str) -> None:
    shutil.copyfile(site.folder / other, site.folder / name)


def replaced(victim: Victim) -> Attacks:
    names = files_of(victim)
    for at, name in enumerate(names):
        for how in INSTEAD:
            yield f"{name}: {how}", functools.partial(replace, name=name, how=how)
        yield f"{name}: the next file", functools.partial(_take_from, name=name, other=names[at - 1])


def rooms(victim: Victim) -> Attacks:
    folders = sorted({str(parent) for name in victim.arrays for parent in Path(name).parents if str(parent) != "."})
    for name in folders:
        for how in (*INSTEAD, "file"):
            yield f"{name}/: {how}", functools.partial(replace, name=name, how=how)


def _leftover(site: Site, name: str, how: str) -> None:
    remove(site.folder / name)
    replace(site, name, how)


def leftovers(victim: Victim) -> Attacks:
    """Entries that a killed writer might have left, and the lock's."""
    names = ["metadata.json.new", "commit.npy.new", "steps/reward.npy.new", "steps/other.npy.new", "writer.lock"]
    names += ["steps/x/other.npy.new", "checksums.npy.new", "episodes.npy.new"]
    for name in names:
        for how in (*INSTEAD[1:], "file"):
            yield f"{name}: {how}", functools.partial(_leftover, name=name, how=how)
    for label, content in (("huge number", b"9" * 5000), ("binary", bytes(range(256))), ("negative", b"-1\n")):
        yield f"writer.lock: {label}", lambda site, c=content: (site.folder / "writer.lock").write_bytes(c)


# --- .npy headers ---


def encode_header(descr: str, order: str, shape: str, version: tuple[int, int] = (1, 0), width: int = 64) -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}"
    return _framed(text.encode("latin-1", "replace"), version, width)


def _framed(text: bytes, version: tuple[int, int] = (1, 0), width: int = 64) -> bytes:
    prefix = 10 if version == (1, 0) else 12
    text += b" " * (-(prefix + len(text) + 1) % width) + b"\n"
    length = struct.pack("<H" if version == (1, 0) else "<I", len(text) & (0xFFFF if prefix == 10 else -1))
    return b"\x93NUMPY" + bytes(version) + length + text


def sizes_text(shape: tuple[int, ...], rows: Any) -> str:
    return f"({', '.join(map(str, (rows, *shape)))},)"


def _headers(descr: str, rows: int, shape: tuple[int, ...]) -> Iterator[tuple[str, bytes]]:
    quoted, good = repr(descr), sizes_text(shape, rows)
    for size in (-1, 0, 1, rows + 1, 2 * rows + 100, 1 << 61, (1 << 62) - 1, 1 << 62, 1 << 63, 10**30, "True", "1.0"):
        yield f"rows {size}", encode_header(quoted, "False", sizes_text(shape, size))
    for label, text in (
        ("no axis", "()"),
        ("an axis more", sizes_text((*shape, 1), rows)),
        ("a huge axis more", sizes_text((*shape, 1 << 40), rows)),
        ("an empty axis more", sizes_text((*shape, 0), 1 << 61)),
        ("a list", f"[{rows}]"),
        ("a number", str(rows)),
        ("None", "None"),
        ("deep", "(" * 90 + "1" + ",)" * 90),
        ("very deep", "(" * 1500 + "1" + ",)" * 1),
        ("minus signs", "(" + "-" * 3500 + "1,)"),
        ("not signs", "(" + "~" * 2900 + "1,)"),
        ("many axes", "(" + "1," * 1500 + ")"),
        ("a call", "__import__('os').mkdir('executed')"),
        ("complex", "(1+2j,)"),
        ("long sum", "(" + "1+" * 1700 + "1,)"),
        ("a set", "{1, 2}"),
        ("huge literal", "(" + "9" * 3900 + ",)"),
    ):
        yield f"shape {label}", encode_header(quoted, "False", text)
    swapped = {"<": ">", "|": "|"}[descr[0]] + descr[1:]
    for other in (
        *("|O", "O", "<f8", "<i8", "|u1", "|b1", "<c16", "<M8[ns]", "|S8", "<U2", "|V8", "<f2", "<f16", swapped),
        *("f4,f4", "(2,)f4", "f4" * 900, "a5", "object", "int", "", ",", "\\x00", "no such", "numpy.float32", "m8[9Y]"),
        *("|V99999999999999999999", "(99999999999,)f8", "<V2147483647", "S2147483648"),
    ):
        yield f"dtype {other[:30]}", encode_header(f"'{other}'", "False", good)
    for label, text in (
        ("fields", "[('a', '<f4'), ('b', '<f4')]"),
        ("objects", "[('a', '|O')]"),
        ("tuple", "('<f4', (2,))"),
        ("None", "None"),
        ("bytes", f"b{quoted}"),
    ):
        yield f"dtype of {label}", encode_header(text, "False", good)
    for order in ("True", "1", "0", "None", "'False'", "[]"):
        yield f"fortran_order {order}", encode_header(quoted, order, good)
    for version in ((2, 0), (3, 0), (1, 1), (0, 0), (255, 255)):
        yield f"version {version}", encode_header(quoted, "False", good, version)
    sound = encode_header(quoted, "False", good)
    yield "unterminated", sound[:-1] + b" "
    yield "no brace", sound.replace(b"}", b" ")
    yield "non-latin", sound.replace(b"False", b"F\xe4ls")
    yield "NUL bytes", sound.replace(b" ", b"\x00")
    yield "tabs", sound.replace(b" ", b"\t")
    yield "length 0", sound[:8] + b"\x00\x00" + sound[10:]
    yield "length 65535", sound[:8] + b"\xff\xff" + sound[10:]
    yield "not aligned", encode_header(quoted, "False", good, width=1)
    yield "wide", encode_header(quoted, "False", good, width=4096)
    yield "too wide", encode_header(quoted, "False", good, width=8192)
    yield "keys missing", _framed(f"{{'descr': {quoted}}}".encode())
    yield "a key more", _framed(f"{{'descr':{quoted},'fortran_order':False,'shape':{good},'x':1}}".encode())
    yield "a key twice", _framed(f"{{'shape':(1,),'descr':{quoted},'fortran_order':False,'shape':{good}}}".encode())
    yield "a list", _framed(b"[1, 2, 3]")
    yield "a dict of lists", _framed(b"{'descr': [[]], 'fortran_order': [], 'shape': []}")
    yield "unhashable", _framed(b"{[]: 1}")
    yield "comments", _framed(b"# nothing")
    yield "newlines", sound.replace(b", ", b",\n")


def _put_header(site: Site, name: str, header: bytes) -> None:
    path = site.folder / name
    content = path.read_bytes()[site.victim.header[name] :]
    path.write_bytes(header + content)


def headers(victim: Victim) -> Attacks:
    for name in victim.arrays:
        array = np.load(victim.folder / name, mmap_mode="r")
        for label, header in _headers(array.dtype.str, len(array), array.shape[1:]):
            yield f"{name} {label}", functools.partial(_put_header, name=name, header=header)


# --- code ---


class _Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = str(target)

    def __reduce__(self) -> tuple:
        return os.mkdir, (self.target,)


def _pickled(site: Site, name: str, how: str) -> None:
    payload = _Payload(site.outside / "executed")
    path = site.folder / name
    if how == "object array":
        with path.open("wb") as stream:
            np.save(stream, np.array([payload], object), allow_pickle=True)
    elif how == "structured object array":
        with path.open("wb") as stream:
            np.save(stream, np.array([(payload,)], [("a", object)]), allow_pickle=True)
    elif how == "plain header over a pickle":
        header = path.read_bytes()[: site.victim.header.get(name, 0)]
        path.write_bytes(header + pickle.dumps(payload))
    else:
        path.write_bytes(pickle.dumps(payload))


def code(victim: Victim) -> Attacks:
    for name in (*victim.arrays, "metadata.json", "metadata.json.new", "writer.lock"):
        for how in ("object array", "structured object array", "plain header over a pickle", "pickle"):
            yield f"{name}: {how}", functools.partial(_pickled, name=name, how=how)
