"""Infos as fields: an entry ``info["a"]["b"]`` becomes the fields ``info.a.b`` and ``info_present.a.b``.

An entry is recorded where it is a number, a boolean, or an array of these (lists and tensors included). The first one
that is seen decides dtype and shape: those of an array, int64, float64 and bool for Python's own numbers. Rows where
the entry is missing, or does not fit, hold zeros, and False in the presence field. Strings, None and other objects are
left out. Each reason is warned about once per entry, and none ever stops a run.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from gym_replay.buffer.storage.fields import Field, fit, parse_dtype, to_array
from gym_replay.buffer.storage.names import check_distinct, check_field_name, encode_key
from gym_replay.errors import FieldError, StorageError

ROOT, PRESENT = "info", "info_present"
_DEEPEST = 8
_MOST_FIELDS = 1000


def is_info(name: str) -> bool:
    """Whether a field holds infos, or says whether there are any."""
    return name.partition(".")[0] in (ROOT, PRESENT)


class Infos:
    """Turns infos into the bytes of fields, and asks for new fields as new entries come.

    Args:
        wanted: True for all entries, or dotted names: an entry is taken where it, or a mapping that it is in, is named.
        dtypes: dtypes for entries by field name, such as ``{"info.x": "float64"}``.
        fields: the buffer's fields; those of infos among them are known already.
    """

    def __init__(self, wanted: bool | Iterable[str], dtypes: Mapping[str, Any], fields: Mapping[str, Field]) -> None:
        self._wanted = None if wanted is True else _names(wanted)
        self._dtypes = {name: parse_dtype(dtype) for name, dtype in dtypes.items() if is_info(name)}
        self._known = {name: info for name, info in fields.items() if name.startswith(f"{ROOT}.")}
        self._names = set(fields)
        self._warned: set[str] = set()
        self._nothing = self._row({})

    @property
    def names(self) -> list[str]:
        """The fields, in the order of the values that :meth:`encode` gives."""
        return [each for name in self._known for each in (name, _presence(name))]

    def encode(self, info: Any, add_fields: Callable[[dict[str, Field]], None]) -> tuple[bytes, ...]:
        """The bytes of one row of each info field.

        Args:
            info: what ``reset`` or ``step`` gave.
            add_fields: makes fields of new entries, before this returns.
        """
        if not info:
            return self._nothing
        values: dict[str, npt.NDArray[Any]] = {}
        new: dict[str, Field] = {}
        for name, value in self._entries(info):
            array = self._array(name, value)
            if array is None:
                continue
            field = self._known.get(name)
            if field is None:
                if name in self._names or len(self._known) + len(new) >= _MOST_FIELDS:
                    self._warn(name, "another field has this name, or there are too many")
                    continue
                new[name] = field = Field(self._dtypes.get(name, array.dtype), array.shape, state=True)
            try:
                values[name] = fit(name, _whole(array, field), field)
            except FieldError as error:
                self._warn(name, f"{error}; name its dtype, as in dtypes={{{name!r}: 'float64'}}, where that helps")
        if new:
            self._add(new, add_fields)
        return self._row(values)

    def _row(self, values: Mapping[str, npt.NDArray[Any]]) -> tuple[bytes, ...]:
        row: list[bytes] = []
        for name, field in self._known.items():
            value = values.get(name)
            row += (field.default_value().tobytes(), b"\x00") if value is None else (value.tobytes(), b"\x01")
        return tuple(row)

    def _add(self, new: dict[str, Field], add_fields: Callable[[dict[str, Field]], None]) -> None:
        try:
            check_distinct([*self._names, *new])
            add_fields(
                {
                    each: info
                    for name, field in new.items()
                    for each, info in ((name, field), (_presence(name), Field("bool", state=True)))
                }
            )
        except (FieldError, StorageError) as error:
            for name in new:
                self._warn(name, str(error))
            return
        self._known |= new
        self._names |= {each for name in new for each in (name, _presence(name))}
        self._nothing = self._row({})

    def _entries(self, info: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[str, Any]]:
        """Field names and values of what is wanted, mappings inside resolved."""
        if not isinstance(info, Mapping):
            return
        for key, value in info.items():
            path = (*place, key)
            if isinstance(value, Mapping):
                if len(path) < _DEEPEST:
                    yield from self._entries(value, path)
                continue
            if self._wanted is not None and not self._is_wanted(path):
                continue
            try:
                name = ".".join((ROOT, *(encode_key(each) for each in path)))
                check_field_name(name)
            except (FieldError, ValueError) as error:
                self._warn(repr(path), str(error))
                continue
            yield name, value

    def _is_wanted(self, path: tuple[Any, ...]) -> bool:
        assert self._wanted is not None
        dotted = [".".join(map(str, path[:end])) for end in range(1, len(path) + 1)]
        return any(name in self._wanted for name in dotted)

    def _array(self, name: str, value: Any) -> npt.NDArray[Any] | None:
        """The value as an array, or None where it is nothing to record."""
        if value is None or isinstance(value, (str, bytes)):
            self._warn(name, f"{type(value).__name__} is no number")
            return None
        try:
            return to_array(value, name)
        except Exception as error:  # any object may be in an info, and do anything when it is looked at
            self._warn(name, str(error))
            return None

    def _warn(self, name: str, why: str) -> None:
        if name not in self._warned:
            self._warned.add(name)
            warnings.warn(f"{name} is left out where it cannot be recorded: {why}", stacklevel=5)


def _names(wanted: Any) -> set[str]:
    if isinstance(wanted, str) or not isinstance(wanted, Iterable):
        raise FieldError(f"record_info={wanted!r}: expected True, False or a list of dotted names")
    names = set(wanted)
    if wrong := [name for name in names if not isinstance(name, str)]:
        raise FieldError(f"record_info: expected dotted names, got {wrong[0]!r}")
    return names


def _whole(array: npt.NDArray[Any], field: Field) -> npt.NDArray[Any]:
    """A float that an integer field holds exactly as an integer; anything else as it is."""
    if array.dtype.kind == "f" and field.dtype.kind in "iu" and array.shape == field.shape:
        whole = np.trunc(array)
        if np.array_equal(whole, array) and np.all(np.abs(array) < 1 << 53):
            integers: npt.NDArray[Any] = whole.astype(np.int64)
            return integers
    return array


def _presence(name: str) -> str:
    return f"{PRESENT}.{name.partition('.')[2]}"
