"""The fields of a space, and values on their way into bytes and back."""

import copy
import json
import re
import unicodedata
from collections import OrderedDict, defaultdict, deque
from types import MappingProxyType

import numpy as np
import pytest
import torch
from catalogue import FIXED_SPACES, NESTED_SPACES, ODD_KEYS, RAGGED_SPACES, SPACES, equal_values, examples
from gymnasium import Space, spaces
from gymnasium.spaces import GraphInstance
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gym_replay import FieldError, UnsupportedSpaceError
from gym_replay.schema.fields import Field, make_encoder
from gym_replay.spaces import (
    make_space_encoder,
    register_space,
    space_from_json,
    space_to_json,
    space_tree,
)
from gym_replay.spaces import unflatten as unflatten_tree

ROBOT = spaces.Dict(
    {
        "camera": spaces.Dict({"rgb": spaces.Box(0, 255, (2, 2), np.uint8)}),
        "joints": spaces.Tuple((spaces.Box(-1, 1, (3,), np.float32), spaces.Discrete(5, start=-2))),
    }
)


def robot_value():
    return {
        "camera": {"rgb": np.array([[1, 2], [3, 4]], np.uint8)},
        "joints": (np.array([0.5, -0.5, 1.0], np.float32), np.int64(-1)),
    }


def space_leaves(space, root, **options):
    return space_tree(space, root, **options).leaves


def unflatten(space, values):
    return unflatten_tree(space_tree(space, "value"), values)


def encoder(space, root="observation"):
    return make_space_encoder(space_tree(space, root))


def decode(space, encoded):
    leaves = space_leaves(space, "observation")
    values = []
    for piece, leaf in zip(encoded, leaves, strict=True):
        assert type(piece) is bytes
        count = len(piece) // leaf.field.nbytes if leaf.field.ragged else None
        if count is None:
            assert len(piece) == leaf.field.nbytes
        shape = leaf.field.shape if count is None else (count, *leaf.field.shape)
        values.append(np.frombuffer(piece, leaf.field.dtype).reshape(shape))
    return unflatten(space, values)


def names(space, root="x"):
    return [leaf.name for leaf in space_leaves(space, root)]


@pytest.mark.parametrize("name", SPACES)
def test_values_come_back_to_the_bit_and_are_not_changed(name):
    space = SPACES[name]
    encode = encoder(space)
    for value in examples(space):
        assert space.contains(value), "the catalogue must give values of the space"
        before = copy.deepcopy(value)
        back = decode(space, encode(value))
        assert equal_values(before, value)
        assert space.contains(back)
        assert equal_values(value, back)


# Gymnasium overflows where the range of a Box is the whole of float64, and gives scalars for integer Boxes of shape ().
SAMPLED = [name for name in SPACES if name not in ("box-negative-zero", "box-float64")]
SAMPLED = [name for name in SAMPLED if not name.startswith("box-scalar-")]


@pytest.mark.parametrize("name", SAMPLED)
def test_samples_come_back_with_their_types(name):
    space = SPACES[name]
    encode, flatten = encoder(space), space_tree(space, "x").flatten
    for seed in range(8):
        space.seed(seed)
        value = space.sample()
        assert equal_values(value, decode(space, encode(value)))
        assert equal_values(value, unflatten(space, flatten(value)))


def test_ragged_leaves_are_arrays_of_elements():
    for name, space in RAGGED_SPACES.items():
        leaves = space_leaves(space, "x")
        assert any(leaf.field.ragged for leaf in leaves), name
        for value in examples(space):
            for leaf, part in zip(leaves, space_tree(space, "x").flatten(value), strict=True):
                if leaf.field.ragged:
                    assert type(part) is np.ndarray, name
                    assert part.shape[1:] == leaf.field.shape, name
                    assert part.dtype.name == leaf.field.dtype.name, name


def test_the_state_of_the_fields_is_that_of_the_space():
    for space in SPACES.values():
        assert all(leaf.field.state for leaf in space_leaves(space, "x", state=True))
        assert not any(leaf.field.state for leaf in space_leaves(space, "x"))


@settings(max_examples=40)
@given(st.lists(st.text(st.characters(codec=None)), max_size=4))
@example(["", "\ud83d\ude00", "\U0001f600", "\x00", "\ud800"])
def test_any_string_comes_back(texts):
    text = spaces.Text(5)
    for value in texts:
        assert decode(text, encoder(text)(value)) == value
    for space in (spaces.Sequence(text), spaces.Sequence(text, stack=True)):
        assert decode(space, encoder(space)(tuple(texts))) == tuple(texts)
    assert len({encoder(text)(value) for value in texts}) == len(set(texts))


@settings(max_examples=40)
@given(NESTED_SPACES)
def test_random_nested_spaces_come_back_and_have_distinct_names(space):
    leaves = space_leaves(space, "observation")
    folded = [unicodedata.normalize("NFC", leaf.name.casefold()) for leaf in leaves]
    assert len(set(folded)) == len(leaves)
    encode = encoder(space)
    for value in examples(space):
        assert equal_values(value, decode(space, encode(value)))


def test_names_keys_and_fields_follow_the_space():
    leaves = space_leaves(ROBOT, "observation", state=True)
    assert [(leaf.name, leaf.keys) for leaf in leaves] == [
        ("observation.camera.rgb", ("camera", "rgb")),
        ("observation.joints.0", ("joints", 0)),
        ("observation.joints.1", ("joints", 1)),
    ]
    assert [leaf.field for leaf in leaves] == [
        Field("uint8", (2, 2), state=True),
        Field("float32", (3,), state=True),
        Field("int64", (), state=True),
    ]
    assert leaves[2].space is ROBOT["joints"][1]


