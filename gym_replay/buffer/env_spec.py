"""What is kept of an environment's spec as JSON, and making the environment anew from it.

The JSON may come from a folder that a stranger wrote. So nothing here imports a module or calls an entry point that
it names, and whatever is malformed raises :class:`~gym_replay.errors.CorruptBufferError`.

The arguments in a folder decide how much memory an environment takes, which files it reads, and whether it opens a
window. So without ``trust=True`` only harmless ones are handed on: None, booleans, numbers from -1000 to 1000 and those
that are not finite, words, and lists, dicts and arrays of up to 4096 of them. A word is up to 64 letters, digits,
blanks, ``_``, ``+`` and ``-``, so that it names no file outside of the folder one is in. What asks for a window is
refused. Numbers are bounded, but what an environment makes of them is its own code.
"""

from __future__ import annotations

import dataclasses
import math
import re
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.envs.registration import EnvSpec, WrapperSpec

from gym_replay.errors import CorruptBufferError, GymReplayError, MakeEnvError, printable
from gym_replay.schema.fields import NUMERIC, number_to_json
from gym_replay.spaces.checked_json import (
    MAX_DEPTH,
    MAX_ELEMENTS,
    Json,
    brief,
    dtype_to_json,
    member,
    read_dtype,
    read_number,
    read_shape,
)

_SPEC_MEMBERS: dict[str, tuple[type, ...]] = {
    "id": (str,),
    "entry_point": (str, type(None)),
    "reward_threshold": (float, int, type(None)),
    "nondeterministic": (bool,),
    "max_episode_steps": (int, type(None)),
    "order_enforce": (bool,),
    "disable_env_checker": (bool,),
}

_NEVER_MADE = frozenset(["ArrayConversion", "RecordVideo", "HumanRendering"])
"""Standard wrappers whose arguments are modules, or name a folder to write to, and one that opens a window."""

_LEFT_OUT = frozenset(f"gymnasium.wrappers.rendering:{name}" for name in ("RecordVideo", "HumanRendering"))
"""Wrappers that change no value, so that an environment is built again without them."""

_HARMLESS = frozenset(["TimeLimit", "AddRenderObservation"])
"""Standard wrappers to which no argument is too much: numbers that are compared, and names of observations."""

_BY_HAND = "build the environment yourself, and pass it as env= to replay in Python"

_OFF_SCREEN = frozenset(["rgb_array", "depth_array", "rgbd_tuple", "ansi"])
"""The render modes that open no window and collect no frames."""

_LARGEST = 1000
_MOST_VALUES = 4096
_WORD = re.compile(r"[\w +-]{0,64}")
_WINDOW = re.compile(r"render|gui|display|viewer|window|human", re.IGNORECASE)


class _NotJson(Exception):
    """A value that JSON cannot keep."""


