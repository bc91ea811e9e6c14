"""The frames of the episodes that are looked at: recorded ones of every image field, or rendered ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from nicegui import ui

from gym_replay.buffer.episode import Episode
from gym_replay.schema.pictures import image_fields, to_rgb
from gym_replay.viewing.curves import last_t
from gym_replay.viewing.rendered import recorded_environment, what_runs
from gym_replay.viewing.text import short

if TYPE_CHECKING:
    from gym_replay.viewing.view import View

_COARSE = 160
"""Frames with sides of up to so many pixels are enlarged without smoothing."""

_NONE = "No frames: no field is an image, and no environment was recorded to render them anew."


@dataclass
class _Film:
    """The frames of one episode.

    Attributes:
        episode: which.
        holder: the element that everything is in.
        frames: the elements that show a frame, each with the address of the frames of one field.
        progress: the label that says how far rendering is, where frames are rendered.
    """

    episode: Episode
    holder: Any
    frames: list[tuple[Any, str]] = field(default_factory=list)
    progress: Any = None


class Cameras:
    """Shows frames of one or two episodes, in step.

    Args:
        view: what is looked at.
        on_agreed: called once somebody has agreed to rendering; it builds anew.
    """

    def __init__(self, view: View, on_agreed: Callable[[], None]) -> None:
        self._view, self._on_agreed = view, on_agreed
        self._films: list[_Film] = []
        self._rendering = ui.timer(0.3, self._show_progress, active=False)

    def build(self, episodes: Sequence[Episode]) -> None:
        """Make the elements for the frames of these episodes, where the caller is."""
        self._films = []
        with ui.element("div").classes("gr-cameras"):
            for episode in episodes:
                film = _Film(episode, ui.element("div").classes(f"gr-film {'two' if len(episodes) > 1 else ''}"))
                with film.holder:
                    self._build_film(film)
                self._films.append(film)
                if not film.frames:
                    break  # the same holds for the other one

    def go(self, t: int) -> None:
        """Show row t of each episode, of a shorter one its last."""
        for film in self._films:
            mine = min(t, last_t(film.episode))
            for frame, address in film.frames:
                frame.set_source(f"{address}/{mine}")

    def _build_film(self, film: _Film) -> None:
        fields = film.episode.snapshot.metadata.fields
        names = image_fields(fields)
        for name in names:
            self._build_camera(film, name, list(fields).index(name), fields[name].shape)
        if names:
            return
        if recorded_environment(film.episode) is None:
            self._show_no_frames(film, _NONE)
        elif self._view.has_agreed:
            self._build_rendered(film)
        else:
            with ui.element("div").classes("gr-noframes"):
                ui.label("No frames were recorded.")
                button = ui.button("Render them anew …", on_click=lambda: self._ask(film.episode))
                button.props("outline dense no-caps")

    def _build_camera(self, film: _Film, caption: str, field_index: int, shape: tuple[int, ...]) -> None:
        height, width = to_rgb(np.zeros(shape, np.uint8)).shape[:2]
        with ui.element("div").classes("gr-camera").style(f"--aspect: {width / height:.4f}"):
            frame = ui.interactive_image(size=(width, height), sanitize=False).classes("gr-frame")
            if max(width, height) <= _COARSE:
                frame.classes("coarse")
            ui.label(short(caption, 60)).classes("gr-small")
            film.frames.append((frame, f"{self._view.address_of(film.episode)}/{field_index}"))

    def _show_no_frames(self, film: _Film, text: str) -> None:
        film.frames, film.progress = [], None
        film.holder.clear()
        with film.holder, ui.element("div").classes("gr-noframes"):
            ui.label(text)

    # --- rendered ---

    def _build_rendered(self, film: _Film) -> None:
        self._view.renderer.start(film.episode)
        with ui.element("div").classes("gr-camera") as camera:
            frame = ui.interactive_image(size=(3, 2), sanitize=False).classes("gr-frame")
            frame.on("loaded", lambda event: _fit(camera, frame, event.args), ["width", "height"])
            film.progress = ui.label("rendering …").classes("gr-small gr-progress")
            film.frames.append((frame, f"{self._view.address_of(film.episode)}/r"))
        self._rendering.activate()

    def _ask(self, episode: Episode) -> None:
        text, is_possible = what_runs(episode)
        with ui.dialog() as dialog, ui.card().classes("gr-dialog"):
            ui.label("Render frames anew?").classes("gr-title")
            ui.label(text)
            with ui.element("div").classes("gr-row").style("justify-content: flex-end; width: 100%"):
                ui.button("Cancel", on_click=dialog.close).props("flat no-caps")
                if is_possible:
                    ui.button("Run it", on_click=self._agree).props("unelevated no-caps")
        dialog.open()

    def _agree(self) -> None:
        self._view.has_agreed = True
        self._on_agreed()

    def _show_progress(self) -> None:
        running = False
        for film in self._films:
            if film.progress is None:
                continue
            count, ended, error = self._view.renderer.state(film.episode)
            running = running or not ended
            if error and not count:
                self._show_no_frames(film, f"Not rendered: {short(error)}")
                continue
            so_far = f"{count} frames" if ended else f"{count} of {len(film.episode) + 1} frames"
            rendered = f"rendered anew by replaying the actions, not recorded · {so_far}"
            film.progress.text = f"{rendered} · {short(error)}" if error else rendered
        if not running:
            self._rendering.deactivate()


def _fit(camera: Any, frame: Any, found: dict[str, float]) -> None:
    """Give a camera the shape of its pictures once one of them was seen."""
    width, height = found.get("width"), found.get("height")
    if width and height and frame.props.get("size") != [width, height]:
        frame.props["size"] = [width, height]
        camera.style(f"--aspect: {width / height:.4f}")