@pytest.mark.parametrize(
    ("space", "field"),
    [
        (spaces.Box(0, 1, (), np.float16), Field("float16")),
        (spaces.Box(0, 1, (0, 2), np.float64), Field("float64", (0, 2))),
        (spaces.Box(0, 1, (2,), np.bool_), Field("bool", (2,))),
        (spaces.Discrete(3, start=-1), Field("int64")),
        (spaces.MultiDiscrete(np.ones((2, 3), int), dtype=np.uint16), Field("uint16", (2, 3))),
        (spaces.MultiBinary((2, 2)), Field("int8", (2, 2))),
    ],
)
def test_a_bare_space_is_the_one_field_named_root(space, field):
    (leaf,) = space_leaves(space, "action")
    assert (leaf.name, leaf.keys, leaf.field) == ("action", (), field)


def test_odd_keys_keep_their_type_and_order_and_never_collide():
    space = spaces.Dict([(key, spaces.Discrete(2)) for key in ODD_KEYS])
    leaves = space_leaves(space, "observation")
    assert [leaf.keys for leaf in leaves] == [(key,) for key in ODD_KEYS]
    assert [type(leaf.keys[0]) for leaf in leaves] == [type(key) for key in ODD_KEYS]
    assert all(leaf.name.count(".") == 1 for leaf in leaves), "a key is one component"
    assert len({unicodedata.normalize("NFD", leaf.name.casefold()) for leaf in leaves}) == len(ODD_KEYS)


@pytest.mark.parametrize("name", ["dict-empty", "tuple-empty"])
def test_a_space_without_leaves_still_checks_its_values(name):
    space = SPACES[name]
    assert space_leaves(space, "observation") == []
    assert encoder(space)(examples(space)[0]) == ()
    with pytest.raises(FieldError):
        encoder(space)(None)
    with pytest.raises(FieldError):
        encoder(space)({"more": 1})


def test_dtypes_by_field_by_group_and_the_longest_name_wins():
    dtypes = {"observation": "float64", "observation.joints": "int16", "observation.joints.0": "float16"}
    chosen = [leaf.field.dtype.name for leaf in space_leaves(ROBOT, "observation", dtypes=dtypes)]
    assert chosen == ["float64", "float16", "int16"]
    assert dtypes == {"observation": "float64", "observation.joints": "int16", "observation.joints.0": "float16"}


def test_a_narrower_dtype_is_what_is_encoded_and_comes_back_in_the_space():
    space = spaces.Box(-1, 1, (2,), np.float64)
    leaves = space_leaves(space, "action", dtypes={"action": np.float16})
    (encoded,) = make_space_encoder(space_tree(space, "action"), leaves)(np.array([0.5, 0.1]))
    assert encoded == np.array([0.5, 0.1], np.float16).tobytes()
    back = unflatten(space, [np.frombuffer(encoded, np.float16)])
    assert back.dtype == np.float64
    assert space.contains(back)


@pytest.mark.parametrize("unknown", ["observation.camer", "observation.camera.rgb.x", "camera", "observatio", "action"])
def test_an_unknown_name_in_dtypes_is_an_error(unknown):
    with pytest.raises(FieldError, match=unknown):
        space_leaves(ROBOT, "observation", dtypes={unknown: "float16"})


def test_a_dtype_that_does_not_exist_names_the_field():
    with pytest.raises(FieldError, match=r"observation\.camera\.rgb.*bfloat16"):
        space_leaves(ROBOT, "observation", dtypes={"observation.camera": "bfloat16"})


class Pointer(Space):
    """A space of somebody's own."""

    def __init__(self):
        super().__init__((2,), np.float32)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (Pointer(), r"^observation: .*Pointer"),
        (spaces.Tuple((spaces.Discrete(2), spaces.Dict({"a.b": Pointer()}))), r"^observation\.1\.a%2Eb: .*Pointer"),
        (spaces.Sequence(spaces.Dict({"p": Pointer()})), r"^observation\.p: .*Pointer"),
        (spaces.OneOf((spaces.Discrete(2), Pointer())), r"^observation\.1: .*Pointer"),
        (spaces.Sequence(spaces.Box(0, 1, (2,), np.longdouble)), r"^observation: Box"),
        (spaces.Dict({"wide": spaces.Box(0, 1, (2,), np.longdouble)}), r"^observation\.wide: Box"),
        (spaces.Dict({"in": spaces.Dict([(np.int64(1), spaces.Discrete(2))])}), r"^observation\.in: key"),
    ],
)
def test_what_cannot_be_recorded_is_named_with_its_place(space, message):
    with pytest.raises(UnsupportedSpaceError, match=message):
        space_leaves(space, "observation")


def test_subclasses_are_recorded_as_what_they_are():
    class Angle(spaces.Box):
        pass

    class Robot(spaces.Dict):
        pass

    space = Robot({"angle": Angle(-np.pi, np.pi, (2,), np.float64), "pair": type("Pair", (spaces.Tuple,), {})(())})
    (leaf,) = space_leaves(space, "observation")
    assert (leaf.name, leaf.field) == ("observation.angle", Field("float64", (2,)))


def test_a_leaf_is_encoded_as_the_storage_encodes_it():
    for name, space in FIXED_SPACES.items():
        leaves, flatten = space_leaves(space, "observation"), space_tree(space, "observation").flatten
        encoders = [make_encoder(leaf.name, leaf.field) for leaf in leaves]
        for value in examples(space):
            expected = [encode(part) for encode, part in zip(encoders, flatten(value), strict=True)]
            assert encoder(space)(value) == tuple(expected), name


