"""Field names: how any key of a nested space becomes one component of a name and of a path.

A field's name is its components joined by dots; its file is the same components joined by slashes. A key becomes
a component by percent-encoding what would be ambiguous (dots, percent signs) or unsafe in a file name. The
encoding is injective, so two different keys of one parent never share a name or a file, on case-insensitive and
Unicode-normalising file systems too.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from gym_replay.errors import FieldError

Key = Any
"""A key of a Dict space, or the index of a Tuple space."""

ITEMS = "%items"
"""The component of a field with one element per item of a sequence whose items leave nothing else behind."""

_LENGTHS = "%lengths"

_UNSAFE = frozenset('./\\%:*?"<>|\x7f')
_INVISIBLE = frozenset({"Cc", "Cs", "Cf", "Zl", "Zp"})
_LONGEST = 150
_LONGEST_NAME = 1000
_KEPT = 100


def _percent(character: str) -> str:
    return "".join(f"%{byte:02X}" for byte in character.encode("utf-8", "surrogatepass"))


def _is_safe(character: str) -> bool:
    return character not in _UNSAFE and unicodedata.category(character) not in _INVISIBLE


def _encode_text(text: str, *, lower_only: bool) -> str:
    if not text:
        return "%_"
    stable = unicodedata.normalize("NFC", text) == text
    pieces = []
    for position, character in enumerate(text):
        keep = _is_safe(character) and (stable or character.isascii())
        if lower_only and character.casefold() != character:
            keep = False
        if position == 0 and text.isascii() and text.isdigit():
            keep = False  # "1" must differ from the integer 1
        if character == " " and position in (0, len(text) - 1):
            keep = False
        pieces.append(character if keep else _percent(character))
    encoded = "".join(pieces)
    if unicodedata.normalize("NFC", encoded) != encoded:  # a combining mark would join the escape before it
        encoded = "".join(piece if piece.isascii() else _percent(piece) for piece in pieces)
    return encoded


def _shorten(component: str) -> str:
    encoded = component.encode("utf-8", "surrogatepass")
    if len(encoded) <= _LONGEST:
        return component
    head = re.sub("%[0-9A-F]?$", "", encoded[:_KEPT].decode("utf-8", "ignore"))
    return f"{head}%h{hashlib.sha256(encoded).hexdigest()[:32]}"


def encode_key(key: Key, *, lower_only: bool = False) -> str:
    """The name component of one key.

    Args:
        key: a string, an integer (a Tuple index), or any other hashable that :func:`key_to_json` accepts.
        lower_only: also encode characters that case folding would change.

    Raises:
        FieldError: the key has a type that cannot be kept in the metadata.
    """
    if isinstance(key, str):
        return _shorten(_encode_text(key, lower_only=lower_only))
    if isinstance(key, int) and not isinstance(key, bool):
        digits = str(abs(key)) if abs(key) < 1 << 63 else f"%x{abs(key):x}"
        return _shorten(digits if key >= 0 else f"%i{digits}")
    return _shorten("%j" + _encode_text(json.dumps(key_to_json(key)), lower_only=True))


def encode_siblings(keys: Iterable[Key]) -> list[str]:
    """The name components of all keys of one parent, distinct even where case is folded."""
    keys = list(keys)
    plain = [encode_key(key) for key in keys]
    folded = [_fold(component) for component in plain]
    counts = Counter(folded)
    return [
        component if counts[fold] == 1 else encode_key(key, lower_only=True)
        for key, component, fold in zip(keys, plain, folded, strict=True)
    ]


def _fold(name: str) -> str:
    return unicodedata.normalize("NFC", name.casefold())


def lengths_component(level: int) -> str:
    """The component of a field that tells how many elements each item of a sequence has.

    This and ``ITEMS`` stand beside the components of keys and are none: what follows a percent sign in those is an
    upper-case hexadecimal number, an underscore, ``h`` or ``x`` and a hexadecimal number, ``i`` and a number, or
    ``j`` and JSON.

    Args:
        level: how many sequences at the same path lie around it that have such a field as well.
    """
    return f"{_LENGTHS}{level + 1}" if level else _LENGTHS


def key_to_json(key: Key) -> Any:
    """A JSON value from which :func:`key_from_json` makes the key again, type included."""
    if key is None or isinstance(key, str):
        return key
    if isinstance(key, bool):
        return {"bool": key}
    if isinstance(key, int):
        return key
    if isinstance(key, float):
        return {"float": key.hex()}
    if isinstance(key, bytes):
        return {"bytes": key.hex()}
    if isinstance(key, tuple):
        return {"tuple": [key_to_json(item) for item in key]}
    raise FieldError(
        f"key {key!r}: expected a string, an integer, a bool, a float, bytes, None or a tuple of these, "
        f"got {type(key).__name__}; rename the key with a wrapper"
    )


def key_from_json(value: Any) -> Key:
    """The key that :func:`key_to_json` was given.

    Raises:
        FieldError: no key has this JSON form.
    """
    if value is None or isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    if isinstance(value, dict) and len(value) == 1:
        ((kind, content),) = value.items()
        try:
            if kind == "bool" and isinstance(content, bool):
                return content
            if kind == "float":
                return float.fromhex(content)
            if kind == "bytes":
                return bytes.fromhex(content)
            if kind == "tuple" and isinstance(content, list):
                return tuple(key_from_json(item) for item in content)
        except (TypeError, ValueError, OverflowError, RecursionError):
            pass
    raise FieldError("this is not the JSON form of a key")


def check_field_name(name: object) -> str:
    """Return ``name`` if it can name a field.

    Raises:
        FieldError: it is no string, empty, or holds a character that a file name cannot hold; the message gives
            the encoded form to use instead.
    """
    if not isinstance(name, str):
        raise FieldError(f"field name {name!r}: expected a string, got {type(name).__name__}")
    return _checked_field_name(name)


@lru_cache(maxsize=1024)
def _checked_field_name(name: str) -> str:
    if not name:
        raise FieldError("a field name must not be empty")
    if len(name.encode("utf-8", "surrogatepass")) > _LONGEST_NAME:
        raise FieldError(f"field name {name[:60]!r}...: expected at most {_LONGEST_NAME} bytes")
    for component in name.split("."):
        if not component:
            raise FieldError(f"field name {name!r}: a component between dots is empty")
        unsafe = [c for c in component if c != "%" and not _is_safe(c)]
        if unsafe or len(component.encode("utf-8", "surrogatepass")) > _LONGEST:
            raise FieldError(
                f"field name {name!r}: {component!r} holds what a file name cannot hold or is longer than "
                f"{_LONGEST} bytes; use {encode_key(component)!r}"
            )
        if component[0] == " " or component[-1] == " " or unicodedata.normalize("NFC", component) != component:
            raise FieldError(f"field name {name!r}: use {encode_key(component)!r} for the component {component!r}")
    return name


def check_distinct(names: Iterable[str]) -> None:
    """Raise FieldError where two names would be one file on a case-insensitive file system."""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(_fold(name), name)
        if other != name:
            raise FieldError(f"fields {other!r} and {name!r} differ in case only; rename one of them")
