"""HTML for notebooks. Texts go through here, so that what a folder or a user named is never markup."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from gym_replay.errors import printable

_LONGEST = 200
_MOST_ROWS = 100
_MOST_VALUES = 4


def escaped(text: str) -> str:
    """A text on one line, cut at 200 characters, in which nothing is markup.

    Example:
        >>> escaped("<b>\\n")
        '&lt;b&gt;\\\\n'
    """
    shown = printable(text)
    return html.escape(shown if len(shown) <= _LONGEST else f"{shown[: _LONGEST - 1]}…")


def heading(text: str) -> str:
    """A line above a table."""
    return f"<div><b>{escaped(text)}</b></div>"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of texts, of up to 100 rows, and how many more there are."""
    cells = list(rows)
    lines = ["".join(f"<td style='text-align:left'>{escaped(cell)}</td>" for cell in row) for row in cells[:_MOST_ROWS]]
    if len(cells) > _MOST_ROWS:
        lines.append(f"<td style='text-align:left'>… {len(cells) - _MOST_ROWS} more</td>")
    top = "".join(f"<th style='text-align:left'>{escaped(name)}</th>" for name in header)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def numbers(values: Any) -> str:
    """A number, or the first four of an array with its shape.

    Example:
        >>> numbers(1 / 3), numbers(np.arange(6.0).reshape(2, 3))
        ('0.3333', '[0 1 2 3 …] (2, 3)')
    """
    array = np.asarray(values)
    if array.ndim == 0:
        return f"{array.item():.4g}"
    shown = " ".join(f"{value:.4g}" for value in array.reshape(-1)[:_MOST_VALUES].tolist())
    return f"[{shown}{' …' if array.size > _MOST_VALUES else ''}] {array.shape}"