def test_flatten_gives_the_very_leaf_values_in_leaf_order():
    value = robot_value()
    flat = space_tree(ROBOT, "observation").flatten(value)
    expected = [value["camera"]["rgb"], *value["joints"]]
    assert len(flat) == 3
    assert all(a is b for a, b in zip(flat, expected, strict=True))
    assert list(space_tree(spaces.Discrete(2), "action").flatten(1)) == [1]


def test_what_was_encoded_does_not_change_with_the_callers_array():
    box = spaces.Box(-9, 9, (3,), np.float32)
    for space, array in ((box, np.ones(3, np.float32)), (spaces.Dict({"x": box}), np.ones(3, np.float32))):
        (encoded,) = encoder(space)(array if space is box else {"x": array})
        array[:] = 5
        assert encoded == np.ones(3, np.float32).tobytes()
        assert type(encoded) is bytes


def test_the_order_of_a_values_keys_does_not_matter():
    value = robot_value()
    turned = dict(reversed(value.items()))
    assert list(turned) != list(value)
    assert encoder(ROBOT)(turned) == encoder(ROBOT)(value)


@pytest.mark.parametrize("kind", [OrderedDict, MappingProxyType, lambda d: defaultdict(dict, d)])
def test_any_mapping_and_any_sequence_will_do(kind):
    value = robot_value()
    other = kind({"camera": kind(value["camera"]), "joints": list(value["joints"])})
    assert encoder(ROBOT)(other) == encoder(ROBOT)(value)


def test_a_defaultdict_does_not_make_up_a_missing_key():
    space = spaces.Dict({"a": spaces.Discrete(2), "b": spaces.Discrete(2)})
    value = defaultdict(int, {"a": 1, "c": 1})
    with pytest.raises(FieldError, match="missing"):
        encoder(space)(value)
    assert set(value) == {"a", "c"}


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor, list, tuple])
def test_an_array_stands_for_a_tuple_of_its_rows(kind):
    space = spaces.Tuple((spaces.Discrete(5), spaces.Discrete(5)))
    expected = (np.int64(3).tobytes(), np.int64(4).tobytes())
    assert encoder(space)(kind([3, 4])) == expected


@pytest.mark.parametrize(
    "number", [3, np.int64(3), np.int32(3), np.uint8(3), np.array(3), np.array([3]), torch.tensor(3), [3]]
)
@pytest.mark.parametrize("dtype", [None, "int8", "uint64"])
def test_a_discrete_value_may_be_any_integer(number, dtype):
    space = spaces.Discrete(5)
    leaves = space_leaves(space, "action", dtypes={"action": dtype} if dtype else None)
    assert make_space_encoder(space_tree(space, "action"), leaves)(number) == (np.array(3, dtype or "int64").tobytes(),)


@pytest.mark.parametrize("number", [3.0, np.float32(3), "3", None, [3, 4], np.array([[3]]), {"a": 3}, 2**63])
def test_a_discrete_value_is_no_other_thing(number):
    with pytest.raises(FieldError, match="'action'"):
        encoder(spaces.Discrete(5), "action")(number)


@pytest.mark.parametrize(
    "value",
    [
        np.array([0.5, -0.5], np.float32),
        np.array([0.5, -0.5], np.float64),
        np.array([0.5, 9, -0.5], np.float32)[::2],
        [0.5, -0.5],
        (0.5, -0.5),
        torch.tensor([0.5, -0.5]),
        torch.tensor([0.5, -0.5], requires_grad=True),
        [torch.tensor(0.5), torch.tensor(-0.5)],
        np.array([0.5, -0.5], ">f4"),
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_a_box_value_may_be_an_array_a_list_or_a_tensor(value, nested):
    box = spaces.Box(-1, 1, (2,), np.float32)
    expected = (np.array([0.5, -0.5], np.float32).tobytes(),)
    space, given_value = (spaces.Dict({"x": box}), {"x": value}) if nested else (box, value)
    assert encoder(space)(given_value) == expected


def _with(path, replacement):
    value = robot_value()
    part = value
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = replacement
    return value


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, ["'observation'", "NoneType", "camera"]),
        ([1, 2], ["'observation'", "list", "camera"]),
        ({}, ["'observation'", "missing", "camera", "joints"]),
        ({"camera": robot_value()["camera"]}, ["'observation'", "missing ['joints']"]),
        ({**robot_value(), "lidar": 1}, ["'observation'", "unknown ['lidar']"]),
        ({"camera": robot_value()["camera"], "lidar": 1}, ["'observation'", "missing ['joints']", "unknown ['lidar']"]),
        (_with(["camera"], None), ["'observation.camera'", "NoneType", "rgb"]),
        (_with(["camera"], {"RGB": 1}), ["'observation.camera'", "missing ['rgb']", "unknown ['RGB']"]),
        (_with(["camera", "rgb"], None), ["'observation.camera.rgb'", "None"]),
        (_with(["camera", "rgb"], np.zeros((2, 3), np.uint8)), ["'observation.camera.rgb'", "(2, 2)", "(2, 3)"]),
        (_with(["camera", "rgb"], np.full((2, 2), 256)), ["'observation.camera.rgb'", "256", "uint8"]),
        (_with(["joints"], ()), ["'observation.joints'", "2", "0 values"]),
        (_with(["joints"], (1, 2, 3)), ["'observation.joints'", "2", "3 values"]),
        (_with(["joints"], "ab"), ["'observation.joints'", "str"]),
        (_with(["joints"], {0: 1, 1: 2}), ["'observation.joints'", "dict"]),
        (_with(["joints"], np.float32(1)), ["'observation.joints'", "float32"]),
        (_with(["joints"], np.array(1)), ["'observation.joints'", "ndarray"]),
        (_with(["joints"], None), ["'observation.joints'", "NoneType"]),
        (_with(["joints"], (np.zeros(2, np.float32), 0)), ["'observation.joints.0'", "(3,)", "(2,)"]),
        (_with(["joints"], (np.zeros(3, np.float32), 0.5)), ["'observation.joints.1'", "int64", "float64"]),
    ],
)
def test_a_value_that_does_not_fit_names_its_field(value, expected):
    with pytest.raises(FieldError) as caught:
        encoder(ROBOT)(value)
    for part in expected:
        assert part in str(caught.value)
    assert ";" in str(caught.value), "the message must end with a remedy"


