"""The right side of the page: one episode, or two one over the other, as frames, curves and values in step."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from nicegui import ui

from gym_replay.buffer.episode import Episode
from gym_replay.errors import GymReplayError
from gym_replay.schema.pictures import image_fields
from gym_replay.viewing import charts
from gym_replay.viewing.cameras import Cameras
from gym_replay.viewing.curves import MOST_LINES, last_t, marks, panel, panel_names, values_at
from gym_replay.viewing.episodes import NO_LAST, end_of, recorded_rate
from gym_replay.viewing.text import number, short

if TYPE_CHECKING:
    from gym_replay.viewing.view import View

_TICKS = 30
"""Frames a second, at most, while an episode plays."""

_SPEEDS = {speed: f"{speed:g}x" for speed in (0.25, 0.5, 1, 2, 4, 8, 16)}
_FIRST_PANELS = 5
_VALUES_EVERY = 0.15
"""Seconds between two looks at the values while an episode plays."""


@dataclass
class Shown:
    """An episode that is looked at.

    Attributes:
        episode: the episode.
        index: where the table has it; None once it has left the buffer.
    """

    episode: Episode
    index: int | None


class Player:
    """Shows what was chosen.

    Args:
        view: what is looked at.
        on_label: called after a label was changed.
        on_shown: called after other episodes are shown.
    """

    def __init__(self, view: View, on_label: Callable[[], None], on_shown: Callable[[], None]) -> None:
        self._view, self._on_label, self._on_shown = view, on_label, on_shown
        self.shown: list[Shown] = []
        self.t, self._last = 0, 0
        self._playing, self._since, self._position, self._values_at = False, 0.0, 0.0, 0.0
        self._speed = 1.0
        self._chosen_panels: list[str] | None = None
        self._compares = False
        self.label_input: Any = None
        self._root = ui.element("div").classes("gr-right")
        self._timer = ui.timer(1 / _TICKS, self._tick, active=False)
        self._cameras = Cameras(view, self._build)
        with self._root:
            self._empty("There are no episodes yet; what is recorded appears here." if not len(view.table) else "…")

    def _empty(self, text: str) -> None:
        with ui.element("div").classes("gr-panel gr-empty"):
            ui.label(text)

    # --- which episodes ---

    def open(self, index: int) -> None:
        """Look at an episode; where two are compared, instead of the second one."""
        try:
            found = Shown(self._view.table.episode(index), index)
        except IndexError:
            return
        if self._compares and self.shown:
            self.shown = [self.shown[0], found]
        else:
            self.shown, self.t = [found], 0
        self._pause()
        self._build()
        self._on_shown()

    def toggle_compare(self) -> None:
        """Keep the episode, and show the next one that is chosen below it; or end that."""
        if not self.shown:
            return
        self._compares = not self._compares
        self.shown = self.shown[:1]
        self._build()
        self._on_shown()

    def follow(self) -> None:
        """Find the episodes again in a table that has changed."""
        for each in self.shown:
            each.index = self._view.table.index_of(each.episode)

    # --- what is seen of them ---

    def _build(self) -> None:
        self._last = max(last_t(each.episode) for each in self.shown)
        self._root.clear()
        with self._root:
            try:
                with ui.element("div").classes("gr-panel"):
                    self._build_heads()
                    with ui.element("div").classes("gr-stage"):
                        self._cameras.build([each.episode for each in self.shown])
                        self._values = ui.element("div").classes(f"gr-values {'two' if len(self.shown) > 1 else 'one'}")
                        self._build_values()
                with ui.element("div").classes("gr-panel"):
                    self._build_transport()
                    self._build_time()
            except (GymReplayError, ValueError, OSError) as error:
                self._root.clear()
                self._empty(f"This episode cannot be shown: {error}")
                return
        self.go(self.t)

    def _build_heads(self) -> None:
        for at, each in enumerate(self.shown):
            with ui.element("div").classes("gr-row").style("justify-content: space-between"):
                with ui.element("div").classes("gr-row"):
                    letter = f"{'AB'[at]} · " if self._compares else ""
                    ui.label(f"{letter}{self._view.table.name_of(each.episode)}").classes("gr-title gr-episode")
                    for text, kind in self._badges(each):
                        ui.label(text).classes(f"gr-badge {kind}")
                if at == 0:
                    self._build_judging(each)
            if self._compares and len(self.shown) == 1:
                ui.label("B · choose an episode on the left to compare with").classes("gr-small")

    def _badges(self, each: Shown) -> list[tuple[str, str]]:
        episode = each.episode
        found = [(f"{len(episode):,} steps", "")]
        row = dict(zip([column.name for column in self._view.table.columns], self._row(each), strict=False))
        if row.get("episode_return"):
            found.insert(0, (f"return {row['episode_return']}", ""))
        if row.get("episode_seed"):
            found.append((f"seed {row['episode_seed']}", ""))
        found += [(word, "missing" if word == NO_LAST else word) for word in end_of(episode).split(", ") if word]
        return found

    def _row(self, each: Shown) -> list[str]:
        return [] if each.index is None else self._view.table.rows([each.index])[0]

    def _build_judging(self, each: Shown) -> None:
        label = "" if each.index is None else self._view.table.label(each.index)
        with ui.element("div").classes("gr-row").style("gap: 4px"):
            for text, icon in (("good", "thumb_up"), ("bad", "thumb_down")):
                button = _tool(icon, f"{text} ({text[0]})", partial(self.judge, text))
                button.classes(f"{text} {'on' if label == text else ''}")
            self.label_input = (
                ui.input(placeholder="label (l)", value=label)
                .props('outlined dense maxlength="200" autocomplete="off"')
                .classes("gr-label")
                .on("keydown.enter", lambda: self.judge(self.label_input.value, toggles=False))
                .on("blur", lambda: self.judge(self.label_input.value, toggles=False))
            )
            compare = _tool("compare_arrows", "compare with another episode (c)", self.toggle_compare)
            compare.classes(f"gr-compare {'on' if self._compares else ''}")

    def judge(self, text: str, *, toggles: bool = True) -> None:
        """Label the first episode; with the label that it has, take it away."""
        if not self.shown or self.shown[0].index is None:
            return
        index = self.shown[0].index
        now = self._view.table.label(index)
        text = "" if toggles and now == text else (text or "").strip()
        if text == now:
            return
        try:
            self._view.table.set_label(index, text)
        except (GymReplayError, OSError) as error:
            ui.notify(str(error), type="negative", multi_line=True)
            return
        self._build()
        self._on_label()

    # --- transport ---

    def _build_transport(self) -> None:
        with ui.element("div").classes("gr-transport"):
            _tool("first_page", "first (Home)", lambda: self.go(0))
            _tool("chevron_left", "one step back (←)", lambda: self.step(-1))
            self._play = _tool("play_arrow", "play, pause (Space)", self.toggle_play).classes("gr-play")
            _tool("chevron_right", "one step on (→)", lambda: self.step(1))
            _tool("last_page", "last (End)", lambda: self.go(self._last))
            self._clock = ui.label().classes("gr-number gr-clock")
            rate = self.rate
            speed = ui.select(_SPEEDS, value=self._speed, on_change=self._speed_changed)
            speed.props("outlined dense options-dense").style("width: 76px")
            ui.label(f"of {number(rate, 3)} steps a second").classes("gr-small")

    @property
    def rate(self) -> float:
        """Steps a second as the episode was recorded, 30 where that was not in real time."""
        return recorded_rate(self.shown[0].episode)

    def _speed_changed(self, event: Any) -> None:
        self._speed = float(event.value)
        self._since, self._position = time.monotonic(), float(self.t)

    def toggle_play(self) -> None:
        """Play, from the beginning where the end is reached; or pause."""
        if self._playing or not self.shown:
            self._pause()
            return
        if self.t >= self._last:
            self.go(0)
        self._playing, self._since, self._position = True, time.monotonic(), float(self.t)
        self._play.props("icon=pause")
        self._timer.activate()

    def _pause(self) -> None:
        if self._playing:
            self._playing = False
            self._timer.deactivate()
            self._play.props("icon=play_arrow")
            self._show_values()

    def _tick(self) -> None:
        now = time.monotonic()
        t = int(self._position + (now - self._since) * self.rate * self._speed)
        if t > self.t:
            self.go(min(t, self._last), playing=True)
        if self.t >= self._last:
            self._pause()

    def step(self, steps: int) -> None:
        """Go some steps on, or back."""
        self._pause()
        self.go(self.t + steps)

    def go(self, t: int, *, playing: bool = False) -> None:
        """Show the row t of the episodes: of a shorter one its last."""
        if not self.shown:
            return
        self.t = t = min(max(t, 0), self._last)
        if self._playing and not playing:
            self._since, self._position = time.monotonic(), float(t)
        self._cameras.go(t)
        self._clock.text = f"{t:,} / {self._last:,}"
        if self._slider.value != t:
            self._slider.value = t
        self._cursor.style(f"--at: {t / max(self._last, 1):.6f}")
        if not playing or time.monotonic() - self._values_at > _VALUES_EVERY:
            self._show_values()

    # --- time ---

    def _build_time(self) -> None:
        names = list(dict.fromkeys(name for each in self.shown for name in panel_names(each.episode)))
        if self._chosen_panels is None:
            self._chosen_panels = names[:_FIRST_PANELS]
        drawn = [name for name in names if name in self._chosen_panels] or names[:_FIRST_PANELS]
        with ui.element("div").classes("gr-time"):
            with ui.element("div").classes("gr-marks"):
                for each in self.shown:
                    for mark in marks(each.episode):
                        element = ui.element("div").classes(f"gr-mark {mark.kind}")
                        element.style(f"left: {100 * mark.t / max(self._last, 1):.4f}%")
                        with element:
                            ui.tooltip(mark.text)
            with ui.element("div").classes("gr-scrubber"):
                self._slider = ui.slider(min=0, max=max(self._last, 1), value=self.t, on_change=self._scrubbed)
                self._slider.props("dense").on("focusin", js_handler="(event) => event.target.blur()")
            for name in drawn:
                self._build_curves(name, is_first=name == drawn[0], is_last=name == drawn[-1])
            self._cursor = ui.element("div").classes("gr-cursor")
        if len(names) > 1:
            options = {at: short(name, 60) for at, name in enumerate(names)}
            chosen = [at for at, name in enumerate(names) if name in drawn]
            with ui.element("div").classes("gr-row").style("margin-top: 10px; flex-wrap: nowrap"):
                ui.label("curves of").classes("gr-small").style("white-space: nowrap")
                select = ui.select(options, value=chosen, multiple=True)
                select.props("outlined dense options-dense use-chips").classes("gr-panels").style("flex: 1 1 0")
            select.on_value_change(lambda event: self._panels_changed([names[at] for at in event.value]))

    def _build_curves(self, name: str, *, is_first: bool, is_last: bool) -> None:
        try:
            panels = [panel(each.episode, name) for each in self.shown if name in panel_names(each.episode)]
        except GymReplayError as error:
            ui.label(f"{short(name, 80)}: {error}").classes("gr-small")
            return
        with ui.element("div").classes("gr-curve-name"):
            ui.label(short(name, 80)).classes("field")
            if panels[0].elements > 1:
                for at, line in enumerate(panels[0].lines):
                    with ui.element("span").classes("gr-legend"):
                        ui.element("i").style(f"background: {charts.COLORS[at]}")
                        ui.label(line.label)
            if panels[0].elements > MOST_LINES:
                ui.label(f"the first {MOST_LINES} of {panels[0].elements}").classes("gr-legend")
            if len(panels) > 1 and is_first:
                ui.label("A solid, B dashed").classes("gr-legend")
        holder = ui.element("div").on(
            "click",
            lambda event: self._clicked(event.args["x"], event.args["width"]),
            js_handler="(event) => emit({x: event.offsetX, width: event.target.clientWidth})",
        )
        with holder:
            ui.echart(charts.curves(panels, self._last, with_axis=is_last)).classes("gr-curve")

    def _panels_changed(self, names: list[str]) -> None:
        self._chosen_panels = names
        self._build()

    def _clicked(self, x: float, width: float) -> None:
        inside = width - charts.LEFT - charts.RIGHT
        if inside > 0:
            self.go(round((x - charts.LEFT) / inside * self._last))

    def _scrubbed(self, event: Any) -> None:
        if event.value is not None and int(event.value) != self.t:
            self.go(int(event.value))

    # --- values ---

    def _build_values(self) -> None:
        self._cells: list[list[Any]] = []
        with self._values:
            for name in self._value_names():
                ui.label(short(name, 80)).classes("name")
                self._cells.append([ui.label().classes("value") for _ in self.shown])

    def _show_values(self) -> None:
        self._values_at = time.monotonic()
        names = self._value_names()
        for at, each in enumerate(self.shown):
            found = dict(values_at(each.episode, names, min(self.t, last_t(each.episode))))
            for name, cells in zip(names, self._cells, strict=True):
                cells[at].text = found[name]

    def _value_names(self) -> list[str]:
        """The fields of which values are written beside the frames: those that are no frames."""
        fields = self.shown[0].episode.snapshot.metadata.fields
        images = image_fields(fields)
        return [name for name in fields if name not in images]


def _tool(icon: str, tip: str, run: Callable[[], Any]) -> Any:
    button = ui.button(icon=icon, on_click=run, color=None).props("flat dense no-caps").classes("gr-tool")
    button.on("mousedown.prevent", js_handler="() => {}")  # keys go on to be the page's
    with button:
        ui.tooltip(tip).props("delay=500")
    return button
