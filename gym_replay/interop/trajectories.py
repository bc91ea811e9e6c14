"""Trajectories in memory, as people collect them from Gymnasium environments."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np

from gym_replay.errors import EmptyBufferError, FieldError
from gym_replay.interop import old_data
from gym_replay.schema.arrays import Array, Bools
from gym_replay.schema.names import encode_siblings

_CALLED = {
    "observation": ("observations", "observation", "obs", "states", "state"),
    "action": ("actions", "action", "acts"),
    "reward": ("rewards", "reward", "rews"),
    "terminated": ("terminated", "terminateds", "terminations", "terminals", "terminal"),
    "truncated": ("truncated", "truncateds", "truncations", "timeouts"),
    "done": ("dones", "done"),
    "next_observation": (
        "next_observations",
        "next_observation",
        "next_obs",
        "new_observations",
        "new_observation",
        "new_obs",
        "next_states",
        "next_state",
    ),
}
_NEEDED = ("observation", "action")


def from_trajectories(
    trajectories: Iterable[Any],
    target: str | os.PathLike[str],
    *,
    step: Sequence[str] | None = None,
) -> old_data.ImportReport:
    """Store trajectories in a new buffer, one after another as they come.

    A trajectory is a mapping, or an object with attributes, of arrays with an axis of time: ``observations`` (T or T+1
    of them), ``actions``, ``rewards``, ``terminations`` and ``truncations``, also under other common names. Or it is a
    list of steps, each such a mapping of single values, or a tuple whose items ``step`` names. Observations and
    actions may be dicts and tuples of arrays, also inside of one another, and groups of an HDF5 file. ``terminated``
    may be one flag for the whole trajectory. ``dones``, which are True however a trajectory ended, tell together with
    one of the other flags what the third one is; alone they say only that it ended. Rewards may be missing. Rewards,
    flags and integer actions that come as ``(T, 1)`` become fields of single numbers.

    Args:
        trajectories: any iterable; only one trajectory is in memory at a time.
        target: a folder that does not exist yet. It appears when all is in it.
        step: what the items of tuples are, for example ``("observation", "action", "reward", "terminated",
            "truncated", "info")``; items with other names than those of a transition are left out.

    Returns:
        What was made, and what the trajectories do not tell.

    Raises:
        FieldError: a trajectory lacks a part, does not fit the first one, or is more than one episode: a flag is set
            before its last step, or a next observation is not the observation of the next step.
        NotABufferError: there is something at the target.
        EmptyBufferError: there is no trajectory.

    Example:
        >>> import tempfile
        >>> trajectory = {"observations": np.zeros((4, 2)), "actions": [0, 1, 0], "rewards": [1.0, 1.0, 1.0]}
        >>> report = from_trajectories([trajectory | {"terminated": True}], tempfile.mkdtemp() + "/new")
        >>> report.num_steps, report.not_known
        (3, ('whether 1 trajectories were truncated: they have no such flags',))
    """
    path = old_data.check_new(target)
    if step is not None and len(set(step)) != len(step):
        raise FieldError(f"step={tuple(step)}: two items have one name")
    reader = _Reader(None if step is None else list(step))
    episodes = (reader.read(number, trajectory) for number, trajectory in enumerate(trajectories))
    first = next(episodes, None)
    if first is None:
        raise EmptyBufferError(f"there is no trajectory to import, so {path} is not made")
    fields = {
        name: old_data.step_field(name, array.dtype, array.shape[1:], state=old_data.is_observation(name))
        for name, array in first[0].items()
    }
    with old_data.new_buffer(path, {"fields": fields}) as buffer:
        for number, (values, ended) in enumerate(chain([first], episodes)):
            with old_data.about(f"trajectory {number}"):
                if odd := [name for name in (*fields, *values) if name not in fields or name not in values]:
                    raise FieldError(f"{odd[0]!r} is not in all trajectories, or only in some")
                buffer.store(values, len(values["terminated"]), complete=ended)
        return buffer.report(reader.not_known(), reader.left_out())


class _Reader:
    """Makes the fields of an episode of what a trajectory is."""

    def __init__(self, step: list[str] | None) -> None:
        self._step = step
        self._unflagged = dict.fromkeys(old_data.FLAGS, 0)
        self._only_done = self._unrewarded = 0
        self._others: set[str] = set()

    def read(self, number: int, trajectory: Any) -> tuple[dict[str, Array], bool]:
        """The values of each field, of observations T or T+1 rows, and whether a flag is set at the end.

        Raises:
            FieldError: a part is missing, or two contradict one another.
        """
        with old_data.about(f"trajectory {number}"):
            return self._read(self._parts(trajectory))

    def _read(self, parts: Mapping[str, Any]) -> tuple[dict[str, Array], bool]:
        if missing := [name for name in _NEEDED if name not in parts]:
            raise FieldError(f"it has no {missing[0]}s; they may be called {_CALLED[missing[0]]}")
        observations, actions = _flat("observation", parts["observation"]), _flat("action", parts["action"])
        rewards = self._rewards(parts)
        (length, *_) = map(len, rewards.values() or _timed(actions))
        if "next_observation" in parts:
            following = _flat("observation", parts["next_observation"])
            if set(following) != set(observations):
                raise FieldError(f"next observations: expected {list(observations)}, got {list(following)}")
            observations = {name: _joined(own, following[name], length) for name, own in observations.items()}
        given = self._ends(parts, length)
        ended = bool(length) and any(flag is not None and bool(flag[-1]) for flag in given.values())
        return {**observations, **actions, **rewards, **old_data.episode_flags(given, length)}, ended

    def _rewards(self, parts: Mapping[str, Any]) -> dict[str, Array]:
        if "reward" not in parts:
            self._unrewarded += 1
            return {}
        rewards = _array("reward", parts["reward"])
        if rewards.ndim == 0:
            raise FieldError("it has a single reward; expected one for each step")
        if rewards.dtype.kind in "biuf":
            rewards = rewards.astype(np.float64)  # as the recorder has them, even where all of these are whole numbers
        return {"reward": rewards}

    def _parts(self, trajectory: Any) -> dict[str, Any]:
        if isinstance(trajectory, (list, tuple)) and not hasattr(trajectory, "_fields"):
            if not trajectory:
                raise FieldError("it has no step")
            steps = [self._named_step(one) for one in trajectory]
            found = [_called(step) for step in steps]
            for i, one in enumerate(found):
                if odd := sorted(one.keys() ^ found[0].keys()):
                    raise FieldError(f"{odd[0]!r} is in only one of its steps 0 and {i}; each needs the same parts")
            self._others.update(*(step.keys() - _known() for step in steps))
            return {name: [one[name] for one in found] for name in found[0]}
        given = trajectory if isinstance(trajectory, Mapping) else _attributes(trajectory)
        self._others.update(str(name) for name in given if name not in _known())
        return _called(given)

    def _named_step(self, step: Any) -> Mapping[str, Any]:
        if isinstance(step, Mapping):
            return step
        if self._step is None or not isinstance(step, (tuple, list)) or len(step) != len(self._step):
            raise FieldError(
                f"a step is {step!r:.60}; say what its items are with step=('observation', "
                "'action', 'reward', 'terminated', 'truncated')"
            )
        return dict(zip(self._step, step, strict=True))

    def _ends(self, parts: Mapping[str, Any], length: int) -> dict[str, Bools | None]:
        """``terminated`` and ``truncated``, None where the trajectory does not tell them."""
        given = {name: self._flags(name, parts.get(name), length) for name in old_data.FLAGS}
        done = self._flags("done", parts.get("done"), length)
        missing = [name for name, flags in given.items() if flags is None]
        if done is None:
            self._unflagged.update({name: self._unflagged[name] + 1 for name in missing})
        elif len(missing) == 2:
            self._only_done += 1
            old_data.check_ends({"terminated": done}, length)
        else:
            known = np.logical_or.reduce([flags for flags in given.values() if flags is not None])
            if (wrong := np.flatnonzero((known & ~done) if missing else (known != done))).size:
                raise FieldError(
                    f"'dones' contradict the other flags at step {wrong[0]}: they are True where a trajectory "
                    "terminated or was truncated; leave one out"
                )
            given.update(dict.fromkeys(missing, done & ~known))
        return given

    def _flags(self, name: str, given: Any, length: int) -> Bools | None:
        if given is None:
            return None
        if np.ndim(given) == 0:  # of the whole trajectory
            given = old_data.as_flags(name, np.asarray(given)[None], 1) & (np.arange(length) == length - 1)
        return old_data.as_flags(name, given, length)

    def not_known(self) -> list[str]:
        """What the trajectories did not tell, beside last observations."""
        said = {"terminated": "terminated", "truncated": "were truncated"}
        found = [f"the rewards of {self._unrewarded} trajectories"] if self._unrewarded else []
        if self._only_done:
            found.append(
                f"whether {self._only_done} trajectories terminated or were truncated: 'dones' say only that they ended"
            )
        return found + [
            f"whether {count} trajectories {said[name]}: they have no such flags"
            for name, count in self._unflagged.items()
            if count
        ]

    def left_out(self) -> list[str]:
        """What else they had."""
        return [f"{name}: it is no part of a transition" for name in sorted(self._others)]


def _known() -> set[str]:
    return {alias for aliases in _CALLED.values() for alias in aliases}


def _called(given: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of a transition under their own names."""
    found: dict[str, Any] = {}
    for name, aliases in _CALLED.items():
        present = [alias for alias in aliases if alias in given and given[alias] is not None]
        if len(present) > 1:
            raise FieldError(f"a trajectory has both {present[0]!r} and {present[1]!r}; leave one out")
        if present:
            found[name] = given[present[0]]
    return found