def test_a_root_with_dots_is_kept_in_messages():
    space = spaces.Dict({"a": spaces.Dict({"b": spaces.Discrete(2)})})
    with pytest.raises(FieldError, match=r"'info\.extra\.a'"):
        encoder(space, "info.extra")({"a": 3})


@pytest.mark.parametrize("name", ["nested", "box-vector", "tuple-of-eleven", "dict-empty"])
def test_unflatten_takes_exactly_one_value_per_leaf(name):
    space = SPACES[name]
    values = list(space_tree(space, "x").flatten(examples(space)[0]))
    assert equal_values(unflatten(space, values), examples(space)[0])
    with pytest.raises(FieldError, match="too many"):
        unflatten(space, [*values, np.zeros(())])
    if values:
        with pytest.raises(FieldError, match="too few"):
            unflatten(space, values[:-1])
        with pytest.raises(FieldError, match="shape"):
            unflatten(space, [np.zeros((7, 7)), *values[1:]])


def test_unflatten_gives_views_and_standard_types():
    values = [np.zeros((2, 2), np.uint8), np.zeros(3, np.float32), np.array(-2)]
    value = unflatten(ROBOT, values)
    assert value["camera"]["rgb"] is values[0]
    assert type(value["joints"]) is tuple
    assert type(value["joints"][1]) is np.int64
    assert json.dumps(int(value["joints"][1])) == "-2"


def test_unflatten_refuses_what_cannot_be_recorded():
    with pytest.raises(UnsupportedSpaceError, match="Pointer"):
        unflatten(Pointer(), [np.zeros(())])


POINT = spaces.Box(-1, 1, (2,), np.float32)
NAMED = spaces.Dict({"name": spaces.Text(5), "at": POINT})


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        (spaces.Text(3), ["x"]),
        (spaces.Sequence(POINT), ["x"]),
        (spaces.Sequence(NAMED), ["x.at", "x.name.%lengths", "x.name"]),
        (spaces.Sequence(spaces.Text(3)), ["x.%lengths", "x"]),
        (spaces.Sequence(spaces.Sequence(spaces.Text(3))), ["x.%lengths", "x.%lengths2", "x"]),
        (spaces.Sequence(spaces.Sequence(spaces.Dict({"a": spaces.Text(3)}))), ["x.%lengths", "x.a.%lengths", "x.a"]),
        (spaces.Sequence(spaces.Dict({})), ["x.%items"]),
        (spaces.Sequence(spaces.Sequence(spaces.Box(0, 1, (0,)))), ["x.%lengths", "x.%items"]),
        (
            spaces.OneOf((POINT, spaces.Text(3), spaces.Dict({}))),
            ["x.index", "x.0", "x.1.%lengths", "x.1", "x.2.%items"],
        ),
        (spaces.Graph(POINT, None), ["x.nodes", "x.has_edge_links", "x.edge_links"]),
        (
            spaces.Graph(POINT, spaces.Discrete(2)),
            ["x.nodes", "x.has_edges", "x.edges", "x.has_edge_links", "x.edge_links"],
        ),
    ],
)
def test_the_fields_of_what_differs_in_size(space, expected):
    leaves = space_leaves(space, "x")
    assert [leaf.name for leaf in leaves] == expected
    assert [".".join(map(str, ("x", *leaf.keys))) for leaf in leaves] == expected, "a key for each component"


def test_what_the_fields_of_a_sequence_hold():
    space = spaces.Sequence(spaces.Dict({"name": spaces.Text(5), "tags": spaces.Sequence(spaces.Discrete(9))}))
    value = ({"name": "Zoë", "tags": (1, 2)}, {"name": "", "tags": ()}, {"name": "A", "tags": (3,)})
    flat = dict(zip(names(space), space_tree(space, "x").flatten(value), strict=True))
    assert flat["x.name.%lengths"].tolist() == [4, 0, 1]
    assert flat["x.name"].tobytes() == "ZoëA".encode()
    assert flat["x.tags.%lengths"].tolist() == [2, 0, 1]
    assert flat["x.tags"].tolist() == [1, 2, 3]


def test_what_the_fields_of_a_one_of_hold():
    space = spaces.OneOf((POINT, spaces.Text(3)))
    for value, expected in (
        ((0, [0.5, 1.0]), [0, [[0.5, 1.0]], [], []]),
        ((np.int64(1), "ab"), [1, [], [2], [*b"ab"]]),
    ):
        assert [np.asarray(part).tolist() for part in space_tree(space, "x").flatten(value)] == expected
    sequence = spaces.Sequence(space)
    flat = space_tree(sequence, "x").flatten(((1, "ab"), (0, [0.5, 1.0]), (1, "")))
    assert [part.tolist() for part in flat] == [[1, 0, 1], [0, 1, 0], [[0.5, 1.0]], [1, 0, 1], [2, 0], [*b"ab"]]


