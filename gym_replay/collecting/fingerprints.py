"""What can be seen of a function or policy, so that another one of the same name is told from it.

Seen are the code, the defaults, and what the code refers to: constants, arrays, the weights of torch modules, and other
functions of the same package. Not looked at is what playing may change: lists, dicts, sets, and the attributes of
objects.
"""

from __future__ import annotations

import hashlib
import sys
import types
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

_PLAIN = (type(None), bool, int, float, complex, str, bytes, type(Ellipsis), np.generic, np.dtype)


@dataclass
class Fingerprint:
    """What was seen of something.

    Attributes:
        parts: what was seen, in the order of a walk over it.
        unseen: names of what was not looked at.
    """

    parts: list[bytes] = field(default_factory=list)
    unseen: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, str]:
        """A digest that can be compared, within one version of Python: others compile the same source differently."""
        digest = hashlib.sha256()
        for part in self.parts:
            digest.update(len(part).to_bytes(8, "little") + part)
        return {"python": f"{sys.version_info.major}.{sys.version_info.minor}", "sha256": digest.hexdigest()}


def fingerprint(thing: Any, *, with_arrays: bool = True) -> Fingerprint:
    """What can be seen of a function, method, class or object that is called.

    Args:
        thing: what is called.
        with_arrays: whether arrays, and the weights of modules, count. A function that only watches fills them.
    """
    walk = _Walk(with_arrays)
    walk.visit("", thing)
    return walk.found


class _Walk:
    """A walk over what a function refers to."""

    def __init__(self, with_arrays: bool) -> None:
        self.found = Fingerprint()
        self._with_arrays = with_arrays
        self._seen: dict[int, Any] = {}  # held, so that no other object takes the id of one of them
        self._package = ""

    def _note(self, *parts: object) -> None:
        self.found.parts += [part if isinstance(part, bytes) else str(part).encode() for part in parts]

    def visit(self, name: str, value: Any) -> None:
        """Note a value that something refers to by a name."""
        if isinstance(value, _PLAIN):
            self._note(name, type(value).__name__, repr(value))
        elif isinstance(value, (tuple, frozenset)):
            self._note(name, type(value).__name__, len(value))
            for item in value if isinstance(value, tuple) else sorted(value, key=repr):
                self.visit(name, item)
        elif isinstance(value, types.ModuleType):
            self._note(name, value.__name__)
        elif (isinstance(value, np.ndarray) and not value.dtype.hasobject) or _is_torch(value, "Tensor", "Module"):
            self._numbers(name, value)
        elif id(value) in self._seen:
            self._note(name, "again")
        else:
            self._seen[id(value)] = value
            self._visit_object(name, value)

    def _visit_object(self, name: str, value: Any) -> None:
        if isinstance(value, types.FunctionType):
            self._function(name, value)
        elif isinstance(value, types.MethodType):
            self.visit(name, value.__func__)
            self.visit(name, value.__self__)
        elif isinstance(value, partial):
            for part in (value.func, value.args, *sorted(value.keywords.items())):
                self.visit(name, part)
        elif isinstance(value, (staticmethod, classmethod)):
            self.visit(name, value.__func__)
        elif isinstance(value, property):
            self.visit(name, (value.fget, value.fset))
        elif isinstance(value, type):
            self._class(name, value)
        elif isinstance(value, types.BuiltinFunctionType):
            self._note(name, value.__qualname__)
        elif type(value).__module__ == "torch.autograd.grad_mode":  # of @torch.inference_mode(): they hold a flag
            self._note(name, type(value).__qualname__)
        else:
            self._class(name, type(value))
            for key, inner in getattr(value, "__dict__", {}).items():
                if _is_torch(inner, "Module"):
                    self._numbers(key, inner)
            if getattr(value, "__dict__", True):
                self.found.unseen.append(name or type(value).__name__)

    # --- code ---

    def _is_own(self, value: Any) -> bool:
        """Whether a function or class is of the package that the walk began in; others are known by their names."""
        package = str(getattr(value, "__module__", "")).partition(".")[0]
        self._package = self._package or package
        return package == self._package

    def _function(self, name: str, function: types.FunctionType) -> None:
        if not self._is_own(function):
            self._note(name, function.__module__, function.__qualname__)
            return
        self._code(function.__code__, function.__doc__)
        self.visit("defaults", function.__defaults__)
        self.visit("keyword defaults", tuple(sorted((function.__kwdefaults__ or {}).items())))
        for key, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            self.visit(key, _content_of(cell))
        for key in _names_of(function.__code__):
            if key in function.__globals__:
                self.visit(key, function.__globals__[key])

    def _code(self, code: types.CodeType, doc: str | None = None) -> None:
        self._note(code.co_code, code.co_names, code.co_argcount, code.co_kwonlyargcount)
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                self._code(constant)
            elif constant is not doc or doc is None:
                self.visit("constant", constant)

    def _class(self, name: str, kind: type) -> None:
        self._note(name, kind.__module__, kind.__qualname__)
        if not self._is_own(kind):
            return
        for base in kind.__mro__[:-1]:
            if self._is_own(base):
                for key, value in sorted(vars(base).items(), key=lambda item: item[0]):
                    if not key.startswith("__") or key in ("__call__", "__init__"):
                        self.visit(key, value)

    # --- numbers ---

    def _numbers(self, name: str, value: Any) -> None:
        if not self._with_arrays:
            self.found.unseen.append(name)
        elif isinstance(value, np.ndarray):
            self._note(name, value.dtype.str, value.shape, value.tobytes())
        elif _is_torch(value, "Tensor"):
            flat = value.detach().cpu().contiguous().reshape(-1)
            content = flat.view(sys.modules["torch"].uint8).numpy().tobytes() if flat.numel() else b""
            self._note(name, value.dtype, tuple(value.shape), content)
        else:
            self._class(name, type(value))
            for key, tensor in value.state_dict().items():
                if _is_torch(tensor, "Tensor"):
                    self._numbers(key, tensor)


def _content_of(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # it has no value yet
        return None


def _names_of(code: types.CodeType) -> list[str]:
    """The global names that code refers to, that of inner functions included."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= set(_names_of(constant))
    return sorted(names)


def _is_torch(value: Any, *kinds: str) -> bool:
    """Whether a value is one of torch's tensors or modules; where torch is not imported, nothing is."""
    torch: Any = sys.modules.get("torch")
    classes = () if torch is None else tuple(torch.nn.Module if kind == "Module" else torch.Tensor for kind in kinds)
    return isinstance(value, classes)
