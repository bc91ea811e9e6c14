"""Fields: how one is declared, and how every kind of value is made to fit it or refused."""

import json

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gym_replay import FieldError
from gym_replay.schema.fields import (
    Field,
    default_from_json,
    default_to_json,
    fit,
    make_encoder,
    parse_dtype,
    parse_field,
    parse_fields,
    stack_episodes,
    to_array,
)

INTEGERS = [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
FLOATS = ["float16", "float32", "float64"]
DTYPES = ["bool", *INTEGERS, *FLOATS]
SHAPES = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3)


@st.composite
def fields_with_values(draw):
    """A field and an array of its dtype and shape, with NaN, infinities and all extremes."""
    field = Field(draw(st.sampled_from(DTYPES)), draw(SHAPES))
    return field, draw(hnp.arrays(field.dtype, field.shape))


def exactly(array, dtype):
    """``array`` in another dtype, or None where that would change a number; floats are rounded."""
    array, dtype = np.asarray(array), np.dtype(dtype)
    numbers = array.reshape(-1).tolist()
    if dtype.kind == "f":
        limit = float(np.finfo(dtype).max)
        if any(abs(n) > limit for n in numbers if np.isfinite(n)):
            return None
        with np.errstate(all="ignore"):
            return array.astype(dtype)
    if array.dtype.kind == "f":
        return None
    low, high = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    return np.array(numbers, dtype).reshape(array.shape) if all(low <= n <= high for n in numbers) else None


@pytest.mark.parametrize("name", DTYPES)
def test_every_numpy_name_means_itself(name):
    for dtype in (name, np.dtype(name), np.dtype(name).type, np.dtype(name).newbyteorder(">")):
        assert parse_dtype(dtype) == np.dtype(name).newbyteorder("<")


def test_short_names_and_python_types():
    assert [parse_dtype(name).name for name in ("float", "int", "bool")] == ["float32", "int64", "bool"]
    assert [parse_dtype(kind).name for kind in (float, int, bool)] == ["float64", "int64", "bool"]


@pytest.mark.parametrize("dtype", ["complex64", "str", "object", "O", "M8[s]", "bfloat16", np.longdouble, str, object])
def test_other_dtypes_are_refused(dtype):
    with pytest.raises(FieldError, match="expected one of"):
        parse_dtype(dtype)


def test_no_dtype_is_no_dtype():
    with pytest.raises(FieldError):
        parse_dtype(None)


def test_a_nonsense_dtype_is_a_field_error():
    with pytest.raises(FieldError):
        parse_dtype(("f4", -1))


@pytest.mark.parametrize(
    ("info", "field"),
    [
        ("float", Field("float32", ())),
        (np.uint8, Field("uint8", ())),
        (("float", 3), Field("float32", (3,))),
        (("int", (2, 3)), Field("int64", (2, 3))),
        (["bool", [2]], Field("bool", (2,))),
        (("float", (2,), 1.5), Field("float32", (2,), 1.5)),
        (Field("int8", 2, state=True), Field("int8", (2,), state=True)),
    ],
)
def test_short_forms(info, field):
    assert parse_field(info) == field


@pytest.mark.parametrize("info", [(), ("float", (), 0, True), ("float", -1), ("float", 1.5), ("float", (True,)), {}, 3])
def test_a_wrong_declaration_names_the_field(info):
    with pytest.raises(FieldError, match="'speed'"):
        parse_fields({"speed": info})


def test_field_names_are_checked():
    with pytest.raises(FieldError, match="a/b"):
        parse_fields({"a/b": "float"})
    with pytest.raises(FieldError, match="case"):
        parse_fields({"a": "float", "A": "float"})


def test_a_field_equals_another_of_the_same_words():
    assert Field("float", 3, default=np.nan) == Field(np.float32, (3,), default=[np.nan] * 3)
    assert hash(Field("float", 3)) == hash(Field("float32", (3,)))
    different = [
        Field("float"),
        Field("float64"),
        Field("float", 1),
        Field("float", default=1),
        Field("float", state=1),
    ]
    assert all(a != b for i, a in enumerate(different) for b in different[:i])
    assert Field("float") != "float"


def test_sizes_in_bytes():
    assert Field("float64", (2, 3)).nbytes == 48
    assert Field("bool").nbytes == 1
    assert Field("int64", (0, 5)).nbytes == 0


def test_a_default_is_zeros_unless_given():
    assert Field("int", (2,)).default_value().tolist() == [0, 0]
    assert Field("int", (2,), default=7).default_value().tolist() == [7, 7]
    assert Field("int", (2,), default=[7, 8]).default_value().tolist() == [7, 8]


