"""Attacks on ``metadata.json``: its text, each of its values, the names of fields, the lists of paths."""

from __future__ import annotations

import functools
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from format_helpers import read_metadata, sign

from .attacks_on_files import INSTEAD, replace
from .victims import Attacks, Site, Victim

# --- metadata ---


class Raw(str):
    """Text that goes into JSON as it is."""


def _dump(value: Any, path: Path) -> None:
    raws: list[str] = []

    def mark(item: Any) -> Any:
        if isinstance(item, Raw):
            raws.append(str(item))
            return f"@@{len(raws) - 1}@@"
        if isinstance(item, dict):
            return {key: mark(inner) for key, inner in item.items()}
        return [mark(inner) for inner in item] if isinstance(item, list) else item

    text = json.dumps(mark(value))
    for at, raw in enumerate(raws):
        text = text.replace(f'"@@{at}@@"', raw)
    path.write_bytes(sign(text.encode()))


def load(site: Site) -> Any:
    return {key: value for key, value in read_metadata(site.folder).items() if key != "crc32"}


def save(site: Site, value: Any) -> None:
    _dump(value, site.folder / "metadata.json")


def nested(depth: int, inner: str = "") -> Raw:
    return Raw("[" * depth + inner + "]" * depth)


HOSTILE_VALUES: dict[str, Any] = {
    **{repr(value): value for value in (None, True, False, 0, 1, -1, 2, 0.5, -0.0, 1e308, -1e308, 5e-324)},
    **{f"2**{power}": 2**power for power in (31, 32, 40, 53, 59, 60, 61, 63, 64, 100)},
    **{f"2**{power}-1": 2**power - 1 for power in (31, 40, 60, 62, 63, 64)},
    **{f"-2**{power}": -(2**power) for power in (31, 62, 63, 64)},
    "10**400": 10**400,
    "-10**400": -(10**400),
    "5000 digits": Raw("9" * 5000),
    "1e999": Raw("1e999"),
    "-1e999": Raw("-1e999"),
    "NaN": Raw("NaN"),
    "Infinity": Raw("-Infinity"),
    **{
        f"text {text!r}": text
        for text in ("", "x", "nan", "inf", "NaN", "1", "../x", "/etc/x", "a/b", ".", "..", "a..b", ".a", "con")
    },
    **{f"text {text!r}": text for text in ("\x00", "\ud800", "e\u0301", "\u202e", "%2E%2E", "~", "$HOME", " ", "|O")},
    "long text": "x" * 300,
    "megabyte": "x" * (1 << 20),
    **{repr(value): value for value in ([], [0], [1], [-1], [None], [[]], ["x"], [1.0], [True], {}, {"": {}}, [{}])},
    "[2**40-1]*32": [2**40 - 1] * 32,
    "[0,2**40-1,...]": [0] + [2**40 - 1] * 31,
    "[2**40-1,...,0]": [2**40 - 1] * 31 + [0],
    "[2**33]": [2**33],
    "[1]*32": [1] * 32,
    "[1]*33": [1] * 33,
    "[1]*65": [1] * 65,
    "long list": [0] * 100_000,
    "long list of objects": [{}] * 100_000,
    "deep 20": nested(20, "0"),
    "deep 50": nested(50, "1"),
    "deep 5000": nested(5000),
    "$float": {"$float": "nan"},
    "$tuple": {"$tuple": [1]},
    "ragged": [0, 0],
}


