"""What the library of charts is told: histograms and curves as its options.

No name or text from a folder is ever a key of these dicts, because the library runs keys that begin with a colon as
code; and tooltips are drawn as text, so that no value of theirs is read as markup.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from gym_replay.viewing.curves import Panel
from gym_replay.viewing.episodes import Distribution
from gym_replay.viewing.text import number, short

LEFT, RIGHT = 64, 18
"""Pixels beside the plotting area of curves, between which the scrubber and the cursor move."""

COLORS = ("#3b82f6", "#f59e0b", "#10b981", "#ef4444", "#8b5cf6", "#ec4899")
"""One for each element of a field; they read on light and on dark."""

_MUTED = "#8b8f98"
_GRID = "rgba(128,128,128,0.16)"
_FONT = "system-ui, sans-serif"
_TOOLTIP = {
    "renderMode": "richText",
    "trigger": "axis",
    "confine": True,
    "backgroundColor": "#1f2430",
    "borderWidth": 0,
    "padding": [6, 8],
    "textStyle": {"color": "#f4f4f5", "fontSize": 11, "fontFamily": _FONT},
}


def histogram(found: Distribution, chosen_range: tuple[float, float] | None) -> dict[str, Any]:
    """Bars of all episodes behind bars of the chosen ones, and over both a clear bar that is clicked on."""
    low, high = found.edges[:-1], found.edges[1:]
    whole = bool((found.edges == found.edges.round()).all())
    names = [
        number(a) if whole and b - a == 1 else f"{number(a)} … {number(b - 1 if whole else b)}"
        for a, b in zip(low, high, strict=True)
    ]
    top = max(int(found.counts.max(initial=0)), 1)
    picked = [chosen_range is not None and (a, b) == chosen_range for a, b in zip(low, high, strict=True)]
    bars: dict[str, Any] = {
        "type": "bar",
        "barGap": "-100%",
        "barCategoryGap": "12%",
        "barMaxWidth": 48,
        "animation": False,
    }
    return {
        "animation": False,
        "grid": {"left": 4, "right": 4, "top": 4, "bottom": 18},
        "tooltip": {**_TOOLTIP, "axisPointer": {"type": "none"}},
        "xAxis": {
            "type": "category",
            "data": names,
            "axisTick": {"show": False},
            "axisLine": {"lineStyle": {"color": _GRID}},
            "axisLabel": {
                "color": _MUTED,
                "fontSize": 10,
                "fontFamily": _FONT,
                "interval": max(math.ceil(len(names) / 4) - 1, 0),
                "hideOverlap": True,
            },
        },
        "yAxis": {"type": "value", "max": top, "show": False},
        "series": [
            {**bars, "name": "all", "data": found.counts.tolist(), "itemStyle": {"color": "rgba(128,128,128,0.28)"}},
            {**bars, "name": "chosen", "data": found.chosen.tolist(), "itemStyle": {"color": COLORS[0]}},
            {
                **bars,
                "name": "bar",
                "data": [
                    {"value": top, "itemStyle": {"color": "rgba(59,130,246,0.16)" if on else "rgba(0,0,0,0)"}}
                    for on in picked
                ],
                "tooltip": {"show": False},
                "emphasis": {"itemStyle": {"color": "rgba(59,130,246,0.12)"}},
            },
        ],
    }


def curves(panels: Sequence[Panel], last: int, *, with_axis: bool) -> dict[str, Any]:
    """The curves of one field, of one episode or of two, of which the second one's are dashed.

    Args:
        panels: of each episode.
        last: the t at the right end.
        with_axis: whether the values of t stand below.
    """
    series = [
        {
            "type": "line",
            "name": short(f"{'B ' if second else 'A ' if len(panels) > 1 else ''}{line.label}", 40) or "value",
            "data": [
                [t, None if math.isnan(value) else value]
                for t, value in zip(line.t.tolist(), line.values.tolist(), strict=True)
            ],
            "showSymbol": len(line.t) == 1,
            "symbolSize": 4,
            "step": "end" if panel.holds else False,
            "animation": False,
            "lineStyle": {"width": 1.4, "color": COLORS[at], "type": "dashed" if second else "solid"},
            "itemStyle": {"color": COLORS[at]},
        }
        for second, panel in enumerate(panels)
        for at, line in enumerate(panel.lines)
    ]
    return {
        "animation": False,
        "grid": {"left": LEFT, "right": RIGHT, "top": 6, "bottom": 20 if with_axis else 6},
        "tooltip": {**_TOOLTIP, "axisPointer": {"lineStyle": {"color": _MUTED, "type": "solid", "width": 1}}},
        "xAxis": {
            "type": "value",
            "min": 0,
            "max": max(last, 1),
            "minInterval": 1,
            "splitLine": {"show": False},
            "axisLine": {"lineStyle": {"color": _GRID}},
            "axisTick": {"show": False},
            "axisLabel": {"show": with_axis, "color": _MUTED, "fontSize": 10, "fontFamily": _FONT},
        },
        "yAxis": {
            "type": "value",
            "scale": True,
            "splitNumber": 2,
            "axisLine": {"show": False},
            "axisTick": {"show": False},
            "splitLine": {"lineStyle": {"color": _GRID}},
            "axisLabel": {"color": _MUTED, "fontSize": 10, "fontFamily": _FONT, "hideOverlap": True},
        },
        "series": series,
    }