def test_a_default_belongs_to_the_field():
    given_default = np.array([1.0, 2.0], np.float32)
    field = Field("float", (2,), default=given_default)
    given_default[:] = 9
    assert field.default_value().tolist() == [1, 2]
    with pytest.raises(ValueError, match="read-only"):
        field.default_value()[0] = 5


@pytest.mark.parametrize(
    ("dtype", "shape", "default"),
    [("uint8", (), 256), ("uint8", (), -1), ("int", (), 0.5), ("bool", (), 2), ("float", (2,), [1, 2, 3])]
    + [("float", (), "a"), ("float", (2,), [[1, 2]]), ("float16", (), 1e6), ("float", (), object())],
)
def test_a_default_that_does_not_fit_is_refused(dtype, shape, default):
    with pytest.raises(FieldError):
        Field(dtype, shape, default=default)


@given(fields_with_values())
def test_a_default_comes_back_from_strict_json(pair):
    declared, default = pair
    # Several numbers of uint64, and arrays without elements, have a test of their own below.
    assume(declared.nbytes and (declared.dtype.name != "uint64" or default.size == 1))
    field = Field(declared.dtype, declared.shape, default=default)
    value = json.loads(json.dumps(default_to_json(field.default), allow_nan=False))
    back = Field(declared.dtype, declared.shape, default=default_from_json(value))
    assert back == field
    assert np.array_equal(back.default_value(), default, equal_nan=default.dtype.kind == "f")


@pytest.mark.parametrize(
    ("dtype", "shape", "default"),
    [("int64", (0,), 0), ("float32", (0, 3), 0.0), ("uint64", (2,), np.array([2**64 - 1, 1], np.uint64))],
    ids=["empty integers", "empty axis", "uint64"],
)
def test_a_default_comes_back_where_a_list_does_not_say_it_all(dtype, shape, default):
    field = Field(dtype, shape, default=default)
    value = json.loads(json.dumps(default_to_json(field.default), allow_nan=False))
    assert Field(dtype, shape, default=default_from_json(value)) == field


def test_the_json_of_defaults():
    assert default_to_json(None) is None
    assert default_to_json(np.full((3, 3), 2)) == 2
    assert default_to_json(np.array([1.5, np.nan, np.inf, -np.inf])) == [1.5, "nan", "inf", "-inf"]
    assert default_to_json(np.array(np.nan)) == "nan"


@pytest.mark.parametrize("value", ["", "NaN", "1", {}, [["x"]], {"a": 1}])
def test_what_is_no_default_is_refused(value):
    with pytest.raises(FieldError):
        default_from_json(value)


@settings(max_examples=100)
@given(fields_with_values())
def test_an_array_of_the_field_is_encoded_as_it_is(pair):
    field, array = pair
    expected = array.tobytes()
    assert make_encoder("x", field)(array) == expected
    assert fit("x", array, field).tobytes() == expected
    assert make_encoder("x", field)(torch.from_numpy(array.copy())) == expected
    assert make_encoder("x", field)(array.astype(array.dtype.newbyteorder(">"))) == expected
    assert make_encoder("x", field)(np.asfortranarray(array)) == expected


@settings(max_examples=100)
@given(fields_with_values())
def test_a_list_is_encoded_as_its_array(pair):
    field, array = pair
    assume(array.size and field.dtype.name != "uint64")
    decoded = np.frombuffer(make_encoder("x", field)(array.tolist()), field.dtype)
    assert np.array_equal(decoded, array.reshape(-1), equal_nan=field.dtype.kind == "f")


def test_a_list_of_large_and_small_integers():
    expected = np.array([2**64 - 1, 1], np.uint64).tobytes()
    assert make_encoder("x", Field("uint64", (2,)))([2**64 - 1, 1]) == expected


@settings(max_examples=200)
@given(st.sampled_from(DTYPES), st.sampled_from(DTYPES), st.data())
def test_every_conversion_is_exact_rounds_a_float_or_is_refused(source, target, data):
    array = data.draw(hnp.arrays(source, hnp.array_shapes(min_dims=0, max_dims=2, max_side=3)))
    field = Field(target, array.shape)
    encode = make_encoder("x", field)
    expected = exactly(array, target)
    if expected is None:
        with pytest.raises(FieldError, match="field 'x'"):
            encode(array)
        with pytest.raises(FieldError, match="field 'x'"):
            fit("x", array, field)
    else:
        assert encode(array) == fit("x", array, field).tobytes() == expected.tobytes()


