"""What a field is, how one is written down, and how a value is made to fit it."""

from __future__ import annotations

import contextlib
import difflib
import math
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from dataclasses import field as dataclass_field
from typing import Any, TypeAlias, Union

import numpy as np
import numpy.typing as npt

from gym_replay.cached import cached_property
from gym_replay.errors import FieldError
from gym_replay.notices import did_you_mean
from gym_replay.schema.codecs import Codec, check_encodable, codec_of, is_lossy, parse_codec
from gym_replay.schema.names import check_distinct, check_field_name

_INTEGERS = [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
NUMERIC = ("bool", "float16", "float32", "float64", *_INTEGERS)
"""The names of all dtypes that there are fields of."""

_DTYPES = {"float": "float32", "int": "int64", **{name: name for name in NUMERIC}}

TEXT = "str"
_MEANT = {"string": TEXT, "text": TEXT, "object": TEXT, "double": "float64", "long": "int64", "boolean": "bool"}
"""Other names of dtypes, and what they mean here."""

NO_TEXT = -1
"""The slot of the empty string, which is not written."""
LARGEST_TEXT = 1 << 26
"""Bytes of a string, at most: a reader allocates no more on a folder's word."""

FieldLike: TypeAlias = Union["Field", str, type, "np.dtype[Any]", tuple[Any, ...], Mapping[str, Any]]
"""A :class:`Field`, a dtype, a tuple ``(dtype, shape)`` or ``(dtype, shape, default)``, or a field's arguments."""

Encoder: TypeAlias = Callable[[Any], bytes]
"""Takes one value, gives its bytes in the field's dtype and C order."""


def parse_dtype(dtype: Any) -> np.dtype[Any]:
    """The little-endian NumPy dtype for a name or dtype.

    ``"float"`` is float32 and ``"int"`` is int64; every other NumPy bool, int, uint and float name means itself.

    Raises:
        FieldError: it is none of these.
    """
    name = dtype if isinstance(dtype, str) else None
    if name is None and dtype is not None:
        try:
            name = np.dtype(dtype).name
        except (TypeError, ValueError):
            name = repr(dtype)
    if name not in _DTYPES:
        near = [_MEANT[name]] if name in _MEANT else difflib.get_close_matches(str(name), (*_DTYPES, TEXT), 1, 0.75)
        hint = f" (did you mean {near[0]!r}?)" if near and isinstance(dtype, str) else ""
        raise FieldError(f"dtype {dtype!r:.60}{hint}: expected one of {', '.join(_DTYPES)}, and for meta fields {TEXT}")
    parsed: np.dtype[Any] = np.dtype(_DTYPES[name]).newbyteorder("<")
    return parsed


def _parse_shape(shape: Any) -> tuple[int, ...]:
    if isinstance(shape, (int, np.integer)) and not isinstance(shape, bool):
        shape = (shape,)
    if not isinstance(shape, (tuple, list)) or not all(
        isinstance(size, (int, np.integer)) and not isinstance(size, bool) and size >= 0 for size in shape
    ):
        raise FieldError(f"shape {shape!r:.60}: expected a tuple of sizes, none of them negative")
    return tuple(int(size) for size in shape)


@dataclass(frozen=True, eq=False)
class Field:
    """One named quantity per row (or per episode, for a meta field).

    Args:
        dtype: a name or NumPy dtype; see :func:`parse_dtype`.
        shape: the shape of one value; an int stands for a shape of one axis.
        default: the value of a row for which none was given; None means zeros (no elements where ``ragged``).
        state: whether the field exists at T+1 points of an episode of T transitions.
        ragged: whether each row holds any number of elements, each of ``dtype`` and ``shape``: a value is an array
            ``(n, *shape)``.
        codec: what each row is stored encoded with: ``"zstd"``, ``"lz4"`` and ``"png"`` give every value back as it
            was, ``"jpeg"`` does not; or a configuration of numcodecs, such as ``{"id": "zstd", "level": 3}``. Values
            are given and read as those of other fields are. Needs ``pip install 'gym-replay[codecs]'``.

    ``dtype`` may be ``"str"`` for a meta field: one string an episode.

    Example:
        >>> Field("float", (3,), default=1.0)
        Field(dtype='float32', shape=(3,), default=1.0, state=False)
    """

    dtype: Any
    shape: Any = ()
    default: Any = None
    state: bool = False
    ragged: bool = False
    codec: Any = None
    is_text: bool = dataclass_field(init=False, default=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "is_text", self.dtype is str or (isinstance(self.dtype, str) and self.dtype == TEXT))
        # Of a string, the record holds the slot.
        object.__setattr__(self, "dtype", parse_dtype("int64" if self.is_text else self.dtype))
        object.__setattr__(self, "shape", _parse_shape(self.shape))
        object.__setattr__(self, "state", bool(self.state))
        object.__setattr__(self, "ragged", bool(self.ragged))
        if self.is_text and (self.shape or self.default not in (None, "") or self.state or self.ragged):
            raise FieldError("a field of dtype 'str' has no shape and no default; declare it as 'str'")
        if self.is_text:
            object.__setattr__(self, "default", None)
        if self.ragged and self.default is not None:
            raise FieldError("a ragged field has no default but no elements; leave default out")
        if self.ragged and self.nbytes == 0:
            raise FieldError(f"a ragged field needs elements of at least one byte, got shape {self.shape}")
        if self.codec is not None:
            self._check_codec()
        if self.default is not None:
            filled = self._filled(self.default)
            filled.flags.writeable = False
            object.__setattr__(self, "default", filled if filled.size else None)

    def _check_codec(self) -> None:
        if self.ragged or self.is_text:
            raise FieldError("a field with a codec is neither ragged nor of dtype 'str'; leave codec out")
        object.__setattr__(self, "codec", parse_codec(self.codec))
        check_encodable(self.codec, self.dtype, self.shape)

    def _filled(self, default: Any) -> npt.NDArray[Any]:
        array = to_array(default, "default")
        if array.shape != self.shape and array.size == 1:
            array = np.broadcast_to(array.reshape(()), self.shape)  # a default may be one number for the whole shape
        return np.array(fit("default", array, self), copy=True)

    def default_value(self) -> npt.NDArray[Any]:
        """The default as an array of ``shape`` and ``dtype``; ``(0, *shape)`` of a ragged field."""
        if self.ragged:
            return np.empty((0, *self.shape), self.dtype)
        if self.is_text:
            return np.full((), NO_TEXT, self.dtype)
        return np.zeros(self.shape, self.dtype) if self.default is None else self.default

    @property
    def nbytes(self) -> int:
        """Bytes of one value, of a ragged field of one element."""
        return int(self.dtype.itemsize * math.prod(self.shape))

    @property
    def has_elements(self) -> bool:
        """Whether rows take different numbers of bytes: they are stored as elements, and spans that say where."""
        return self.ragged or self.codec is not None

    @cached_property
    def stored(self) -> Field:
        """What lies in the files: of a field with a codec ragged bytes, of every other the field itself."""
        return self if self.codec is None else Field("uint8", state=self.state, ragged=True)

    @property
    def is_lossy(self) -> bool:
        """Whether the codec gives back other values than it was given."""
        return is_lossy(self.codec)

    def stored_alike(self, other: Field) -> bool:
        """Whether the stored bytes of a row mean the same value in both fields: ``state`` may differ, nothing else."""
        return replace(self, dtype=self.dtype_name, state=other.state) == other

    def codec_of_rows(self) -> Codec:
        """What encodes and decodes the rows of a field with a codec.

        Raises:
            MissingExtraError: the package that has the codec is not installed.
        """
        return codec_of(self.codec, self.dtype, self.shape)

    @property
    def dtype_name(self) -> str:
        """The name of the dtype, as a declaration has it."""
        return TEXT if self.is_text else str(self.dtype.name)

    def as_tuple(self) -> tuple[str, tuple[int, ...], Any, bool, bool, Any]:
        """The field as plain Python values, for comparison."""
        return self.dtype_name, self.shape, default_to_json(self.default), self.state, self.ragged, self.codec

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Field) and self.as_tuple() == other.as_tuple()

    def __hash__(self) -> int:
        return hash((self.dtype_name, self.shape, self.state, self.ragged))

    def __repr__(self) -> str:
        default = default_to_json(self.default)
        more = ", ragged=True" if self.ragged else ""
        more += f", codec={self.codec}" if self.codec is not None else ""
        return f"Field(dtype={self.dtype_name!r}, shape={self.shape}, default={default}, state={self.state}{more})"


