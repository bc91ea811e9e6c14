"""Spaces and specs as JSON and back, also where the JSON is a stranger's."""

import contextlib
import copy
import enum
import inspect
import json
import sys
import tracemalloc
import warnings
from collections import OrderedDict, namedtuple

import gymnasium as gym
import numpy as np
import pytest
from catalogue import HAS_DISCRETE_DTYPE, NESTED_SPACES, ODD_KEYS, SPACES
from gymnasium import Space, spaces
from gymnasium.envs.classic_control import CartPoleEnv
from gymnasium.envs.registration import EnvSpec, WrapperSpec
from hypothesis import given, settings
from hypothesis import strategies as st

from gym_replay import CorruptBufferError, GymReplayError, MakeEnvError, UnsupportedSpaceError
from gym_replay.buffer.env_spec import make_env, spec_from_json, spec_to_json
from gym_replay.spaces import register_space, space_from_json, space_to_json
from gym_replay.spaces.checked_json import MAX_DEPTH, MAX_ELEMENTS
from gym_replay.spaces.custom import ANY_CHARACTER, LONGEST_TEXT


def through_file(value):
    """What a strict JSON file gives back."""
    return json.loads(json.dumps(value, allow_nan=False))


def through_json(space):
    return space_from_json(through_file(space_to_json(space)))


def parts(space):
    """A space and all spaces inside it, in order."""
    yield space
    for name in ("feature_space", "node_space", "edge_space"):
        if getattr(space, name, None) is not None:
            yield from parts(getattr(space, name))
    children = getattr(space, "spaces", ())
    for child in children.values() if isinstance(children, dict) else children:
        yield from parts(child)


def assert_same_space(left, right):
    """Stricter than ``==``, which compares the bounds of a Box with a tolerance and dicts without their order."""
    assert left == right
    for a, b in zip(parts(left), parts(right), strict=True):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        if isinstance(a, spaces.Box):
            for name in ("low", "high", "bounded_below", "bounded_above"):
                assert getattr(a, name).dtype == getattr(b, name).dtype
                assert getattr(a, name).shape == getattr(b, name).shape
                assert getattr(a, name).tobytes() == getattr(b, name).tobytes(), name
        if isinstance(a, spaces.Dict):
            assert list(a.spaces) == list(b.spaces)
            assert [type(key) for key in a.spaces] == [type(key) for key in b.spaces]
        if isinstance(a, spaces.Text):
            assert a.characters == b.characters


@pytest.mark.parametrize("name", SPACES)
def test_every_standard_space_comes_back_equal(name):
    space = SPACES[name]
    back = through_json(space)
    assert type(back) is type(space)
    assert_same_space(space, back)
    assert space_to_json(back) == space_to_json(space)


@settings(max_examples=60)
@given(NESTED_SPACES)
def test_random_nested_spaces_come_back_equal(space):
    assert_same_space(space, through_json(space))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_float_bounds_keep_every_bit(dtype):
    info, one = np.finfo(dtype), np.dtype(dtype).type(1)
    numbers = np.array(
        [info.min, -one / 3, -0.0, 0.0, info.smallest_subnormal, info.tiny, np.nextafter(one, one + one), info.max],
        dtype,
    )
    assert_same_space(
        spaces.Box(numbers, numbers, dtype=dtype), through_json(spaces.Box(numbers, numbers, dtype=dtype))
    )


@pytest.mark.parametrize("dtype", ["int64", "uint64", "int8"])
def test_integer_bounds_keep_their_extremes(dtype):
    info = np.iinfo(dtype)
    space = spaces.Box(
        np.array([info.min, info.max - 1], dtype), np.array([info.min + 1, info.max], dtype), dtype=dtype
    )
    assert_same_space(space, through_json(space))


def test_an_integer_box_stays_unbounded():
    space = spaces.Box(np.array([-np.inf, 3.0]), np.array([np.inf, np.inf]), dtype=np.int16)
    back = through_json(space)
    assert back.bounded_below.tolist() == [False, True]
    assert back.bounded_above.tolist() == [False, False]


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(0, 255, (210, 160, 3), np.uint8),
        spaces.Box(-np.inf, np.inf, (1000, 1000), np.float32),
        spaces.MultiDiscrete(np.full((100, 100), 7)),
    ],
)
def test_uniform_bounds_are_written_as_one_number(space):
    assert len(json.dumps(space_to_json(space))) < 200
    assert through_json(space) == space