@settings(max_examples=120)
@given(
    st.sampled_from(DTYPES),
    st.one_of(st.booleans(), st.integers(-300, 300), st.integers(-(2**65), 2**65), st.floats(), st.floats(width=16)),
)
def test_python_and_numpy_numbers_are_encoded_alike(dtype, number):
    field = Field(dtype)
    encode = make_encoder("x", field)
    array = np.asarray(number)
    expected = exactly(array, dtype) if array.dtype.kind != "O" else None
    if expected is None:
        with pytest.raises(FieldError, match="field 'x'"):
            encode(number)
    else:
        assert encode(number) == encode(array) == encode(array[()]) == encode([number]) == expected.tobytes()


@settings(max_examples=100)
@given(SHAPES, SHAPES)
def test_nothing_is_broadcast(declared, given_shape):
    field, array = Field("float", declared), np.ones(given_shape, np.float32)
    if given_shape == declared or {given_shape, declared} == {(), (1,)}:
        assert make_encoder("x", field)(array) == array.tobytes()
        return
    with pytest.raises(FieldError) as caught:
        make_encoder("x", field)(array)
    assert f"expected shape {declared}, got {given_shape}; " in str(caught.value)


@pytest.mark.parametrize("number", [2.5, np.float32(2.5), np.float64(2.5), np.array(2.5), torch.tensor(2.5)])
def test_a_number_and_an_array_of_one_number_fit_one_another(number):
    expected = np.float32(2.5).tobytes()
    assert make_encoder("x", Field("float", ()))([number]) == expected
    assert make_encoder("x", Field("float", (1,)))(number) == expected
    for shape in ((1, 1), (2,)):
        with pytest.raises(FieldError, match="shape"):
            make_encoder("x", Field("float", shape))(number)


@pytest.mark.parametrize(
    ("dtype", "value", "remedy"),
    [
        ("float32", 1e39, "wider"),
        ("float16", np.float32(7e4), "wider"),
        ("float32", np.array([1.0, -1e300])[1], "wider"),
        ("int8", 128, "wider"),
        ("uint8", -1, "wider"),
        ("int64", 2**63, "wider"),
        ("uint64", -1, "wider"),
        ("bool", 2, "wider"),
        ("int64", 1.0, "convert"),
        ("bool", 1.0, "convert"),
        ("int64", float("nan"), "convert"),
    ],
)
def test_a_number_that_does_not_fit_comes_with_a_remedy(dtype, value, remedy):
    with pytest.raises(FieldError, match=rf"field 'x': .*{remedy}"):
        make_encoder("x", Field(dtype))(value)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(), (1,)])
def test_nan_and_infinities_are_kept(dtype, shape):
    encode = make_encoder("x", Field(dtype, shape))
    for number in (np.nan, np.inf, -np.inf, -0.0):
        for value in (number, np.float64(number), np.full(shape, number), torch.full(shape, number)):
            decoded = np.frombuffer(encode(value), dtype)[0]
            assert np.array_equal(decoded, number, equal_nan=True)
            assert np.signbit(decoded) == np.signbit(number)


@pytest.mark.parametrize(
    "value",
    [None, "1", b"1", "abc", {"a": 1}, {1}, object(), 1j, [1, None], ["1"], [[1], [1, 2]], [[1, 2], 3], lambda: 1],
    ids=[
        "none",
        "digit",
        "bytes",
        "text",
        "dict",
        "set",
        "object",
        "complex",
        "partly none",
        "list of text",
        "ragged",
        "mixed",
        "function",
    ],
)
@pytest.mark.parametrize("field", [Field("float"), Field("float", (1,)), Field("int"), Field("bool", (2,))], ids=repr)
def test_what_is_no_number_is_refused(value, field):
    with pytest.raises(FieldError, match="field 'x'"):
        make_encoder("x", field)(value)


@pytest.mark.parametrize(
    "value",
    [
        np.array([1 + 2j]),
        np.array(["1.5"]),
        np.array([1.5], object),
        np.array(["2020-01-01"], "M8[s]"),
        np.zeros(1, [("a", "f4")]),
        torch.zeros(1, dtype=torch.complex64),
    ],
    ids=["complex", "text", "object", "date", "record", "complex tensor"],
)
def test_arrays_of_no_numbers_are_refused(value):
    with pytest.raises(FieldError, match="field 'x'"):
        make_encoder("x", Field("float", (1,)))(value)