_ARGUMENTS = ("dtype", "shape", "default", "state", "ragged", "codec")


def require_codecs(fields: Mapping[str, Field]) -> None:
    """See that the rows of all these fields can be encoded here, before the first one is to be.

    Raises:
        MissingExtraError: a package that has a codec is not installed.
    """
    for info in fields.values():
        if info.codec is not None:
            info.codec_of_rows()


def parse_field(info: FieldLike) -> Field:
    """The :class:`Field` that a short form stands for.

    Raises:
        FieldError: it is no such form.
    """
    if isinstance(info, Field):
        return info
    if isinstance(info, Mapping):
        if unknown := [name for name in info if name not in _ARGUMENTS]:
            near = did_you_mean(unknown[0], _ARGUMENTS)
            raise FieldError(f"field {dict(info)!r:.200}: unknown argument {unknown[0]!r}{near}")
        return Field(**{"dtype": None, **info})
    if isinstance(info, list):
        info = tuple(info)
    if isinstance(info, tuple):
        if not 1 <= len(info) <= 3:
            raise FieldError(f"field {info!r}: expected (dtype, shape) or (dtype, shape, default)")
        return Field(*info)
    return Field(info)


def parse_fields(fields: Mapping[str, FieldLike], kind: str = "field") -> dict[str, Field]:
    """Parse a whole declaration, in its order.

    Raises:
        FieldError: a name or a declaration is wrong; the message names the field.
    """
    if not isinstance(fields, Mapping):
        names = [fields] if isinstance(fields, str) else [name for name in fields if isinstance(name, str)]
        example = ", ".join(f"{name!r}: 'float'" for name in names[:3]) or "'task': 'str'"
        raise FieldError(f"{kind}s: expected a dict of names and dtypes, such as {{{example}}}, got {describe(fields)}")
    parsed: dict[str, Field] = {}
    for name, info in fields.items():
        check_field_name(name)
        try:
            parsed[name] = parse_field(info)
        except FieldError as error:
            raise FieldError(f"{kind} {name!r}: {error}") from None
    check_distinct(parsed)
    return parsed


