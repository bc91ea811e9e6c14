"""The arithmetic of plans and orders stands alone."""

import ast
from pathlib import Path

import gym_replay

PACKAGE = Path(gym_replay.__file__).parent


def test_the_arithmetic_sees_neither_buffers_nor_torch():
    for name in ("lookup", "order", "blocks", "weights", "randomness", "plans"):
        path = PACKAGE / "buffer" / "loading" / f"{name}.py"
        tree = ast.parse(path.read_text())
        modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        modules |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        assert not {module for module in modules if module and (module.startswith("torch") or "storage" in module)}
