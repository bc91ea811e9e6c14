"""The window: the frame, a bar with what is going on below it, and the person in front of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from gym_replay.errors import GymReplayError
from gym_replay.playing.controls import Help
from gym_replay.playing.devices import Devices
from gym_replay.playing.person import Intent, Scene
from gym_replay.playing.pilot import Pilot
from gym_replay.schema.pictures import rendered_rgb

_LEAST, _MOST = 480, 960
"""Between these is the longer side of a frame on the screen, in pixels, where whole numbers reach that."""

_WIDTH = 480
"""Least width of the window: the bar needs it."""

_MARGIN, _FONT_SIZE, _LINE = 8, 20, 20
_BLACK, _BAR, _TEXT, _KEY = (0, 0, 0), (24, 26, 32), (222, 222, 222), (130, 190, 255)
_STATES = {
    "paused": (255, 200, 60),
    "it begins": (255, 200, 60),
    "you play": (120, 230, 130),
    "the policy plays": (140, 170, 255),
}
_QUESTION = (255, 255, 255)


@contextmanager
def display(pygame: Any) -> Iterator[None]:
    """A context with a display that a window can be opened on.

    Raises:
        GymReplayError: there is none.
    """
    try:
        pygame.display.init()
        driver = pygame.display.get_driver()
        if driver in ("offscreen", "dummy") and not os.environ.get("SDL_VIDEODRIVER"):
            pygame.display.quit()  # SDL takes it by itself where there is nothing else
            raise pygame.error(f"where nobody is to see it, put SDL_VIDEODRIVER={driver} into the environment")
    except pygame.error as error:
        raise GymReplayError(
            f"play: there is no display to open a window on ({error}); play where there is one, or pass person=, a "
            "function that acts instead"
        ) from None
    try:
        yield
    finally:
        pygame.joystick.quit()
        pygame.display.quit()


class Window:
    """A person who sees the environment in a window and plays with keyboard or gamepad.

    Args:
        pygame: the module, with a :func:`display`.
        pilot: makes intents of what the devices say.
        title: of the window.
        fps: how many steps a second there are at most.
        zoom: how many pixels one of the frame takes; None for what fits a screen.
    """

    def __init__(self, pygame: Any, pilot: Pilot, *, title: str, fps: float, zoom: float | None) -> None:
        self._pygame, self._pilot, self._title = pygame, pilot, title
        self._fps, self._zoom = fps, zoom
        pygame.font.init()
        self._devices = Devices(pygame)
        self._clock = pygame.time.Clock()
        self._font = pygame.font.Font(None, _FONT_SIZE)
        self._screen: Any = None

    def __call__(self, scene: Scene) -> Intent:
        """Show the scene, wait until the next step is due, and say what the person wants."""
        self._show(scene)
        self._clock.tick(self._fps)
        seen = self._devices.look(self._pygame.event.get())
        return self._pilot.intend(seen, is_first=scene.step == 0, is_over=scene.finished is not None)

    # --- what is shown ---

    def _show(self, scene: Scene) -> None:
        pygame, frame = self._pygame, rendered_rgb(scene.frame())
        height, width = frame.shape[:2]
        scale = self._scale_of(width, height)
        window_width = self._screen.get_width() if self._screen else max(round(width * scale), _WIDTH)
        help, help_at_end = (self._wrapped(each, window_width) for each in (self._pilot.help, self._pilot.help_at_end))
        bar = (2 + max(len(help), len(help_at_end))) * _LINE + 2 * _MARGIN
        if self._screen is None:
            self._screen = pygame.display.set_mode((window_width, round(height * scale) + bar), pygame.RESIZABLE)
            pygame.display.set_caption(self._title)
        lines = self._lines(scene) + (help if scene.finished is None else help_at_end)
        screen_width, screen_height = self._screen.get_size()
        self._screen.fill(_BLACK)
        room = max(screen_height - bar, 1)
        scale = min(screen_width / width, room / height)
        picture = pygame.image.frombuffer(np.ascontiguousarray(frame).tobytes(), (width, height), "RGB")
        size = (max(round(width * scale), 1), max(round(height * scale), 1))
        picture = (pygame.transform.scale if scale >= 1 else pygame.transform.smoothscale)(picture, size)
        self._screen.blit(picture, ((screen_width - size[0]) // 2, (room - size[1]) // 2))
        self._screen.fill(_BAR, (0, room, screen_width, bar))
        for number, line in enumerate(lines):
            self._write(line, room + _MARGIN + number * _LINE)
        pygame.display.flip()

    def _scale_of(self, width: int, height: int) -> float:
        if self._zoom is not None:
            return self._zoom
        longer = max(width, height)
        if longer > _MOST:
            return _MOST / longer
        return float(max(1, -(-_LEAST // longer)))

    def _lines(self, scene: Scene) -> list[list[tuple[str, Any]]]:
        """The first lines of the bar, as texts and their colors."""
        counts = f"episode {scene.episode}    step {scene.step}    return {scene.episode_return:g}"
        if scene.finished is not None:
            return [[(counts, _TEXT)], [("the episode is over", _QUESTION)]]
        words = self._pilot.state
        color = next((color for start, color in _STATES.items() if words.lower().startswith(start)), _TEXT)
        return [[(counts, _TEXT)], [(words, color), (f"    at most {self._fps:g} steps a second", _TEXT)]]

    def _wrapped(self, help: Help, width: int) -> list[list[tuple[str, Any]]]:
        lines: list[list[tuple[str, Any]]] = [[]]
        used, room = 0, width - 2 * _MARGIN
        for key, word in help:
            pair = [(key, _KEY), (f" {word}    ", _TEXT)]
            taken = sum(self._font.size(text)[0] for text, _ in pair)
            if lines[-1] and used + taken > room:
                lines.append([])
                used = 0
            lines[-1] += pair
            used += taken
        return lines

    def _write(self, line: list[tuple[str, Any]], top: int) -> None:
        left = _MARGIN
        for text, color in line:
            self._screen.blit(self._font.render(text, True, color), (left, top))
            left += self._font.size(text)[0]