def spec_to_json(spec: EnvSpec | None, module: str | None = None) -> dict[str, Json] | None:
    """What can be kept of an environment's spec as JSON; never raises.

    ``"module"`` is the module to import so that the id is registered: the one that is given, as in ``module:Id``, or
    the package of the entry point. It is told to people, and never imported unless they name it.

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
    value["module"] = module or _package_of(getattr(spec, "entry_point", None))
    value["kwargs"] = _keep_kwargs(getattr(spec, "kwargs", None), "kwargs", dropped)
    wrappers = getattr(spec, "additional_wrappers", ())
    value["additional_wrappers"] = [
        _wrapper_to_json(wrapper, f"additional_wrappers.{index}", dropped)
        for index, wrapper in enumerate(wrappers if isinstance(wrappers, (tuple, list)) else ())
    ]
    value["dropped"] = dropped
    return value


def _package_of(entry_point: Any) -> str | None:
    """The package that an entry point is in; None of one of the script itself, and where there is none."""
    module = entry_point.partition(":")[0] if isinstance(entry_point, str) else getattr(entry_point, "__module__", "")
    package = str(module or "").partition(".")[0]
    return package if package not in ("", "__main__") else None


def why_not_made_again(spec: EnvSpec | None, spec_json: Json) -> str:
    """Why an environment cannot be made again from its spec as JSON, and what to do; empty where it can be.

    Args:
        spec: as it was recorded.
        spec_json: what :func:`spec_to_json` gave.
    """
    register = "or register it in a module, gymnasium.register(id, 'module:Class'), and make it by its id"
    if spec is None or spec_json is None:
        return f"it was not made by gymnasium.make; {register}"
    entry_point = spec.entry_point
    if not isinstance(entry_point, str) and getattr(entry_point, "__module__", "") == "__main__":
        name = getattr(entry_point, "__qualname__", repr(entry_point))
        return f"its entry point is {name} of this script, which others cannot import; {register}"
    for index, wrapper in enumerate(spec_json["additional_wrappers"]):
        where = f"additional_wrappers.{index}."
        lost = [name.removeprefix(where) for name in spec_json["dropped"] if name.startswith(where)]
        if wrapper["entry_point"] in _LEFT_OUT:
            continue
        if lost or wrapper["kwargs"] is None or _find_wrapper(wrapper["entry_point"]) is None:
            what = f"has {', '.join(lost)}, which cannot be kept" if lost else "is none of gymnasium.wrappers"
            return f"its wrapper {wrapper['name']} {what}; or put the recorder inside of it"
    if lost := [name for name in spec_json["dropped"] if name.startswith("kwargs.")]:
        return f"{', '.join(lost)} cannot be kept; or pass it to make_env"
    return ""


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
        if value.dtype.name not in NUMERIC and not isinstance(value, np.str_):
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
    if type(value) is np.ndarray and value.dtype.name in NUMERIC and value.size <= MAX_ELEMENTS // 512:
        numbers = [_value_to_json(number, depth + 1) for number in value.reshape(-1).tolist()]
        return {"$array": {"dtype": dtype_to_json(value.dtype, ""), "shape": list(value.shape), "numbers": numbers}}
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
    raise CorruptBufferError(f"{place}: an object with members {brief(sorted(value))} stands for no value")


def _array_from_json(value: Json, place: str) -> npt.NDArray[Any]:
    dtype, shape = read_dtype(value, place), read_shape(value, place)
    numbers = _value_from_json(member(value, "numbers", list, place), place)
    if len(numbers) != math.prod(shape):
        raise CorruptBufferError(f"{place}: expected {math.prod(shape)} numbers, got {len(numbers)}")
    checked = [
        n if type(n) is float and math.isnan(n) else read_number(number_to_json(n), "numbers", dtype, place)
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
    return member(value, name, kinds, "env_spec")


def _read_dropped(value: Json) -> list[str]:
    dropped: list[str] = member(value, "dropped", list, "env_spec")
    if not all(isinstance(name, str) for name in dropped):
        raise CorruptBufferError(f"env_spec: expected 'dropped' to hold names, got {brief(dropped)}")
    return dropped


def _read_kwargs(value: Json, place: str) -> dict[str, Any]:
    kwargs = member(value, "kwargs", dict, place)
    return {name: _value_from_json(item, f"{place}.{brief(name)}") for name, item in kwargs.items()}


def _read_wrappers(value: Json) -> tuple[WrapperSpec, ...]:
    """The recorded wrappers; one that :func:`_find_wrapper` does not know has no arguments."""
    wrappers = []
    for index, item in enumerate(member(value, "additional_wrappers", list, "env_spec")):
        place = f"env_spec.additional_wrappers.{index}"
        name = member(item, "name", str, place)
        entry_point = member(item, "entry_point", str, place)
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


def make_env(spec_json: Json, /, *, trust: bool = False, **kwargs: Any) -> gym.Env[Any, Any]:
    """Build the recorded environment again, by the id that is registered in this process.

    A recorded render mode is handed on where it opens no window. Of the other recorded arguments, those that are not
    the registered ones must be harmless.

    Args:
        spec_json: what :func:`spec_to_json` gave.
        trust: whether all recorded arguments are handed on, whatever they are.
        **kwargs: as for :func:`gymnasium.make`; they go before the recorded ones.

    Raises:
        MakeEnvError: the id is not registered here, a recorded wrapper is not one of ``gymnasium.wrappers``, or a
            recorded argument is not harmless; the message says what to do.
        CorruptBufferError: ``spec_json`` is malformed.

    Warns:
        UserWarning: an argument could not be recorded, so the environment may differ.

    Example:
        >>> make_env(spec_to_json(gym.spec("CartPole-v1"))).spec.max_episode_steps
        500
    """
    if spec_json is None:
        raise MakeEnvError(f"no environment spec was recorded; {_BY_HAND}")
    recorded = spec_from_json(spec_json)
    registered = _find_registered(recorded.id, spec_json)
    lost = [name for name in spec_json["dropped"] if name.startswith("kwargs.") and name[7:] not in kwargs]
    if lost:
        warnings.warn(
            f"{recorded.id}: {printable(', '.join(lost))} could not be recorded, so the environment may differ from "
            "the recorded one; pass the arguments to make_env",
            UserWarning,
            stacklevel=2,
        )
    arguments = _arguments(recorded, registered, spec_json, kwargs)
    if not trust:
        _require_harmless(recorded, arguments)
    spec = dataclasses.replace(
        registered,
        kwargs={**registered.kwargs, **arguments},
        max_episode_steps=recorded.max_episode_steps,
        order_enforce=recorded.order_enforce,
        disable_env_checker=recorded.disable_env_checker,
        additional_wrappers=(),
    )
    return _wrap(gym.make(spec, **kwargs), recorded, spec_json["dropped"])


def _arguments(recorded: EnvSpec, registered: EnvSpec, spec_json: Json, given: Mapping[str, Any]) -> dict[str, Any]:
    """The recorded arguments that differ from the registered ones and are not given, without a mode for a window."""
    known = _keep_kwargs(registered.kwargs, "kwargs", [])
    arguments = {
        name: value
        for name, value in recorded.kwargs.items()
        if name not in given and not (name in known and known[name] == spec_json["kwargs"][name])
    }
    mode = arguments.get("render_mode")
    if not isinstance(mode, str) or mode not in _OFF_SCREEN:
        arguments.pop("render_mode", None)
    return arguments


def _require_harmless(recorded: EnvSpec, arguments: Mapping[str, Any]) -> None:
    require_harmless(arguments, f"{recorded.id}: the recorded arguments")
    for wrapper in recorded.additional_wrappers:
        if wrapper.kwargs and wrapper.entry_point.rpartition(":")[2] not in _HARMLESS:
            require_harmless(wrapper.kwargs, f"{recorded.id}: the recorded arguments of {wrapper.name!r:.60}")


def _find_registered(env_id: str, spec_json: Mapping[str, Any]) -> EnvSpec:
    if ":" in env_id:
        module, _, name = env_id.partition(":")
        raise MakeEnvError(
            f"id {env_id!r} names a module to import, which is never done for a recorded id; if you trust it, "
            f"`import {module}` and build the environment with gymnasium.make({name!r})"
        )
    registered: EnvSpec | None = gym.registry.get(env_id)
    if registered is not None:
        return registered
    entry_point, kept = spec_json.get("entry_point"), spec_json.get("module")
    registers = kept if isinstance(kept, str) else _package_of(entry_point)
    made_by = f"its recorded entry point was {entry_point!r}: " if isinstance(entry_point, str) else ""
    remedy = (
        f"{made_by}`import {registers}` may register it (gym-replay replay --import {registers})"
        if registers
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
        where = printable(f"{recorded.id}: wrapper {wrapper.name:.100} ({wrapper.entry_point:.100})")
        if wrapper.entry_point in _LEFT_OUT:
            warnings.warn(f"{where} is left out; apply it yourself if you want it", UserWarning, stacklevel=3)
            continue
        make = _find_wrapper(wrapper.entry_point)
        if make is None:
            raise MakeEnvError(f"{where} is not one of gymnasium.wrappers; {_BY_HAND}")
        lost = [name for name in dropped if name.startswith(f"additional_wrappers.{index}.")]
        if lost or wrapper.kwargs is None:
            raise MakeEnvError(f"{where}: {', '.join(lost) or 'its arguments'} could not be recorded; {_BY_HAND}")
        env = make(env, **wrapper.kwargs)
    return env


def require_harmless(arguments: Mapping[str, Any], whose: str) -> None:
    """Refuse recorded arguments that are more than a few words and small numbers.

    Args:
        arguments: by name.
        whose: what to call them in the message, such as ``"CartPole-v1: the recorded arguments"``.

    Raises:
        MakeEnvError: naming each argument that is refused, and why.
    """
    reasons = [f"{name!r:.80} {fault}" for name, value in arguments.items() if (fault := _fault(name, value))]
    if reasons:
        more = f" and {len(reasons) - 5} more" if len(reasons) > 5 else ""
        raise MakeEnvError(
            f"{whose} are not handed on, because a folder may come from a stranger: {'; '.join(reasons[:5])}{more}. "
            "If you trust the folder pass trust=True (gym-replay replay --trust); or pass what you want yourself, by "
            "name to make_env, or as env=... to replay"
        )


def _fault(name: str, value: Any) -> str | None:
    values = _values(name, value)
    for count, (key, item) in enumerate(values, 1):
        if count > _MOST_VALUES:
            return f"holds more than {_MOST_VALUES} values"
        if fault := _fault_of_one(key, item):
            return fault
    return None


def _fault_of_one(key: str, value: Any) -> str | None:
    if isinstance(value, str):
        if value in _OFF_SCREEN:
            return None
        if value == "human" or _WINDOW.search(key):
            return f"is {value!r:.60}, which may open a window"
        return None if _WORD.fullmatch(value) else f"is {value!r:.60}, which may name a file"
    if value is True and _WINDOW.search(key):
        return f"is True in {key!r:.60}, which may open a window"
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        is_small = not math.isfinite(value) if isinstance(value, float) else False
        return None if is_small or abs(value) <= _LARGEST else f"is {str(value)[:30]}, a number past {_LARGEST}"
    return None


def _values(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The plain values in an argument, each with the innermost name that it has."""
    if isinstance(value, np.ndarray):
        value = value.reshape(-1)[: _MOST_VALUES + 1].tolist()
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _values(str(name), item)
            yield "", str(name)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _values(key, item)
    else:
        yield key, value
