"""The infos of a vector environment: as columns over all sub-environments, or as one dict for each."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from gym_replay.schema.fields import Field
from gym_replay.wrappers.infos import DEEPEST, ROOT, Infos, presence_of
from gym_replay.wrappers.vector.autoreset import Mask
from gym_replay.wrappers.vector.batches import Column, ragged_column

FINAL = ("final_obs", "final_info")
"""Entries that tell of the episode that has ended, where the sub-environment was reset in the same step."""

OTHER_NAMES = ("final_observation", "terminal_observation")
"""What others call the entry ``final_obs``: Gymnasium before 1.0 and ManiSkill, Stable-Baselines3 and SuperSuit."""

LAST_OBSERVATIONS = tuple(each for name in (FINAL[0], *OTHER_NAMES) for each in (name, f"_{name}"))
"""The entries that last observations may be in, and which of them there are."""

InfoColumn: TypeAlias = "tuple[str, npt.NDArray[Any]]"
"""A field's name, and its values: ``(num_envs, *field.shape)``, or one for all sub-environments."""

_YES, _NO = np.ones((), bool), np.zeros((), bool)


class BatchInfos(Infos):
    """Turns the infos of a vector environment into columns, without taking each sub-environment's apart.

    It does so where the result is the same bit for bit: a dict with text keys, of arrays over the sub-environments, and
    of such dicts, with masks ``_<key>`` or without, in which each entry that is wanted has a field of its own dtype and
    shape already, and no field is ragged. Everything else (the first time that an entry is seen, what must be
    converted, left out or warned about) is for :meth:`Infos.encode`, one sub-environment after another.
    """

    def columns(
        self, infos: Any, count: int, left_out: Collection[str], removed: Mapping[str, Mask] | None = None
    ) -> list[InfoColumn] | None:
        """The values of each info field, or None where they must be taken one by one.

        Args:
            infos: what ``reset`` or ``step`` gave.
            count: how many sub-environments there are.
            left_out: entries that are no infos of the sub-environments' own.
            removed: of which sub-environments an entry is left out.
        """
        found: dict[str, tuple[npt.NDArray[Any], Mask | None]] = {}
        self._sync()
        if type(infos) is not dict or self._has_ragged:
            return None
        if removed:
            infos = {**infos, **{f"_{key}": _but(infos, key, mask) for key, mask in removed.items() if key in infos}}
        if not self._find(infos, count, left_out, None, ROOT, (), found):
            return None
        self._rows += count
        columns: list[InfoColumn] = []
        for name, field in self._known.items():
            values, there = found.get(name, (None, None))
            if values is None:
                columns += (name, field.default_value()), (presence_of(name), _NO)
            elif there is None or np.count_nonzero(there) == count:
                columns += (name, values), (presence_of(name), _YES)
            else:
                columns += (name, _where(there, values, field)), (presence_of(name), there)
        return columns

    def encode_columns(self, found: Sequence[Any]) -> dict[str, Column]:
        """The values of the info fields, a row for each info; as :meth:`~Infos.encode`, which may add fields."""
        rows, fields = self.encode(found), self._schema.fields
        columns: dict[str, Column] = {}
        for i, name in enumerate(self.names):
            info = fields.get(name)
            if info is None:  # the presence of one that was added by hand
                continue
            data = [row[i] for row in rows]
            if info.ragged:
                values = [np.frombuffer(row, info.dtype).reshape(-1, *info.shape) for row in data]
                columns[name] = ragged_column(values)
            else:
                columns[name] = np.frombuffer(b"".join(data), info.dtype).reshape(len(found), *info.shape)
        return columns

    def cut_entries(self, infos: Mapping[Any, Any], root: str = ROOT) -> Iterator[str]:
        """Names of entries that come as integers, though floats came before."""
        floats = {name for name, field in self._known.items() if field.dtype.kind == "f"}
        for key, value in infos.items():
            try:
                name = self._name(root, key)
            except Exception:  # it is no name
                continue
            if isinstance(value, Mapping):
                yield from self.cut_entries(value, name)
            elif name in floats and isinstance(value, np.ndarray) and value.dtype.kind in "biu":
                yield name

    def _find(
        self,
        infos: dict[Any, Any],
        count: int,
        left_out: Collection[str],
        outer: Mask | None,
        root: str,
        keys: tuple[str, ...],
        found: dict[str, tuple[npt.NDArray[Any], Mask | None]],
    ) -> bool:
        """Add the values of what is in a dict to ``found``, and where they are; False where that cannot be done.

        Args:
            infos: the dict.
            count, left_out: as of :meth:`columns`.
            outer: where the dict itself is.
            root, keys: its name, and the keys that led to it.
            found: where to put them.
        """
        masks = {f"_{key}" for key in infos}
        for key, value in infos.items():
            if type(key) is not str:
                return False
            if key in left_out or key in masks:
                continue
            there = infos.get(f"_{key}")
            if there is None:
                there = outer
            elif type(there) is not np.ndarray or there.dtype != np.bool_ or there.shape != (count,):
                return False
            elif outer is not None:
                there = outer & there
            path = (*keys, key)
            try:
                name = self._name(root, key)
            except Exception:  # it is no name
                return False
            if type(value) is dict:
                if len(path) >= DEEPEST or not self._find(value, count, (), there, name, path, found):
                    return False
            elif isinstance(value, Mapping):
                return False
            elif self._is_wanted(path):
                field = self._known.get(name)
                if field is None or not _are_of(field, value, count):
                    return False
                found[name] = value, there
        return True