def test_subclasses_are_written_as_their_nearest_standard_base():
    class Angle(spaces.Box):
        pass

    class Robot(spaces.Dict):
        pass

    space = Robot({"angle": Angle(-1, 1, (2,)), "sharp": type("Sharp", (Angle,), {})(-1, 1, ())})
    back = through_json(space)
    assert [type(part) for part in parts(back)] == [spaces.Dict, spaces.Box, spaces.Box]
    assert back == spaces.Dict({"angle": spaces.Box(-1, 1, (2,)), "sharp": spaces.Box(-1, 1, ())})


class Pointer(Space):
    """A space of somebody's own."""


class Colour(str, enum.Enum):
    RED = "red"


def _nested(depth, wrap=lambda space: spaces.Tuple((space,))):
    space = spaces.Discrete(2)
    for _ in range(depth):
        space = wrap(space)
    return space


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (Pointer(), r"^action: .*Pointer"),
        (spaces.Dict({"a.b": spaces.Tuple((spaces.Discrete(2), Pointer()))}), r"^action\.a%2Eb\.1: .*Pointer"),
        (spaces.Sequence(Pointer()), r"^action\.feature_space: .*Pointer"),
        (spaces.Box(0, 1, (2,), np.longdouble), r"^action: dtype"),
        (spaces.Dict([(np.int64(3), spaces.Discrete(2))]), r"^action: key"),
        (spaces.Dict([(float("nan"), spaces.Discrete(2))]), r"^action: key"),
        (spaces.MultiBinary((2**13, 2**13)), rf"^action: .*{MAX_ELEMENTS}"),
        (_nested(MAX_DEPTH), rf"^action: .*{MAX_DEPTH}"),
        (_nested(2000), r"^action: "),
    ],
    ids=["custom", "nested", "feature", "dtype", "numpy key", "nan key", "large", "deep", "deeper"],
)
def test_what_cannot_come_back_is_refused_with_type_and_place(space, message):
    with pytest.raises(UnsupportedSpaceError, match=message):
        space_to_json(space, "action")


class Mission(Space):
    """As MiniGrid's: a space of strings without a base among the standard ones."""

    def __init__(self):
        super().__init__(dtype=str)


def test_a_space_of_strings_is_written_as_text():
    space = spaces.Dict({"mission": Mission(), "image": spaces.Box(0, 255, (2,), np.uint8)})
    back = through_json(space)
    assert back["mission"] == spaces.Text(LONGEST_TEXT, min_length=0, charset=ANY_CHARACTER)
    for text in ("", "go to the red ball", "Öffne: 'Tür' (5 €)".replace("€", "£"), "a\tb\n"):
        assert back["mission"].contains(text)
    assert len(json.dumps(space_to_json(Mission()))) < 4096, "every metadata file holds it"


@pytest.mark.usefixtures("rules")
def test_a_registered_space_is_written_as_its_standard_space():
    register_space(Pointer, lambda space: spaces.Tuple((Mission(), spaces.Discrete(2))))
    assert through_json(spaces.Discrete(2)) == spaces.Discrete(2)
    sharp = type("Sharp", (Pointer,), {})()
    for space in (Pointer(), sharp):
        back = through_json(spaces.Sequence(space))
        assert type(back.feature_space) is spaces.Tuple
        assert back.feature_space[1] == spaces.Discrete(2)
    register_space(Pointer, lambda space: spaces.Discrete(3))
    assert through_json(sharp) == spaces.Discrete(3), "the last registration counts"


def test_an_unknown_space_shows_how_to_register_it():
    with pytest.raises(UnsupportedSpaceError, match=r"gym_replay\.register_space\(\s+Pointer,\s+to_space=lambda space"):
        space_to_json(Pointer(), "action")
    with pytest.raises(UnsupportedSpaceError, match=r"^action: .*NoneType"):
        space_to_json(None, "action")


@pytest.mark.usefixtures("rules")
def test_a_registration_without_end_is_refused():
    register_space(Pointer, lambda space: spaces.Tuple((Pointer(),)))
    with pytest.raises(UnsupportedSpaceError, match=r"^action"):
        space_to_json(Pointer(), "action")


