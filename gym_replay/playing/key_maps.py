"""Which keys an environment is played with: given ones, its own, those known for it, or a row for each part."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from gym_replay.errors import FieldError
from gym_replay.playing.controls import LAST, Chords, Controls, Parts
from gym_replay.playing.key_names import KeyNames
from gym_replay.schema.arrays import Floats

_PAIRS = (("left", "right"), ("down", "up"), ("a", "d"), ("s", "w"), ("q", "e"), ("f", "r"))
_SINGLES = ("up", "down", "w", "s", "e", "q")
_STICKS = (("axis 0", 1), ("axis 1", -1), ("axis 3", 1), ("axis 4", -1))
_TRIGGERS = ("trigger 5", "trigger 2")
_ROWS = ("1234567890", "qwertyuiop", "asdfghjkl", "zxcvbnm")

_TURNS = {"up": ("north", "forward"), "down": ("south", "backward"), "right": ("east",), "left": ("west",)}
_WORDS: dict[str, tuple[str, ...]] = {
    **{word: (key,) for key, words in _TURNS.items() for word in (key, *words)},
    "pickup": ("page up", "tab"),
    "drop": ("page down", "left shift"),
    "toggle": ("space",),
    "done": ("enter",),
}
"""The keys for actions of an environment that has names for them, as MiniGrid's own player has them."""


class _Map(NamedTuple):
    """Keys of an environment.

    Attributes:
        actions: by keys, the action that they mean, or the targets of its parts.
        idle: the action of somebody who holds nothing; None where nothing says which.
        waits: whether the environment stands still until a key is pressed.
    """

    actions: Mapping[Any, Any]
    idle: Any = None
    waits: bool = False


_GRID = _Map({"left": 0, "down": 1, "right": 2, "up": 3}, waits=True)
_CLIFF = _Map({"up": 0, "right": 1, "down": 2, "left": 3}, waits=True)
_KNOWN = {
    "CartPole": _Map({"left": 0, "right": 1}, LAST),
    "Acrobot": _Map({"left": 0, "right": 2}, 1),
    "LunarLander": _Map({"left": 1, "up": 2, "right": 3}),
    "FrozenLake": _GRID,
    "FrozenLake8x8": _GRID,
    "CliffWalking": _CLIFF,
    "CliffWalkingSlippery": _CLIFF,
    "Taxi": _Map({"down": 0, "up": 1, "right": 2, "left": 3, "page up": 4, "page down": 5}, waits=True),
    "Blackjack": _Map({"s": 0, "h": 1}, waits=True),
}
"""Of environments of Gymnasium's that have none of their own."""


class Keys(NamedTuple):
    """How an environment is played.

    Attributes:
        controls: make the actions.
        waits: whether it stands still until a key is pressed.
    """

    controls: Controls
    waits: bool


def find_keys(
    env: gym.Env[Any, Any],
    names: KeyNames,
    *,
    keys: Mapping[Any, Any] | None,
    idle: Any,
    waits: bool | None,
    steps_to_target: float,
) -> Keys:
    """The keys for an environment.

    Args:
        env: the environment.
        names: the names of keys.
        keys: what the user gave: by keys, the action that they mean, or, where actions are arrays of numbers, the
            targets of its parts by index in the flattened action.
        idle: the action of somebody who holds nothing; None for the map's own.
        waits: whether it stands still until a key is pressed; None as is known for it.
        steps_to_target: how many steps a part of a continuous action takes from rest to the farthest target.

    Raises:
        FieldError: a key or an action is none, or there are no keys for this action space; the message says what to
            pass.
    """
    space = env.action_space
    of_env = _own_map(env) or _map_of_words(env) or _known_map(env)
    waits = (of_env is not None and of_env.waits) if waits is None else waits
    found = of_env if keys is None else _Map(keys)
    if found is None:
        return Keys(_default(space, idle, steps_to_target), waits)
    idle = found.idle if idle is None else idle
    if not isinstance(found.actions, Mapping) or not found.actions:
        raise FieldError(f"keys: expected a dict from keys to actions, got {found.actions!r:.80}")
    is_composite = hasattr(space, "spaces")  # then an action may be a mapping itself
    if not is_composite and any(isinstance(each, Mapping) for each in found.actions.values()):
        return Keys(_parts_of(space, found.actions, names, idle, steps_to_target), waits)
    return Keys(_chords_of(env, found.actions, names, idle, waits=waits), waits)


