"""The house stands as docs/architecture.md draws it: imports go down, no file is in a circle, doors are used."""

import ast
import re
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

import pytest

import gym_replay

PACKAGE = Path(gym_replay.__file__).parent
DOCUMENT = PACKAGE.parent / "docs" / "architecture.md"
FLOORS = [
    "gym_replay.cached gym_replay.errors gym_replay.notices",
    "gym_replay.extras gym_replay.files gym_replay.markup gym_replay.schema",
    "gym_replay.remote.objects",
    "gym_replay.buffer.storage",
    "gym_replay.spaces",
    "gym_replay.buffer.loading",
    "gym_replay.buffer",
    "gym_replay.wrappers",
    "gym_replay.collecting gym_replay.replaying gym_replay.interop gym_replay.remote",
    "gym_replay.playing",
    "gym_replay.viewing",
    "gym_replay.cli",
    "gym_replay.__main__",
]
"""From the ground up. What stands side by side imports nothing from one another's floor but where it says so below."""

THEIR_OWN = {
    "_SubParsersAction",
    "_actions",
    "_current_frames",
    "_is_owned",
    "_replace",
    "_make",
    "_env_obs",
    "_stats_key",
}
"""Underscore names of other packages, and of named tuples, for which there is no public way."""


@cache
def trees() -> dict[str, ast.Module]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = ("gym_replay", *path.relative_to(PACKAGE).with_suffix("").parts)
        found[".".join(parts).removesuffix(".__init__")] = ast.parse(path.read_text())
    return found


@cache
def imports() -> dict[str, set[str]]:
    """What each module imports of the package, those for type checkers and inside of functions included."""
    found = {}
    for name, tree in trees().items():
        found[name] = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                found[name] |= {alias.name for alias in node.names if alias.name in trees()}
            elif isinstance(node, ast.ImportFrom) and node.module in trees():
                names = {f"{node.module}.{alias.name}" for alias in node.names}
                found[name] |= (names & trees().keys()) | ({node.module} if names - trees().keys() else set())
    return found


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Each module that imports itself, by way of others, with one such way."""
    found = []
    for start in edges:
        came_from: dict[str, str] = {}
        waiting = [start]
        while waiting:
            at = waiting.pop()
            for other in edges[at] - came_from.keys():
                came_from[other] = at
                waiting.append(other)
        if start in came_from:
            way = [start]
            while (before := came_from[way[-1]]) != start:
                way.append(before)
            found.append([start, *way[:0:-1], start])
    return found


def test_a_circle_would_be_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [
        ["a", "b", "c", "a"],
        ["b", "c", "a", "b"],
        ["c", "a", "b", "c"],
    ]


def test_no_circle():
    below_the_face = {name: edges - {"gym_replay"} for name, edges in imports().items()}
    assert circles(below_the_face) == []


def floor_of(name: str) -> int:
    """The floor whose room's name fits best."""
    rooms = [
        (len(room), at) for at, side in enumerate(FLOORS) for room in side.split() if f"{name}.".startswith(f"{room}.")
    ]
    return max(rooms)[1]


def wrong_imports(is_wrong: Callable[[str, str], bool]) -> list[tuple[str, str]]:
    """Each module below the package's own, with each module that it should not import."""
    below = sorted(imports().keys() - {"gym_replay"})
    return [(name, other) for name in below for other in imports()[name] - {"gym_replay"} if is_wrong(name, other)]


def test_imports_go_down():
    assert not wrong_imports(lambda name, other: floor_of(other) > floor_of(name))


def test_storage_has_one_door():
    """Above the face nothing imports the storage."""
    face = floor_of("gym_replay.buffer")
    assert not wrong_imports(
        lambda name, other: floor_of(name) > face and other.startswith("gym_replay.buffer.storage")
    )


def packages_in(nodes: Iterable[ast.AST]) -> set[str]:
    """The packages that the import statements among these nodes name."""
    nodes = list(nodes)
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    return {one.partition(".")[0] for one in names}


@cache
def packages_of(name: str) -> set[str]:
    """The packages that a module imports, wherever in it."""
    return packages_in(ast.walk(trees()[name]))


@pytest.mark.parametrize(
    ("room", "unknown"),
    [
        ("gym_replay.errors", {"torch", "gymnasium", "numpy"}),
        ("gym_replay.files", {"torch", "gymnasium"}),
        ("gym_replay.remote.objects", {"torch", "gymnasium"}),
        ("gym_replay.schema", {"torch", "gymnasium"}),
        ("gym_replay.buffer.storage", {"torch", "gymnasium"}),
        ("gym_replay.buffer.loading", {"gymnasium"}),
        ("gym_replay.spaces", {"torch"}),
    ],
)
def test_what_a_room_must_not_know(room, unknown):
    inside = [name for name in trees() if f"{name}.".startswith(f"{room}.")]
    assert inside
    assert {name: found for name in inside if (found := packages_of(name) & unknown)} == {}


def test_heavy_packages_wait_until_they_are_needed():
    """torch belongs to loading, gymnasium to spaces and what stands on it; others import them inside of functions."""
    rooms = (".wrappers", ".spaces", ".collecting", ".playing", ".replaying", ".interop")
    for name, tree in trees().items():
        packages = packages_in(tree.body)
        if "torch" in packages:
            assert ".loading" in name or name == "gym_replay.interop.torchrl.storage", name
        if "gymnasium" in packages:
            assert any(room in name for room in rooms) or name == "gym_replay.buffer.env_spec", name


