"""Conditions on episodes as text: ``"episode_return > 300 and not truncated"``.

The text is parsed with Python's own grammar and evaluated here, node by node, over the values of all episodes at once.
Only the nodes that are named below mean anything, and nothing of the text is ever executed.
"""

from __future__ import annotations

import ast
import difflib
import operator
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import numpy.typing as npt

from gym_replay.errors import FieldError

Mask = npt.NDArray[np.bool_]

_LONGEST = 2000
_MOST_NODES = 500
_DEEPEST = 60
_SHOWN = 100
"""Characters of the text beside what is wrong in it."""

_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: np.add,
    ast.Sub: np.subtract,
    ast.Mult: np.multiply,
    ast.Div: np.divide,
    ast.FloorDiv: np.floor_divide,
    ast.Mod: np.mod,
    ast.Pow: np.power,
}
_FUNCTIONS: dict[str, tuple[int, Callable[[Sequence[Any]], Any]]] = {
    "abs": (1, lambda values: np.abs(values[0])),
    "min": (2, lambda values: reduce(np.minimum, values)),
    "max": (2, lambda values: reduce(np.maximum, values)),
}
"""The least number of arguments, and what is computed of them; abs takes one, the others any number from two on."""

_TEXT_METHODS = ("startswith", "endswith")
_BITS = (ast.BitAnd, ast.BitOr, ast.BitXor)