@pytest.mark.parametrize(
    "value",
    [
        GraphInstance(np.zeros((0, 2), np.float32), None, None),
        GraphInstance(np.ones((3, 2), np.float32), None, None),
        GraphInstance(np.ones((3, 2), np.float32), np.zeros(0, np.int64), np.zeros((0, 2), np.int32)),
        GraphInstance(np.ones((3, 2), np.float32), np.array([1]), np.array([[0, 2]], np.int32)),
        GraphInstance(np.ones((3, 2), np.float32), None, np.array([[0, 2]], np.int32)),
    ],
)
def test_a_graph_without_edges_is_not_one_with_no_edges(value):
    graph = spaces.Graph(POINT, spaces.Discrete(2))
    assert equal_values(decode(graph, encoder(graph)(value)), value)
    many = spaces.Sequence(graph)
    assert equal_values(decode(many, encoder(many)((value, value))), (value, value))


@pytest.mark.parametrize("name", [name for name, space in RAGGED_SPACES.items() if isinstance(space, spaces.Sequence)])
def test_a_list_stands_for_a_sequence(name):
    space = SPACES[name]
    for value in examples(space):
        if isinstance(value, tuple) and not isinstance(space.feature_space, spaces.Tuple):
            assert encoder(space)(list(value)) == encoder(space)(value)


@pytest.mark.parametrize(
    "value",
    [
        ([0.5, -0.5], [1, 0]),
        [np.array([0.5, -0.5]), np.array([1, 0])],
        deque([[0.5, -0.5], np.array([1, 0], np.float16)]),
        np.array([[0.5, -0.5], [1, 0]], ">f8"),
        torch.tensor([[0.5, -0.5], [1, 0]], requires_grad=True),
        [torch.tensor([0.5, -0.5]), torch.tensor([1.0, 0.0])],
    ],
)
@pytest.mark.parametrize("stack", [False, True])
def test_items_may_be_arrays_lists_or_tensors(value, stack):
    space = spaces.Sequence(POINT, stack=stack)
    assert encoder(space)(value) == (np.array([[0.5, -0.5], [1, 0]], np.float32).tobytes(),)


def test_scalars_of_shape_one_fit_where_shape_is_none():
    space = spaces.Sequence(spaces.Discrete(9))
    expected = (np.array([3, 4, 5, 6]).tobytes(),)
    assert encoder(space)((3, np.array([4]), np.array(5), torch.tensor([6]))) == expected


@pytest.mark.parametrize("empty", [(), [], np.zeros(0), np.zeros((0, 2)), torch.zeros(0, 2), deque()])
@pytest.mark.parametrize("stack", [False, True])
def test_anything_empty_is_an_empty_sequence(empty, stack):
    space = spaces.Sequence(POINT, stack=stack)
    assert encoder(space)(empty) == (b"",)
    back = decode(space, (b"",))
    assert equal_values(back, np.zeros((0, 2), np.float32) if stack else ())


EVERY = spaces.Dict(
    {
        "text": spaces.Text(3),
        "items": spaces.Sequence(NAMED),
        "stack": spaces.Sequence(NAMED, stack=True),
        "pairs": spaces.Sequence(spaces.Tuple((spaces.Discrete(3), POINT))),
        "one": spaces.OneOf((POINT, spaces.Text(3))),
        "graph": spaces.Graph(POINT, None),
        "lists": spaces.Sequence(spaces.Sequence(POINT)),
        "ones": spaces.Sequence(spaces.OneOf((spaces.Discrete(2), spaces.Text(3)))),
        "empty": spaces.Sequence(spaces.Box(0, 1, (0,))),
    }
)


def every_value(**changes):
    at = np.zeros(2, np.float32)
    value = {
        "text": "ab",
        "items": ({"name": "a", "at": at},),
        "stack": {"name": ("a",), "at": at[None]},
        "pairs": ((1, at),),
        "one": (1, "ab"),
        "graph": GraphInstance(at[None], None, None),
        "lists": ((at,),),
        "ones": ((1, "a"),),
        "empty": (np.zeros(0, np.float32),),
    }
    assert set(changes) <= set(value)
    return {**value, **changes}


