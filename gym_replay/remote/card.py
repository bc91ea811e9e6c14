"""The card of a data set: a README.md that says what is in it, and a picture of its returns."""

from __future__ import annotations

import html
import math
import re
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from gym_replay.buffer.loading.selection import EpisodeValues
from gym_replay.buffer.provenance import numbers_of, runs_of, when_recorded
from gym_replay.buffer.reading import Readable
from gym_replay.errors import FieldError, GymReplayError, printable
from gym_replay.schema.arrays import Floats
from gym_replay.schema.codecs import short_name
from gym_replay.schema.fields import Field

CARD, PICTURE = "README.md", "returns.svg"

_LICENCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]{0,60}")
_MARKUP = re.compile(r"([\\`*_{}\[\]()#+\-.!|~$:@])")
_LONGEST = 300
_BINS, _WIDTH, _HEIGHT, _MARGIN = 40, 640, 160, 24


def check_licence(licence: str | None) -> None:
    """Raise FieldError where this is no identifier of a licence."""
    if licence is not None and not (isinstance(licence, str) and _LICENCE.fullmatch(licence)):
        raise FieldError(f"licence={licence!r:.80}: expected an identifier such as 'mit', 'apache-2.0' or 'cc-by-4.0'")


def make_card(buffer: Readable, url: str, licence: str | None) -> dict[str, bytes]:
    """The files of the card, by name. What the folder says of itself is text in them, and never markup.

    Args:
        buffer: what is described.
        url: where it is.
        licence: of the data.

    Raises:
        FieldError: ``licence`` is no identifier.
    """
    check_licence(licence)
    values = EpisodeValues(buffer.snapshots())
    returns = numbers_of(values, "episode_return")
    picture = _histogram(returns.astype(np.float64)) if returns is not None else None
    text = "\n".join(_lines(buffer, values, url, licence, picture is not None)) + "\n"
    return {CARD: text.encode(), **({PICTURE: picture} if picture is not None else {})}


def as_text(text: object) -> str:
    """A text of a stranger in which nothing is markup, in Markdown or HTML, on one line and not too long.

    Example:
        >>> as_text("[a](b) <b>")
        '\\\\[a\\\\]\\\\(b\\\\) &lt;b&gt;'
    """
    shown = printable(" ".join(str(text).split()))
    shown = shown if len(shown) <= _LONGEST else f"{shown[: _LONGEST - 1]}…"
    return _MARKUP.sub(r"\\\1", html.escape(shown, quote=False))


def _lines(buffer: Readable, values: EpisodeValues, url: str, licence: str | None, has_picture: bool) -> Iterator[str]:
    metadata = buffer.metadata
    yield from ("---", *([f"license: {licence}"] if licence else []), "task_categories:", "- reinforcement-learning")
    yield from ("tags:", "- gym_replay", "---", "")
    spec = (metadata.environment or {}).get("env_spec")
    name = spec.get("id") if isinstance(spec, dict) else None
    title = name if isinstance(name, str) else url.rsplit("/", 1)[-1]
    yield from (f"# {as_text(title)}", "")
    lengths = values["length"]
    yield f"{int(lengths.sum())} steps in {values.count} episodes, recorded with gym_replay."
    yield ""
    if has_picture:
        yield from (f"![Returns of the episodes]({PICTURE})", "")
    yield from _table(("", ""), list(_facts(buffer, values, licence)))
    yield from ("", "## Fields", "")
    fields = [_row(name, info, "state" if info.state else "step") for name, info in metadata.fields.items()]
    fields += [_row(name, info, "episode") for name, info in metadata.meta_fields.items()]
    yield from _table(("field", "values", "one for each", "stored"), fields)
    yield from ("", "A state field has the row after the last step too. Rows are explained in gym_replay's docs.", "")
    yield from ("## Load", "", "```python", "# pip install 'gym-replay[remote]'", "import gym_replay", "")
    address = repr(printable(url))
    yield f"buffer = gym_replay.pull({address}, 'data')  # all of it, compared with its checksums"
    yield f"buffer = gym_replay.ReplayBuffer.from_url({address})  # or only the rows that are read"
    yield "for batch in gym_replay.n_step_loader(buffer, batch_size=256, shuffle='block'):"
    yield from ("    ...", "```")