def test_a_key_of_an_enum_of_strings_is_written_as_its_string():
    space = spaces.Dict([(Colour.RED, spaces.Discrete(2))])
    assert through_json(space) == space
    assert type(next(iter(through_json(space).spaces))) is str


def test_the_deepest_space_comes_back():
    assert through_json(_nested(MAX_DEPTH - 1)) == _nested(MAX_DEPTH - 1)


BOX = {"type": "Box", "dtype": "float32", "shape": [2], "low": -1.0, "high": 1.0}
UINT8 = {"type": "Box", "dtype": "uint8", "shape": [2], "low": 0, "high": 255}
DISCRETE = {"type": "Discrete", "n": 2, "start": 0, "dtype": "int64"}
MULTI = {"type": "MultiDiscrete", "dtype": "int64", "shape": [2], "nvec": 3, "start": 0}
TEXT = {"type": "Text", "min_length": 0, "max_length": 3, "charset": "ab"}

MALFORMED = [
    None,
    5,
    "Box",
    [],
    [BOX],
    {},
    {"type": "Space"},
    {"type": None},
    {"type": ["Box"]},
    {"type": "os.system"},
    *[{key: value for key, value in BOX.items() if key != missing} for missing in BOX],
    *[{key: value for key, value in DISCRETE.items() if key != missing} for missing in DISCRETE],
    *[{key: value for key, value in MULTI.items() if key != missing} for missing in MULTI],
    *[{key: value for key, value in TEXT.items() if key != missing} for missing in TEXT],
    *[{**BOX, "dtype": dtype} for dtype in ("object", "O", "U8", "M8", "complex64", "float128", "<f3", "|V4", 4, None)],
    *[{**BOX, "shape": shape} for shape in (2, None, [-1], [1.0], [True], ["2"], [[2]], [1] * 99, {"0": 2})],
    *[{**BOX, "low": low} for low in (None, "0", "nan", float("nan"), 2.0, 1e39, -1e39, [0.0], [0.0] * 3, [[0.0] * 2])],
    *[{**BOX, "low": low} for low in (True, 10**400, -(10**5000), [0.0, None], [0.0, "nan"], {}, [[], []])],
    *[{**UINT8, "low": low} for low in (-1, 0.0, True, "-inf", 256, [0, 0.5])],
    {**BOX, "bounded_below": 1},
    {**BOX, "bounded_above": [True]},
    {**BOX, "shape": [0], "low": [], "high": [1.0]},
    *[{**DISCRETE, "n": n} for n in (0, -1, 2.0, True, None, "2", 2**63, [])],
    *[{**DISCRETE, "start": start} for start in (0.5, None, -(2**63) - 1, 10**5000)],
    *[{**DISCRETE, "dtype": dtype} for dtype in ("float32", "bool", "object")],
    *[{**MULTI, "nvec": nvec} for nvec in (0, [1, 0], [1], None, 2.0, [[1, 1]])],
    {**MULTI, "start": [0, None]},
    *[{"type": "MultiBinary", "n": n} for n in (0, -1, True, None, 2.0, "2", [0], [2, -1], [2.0], [1] * 99)],
    *[{**TEXT, "min_length": length} for length in (-1, 4, None, 0.0, True)],
    *[{**TEXT, "max_length": length} for length in (-1, 2**63, 10**5000)],
    *[{**TEXT, "charset": charset} for charset in (None, 3, ["a", "b"])],
    *[{"type": "Dict", "items": items} for items in (None, {}, [5], [["a"]], [["a", DISCRETE, 1]], [["a", None]])],
    *[{"type": "Dict", "items": [[key, DISCRETE]]} for key in (0.5, True, [], {}, {"eval": "1"}, {"float": "x"})],
    {"type": "Dict", "items": [["a", DISCRETE], ["a", BOX]]},
    {"type": "Dict", "items": [[1, DISCRETE], [{"bool": True}, BOX]]},
    {"type": "Tuple", "spaces": {}},
    {"type": "Tuple", "spaces": [None]},
    {"type": "OneOf", "spaces": []},
    {"type": "Sequence", "feature_space": DISCRETE},
    {"type": "Sequence", "feature_space": None, "stack": False},
    {"type": "Sequence", "feature_space": DISCRETE, "stack": 1},
    {"type": "Graph", "node_space": DISCRETE},
    {"type": "Graph", "node_space": None, "edge_space": None},
]


