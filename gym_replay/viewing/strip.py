"""The strip below the frames of a video: which step it is, and the curves of the reward and of the return so far."""

from __future__ import annotations

import numpy as np

from gym_replay.buffer.episode import Episode
from gym_replay.errors import FieldError
from gym_replay.extras import require
from gym_replay.schema.arrays import Floats
from gym_replay.schema.pictures import Rgb
from gym_replay.viewing.film import EXTRA, font, rewards_of
from gym_replay.viewing.text import number

HEIGHT = 84
_LINE, _CURVE = 18, 32
"""Pixels of the line of text, and of each of the two curves below it."""

_BACK, _TEXT, _CURSOR = (18, 20, 24), (226, 228, 232), (120, 124, 132)
_COLORS = {"reward": (240, 160, 70), "return": (90, 165, 250)}


class Strip:
    """The strip of one episode. The curves are drawn once; beside the cursor, what is still to come is dimmed.

    In frame t the reward is that of the step that led there, and the return the sum of all rewards so far.

    Args:
        episode: which.
        index: what it is called.
        width: of the frames, in pixels.

    Raises:
        FieldError: the episode has no rewards of one number each.
    """

    def __init__(self, episode: Episode, index: int, width: int) -> None:
        rewards = rewards_of(episode)
        if rewards is None:
            raise FieldError("strip=True needs a field 'reward' of one number a step")
        self._name, self._width, self._length = f"episode {index}", width, len(rewards)
        self._curves = {
            "reward": np.concatenate([rewards[:1], rewards]),
            "return": np.concatenate([[0.0], np.cumsum(rewards)]),
        }
        self._drawing = require("PIL.ImageDraw", EXTRA, "the strip")
        self._pillow = require("PIL.Image", EXTRA, "the strip")
        self._lit = self._drawn()
        self._dimmed = (self._lit * 0.45 + np.array(_BACK) * 0.55).astype(np.uint8)

    def below(self, picture: Rgb, t: int) -> Rgb:
        """A frame of the strip's width, with the strip below it."""
        t = min(t, self._length)
        x = self._x(t)
        strip = self._dimmed.copy()
        strip[:, :x] = self._lit[:, :x]
        strip[_LINE:, x : x + 1] = _CURSOR
        image = self._pillow.fromarray(strip)
        draw = self._drawing.Draw(image)
        draw.text((4, 2), f"{self._name}   step {t} of {self._length}", fill=_TEXT, font=font(12))
        for at, (name, values) in enumerate(self._curves.items()):
            shown = number(values[t]) if t or name == "return" else ""
            text = f"{name} {shown}"
            draw.text(
                (4, _LINE + at * _CURVE), text, fill=_COLORS[name], font=font(12), stroke_width=2, stroke_fill=_BACK
            )
        return np.concatenate([picture, np.asarray(image)])

    def _x(self, t: int) -> int:
        return int((self._width - 1) * t / max(self._length, 1))

    def _drawn(self) -> Rgb:
        image = self._pillow.new("RGB", (self._width, HEIGHT), _BACK)
        draw = self._drawing.Draw(image)
        for at, (name, values) in enumerate(self._curves.items()):
            top = _LINE + at * _CURVE
            draw.line(self._points(values, top), fill=_COLORS[name], width=1)
        return np.asarray(image)

    def _points(self, values: Floats, top: int) -> list[tuple[int, float]]:
        """The line of a curve, from its least value at the bottom to its largest at the top."""
        finite = values[np.isfinite(values)]
        low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 0.0)
        span = high - low if 0 < high - low < np.inf else 1.0
        shares = np.clip(np.nan_to_num((values - low) / span, nan=0.0), 0, 1)
        bottom, room = top + _CURVE - 4, _CURVE - 8
        return [(self._x(t), bottom - room * share) for t, share in enumerate(shares.tolist())]
