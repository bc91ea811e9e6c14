"""Which fields are stored encoded: codecs by field name, or by a group of fields."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeAlias

from gym_replay.errors import FieldError
from gym_replay.schema.codecs import parse_codec
from gym_replay.schema.fields import Field

IMAGES, RAW = "images", "raw"
"""The group of all images, and what stands for no codec."""

Codecs: TypeAlias = Mapping[str, Any]
"""By field or group: a codec's name, its configuration, or ``"raw"``."""


def is_image(info: Field) -> bool:
    """Whether a row of a field is an image: uint8, of two or three axes."""
    return info.dtype_name == "uint8" and len(info.shape) in (2, 3) and not info.ragged and info.nbytes > 0


def plain_codecs(codecs: Codecs | None) -> dict[str, Any] | None:
    """Codecs as JSON values, checked; ``"raw"`` stays as it is.

    Raises:
        FieldError: one of them is no codec.
    """
    if codecs is None:
        return None
    if not isinstance(codecs, Mapping):
        raise FieldError(f"codecs={codecs!r:.80}: expected a mapping by field, such as {{'images': 'zstd'}}")
    return {name: _plain(name, codec) for name, codec in codecs.items()}


def _plain(name: str, codec: Any) -> Any:
    try:
        return RAW if codec is None or codec == RAW else parse_codec(codec)
    except FieldError as error:
        raise FieldError(f"codecs: {name!r}: {error}") from None


def with_codec(info: Field, codec: Any) -> Field:
    """The field with another codec; None for raw.

    Raises:
        FieldError: the codec does not take the field's values.
    """
    return replace(info, dtype=info.dtype_name, codec=codec)


def with_codecs(fields: Mapping[str, Field], codecs: Codecs) -> dict[str, Field]:
    """The fields, those that are named with other codecs.

    A field's own name counts most, then the longest group. A group, such as ``"observation"`` of the fields
    ``observation.camera`` and ``observation.speed``, means the images in it, uint8 of two or three axes, and
    ``"images"`` those of all fields.

    Args:
        fields: all that there are.
        codecs: see :data:`Codecs`.

    Raises:
        FieldError: there is no such field, the group has no image, or the codec does not take the field's values.

    Example:
        >>> fields = {"observation.camera": Field("uint8", (96, 96, 3)), "observation.speed": Field("float")}
        >>> [info.codec for info in with_codecs(fields, {"images": "zstd"}).values()]
        [{'id': 'zstd', 'level': 1}, None]
    """
    plain = plain_codecs(codecs) or {}
    chosen: dict[str, Any] = {}
    for name in sorted(plain, key=lambda name: (name in fields, name != IMAGES, str(name).count("."))):
        chosen |= dict.fromkeys(_meant(fields, name), plain[name])
    made = dict(fields)
    for name, codec in chosen.items():
        info = fields[name]
        try:
            made[name] = with_codec(info, None if codec == RAW else codec)
        except FieldError as error:
            raise FieldError(f"codecs: {name!r}: {error}") from None
    return made


def _meant(fields: Mapping[str, Field], name: str) -> list[str]:
    """The fields that a name means."""
    if name in fields:
        return [name]
    below = [field for field in fields if name == IMAGES or field.startswith(f"{name}.")]
    if images := [field for field in below if is_image(fields[field])]:
        return images
    if below:
        raise FieldError(
            f"codecs: {name!r} has no image, a uint8 field of two or three axes; name a field: {', '.join(below)}"
        )
    groups = {IMAGES, *fields}
    groups |= {field[:at] for field in fields for at in range(len(field)) if field[at] == "."}
    near = difflib.get_close_matches(str(name), groups, 1, 0.5)
    hint = f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(sorted(groups))}"
    raise FieldError(f"codecs: {name!r} is no field or group of fields{hint}")