def _facts(buffer: Readable, values: EpisodeValues, licence: str | None) -> Iterator[tuple[str, ...]]:
    metadata, lengths = buffer.metadata, values["length"]
    for label, part in (("observations", "observation_space"), ("actions", "action_space")):
        if (metadata.environment or {}).get(part) is not None:
            try:
                yield label, as_text(getattr(buffer, part))
            except GymReplayError as error:
                yield label, as_text(f"cannot be decoded: {error}")
    if len(lengths):
        yield "length of episodes", f"{lengths.min()} to {lengths.max()}, {lengths.mean():.1f} on average"
    returns = numbers_of(values, "episode_return")
    if returns is not None and len(returns):
        yield "return", as_text(f"{returns.min():.6g} to {returns.max():.6g}, {returns.mean():.6g} on average")
    recorded = when_recorded(values)
    if recorded is not None:
        yield "recorded", as_text(f"{_moment(recorded['first'])} to {_moment(recorded['last'])}")
    runs = runs_of(values)
    versions = runs[-1].get("versions") if runs else None
    if isinstance(versions, dict):
        yield "with", as_text(", ".join(f"{name} {version}" for name, version in versions.items()))
    if licence:
        yield "licence", as_text(licence)


def _moment(seconds: float) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))
    except (ValueError, OverflowError, OSError):  # any number may be stored
        return f"{seconds:g} s"


def _row(name: str, info: Field, kind: str) -> tuple[str, ...]:
    shape = f" {info.shape}" if info.shape else ""
    values = f"{'any number of ' if info.ragged else ''}{info.dtype_name}{shape}"
    return as_text(name), as_text(values), kind, as_text(short_name(info.codec)) if info.codec is not None else "raw"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    for row in (header, ["---"] * len(header), *rows):
        yield f"| {' | '.join(row)} |"


def _histogram(values: Floats) -> bytes | None:
    """The distribution of finite numbers as a picture; None where there are none."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return None
    low, high = float(finite.min()), float(finite.max())
    if not math.isfinite(high - low):
        return None
    counts = np.histogram(finite, _BINS, (low, high) if high > low else (low - 0.5, low + 0.5))[0]
    step = _WIDTH / _BINS
    bars = []
    for at, count in enumerate(counts.tolist()):
        height = round(count / counts.max() * (_HEIGHT - _MARGIN))
        bars.append(_tag("rect", x=at * step, y=_HEIGHT - _MARGIN - height, width=step - 1, height=height))
    style = {"font-family": "sans-serif", "font-size": 12}
    bottom = {"y": _HEIGHT - 6, **style}
    labels = [
        _tag("text", f"{low:.6g}", x=0, **bottom),
        _tag("text", "return", x=_WIDTH / 2, **{"text-anchor": "middle"}, **bottom),
        _tag("text", f"{high:.6g}", x=_WIDTH, **{"text-anchor": "end"}, **bottom),
    ]
    inner = _tag("g", "".join(bars), fill="#3b7dd8") + _tag("g", "".join(labels), fill="#777777")
    box = {"viewBox": f"0 0 {_WIDTH} {_HEIGHT}", "width": _WIDTH, "height": _HEIGHT}
    return _tag("svg", inner, xmlns="http://www.w3.org/2000/svg", **box).encode()


def _tag(name: str, inner: str = "", **attributes: Any) -> str:
    """An element of SVG; all that is in it are numbers and words of this file."""
    told = "".join(f' {key}="{value}"' for key, value in attributes.items())
    return f"<{name}{told}>{inner}</{name}>" if inner else f"<{name}{told}/>"