@pytest.mark.parametrize("value", MALFORMED, ids=range(len(MALFORMED)))
def test_a_malformed_space_is_a_corrupt_buffer(value):
    for document in (value, {"type": "Tuple", "spaces": [DISCRETE, value]}):
        with pytest.raises(CorruptBufferError):
            space_from_json(document)


def _deep_list(depth, make):
    value = DISCRETE
    for _ in range(depth):
        value = make(value)
    return value


BOMBS = {
    "one box": {**BOX, "shape": [2**40]},
    "a product": {**UINT8, "shape": [2**9] * 3},
    "over 64 bits": {**BOX, "shape": [2**40, 2**40]},
    "many boxes": {"type": "Tuple", "spaces": [{**UINT8, "shape": [2**20]}] * 64},
    "multi discrete": {**MULTI, "shape": [2**40]},
    "multi binary": {"type": "MultiBinary", "n": [2**20, 2**20]},
    "stacked": {"type": "Sequence", "feature_space": {**UINT8, "shape": [2**24 + 2**23]}, "stack": True},
    "doubling": _deep_list(30, lambda value: {"type": "Graph", "node_space": value, "edge_space": None}),
    "doubling stacks": _deep_list(30, lambda value: {"type": "Sequence", "feature_space": value, "stack": True}),
    "many spaces": {"type": "Tuple", "spaces": [{"type": "Tuple", "spaces": [DISCRETE] * 1000}] * 1000},
    "deep": _deep_list(50_000, lambda value: {"type": "Tuple", "spaces": [value]}),
    "deep key": {
        "type": "Dict",
        "items": [[_deep_list(50_000, lambda value: {"tuple": [value]}), DISCRETE]],
    },
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_space_of_any_claimed_size_is_refused_before_it_is_made(name):
    tracemalloc.start()
    try:
        with pytest.raises(CorruptBufferError):
            space_from_json(BOMBS[name])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 16 * MAX_ELEMENTS


JSON_VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(max_size=5),
        st.sampled_from(["Box", "Dict", "float32", "inf", "nan", 2**63, 10**400, BOX, DISCRETE]),
    ),
    lambda children: st.one_of(
        st.lists(children, max_size=3),
        st.dictionaries(
            st.sampled_from(["type", "dtype", "shape", "low", "items", "spaces", "n", "$tuple", "$array"]), children
        ),
    ),
    max_leaves=5,
)


def damage(value, data, junk):
    """The value with one node, drawn at random, replaced by junk or taken out."""
    value = copy.deepcopy(value)
    node = value
    while True:
        keys = list(node) if isinstance(node, dict) else range(len(node))
        key = data.draw(st.sampled_from(keys))
        inner = node[key]
        if isinstance(inner, (dict, list)) and inner and data.draw(st.booleans()):
            node = inner
            continue
        if isinstance(node, dict) and data.draw(st.booleans()):
            del node[key]
        else:
            node[key] = junk
        return value


@settings(max_examples=120)
@given(st.sampled_from(sorted(SPACES)), st.data(), JSON_VALUES)
def test_a_damaged_space_is_a_space_or_a_corrupt_buffer(name, data, junk):
    value = damage(space_to_json(SPACES[name]), data, junk)
    try:
        space = space_from_json(value)
    except CorruptBufferError:
        return
    assert through_json(space) == space


@settings(max_examples=100)
@given(JSON_VALUES)
def test_any_json_is_a_space_or_a_corrupt_buffer(value):
    for read in (space_from_json, spec_from_json):
        with contextlib.suppress(CorruptBufferError):
            read(value)


@pytest.mark.skipif(HAS_DISCRETE_DTYPE, reason="this Gymnasium has Discrete dtypes")
def test_a_space_of_a_newer_gymnasium_says_so():
    with pytest.raises(UnsupportedSpaceError, match="newer Gymnasium"):
        space_from_json({**DISCRETE, "dtype": "int8"})