def _are_of(field: Field, values: Any, count: int) -> bool:
    """Whether they are values of a field as they are."""
    return type(values) is np.ndarray and values.dtype == field.dtype and values.shape == (count, *field.shape)


def _but(infos: Mapping[str, Any], key: str, removed: Mask) -> Any:
    """The mask of an entry without some sub-environments."""
    mask = infos.get(f"_{key}")
    if mask is None:
        return ~removed
    is_mask = type(mask) is np.ndarray and mask.dtype == np.bool_ and mask.shape == removed.shape
    return mask & ~removed if is_mask else mask


def _where(there: Mask, values: npt.NDArray[Any], field: Field) -> npt.NDArray[Any]:
    """The values, with the default where there is none."""
    kept: npt.NDArray[Any] = values.copy()
    kept[~there] = field.default_value()
    return kept


def split_infos(infos: Any, count: int, env_indices: Sequence[int], *, has_finals: bool = True) -> list[dict[Any, Any]]:
    """The info of each of these sub-environments, as it would have given it by itself.

    An entry is that of the sub-environments in its mask ``_<key>``; where there is none, of all of them. What has no
    axis over the sub-environments is the same for each.

    Args:
        infos: a dict of arrays and dicts as Gymnasium gives it, or one dict for each sub-environment.
        count: how many sub-environments there are.
        env_indices: those that are asked for.
        has_finals: whether the entries :data:`FINAL` are no infos of the sub-environments' own: in same-step mode.
    """
    left_out = FINAL if has_finals else ()
    if _are_each(infos, count):
        found = [_dict_of(infos[i]) for i in env_indices]
        return [{key: value for key, value in info.items() if key not in left_out} for info in found]
    return _split(_dict_of(infos), count, env_indices, left_out)


def split_final_infos(infos: Any, count: int, env_indices: Sequence[int]) -> list[dict[Any, Any]]:
    """The infos that came with the last observations of the episodes that have ended, of these sub-environments."""
    if _are_each(infos, count):
        return [_dict_of(_dict_of(infos[i]).get("final_info")) for i in env_indices]
    final = _dict_of(infos).get("final_info")
    if isinstance(final, (list, tuple, np.ndarray)) and len(final) == count:  # one dict for each
        return [_dict_of(final[i]) for i in env_indices]
    return _split(_dict_of(final), count, env_indices, ())


def lacks_final_infos(infos: Any, count: int, env_indices: Sequence[int], others: Collection[str] = ()) -> bool:
    """Whether there are infos, besides these other entries, and none of last rows of episodes that have ended."""
    given = [infos[i] for i in env_indices] if _are_each(infos, count) else [infos]
    if all("final_info" in _dict_of(info) for info in given):
        return False
    return any(set(info).difference(others) for info in split_infos(infos, count, env_indices))


def final_observations(infos: Any, count: int, env_indices: Sequence[int]) -> tuple[Any, list[bool]]:
    """The last observations of the episodes that have ended, and of which of them there is one.

    Returns:
        A list with one value of a single sub-environment for each of ``env_indices``, or, where they came as dense
        arrays over all sub-environments, a batched value; and for each whether it is there.
    """
    if _are_each(infos, count):
        given = [_dict_of(infos[i]).get("final_obs") for i in env_indices]
        return given, [value is not None for value in given]
    infos = _dict_of(infos)
    found, mask = infos.get("final_obs"), infos.get("_final_obs")
    if found is None:
        return [None] * len(env_indices), [False] * len(env_indices)
    there = [mask is None or bool(mask[i]) for i in env_indices]
    if isinstance(found, np.ndarray) and found.dtype == object and found.shape == (count,):
        given = [found[i] for i in env_indices]
        return given, [is_there and value is not None for is_there, value in zip(there, given, strict=True)]
    return found, there


def _are_each(infos: Any, count: int) -> bool:
    """Whether they are one info for each sub-environment."""
    return isinstance(infos, (list, tuple)) and len(infos) == count


def _dict_of(info: Any) -> dict[Any, Any]:
    return dict(info) if isinstance(info, Mapping) else {}


def _split(
    infos: Mapping[Any, Any], count: int, env_indices: Sequence[int], left_out: Collection[str]
) -> list[dict[Any, Any]]:
    found: list[dict[Any, Any]] = [{} for _ in env_indices]
    named = {f"_{key}" for key in infos}
    for key, value in infos.items():
        if key in left_out or key in named:
            continue
        mask = infos.get(f"_{key}")
        there = None if mask is None else np.asarray(mask, bool)
        if isinstance(value, Mapping):
            values: Any = _split(value, count, env_indices, ())
        elif getattr(value, "ndim", 0) and len(value) == count:
            array = value if isinstance(value, np.ndarray) else np.asarray(value)
            values = [array[i] for i in env_indices]
        else:
            values = [value] * len(env_indices)
        for info, i, item in zip(found, env_indices, values, strict=True):
            if there is None or there.shape != (count,) or there[i]:
                info[key] = item
    return found
