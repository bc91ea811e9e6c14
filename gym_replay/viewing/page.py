"""The page: its two sides, the bar above them, the keys, and what is answered under which address.

Everything that a folder holds, names, strings and labels, goes to the browser as data that the library writes as text.
"""

from __future__ import annotations

from pathlib import Path
from string import Template
from typing import Any

import nicegui
from fastapi import HTTPException, Response
from nicegui import run, ui

from gym_replay.errors import GymReplayError, printable
from gym_replay.viewing.browsing import Browser
from gym_replay.viewing.charts import LEFT, RIGHT
from gym_replay.viewing.frames import written
from gym_replay.viewing.player import Player
from gym_replay.viewing.text import counted
from gym_replay.viewing.view import VIEWS, View

_STYLE = Template(Path(__file__).with_name("page.css").read_text()).substitute(
    left=LEFT, right=RIGHT, both=LEFT + RIGHT
)

_EVERY = 1.0
"""Seconds between two looks at whether the buffer has grown."""

_FRAME_HEADERS = {"cache-control": "private, max-age=600"}

_KEYS = {
    "← →": "one step back, on; with Shift ten",
    "Space": "play, pause",
    "Home End": "first, last step",
    "↑ ↓": "previous, next episode",
    "g b": "mark the episode good, bad; again to take it back",
    "l": "write a label; Enter saves it",
    "c": "compare with another episode",
    "d": "dark, light",
    "?": "this list",
}


def _view(name: str) -> View:
    if name not in VIEWS:
        raise HTTPException(404, "this view was closed")
    return VIEWS[name]


def _frame(name: str, part: int, uuid: str, episode: int, field: str, t: int) -> Response:
    try:
        found = _view(name).frame(part, uuid, episode, field, t)
    except (GymReplayError, LookupError, ValueError, OSError) as error:
        return Response(written(printable(str(error))), 404, media_type="image/svg+xml")
    if found is None:
        return Response(written("not there yet"), 404, media_type="image/svg+xml")
    return Response(found[0], media_type=found[1], headers=_FRAME_HEADERS)


def _page(name: str) -> None:
    Page(_view(name))


def register() -> None:
    """Have the page and its frames answered by the server of this process."""
    ui.page("/{name}", title="gym-replay")(_page)
    nicegui.app.get("/frame/{name}/{part}/{uuid}/{episode}/{field}/{t}")(_frame)


class Page:
    """The page of a view in one browser window.

    Args:
        view: what is looked at.
    """

    def __init__(self, view: View) -> None:
        self._view = view
        self._moment, self._count = view.table.moment, len(view.table)
        ui.add_css(_STYLE)
        ui.colors(primary="#2563eb")
        self._dark = ui.dark_mode(None)
        self._build_top()
        with ui.element("div").classes("gr-main"):
            with ui.element("div").classes("gr-left"):
                self._browser = Browser(view.table, self._open)
            self._player = Player(view, on_label=self._browser.show_rows, on_shown=self._mark)
        ui.keyboard(self._pressed, repeating=True)
        ui.timer(0.05, self._begin, once=True)
        ui.timer(_EVERY, self._look, immediate=False)

    def _build_top(self) -> None:
        with ui.element("div").classes("gr-top"):
            ui.label("gym-replay").classes("gr-name")
            ui.label(printable(self._view.source)).classes("gr-path")
            self._counts = ui.label().classes("gr-counts")
            self._live = ui.label().classes("gr-live")
            ui.element("div").classes("gr-space")
            for icon, tip, what in (
                ("dark_mode", "dark, light (d)", self._toggle_dark),
                ("keyboard", "keys (?)", self._show_keys),
            ):
                with (
                    ui.button(icon=icon, on_click=what, color=None).props("flat dense round size=sm").classes("gr-tool")
                ):
                    ui.tooltip(tip)
        self._show_counts()

    def _show_counts(self) -> None:
        table = self._view.table
        self._counts.text = f"{counted(len(table), 'episode')} · {counted(table.num_steps, 'step')}"

    async def _begin(self) -> None:
        await self._browser.show()
        self._open_one()

    def _open_one(self) -> None:
        """Open the first episode; of a ring the newest, because the oldest may leave at any moment."""
        if len(chosen := self._browser.chosen):
            self._open(int(chosen[-1 if self._view.table.buffer.metadata.circular else 0]))

    def _open(self, index: int) -> None:
        self._player.open(index)

    def _mark(self) -> None:
        self._browser.mark([each.index for each in self._player.shown if each.index is not None])

    async def _look(self) -> None:
        """See whether the buffer has grown."""
        table = self._view.table
        try:
            await run.io_bound(table.refresh)
        except (GymReplayError, OSError) as error:
            self._live.text = str(error)
            self._live.classes("gr-lost")
            return
        if self._moment == table.moment:
            self._live.text = ""
            return
        grown, self._moment, self._count = len(table) - self._count, table.moment, len(table)
        self._live.text = f"● live +{grown:,}" if grown > 0 else "● live"
        self._show_counts()
        self._player.follow()
        await self._browser.show()
        if not self._player.shown:
            self._open_one()

    # --- keys ---

    def _pressed(self, event: Any) -> None:
        if not event.action.keydown or event.modifiers.ctrl or event.modifiers.meta or event.modifiers.alt:
            return
        key, player = event.key.name, self._player
        far = 10 if event.modifiers.shift else 1
        moves = {"ArrowLeft": -far, "ArrowRight": far, "Home": -(1 << 60), "End": 1 << 60}
        if key in moves:
            player.step(moves[key])
        elif key in ("ArrowUp", "ArrowDown"):
            self._go_to_neighbour(1 if key == "ArrowDown" else -1)
        elif not event.action.repeat:
            self._pressed_once(key)

    def _pressed_once(self, key: str) -> None:
        player = self._player
        runs = {
            " ": player.toggle_play,
            "g": lambda: player.judge("good"),
            "b": lambda: player.judge("bad"),
            "c": player.toggle_compare,
            "l": self._write_label,
            "d": self._toggle_dark,
            "?": self._show_keys,
        }
        if key in runs:
            runs[key]()

    def _write_label(self) -> None:
        if self._player.shown:
            self._player.label_input.run_method("focus")

    def _go_to_neighbour(self, step: int) -> None:
        shown = self._player.shown
        if shown and shown[-1].index is not None:
            to = self._browser.neighbour(shown[-1].index, step)
            if to is not None:
                self._open(to)

    async def _toggle_dark(self) -> None:
        is_dark = await ui.run_javascript("document.body.classList.contains('body--dark')")
        self._dark.set_value(not is_dark)

    def _show_keys(self) -> None:
        with ui.dialog() as dialog, ui.card().classes("gr-dialog"):
            ui.label("Keys").classes("gr-title")
            with ui.element("div").classes("gr-help"):
                for keys, meaning in _KEYS.items():
                    with ui.element("div").classes("gr-row").style("gap: 4px"):
                        for key in keys.split():
                            ui.label(key).classes("gr-key")
                    ui.label(meaning)
        dialog.open()