@pytest.mark.parametrize("name", ["plans", "order", "blocks", "prioritized"])
def test_plans_and_orders_see_arrays_only(name):
    module = f"gym_replay.buffer.loading.{name}"
    assert "torch" not in packages_in(trees()[module].body)
    assert not {other for other in imports()[module] if "storage" in other}


def foreign_underscore_names(tree: ast.Module) -> set[str]:
    """The underscore names that a module touches, and that neither it nor a class in it defines."""
    nodes = list(ast.walk(tree))
    attributes = [node for node in nodes if isinstance(node, ast.Attribute)]
    own = {node.attr for node in attributes if ast.unparse(node.value) in ("self", "cls")}
    own |= {node.name for node in nodes if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    own |= {node.id for node in nodes if isinstance(node, ast.Name)}
    return {
        ast.unparse(node)
        for node in attributes
        if node.attr.startswith("_") and not node.attr.startswith("__") and node.attr not in own | THEIR_OWN
    }


def test_nobody_touches_the_underscore_names_of_another_file():
    assert not {name: touched for name, tree in trees().items() if (touched := foreign_underscore_names(tree))}


def test_the_document_names_every_file():
    text = DOCUMENT.read_text()
    missing = [
        path
        for path in (p.relative_to(PACKAGE).as_posix() for p in sorted(PACKAGE.rglob("*.py")))
        if not path.endswith("__init__.py") and f"`{path}`" not in text
    ]
    assert not missing
    named = {word for word in text.split("`") if word.endswith(".py") and not word.startswith("tests/")}
    assert not [word for word in named if not (PACKAGE / word).exists()]


# --- what tests import ---

MOST_TEST_FILES = 19
PUBLIC = {
    "gym_replay.cli": {"main"},
    "gym_replay.wrappers": {"RecordToBuffer", "SimulatorState", "mujoco_state", "parallel", "restore_mujoco", "vector"},
    "gym_replay.wrappers.parallel": {"RecordToBuffer"},
    "gym_replay.wrappers.vector": {"Adapter", "Autoreset", "RecordToBuffer", "ResetCall", "register_adapter"},
}
A_NAME = re.compile(r"gym_replay(\.\w+)+")


def is_public(name: str) -> bool:
    """Whether a dotted name is a public module, or a public name in one."""
    module, _, last = name.rpartition(".")
    if name == "gym_replay" or name in PUBLIC or module == "gym_replay":
        return name in {"gym_replay", *PUBLIC, *(f"gym_replay.{each}" for each in gym_replay.__all__)}
    return last in PUBLIC.get(module, ()) or (module.startswith("gym_replay.interop") and last in gym_replay.__all__)


def internals_in(tree: ast.AST) -> set[str]:
    """The names of the package that are not public and that a module imports or names, as in ``monkeypatch.setattr``.

    Strings that are programs, which tests run in processes of their own, are read as well.
    """
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if A_NAME.fullmatch(node.value):
                found.add(node.value)
            for module, names in re.findall(r"from (gym_replay[\w.]*) import ([\w, ]+)", node.value):
                found |= {f"{module}.{name.split()[0]}" for name in names.split(",") if name.strip()}
            found |= set(re.findall(r"import (gym_replay[\w.]+)", node.value))
    return {name for name in found if name.split(".")[0] == "gym_replay" and not is_public(name)}


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("from gym_replay import ReplayBuffer, buffer", {"gym_replay.buffer"}),
        ("import gym_replay.wrappers.vector", set()),
        ("import gym_replay.files.lock as lock", {"gym_replay.files.lock"}),
        ("from gym_replay.cli import main, output", {"gym_replay.cli.output"}),
        ("from gym_replay.interop.flat import to_d4rl, read", {"gym_replay.interop.flat.read"}),
        ("patch('gym_replay.buffer.storage.staging.CHUNK_ROWS', 8)", {"gym_replay.buffer.storage.staging.CHUNK_ROWS"}),
        ("run('import os; from gym_replay.files import lock')", {"gym_replay.files.lock"}),
    ],
)
def test_what_is_internal(code, found):
    assert internals_in(ast.parse(code)) == found


def test_few_test_files_reach_inside_the_package():
    """Tests assert what users see, so that the inside can be rebuilt under them.

    Public are the names that `gym_replay` and `gym_replay.wrappers.vector` export, each `RecordToBuffer`,
    `gym_replay.cli.main` and the exported functions where `gym_replay.interop` defines them. What a test needs inside
    only to make a size small, or to watch or refuse single calls, it has from `tests/internals.py`, which counts as one
    file. The others that are counted test one module as a unit: arithmetic, a codec or a table of which no user could
    reach all cases. This file names modules, and imports none.
    """
    tests = Path(__file__).parent
    files = {path.relative_to(tests).as_posix(): ast.parse(path.read_text()) for path in sorted(tests.rglob("*.py"))}
    inside = {name: found for name, tree in files.items() if (found := internals_in(tree))}
    inside.pop(Path(__file__).name)
    assert len(inside) <= MOST_TEST_FILES, inside
