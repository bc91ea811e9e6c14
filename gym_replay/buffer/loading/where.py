"""Conditions on episodes as text: ``"episode_return > 300 and not truncated"``.

The text is parsed with Python's own grammar and evaluated here, node by node, over the values of all episodes at once.
Only the nodes that are named below mean anything, and nothing of the text is ever executed.
"""

from __future__ import annotations

import ast
import keyword
import operator
import re
import warnings
from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any

import numpy as np

from gym_replay.errors import FieldError
from gym_replay.notices import did_you_mean
from gym_replay.schema.arrays import Array, Bools

_LONGEST = 2000
_MOST_NODES = 500
_DEEPEST = 60
_WORD = re.compile(r"\w+")
_WORDS = ("and", "or", "not", "in", "True", "False")
"""The words of Python's own that conditions have."""
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
_FUNCTIONS: dict[str, tuple[Callable[..., Any], int]] = {
    "abs": (np.abs, 1),
    "isnan": (np.isnan, 1),
    "min": (np.minimum, 2),
    "max": (np.maximum, 2),
}
"""What is computed of numbers, and how many there are; of two or more, the function is applied to two at a time."""

_TEXT_METHODS = {"startswith": str.startswith, "endswith": str.endswith}
_MEANINGFUL = "there are names, numbers, strings, comparisons, `and`, `or`, `not`, `in`, and + - * / // % **"
_NOUNS = {ast.IfExp: "if", ast.Lambda: "a function", ast.NamedExpr: "an assignment", ast.JoinedStr: "an f-string"}
_NOUNS |= {ast.List: "a list", ast.Tuple: "a list", ast.Set: "a list", ast.Dict: "a dict", ast.Starred: "a star"}


def _parsed(text: str) -> ast.expr:
    """The tree of an expression, as Python has it."""
    if "\\" not in text:
        return ast.parse(text, mode="eval").body
    with warnings.catch_warnings():  # for all threads, so not where it can be helped
        warnings.simplefilter("ignore")  # of odd escapes in strings
        return ast.parse(text, mode="eval").body