class Plain(gym.Env):
    """An environment with arguments that JSON may not hold."""

    observation_space = spaces.Box(-1, 1, (2, 2), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, reward_fn=None, size=1, render_mode=None, **more):
        self.reward_fn, self.size, self.render_mode, self.more = reward_fn, size, render_mode, more

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros((2, 2), np.float32), {}

    def step(self, action):
        return np.zeros((2, 2), np.float32), 0.0, False, False, {}


class Mine(gym.Wrapper, gym.utils.RecordConstructorArgs):
    """A wrapper that is not one of Gymnasium's."""

    def __init__(self, env, strength=1):
        gym.utils.RecordConstructorArgs.__init__(self, strength=strength)
        gym.Wrapper.__init__(self, env)


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    """Environments of this test's own, taken back afterwards."""
    monkeypatch.setattr("gymnasium.envs.registration.registry", dict(gym.registry))
    monkeypatch.setattr(gym, "registry", gym.envs.registration.registry)
    gym.register("tests/Plain-v0", Plain, max_episode_steps=50)
    gym.register("tests/Wrapped-v0", lambda **kwargs: Mine(Plain(**kwargs), strength=3))


BUILT = [
    lambda: gym.make("CartPole-v1"),
    lambda: gym.make("CartPole-v1", max_episode_steps=7),
    lambda: gym.make("CartPole-v1", max_episode_steps=-1, disable_env_checker=True),
    lambda: gym.make("MountainCar-v0", goal_velocity=0.5),
    lambda: gym.make("FrozenLake-v1", desc=["SFF", "FHF", "FFG"], is_slippery=False),
    lambda: gym.wrappers.TimeLimit(gym.make("CartPole-v1"), 5),
    lambda: gym.wrappers.FlattenObservation(gym.make("CartPole-v1")),
    lambda: gym.wrappers.TimeLimit(gym.wrappers.FlattenObservation(gym.make("tests/Plain-v0")), 9),
    lambda: gym.wrappers.ReshapeObservation(gym.wrappers.FlattenObservation(gym.make("tests/Plain-v0")), (1, 4)),
    lambda: gym.wrappers.ClipReward(gym.make("tests/Plain-v0", size=3), -np.inf, 1.0),
    lambda: gym.make("tests/Wrapped-v0"),
    lambda: gym.wrappers.FlattenObservation(gym.make("tests/Wrapped-v0", size=2)),
]


@pytest.mark.parametrize("make", BUILT, ids=range(len(BUILT)))
def test_the_recorded_environment_is_built_again(make):
    env = make()
    value = through_file(spec_to_json(env.spec))
    again = make_env(value)
    assert again.spec == env.spec
    assert again.observation_space == env.observation_space
    again.reset(seed=0)
    again.step(again.action_space.sample())
    assert spec_to_json(again.spec) == value


@pytest.mark.parametrize("make", BUILT[:10], ids=range(10))
def test_the_spec_comes_back_equal(make):
    spec = make().spec
    assert spec_from_json(through_file(spec_to_json(spec))) == spec


@pytest.mark.skipif(
    "sutton_barto_reward" not in inspect.signature(CartPoleEnv).parameters,
    reason="this Gymnasium has no such argument",
)
def test_an_argument_of_the_environment_is_passed_on():
    env = gym.make("CartPole-v1", sutton_barto_reward=True)
    again = make_env(through_file(spec_to_json(env.spec)))
    assert again.spec == env.spec
    assert again.unwrapped._sutton_barto_reward is True


def test_the_callers_arguments_go_before_the_recorded_ones():
    value = spec_to_json(gym.make("tests/Plain-v0", size=3, max_episode_steps=7).spec)
    again = make_env(value, size=5, max_episode_steps=9, extra="x")
    assert again.unwrapped.size == 5
    assert again.unwrapped.more == {"extra": "x"}
    assert again.spec.max_episode_steps == 9
    assert make_env(value, disable_env_checker=True).spec.disable_env_checker is True


def test_making_does_not_change_the_registry_or_the_json():
    value = spec_to_json(gym.make("tests/Plain-v0", size=[3]).spec)
    before, registered_before = copy.deepcopy(value), copy.deepcopy(gym.registry["tests/Plain-v0"])
    make_env(value, size=4)
    assert value == before
    assert gym.registry["tests/Plain-v0"] == registered_before


Pair = namedtuple("Pair", "a b")