@pytest.mark.parametrize(
    "value",
    [
        torch.zeros(1, dtype=torch.bfloat16),
        torch.zeros(1).to_sparse(),
        torch.empty(1, device="meta"),
        [[torch.zeros((), requires_grad=True)]],
    ],
    ids=["bfloat16", "sparse", "meta", "nested with gradient"],
)
def test_a_tensor_is_converted_or_refused(value):
    shape = (1, 1) if isinstance(value, list) else tuple(value.shape)
    try:
        encoded = make_encoder("x", Field("float", shape))(value)
    except FieldError:
        return
    assert encoded == bytes(4)


@pytest.mark.parametrize(
    "value",
    [
        torch.arange(6.0).reshape(2, 3),
        torch.arange(6.0).reshape(3, 2).T.contiguous().T.reshape(2, 3),
        torch.arange(6.0, requires_grad=True).reshape(2, 3),
        torch.nn.Parameter(torch.arange(6.0).reshape(2, 3)),
        list(torch.arange(6.0).reshape(2, 3)),
        np.arange(6, dtype=np.int8).reshape(2, 3),
        np.arange(12.0).reshape(2, 6)[:, ::2] / 2,
        [range(3), range(3, 6)],
        ((0, 1, 2), (3.0, 4.0, 5.0)),
        [[np.float64(0), 1, 2], [3, 4, 5]],
    ],
)
def test_whatever_holds_numbers_will_do(value):
    expected = np.arange(6, dtype=np.float32)
    encoded = make_encoder("x", Field("float", (2, 3)))(value)
    assert np.frombuffer(encoded, np.float32).tolist() == np.asarray(to_array(value, "x")).reshape(-1).tolist()
    assert sorted(np.frombuffer(encoded, np.float32)) == sorted(expected)


def test_a_conjugate_view_of_a_tensor_is_resolved():
    imaginary = torch.complex(torch.zeros(2), torch.tensor([1.0, -2.0])).conj().imag
    assert imaginary.is_neg()
    assert make_encoder("x", Field("float", (2,)))(imaginary) == np.array([-1, 2], np.float32).tobytes()


@pytest.mark.parametrize("shape", [(), (2,)])
def test_the_bytes_are_a_copy(shape):
    array = np.ones(shape, np.float32)
    encoded = make_encoder("x", Field("float", shape))(array)
    array[...] = 7
    assert type(encoded) is bytes
    assert np.frombuffer(encoded, np.float32).tolist() == np.ones(shape).reshape(-1).tolist()


def test_fit_takes_leading_axes_literally():
    field = Field("float", (3,))
    assert fit("x", np.ones((5, 3)), field, lead=(5,)).shape == (5, 3)
    assert fit("x", np.ones((5, 1)), Field("float"), lead=(5,)).shape == (5,)
    assert fit("x", np.ones(5), Field("float", (1,)), lead=(5,)).shape == (5, 1)
    for shape in ((3,), (1, 3), (5, 1), (5, 3, 1), (15,), (4, 3)):
        with pytest.raises(FieldError, match="shape"):
            fit("x", np.ones(shape), field, lead=(5,))


def test_fit_does_not_copy_what_fits():
    array = np.ones((2, 3), np.float32)
    assert fit("x", array, Field("float", (2, 3))) is array


def test_episodes_of_one_array_are_cut_to_their_rows():
    values = np.arange(12.0).reshape(2, 3, 2)
    rows = stack_episodes("x", values, Field("float", (2,)), rows=[3, 1])
    assert rows.tolist() == [*values[0].tolist(), values[1, 0].tolist()]
    assert rows.dtype == np.float32


def test_episodes_of_several_arrays_keep_their_lengths():
    values = [np.arange(2), np.arange(5), []]
    assert stack_episodes("x", values, Field("float"), rows=[2, 5, 0]).tolist() == [0, 1, 0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("values", "rows"),
    [
        (np.ones(3), [3]),
        (np.ones((2, 3)), [3]),
        (np.ones((1, 3)), [4]),
        ([np.ones(2), np.ones(3)], [2, 2]),
        ([np.ones(2), np.ones(3)], [2, 3, 1]),
        ([np.ones((2, 1)), np.ones((3, 2))], [2, 3]),
        (np.ones((1, 3, 2)), [3]),
    ],
)
def test_episodes_that_do_not_fit_are_refused(values, rows):
    with pytest.raises(FieldError, match="field 'x'"):
        stack_episodes("x", values, Field("float"), rows=rows)