# --- whole actions ---


def _chords_of(env: gym.Env[Any, Any], given: Mapping[Any, Any], names: KeyNames, idle: Any, *, waits: bool) -> Chords:
    space = env.action_space
    actions = {names.chord(keys): as_action(space, action, f"keys[{keys!r}]") for keys, action in given.items()}
    if analog := [name for chord in actions for name in chord if name.startswith((Parts.AXIS, Parts.TRIGGER))]:
        raise FieldError(f"keys: {analog[0]!r} moves a part of an action: give it {{index: value at its far end}}")
    of_none = actions.pop(frozenset(), None)
    if not actions:
        raise FieldError("keys: there is no key; expected a dict from keys to actions")
    if idle is not None:
        idle = idle if isinstance(idle, str) and idle == LAST else as_action(space, idle, "idle")
    elif of_none is not None:
        idle = of_none
    elif waits:
        idle = next(iter(actions.values()))  # it is never asked for
    else:
        idle = _idle_of(env)
    meanings = _meanings(env)
    help = [(_shown(chord), _told(action, meanings)) for chord, action in actions.items() if len(chord) == 1]
    return Chords(actions, idle, help or [(_shown(c), _told(a, meanings)) for c, a in actions.items()])


def as_action(space: gym.Space[Any], value: Any, what: str) -> Any:
    """A value as an action of a space, also from what JSON has of it.

    Raises:
        FieldError: it is none.
    """
    action = value
    if isinstance(space, (spaces.Box, spaces.MultiDiscrete, spaces.MultiBinary)):
        try:
            action = np.asarray(value, space.dtype)
        except (TypeError, ValueError, OverflowError):
            action = None
    elif isinstance(space, spaces.Discrete) and isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        action = space.dtype.type(value)
    if action is None or not space.contains(action):
        raise FieldError(f"{what}: expected an action of {space}, got {value!r:.80}")
    return action


def _idle_of(env: gym.Env[Any, Any]) -> Any:
    space = env.action_space
    if isinstance(space, spaces.Discrete):
        meanings = _meanings(env)
        idle = next((number for number, word in meanings.items() if word.lower() == "noop"), int(space.start))
        return as_action(space, idle, "idle")
    if isinstance(space, (spaces.Box, spaces.MultiDiscrete, spaces.MultiBinary)):
        return _rest_of(space).reshape(space.shape).astype(space.dtype)
    raise FieldError(
        f"idle: nobody knows which action of {space} is none; pass idle=, the action of somebody who holds no key, or "
        "waits=True, which lets the environment stand still until a key is pressed"
    )


# --- parts of an action ---


def _parts_of(
    space: gym.Space[Any], given: Mapping[Any, Any], names: KeyNames, idle: Any, steps_to_target: float
) -> Parts:
    if not isinstance(space, (spaces.Box, spaces.MultiDiscrete, spaces.MultiBinary)):
        raise FieldError(f"keys: {{index: target}} is for actions that are arrays of numbers, and here is {space}")
    count = int(np.prod(space.shape))
    targets: dict[str, dict[int, float]] = {}
    for keys, each in given.items():
        chord = names.chord(keys)
        if len(chord) != 1 or not isinstance(each, Mapping):
            raise FieldError(
                f"keys[{keys!r}]: expected one key and the targets of parts of the action as {{index: value}}, since "
                "others are given so"
            )
        (name,) = chord
        for index, target in each.items():
            try:
                number, value = int(index), float(target)
            except (TypeError, ValueError):
                number, value = -1, 0.0
            if not 0 <= number < count:
                raise FieldError(
                    f"keys[{keys!r}]: expected {{index: value}} with indices below {count}, got {each!r:.80}"
                )
            _fits(space, number, value, f"keys[{keys!r}]")
            targets.setdefault(name, {})[number] = value
    return _make_parts(space, targets, _rest_of(space, idle), steps_to_target)


