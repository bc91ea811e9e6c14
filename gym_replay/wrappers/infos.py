"""Infos as fields: an entry ``info["a"]["b"]`` becomes the fields ``info.a.b`` and ``info_present.a.b``.

An entry is recorded where it is a number, a boolean, or an array of these (lists and tensors included). The first one
that is seen decides dtype and shape: those of an array, int64, float64 and bool for Python's own numbers. Rows where
the entry is missing, or does not fit, hold zeros, and False in the presence field. An integer field takes floats that
are whole, and no others; ``dtypes`` says better.

Left out are strings, None and other objects, arrays of more than 31 axes, what is more than eight mappings deep, an
entry whose name differs from another one's in case only, and all that comes after a thousand entries. Each entry is
warned about the first time that it is left out, and nothing in an info ever stops a run.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from gym_replay.buffer.storage.fields import Field, fit, parse_dtype, to_array
from gym_replay.buffer.storage.names import check_distinct, check_field_name, encode_key
from gym_replay.errors import ConfigMismatchError, FieldError, StorageError

ROOT, PRESENT = "info", "info_present"
DEEPEST = 8
"""Mappings that an entry may be in, one in the other."""

_MOST_FIELDS = 1000
_MOST_WARNINGS = 100
_MOST_NAMES = 10_000
_MOST_AXES = 31
"""NumPy 1 has arrays of 32, of which one is that of the rows."""


def is_info(name: str) -> bool:
    """Whether a field holds infos, or says whether there are any."""
    return name.partition(".")[0] in (ROOT, PRESENT)


class Infos:
    """Turns infos into the bytes of fields, and asks for new fields as new entries come.

    Args:
        wanted: True for all entries, or dotted names: an entry is taken where it, or a mapping that it is in, is named.
        dtypes: dtypes for entries by field name, or for all entries of a mapping, such as ``{"info.x": "float64"}``;
            the longest name counts.
        fields: the buffer's fields; those of infos among them are known already.

    Raises:
        FieldError: ``wanted`` or a dtype is none.
        ConfigMismatchError: a known field has another dtype than ``dtypes`` says.
    """

    def __init__(self, wanted: bool | Iterable[str], dtypes: Mapping[str, Any], fields: Mapping[str, Field]) -> None:
        self._wanted = None if wanted is True else _names(wanted)
        self._dtypes = {name: parse_dtype(dtype) for name, dtype in dtypes.items() if is_info(name)}
        self._known = {name: info for name, info in fields.items() if name.startswith(f"{ROOT}.")}
        self._names = set(fields)
        self._refused: set[str] = set()
        self._warned: set[str] = set()
        self._name_of: dict[tuple[str, str], str] = {}
        for name, field in self._known.items():
            if (dtype := self._chosen_dtype(name)) not in (None, field.dtype):
                raise ConfigMismatchError(
                    f"dtypes: {name!r} is stored as {field.dtype.name}, passed {dtype}; pass what is stored, choose "
                    "another folder, or overwrite=True to replace the buffer"
                )
        self._nothing = self._row({})

    @property
    def names(self) -> list[str]:
        """The fields, in the order of the values that :meth:`encode` gives."""
        return [each for name in self._known for each in (name, presence_of(name))]

    def encode(self, info: Any, add_fields: Callable[[dict[str, Field]], None]) -> tuple[bytes, ...]:
        """The bytes of one row of each info field.

        Args:
            info: what ``reset`` or ``step`` gave.
            add_fields: makes fields of new entries, before this returns.
        """
        if info == {} if type(info) is dict else not isinstance(info, Mapping):
            return self._nothing
        values: dict[str, npt.NDArray[Any]] = {}
        new: dict[str, Field] = {}
        for name, value in self._entries(info):
            array = self._array(name, value)
            if array is None:
                continue
            field = self._known.get(name)
            if field is None:
                if not self._is_free(name, new):
                    continue
                new[name] = field = Field(self._chosen_dtype(name) or array.dtype, array.shape, state=True)
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

    def _is_free(self, name: str, new: Mapping[str, Field]) -> bool:
        """Whether an entry that is not known yet may have a field, beside the new ones found before it."""
        if name in self._refused:
            return False
        if len(self._known) + len(new) >= _MOST_FIELDS:
            self._warn(name, f"there are {_MOST_FIELDS} entries already; name those to record in record_info")
            return False
        try:
            if name in self._names or presence_of(name) in self._names:
                raise FieldError("another field has this name")
            check_distinct([*self._names, *new, name])
        except FieldError as error:
            self._refuse(name, error)
            return False
        return True

    def _add(self, new: dict[str, Field], add_fields: Callable[[dict[str, Field]], None]) -> None:
        added = {
            each: info
            for name, field in new.items()
            for each, info in ((name, field), (presence_of(name), Field("bool", state=True)))
        }
        try:
            add_fields(added)
        except StorageError as error:  # the next row tries again
            for name in new:
                self._warn(name, str(error))
            return
        except FieldError as error:
            if len(new) == 1:
                self._refuse(next(iter(new)), error)
            else:
                for name, field in new.items():
                    self._add({name: field}, add_fields)
            return
        self._known |= new
        self._names |= added.keys()
        self._nothing = self._row({})

    def _entries(self, info: Mapping[Any, Any], root: str = ROOT, place: tuple[Any, ...] = ()) -> Iterator[Any]:
        """Field names and values of what is wanted, mappings inside resolved."""
        try:
            entries = list(info.items())
        except Exception as error:  # a mapping of one's own may do anything
            self._warn(root, str(error))
            return
        for key, value in entries:
            path = (*place, key)
            try:
                name = self._name(root, key)
                is_mapping = issubclass(type(value), Mapping)
                is_wanted = is_mapping or self._wanted is None or self._is_wanted(path)
            except Exception as error:  # so may a key
                self._warn(f"{root}, {type(key).__name__} key", str(error))
                continue
            if not is_mapping:
                if is_wanted:
                    yield name, value
            elif len(path) < DEEPEST:
                yield from self._entries(value, name, path)
            else:
                self._warn(name, f"it is more than {DEEPEST} mappings deep")

    def _name(self, root: str, key: Any) -> str:
        """The field name of an entry of the mapping whose name is ``root``."""
        if type(key) is not str:
            return check_field_name(f"{root}.{encode_key(key)}")
        name = self._name_of.get((root, key))
        if name is None:
            name = check_field_name(f"{root}.{encode_key(key)}")
            if len(self._name_of) < _MOST_NAMES:
                self._name_of[root, key] = name
        return name

    def _chosen_dtype(self, name: str) -> Any:
        """What ``dtypes`` says of an entry, or of a mapping that it is in."""
        while name and name not in self._dtypes:
            name = name.rpartition(".")[0]
        return self._dtypes.get(name)

    def _is_wanted(self, path: tuple[Any, ...]) -> bool:
        assert self._wanted is not None
        dotted = [".".join(map(str, path[:end])) for end in range(1, len(path) + 1)]
        return any(name in self._wanted for name in dotted)

    def _array(self, name: str, value: Any) -> npt.NDArray[Any] | None:
        """The value as an array, or None where it is nothing to record."""
        if value is None or issubclass(type(value), (str, bytes)):
            self._warn(name, f"{type(value).__name__} is no number")
            return None
        try:
            array = to_array(value, name)
        except Exception as error:  # any object may be in an info, and do anything when it is looked at
            self._warn(name, str(error))
            return None
        if array.ndim > _MOST_AXES:
            self._warn(name, f"it has {array.ndim} axes, and at most {_MOST_AXES} can be stored")
            return None
        return array

    def _refuse(self, name: str, error: FieldError) -> None:
        self._warn(name, str(error))
        self._refused.add(name)

    def _warn(self, name: str, why: str) -> None:
        if name in self._warned or len(self._warned) >= _MOST_WARNINGS:
            return
        self._warned.add(name)
        is_last = len(self._warned) == _MOST_WARNINGS
        warnings.warn(
            f"{name} is left out where it cannot be recorded: {why}"
            + ("; this is said of no more entries" if is_last else ""),
            stacklevel=5,
        )


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


def presence_of(name: str) -> str:
    """The field that says whether there is a value in an info field."""
    return f"{PRESENT}.{name.partition('.')[2]}"
