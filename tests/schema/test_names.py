"""Names of fields: any key becomes one component, and no two siblings share a name or a file."""

import json
import os
import re
import unicodedata

import pytest
from catalogue import KEYS, ODD_KEYS
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from gym_replay import FieldError
from gym_replay.schema.names import (
    ITEMS,
    check_distinct,
    check_field_name,
    encode_key,
    encode_siblings,
    key_from_json,
    key_to_json,
    lengths_component,
)

ANY_KEY = st.one_of(
    KEYS,
    st.text(st.characters(codec=None), max_size=300),
    st.text(st.sampled_from("aAbB1%._/ \u0301\u0130\u0131ß\u017fKkÅ\u212b"), max_size=6),
    st.integers(-(10**30), 10**30),
    st.booleans(),
    st.none(),
    st.floats(allow_nan=False),
    st.binary(max_size=20),
    st.recursive(st.one_of(st.text(max_size=3), st.integers()), lambda inner: st.tuples(inner, inner), max_leaves=4),
)


def on_disk(component):
    """What a file system that folds case and normalises Unicode makes of a name."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", component).casefold())


def is_stable(component):
    return unicodedata.normalize("NFC", component) == component


@settings(max_examples=120)
@given(st.lists(ANY_KEY, unique=True, max_size=8))
@example(ODD_KEYS)
def test_siblings_are_distinct_on_every_file_system(keys):
    components = encode_siblings(keys)
    assert len(components) == len(keys)
    assert len(set(components)) == len(keys)
    assert len({component.casefold() for component in components}) == len(keys)
    assert len({unicodedata.normalize("NFC", component) for component in components}) == len(keys)
    assert len({on_disk(component) for component in components}) == len(keys)


RESERVED = [ITEMS, *map(lengths_component, range(40))]


@settings(max_examples=120)
@given(st.one_of(ANY_KEY, st.sampled_from(RESERVED), st.from_regex(r"%(items|lengths[0-9]*)", fullmatch=True)))
@example("%items")
@example("%lengths")
@example("lengths")
@example(-10)
@example(-(1 << 63))
@example(b"items")
@example("x" * 150 + "%lengths")
def test_no_key_becomes_a_reserved_component(key):
    folded = {on_disk(component) for component in RESERVED}
    for component in (encode_key(key), encode_key(key, lower_only=True)):
        assert on_disk(component) not in folded


def test_reserved_components_are_names_of_their_own():
    assert RESERVED[:3] == ["%items", "%lengths", "%lengths2"]
    assert len({on_disk(component) for component in RESERVED}) == len(RESERVED)
    for component in RESERVED:
        assert check_field_name(f"observation.messages.{component}")


@settings(max_examples=120)
@given(ANY_KEY, st.booleans())
def test_a_component_is_a_file_name_and_a_field_name(key, lower_only):
    component = encode_key(key, lower_only=lower_only)
    encoded = (component + ".npy").encode()  # strict: no lone surrogates
    assert 4 < len(encoded) <= 255
    assert component not in ("", ".", "..")
    assert not re.search(r'[./\\:*?"<>|\x00-\x1f\x7f]', component)
    assert component == component.strip(" ")
    assume(is_stable(component))
    assert check_field_name(component) == component


@pytest.mark.parametrize("key", ["*\u0301", ".\u0301", "a<\u0327"])
def test_a_combining_mark_after_an_escape_stays_apart(key):
    assert is_stable(encode_key(key))
    assert check_field_name(encode_key(key))


def test_every_odd_key_makes_a_file(tmp_path):
    for key, component in zip(ODD_KEYS, encode_siblings(ODD_KEYS), strict=True):
        (tmp_path / f"{component}.npy").write_text(repr(key))
    assert len(os.listdir(tmp_path)) == len(ODD_KEYS)
    for key, component in zip(ODD_KEYS, encode_siblings(ODD_KEYS), strict=True):
        assert (tmp_path / f"{component}.npy").read_text() == repr(key)


@pytest.mark.parametrize("key", [10**300, -(10**300), 10**5000], ids=["positive", "negative", "5000 digits"])
def test_a_huge_integer_is_still_a_file_name(key):
    assert len(f"{encode_key(key)}.npy") <= 255


@pytest.mark.parametrize(
    ("key", "component"),
    [
        ("rgb", "rgb"),
        ("Camera 1", "Camera 1"),
        ("a.b", "a%2Eb"),
        ("a/b", "a%2Fb"),
        ("100%", "100%25"),
        ("..", "%2E%2E"),
        ("", "%_"),
        (" ", "%20"),
        ("1", "%31"),
        ("12", "%312"),
        (1, "1"),
        (0, "0"),
        (-3, "%i3"),
        ("é", "é"),
        ("e\u0301", "e%CC%81"),
        ("日本 🤖", "日本 🤖"),
        (True, "%j{%22bool%22%3A true}"),
        (None, "%jnull"),
    ],
)
def test_what_a_key_becomes(key, component):
    assert encode_key(key) == component


def test_plain_names_stay_plain_unless_a_sibling_differs_in_case_only():
    assert encode_siblings(["Speed", "rgb"]) == ["Speed", "rgb"]
    assert encode_siblings(["Speed", "speed", "rgb"]) == ["%53peed", "speed", "rgb"]
    assert encode_siblings(["ß", "ss"]) == ["%C3%9F", "ss"]
    assert encode_siblings([]) == []


def test_a_long_key_is_shortened_by_its_hash_and_keeps_its_beginning():
    same = "x" * 149
    components = encode_siblings([same + "a" * 250, same + "b" * 250, same])
    assert len(set(components)) == 3
    assert components[2] == same
    assert all(component.startswith("x" * 100) for component in components)
    assert encode_key(same + "a" * 250) == components[0], "the same key always has the same component"


@settings(max_examples=120)
@given(ANY_KEY)
def test_a_key_comes_back_from_strict_json_with_its_type(key):
    back = key_from_json(json.loads(json.dumps(key_to_json(key), allow_nan=False)))
    assert back == key
    assert repr(back) == repr(key), "True is not 1 and 1.0 is not 1"


@pytest.mark.parametrize("key", [object(), 1j, frozenset({1}), ("a", object()), b"a".__class__, range(3)])
def test_a_key_that_cannot_be_kept_is_refused(key):
    with pytest.raises(FieldError, match="rename"):
        key_to_json(key)
    with pytest.raises(FieldError):
        encode_key(key)


@pytest.mark.parametrize(
    "value",
    [
        True,
        0.5,
        [],
        {},
        {"bool": 1},
        {"float": "x"},
        {"float": 1.0},
        {"bytes": "zz"},
        {"bytes": 5},
        {"tuple": "ab"},
        {"tuple": [[]]},
        {"tuple": [0.5]},
        {"eval": "1"},
        {"bool": True, "float": "0"},
    ],
)
def test_what_is_no_key_is_refused(value):
    with pytest.raises(FieldError):
        key_from_json(value)


def test_a_deeply_nested_key_is_refused():
    value = 1
    for _ in range(5000):
        value = {"tuple": [value]}
    with pytest.raises(FieldError):
        key_from_json(value)


@given(st.lists(ANY_KEY, min_size=1, max_size=3))
def test_joined_components_are_a_field_name_that_splits_again(keys):
    components = [encode_key(key) for key in keys]
    assume(all(map(is_stable, components)))
    name = ".".join(components)
    assert check_field_name(name) == name
    assert name.split(".") == components


@pytest.mark.parametrize("name", ["reward", "info.x", "a.b.c", "Log prob", "é", "100%", "a" * 150, "0"])
def test_good_field_names(name):
    assert check_field_name(name) == name


@pytest.mark.parametrize(
    "name",
    [None, 3, b"a", "", ".", "a.", ".a", "a..b", "..", "a/b", "../x", "a\\b", "a\nb", "a\x00", " a", "a ", "a. b"]
    + ["a:b", 'a"b', "a*", "a" * 151, "é" * 76, "e\u0301", "\ud800", "a\u200db"],
)
def test_bad_field_names(name):
    with pytest.raises(FieldError):
        check_field_name(name)


@pytest.mark.parametrize("name", ["a/b", "a\nb", " a", "é" * 76, "e\u0301"])
def test_a_bad_name_comes_with_a_good_one(name):
    with pytest.raises(FieldError) as caught:
        check_field_name(name)
    assert repr(encode_key(name)) in str(caught.value)
    assert check_field_name(encode_key(name))


def test_names_that_differ_in_case_only_are_refused():
    check_distinct(["a", "b", "a.b"])
    with pytest.raises(FieldError, match="'speed' and 'Speed'"):
        check_distinct(["speed", "rgb", "Speed"])
    with pytest.raises(FieldError):
        check_distinct(["straße", "STRASSE"])
