"""What a notebook shows of a buffer and of an episode: tables, and a row of thumbnails of each camera."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np

from gym_replay.buffer.storage.layout import Metadata
from gym_replay.buffer.storage.reader import Snapshot
from gym_replay.errors import GymReplayError
from gym_replay.extras import require
from gym_replay.markup import escaped, heading, numbers, table
from gym_replay.schema.fields import Field
from gym_replay.schema.pictures import image_fields, to_rgb

_THUMBNAILS = 8
_CAMERAS = 3
_HEIGHT = 80
"""Pixels of a thumbnail."""


class _Episode(Protocol):
    """What is asked of an episode, whose own module imports this one."""

    id: int
    complete: bool
    has_final: bool
    snapshot: Snapshot

    @property
    def meta(self) -> dict[str, Any]: ...
    def __len__(self) -> int: ...
    def __getitem__(self, name: str) -> Any: ...


def html_of_schema(said: str, schema: Metadata | None) -> str:
    """What a buffer is, and below it its fields and meta fields where they can be read."""
    if schema is None:
        return heading(said)
    parts = [heading(said), _schema("field", schema.fields)]
    return "".join([*parts, _schema("meta field", schema.meta_fields)] if schema.meta_fields else parts)


def _schema(what: str, fields: Mapping[str, Field]) -> str:
    return table((what, "dtype", "shape", ""), (_described(name, info) for name, info in fields.items()))


def _described(name: str, info: Field) -> list[str]:
    marks = {"state": info.state, "ragged": info.ragged, "encoded": info.codec is not None}
    dtype = "str" if info.is_text else info.dtype.name
    return [name, dtype, "" if info.is_text else str(info.shape), ", ".join(mark for mark in marks if marks[mark])]


def html_of_episode(episode: _Episode) -> str:
    """The rows and meta fields of an episode, and frames where it has images and Pillow is installed."""
    facts = [f"Episode {episode.id}", f"{len(episode)} steps", *([] if episode.complete else ["cut"])]
    fields = episode.snapshot.metadata.fields
    parts = [heading(", ".join(facts))]
    try:
        parts += _cameras(episode)
    except (GymReplayError, ImportError):  # Pillow, or the package of a codec, is missing, or the rows are gone
        parts = parts[:1]
    rows = len(episode) + (1 if episode.has_final else 0)
    columns = ("field", "dtype", "rows", "")
    parts.append(table(columns, (_of_rows(name, info, rows, len(episode)) for name, info in fields.items())))
    try:
        meta = {name: _shown(value) for name, value in episode.meta.items()}
    except GymReplayError as error:
        return "".join([*parts, heading(str(error))])
    return "".join([*parts, table(("meta field", "value"), meta.items())] if meta else parts)


def _of_rows(name: str, info: Field, rows: int, steps: int) -> list[str]:
    count = rows if info.state else steps
    shape = f"({count}, ...)" if info.ragged else str((count, *info.shape))
    return [name, info.dtype.name, shape, _described(name, info)[-1]]


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else numbers(value)


def _cameras(episode: _Episode) -> Iterator[str]:
    """A line of thumbnails for each of the first image fields."""
    names = image_fields(episode.snapshot.metadata.fields)[:_CAMERAS]
    if not names:
        return
    pillow = require("PIL.Image", "media", "thumbnails")
    for name in names:
        rows = episode[name]
        wanted = np.unique(np.linspace(0, len(rows) - 1, _THUMBNAILS).astype(np.int64)).tolist() if len(rows) else []
        images = [_thumbnail(pillow, np.asarray(rows[t])) for t in wanted]
        episode.snapshot.require_live(episode.id)
        tags = "".join(
            f"<img src='data:image/png;base64,{image}' style='display:inline;margin:1px'>" for image in images
        )
        yield f"<div title='{escaped(name)}'>{tags}</div>"


def _thumbnail(pillow: Any, row: Any) -> str:
    image = pillow.fromarray(to_rgb(row))
    if image.height > _HEIGHT:
        width = max(1, round(image.width * _HEIGHT / image.height))
        image = image.resize((width, _HEIGHT), pillow.Resampling.BOX)
    out = io.BytesIO()
    image.save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()