def plain_declaration(info: Any) -> str | dict[str, Any]:
    """A field's declaration, or a dtype, in strings, numbers, lists and dicts alone; :func:`parse_field` takes it.

    Raises:
        FieldError: it is neither.
    """
    if isinstance(info, str):
        return info
    field = parse_field(info)
    if not is_declaration(info):
        return field.dtype_name
    default = None if field.default is None else field.default.tolist()
    arguments = (field.dtype_name, list(field.shape), default, field.state, field.ragged, field.codec)
    return dict(zip(_ARGUMENTS, arguments, strict=True))


def is_declaration(info: Any) -> bool:
    """Whether this says more of a field than its dtype."""
    return isinstance(info, (Field, Mapping, tuple, list))


def default_to_json(default: npt.NDArray[Any] | None) -> Any:
    """A default as JSON: None, one number where all values are equal, or nested lists."""
    if default is None:
        return None
    is_uniform = default.tobytes() == default.flat[0].tobytes() * default.size
    return number_to_json(default.flat[0].item() if is_uniform else default.tolist())


def number_to_json(value: Any) -> Any:
    """A number, or nested lists of numbers; those that JSON does not have are the strings "nan", "inf" and "-inf"."""
    if isinstance(value, list):
        return [number_to_json(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def default_from_json(value: Any) -> Any:
    """What :func:`default_to_json` was given, up to shape and dtype.

    Raises:
        FieldError: no default has this JSON form.
    """
    if isinstance(value, list):
        return [default_from_json(item) for item in value]
    if isinstance(value, str):
        if value not in ("nan", "inf", "-inf"):
            raise FieldError(f"default {value!r:.60}: expected a number")
        return float(value)
    if value is None or isinstance(value, (bool, int, float)):
        return value
    raise FieldError(f"default {value!r:.60}: expected a number or nested lists of numbers")


def to_array(value: Any, name: str) -> npt.NDArray[Any]:
    """A value as a NumPy array: Python numbers, nested lists, arrays, and torch tensors on any device.

    Raises:
        FieldError: the value is none of these, or its rows differ in length.
    """
    if type(value) is np.ndarray:
        array = value
    elif isinstance(value, np.ndarray) and isinstance(value, np.ma.MaskedArray):  # np.ma is imported when asked for
        raise FieldError(f"field {name!r}: expected numbers, got a masked array; pass value.filled(...)")
    else:
        try:
            array = _tensor_to_array(value) if hasattr(value, "detach") else _list_to_array(value)
            if array.dtype == np.float64 and isinstance(value, (list, tuple)):
                array = _exact_integers(value, array)
        except (TypeError, ValueError, RuntimeError, OverflowError, NotImplementedError) as error:
            raise FieldError(f"field {name!r}: expected numbers, got {describe(value)} ({error})") from None
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        raise FieldError(
            f"field {name!r}: expected numbers of at most 64 bits, got {describe(value)}; convert it to float64"
        )
    if array.dtype.kind not in "buif" or array.dtype.itemsize > 8:
        raise FieldError(f"field {name!r}: expected numbers, got {describe(value)}; convert it first")
    return array


def _tensor_to_array(tensor: Any) -> npt.NDArray[Any]:
    tensor = tensor.detach().cpu()
    if str(tensor.dtype) == "torch.bfloat16":
        tensor = tensor.float()  # exact: bfloat16 is the upper half of a float32
    array: npt.NDArray[Any] = tensor.resolve_conj().resolve_neg().numpy()
    return array


def _list_to_array(value: Any) -> npt.NDArray[Any]:
    first = value
    while isinstance(first, (list, tuple)) and first:
        first = first[0]
    if not hasattr(first, "detach"):
        with contextlib.suppress(TypeError, ValueError, RuntimeError):
            return np.asarray(value)
    return np.asarray(_without_tensors(value))


def _without_tensors(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_without_tensors(item) for item in value]
    return _tensor_to_array(value) if hasattr(value, "detach") else value


def _exact_integers(value: Any, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The list as uint64 where NumPy chose float64 for integers beyond int64."""
    if array.size and np.abs(array).max() >= 1 << 62:
        objects = np.array(value, object)
        if all(isinstance(item, (int, np.integer)) for item in objects.flat):
            return objects.astype(np.uint64)
    return array


def describe(value: Any) -> str:
    """Type and beginning of a value, for messages."""
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"


def fit(name: str, array: npt.NDArray[Any], field: Field, lead: tuple[int, ...] = ()) -> npt.NDArray[Any]:
    """``array`` in the field's dtype and in shape ``(*lead, *field.shape)``.

    Shapes () and (1,) fit one another. Numbers may lose precision on the way to a float; an integer or boolean field
    takes only values that it holds exactly, and no floats.

    Raises:
        FieldError: shape or dtype does not fit.
    """
    shape = (*lead, *field.shape)
    if array.shape != shape:
        inner = array.shape[len(lead) :]
        if array.shape[: len(lead)] != lead or {inner, field.shape} != {(), (1,)}:
            raise FieldError(_shape_message(name, field.shape, array.shape, lead))
        array = array.reshape(shape)
    return _cast(name, array, field.dtype)


def _shape_message(name: str, expected: tuple[int, ...], got: tuple[int, ...], lead: tuple[int, ...]) -> str:
    whole = (*lead, *expected)
    if math.prod(got) == math.prod(whole):
        remedy = f"reshape it to {whole}"
    elif not got:
        remedy = f"pass numpy.full({whole}, value) if it is meant for all entries"
    else:
        remedy = f"pass an array of that shape or declare the field with shape {got[len(lead) :]}"
    return f"field {name!r}: expected shape {whole}, got {got}; {remedy}"


def _cast(name: str, array: npt.NDArray[Any], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    if array.dtype == dtype:
        return array
    if np.can_cast(array.dtype, dtype, "safe"):
        return array.astype(dtype)
    if dtype.kind == "f":
        with np.errstate(over="ignore", invalid="ignore"):
            cast = array.astype(dtype)
        overflow = np.isinf(cast) & np.isfinite(array)
        if overflow.any():
            raise FieldError(
                f"field {name!r}: {array[overflow].flat[0]} is too large for {dtype.name}; declare a wider float"
            )
        return cast
    if array.dtype.kind == "f":
        raise FieldError(
            f"field {name!r}: expected {dtype.name}, got {array.dtype.name}; convert the value, or declare the field "
            f"as {array.dtype.name}"
        )
    return _exactly(name, array, dtype, "declare a wider dtype")


def _exactly(name: str, array: npt.NDArray[Any], dtype: np.dtype[Any], remedy: str) -> npt.NDArray[Any]:
    cast = exact_cast(array, dtype)
    if cast is None:
        wrong = next(value for value in array.flat if exact_cast(np.asarray(value), dtype) is None)
        raise FieldError(f"field {name!r}: {wrong} does not fit {dtype.name}; {remedy}")
    return cast


def exact_cast(array: npt.NDArray[Any], dtype: np.dtype[Any]) -> npt.NDArray[Any] | None:
    """``array`` in another dtype, where every value stays what it is, NaN too; None where one would change."""
    if array.dtype == dtype:
        return array
    if array.ndim == 0:  # Python compares numbers of all kinds exactly, and much faster
        with np.errstate(all="ignore"):
            one, value = array.astype(dtype), array.item()
        return one if one.item() == value or (value != value and dtype.kind == "f") else None
    with np.errstate(all="ignore"):
        if array.dtype.kind == "f" and dtype.kind in "iu" and not (np.abs(array) < 1 << 53).all():
            return None  # what C makes of larger ones is up to the processor
        cast = array.astype(dtype)
        same = (cast.astype(array.dtype) == array) & ((cast < 0) == (array < 0))
        if array.dtype.kind == "f":
            same |= np.isnan(array)
        elif array.dtype.kind in "iu" and dtype.kind == "f":
            same &= cast < 2.0 ** (8 * array.dtype.itemsize - (array.dtype.kind == "i"))
    return cast if same.all() else None


def widened(name: str, array: npt.NDArray[Any], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Recorded values of a field in a wider dtype.

    Raises:
        FieldError: one of them would change.
    """
    return _exactly(name, array, dtype, "a recorded value is never changed")


def make_encoder(name: str, field: Field) -> Encoder:
    """A function that checks one value against the field and gives its bytes.

    The common cases, an array of the very dtype and shape and a Python number for a scalar field, are taken
    before the general one.
    """
    if field.is_text:
        return lambda value: encode_text(name, value)
    dtype, shape, ragged = field.dtype, field.shape, field.ragged
    native, scalar_type, ndarray = np.dtype(dtype.type), dtype.type, np.ndarray

    def general(value: Any) -> bytes:
        array = elements_of(name, value, field) if ragged else fit(name, to_array(value, name), field)
        return array.tobytes()

    def encode_array(value: Any) -> bytes:
        if type(value) is ndarray and value.dtype is native and value.shape == shape:
            return value.tobytes()
        return general(value)

    def encode_elements(value: Any) -> bytes:
        if type(value) is ndarray and value.dtype is native and value.ndim and value.shape[1:] == shape:
            return value.tobytes()
        return general(value)

    python_type = {"f": float, "b": bool}.get(dtype.kind, int)
    pack = struct.Struct("<" + {"int64": "q", "uint64": "Q"}.get(dtype.name, dtype.char)).pack

    def encode_number(value: Any) -> bytes:
        if type(value) is scalar_type:
            return value.tobytes()  # type: ignore[no-any-return]
        if type(value) is python_type:
            try:
                return pack(value)
            except (OverflowError, struct.error):
                pass
        return general(value)

    if ragged:
        return encode_elements
    return encode_array if shape else encode_number


def elements_of(name: str, value: Any, field: Field) -> npt.NDArray[Any]:
    """One row's value of a ragged field as an array ``(n, *field.shape)``.

    Raises:
        FieldError: it is none.
    """
    array = to_array(value, name)
    if array.size == 0 and array.ndim == 1:
        array = array.astype(field.dtype).reshape(0, *field.shape)
    if array.ndim == 0:
        expected = ("n", *field.shape)
        raise FieldError(f"field {name!r}: expected shape {expected}, got (); pass a list or an array of n elements")
    return fit(name, array, field, lead=(len(array),))


def encode_text(name: str, value: Any) -> bytes:
    """A string's UTF-8 bytes.

    Raises:
        FieldError: it is no string, or too long.
    """
    if not isinstance(value, str):
        raise FieldError(f"field {name!r}: expected a string, got {describe(value)}; pass str(...) or json.dumps(...)")
    content = value.encode("utf-8", "surrogatepass")
    if len(content) > LARGEST_TEXT:
        raise FieldError(
            f"field {name!r}: a string of {len(content)} bytes, expected {LARGEST_TEXT} at most; store it in a file of "
            "your own and its path here"
        )
    return content


def stack_episodes(name: str, values: Any, field: Field, rows: Sequence[int]) -> npt.NDArray[Any]:
    """The rows of several episodes of a field, one after another: ``(sum(rows), *field.shape)``.

    Args:
        values: one array ``(episodes, time, *field.shape)`` with ``time >= max(rows)``, of which the first
            ``rows[i]`` of episode i are taken, or a sequence of one array ``(rows[i], *field.shape)`` per episode.
        rows: how many rows each episode has.

    Raises:
        FieldError: the number of episodes or a shape does not fit.
    """
    if isinstance(values, (list, tuple)) and len({len(v) for v in values if hasattr(v, "__len__")}) > 1:
        arrays = [to_array(value, name) for value in values]
    else:
        array = to_array(values, name)
        if array.ndim < 2:
            raise FieldError(
                f"field {name!r}: expected shape ({len(rows)}, time, *{field.shape}), got {array.shape}; "
                "pass one row of values per episode"
            )
        arrays = list(array)
    if len(arrays) != len(rows):
        raise FieldError(f"field {name!r}: expected values for {len(rows)} episodes, got {len(arrays)}")
    padded = len({len(array) for array in arrays}) <= 1 and not isinstance(values, (list, tuple))
    pieces = []
    for array, count in zip(arrays, rows, strict=True):
        if padded and len(array) > count and len(array) >= max(rows):
            array = array[:count]
        pieces.append(fit(name, array, field, lead=(count,)))
    return np.concatenate(pieces) if pieces else np.empty((0, *field.shape), field.dtype)