BAD_VALUES = [
    ({"text": None}, ["'x.text'", "NoneType"]),
    ({"text": b"ab"}, ["'x.text'", "bytes"]),
    ({"text": ["a"]}, ["'x.text'", "list"]),
    ({"items": None}, ["'x.items'", "NoneType"]),
    ({"items": "ab"}, ["'x.items'", "str"]),
    ({"items": {"name": ("a",)}}, ["'x.items'", "dict"]),
    ({"items": {1, 2}}, ["'x.items'", "set"]),
    ({"items": np.float32(1)}, ["'x.items'", "float32"]),
    ({"items": (None,)}, ["'x.items'", "NoneType", "name"]),
    ({"items": ({"name": "a"},)}, ["'x.items'", "missing ['at']"]),
    ({"items": ({"name": "a", "at": [0, 0], "b": 1},)}, ["'x.items'", "unknown ['b']"]),
    ({"items": ({"name": 1, "at": [0, 0]},)}, ["'x.items.name'", "int 1"]),
    ({"items": ({"name": "a", "at": [0, 0]}, {"name": "a", "at": [0]})}, ["'x.items.at'", "(2,)", "(1,)"]),
    ({"items": ({"name": "a", "at": None},)}, ["'x.items.at'", "None"]),
    ({"stack": ({"name": "a", "at": [0, 0]},)}, ["'x.stack'", "tuple"]),
    ({"stack": {"name": ("a", "b"), "at": np.zeros((1, 2))}}, ["'x.stack'", "[1, 2]"]),
    ({"stack": {"name": "a", "at": np.zeros((1, 2))}}, ["'x.stack.name'", "str"]),
    ({"stack": {"name": ("a",), "at": np.zeros(2)}}, ["'x.stack.at'", "(2,)", "()"]),
    ({"stack": {"name": (), "at": np.zeros((0, 3))}}, ["'x.stack.at'", "(0, 2)", "(0, 3)"]),
    ({"pairs": ((1,),)}, ["'x.pairs'", "2", "1 values"]),
    ({"pairs": ({0: 1, 1: 2},)}, ["'x.pairs'", "dict"]),
    ({"pairs": ((0.5, [0, 0]),)}, ["'x.pairs.0'", "int64", "float64"]),
    ({"one": "ab"}, ["'x.one'", "str"]),
    ({"one": (0,)}, ["'x.one'", "tuple"]),
    ({"one": (2, "ab")}, ["'x.one'", "0 to 1", "int 2"]),
    ({"one": (-1, "ab")}, ["'x.one'", "0 to 1", "int -1"]),
    ({"one": (0.0, [0, 0])}, ["'x.one'", "0 to 1", "float 0.0"]),
    ({"one": (None, "ab")}, ["'x.one'", "0 to 1", "NoneType"]),
    ({"one": (0, "ab")}, ["'x.one.0'", "ab"]),
    ({"one": (1, [0, 0])}, ["'x.one.1'", "list"]),
    ({"graph": None}, ["'x.graph'", "GraphInstance", "NoneType"]),
    ({"graph": np.zeros((3, 2))}, ["'x.graph'", "GraphInstance", "ndarray"]),
    ({"graph": GraphInstance(None, None, None)}, ["'x.graph.nodes'", "NoneType"]),
    ({"graph": GraphInstance(np.zeros((1, 3)), None, None)}, ["'x.graph.nodes'", "(2,)", "(3,)"]),
    ({"graph": GraphInstance(np.zeros((1, 2)), np.zeros(1), None)}, ["'x.graph'", "edge_space"]),
    ({"graph": GraphInstance(np.zeros((1, 2)), None, np.zeros((1, 3), int))}, ["'x.graph.edge_links'", "(2,)", "(3,)"]),
    ({"graph": GraphInstance(np.zeros((1, 2)), None, np.zeros((1, 2)))}, ["'x.graph.edge_links'", "int32", "float64"]),
    ({"lists": (np.zeros(2),)}, ["'x.lists'", "(2,)"]),
    ({"lists": (None,)}, ["'x.lists'", "NoneType"]),
    ({"ones": ((1, "a"), (2, "a"))}, ["'x.ones'", "0 to 1"]),
    ({"ones": ((1, 1),)}, ["'x.ones.1'", "int 1"]),
    ({"empty": ([1.0],)}, ["'x.empty'", "(0,)", "(1,)"]),
]


@pytest.mark.parametrize(("changes", "expected"), BAD_VALUES, ids=range(len(BAD_VALUES)))
def test_a_value_of_another_size_that_does_not_fit_names_its_field(changes, expected):
    encode = encoder(EVERY, "x")
    encode(every_value())
    with pytest.raises(FieldError) as caught:
        encode(every_value(**changes))
    for part in expected:
        assert part in str(caught.value)
    assert ";" in str(caught.value), "the message must end with a remedy"


def test_what_was_encoded_does_not_change_with_the_callers_items():
    space = spaces.Sequence(POINT, stack=True)
    array = np.ones((3, 2), np.float32)
    (encoded,) = encoder(space)(array)
    array[:] = 5
    assert encoded == np.ones((3, 2), np.float32).tobytes()


@pytest.mark.parametrize("mapping", [OrderedDict, MappingProxyType, lambda d: defaultdict(dict, d)])
def test_items_may_be_any_mapping(mapping):
    space = spaces.Sequence(NAMED)
    items = [{"name": "a", "at": [0, 1]}, {"at": [1, 0], "name": "b"}]
    assert encoder(space)([mapping(item) for item in items]) == encoder(space)(items)


def test_dtypes_are_for_numbers_only():
    def chosen(dtypes):
        return {leaf.name: leaf.field.dtype.name for leaf in space_leaves(EVERY, "x", dtypes=dtypes)}

    plain = chosen({})
    changed = chosen({"x": "float64", "x.lists": "float16"})
    assert {name for name in plain if plain[name] != changed[name]} == {
        "x.items.at",
        "x.stack.at",
        "x.pairs.0",
        "x.pairs.1",
        "x.one.0",
        "x.graph.nodes",
        "x.lists",
        "x.ones.0",
    }
    assert changed["x.lists"] == "float16"
    for name in ("x.text", "x.items.name", "x.items.name.%lengths", "x.one.index", "x.graph.edge_links", "x.ones.1"):
        with pytest.raises(FieldError, match=rf"{re.escape(name)}.*always stored as"):
            chosen({name: "int8"})
    with pytest.raises(FieldError, match="no field or group"):
        chosen({"x.items.nam": "int8"})


