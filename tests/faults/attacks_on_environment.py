"""Attacks on the environment in the metadata: spaces of absurd sizes, and specs that name modules to import."""

from __future__ import annotations

import functools
from typing import Any

from .attacks_on_metadata import Raw, load, nested, save, set_value, values_at
from .victims import Attacks, Site, Victim

# --- the environment ---


def _box(**more: Any) -> dict[str, Any]:
    return {"type": "Box", "dtype": "float32", "shape": [2], "low": 0.0, "high": 1.0, **more}


def _wrapped(kind: str, depth: int) -> Any:
    space: Any = _box()
    for _ in range(depth):
        if kind == "Dict":
            space = {"type": "Dict", "items": [["k", space]]}
        elif kind == "Sequence":
            space = {"type": "Sequence", "stack": True, "feature_space": space}
        elif kind == "Graph":
            space = {"type": "Graph", "node_space": space, "edge_space": space if depth < 8 else None}
        else:
            space = {"type": kind, "spaces": [space]}
    return space


SPACES: dict[str, Any] = {
    "huge Box": _box(shape=[1 << 20, 1 << 20]),
    "Box of 2**25": _box(shape=[1 << 25]),
    "Box of 2**24": _box(shape=[1 << 24], dtype="float64"),
    "many Boxes": {"type": "Tuple", "spaces": [_box(shape=[1 << 19])] * 60},
    "Box of 0 and huge": _box(shape=[0, 1 << 62]),
    "Box with a huge zero": _box(shape=[1 << 62, 1 << 62, 0]),
    "Box of 33 axes": _box(shape=[1] * 33),
    "Box of 32 zero axes": _box(shape=[0] * 32),
    "Box of objects": _box(dtype="object"),
    "Box of dates": _box(dtype="<M8"),
    "Box of 1e999": _box(low=Raw("-1e999"), high=Raw("1e999")),
    "Box of 10**400": _box(low=-(10**400), high=10**400),
    "Box of NaN": _box(low="nan"),
    "Box upside down": _box(low=2.0),
    "Box with few numbers": _box(low=[0.0]),
    "Box with bounds": _box(bounded_below=[1, 2], bounded_above="x"),
    "Discrete of 10**400": {"type": "Discrete", "n": 10**400, "start": 0, "dtype": "int64"},
    "Discrete past the end": {"type": "Discrete", "n": 2**63 - 1, "start": 2**63 - 1, "dtype": "int64"},
    "Discrete of uint8": {"type": "Discrete", "n": 200, "start": 200, "dtype": "uint8"},
    "MultiDiscrete": {"type": "MultiDiscrete", "dtype": "int64", "shape": [2], "nvec": [0, 1], "start": 0},
    "MultiDiscrete huge": {"type": "MultiDiscrete", "dtype": "int64", "shape": [1 << 24], "nvec": 3, "start": 0},
    "MultiDiscrete past": {"type": "MultiDiscrete", "dtype": "int8", "shape": [2], "nvec": 127, "start": 127},
    "MultiDiscrete of none": {"type": "MultiDiscrete", "dtype": "int64", "shape": [0], "nvec": [], "start": []},
    "MultiBinary huge": {"type": "MultiBinary", "n": 1 << 60},
    "MultiBinary of axes": {"type": "MultiBinary", "n": [1 << 20] * 3},
    "MultiBinary empty": {"type": "MultiBinary", "n": []},
    "Text long": {"type": "Text", "min_length": 0, "max_length": 2**62, "charset": "ab"},
    "Text of a megabyte": {"type": "Text", "min_length": 1, "max_length": 2, "charset": "ab" * (1 << 19)},
    "Text of nothing": {"type": "Text", "min_length": 0, "max_length": 2, "charset": ""},
    "Text of surrogates": {"type": "Text", "min_length": 0, "max_length": 2, "charset": "\ud800\udc00\x00"},
    "Text of all": {"type": "Text", "min_length": 0, "max_length": 2, "charset": "".join(map(chr, range(1, 50_000)))},
    "OneOf of many": {"type": "OneOf", "spaces": [_box()] * 32_000},
    "OneOf of none": {"type": "OneOf", "spaces": []},
    "Tuple of many": {"type": "Tuple", "spaces": [_box()] * 32_000},
    "Dict of many": {"type": "Dict", "items": [[str(number), _box()] for number in range(32_000)]},
    "Dict of odd keys": {"type": "Dict", "items": [[{"float": "nan"}, _box()], [{"float": "0x1p-2"}, _box()]]},
    "Dict of deep keys": {"type": "Dict", "items": [[{"tuple": [nested(40)]}, _box()]]},
    "Dict of a huge key": {"type": "Dict", "items": [[10**400, _box()], [{"bytes": "00" * 100_000}, _box()]]},
    "Dict of equal keys": {"type": "Dict", "items": [[1, _box()], [{"float": "0x1p0"}, _box()]]},
    "Dict of keys of classes": {"type": "Dict", "items": [[{"class": "os.system"}, _box()]]},
    "no such space": {"type": "hostile_module.Evil"},
    "a space of methods": {"type": "__init__"},
    **{f"{kind} of depth {depth}": _wrapped(kind, depth) for kind in ("Dict", "Tuple") for depth in (10, 25)},
    **{f"{kind} of depth {depth}": _wrapped(kind, depth) for kind in ("Sequence", "Graph") for depth in (3, 4, 5)},
}