def _fits(space: Any, index: int, value: float, what: str) -> None:
    low, high = _bounds_of(space)
    if not low[index] <= value <= high[index]:
        raise FieldError(f"{what}: expected a value from {low[index]:g} to {high[index]:g}, got {value:g}")


def _bounds_of(space: Any) -> tuple[Floats, Floats]:
    """The least and the largest value of each part, ``(parts,)``."""
    if isinstance(space, spaces.Box):
        return space.low.reshape(-1).astype(np.float64), space.high.reshape(-1).astype(np.float64)
    least = np.broadcast_to(np.asarray(getattr(space, "start", 0), np.float64), space.shape).reshape(-1)
    counts = 2 if isinstance(space, spaces.MultiBinary) else space.nvec.reshape(-1)
    return least, least + counts - 1


def _rest_of(space: Any, idle: Any = None) -> Floats:
    """The action of somebody who holds nothing, ``(parts,)``: if none is given, zero, or the nearest value to it."""
    if idle is not None:
        return np.asarray(as_action(space, idle, "idle"), np.float64).reshape(-1)
    low, high = _bounds_of(space)
    rest: Floats = np.clip(0.0, low, high) if isinstance(space, spaces.Box) else low
    return rest


def _make_parts(space: Any, targets: Mapping[str, Mapping[int, float]], rest: Floats, steps_to_target: float) -> Parts:
    pace = np.full(rest.shape, np.inf)
    if isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating) and steps_to_target > 1:
        for each in targets.values():
            for index, target in each.items():
                farthest = 0.0 if np.isinf(pace[index]) else pace[index]
                pace[index] = max(farthest, abs(target - rest[index]) / steps_to_target)
    help = [(name, _told_parts(each)) for name, each in targets.items()]
    return Parts(space, targets, rest, pace, help)


# --- where nothing is known ---


def _default(space: gym.Space[Any], idle: Any, steps_to_target: float) -> Controls:
    """A row of keys for each part.

    Raises:
        FieldError: there is none for this space.
    """
    if isinstance(space, spaces.Discrete):
        keys = "".join(_ROWS)
        if space.n <= len(keys):
            actions = {frozenset({key}): space.dtype.type(space.start + at) for at, key in enumerate(keys[: space.n])}
            resting = idle if isinstance(idle, str) else as_action(space, space.start if idle is None else idle, "idle")
            return Chords(actions, resting, [(_shown(chord), str(action)) for chord, action in actions.items()])
    targets = None
    if isinstance(space, spaces.Box):
        targets = _targets_of_box(space)
    elif isinstance(space, spaces.MultiDiscrete):
        targets = _targets_of_choices(space.nvec.reshape(-1).tolist(), _rest_of(space).tolist())
    elif isinstance(space, spaces.MultiBinary):
        count = int(np.prod(space.shape))
        keys = "".join(_ROWS)
        targets = {key: {at: 1.0} for at, key in enumerate(keys[:count])} if count <= len(keys) else None
    if targets is None:
        raise FieldError(
            f"play: there are no keys for actions of {space}; pass keys={{'left': action, 'left+space': action, ...}}, "
            "and idle= for the action of somebody who holds none"
            + ("; keys={'left': {0: -1.0}} moves a part of it" if isinstance(space, spaces.Box) else "")
        )
    return _make_parts(space, targets, _rest_of(space, idle), steps_to_target)