def _places(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """Every place in a JSON value, as keys from the outside in."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from _places(inner, (*path, key))


def _edit(value: Any, place: tuple, change: Callable[[Any, Any], None]) -> None:
    for key in place[:-1]:
        value = value[key]
    change(value, place[-1])


def set_value(site: Site, place: tuple, value: Any) -> None:
    metadata = load(site)
    _edit(metadata, place, lambda parent, key: parent.__setitem__(key, value))
    save(site, metadata)


def _drop_value(site: Site, place: tuple) -> None:
    metadata = load(site)
    _edit(metadata, place, lambda parent, key: parent.__delitem__(key))
    save(site, metadata)


def values_at(victim: Victim, inside: bool) -> Attacks:
    metadata = read_metadata(victim.folder)
    for place in _places(metadata):
        if (place[0] == "environment" and len(place) > 1) is not inside:
            continue
        label = ".".join(map(str, place))
        yield f"{label} missing", functools.partial(_drop_value, place=place)
        for name, value in HOSTILE_VALUES.items():
            yield f"{label} = {name}", functools.partial(set_value, place=place, value=value)


def metadata_values(victim: Victim) -> Attacks:
    yield from values_at(victim, inside=False)


def replace_text(site: Site, edit: Callable[[bytes], bytes]) -> None:
    path = site.folder / "metadata.json"
    content = edit(path.read_bytes())
    path.write_bytes(sign(content) if b'"crc32"' in content else content)


def insert(text: bytes, after: bytes = b"{") -> Callable[[bytes], bytes]:
    return lambda content: content.replace(after, after + text, 1)


def metadata_text(victim: Victim) -> Attacks:
    edits: dict[str, Callable[[bytes], bytes]] = {
        "100000 brackets": lambda content: b"[" * 100_000,
        "100000 closed brackets": lambda content: b"[" * 100_000 + b"]" * 100_000,
        "100000 braces": lambda content: b'{"a":' * 100_000,
        "deep behind a text of brackets": insert(
            b'"x": "' + b"]" * 200_000 + b'", "y": ' + b"[" * 100_000 + b"]" * 100_000 + b","
        ),
        "deep in words": insert(b'"\\u005b": ' + b"[" * 61 + b"]" * 61 + b","),
        "NaN": insert(b'"x": NaN,'),
        "Infinity": insert(b'"x": -Infinity,'),
        "a key twice": insert(b'"format": "gym_replay",'),
        "an escaped key twice": insert(b'"\\u0066ormat": "gym_replay",'),
        "a key more": insert(b'"x": 1,'),
        "no UTF-8": insert(b'"\xff\xfe": 1,'),
        "a lone surrogate": insert(b'"\\ud800": 1,'),
        "a mark of byte order": lambda content: b"\xef\xbb\xbf" + content,
        "UTF-16": lambda content: content.decode().encode("utf-16"),
        "UTF-32": lambda content: content.decode().encode("utf-32"),
        "UTF-16 without a mark": lambda content: content.decode().encode("utf-16-le"),
        "twice": lambda content: content + content,
        "a comma": lambda content: content.rstrip()[:-1] + b",}",
        "comments": lambda content: b"// mine\n" + content,
        "empty object": lambda content: b"{}",
        "null": lambda content: b"null",
        "a list": lambda content: b"[" + content + b"]",
        "a text": lambda content: b'"gym_replay"',
        "a number": lambda content: b"1" * 4000,
        "many digits": lambda content: b"1" * 100_000,
        "binary": lambda content: bytes(range(256)),
        "NUL": lambda content: b"\x00" * 100,
        "spaces": lambda content: content + b" " * 1_000_000,
        "a million keys": insert(b"".join(b'"k%d":0,' % n for n in range(100_000))),
        "upper case": lambda content: content.upper(),
        "python": lambda content: content.replace(b"true", b"True").replace(b"null", b"None"),
    }
    for label, edit in edits.items():
        yield label, functools.partial(replace_text, edit=edit)
    for depth in (55, 70, 200, 400, 700, 900, 970, 5000):
        for place in ("environment", "unknown"):
            yield (
                f"depth {depth} in {place} behind a text of brackets",
                functools.partial(_hidden_depth, depth=depth, place=place),
            )


def _hidden_depth(site: Site, depth: int, place: str) -> None:
    """Nesting that a count of all brackets does not see, since a text closes more than are open."""
    metadata = load(site)
    metadata = {"note": "]" * 200_000, **metadata}
    metadata[place] = {"observation_space": nested(depth), "env_spec": {"kwargs": {"a": nested(depth)}}}
    if site.random.random() < 0.5:
        metadata["obsolete"] = ["steps/gone.npy"]  # so that a writer writes the metadata anew
    save(site, metadata)


# --- fields and lists in the metadata ---


def _change_fields(site: Site, change: Callable[[Site, dict], None]) -> None:
    metadata = load(site)
    change(site, metadata)
    save(site, metadata)


def entry(name: Any, dtype: Any = "float32", shape: Any = (), **more: Any) -> dict[str, Any]:
    return {"name": name, "dtype": dtype, "shape": list(shape), "default": None, "state": False, **more}


def _rename(site: Site, metadata: dict, name: str, to: str) -> None:
    """Rename a field together with its files, as far as the name can be a file's."""
    for entry in metadata["fields"]:
        if entry["name"] == name:
            entry["name"] = to
    source = site.folder / "steps" / f"{name}.npy"
    target = Path(os.path.normpath(site.folder / "steps" / f"{to.replace('.', '/')}.npy"))
    if source.exists() and site.folder in target.parents and "\x00" not in to and len(to) < 200:
        target.parent.mkdir(parents=True, exist_ok=True)
        source.rename(target)


def _words(*lines: str) -> list[str]:
    return " ".join(lines).split()


NAMES = [
    *_words("../x ../../outside/canary /etc/passwd a/b .. . ... a..b .a a. a\\b * ~root -rf COM1 nul %2E%2E"),
    *_words("spans.x reward.spans meta.number start record_crc number Reward metadata"),
    *("", " ", "\x00", "\n", "\ud800", "e\u0301", "\u202e", "\u200d", "x" * 151, "x" * 5000),
    *("a." * 60 + "a", "sixteen letters." * 300 + "a"),
]


def field_names(victim: Victim) -> Attacks:
    for name in NAMES:
        for key in ("fields", "meta_fields"):

            def add(site: Site, metadata: dict, name: str = name, key: str = key) -> None:
                flag = {"state": False} if key == "fields" else {"recorder": False}
                metadata[key].append({**entry(name), **flag})

            yield f"{key} more: {name[:40]!r}", functools.partial(_change_fields, change=add)

        def rename(site: Site, metadata: dict, name: str = name) -> None:
            _rename(site, metadata, "reward", name)

        yield f"reward renamed {name[:40]!r}", functools.partial(_change_fields, change=rename)

    def twice(site: Site, metadata: dict) -> None:
        metadata["fields"].append(dict(metadata["fields"][-1]))

    def both(site: Site, metadata: dict) -> None:
        metadata["meta_fields"].append({**metadata["fields"][-1], "recorder": False})

    def no_fields(site: Site, metadata: dict) -> None:
        metadata["fields"] = []

    def reverse(site: Site, metadata: dict) -> None:
        metadata["fields"].reverse()
        metadata["meta_fields"].reverse()

    def fewer(site: Site, metadata: dict) -> None:
        metadata["fields"].pop(site.random.randrange(len(metadata["fields"])))

    def no_meta(site: Site, metadata: dict) -> None:
        metadata["meta_fields"] = []

    def states(site: Site, metadata: dict) -> None:
        for entry in metadata["fields"]:
            entry["state"] = not entry["state"]

    def stateless(site: Site, metadata: dict) -> None:
        for entry in metadata["fields"]:
            entry["state"] = False

    def many(site: Site, metadata: dict) -> None:
        metadata["fields"] += [entry(f"f{number}") for number in range(3_000)]

    def alike(site: Site, metadata: dict) -> None:
        metadata["fields"].append(entry("steps"))
        metadata["fields"].append(entry("STEPS"))

    def inside(site: Site, metadata: dict) -> None:
        """A field whose folder is another field's file."""
        metadata["fields"].append(entry("reward.npy.x"))

    def feature(site: Site, metadata: dict) -> None:
        metadata["features"] = ["ragged", "\x1b[31m", "x" * 10_000]

    def future(site: Site, metadata: dict) -> None:
        metadata["format_version"] = 2

    def ring(site: Site, metadata: dict) -> None:
        metadata.update(circular=not metadata["circular"], max_episodes=3)

    def small(site: Site, metadata: dict) -> None:
        metadata.update(max_episodes=1, max_steps=1, max_timesteps=1)

    for change in (
        *(twice, both, no_fields, reverse, fewer, no_meta, states, stateless, many, alike, inside, feature, future),
        *(ring, small),
    ):
        yield change.__name__, functools.partial(_change_fields, change=change)


PATHS = [
    *_words("metadata.json writer.lock commit.npy notes.txt mine/data.npy . .. / steps steps/ steps/notes.txt"),
    *_words("../outside/canary.txt ../../etc/passwd /etc/hostname steps/../../outside/old.npy steps/../commit.npy"),
    *_words("steps/./reward.npy steps//reward.npy steps/reward.npy steps/Reward.npy steps/reward.npy.new"),
    *_words("episodes.npy checksums.npy strings.npy strings.npy.new episodes.npy/x.npy"),
    *_words("steps/gone.npy steps/linked/old.npy steps/meta/x.npy steps/..npy steps/.npy"),
    *_words("steps/folder.npy steps/full.npy steps/pipe.npy steps/link.npy steps/linked.npy steps/meta/../x.npy"),
    *("", "steps/\x00.npy", "steps/" + "a/" * 100 + "x.npy"),
]


def _list_paths(site: Site, key: str, paths: list[str], news: str) -> None:
    """A list of paths of a switch that nobody began, with entries for the more devious ones."""
    steps = site.folder / "steps"
    (site.folder / "steps" / "linked").symlink_to(site.outside)
    (steps / "folder.npy").mkdir()
    (steps / "full.npy").mkdir()
    (steps / "full.npy" / "mine.txt").write_text("mine")
    os.mkfifo(steps / "pipe.npy")
    (steps / "link.npy").symlink_to(site.outside / "old.npy")
    metadata = load(site)
    metadata[key] = paths
    save(site, metadata)
    for path in paths:
        if news != "none" and path in site.victim.arrays and not (site.folder / (path + ".new")).exists():
            if news == "copy":
                shutil.copyfile(site.folder / path, site.folder / (path + ".new"))
            else:
                replace(site, path + ".new", news)


def lists(victim: Victim) -> Attacks:
    for key in ("pending", "obsolete"):
        for path in PATHS:
            yield f"{key}: {path[:40]!r}", functools.partial(_list_paths, key=key, paths=[path], news="none")
        for number in range(8):

            def several(site: Site, key: str = key) -> None:
                paths = site.random.choices(PATHS, k=site.random.randrange(2, 6))
                _list_paths(site, key, paths, "copy")

            yield f"{key}: several, {number}", several
    for path in (*victim.arrays[:3], "commit.npy", *victim.arrays[-2:]):
        for news in ("copy", "file", *INSTEAD[1:]):
            yield (
                f"pending: {path}, new: {news}",
                functools.partial(_list_paths, key="pending", paths=[path], news=news),
            )

    def all_twice(site: Site) -> None:
        _list_paths(site, "pending", list(site.victim.arrays) * 2, "copy")

    def everything(site: Site) -> None:
        _list_paths(site, "obsolete", [path for path in site.victim.arrays if path != "commit.npy"], "none")

    def very_many(site: Site) -> None:
        _list_paths(site, "obsolete", [f"steps/x{number}.npy" for number in range(50_000)], "none")

    yield "pending: everything twice", all_twice
    yield "obsolete: everything", everything
    yield "obsolete: very many", very_many
    yield "overwrite through a linked folder", _linked_field
    yield "overwrite beside a linked folder", _linked_parent


def _linked_field(site: Site) -> None:
    """A field of the old buffer in a folder that is a link: replacing the buffer removes its files."""
    metadata = load(site)
    (site.folder / "steps" / "linked").symlink_to(site.outside)
    metadata["fields"].append(entry("linked.old"))
    save(site, metadata)


def _linked_parent(site: Site) -> None:
    """A folder that the new buffer needs is a link."""
    (site.folder / "steps" / "deep").symlink_to(site.outside)
