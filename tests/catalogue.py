"""Named spaces that every part of the package is tried on, and values of them.

``FIXED_SPACES`` have values of one size, those of ``RAGGED_SPACES`` differ in size; ``SPACES`` are both.
"""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
from gymnasium import Space, spaces
from gymnasium.vector.utils import concatenate, create_empty_array
from hypothesis import strategies as st

ODD_KEYS: list[Any] = [
    "a.b",
    "a/b",
    "a%2Eb",
    "a",
    "A",
    "b",
    ".",
    "..",
    "",
    "%",
    "%_",
    " ",
    " padded ",
    "1",
    1,
    -1,
    "-1",
    "%i1",
    "\u00e9",
    "e\u0301",
    "\u00c9",
    "ß",
    "ss",
    "SS",
    "\u017fs",
    "\u212b",
    "\u00c5",
    "🤖",
    "日本",
    "\n",
    "\x00",
    "\u200d",
    "\ud800",
    "con",
    "x" * 400,
    "X" * 400,
    "x" * 399 + "y",
    "é" * 400,
    "%" * 400,
    None,
    "None",
    0.5,
    "0.5",
    b"a",
    ("a", 1),
    ("a", "1"),
]
"""Keys of one Dict space, all of them different, which a careless naming would mix up."""

HAS_DISCRETE_DTYPE = "dtype" in inspect.signature(spaces.Discrete.__init__).parameters


def _takes_any_graph() -> bool:
    """Whether nodes and edges may be of any space; older versions of Gymnasium take Box and Discrete only."""
    try:
        spaces.Graph(spaces.Text(1), None)
    except AssertionError:
        return False
    return True


ANY_GRAPH = _takes_any_graph()


def _box(low: Any, high: Any, shape: tuple[int, ...], dtype: Any) -> spaces.Box:
    """A Box whose bounds are cast before Gymnasium sees them, which warns about Python floats in narrow dtypes."""
    return spaces.Box(np.full(shape, low, dtype), np.full(shape, high, dtype), shape, dtype)


def _extremes(dtype: Any, shape: tuple[int, ...]) -> spaces.Box:
    info = np.finfo(dtype) if np.dtype(dtype).kind == "f" else np.iinfo(dtype)
    return _box(info.min, info.max, shape, dtype)