KEPT = {
    "none": None,
    "text": "é\n",
    "yes": True,
    "whole": -(2**63),
    "tuple": (1, (2, [3])),
    "list": [1, [2.5]],
    "dict": {"a": {"b": (1,)}},
    "infinite": [float("inf"), float("-inf")],
    "float": 0.1,
}
LOST = {
    "function": len,
    "type": int,
    "lambda_": lambda: None,
    "object_": object(),
    "set_": {1},
    "bytes_": b"a",
    "enum_": Colour.RED,
    "pair": Pair(1, 2),
    "ordered": OrderedDict(a=1),
    "dollar": {"$tuple": [1]},
    "integer_keys": {1: 2},
    "complex_": 1j,
    "objects": np.array([None]),
    "inside": [1, {"a": [object()]}],
    "huge": 10**5000,
    "large": np.zeros(2**20),
    "space": spaces.Discrete(2),
}
_cyclic: list = []
_cyclic.append(_cyclic)
LOST["cyclic"] = _cyclic


def test_what_json_can_hold_comes_back_and_the_rest_is_listed():
    spec = EnvSpec("tests/Plain-v0", entry_point=Plain, kwargs={**KEPT, **LOST})
    value = through_file(spec_to_json(spec))
    back = spec_from_json(value)
    assert back.kwargs == KEPT
    assert [type(v) for v in back.kwargs.values()] == [type(v) for v in KEPT.values()]
    assert sorted(value["dropped"]) == sorted(["entry_point", *(f"kwargs.{name}" for name in LOST)])


@pytest.mark.parametrize(
    "number", [np.float64(0.1), np.float32(0.1), np.int8(-3), np.uint64(2**64 - 1), np.bool_(True)]
)
def test_numpy_numbers_are_kept_by_value(number):
    spec = EnvSpec("tests/Plain-v0", kwargs={"x": number}, reward_threshold=np.float32(2.5))
    back = spec_from_json(through_file(spec_to_json(spec)))
    assert back.kwargs == {"x": number}
    assert type(back.kwargs["x"]) is type(number.item())
    assert back.reward_threshold == 2.5


@pytest.mark.parametrize(
    "array",
    [
        np.array([[1.5, np.nan], [np.inf, -np.inf]], np.float16),
        np.array([[True], [False]]),
        np.array(2**64 - 1, np.uint64),
        np.zeros((0, 3), np.int32),
        np.arange(6, dtype=">i4").reshape(2, 3)[:, ::2],
    ],
    ids=range(5),
)
def test_numpy_arrays_come_back_to_the_bit(array):
    value = through_file(spec_to_json(EnvSpec("tests/Plain-v0", kwargs={"x": array})))
    back = spec_from_json(value).kwargs["x"]
    assert (back.dtype, back.shape, back.tobytes()) == (array.dtype, array.shape, array.tobytes())


def test_no_spec_and_odd_specs_never_raise():
    assert spec_to_json(None) is None
    spec = EnvSpec("tests/Plain-v0", additional_wrappers=(WrapperSpec("W", lambda env: env, {"f": len}),))
    spec.max_episode_steps = "seven"
    spec.reward_threshold = float("inf")
    spec.order_enforce = {"$float": "inf"}
    value = through_file(spec_to_json(spec))
    assert value["dropped"] == [
        "max_episode_steps",
        "order_enforce",
        "additional_wrappers.0.entry_point",
        "additional_wrappers.0.kwargs.f",
    ]
    back = spec_from_json(value)
    assert (back.max_episode_steps, back.order_enforce, back.reward_threshold) == (None, True, float("inf"))
    for odd in (object(), 5, "spec"):
        with pytest.raises(CorruptBufferError):
            spec_from_json(through_file(spec_to_json(odd)))


def test_a_lost_argument_is_warned_of_unless_the_caller_gives_it():
    env = gym.make("tests/Plain-v0", reward_fn=len, size=2)
    value = through_file(spec_to_json(env.spec))
    with pytest.warns(UserWarning, match=r"kwargs\.reward_fn"):
        assert make_env(value).unwrapped.size == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert make_env(value, reward_fn=len).spec == env.spec