def test_items_in_a_narrower_dtype_come_back_in_the_space():
    space = spaces.Sequence(spaces.Box(-1, 1, (2,), np.float64))
    (leaf,) = leaves = space_leaves(space, "x", dtypes={"x": "float16"})
    (encoded,) = make_space_encoder(space_tree(space, "action"), leaves)(((0.5, 0.1), (0.25, 0.0)))
    assert leaf.field == Field("float16", (2,), ragged=True)
    back = unflatten(space, [np.frombuffer(encoded, np.float16).reshape(2, 2)])
    assert [item.dtype for item in back] == [np.float64, np.float64]
    with pytest.raises(FieldError, match="too large"):
        make_space_encoder(space_tree(space, "action"), leaves)(((1e30, 0.0),))


def test_items_are_views_of_what_was_read():
    column = np.arange(6, dtype=np.float32).reshape(3, 2)
    assert unflatten(spaces.Sequence(POINT, stack=True), [column]) is column
    assert all(np.shares_memory(item, column) for item in unflatten(spaces.Sequence(POINT), [column]))


@pytest.mark.parametrize(
    ("space", "values"),
    [
        (spaces.Text(3), [np.array([0xFF], np.uint8)]),
        (spaces.Sequence(spaces.Text(3)), [np.array([2, 2]), np.zeros(3, np.uint8)]),
        (spaces.Sequence(spaces.Text(3)), [np.array([2, -1]), np.zeros(1, np.uint8)]),
        (spaces.Sequence(spaces.Text(3)), [np.array([0.5, 0.5]), np.zeros(1, np.uint8)]),
        (spaces.Sequence(spaces.Text(3)), [np.array([2**62, 2**62, 2**62, 2**62]), np.zeros(0, np.uint8)]),
        (spaces.Sequence(spaces.Sequence(POINT)), [np.array([2**60]), np.zeros((3, 2))]),
        (spaces.Sequence(spaces.Sequence(spaces.Dict({}))), [np.array([2**60]), np.zeros(3, np.uint8)]),
        (spaces.Sequence(POINT), [np.zeros((3, 3))]),
        (spaces.Sequence(NAMED), [np.zeros((3, 2)), np.zeros(2, int), np.zeros(0, np.uint8)]),
        (spaces.OneOf((POINT, spaces.Discrete(2))), [np.array(2), np.zeros((0, 2)), np.zeros(0, int)]),
        (spaces.OneOf((POINT, spaces.Discrete(2))), [np.array(-1), np.zeros((0, 2)), np.zeros(1, int)]),
        (spaces.OneOf((POINT, spaces.Discrete(2))), [np.array(0), np.zeros((0, 2)), np.zeros(0, int)]),
        (spaces.Sequence(spaces.OneOf((POINT,))), [np.array([0, 1]), np.array([1, 1]), np.zeros((2, 2))]),
        (spaces.Sequence(spaces.OneOf((POINT,))), [np.array([0, 0]), np.array([1, 0]), np.zeros((1, 2))]),
        (spaces.Sequence(spaces.OneOf((POINT,))), [np.array([0, 0]), np.array([1, 1]), np.zeros((1, 2))]),
    ],
)
def test_leaf_values_that_contradict_one_another_are_refused(space, values):
    with pytest.raises(FieldError, match="unflatten"):
        unflatten(space, values)


class Mission(Space):
    """As MiniGrid's: a space of strings without a base among the standard ones."""

    def __init__(self, texts=("go to the red ball", "öffne die Tür 🚪")):
        self.texts = texts
        super().__init__(dtype=str)

    def sample(self, mask=None, probability=None):
        return self.texts[int(self.np_random.integers(len(self.texts)))]

    def contains(self, x):
        return x in self.texts

    def __eq__(self, other):
        return isinstance(other, Mission) and other.texts == self.texts


@pytest.mark.parametrize(
    "wrap",
    [
        lambda space: space,
        lambda space: spaces.Dict({"mission": space, "image": POINT}),
        lambda space: spaces.Tuple((space, spaces.Dict({"again": space}))),
        lambda space: spaces.Sequence(space),
        lambda space: spaces.Sequence(spaces.Dict({"mission": space, "at": POINT}), stack=True),
        lambda space: spaces.OneOf((space, spaces.Discrete(2))),
    ],
)
def test_spaces_of_strings_need_no_registration(wrap):
    space = wrap(Mission())
    again = space_from_json(json.loads(json.dumps(space_to_json(space))))
    for seed in range(5):
        space.seed(seed)
        value = space.sample()
        assert equal_values(decode(space, encoder(space)(value)), value)
        assert equal_values(decode(again, encoder(space)(value)), value), "as after reopening"
    assert names(again) == names(space)


class Set(Space):
    """Values are frozensets of small numbers."""

    def __init__(self, size):
        super().__init__()
        self.size = size

    def sample(self, mask=None, probability=None):
        return frozenset(np.flatnonzero(self.np_random.random(self.size) < 0.5).tolist())

    def contains(self, x):
        return isinstance(x, frozenset) and all(0 <= item < self.size for item in x)


def register_set():
    register_space(
        Set,
        to_space=lambda space: spaces.Sequence(spaces.Discrete(space.size)),
        encode=lambda space, value: tuple(sorted(value)),
        decode=lambda space, value: frozenset(int(item) for item in value),
    )


