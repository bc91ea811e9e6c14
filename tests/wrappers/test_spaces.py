"""The fields of a space, and values on their way into bytes and back."""

import json
import unicodedata
from collections import OrderedDict, defaultdict
from types import MappingProxyType

import numpy as np
import pytest
import torch
from catalogue import NESTED_SPACES, ODD_KEYS, SPACES, UNSUPPORTED_YET, equal_values, examples
from gymnasium import Space, spaces
from hypothesis import given, settings

from gym_replay.buffer.storage.fields import Field, make_encoder
from gym_replay.errors import FieldError, UnsupportedSpaceError
from gym_replay.wrappers.spaces import make_flattener, make_space_encoder, space_leaves, unflatten

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


def encoder(space, root="observation"):
    return make_space_encoder(space, space_leaves(space, root))


def decode(space, encoded):
    leaves = space_leaves(space, "observation")
    assert [len(piece) for piece in encoded] == [leaf.field.nbytes for leaf in leaves]
    values = [
        np.frombuffer(piece, leaf.field.dtype).reshape(leaf.field.shape)
        for piece, leaf in zip(encoded, leaves, strict=True)
    ]
    return unflatten(space, values)


@pytest.mark.parametrize("name", SPACES)
def test_values_come_back_to_the_bit(name):
    space = SPACES[name]
    encode = encoder(space)
    for value in examples(space):
        assert space.contains(value), "the catalogue must give values of the space"
        back = decode(space, encode(value))
        assert space.contains(back)
        assert equal_values(value, back)


@settings(max_examples=60, deadline=None)
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
    (encoded,) = make_space_encoder(space, leaves)(np.array([0.5, 0.1]))
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


@pytest.mark.parametrize("name", UNSUPPORTED_YET)
def test_spaces_of_variable_size_are_refused(name):
    space = UNSUPPORTED_YET[name]
    for refuse in (lambda: space_leaves(space, "action"), lambda: make_flattener(space, "action")):
        with pytest.raises(UnsupportedSpaceError, match=r"^action"):
            refuse()


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (spaces.Dict({"inventory": spaces.Text(5)}), r"^observation\.inventory: Text"),
        (spaces.Tuple((spaces.Discrete(2), spaces.Dict({"a.b": Pointer()}))), r"^observation\.1\.a%2Eb: .*Pointer"),
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


@pytest.mark.parametrize("name", [name for name, space in SPACES.items() if space_leaves(space, "x")[:1] != []])
def test_a_leaf_is_encoded_as_the_storage_encodes_it(name):
    space = SPACES[name]
    leaves = space_leaves(space, "observation")
    flatten = make_flattener(space, "observation")
    for value in examples(space):
        expected = [
            make_encoder(leaf.name, leaf.field)(part) for leaf, part in zip(leaves, flatten(value), strict=True)
        ]
        assert encoder(space)(value) == tuple(expected)


def test_flatten_gives_the_very_leaf_values_in_leaf_order():
    value = robot_value()
    flat = make_flattener(ROBOT, "observation")(value)
    expected = [value["camera"]["rgb"], *value["joints"]]
    assert len(flat) == 3
    assert all(a is b for a, b in zip(flat, expected, strict=True))
    assert list(make_flattener(spaces.Discrete(2), "action")(1)) == [1]


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
    assert make_space_encoder(space, leaves)(number) == (np.array(3, dtype or "int64").tobytes(),)


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
    values = list(make_flattener(space, "x")(examples(space)[0]))
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
    with pytest.raises(UnsupportedSpaceError, match="Text"):
        unflatten(spaces.Text(3), [np.zeros(())])
