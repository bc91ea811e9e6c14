"""Infos as fields: an entry ``info["a"]["b"]`` becomes the fields ``info.a.b`` and ``info_present.a.b``.

An entry is recorded where it is a number, a boolean, or an array of these (lists and tensors included). The first one
that is seen decides the shape, and the dtype to begin with: that of an array, int64, float64 and bool for Python's own
numbers. Where a later one does not fit, the field takes a wider dtype that holds it and all that was recorded before,
each value as it was. Where there is none, the value is left out. What ``dtypes`` declares stays as it is declared.
Rows where the entry is missing, or was left out, hold zeros, and False in the presence field.

Left out are strings, None and other objects, arrays of more than 31 axes, what is more than eight mappings deep, an
entry whose name differs from another one's in case only, and all that comes after a thousand entries. Each entry is
warned about the first time that it is left out, and all that was left out is counted for a warning at the end. Nothing
in an info ever stops a run.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from gym_replay.errors import ConfigMismatchError, FieldError, GymReplayError, StorageError
from gym_replay.files.descriptors import OUT_OF_DESCRIPTORS
from gym_replay.schema.fields import (
    Field,
    elements_of,
    exact_cast,
    fit,
    is_declaration,
    parse_dtype,
    parse_field,
    to_array,
)
from gym_replay.schema.names import check_field_name, encode_key

ROOT, PRESENT = "info", "info_present"
DEEPEST = 8
"""Mappings that an entry may be in, one in the other."""

_MOST_FIELDS = 1000
_MOST_WARNINGS = 100
_MOST_NAMES = 10_000
_MOST_NAMED = 20
"""Entries that one warning names."""
_MOST_AXES = 31
"""NumPy 1 has arrays of 32, of which one is that of the rows."""
_FREE_CHANGES, _ROWS_BETWEEN = 32, 1000
"""How often new entries become fields at once, and how many rows must lie between two such changes from then on, or
after one that the system refused: a change costs milliseconds, and more with each field."""

_PRESENCE = Field("bool", state=True)

Declared = Mapping[str, "np.dtype[Any] | Field"]


class Schema(Protocol):
    """The fields that rows have while they are recorded."""

    @property
    def fields(self) -> Mapping[str, Field]:
        """The fields; another object after each change."""

    def change_fields(self, fields: Mapping[str, Field]) -> GymReplayError | None:
        """Add fields, and give known ones a wider dtype, all or none; what kept them from it."""


@lru_cache(maxsize=10_000)
def _name_of(root: str, key: str) -> str:
    return check_field_name(f"{root}.{encode_key(key)}")


def is_info(name: str) -> bool:
    """Whether a field holds infos, or says whether there are any."""
    return name.partition(".")[0] in (ROOT, PRESENT)


def check_infos(wanted: Any, dtypes: Mapping[str, Any]) -> tuple[set[str] | None, Declared]:
    """What to record of infos (None for all entries), and what is declared of entries, by field name.

    Raises:
        FieldError: ``wanted`` or a declaration is none.
    """
    declared: dict[str, np.dtype[Any] | Field] = {}
    for name, info in dtypes.items():
        if is_info(name) and is_declaration(info):
            field = parse_field(info)
            if field.is_text:
                raise FieldError(f"dtypes: {name!r}: expected a field of numbers, got strings")
            declared[name] = replace(field, state=True)
        elif is_info(name):
            declared[name] = parse_dtype(info)
    if wanted is True:
        return None, declared
    if isinstance(wanted, str) or not isinstance(wanted, Iterable):
        raise FieldError(f"record_info={wanted!r}: expected True, False or a list of dotted names")
    names = set(wanted)
    if wrong := [name for name in names if not isinstance(name, str)]:
        raise FieldError(f"record_info: expected dotted names, got {wrong[0]!r}")
    return names, declared


class Infos:
    """Turns infos into the bytes of fields, and asks for new fields, and wider ones, as new entries come.

    Args:
        wanted: True for all entries, or dotted names: an entry is taken where it, or a mapping that it is in, is named.
        dtypes: dtypes, or fields, of entries by field name, or of all entries of a mapping, such as
            ``{"info.x": "float64"}``; the longest name counts.
        schema: the fields; those of infos among them are known already.

    Raises:
        FieldError: ``wanted`` or a dtype is none.
        ConfigMismatchError: a known field is another one than ``dtypes`` says.
    """

    def __init__(self, wanted: bool | Iterable[str], dtypes: Mapping[str, Any], schema: Schema) -> None:
        self._wanted, self._declared = check_infos(wanted, dtypes)
        self._schema = schema
        self._fields: Mapping[str, Field] | None = None
        self._why: dict[str, str] = {}  # of entries that have no field, and fields whose dtype stays as it is
        self._lost: dict[str, int] = {}
        self._warned: set[str] = set()
        self._rows = self._changes = self._next_new = self._next_try = 0
        self._sync()
        for name, field in self._known.items():
            declared = self._declaration(name)
            if declared is not None and declared != (field if isinstance(declared, Field) else field.dtype):
                raise ConfigMismatchError(
                    f"dtypes: {name!r} is stored as {field}, passed {declared}; pass what is stored, choose "
                    "another folder, or overwrite=True to replace the buffer"
                )

    def _sync(self) -> None:
        """Take the fields that there are now."""
        fields = self._schema.fields
        if fields is self._fields:
            return
        self._known = {name: info for name, info in fields.items() if name.startswith(f"{ROOT}.")}
        self._names = tuple(each for name in self._known for each in (name, presence_of(name)))
        self._has_ragged = any(info.ragged for info in self._known.values())
        self._nothing = self._row({})
        self._fields = fields

    @property
    def names(self) -> tuple[str, ...]:
        """The fields, in the order of the values that :meth:`encode` gives."""
        self._sync()
        return self._names

    def encode(self, infos: Sequence[Any]) -> list[tuple[bytes, ...]]:
        """The bytes of one row of each info field, for each info; fields are added and widened before this returns.

        Args:
            infos: what ``reset`` or ``step`` gave, of one or of several environments.
        """
        if self._schema.fields is not self._fields:
            self._sync()
        self._rows += len(infos)
        if len(infos) == 1 and type(infos[0]) is dict and not infos[0]:
            return [self._nothing]
        found = [self._arrays(info) for info in infos]
        rows = [self._fitted(arrays) for arrays in found]
        if None in rows:
            self._grow(found)
            rows = [self._fitted(arrays, may_lose=True) for arrays in found]
        return [self._row(values) if values else self._nothing for values in rows]

    def _arrays(self, info: Any) -> dict[str, npt.NDArray[Any]]:
        """What there is to record of an info, by field name."""
        if info == {} if type(info) is dict else not isinstance(info, Mapping):
            return {}
        arrays = {name: self._array(name, value) for name, value in self._entries(info)}
        return {name: array for name, array in arrays.items() if array is not None}

    def _fitted(
        self, arrays: Mapping[str, npt.NDArray[Any]], *, may_lose: bool = False
    ) -> dict[str, npt.NDArray[Any]] | None:
        """The values of the fields; None where one does not fit, unless values may be lost."""
        values: dict[str, npt.NDArray[Any]] = {}
        for name, array in arrays.items():
            field = self._known.get(name)
            value = None if field is None else _exactly(array, field)
            if value is None:
                if not may_lose:
                    return None
                value = self._fit_or_lose(name, array, field)
            if value is not None:
                values[name] = value
        return values

    def _fit_or_lose(self, name: str, array: npt.NDArray[Any], field: Field | None) -> npt.NDArray[Any] | None:
        """The nearest value that the field has; None where it has none, which is counted and said once."""
        if field is None:
            self._lose(name, self._why.get(name, self._why_not_now()))
            return None
        try:
            value = elements_of(name, array, field) if field.ragged else fit(name, array, field)
        except FieldError as error:
            self._lose(name, self._why.get(name, self._explain(name, array, field, error)))
            return None
        if self._declaration(name) is None:
            self._lose(name, f"{array} is stored as {value}", "rounded")
        return value

    def _explain(self, name: str, array: npt.NDArray[Any], field: Field, error: FieldError) -> str:
        """Why a value is lost, and how to ask for it."""
        if self._declaration(name) is not None:
            return f"{error}; the field was declared in dtypes, and so it does not change"
        if array.shape == field.shape or not array.ndim or array.shape[1:] != field.shape[1:]:
            return str(error)
        dtype = np.promote_types(array.dtype, field.dtype) if array.size else field.dtype
        shape = f", {field.shape[1:]}" if field.shape[1:] else ""
        return (
            f"its shape was {field.shape}, and now it is {array.shape}; "
            f"dtypes={{{name!r}: Field({dtype.name!r}{shape}, ragged=True)}} takes any number of them, in a new folder"
        )

    def _row(self, values: Mapping[str, npt.NDArray[Any]]) -> tuple[bytes, ...]:
        row: list[bytes] = []
        for name, field in self._known.items():
            value = values.get(name)
            row += (field.default_value().tobytes(), b"\x00") if value is None else (value.tobytes(), b"\x01")
        return tuple(row)

    # --- new and wider fields ---

    def _grow(self, found: Sequence[Mapping[str, npt.NDArray[Any]]]) -> None:
        """Ask for fields for all that has none, or does not fit its field."""
        options: dict[str, list[Field]] = {}
        for arrays in found:
            for name, array in arrays.items():
                field = options[name][0] if name in options else self._known.get(name)
                if field is None and self._may_be_new(name, len(options)):
                    options[name] = [self._new_field(name, array)]
                elif field is not None and self._may_change(name) and _exactly(array, field) is None:
                    options |= {name: wider} if (wider := _wider(field, array)) else {}
        if any(name not in self._known for name in options):
            self._changes += 1
            self._next_new = 0 if self._changes < _FREE_CHANGES else self._rows + _ROWS_BETWEEN
        refused = self._change(options) if options else {}
        self._sync()
        if refused:
            self._next_try = self._rows + _ROWS_BETWEEN
            self._warn_of(refused)

    def _may_be_new(self, name: str, beside: int) -> bool:
        """Whether an entry that has no field may get one, beside some others that change with it."""
        if len(self._known) + beside >= _MOST_FIELDS:
            self._why.setdefault(name, f"there are {_MOST_FIELDS} entries already; name those to record in record_info")
        return name not in self._why and self._rows >= max(self._next_new, self._next_try)

    def _may_change(self, name: str) -> bool:
        """Whether a field may take a wider dtype."""
        return name not in self._why and self._declaration(name) is None and self._rows >= self._next_try

    def _why_not_now(self) -> str:
        if self._rows < self._next_try:
            return f"the system refused files of other entries, and the next try is up to {_ROWS_BETWEEN} rows later"
        return (
            f"entries became fields {self._changes} times, and some more do only every {_ROWS_BETWEEN} rows; name those"
            " to record in record_info"
        )

    def _change(self, options: Mapping[str, list[Field]]) -> dict[str, str]:
        """Change fields, each to the first of what it may become that is possible.

        Returns:
            Which of them the system refused, and why.
        """
        fields: dict[str, Field] = {}
        for name, (first, *_) in options.items():
            fields |= {name: first} if name in self._known else {name: first, presence_of(name): _PRESENCE}
        if (error := self._schema.change_fields(fields)) is None:
            return {}
        refused: dict[str, str] = {}
        if isinstance(error, StorageError) and (len(options) == 1 or error.errno not in OUT_OF_DESCRIPTORS):
            refused = dict.fromkeys(options, str(error))
        elif len(options) > 1:
            for name, option in options.items():  # some may be possible
                refused |= self._change({name: option})
        else:
            ((name, (_, *others)),) = options.items()
            if others:
                return self._change({name: others})
            self._why[name] = str(error)
        return refused

    def _declaration(self, name: str) -> np.dtype[Any] | Field | None:
        """What ``dtypes`` says of an entry, or of a mapping that it is in."""
        while name and name not in self._declared:
            name = name.rpartition(".")[0]
        return self._declared.get(name)

    def _new_field(self, name: str, array: npt.NDArray[Any]) -> Field:
        declared = self._declaration(name)
        if isinstance(declared, Field):
            return declared
        return Field(array.dtype if declared is None else declared, array.shape, state=True)

    # --- what an info holds ---

    def _entries(self, info: Mapping[Any, Any], root: str = ROOT, keys: tuple[Any, ...] = ()) -> Iterator[Any]:
        """Field names and values of what is wanted, mappings inside resolved."""
        try:
            entries = list(info.items())
        except Exception as error:  # a mapping of one's own may do anything
            self._lose(root, str(error))
            return
        for key, value in entries:
            path = (*keys, key)
            try:
                name = self._name(root, key)
                is_mapping = issubclass(type(value), Mapping)
                is_wanted = is_mapping or self._wanted is None or self._is_wanted(path)
            except Exception as error:  # so may a key
                self._lose(f"{root}, {type(key).__name__} key", str(error))
                continue
            if not is_mapping:
                if is_wanted:
                    yield name, value
            elif len(path) < DEEPEST:
                yield from self._entries(value, name, path)
            else:
                self._lose(name, f"it is more than {DEEPEST} mappings deep")

    @staticmethod
    def _name(root: str, key: Any) -> str:
        """The field name of an entry of the mapping whose name is ``root``."""
        return _name_of(root, key) if type(key) is str else check_field_name(f"{root}.{encode_key(key)}")

    def _is_wanted(self, path: tuple[Any, ...]) -> bool:
        return self._wanted is None or any(
            ".".join(map(str, path[:end])) in self._wanted for end in range(1, len(path) + 1)
        )

    def _array(self, name: str, value: Any) -> npt.NDArray[Any] | None:
        """The value as an array, or None where it is nothing to record."""
        if value is None or issubclass(type(value), (str, bytes)):
            self._lose(name, f"{type(value).__name__} is no number")
            return None
        try:
            array = to_array(value, name)
        except Exception as error:  # any object may be in an info, and do anything when it is looked at
            self._lose(name, str(error))
            return None
        if array.ndim > _MOST_AXES:
            self._lose(name, f"it has {array.ndim} axes, and at most {_MOST_AXES} can be stored")
            return None
        return array

    # --- what is lost ---

    def _lose(self, name: str, why: str, how: str = "left out") -> None:
        """Count a value that is lost, and say so where it is the entry's first."""
        known = name if name in self._lost or len(self._lost) < _MOST_NAMES else "others"
        self._lost[known] = self._lost.get(known, 0) + 1
        if name in self._warned or len(self._warned) >= _MOST_WARNINGS:
            return
        self._warned.add(name)
        is_last = len(self._warned) == _MOST_WARNINGS
        warnings.warn(
            f"{name} is {how} where it cannot be recorded{' as it is' if how == 'rounded' else ''}: {why}"
            + ("; this is said of no more entries" if is_last else ""),
            stacklevel=8,
        )

    def _warn_of(self, refused: Mapping[str, str]) -> None:
        """Say once which entries the system has no room for."""
        if new := [name for name in refused if name not in self._warned]:
            self._warned |= {*new}
            warnings.warn(
                f"{_listed(new)}: left out, because the system refused their files ({refused[new[0]]}); the next try "
                f"is {_ROWS_BETWEEN} rows later",
                stacklevel=8,
            )

    def warn_of_losses(self) -> None:
        """Say how many values of which entries were lost, at the end of a run."""
        lost, self._lost = self._lost, {}
        if lost:
            counts = [f"{name} ({count})" for name, count in sorted(lost.items(), key=lambda item: -item[1])]
            warnings.warn(
                f"{sum(lost.values())} values in infos were left out or rounded: {_listed(counts)}", stacklevel=4
            )


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def _exactly(array: npt.NDArray[Any], field: Field) -> npt.NDArray[Any] | None:
    """The array as a value of a field, where the field holds each number as it is."""
    if field.ragged:
        return exact_cast(array, field.dtype) if array.ndim > 0 and array.shape[1:] == field.shape else None
    if array.shape != field.shape:
        if {array.shape, field.shape} != {(), (1,)}:
            return None
        array = array.reshape(field.shape)
    return exact_cast(array, field.dtype)


def _wider(field: Field, array: npt.NDArray[Any]) -> list[Field]:
    """What a field may become that holds an array and perhaps all that it held before, the narrower first."""
    promoted = np.promote_types(field.dtype, array.dtype)
    dtypes = [promoted]
    if promoted.kind == "f" and field.dtype.kind in "iu" and array.dtype.kind in "iu":  # int64 and uint64
        dtypes = [array.dtype, promoted]
    fields = [replace(field, dtype=dtype) for dtype in dtypes if dtype != field.dtype]
    return [wider for wider in fields if _exactly(array, wider) is not None]


def presence_of(name: str) -> str:
    """The field that says whether there is a value in an info field."""
    return f"{PRESENT}.{name.partition('.')[2]}"