def _targets_of_box(space: spaces.Box) -> dict[str, dict[int, float]] | None:
    """A pair of keys and a stick for what goes both ways from rest, a key and a trigger for what goes one way."""
    low, high = _bounds_of(space)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        return None
    rest = _rest_of(space)
    pairs, sticks, triggers = list(_PAIRS), list(_STICKS), list(_TRIGGERS)
    targets: dict[str, dict[int, float]] = {}
    one_way = [index for index in range(len(rest)) if rest[index] in (low[index], high[index])]
    for index in range(len(rest)):
        if index in one_way:
            continue
        if not pairs:
            return None
        less, more = pairs.pop(0)
        targets[less], targets[more] = {index: low[index]}, {index: high[index]}
        if sticks:
            axis, sign = sticks.pop(0)
            targets[axis] = {index: high[index] if sign > 0 else low[index]}
    singles = [key for key in _SINGLES if key not in targets]
    for index in one_way:
        if low[index] == high[index]:
            continue
        if not singles:
            return None
        far = high[index] if rest[index] == low[index] else low[index]
        targets[singles.pop(0)] = {index: far}
        if triggers:
            targets[triggers.pop(0)] = {index: far}
    return targets or None


def _targets_of_choices(counts: Sequence[int], start: Sequence[float]) -> dict[str, dict[int, float]] | None:
    if len(counts) > len(_ROWS) or any(count - 1 > len(row) for count, row in zip(counts, _ROWS, strict=False)):
        return None
    return {
        row[value - 1]: {index: start[index] + value}
        for index, (count, row) in enumerate(zip(counts, _ROWS, strict=False))
        for value in range(1, count)
    }


# --- what an environment says of itself ---


def _own_map(env: gym.Env[Any, Any]) -> _Map | None:
    """What ``get_keys_to_action`` of the environment says, as Gymnasium's ``play`` asks for it; None without one."""
    try:
        found = env.get_wrapper_attr("get_keys_to_action")()
    except (AttributeError, NotImplementedError):
        return None
    return _Map(found) if found else None


def _map_of_words(env: gym.Env[Any, Any]) -> _Map | None:
    """Keys for the names that an environment has for its actions, where all of them are known, as MiniGrid's are."""
    names = {word.lower(): number for number, word in _names_of_actions(env).items()}
    named = {name: number for name, number in names.items() if env.action_space.contains(number)}
    if not named or any(name not in _WORDS for name in named):
        return None
    return _Map({key: number for name, number in named.items() for key in _WORDS[name]}, waits=True)


def _known_map(env: gym.Env[Any, Any]) -> _Map | None:
    if env.spec is None or not isinstance(env.action_space, spaces.Discrete):
        return None
    known = _KNOWN.get(re.sub(r"-v\d+$", "", env.spec.id.rpartition("/")[2]))
    fits = known is not None and all(env.action_space.contains(action) for action in known.actions.values())
    return known if fits else None


def _names_of_actions(env: gym.Env[Any, Any]) -> dict[int, str]:
    """What an ``Enum`` of the environment calls its actions, by number."""
    actions = getattr(env.unwrapped, "actions", None)
    if not (isinstance(actions, type) and issubclass(actions, Enum) and isinstance(env.action_space, spaces.Discrete)):
        return {}
    return {each.value: each.name for each in actions}


def _meanings(env: gym.Env[Any, Any]) -> dict[int, str]:
    """What the actions are called, by number."""
    if named := _names_of_actions(env):
        return named
    try:
        words = env.get_wrapper_attr("get_action_meanings")()
        return {number: str(word) for number, word in enumerate(words)}
    except Exception:  # of an environment's own code, and only for the screen
        return {}


def _shown(chord: Iterable[str]) -> str:
    return "+".join(sorted(chord))


def _told(action: Any, meanings: Mapping[int, str]) -> str:
    if isinstance(action, (int, np.integer)):
        return meanings.get(int(action), str(action)).lower()
    return str(action.tolist()) if isinstance(action, np.ndarray) else str(action)


def _told_parts(each: Mapping[int, float]) -> str:
    return ", ".join(f"[{index}] to {target:g}" for index, target in each.items())