def _equal(left, right):
    if isinstance(left, tuple):
        return len(left) == len(right) and all(map(_equal, left, right))
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(_equal(left[key], right[key]) for key in left)
    return type(left) is type(right) and np.array_equal(left, right)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda space: space,
        lambda space: spaces.Dict({"set": space, "at": POINT}),
        lambda space: spaces.Tuple((space, space)),
        lambda space: spaces.Sequence(space),
        lambda space: spaces.Sequence(space, stack=True),
        lambda space: spaces.Sequence(spaces.Dict({"set": space, "at": POINT}), stack=True),
        lambda space: spaces.Sequence(spaces.Sequence(space, stack=True)),
        lambda space: spaces.OneOf((space, spaces.Discrete(2))),
    ],
)
@pytest.mark.usefixtures("rules")
def test_a_registered_space_is_recorded_at_any_depth(wrap):
    register_set()
    space = wrap(type("SmallSet", (Set,), {})(4))
    for seed in range(10):
        space.seed(seed)
        value = space.sample()
        assert _equal(decode(space, encoder(space)(value)), value)


@pytest.mark.usefixtures("rules")
def test_a_registered_space_is_its_standard_space_in_the_metadata():
    register_set()
    space = spaces.Dict({"set": Set(4)})
    again = space_from_json(space_to_json(space))
    assert again == spaces.Dict({"set": spaces.Sequence(spaces.Discrete(4))})
    assert decode(again, encoder(space)({"set": frozenset((1, 3))})) == {"set": (1, 3)}


@pytest.mark.usefixtures("rules")
def test_a_registered_subclass_of_a_standard_space_goes_its_own_way():
    class Angle(spaces.Box):
        pass

    register_space(
        Angle,
        to_space=lambda space: spaces.Box(-1, 1, (2,), np.float64),
        encode=lambda space, value: np.array([np.cos(value), np.sin(value)]).reshape(2),
        decode=lambda space, value: np.arctan2(value[1:], value[:1]).astype(np.float32),
    )
    angle = Angle(-np.pi, np.pi, (1,), np.float32)
    (leaf,) = space_leaves(angle, "x")
    assert leaf.field == Field("float64", (2,))
    for space in (angle, spaces.Sequence(angle), spaces.Sequence(angle, stack=True)):
        for seed in range(5):
            space.seed(seed)
            value = space.sample()
            back = decode(space, encoder(space)(value))
            assert type(back) is type(value)
            assert len(back) == len(value)
            for item, original in zip(back, value, strict=True):
                np.testing.assert_allclose(item, original, atol=1e-5)


@pytest.mark.usefixtures("rules")
def test_without_functions_the_values_are_the_standard_ones():
    register_space(Pointer, lambda space: spaces.Box(-1, 1, space.shape, space.dtype))
    assert encoder(Pointer())([0.5, 1.0]) == encoder(POINT)([0.5, 1.0])
    assert encoder(spaces.Sequence(Pointer()))([[0.5, 1.0]]) == encoder(spaces.Sequence(POINT))([[0.5, 1.0]])


@pytest.mark.usefixtures("rules")
def test_an_error_of_a_registered_function_names_the_field_and_the_space():
    register_set()
    with pytest.raises(FieldError, match=r"'x\.a'.*Set.*encode.*TypeError") as caught:
        encoder(spaces.Dict({"a": Set(4)}), "x")({"a": 5})
    assert isinstance(caught.value.__cause__, TypeError)
    register_space(Set, lambda space: space.nothing)
    with pytest.raises(UnsupportedSpaceError, match=r"^x: to_space.*Set.*AttributeError"):
        space_leaves(Set(4), "x")
    for wrong in (None, spaces.Discrete, Set(4)):
        register_space(Set, lambda space, wrong=wrong: wrong)
        with pytest.raises(UnsupportedSpaceError, match=r"^x: to_space.*expected a standard space"):
            space_leaves(Set(4), "x")


class Grid(Space):
    """A space with neither shape nor dtype."""


class Odd(Space):
    """A space of a shape and dtype of its own."""

    def __init__(self, shape, dtype):
        super().__init__(shape, dtype)


@pytest.mark.parametrize(
    ("space", "value"),
    [
        (Pointer(), np.ones(2, np.float32)),
        (Grid(), np.ones(3, np.float32)),
        (Odd((), np.int8), np.array(-128, np.int8)),
        (Odd((2,), np.uint64), np.array([0, 2**64 - 1], np.uint64)),
        (Odd((1,), np.bool_), np.array([True])),
        (Odd((1, 2), np.float64), np.ones((1, 2))),
        (Odd((-1, 3), np.uint8), np.ones(3, np.float32)),
    ],
)
@pytest.mark.usefixtures("rules")
def test_the_error_of_an_unknown_space_shows_a_call_that_works(space, value, monkeypatch):
    with pytest.raises(UnsupportedSpaceError) as caught:
        space_leaves(spaces.Dict({"a": space}), "x")
    _, _, code = str(caught.value).partition("\n\n")
    lines = [line.removeprefix("    ") for line in code.splitlines() if not line.startswith("    from ")]
    assert f"    {type(space).__name__}," in lines
    exec("\n".join(lines), {type(space).__name__: type(space)})
    assert equal_values(decode(space, encoder(space)(value)), value)
    assert space_from_json(space_to_json(space)).contains(value)


@pytest.mark.parametrize(
    "arguments",
    [
        (3, lambda space: POINT),
        (int, lambda space: POINT),
        (POINT, lambda space: POINT),
        (Space, lambda space: POINT),
        (spaces.Box, lambda space: POINT),
        (Set, POINT),
        (Set, None),
        (Set, lambda space: POINT, "encode"),
        (Set, lambda space: POINT, None, 5),
    ],
)
def test_what_cannot_be_registered(arguments):
    with pytest.raises(FieldError, match="register_space"):
        register_space(*arguments)