def test_an_unknown_id_names_the_package_to_import():
    env = gym.make("CartPole-v1")
    value = {**spec_to_json(env.spec), "id": "Nowhere/Pong-v5", "entry_point": "ale_py.env:AtariEnv", "module": None}
    with pytest.raises(MakeEnvError, match=r"'Nowhere/Pong-v5' is not registered.*`import ale_py`"):
        make_env(value)
    with pytest.raises(MakeEnvError, match=r"import the package that registers it"):
        make_env({**value, "entry_point": None})
    with pytest.raises(MakeEnvError, match="no environment spec"):
        make_env(None)


def test_a_foreign_wrapper_is_named_and_not_applied():
    env = Mine(gym.make("tests/Plain-v0"))
    with pytest.raises(MakeEnvError, match=r"wrapper Mine \(.*test_environment:Mine\).*yourself"):
        make_env(spec_to_json(env.spec))
    assert issubclass(MakeEnvError, GymReplayError)


def test_a_wrapper_that_lost_an_argument_is_named():
    env = gym.wrappers.TransformReward(gym.make("tests/Plain-v0"), lambda reward: reward + 1)
    with pytest.raises(MakeEnvError, match=r"TransformReward.*kwargs\.func"):
        make_env(through_file(spec_to_json(env.spec)))


def test_videos_are_not_written_where_the_record_says(tmp_path):
    value = spec_to_json(gym.make("tests/Plain-v0").spec)
    folder = tmp_path / "videos"
    value["additional_wrappers"] = [
        {
            "name": "RecordVideo",
            "entry_point": "gymnasium.wrappers.rendering:RecordVideo",
            "kwargs": {"video_folder": str(folder)},
        }
    ]
    with pytest.warns(UserWarning, match="RecordVideo"):
        env = make_env(value)
    assert env.spec.additional_wrappers == ()
    assert not folder.exists()
    assert spec_from_json(value).additional_wrappers[0].kwargs is None