def _wrapper(entry_point: str, **kwargs: Any) -> dict[str, Any]:
    return {"name": "Wrapper", "entry_point": entry_point, "kwargs": kwargs}


SPECS: dict[str, dict[str, Any]] = {
    "module in the id": {"id": "hostile_module:Evil-v0"},
    "module as entry point": {"id": "Evil-v0", "entry_point": "hostile_module:make"},
    "module of a wrapper": {"additional_wrappers": [_wrapper("hostile_module:Evil")]},
    "module of a wrapper inside": {"additional_wrappers": [_wrapper("gymnasium.wrappers.hostile_module:Evil")]},
    "wrapper that imports": {"additional_wrappers": [_wrapper("gymnasium.wrappers:hostile_module.Evil")]},
    "wrapper that records": {
        "additional_wrappers": [_wrapper("gymnasium.wrappers.rendering:RecordVideo", video_folder="../outside")]
    },
    "wrapper of modules": {
        "additional_wrappers": [
            _wrapper("gymnasium.wrappers:ArrayConversion", env_xp="hostile_module", target_xp="hostile_module")
        ]
    },
    "wrapper recorder": {
        "additional_wrappers": [_wrapper("gym_replay.wrappers:RecordToBuffer", buffer="../outside/recorded")]
    },
    "wrapper by a private name": {"additional_wrappers": [_wrapper("gymnasium.wrappers:__builtins__")]},
    "wrapper with hostile steps": {
        "additional_wrappers": [_wrapper("gymnasium.wrappers:TimeLimit", max_episode_steps=10**400)]
    },
    "many wrappers": {"additional_wrappers": [_wrapper("x:y")] * 20_000},
    "huge id": {"id": "x" * 1_000_000},
    "regular id": {"id": "/" * 900 + "-v"},
    "slow id": {"id": "a" * 990 + "!"},
    "odd id": {"id": "\ud800\x00-v0"},
    "version of many digits": {"id": "Evil-v" + "9" * 900},
    "huge limit": {"max_episode_steps": 10**400},
    "infinite threshold": {"reward_threshold": {"$float": "inf"}},
    "1e999": {"reward_threshold": Raw("1e999")},
    "huge array": {"kwargs": {"a": {"$array": {"dtype": "float64", "shape": [1 << 40], "numbers": []}}}},
    "array of axes": {"kwargs": {"a": {"$array": {"dtype": "float64", "shape": [0, 1 << 62, 1 << 62], "numbers": []}}}},
    "array of objects": {"kwargs": {"a": {"$array": {"dtype": "object", "shape": [1], "numbers": [1]}}}},
    "array of texts": {"kwargs": {"a": {"$array": {"dtype": "float64", "shape": [1], "numbers": ["x"]}}}},
    "array of a million": {"kwargs": {"a": {"$array": {"dtype": "int64", "shape": [10**6], "numbers": [1] * 10**6}}}},
    "deep kwargs": {"kwargs": {"a": nested(50)}},
    "unknown sign": {"kwargs": {"a": {"$class": "os.system"}}},
    "odd kwargs": {"kwargs": {"": 1, "self": 2, "__class__": 3, "\ud800": 4}},
    "dropped": {"dropped": [1, None]},
    "dropped id": {"dropped": ["id"]},
    "lists": {"kwargs": [], "additional_wrappers": {}},
}


def environment(victim: Victim) -> Attacks:
    if victim.name == "recorded":
        yield from values_at(victim, inside=True)
    for label, space in SPACES.items():
        place = {"observation_space": space, "action_space": space, "env_spec": None}
        yield label, functools.partial(set_value, place=("environment",), value=place)
    for label, members in SPECS.items():
        yield label, functools.partial(_set_spec, members=members)


def _set_spec(site: Site, members: dict[str, Any]) -> None:
    metadata = load(site)
    spec = {
        "id": "gym_replay_tests/Nested-v0",
        "entry_point": None,
        "reward_threshold": None,
        "nondeterministic": False,
        "max_episode_steps": None,
        "order_enforce": True,
        "disable_env_checker": False,
        "kwargs": {},
        "additional_wrappers": [],
        "dropped": [],
    }
    metadata["environment"] = {**(metadata["environment"] or {}), "env_spec": {**spec, **members}}
    save(site, metadata)