class Where:
    """A condition on episodes, parsed and ready to be evaluated.

    There are names (meta fields and facts), numbers, strings, True and False; ``and``, ``or``, ``not``; comparisons,
    chained ones too; ``in`` and ``not in`` lists, and in strings; ``+ - * / // % **``; ``abs``, ``min``, ``max``,
    ``isnan``; ``name.startswith("...")`` and ``name.endswith("...")``; and ``name[0]`` for one number of a meta field
    with a shape. ``meta["..."]`` is the meta field of a name that is no name in Python.

    Values are compared as they are stored, floats in their field's own precision. Arithmetic is done in float64, and
    what is divided by zero is infinite or NaN there.

    Args:
        text: the condition.

    Raises:
        FieldError: it is none; the message shows where.

    Example:
        >>> where = Where("length >= 2 and task in ['reach', 'grasp']")
        >>> where.mask({"length": np.array([1, 2, 3]), "task": np.array(["reach", "push", "grasp"], object)}, 3)
        array([False, False,  True])
    """

    def __init__(self, text: str) -> None:
        if not isinstance(text, str):
            raise FieldError(f"where: expected a string such as 'length > 100', got {text!r:.60}")
        self.text = " ".join(text.split("\n")).replace("\r", " ").replace("\t", " ").strip()
        if len(self.text) > _LONGEST:
            raise FieldError(f"where: expected at most {_LONGEST} characters, got {len(self.text)}")
        if not self.text:
            raise FieldError("where: expected a condition such as 'length > 100', got an empty string")
        self._body = self._parsed()
        self._check_size()

    def _parsed(self) -> ast.expr:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of odd escapes in strings
                return ast.parse(self.text, mode="eval").body
        except SyntaxError as error:
            at = error.offset - 1 if error.offset else len(self.text.rstrip())  # the parser says 0 of the end
            raise FieldError(self._shown(error.msg or "invalid syntax", at)) from None
        except (ValueError, MemoryError, RecursionError) as error:
            raise FieldError(self._shown(f"it cannot be parsed ({error or type(error).__name__})", 0)) from None

    def _check_size(self) -> None:
        level: list[ast.AST] = [self._body]
        nodes = depth = 0
        while level:
            nodes, depth = nodes + len(level), depth + 1
            if nodes > _MOST_NODES or depth > _DEEPEST:
                raise FieldError(
                    f"where: too large (expected at most {_MOST_NODES} parts, nested at most {_DEEPEST} deep); choose "
                    "the episodes in Python and pass their indices"
                )
            level = [child for node in level for child in ast.iter_child_nodes(node)]

    def _shown(self, message: str, offset: int) -> str:
        """The message, the text and a caret below the place of the fault."""
        offset = max(min(offset, len(self.text)), 0)
        begin = max(offset - _SHOWN // 2, 0)
        stretch = self.text[begin : begin + _SHOWN]
        return f"where: {message}\n  {stretch}\n  {' ' * (offset - begin)}^"

    def fault(self, node: ast.AST, message: str) -> FieldError:
        """An error that points to a part of the text."""
        offset = len(self.text.encode()[: getattr(node, "col_offset", 0)].decode(errors="ignore"))
        return FieldError(self._shown(message, offset))

    def mask(self, values: Mapping[str, npt.NDArray[Any]], count: int) -> Mask:
        """Which of ``count`` episodes meet the condition, bool ``(count,)``.

        Args:
            values: by name, ``(count, *shape)`` each; strings as an array of objects. Only what is named is read.

        Raises:
            FieldError: a name is unknown, or the parts do not fit together; the message shows where.
        """
        with np.errstate(all="ignore"):
            found = _Evaluation(self, values).condition(self._body)
        return np.array(np.broadcast_to(found, (count,)))


@dataclass(frozen=True)
class _Value:
    """What a part of the text stands for: one value for all episodes, or an array of one for each."""

    kind: str  # "condition", "number" or "string"
    content: Any


class _Evaluation:
    """A condition over the values of episodes."""

    def __init__(self, where: Where, values: Mapping[str, npt.NDArray[Any]]) -> None:
        self._where, self._values = where, values
        self._fault = where.fault

    def condition(self, node: ast.expr) -> Any:
        """The truth of a part that must be a condition."""
        value = self._value(node)
        if value.kind != "condition":
            raise self._fault(
                node, f"expected a condition, got a {value.kind}; compare it with something, as in `... != 0`"
            )
        return value.content

    def _number(self, node: ast.expr) -> Any:
        """A part that must be a number, as float64."""
        value = self._value(node)
        if value.kind == "string":
            raise self._fault(node, "expected a number, got a string")
        try:
            return np.asarray(value.content).astype(np.float64)
        except (OverflowError, TypeError, ValueError):
            raise self._fault(node, "the number is too large") from None

    def _value(self, node: ast.expr) -> _Value:
        find = _NODES.get(type(node))
        if find is None:
            raise self._fault(node, f"{_NOUNS.get(type(node).__name__, 'this')} has no meaning here; {_MEANINGFUL}")
        return find(self, node)

    def _constant(self, node: ast.Constant) -> _Value:
        if isinstance(node.value, bool):
            return _Value("condition", node.value)
        if isinstance(node.value, (int, float)):
            return _Value("number", node.value)
        if isinstance(node.value, str):
            return _Value("string", node.value)
        raise self._fault(node, f"expected a number, a string, True or False, got {node.value!r:.40}")

    def _name(self, node: ast.Name) -> _Value:
        return self._single(node, self._named(node, node.id))

    def _attribute(self, node: ast.Attribute) -> _Value:
        return self._single(node, self._named(node, self._dotted(node)))

    def _dotted(self, node: ast.expr) -> str:
        """The name of nested fields, written as attributes."""
        if isinstance(node, ast.Name):
            return node.id
        if isinstance(node, ast.Attribute):
            return f"{self._dotted(node.value)}.{node.attr}"
        raise self._fault(node, f"expected a name before the dot; {_MEANINGFUL}")

    def _named(self, node: ast.AST, name: str) -> npt.NDArray[Any]:
        if name not in self._values:
            known = list(self._values)
            close = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {close[0]!r}?" if close else "."
            raise self._where.fault(node, f"unknown name {name!r}{hint} There are: {', '.join(known)}")
        return self._values[name]

    def _single(self, node: ast.expr, values: npt.NDArray[Any]) -> _Value:
        """Values of one number, or string, for each episode."""
        if values.ndim != 1:
            raise self._fault(node, f"it has shape {values.shape[1:]} in each episode; take one number, as in `...[0]`")
        kinds = {"b": "condition", "O": "string"}
        return _Value(kinds.get(values.dtype.kind, "number"), values)

    def _subscript(self, node: ast.Subscript) -> _Value:
        return self._single(node, self._part(node))

    def _part(self, node: ast.expr) -> npt.NDArray[Any]:
        """The values of a name, or a part of them."""
        if not isinstance(node, ast.Subscript):
            return self._named(node, self._dotted(node))
        inner, index = node.value, node.slice
        by_name = isinstance(inner, ast.Name) and inner.id == "meta"
        if by_name and isinstance(index, ast.Constant) and isinstance(index.value, str):
            return self._named(index, index.value)
        values = self._part(inner)
        for item in index.elts if isinstance(index, ast.Tuple) else [index]:
            value = self._value(item)
            if type(value.content) is not int:
                raise self._fault(item, "expected an integer")
            if values.ndim < 2 or not -values.shape[1] <= value.content < values.shape[1]:
                raise self._fault(item, f"there is no such part: each episode's values have shape {values.shape[1:]}")
            values = values[:, value.content]
        return values

    def _boolop(self, node: ast.BoolOp) -> _Value:
        combine = np.logical_and if isinstance(node.op, ast.And) else np.logical_or
        return _Value("condition", reduce(combine, [self.condition(part) for part in node.values]))

    def _unaryop(self, node: ast.UnaryOp) -> _Value:
        if isinstance(node.op, ast.Not):
            return _Value("condition", np.logical_not(self.condition(node.operand)))
        if isinstance(node.op, ast.Invert):
            raise self._fault(node, "write `not` in the place of ~")
        value = self._value(node.operand)
        if value.kind == "number" and isinstance(value.content, (int, float)):
            return _Value("number", -value.content if isinstance(node.op, ast.USub) else value.content)
        number = self._number(node.operand)
        return _Value("number", -number if isinstance(node.op, ast.USub) else number)

    def _binop(self, node: ast.BinOp) -> _Value:
        if isinstance(node.op, _BITS):
            raise self._fault(node, "write `and` and `or` in the place of & and |")
        compute = _ARITHMETIC.get(type(node.op))
        if compute is None:
            raise self._fault(node, f"this operation has no meaning here; {_MEANINGFUL}")
        return _Value("number", compute(self._number(node.left), self._number(node.right)))

    def _compare(self, node: ast.Compare) -> _Value:
        found: list[Any] = []
        left_node, left = node.left, self._value(node.left)
        for op, right_node in zip(node.ops, node.comparators, strict=True):
            if isinstance(op, (ast.In, ast.NotIn)):
                among = self._among(left, left_node, right_node)
                found.append(np.logical_not(among) if isinstance(op, ast.NotIn) else among)
                if right_node is not node.comparators[-1]:
                    raise self._fault(right_node, "`in` cannot be chained; write `and`")
                break
            right = self._value(right_node)
            found.append(self._compared(op, left, right, right_node))
            left_node, left = right_node, right
        return _Value("condition", reduce(np.logical_and, found))

    def _compared(self, op: ast.cmpop, left: _Value, right: _Value, node: ast.expr) -> Any:
        compute = _COMPARE.get(type(op))
        if compute is None:
            raise self._fault(node, "write == in the place of `is`, and != in that of `is not`")
        if (left.kind == "string") != (right.kind == "string"):
            raise self._fault(node, f"a {left.kind} is compared with a {right.kind}")
        return np.asarray(compute(left.content, right.content)).astype(np.bool_)

    def _among(self, left: _Value, left_node: ast.expr, node: ast.expr) -> Any:
        """Whether a value is in a list, or a string in another one."""
        if isinstance(node, (ast.List, ast.Tuple, ast.Set)):
            equal = [self._compared(ast.Eq(), left, self._value(item), item) for item in node.elts]
            return reduce(np.logical_or, equal, np.False_)
        right = self._value(node)
        if left.kind != "string" or right.kind != "string":
            raise self._fault(
                node, "expected a list, as in `task in ['reach', 'push']`, or strings on both sides of `in`"
            )
        return _each_text(operator.contains, right.content, left.content)

    def _call(self, node: ast.Call) -> _Value:
        if node.keywords or any(isinstance(argument, ast.Starred) for argument in node.args):
            raise self._fault(node, "expected plain arguments")
        function = node.func
        if isinstance(function, ast.Attribute) and function.attr in _TEXT_METHODS:
            return self._text_method(node, function)
        name = function.id if isinstance(function, ast.Name) else ""
        if name == "isnan" and len(node.args) == 1:
            return _Value("condition", np.isnan(self._number(node.args[0])))
        if name not in _FUNCTIONS:
            raise self._fault(
                node, f"there are no functions but abs, min, max, isnan, startswith, endswith; got {name!r}"
            )
        least, compute = _FUNCTIONS[name]
        if len(node.args) < least or (least == 1 and len(node.args) > 1):
            raise self._fault(
                node, f"{name} takes {least} number{'s or more' if least > 1 else ''}, got {len(node.args)}"
            )
        return _Value("number", compute([self._number(argument) for argument in node.args]))

    def _text_method(self, node: ast.Call, function: ast.Attribute) -> _Value:
        values = [self._value(part) for part in (function.value, *node.args)]
        if len(values) != 2 or any(value.kind != "string" for value in values):
            raise self._fault(node, f"expected a string and one string, as in `task.{function.attr}('reach')`")
        method = getattr(str, function.attr)
        return _Value("condition", _each_text(method, *(value.content for value in values)))


_NODES: dict[type[ast.expr], Callable[[_Evaluation, Any], _Value]] = {
    ast.Constant: _Evaluation._constant,
    ast.Name: _Evaluation._name,
    ast.Attribute: _Evaluation._attribute,
    ast.Subscript: _Evaluation._subscript,
    ast.BoolOp: _Evaluation._boolop,
    ast.UnaryOp: _Evaluation._unaryop,
    ast.BinOp: _Evaluation._binop,
    ast.Compare: _Evaluation._compare,
    ast.Call: _Evaluation._call,
}
"""All that has a meaning."""

_MEANINGFUL = "there are names, numbers, strings, comparisons, `and`, `or`, `not`, `in`, and + - * / // % **"
_NOUNS = {
    "Lambda": "a function",
    "IfExp": "if",
    "NamedExpr": "an assignment",
    "JoinedStr": "an f-string",
    "List": "a list",
    "Tuple": "a list",
    "Set": "a list",
    "Dict": "a dict",
    "ListComp": "a comprehension",
    "SetComp": "a comprehension",
    "DictComp": "a comprehension",
    "GeneratorExp": "a comprehension",
    "Await": "await",
    "Yield": "yield",
    "Starred": "a star",
}


def _each_text(test: Callable[[str, str], bool], first: Any, second: Any) -> Any:
    """A test of two strings, in each episode."""
    if isinstance(first, str) and isinstance(second, str):
        return test(first, second)
    one, other = np.broadcast_arrays(np.asarray(first, object), np.asarray(second, object))
    return np.fromiter(map(test, _texts(one), _texts(other)), np.bool_, one.size)


def _texts(values: npt.NDArray[Any]) -> Iterator[str]:
    return iter(values.tolist())