INTEGERS = [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
FLOATS = ["float16", "float32", "float64"]

_PIXELS = spaces.Box(0, 255, (4, 4, 3), np.uint8)
_VECTOR = spaces.Box(-np.inf, np.inf, (3,), np.float32)

FIXED_SPACES: dict[str, Space[Any]] = {
    "box-vector": _VECTOR,
    "box-pixels": _PIXELS,
    "box-scalar": spaces.Box(-1.0, 1.0, (), np.float32),
    "box-one": spaces.Box(-1.0, 1.0, (1,), np.float64),
    "box-empty": spaces.Box(-1.0, 1.0, (0,), np.float32),
    "box-empty-axis": spaces.Box(0, 9, (3, 0, 2), np.int16),
    "box-bool": spaces.Box(0, 1, (2, 2), np.bool_),
    "box-unbounded-int": spaces.Box(-np.inf, np.inf, (2,), np.int32),
    "box-half-bounded": spaces.Box(np.array([-np.inf, 0.0]), np.array([0.0, np.inf]), dtype=np.float64),
    "box-own-bounds": spaces.Box(np.arange(6.0).reshape(2, 3) - 7, np.arange(6.0).reshape(2, 3), dtype=np.float64),
    "box-infinite": spaces.Box(-np.inf, np.inf, (2,), np.float64),
    "box-big-endian": _box(-1, 1, (2,), ">f4"),
    "box-negative-zero": spaces.Box(np.array([-0.0, 0.0]), np.array([0.0, -0.0]), dtype=np.float64),
    "box-five-axes": spaces.Box(0, 1, (1, 2, 1, 2, 1), np.float32),
    **{f"box-{dtype}": _extremes(dtype, (2, 3)) for dtype in FLOATS + INTEGERS},
    **{f"box-scalar-{dtype}": _extremes(dtype, ()) for dtype in ("float64", "int64", "uint8")},
    "discrete": spaces.Discrete(4),
    "discrete-one": spaces.Discrete(1),
    "discrete-negative-start": spaces.Discrete(3, start=-5),
    "discrete-large-start": spaces.Discrete(7, start=2**62),
    "multi-discrete": spaces.MultiDiscrete([3, 5, 2]),
    "multi-discrete-axes": spaces.MultiDiscrete(np.array([[2, 3], [4, 5]]), dtype=np.int32),
    "multi-discrete-start": spaces.MultiDiscrete([2, 2], start=[-3, 10]),
    "multi-discrete-uint8": spaces.MultiDiscrete([255, 255], dtype=np.uint8),
    "multi-binary": spaces.MultiBinary(5),
    "multi-binary-axes": spaces.MultiBinary((2, 3)),
    "multi-binary-one": spaces.MultiBinary((1,)),
    "dict": spaces.Dict({"position": _VECTOR, "gripper": spaces.Discrete(2)}),
    "dict-empty": spaces.Dict({}),
    "dict-unsorted": spaces.Dict([("z", spaces.Discrete(2)), ("a", spaces.Discrete(3)), ("m", spaces.Discrete(4))]),
    "dict-odd-keys": spaces.Dict([(key, spaces.Discrete(1, start=i)) for i, key in enumerate(ODD_KEYS)]),
    "dict-bool-keys": spaces.Dict([(True, spaces.Discrete(2)), ("True", _VECTOR), (False, spaces.MultiBinary(2))]),
    "tuple": spaces.Tuple((spaces.Discrete(3), _VECTOR)),
    "tuple-empty": spaces.Tuple(()),
    "tuple-of-one": spaces.Tuple((_VECTOR,)),
    "tuple-of-eleven": spaces.Tuple([spaces.Discrete(2, start=i) for i in range(11)]),
    "nested": spaces.Dict(
        {
            "camera": spaces.Dict({"rgb": _PIXELS, "depth": spaces.Box(0, np.inf, (4, 4), np.float16)}),
            "joints": spaces.Tuple((_VECTOR, spaces.Dict({"torque": _VECTOR, "on": spaces.MultiBinary(2)}))),
            "goal": spaces.Discrete(10, start=1),
        }
    ),
    "nested-empty-parts": spaces.Dict(
        {
            "nothing": spaces.Dict({}),
            "void": spaces.Tuple((spaces.Tuple(()), spaces.Dict({"deep": spaces.Dict({})}))),
            "value": spaces.Tuple((spaces.Tuple((spaces.Tuple((spaces.Discrete(2),)),)),)),
        }
    ),
    "nested-odd-keys": spaces.Dict(
        {
            "a": spaces.Dict({"b": spaces.Discrete(2), "b.c": spaces.Discrete(3)}),
            "a.b": spaces.Dict({"c": spaces.Discrete(4), "": spaces.Discrete(5)}),
            "A": spaces.Tuple((spaces.Dict({"a": spaces.Discrete(6), "A": spaces.Discrete(7)}),)),
        }
    ),
}
if HAS_DISCRETE_DTYPE:
    FIXED_SPACES |= {
        f"discrete-{dtype}": spaces.Discrete(100, start=np.iinfo(dtype).min, dtype=np.dtype(dtype))
        for dtype in ("int8", "uint64")
    }

_POINT = spaces.Box(-1.0, 1.0, (2,), np.float32)
_PERSON = spaces.Dict({"name": spaces.Text(5), "at": _POINT, "said": spaces.Sequence(spaces.Text(3))})

RAGGED_SPACES: dict[str, Space[Any]] = {
    "text": spaces.Text(10),
    "text-own-charset": spaces.Text(5, min_length=0, charset="ab é🤖\n"),
    "text-set-charset": spaces.Text(5, min_length=2, charset=frozenset("xyz")),
    "text-surrogates": spaces.Text(4, min_length=0, charset="\ud83d\ude00🤖\x00"),
    "text-without-characters": spaces.Text(0, min_length=0, charset=""),
    "sequence": spaces.Sequence(_VECTOR),
    "sequence-of-scalars": spaces.Sequence(spaces.Box(-1.0, 1.0, (), np.float64)),
    "sequence-of-ones": spaces.Sequence(spaces.Box(-1.0, 1.0, (1,), np.float64)),
    "sequence-of-discrete": spaces.Sequence(spaces.Discrete(3, start=-1)),
    "sequence-of-multi-discrete": spaces.Sequence(spaces.MultiDiscrete([[2, 3], [4, 5]], dtype=np.uint8)),
    "sequence-of-uint64": spaces.Sequence(_extremes("uint64", (2,))),
    "sequence-of-big-endian": spaces.Sequence(_box(-1, 1, (2,), ">f4")),
    "sequence-of-texts": spaces.Sequence(spaces.Text(4, min_length=0, charset="aé🤖")),
    "sequence-of-dicts": spaces.Sequence(_PERSON),
    "sequence-of-tuples": spaces.Sequence(spaces.Tuple((spaces.MultiBinary(3), spaces.Text(3), _POINT))),
    "sequence-of-one-ofs": spaces.Sequence(spaces.OneOf((spaces.Discrete(2), spaces.Text(3), _POINT))),
    "sequence-of-graphs": spaces.Sequence(spaces.Graph(_POINT, spaces.Discrete(3))),
    "sequence-of-sequences": spaces.Sequence(spaces.Sequence(_POINT)),
    "sequence-of-sequences-of-texts": spaces.Sequence(spaces.Sequence(spaces.Sequence(spaces.Text(2)))),
    "sequence-of-stacks": spaces.Sequence(spaces.Sequence(_POINT, stack=True)),
    "sequence-of-empty-dicts": spaces.Sequence(spaces.Dict({})),
    "sequence-of-empty-tuples": spaces.Sequence(spaces.Tuple(())),
    "sequence-of-empty-boxes": spaces.Sequence(spaces.Box(0, 1, (2, 0), np.float32)),
    "sequence-of-sequences-of-nothing": spaces.Sequence(spaces.Sequence(spaces.Tuple((spaces.Dict({}),)))),
    "sequence-of-partly-empty-tuples": spaces.Sequence(
        spaces.Tuple((spaces.Dict({}), spaces.Box(0, 1, (0,), np.float32), spaces.Discrete(3)))
    ),
    "stack": spaces.Sequence(spaces.Box(0, 1, (2,)), stack=True),
    "stack-of-discrete": spaces.Sequence(spaces.Discrete(5, start=2), stack=True),
    "stack-of-pixels": spaces.Sequence(_PIXELS, stack=True),
    "stack-of-dicts": spaces.Sequence(spaces.Dict({"a": spaces.Discrete(2), "b": _VECTOR}), stack=True),
    "stack-of-people": spaces.Sequence(_PERSON, stack=True),
    "stack-of-tuples": spaces.Sequence(spaces.Tuple((spaces.MultiBinary(2), spaces.Text(2), _POINT)), stack=True),
    "stack-of-texts": spaces.Sequence(spaces.Text(3), stack=True),
    "stack-of-stacks": spaces.Sequence(spaces.Sequence(_POINT, stack=True), stack=True),
    "stack-of-stacks-of-dicts": spaces.Sequence(
        spaces.Sequence(spaces.Dict({"x": _POINT, "t": spaces.Text(2)}), stack=True), stack=True
    ),
    "stack-of-empty-boxes": spaces.Sequence(spaces.Box(0, 1, (0,), np.float32), stack=True),
    "stack-of-one-ofs": spaces.Sequence(spaces.OneOf((spaces.Discrete(2), spaces.Text(2))), stack=True),
    "graph": spaces.Graph(spaces.Box(0, 1, (3,)), spaces.Discrete(4)),
    "graph-of-boxes": spaces.Graph(spaces.Box(0, 1, (2, 2)), spaces.Box(-1, 1, (3,), np.float64)),
    "graph-without-edges": spaces.Graph(spaces.Discrete(4), None),
    "one-of": spaces.OneOf((spaces.Discrete(2), spaces.Box(0, 1, (2,)))),
    "one-of-one": spaces.OneOf((spaces.Text(3),)),
    "one-of-nothing": spaces.OneOf((spaces.Dict({}), spaces.Box(0, 1, (0,), np.float32), spaces.Discrete(2))),
    "one-of-everything": spaces.OneOf(
        (
            spaces.Discrete(2, start=5),
            spaces.Text(4),
            spaces.Sequence(_POINT),
            spaces.Graph(_POINT, _POINT),
            spaces.OneOf((spaces.Discrete(2), spaces.Dict({"a.b": _PERSON}))),
            spaces.Tuple((_POINT, spaces.MultiBinary(2))),
        )
    ),
    "dict-with-text": spaces.Dict({"inventory": spaces.Text(5), "position": _VECTOR}),
    "dict-of-every-kind": spaces.Dict(
        {
            "graph": spaces.Graph(_POINT, spaces.Discrete(2)),
            "one": spaces.OneOf((_POINT, spaces.Text(3))),
            "people": spaces.Sequence(_PERSON),
            "index": spaces.Dict({"%lengths": spaces.Text(3), "%items": spaces.Discrete(2)}),
            "nested": spaces.Tuple((spaces.Tuple((spaces.Text(2),)), spaces.Discrete(2))),
        }
    ),
    "sequence-odd-keys": spaces.Sequence(
        spaces.Dict([(key, spaces.Text(2) if i % 2 else spaces.Discrete(1, start=i)) for i, key in enumerate(ODD_KEYS)])
    ),
    "tuple-with-sequence": spaces.Tuple((spaces.Discrete(2), spaces.Dict({"s": spaces.Sequence(spaces.Text(3))}))),
}
if ANY_GRAPH:
    RAGGED_SPACES |= {
        "graph-of-dicts": spaces.Graph(spaces.Dict({"p": _POINT, "kind": spaces.Discrete(3)}), spaces.MultiBinary(2)),
        "graph-of-texts": spaces.Graph(spaces.Text(4), spaces.Text(3)),
        "graph-of-nothing": spaces.Graph(spaces.Box(0, 1, (0,)), spaces.Box(0, 1, (2, 0))),
    }

SPACES = FIXED_SPACES | RAGGED_SPACES


def examples(space: Space[Any], seed: int = 0) -> list[Any]:
    """Three values of a space of ``SPACES``: its lowest or emptiest, its highest, and one in between.

    ``space.sample`` fails at the extremes of the 64-bit integers, and seldom gives what is empty.
    """
    rng = np.random.default_rng(seed)
    return [_example(space, kind, rng) for kind in ("low", "high", "between")]


def _example(space: Space[Any], kind: str, rng: np.random.Generator) -> Any:
    if isinstance(space, spaces.Dict):
        return {key: _example(child, kind, rng) for key, child in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(_example(child, kind, rng) for child in space.spaces)
    if isinstance(space, spaces.Text):
        return _example_text(space, kind, rng)
    if isinstance(space, spaces.Sequence):
        items = _example_items(space.feature_space, {"low": 0, "high": 2, "between": 5}[kind], kind, rng)
        return _batch(space.feature_space, items) if space.stack else tuple(items)
    if isinstance(space, spaces.OneOf):
        last = len(space.spaces) - 1
        index = np.int64({"low": 0, "high": last, "between": int(rng.integers(last + 1))}[kind])
        return index, _example(space.spaces[index], kind, rng)
    if isinstance(space, spaces.Graph):
        return _example_graph(space, kind, rng)
    if isinstance(space, spaces.Discrete):
        step = {"low": 0, "high": int(space.n) - 1, "between": int(rng.integers(int(space.n)))}[kind]
        return space.dtype.type(int(space.start) + step)
    if isinstance(space, spaces.MultiDiscrete):
        steps = {"low": 0, "high": space.nvec - 1, "between": rng.integers(0, space.nvec.astype(np.int64))}[kind]
        return (space.start + steps).astype(space.dtype)
    if isinstance(space, spaces.MultiBinary):
        return {"low": np.zeros, "high": np.ones, "between": lambda *a: rng.integers(0, 2, *a)}[kind](
            space.shape, np.int8
        )
    assert isinstance(space, spaces.Box)
    if kind != "between":
        return (space.low if kind == "low" else space.high).copy()
    if space.dtype.kind in "iub":
        return np.asarray(np.where(rng.integers(0, 2, space.shape), space.low, space.high), space.dtype)
    return np.asarray(np.clip(rng.normal(size=space.shape), space.low, space.high), space.dtype)


def _example_text(space: spaces.Text, kind: str, rng: np.random.Generator) -> str:
    if kind == "low":
        return "".join(space.character_list[:1]) * space.min_length
    if kind == "high":
        return "".join(space.character_list[-1:]) * space.max_length
    length = int(rng.integers(space.min_length, space.max_length + 1))
    return "".join(space.character_list[i] for i in rng.integers(0, max(len(space.character_list), 1), length))


def _example_items(space: Space[Any], count: int, kind: str, rng: np.random.Generator) -> list[Any]:
    kinds = ["between", "low", "high", "low", "between"] if kind == "between" else [kind] * count
    return [_example(space, kind, rng) for kind in kinds[:count]]


def _batch(space: Space[Any], items: list[Any]) -> Any:
    """What Gymnasium makes of several values, as in a stacked Sequence."""
    if not items:
        return create_empty_array(space, 0)
    return concatenate(space, items, create_empty_array(space, len(items)))


def _example_graph(space: spaces.Graph, kind: str, rng: np.random.Generator) -> spaces.GraphInstance:
    nodes = {"low": 0, "high": 2, "between": 4}[kind]
    batch = _batch(space.node_space, _example_items(space.node_space, nodes, kind, rng))
    if space.edge_space is None or kind == "low":
        return spaces.GraphInstance(batch, None, None)
    edges = {"high": 0, "between": 3}[kind]
    links = rng.integers(0, nodes, (edges, 2), dtype=np.int32)
    return spaces.GraphInstance(
        batch, _batch(space.edge_space, _example_items(space.edge_space, edges, kind, rng)), links
    )


def equal_values(left: Any, right: Any) -> bool:
    """Whether two values are equal to the bit: the same structure, types, dtypes and shapes."""
    if type(left) is not type(right):
        return False
    if left is None or isinstance(left, str):
        return bool(left == right)
    if isinstance(left, dict):
        return list(left) == list(right) and all(equal_values(left[k], right[k]) for k in left)
    if isinstance(left, tuple):
        return len(left) == len(right) and all(map(equal_values, left, right))
    a, b = np.asarray(left), np.asarray(right)
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def _boxes() -> st.SearchStrategy[Space[Any]]:
    shapes = st.lists(st.integers(0, 3), max_size=3).map(tuple)
    return st.builds(_extremes, st.sampled_from(FLOATS + INTEGERS), shapes)


KEYS = st.one_of(st.text(max_size=12), st.integers(-5, 5), st.sampled_from(ODD_KEYS))

_TEXTS = st.builds(
    lambda shortest, more, charset: spaces.Text(shortest + more, min_length=shortest, charset=charset),
    st.integers(0, 2),
    st.integers(0, 3),
    st.text(st.characters(codec=None), min_size=1, max_size=5),
)

_DISCRETE = st.builds(lambda n, start: spaces.Discrete(n, start=start), st.integers(1, 9), st.integers(-9, 9))

_FIXED = st.one_of(
    _boxes(),
    _DISCRETE,
    st.builds(spaces.MultiDiscrete, st.lists(st.integers(1, 9), max_size=3)),
    st.builds(spaces.MultiBinary, st.one_of(st.integers(1, 4), st.tuples(st.integers(1, 3), st.integers(1, 3)))),
)

# Gymnasium copies what stacks and graphs hold, so these are not nested in one another.
_BATCHES = st.one_of(
    st.builds(lambda space: spaces.Sequence(space, stack=True), st.one_of(_FIXED, _TEXTS)),
    st.builds(spaces.Graph, st.one_of(_boxes(), _DISCRETE), st.one_of(st.none(), _boxes(), _DISCRETE)),
)

NESTED_SPACES: st.SearchStrategy[Space[Any]] = st.recursive(
    st.one_of(_FIXED, _TEXTS, _BATCHES),
    lambda children: st.one_of(
        st.dictionaries(KEYS, children, max_size=4).map(lambda d: spaces.Dict(list(d.items()))),
        st.lists(children, max_size=3).map(spaces.Tuple),
        st.lists(children, min_size=1, max_size=3).map(spaces.OneOf),
        children.map(spaces.Sequence),
    ),
    max_leaves=8,
)
"""Random spaces, with odd keys."""