@pytest.fixture
def trap(tmp_path, monkeypatch):
    """A module that must not be imported: it registers an environment and defines wrappers."""
    (tmp_path / "trap_module.py").write_text(
        "import gymnasium as gym\n"
        "gym.register('Trap-v0', lambda: 1)\n"
        "class Trap(gym.Wrapper): pass\n"
        "def call(*args, **kwargs): raise SystemExit('called')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield "trap_module"
    assert "trap_module" not in sys.modules


@pytest.mark.parametrize("entry_point", ["trap_module:call", "trap_module:Trap", "os:system", "builtins:exec"])
def test_nothing_that_the_json_names_is_imported_or_called(trap, entry_point):
    value = spec_to_json(gym.make("tests/Plain-v0").spec)
    wrapper = {"name": "FlattenObservation", "entry_point": entry_point, "kwargs": {"command": "false"}}
    attacks = [
        {**value, "entry_point": entry_point},
        {**value, "entry_point": entry_point, "id": "Unknown-v0"},
        {**value, "vector_entry_point": entry_point},
        {**value, "id": f"{trap}:Trap-v0"},
        {**value, "additional_wrappers": [wrapper]},
    ]
    for attack in attacks:
        spec = spec_from_json(attack)
        assert spec.entry_point in (Plain, None)
        for make in (lambda attack=attack: make_env(attack), lambda spec=spec: gym.make(spec)):
            with contextlib.suppress(MakeEnvError, gym.error.Error, ValueError):
                assert isinstance(make().unwrapped, Plain)
            assert trap not in sys.modules


def test_an_id_that_would_import_a_module_says_how_to_import_it(trap):
    value = {**spec_to_json(gym.make("tests/Plain-v0").spec), "id": f"{trap}:Trap-v0"}
    with pytest.raises(MakeEnvError, match=r"`import trap_module`.*gymnasium\.make\('Trap-v0'\)"):
        make_env(value)


@pytest.mark.parametrize(
    "entry_point",
    [
        "gymnasium.wrappers.vector:RecordEpisodeStatistics",
        "gymnasium.wrappers:vector",
        "gymnasium.wrappers:gym",
        "gymnasium.wrappers:__builtins__",
        "gymnasium.wrappers.array_conversion:ArrayConversion",
        "gymnasium.wrappers:FrameStack",
        "gymnasium.wrappers_evil:TimeLimit",
        "gymnasium.wrappers:TimeLimit.__init__",
        "gymnasium.wrappers",
        "",
    ],
)
def test_only_a_wrapper_class_of_gymnasium_is_a_wrapper(entry_point):
    value = spec_to_json(gym.make("tests/Plain-v0").spec)
    value["additional_wrappers"] = [{"name": "x", "entry_point": entry_point, "kwargs": {}}]
    with pytest.raises(MakeEnvError, match=r"not one of gymnasium\.wrappers"):
        make_env(value)


def _spec_json(**changes):
    value = {
        "id": "CartPole-v1",
        "entry_point": None,
        "reward_threshold": 475.0,
        "nondeterministic": False,
        "max_episode_steps": 500,
        "order_enforce": True,
        "disable_env_checker": False,
        "kwargs": {},
        "additional_wrappers": [],
        "dropped": [],
    }
    value.update(changes)
    return {name: item for name, item in value.items() if item is not Ellipsis}


WRAPPER = {"name": "TimeLimit", "entry_point": "gymnasium.wrappers:TimeLimit", "kwargs": {}}
MALFORMED_SPECS = [
    None,
    5,
    [],
    {},
    *[_spec_json(**{name: ...}) for name in _spec_json()],
    *[_spec_json(id=env_id) for env_id in (None, 5, "", "a b c", "x" * 2000, "a/b/c")],
    *[_spec_json(max_episode_steps=steps) for steps in (1.5, True, "7", [7])],
    *[_spec_json(reward_threshold=threshold) for threshold in (True, "1", {}, {"$float": "1"}, {"$tuple": [1]})],
    *[_spec_json(order_enforce=flag) for flag in (None, 1, "yes")],
    *[_spec_json(entry_point=point) for point in (5, ["a:b"], True)],
    _spec_json(entry_point=5, dropped=["entry_point"]),
    _spec_json(id=None, dropped=["id"]),
    *[_spec_json(kwargs=kwargs) for kwargs in (None, [], 5)],
    *[
        _spec_json(kwargs={"x": item})
        for item in (
            {"$tuple": 5},
            {"$float": "5"},
            {"$float": 5},
            {"$float": []},
            {"$unknown": 1},
            {"$tuple": [], "a": 1},
            {"$array": 5},
            {"$array": {"dtype": "object", "shape": [1], "numbers": [1]}},
            {"$array": {"dtype": "int8", "shape": [1], "numbers": [1000]}},
            {"$array": {"dtype": "int8", "shape": [2**40], "numbers": 0}},
            {"$array": {"dtype": "int8", "shape": [2], "numbers": [0]}},
            {"$array": {"dtype": "int8", "shape": [1], "numbers": [{"$float": "nan"}]}},
            float("nan"),
            _deep_list(50_000, lambda value: [value]),
        )
    ],
    *[_spec_json(additional_wrappers=wrappers) for wrappers in (None, {}, [5], [None], [{}])],
    *[_spec_json(additional_wrappers=[{**WRAPPER, name: item}]) for name in WRAPPER for item in (5, [])],
    _spec_json(additional_wrappers=[{"name": "TimeLimit", "entry_point": "gymnasium.wrappers:TimeLimit"}]),
    *[_spec_json(dropped=dropped) for dropped in (None, {}, [5], "kwargs")],
]


@pytest.mark.parametrize("value", MALFORMED_SPECS, ids=range(len(MALFORMED_SPECS)))
def test_a_malformed_spec_is_a_corrupt_buffer(value):
    with pytest.raises(CorruptBufferError):
        spec_from_json(value)
    if value is not None:
        with pytest.raises(CorruptBufferError):
            make_env(value)


@settings(max_examples=100)
@given(st.data(), JSON_VALUES)
def test_a_damaged_spec_is_a_spec_or_a_corrupt_buffer(data, junk):
    good = _spec_json(kwargs={"a": {"$tuple": [1, {"$float": "inf"}]}}, additional_wrappers=[WRAPPER], dropped=["x"])
    try:
        spec = spec_from_json(damage(good, data, junk))
    except CorruptBufferError:
        return
    assert isinstance(spec, EnvSpec)


def test_odd_keys_are_distinct():
    """The catalogue must hold every key once, or the Dict spaces made of it would lose some."""
    assert len(set(ODD_KEYS)) == len(ODD_KEYS)