class Where:
    """A condition on episodes, parsed and ready to be evaluated.

    There are names (of meta fields, and those of :class:`~gym_replay.buffer.loading.selection.EpisodeValues`), numbers,
    strings, True and False; ``and``, ``or``, ``not``; comparisons, chained ones too; ``in`` and ``not in`` lists, and
    in strings; ``+ - * / // % **``; ``abs``, ``min``, ``max``, ``isnan``; ``name.startswith("...")`` and
    ``name.endswith("...")``; and ``name[0]`` for one number of a meta field with a shape. ``meta["..."]`` is the meta
    field of a name that is no name in Python.

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
        try:
            self._body = _parsed(self.text)
        except SyntaxError as error:
            at = error.offset - 1 if error.offset else len(self.text)  # the parser says 0 of the end
            message = error.msg or "invalid syntax"
            if keyword.iskeyword(word := (_WORD.match(self.text, at) or [""])[0]) and word not in _WORDS:
                near = "; did you mean 'episode_return'?" if word == "return" else ""
                message = f"{word!r} is a word of Python's own{near}"
            raise FieldError(self._shown(message, at)) from None
        except (ValueError, MemoryError, RecursionError) as error:
            raise FieldError(self._shown(f"it cannot be parsed ({error or type(error).__name__})", 0)) from None
        self._check_size()

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
        """The message, the text and a caret below the fault."""
        offset = max(min(offset, len(self.text)), 0)
        begin = max(offset - _SHOWN // 2, 0)
        return f"where: {message}\n  {self.text[begin : begin + _SHOWN]}\n  {' ' * (offset - begin)}^"

    def fault(self, node: ast.AST, message: str) -> FieldError:
        """An error that points to a part of the text."""
        offset = len(self.text.encode()[: getattr(node, "col_offset", 0)].decode(errors="ignore"))
        return FieldError(self._shown(message, offset))

    def mask(self, values: Mapping[str, Array], count: int) -> Bools:
        """Which of ``count`` episodes meet the condition, bool ``(count,)``.

        Args:
            values: by name, ``(count, *shape)`` each; strings as an array of objects. Only what is named is read.

        Raises:
            FieldError: a name is unknown, or the parts do not fit together; the message shows where.
        """
        with np.errstate(all="ignore"):
            found = _Evaluation(values, self.fault).condition(self._body)
        return np.array(np.broadcast_to(found, (count,)))


def _kind(value: Any) -> str:
    """What a value is: one for all episodes, or an array of one for each."""
    if isinstance(value, (np.ndarray, np.generic)):
        return {"b": "condition", "O": "string"}.get(value.dtype.kind, "number")
    return "condition" if isinstance(value, bool) else "string" if isinstance(value, str) else "number"


class _Evaluation:
    """A condition over the values of episodes."""

    def __init__(self, values: Mapping[str, Array], fault: Callable[[ast.AST, str], FieldError]) -> None:
        self._values, self._fault = values, fault

    def condition(self, node: ast.expr) -> Any:
        """The truth of a part that must be a condition."""
        value = self._value(node)
        if (kind := _kind(value)) != "condition":
            raise self._fault(node, f"expected a condition, got a {kind}; compare it with something, as in `... != 0`")
        return value

    def _number(self, node: ast.expr) -> Any:
        """A part that must be a number, as float64."""
        value = self._value(node)
        if _kind(value) == "string":
            raise self._fault(node, "expected a number, got a string")
        try:
            return np.asarray(value).astype(np.float64)
        except (OverflowError, TypeError, ValueError):
            raise self._fault(node, "the number is too large") from None

    def _value(self, node: ast.expr) -> Any:
        match node:
            case ast.Constant(value=bool() | int() | float() | str() as value):
                return value
            case ast.Constant():
                raise self._fault(node, f"expected a number, a string, True or False, got {node.value!r:.40}")
            case ast.Name() | ast.Attribute() | ast.Subscript():
                return self._named_value(node)
            case ast.BoolOp():
                combine = np.logical_and if isinstance(node.op, ast.And) else np.logical_or
                return reduce(combine, map(self.condition, node.values))
            case ast.UnaryOp():
                return self._unary(node)
            case ast.BinOp():
                if isinstance(node.op, (ast.BitAnd, ast.BitOr, ast.BitXor)):
                    raise self._fault(node, "write `and` and `or` instead of & and |")
                if (compute := _ARITHMETIC.get(type(node.op))) is None:
                    raise self._fault(node, f"this operation has no meaning here; {_MEANINGFUL}")
                return compute(self._number(node.left), self._number(node.right))
            case ast.Compare():
                return self._comparison(node)
            case ast.Call():
                return self._call(node)
        raise self._fault(node, f"{_NOUNS.get(type(node), 'this')} has no meaning here; {_MEANINGFUL}")

    def _unary(self, node: ast.UnaryOp) -> Any:
        if isinstance(node.op, ast.Not):
            return np.logical_not(self.condition(node.operand))
        if isinstance(node.op, ast.Invert):
            raise self._fault(node, "write `not` instead of ~")
        value = self._value(node.operand)
        number = value if type(value) in (int, float) else self._number(node.operand)
        return -number if isinstance(node.op, ast.USub) else number

    def _named_value(self, node: ast.expr) -> Any:
        """Values of one number, or string, for each episode."""
        values = self._stored(node)
        if values.ndim != 1:
            raise self._fault(node, f"it has shape {values.shape[1:]} in each episode; take one number, as in `...[0]`")
        return values

    def _stored(self, node: ast.expr) -> Array:
        """The values of a name, or a part of them."""
        match node:
            case ast.Subscript(value=ast.Name(id="meta"), slice=ast.Constant(value=str() as name) as index):
                return self._named(index, name)
            case ast.Subscript():
                values = self._stored(node.value)
                for item in node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]:
                    index = self._value(item)
                    if type(index) is not int:
                        raise self._fault(item, "expected an integer")
                    if values.ndim < 2 or not -values.shape[1] <= index < values.shape[1]:
                        shape = values.shape[1:]
                        raise self._fault(item, f"there is no such part: each episode's values have shape {shape}")
                    values = values[:, index]
                return values
        return self._named(node, self._dotted(node))

    def _dotted(self, node: ast.expr) -> str:
        """The name of nested fields, written as attributes."""
        if isinstance(node, ast.Name):
            return node.id
        if isinstance(node, ast.Attribute):
            return f"{self._dotted(node.value)}.{node.attr}"
        raise self._fault(node, f"expected a name before the dot; {_MEANINGFUL}")

    def _named(self, node: ast.AST, name: str) -> Array:
        if name not in self._values:
            raise self._fault(node, f"unknown name {name!r}{did_you_mean(name, self._values)}")
        return self._values[name]

    def _comparison(self, node: ast.Compare) -> Any:
        found: list[Any] = []
        left = self._value(node.left)
        for op, right_node in zip(node.ops, node.comparators, strict=True):
            if isinstance(op, (ast.In, ast.NotIn)):
                among = self._among(left, right_node)
                found.append(np.logical_not(among) if isinstance(op, ast.NotIn) else among)
                if right_node is not node.comparators[-1]:
                    raise self._fault(right_node, "`in` cannot be chained; write `and`")
                break
            right = self._value(right_node)
            found.append(self._compared(op, left, right, right_node))
            left = right
        return reduce(np.logical_and, found)

    def _compared(self, op: ast.cmpop, left: Any, right: Any, node: ast.expr) -> Any:
        compute = _COMPARE.get(type(op))
        if compute is None:
            raise self._fault(node, "write == instead of `is`, and != instead of `is not`")
        if (_kind(left) == "string") != (_kind(right) == "string"):
            raise self._fault(node, f"a {_kind(left)} is compared with a {_kind(right)}")
        return np.asarray(compute(left, right)).astype(np.bool_)

    def _among(self, left: Any, node: ast.expr) -> Any:
        """Whether a value is in a list, or a string in another one."""
        if isinstance(node, (ast.List, ast.Tuple, ast.Set)):
            equal = [self._compared(ast.Eq(), left, self._value(item), item) for item in node.elts]
            return reduce(np.logical_or, equal, np.False_)
        right = self._value(node)
        if _kind(left) != "string" or _kind(right) != "string":
            raise self._fault(
                node, "expected a list, as in `task in ['reach', 'push']`, or strings on both sides of `in`"
            )
        return _each_text(operator.contains, right, left)

    def _call(self, node: ast.Call) -> Any:
        if node.keywords or any(isinstance(argument, ast.Starred) for argument in node.args):
            raise self._fault(node, "expected plain arguments")
        match node.func:
            case ast.Attribute(value=text, attr=name) if name in _TEXT_METHODS:
                texts = [self._value(part) for part in (text, *node.args)]
                if [*map(_kind, texts)] != ["string", "string"]:
                    raise self._fault(node, f"expected a string and one string, as in `task.{name}('reach')`")
                return _each_text(_TEXT_METHODS[name], *texts)
            case ast.Name(id=name) if name in _FUNCTIONS:
                compute, least = _FUNCTIONS[name]
                if len(node.args) < least or (least == 1 and len(node.args) > 1):
                    takes = f"{least} number{'s or more' if least > 1 else ''}"
                    raise self._fault(node, f"{name} takes {takes}, got {len(node.args)}")
                numbers = [self._number(argument) for argument in node.args]
                return compute(numbers[0]) if least == 1 else reduce(compute, numbers)
        raise self._fault(node, f"there are no functions but {', '.join((*_FUNCTIONS, *_TEXT_METHODS))}")


def _each_text(test: Callable[[str, str], bool], first: Any, second: Any) -> Any:
    """A test of two strings, in each episode."""
    found = np.frompyfunc(test, 2, 1)(np.asarray(first, object), np.asarray(second, object))
    return np.asarray(found).astype(np.bool_)
