"""The modules of the loaders import one another in one direction, imports for types included."""

import ast
from pathlib import Path

import gym_replay

PACKAGE = Path(gym_replay.__file__).parent


def name_of(path):
    name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    return name.removesuffix(".__init__")


MODULES = {name_of(path): path for path in PACKAGE.rglob("*.py")}


def imports_of(path):
    """The modules of the package that a file imports anywhere, and those of which it imports a name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & MODULES.keys()


def reached_from(start, graph):
    found, ahead = set(), list(graph[start])
    while ahead:
        module = ahead.pop()
        if module not in found:
            found.add(module)
            ahead += graph[module]
    return found


def test_no_module_of_the_loaders_is_in_a_circle():
    graph = {name: imports_of(path) for name, path in MODULES.items()}
    loaders = [name for name in MODULES if name.startswith("gym_replay.buffer.loading.")]
    assert len(loaders) > 20
    assert [name for name in loaders if name in reached_from(name, graph)] == []
    assert "gym_replay.buffer.reading" not in {one for name in loaders for one in reached_from(name, graph)}


def test_the_arithmetic_sees_neither_buffers_nor_torch():
    for name in ("lookup", "order", "blocks", "weights", "randomness", "plans"):
        path = PACKAGE / "buffer" / "loading" / f"{name}.py"
        tree = ast.parse(path.read_text())
        modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        modules |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        assert not {module for module in modules if module and (module.startswith("torch") or "storage" in module)}
