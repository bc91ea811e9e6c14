"""What is kept of the recorded environment: its spaces and its spec, as JSON.

Both come back from a folder that a stranger may have written. So nothing here imports a module or calls an entry
point that the JSON names, and whatever is malformed raises :class:`~gym_replay.errors.CorruptBufferError`.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
import warnings
from collections.abc import Callable, Mapping
from functools import singledispatch
from typing import Any, TypeAlias

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium import Space, spaces
from gymnasium.envs.registration import EnvSpec, WrapperSpec

from gym_replay.buffer.storage.names import encode_key, encode_siblings, key_from_json, key_to_json
from gym_replay.errors import CorruptBufferError, FieldError, GymReplayError, UnsupportedSpaceError

Json: TypeAlias = Any

MAX_DEPTH = 32
"""How deep spaces, and the values of environment arguments, may be nested."""

MAX_ELEMENTS = 2**25
"""How many elements the bounds of all spaces in one JSON value may have together; a space itself counts for 1024.

33 million elements are a 4K colour image. The largest allocation that a stranger's file can cause is about 34 bytes
for each: two float64 bounds, their copies, and two flags.
"""

MAX_COPIED = 4
"""How deep Graph and stacked Sequence spaces may be nested: Gymnasium copies what they hold, so each level doubles."""

_ELEMENTS_PER_SPACE = 1024
_NUMERIC = frozenset(
    ["bool", "float16", "float32", "float64", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))]
)


class MakeEnvError(GymReplayError, ValueError):
    """The recorded environment cannot be built again from what was recorded."""


def space_to_json(space: Space[Any], root: str = "space") -> dict[str, Json]:
    """A space as JSON, from which :func:`space_from_json` makes an equal space.

    A subclass of a standard space is written as its nearest standard base. Float bounds keep every bit.

    Args:
        space: any standard Gymnasium space.
        root: what messages call the space, such as ``"observation"``.

    Raises:
        UnsupportedSpaceError: the space or one inside it is not standard, is nested deeper than ``MAX_DEPTH``, has
            more than ``MAX_ELEMENTS`` elements, or could not be built again; the message names its type and place.

    Example:
        >>> space_to_json(spaces.Discrete(2))
        {'type': 'Discrete', 'n': 2, 'start': 0, 'dtype': 'int64'}
    """
    try:
        value = _to_json(space, root)
        space_from_json(value)  # what cannot be opened again must not be recorded
    except (CorruptBufferError, RecursionError) as error:
        raise UnsupportedSpaceError(f"{root}: {type(space).__name__} cannot be stored ({error})") from None
    return value


@singledispatch
def _to_json(space: Any, place: str) -> dict[str, Json]:
    kind = f"{type(space).__module__}.{type(space).__qualname__}"
    raise UnsupportedSpaceError(
        f"{place}: {kind} is no standard Gymnasium space; convert it with a wrapper to one that is, such as Box"
    )


@_to_json.register
def _(space: spaces.Box, place: str) -> dict[str, Json]:
    value = {
        "type": "Box",
        "dtype": _dtype_to_json(space.dtype, place),
        "shape": list(space.shape),
        "low": _numbers_to_json(space.low),
        "high": _numbers_to_json(space.high),
    }
    # An integer Box may be unbounded although its low and high are finite.
    for name, natural in (("bounded_below", space.low > -np.inf), ("bounded_above", space.high < np.inf)):
        bounded = getattr(space, name, natural)
        if not np.array_equal(bounded, natural):
            value[name] = _numbers_to_json(bounded)
    return value


@_to_json.register
def _(space: spaces.Discrete, place: str) -> dict[str, Json]:
    return {
        "type": "Discrete",
        "n": int(space.n),
        "start": int(space.start),
        "dtype": _dtype_to_json(space.dtype, place),
    }


@_to_json.register
def _(space: spaces.MultiDiscrete, place: str) -> dict[str, Json]:
    return {
        "type": "MultiDiscrete",
        "dtype": _dtype_to_json(space.dtype, place),
        "shape": list(space.shape),
        "nvec": _numbers_to_json(space.nvec),
        "start": _numbers_to_json(space.start),
    }


@_to_json.register
def _(space: spaces.MultiBinary, place: str) -> dict[str, Json]:
    return {"type": "MultiBinary", "n": list(space.n) if isinstance(space.n, tuple) else int(space.n)}


@_to_json.register
def _(space: spaces.Text, place: str) -> dict[str, Json]:
    if any(len(character) != 1 for character in space.character_list):
        raise UnsupportedSpaceError(f"{place}: Text needs a charset of single characters, got {space.character_list}")
    return {
        "type": "Text",
        "min_length": space.min_length,
        "max_length": space.max_length,
        "charset": "".join(space.character_list),
    }


@_to_json.register
def _(space: spaces.Dict, place: str) -> dict[str, Json]:
    items = []
    for key, child in space.spaces.items():
        try:
            stored = key_to_json(key)
            back = key_from_json(json.loads(json.dumps(stored)))
        except ValueError as error:
            raise UnsupportedSpaceError(f"{place}: {error}") from None
        if back != key or hash(back) != hash(key):  # NaN, members of an enum
            raise UnsupportedSpaceError(f"{place}: key {key!r} ({type(key).__name__}) cannot be found again by value")
        items.append((stored, child))
    names = encode_siblings(space.spaces)
    return {
        "type": "Dict",
        "items": [[key, _to_json(child, f"{place}.{name}")] for (key, child), name in zip(items, names, strict=True)],
    }


@_to_json.register(spaces.Tuple)
def _(space: Any, place: str) -> dict[str, Json]:
    return {"type": "Tuple", "spaces": [_to_json(child, f"{place}.{i}") for i, child in enumerate(space.spaces)]}


@_to_json.register(spaces.OneOf)
def _(space: Any, place: str) -> dict[str, Json]:
    return {"type": "OneOf", "spaces": [_to_json(child, f"{place}.{i}") for i, child in enumerate(space.spaces)]}


@_to_json.register
def _(space: spaces.Sequence, place: str) -> dict[str, Json]:
    return {
        "type": "Sequence",
        "feature_space": _to_json(space.feature_space, f"{place}.feature_space"),
        "stack": bool(space.stack),
    }


@_to_json.register
def _(space: spaces.Graph, place: str) -> dict[str, Json]:
    edge = space.edge_space
    return {
        "type": "Graph",
        "node_space": _to_json(space.node_space, f"{place}.node_space"),
        "edge_space": None if edge is None else _to_json(edge, f"{place}.edge_space"),
    }


def _dtype_to_json(dtype: Any, place: str) -> str:
    dtype = np.dtype(dtype)
    if dtype.name not in _NUMERIC:
        raise UnsupportedSpaceError(f"{place}: dtype {dtype.name} cannot be stored; use one of {sorted(_NUMERIC)}")
    return str(dtype.name if dtype.isnative else dtype.str)


def _numbers_to_json(array: npt.NDArray[Any]) -> Json:
    """One number where all elements have the same bits, otherwise all of them in C order."""
    flat = np.asarray(array).reshape(-1)
    if flat.size and flat.tobytes() == flat[:1].tobytes() * flat.size:
        return _float_to_json(flat[0].item())
    return [_float_to_json(number) for number in flat.tolist()]


def _float_to_json(number: Any) -> Json:
    return str(number) if isinstance(number, float) and not math.isfinite(number) else number


def space_from_json(value: Json) -> Space[Any]:
    """The space that :func:`space_to_json` was given.

    Nothing is allocated before its size is checked against ``MAX_ELEMENTS``.

    Raises:
        CorruptBufferError: no space has this JSON form; the message names the place.
        UnsupportedSpaceError: the installed Gymnasium is too old for this space.
    """
    try:
        return _SpaceReader().read(value, "space", 0)
    except GymReplayError:
        raise
    except Exception as error:  # what Gymnasium raises for a bad argument differs from version to version
        raise CorruptBufferError(f"space: {_brief(value)} is no space ({type(error).__name__}: {error})") from None


class _SpaceReader:
    """Builds the spaces of one JSON value and counts their elements."""

    def __init__(self) -> None:
        self.elements = 0
        self.copied = 0

    def read(self, value: Json, place: str, depth: int) -> Space[Any]:
        kind = _member(value, "type", str, place)
        if kind not in _READERS:
            raise CorruptBufferError(f"{place}: expected one of {', '.join(_READERS)}, got {_brief(kind)}")
        if depth >= MAX_DEPTH:
            raise CorruptBufferError(f"{place}: spaces are nested deeper than {MAX_DEPTH}")
        self.charge(_ELEMENTS_PER_SPACE, place)
        return _READERS[kind](self, value, place, depth + 1)

    def charge(self, elements: int, place: str) -> None:
        self.elements += elements
        if self.elements > MAX_ELEMENTS:
            raise CorruptBufferError(f"{place}: the spaces have more than {MAX_ELEMENTS} elements")

    def batched(self, value: Json, place: str, depth: int) -> Space[Any]:
        """A space of which Gymnasium makes one more copy, for values in batches."""
        before = self.elements
        self.copied += 1
        if self.copied > MAX_COPIED:
            raise CorruptBufferError(f"{place}: Graph and stacked Sequence spaces are nested deeper than {MAX_COPIED}")
        space = self.read(value, place, depth)
        self.copied -= 1
        self.charge(self.elements - before, place)
        return space

    def shape(self, value: Json, place: str) -> tuple[int, ...]:
        sizes = _member(value, "shape", list, place)
        if len(sizes) > 32 or not all(type(size) is int and size >= 0 for size in sizes):
            raise CorruptBufferError(f"{place}: expected a shape, got {_brief(sizes)}")
        self.charge(math.prod(sizes), place)
        return tuple(sizes)

    def box(self, value: Json, place: str, depth: int) -> Space[Any]:
        dtype, shape = _read_dtype(value, place), self.shape(value, place)
        low = _read_numbers(value, "low", shape, dtype, place)
        high = _read_numbers(value, "high", shape, dtype, place)
        if not np.all(low <= high):
            raise CorruptBufferError(f"{place}: a lower bound is above its upper bound")
        space = spaces.Box(low, high, shape=shape, dtype=dtype)  # type: ignore[arg-type, unused-ignore]
        for name in ("bounded_below", "bounded_above"):
            if name in value:
                setattr(space, name, _read_numbers(value, name, shape, np.dtype(bool), place))
        return space

    def discrete(self, value: Json, place: str, depth: int) -> Space[Any]:
        dtype = _read_dtype(value, place, kinds="iu")
        n, start = (int(_read_numbers(value, name, (), dtype, place)) for name in ("n", "start"))
        if n <= 0:
            raise CorruptBufferError(f"{place}: n is {n}, expected a positive number")
        if dtype == np.int64:
            return spaces.Discrete(n, start=start)
        if "dtype" not in inspect.signature(spaces.Discrete.__init__).parameters:
            raise UnsupportedSpaceError(
                f"{place}: Discrete of {dtype.name} needs a newer Gymnasium than {gym.__version__}; upgrade gymnasium"
            )
        return spaces.Discrete(n, start=start, dtype=dtype)

    def multi_discrete(self, value: Json, place: str, depth: int) -> Space[Any]:
        dtype, shape = _read_dtype(value, place, kinds="iu"), self.shape(value, place)
        nvec = _read_numbers(value, "nvec", shape, dtype, place)
        start = _read_numbers(value, "start", shape, dtype, place)
        if not np.all(nvec > 0):
            raise CorruptBufferError(f"{place}: nvec holds a number that is not positive")
        return spaces.MultiDiscrete(nvec, dtype=dtype, start=start)  # type: ignore[arg-type, unused-ignore]

    def multi_binary(self, value: Json, place: str, depth: int) -> Space[Any]:
        n = _member(value, "n", (int, list), place)
        sizes = n if isinstance(n, list) else [n]
        if len(sizes) > 32 or not all(type(size) is int and size > 0 for size in sizes):
            raise CorruptBufferError(f"{place}: expected n to be positive, got {_brief(n)}")
        self.charge(math.prod(sizes), place)
        return spaces.MultiBinary(tuple(n) if isinstance(n, list) else n)

    def text(self, value: Json, place: str, depth: int) -> Space[Any]:
        shortest, longest = _member(value, "min_length", int, place), _member(value, "max_length", int, place)
        if not 0 <= shortest <= longest < 2**63:
            raise CorruptBufferError(f"{place}: lengths {_brief(shortest)} to {_brief(longest)} are no range")
        charset = _member(value, "charset", str, place)
        return spaces.Text(longest, min_length=shortest, charset=charset)

    def dict(self, value: Json, place: str, depth: int) -> Space[Any]:
        children: dict[Any, Space[Any]] = {}
        for item in _member(value, "items", list, place):
            if not isinstance(item, list) or len(item) != 2:
                raise CorruptBufferError(f"{place}: expected [key, space], got {_brief(item)}")
            try:
                key = key_from_json(item[0])
            except FieldError:
                raise CorruptBufferError(f"{place}: {_brief(item[0])} is no key") from None
            if key in children:
                raise CorruptBufferError(f"{place}: key {_brief(key)} comes twice")
            children[key] = self.read(item[1], f"{place}.{encode_key(key)}", depth)
        return spaces.Dict(list(children.items()))  # a list: a mapping would be sorted

    def children(self, value: Json, place: str, depth: int) -> list[Space[Any]]:
        return [self.read(v, f"{place}.{i}", depth) for i, v in enumerate(_member(value, "spaces", list, place))]

    def tuple(self, value: Json, place: str, depth: int) -> Space[Any]:
        return spaces.Tuple(self.children(value, place, depth))

    def one_of(self, value: Json, place: str, depth: int) -> Space[Any]:
        children = self.children(value, place, depth)
        if not children:
            raise CorruptBufferError(f"{place}: OneOf needs at least one space")
        return spaces.OneOf(children)

    def sequence(self, value: Json, place: str, depth: int) -> Space[Any]:
        stack = _member(value, "stack", bool, place)
        read = self.batched if stack else self.read
        feature = read(_member(value, "feature_space", dict, place), f"{place}.feature_space", depth)
        return spaces.Sequence(feature, stack=stack)

    def graph(self, value: Json, place: str, depth: int) -> Space[Any]:
        node = self.batched(_member(value, "node_space", dict, place), f"{place}.node_space", depth)
        edge = _member(value, "edge_space", (dict, type(None)), place)
        return spaces.Graph(node, None if edge is None else self.batched(edge, f"{place}.edge_space", depth))


_READERS: dict[str, Callable[[_SpaceReader, Json, str, int], Space[Any]]] = {
    "Box": _SpaceReader.box,
    "Discrete": _SpaceReader.discrete,
    "MultiDiscrete": _SpaceReader.multi_discrete,
    "MultiBinary": _SpaceReader.multi_binary,
    "Text": _SpaceReader.text,
    "Dict": _SpaceReader.dict,
    "Tuple": _SpaceReader.tuple,
    "OneOf": _SpaceReader.one_of,
    "Sequence": _SpaceReader.sequence,
    "Graph": _SpaceReader.graph,
}


def _member(value: Json, name: str, kind: type | tuple[type, ...], place: str) -> Any:
    """``value[name]``, checked to be of the kind; a bool is no int here."""
    if not isinstance(value, dict) or name not in value:
        raise CorruptBufferError(f"{place}: expected an object with {name!r}, got {_brief(value)}")
    member = value[name]
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if type(member) not in kinds:
        expected = " or ".join(k.__name__ for k in kinds)
        raise CorruptBufferError(f"{place}: expected {name!r} to be {expected}, got {_brief(member)}")
    return member


def _read_dtype(value: Json, place: str, kinds: str = "fiub") -> np.dtype[Any]:
    name = _member(value, "dtype", str, place)
    if name in _NUMERIC or (len(name) == 3 and name[0] in "<>" and name[1] in "fiu" and name[2] in "248"):
        dtype: np.dtype[Any] = np.dtype(name)
        if dtype.kind in kinds:
            return dtype
    raise CorruptBufferError(f"{place}: {_brief(name)} is no dtype of this space")


def _read_numbers(value: Json, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], place: str) -> npt.NDArray[Any]:
    """The array of ``shape`` that :func:`_numbers_to_json` was given; its size was checked before."""
    numbers = _member(value, name, (list, bool, int, float, str), place)
    if not isinstance(numbers, list):
        return np.full(shape, _read_number(numbers, name, dtype, place), dtype)
    if len(numbers) != math.prod(shape):
        raise CorruptBufferError(f"{place}: expected {math.prod(shape)} numbers in {name!r}, got {len(numbers)}")
    return np.array([_read_number(number, name, dtype, place) for number in numbers], dtype).reshape(shape)


def _read_number(number: Json, name: str, dtype: np.dtype[Any], place: str) -> bool | int | float:
    if dtype.kind == "b" and type(number) is bool:
        return number
    if dtype.kind in "iu" and type(number) is int and np.iinfo(dtype).min <= number <= np.iinfo(dtype).max:
        return number
    if dtype.kind == "f":
        if number in ("inf", "-inf"):
            return float(number)
        if type(number) in (int, float) and abs(number) <= float(np.finfo(dtype).max):
            return float(number)
    raise CorruptBufferError(f"{place}: {_brief(number)} in {name!r} is no number of {dtype.name}")


def _brief(value: Any) -> str:
    if isinstance(value, (dict, list, tuple)):
        return f"{type(value).__name__} of {len(value)}"
    if isinstance(value, int) and value.bit_length() > 128:
        return "a very large integer"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


_SPEC_MEMBERS: dict[str, tuple[type, ...]] = {
    "id": (str,),
    "entry_point": (str, type(None)),
    "reward_threshold": (float, int, type(None)),
    "nondeterministic": (bool,),
    "max_episode_steps": (int, type(None)),
    "order_enforce": (bool,),
    "disable_env_checker": (bool,),
}

_NEVER_MADE = frozenset(["ArrayConversion", "RecordVideo"])
"""Standard wrappers whose arguments are modules, or name a folder to write to."""

_LEFT_OUT = "gymnasium.wrappers.rendering:RecordVideo"
"""A wrapper that changes no value, so that an environment is built again without it."""


class _NotJson(Exception):
    """A value that JSON cannot keep."""


def spec_to_json(spec: EnvSpec | None) -> dict[str, Json] | None:
    """What can be kept of an environment's spec as JSON; never raises.

    Values are kept where they come back equal: numbers (NumPy scalars as Python numbers), strings, lists, dicts,
    tuples, and NumPy arrays. An argument that holds anything else is left out, and ``"dropped"`` lists its dotted
    name, such as ``"kwargs.reward_fn"``.
    """
    if spec is None:
        return None
    dropped: list[str] = []
    value: dict[str, Json] = {}
    for name, kinds in _SPEC_MEMBERS.items():
        value[name] = _keep(getattr(spec, name, None), name, dropped, kinds)
    value["kwargs"] = _keep_kwargs(getattr(spec, "kwargs", None), "kwargs", dropped)
    wrappers = getattr(spec, "additional_wrappers", ())
    value["additional_wrappers"] = [
        _wrapper_to_json(wrapper, f"additional_wrappers.{index}", dropped)
        for index, wrapper in enumerate(wrappers if isinstance(wrappers, (tuple, list)) else ())
    ]
    value["dropped"] = dropped
    return value


def _wrapper_to_json(wrapper: Any, place: str, dropped: list[str]) -> dict[str, Json]:
    kwargs = getattr(wrapper, "kwargs", None)
    return {
        "name": _keep(getattr(wrapper, "name", None), f"{place}.name", dropped, (str,)) or "",
        "entry_point": _keep(getattr(wrapper, "entry_point", None), f"{place}.entry_point", dropped, (str,)) or "",
        "kwargs": None if kwargs is None else _keep_kwargs(kwargs, f"{place}.kwargs", dropped),
    }


def _keep(value: Any, place: str, dropped: list[str], kinds: tuple[type, ...] = ()) -> Json:
    try:
        kept = _value_to_json(value, 0)
        if kinds and type(_value_from_json(kept, place)) not in kinds:
            raise _NotJson
    except _NotJson:
        dropped.append(place)
        return None
    return kept


def _keep_kwargs(kwargs: Any, place: str, dropped: list[str]) -> dict[str, Json]:
    kept: dict[str, Json] = {}
    for name, value in kwargs.items() if isinstance(kwargs, Mapping) else ():
        if type(name) is not str:
            dropped.append(f"{place}.{type(name).__name__}")
            continue
        lost = len(dropped)
        json_value = _keep(value, f"{place}.{name}", dropped)
        if len(dropped) == lost:
            kept[name] = json_value
    return kept


def _value_to_json(value: Any, depth: int) -> Json:
    """JSON for a value of an argument; what JSON lacks is an object with one member named ``$...``."""
    if depth > MAX_DEPTH:
        raise _NotJson
    if isinstance(value, np.generic):
        if value.dtype.name not in _NUMERIC and not isinstance(value, np.str_):
            raise _NotJson
        value = value.item()
    # Exact types: a member of an enum or a named tuple would come back as something else.
    if value is None or type(value) in (bool, str):
        return value
    if type(value) is int:
        if value.bit_length() > 4096:  # Python's json refuses integers of many digits
            raise _NotJson
        return value
    if type(value) is float:
        return value if math.isfinite(value) else {"$float": str(value)}
    if type(value) is list:
        return [_value_to_json(item, depth + 1) for item in value]
    if type(value) is tuple:
        return {"$tuple": [_value_to_json(item, depth + 1) for item in value]}
    if type(value) is dict:
        if not all(type(key) is str and not key.startswith("$") for key in value):
            raise _NotJson
        return {key: _value_to_json(item, depth + 1) for key, item in value.items()}
    if type(value) is np.ndarray and value.dtype.name in _NUMERIC and value.size <= MAX_ELEMENTS // 512:
        numbers = [_value_to_json(number, depth + 1) for number in value.reshape(-1).tolist()]
        return {"$array": {"dtype": _dtype_to_json(value.dtype, ""), "shape": list(value.shape), "numbers": numbers}}
    raise _NotJson


def _value_from_json(value: Json, place: str, depth: int = 0) -> Any:
    if depth > 2 * MAX_DEPTH:
        raise CorruptBufferError(f"{place}: values are nested deeper than {MAX_DEPTH}")
    if isinstance(value, list):
        return [_value_from_json(item, place, depth + 1) for item in value]
    if not isinstance(value, dict):
        if isinstance(value, float) and not math.isfinite(value):
            raise CorruptBufferError(f"{place}: {value} is not valid JSON")
        return value
    if not any(key.startswith("$") for key in value):
        return {key: _value_from_json(item, place, depth + 1) for key, item in value.items()}
    if set(value) == {"$tuple"} and isinstance(value["$tuple"], list):
        return tuple(_value_from_json(value["$tuple"], place, depth + 1))
    if set(value) == {"$float"} and value["$float"] in ("inf", "-inf", "nan"):
        return float(value["$float"])
    if set(value) == {"$array"}:
        return _array_from_json(value["$array"], place)
    raise CorruptBufferError(f"{place}: an object with members {_brief(sorted(value))} stands for no value")


def _array_from_json(value: Json, place: str) -> npt.NDArray[Any]:
    dtype, shape = _read_dtype(value, place), _SpaceReader().shape(value, place)
    numbers = _value_from_json(_member(value, "numbers", list, place), place)
    if len(numbers) != math.prod(shape):
        raise CorruptBufferError(f"{place}: expected {math.prod(shape)} numbers, got {len(numbers)}")
    checked = [
        n if type(n) is float and math.isnan(n) else _read_number(_float_to_json(n), "numbers", dtype, place)
        for n in numbers
    ]
    return np.array(checked, dtype).reshape(shape)


def spec_from_json(value: Json) -> EnvSpec:
    """The spec that :func:`spec_to_json` was given, less what it dropped.

    The entry points are those that this process has registered under the id, and None where it has registered
    nothing; never those that the JSON names. A wrapper that is not one of ``gymnasium.wrappers`` has None for its
    arguments. So even ``gymnasium.make`` of the result imports nothing that the JSON names.

    Raises:
        CorruptBufferError: no spec has this JSON form.
    """
    try:
        members = {name: _read_spec_member(value, name) for name in _SPEC_MEMBERS}
        _read_dropped(value)
        if len(members["id"]) > 1000:
            raise CorruptBufferError("env_spec: the id is too long")
        registered = gym.registry.get(members["id"])
        members["entry_point"] = registered.entry_point if registered else None
        return EnvSpec(
            **members,
            kwargs=_read_kwargs(value, "env_spec.kwargs"),
            additional_wrappers=_read_wrappers(value),
            vector_entry_point=registered.vector_entry_point if registered else None,
        )
    except GymReplayError:
        raise
    except Exception as error:  # Gymnasium's own errors for a bad id, and whatever else a stranger thinks of
        raise CorruptBufferError(f"env_spec: no spec ({type(error).__name__}: {error})") from None


def _read_spec_member(value: Json, name: str) -> Any:
    kinds = _SPEC_MEMBERS[name]
    if name != "id" and name in _read_dropped(value) and value.get(name) is None:
        return next(field.default for field in dataclasses.fields(EnvSpec) if field.name == name)
    if float in kinds and isinstance(value, dict) and isinstance(value.get(name), dict):
        value = {name: _value_from_json(value[name], "env_spec")}  # not finite
    return _member(value, name, kinds, "env_spec")


def _read_dropped(value: Json) -> list[str]:
    dropped: list[str] = _member(value, "dropped", list, "env_spec")
    if not all(isinstance(name, str) for name in dropped):
        raise CorruptBufferError(f"env_spec: expected 'dropped' to hold names, got {_brief(dropped)}")
    return dropped


def _read_kwargs(value: Json, place: str) -> dict[str, Any]:
    kwargs = _member(value, "kwargs", dict, place)
    return {name: _value_from_json(item, f"{place}.{_brief(name)}") for name, item in kwargs.items()}


def _read_wrappers(value: Json) -> tuple[WrapperSpec, ...]:
    """The recorded wrappers; one that :func:`_find_wrapper` does not know has no arguments."""
    wrappers = []
    for index, item in enumerate(_member(value, "additional_wrappers", list, "env_spec")):
        place = f"env_spec.additional_wrappers.{index}"
        name = _member(item, "name", str, place)
        entry_point = _member(item, "entry_point", str, place)
        kwargs = None if item.get("kwargs", 0) is None else _read_kwargs(item, place)
        known = _find_wrapper(entry_point) is not None
        wrappers.append(WrapperSpec(name, entry_point, kwargs if known else None))
    return tuple(wrappers)


def _find_wrapper(entry_point: str) -> type[gym.Wrapper[Any, Any, Any, Any]] | None:
    """The class in ``gymnasium.wrappers`` that an entry point ``module:name`` means, found by its name alone."""
    module, _, name = entry_point.partition(":")
    inside = module == "gymnasium.wrappers" or module.startswith("gymnasium.wrappers.")
    if not inside or module.startswith("gymnasium.wrappers.vector"):
        return None
    if name not in gym.wrappers.__all__ or name in _NEVER_MADE:
        return None
    try:
        found = getattr(gym.wrappers, name)
    except (AttributeError, ImportError, gym.error.Error):  # it needs a package that is not installed
        return None
    return found if isinstance(found, type) and issubclass(found, gym.Wrapper) else None


def make_env(spec_json: Json, /, **kwargs: Any) -> gym.Env[Any, Any]:
    """Build the recorded environment again, by the id that is registered in this process.

    Args:
        spec_json: what :func:`spec_to_json` gave.
        **kwargs: as for :func:`gymnasium.make`; they go before the recorded ones.

    Raises:
        MakeEnvError: the id is not registered here, or a recorded wrapper is not one of ``gymnasium.wrappers``; the
            message says what to do.
        CorruptBufferError: ``spec_json`` is malformed.

    Warns:
        UserWarning: an argument could not be recorded, so the environment may differ.

    Example:
        >>> make_env(spec_to_json(gym.spec("CartPole-v1"))).spec.max_episode_steps
        500
    """
    if spec_json is None:
        raise MakeEnvError("no environment spec was recorded; build the environment yourself")
    recorded = spec_from_json(spec_json)
    registered = _find_registered(recorded.id, spec_json.get("entry_point"))
    lost = [name for name in spec_json["dropped"] if name.startswith("kwargs.") and name[7:] not in kwargs]
    if lost:
        warnings.warn(
            f"{recorded.id}: {', '.join(lost)} could not be recorded, so the environment may differ from the recorded "
            "one; pass the arguments to make_env",
            UserWarning,
            stacklevel=2,
        )
    spec = dataclasses.replace(
        registered,
        kwargs={**registered.kwargs, **recorded.kwargs},
        max_episode_steps=recorded.max_episode_steps,
        order_enforce=recorded.order_enforce,
        disable_env_checker=recorded.disable_env_checker,
        additional_wrappers=(),
    )
    return _wrap(gym.make(spec, **kwargs), recorded, spec_json["dropped"])


def _find_registered(env_id: str, entry_point: str | None) -> EnvSpec:
    if ":" in env_id:
        module, _, name = env_id.partition(":")
        raise MakeEnvError(
            f"id {env_id!r} names a module to import, which is never done for a recorded id; if you trust it, "
            f"`import {module}` and build the environment with gymnasium.make({name!r})"
        )
    registered: EnvSpec | None = gym.registry.get(env_id)
    if registered is not None:
        return registered
    package = entry_point.partition(":")[0].partition(".")[0] if entry_point else ""
    remedy = (
        f"its recorded entry point was {entry_point!r}: `import {package}` may register it"
        if package
        else "import the package that registers it"
    )
    raise MakeEnvError(f"environment {env_id!r} is not registered; {remedy}, or use gymnasium.register")


def _wrap(env: gym.Env[Any, Any], recorded: EnvSpec, dropped: list[str]) -> gym.Env[Any, Any]:
    """Apply the recorded wrappers, from the first that the environment does not bring itself."""
    own = () if env.spec is None else env.spec.additional_wrappers
    pairs = zip(own, recorded.additional_wrappers, strict=False)
    brought = 0
    for mine, theirs in pairs:
        if (mine.name, mine.entry_point) != (theirs.name, theirs.entry_point):
            break
        brought += 1
    for index, wrapper in enumerate(recorded.additional_wrappers[brought:], brought):
        where = f"{recorded.id}: wrapper {wrapper.name} ({wrapper.entry_point})"
        if wrapper.entry_point == _LEFT_OUT:
            warnings.warn(f"{where} is left out; apply it yourself if you want it", UserWarning, stacklevel=3)
            continue
        make = _find_wrapper(wrapper.entry_point)
        if make is None:
            raise MakeEnvError(f"{where} is not one of gymnasium.wrappers; build the environment yourself")
        lost = [name for name in dropped if name.startswith(f"additional_wrappers.{index}.")]
        if lost or wrapper.kwargs is None:
            raise MakeEnvError(
                f"{where}: {', '.join(lost) or 'its arguments'} could not be recorded; build the environment yourself"
            )
        env = make(env, **wrapper.kwargs)
    return env