def _attributes(trajectory: Any) -> dict[str, Any]:
    names = [name for name in dir(trajectory) if not name.startswith("_")]
    values = {name: getattr(trajectory, name) for name in names}
    return {name: value for name, value in values.items() if not callable(value)}


def _flat(name: str, value: Any) -> dict[str, Array]:
    """The arrays of a part by field name; a list of dicts or of tuples is one dict or tuple of lists."""
    if isinstance(value, list) and value and isinstance(value[0], (Mapping, tuple)):
        first = value[0]
        keys = list(first) if isinstance(first, Mapping) else range(len(first))
        if any(type(one) is not type(first) or _parts_of(one) != _parts_of(first) for one in value):
            raise FieldError(f"{name}: the steps have different parts")
        value = {key: [one[key] for one in value] for key in keys}
    if isinstance(value, tuple):
        value = dict(enumerate(value))
    if not isinstance(value, Mapping):
        return {name: _array(name, value)}
    flat: dict[str, Array] = {}
    for component, inner in zip(encode_siblings(value), value.values(), strict=True):
        flat |= _flat(f"{name}.{component}", inner)
    return flat


def _timed(actions: Mapping[str, Array]) -> list[Array]:
    """The arrays of actions, which have as many rows as there are steps where there are no rewards.

    Raises:
        FieldError: one of them is a single value.
    """
    if single := [name for name, array in actions.items() if array.ndim == 0]:
        raise FieldError(f"{single[0]!r}: expected one for each step, got a single one")
    return list(actions.values())


def _parts_of(value: Any) -> Any:
    return set(value) if isinstance(value, Mapping) else len(value)


def _array(name: str, value: Any) -> Array:
    try:
        return np.asarray(value)
    except ValueError as error:  # of lists of different lengths
        raise FieldError(f"{name!r}: expected an array of numbers: {error}") from None


def _joined(own: Array, following: Array, length: int) -> Array:
    """Observations of ``T`` or ``T+1`` rows, with the last of their next ones.

    Raises:
        FieldError: another one of them is not the observation of the next step.
    """
    old_data.check_next("next_observations", own[:length], following)
    if (wrong := np.flatnonzero(old_data.rows_differ(own[1:], following[: len(own) - 1]))).size:
        raise FieldError(
            f"the next observation of step {wrong[0]} is not the observation of step {wrong[0] + 1}, so this is more "
            "than one episode; split it"
        )
    return old_data.with_last(own, following) if length and len(own) == length else own
