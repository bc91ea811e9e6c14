"""Frames that were not recorded, rendered by executing an episode again, once somebody has agreed to that."""

from __future__ import annotations

import threading
import warnings
from collections import OrderedDict
from dataclasses import dataclass, field

from gym_replay.buffer.episode import Episode
from gym_replay.buffer.reading import Readable
from gym_replay.schema.pictures import rendered_rgb
from gym_replay.viewing.frames import Encoded, encode
from gym_replay.viewing.text import short

_MOST_BYTES = 96 << 20
_MOST_FRAMES = 20_000
_PATIENCE = 20.0
"""Seconds that are waited for a frame that is not there yet."""


def recorded_environment(episode: Episode) -> str | None:
    """The id of the environment that an episode was recorded in; None where none was kept."""
    spec = (episode.snapshot.metadata.environment or {}).get("env_spec")
    name = spec.get("id") if isinstance(spec, dict) else None
    return name if isinstance(name, str) else None


def what_runs(episode: Episode) -> tuple[str, bool]:
    """What is imported and run when an episode's frames are rendered, for whoever is asked, and whether it can be.

    Nothing that the folder names is imported: the environment is the one that is registered here under the recorded id.
    """
    import gymnasium as gym

    name = recorded_environment(episode)
    spec = None if name is None else gym.registry.get(name)
    if spec is None:
        remedy = "start with --import and the package that registers it, if you trust that"
        return f"No environment is registered here as {short(name or '', 80)!r}; {remedy}.", False
    entry = spec.entry_point
    module = entry.partition(":")[0] if isinstance(entry, str) else getattr(entry, "__module__", "?")
    return (
        f"This imports the package {module.partition('.')[0]!r} ({module}), which is installed here, makes "
        f"{spec.id!r} of it with the recorded arguments as far as they are harmless, and plays the recorded actions. "
        "Nothing of the folder itself is run.",
        True,
    )


@dataclass
class _Film:
    """The frames of one episode, as far as they are rendered."""

    frames: list[Encoded] = field(default_factory=list)
    nbytes: int = 0
    error: str = ""
    ended: bool = False
    wanted: bool = True


class Renderer:
    """Renders episodes one after another, in a thread of its own, and keeps the frames of the last ones.

    Some ways to render work in the thread only that began with them, so that one thread makes all frames.

    Args:
        buffer: what the episodes are of.
    """

    def __init__(self, buffer: Readable) -> None:
        self._buffer = buffer
        self._films: OrderedDict[tuple[str, int], _Film] = OrderedDict()
        self._changed = threading.Condition()
        self._waiting: list[Episode] = []
        self._thread: threading.Thread | None = None

    def start(self, episode: Episode) -> None:
        """Begin to render an episode, unless its frames are there or on their way."""
        key = _key(episode)
        with self._changed:
            if key in self._films:
                self._films.move_to_end(key)
                return
            self._films[key] = _Film()
            self._waiting.append(episode)
            while len(self._films) > 1 and sum(film.nbytes for film in self._films.values()) > _MOST_BYTES:
                _, dropped = self._films.popitem(last=False)
                dropped.wanted = False
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._work, name="gym-replay render", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def stop(self) -> None:
        """Render nothing more; what is being rendered ends with its next frame."""
        with self._changed:
            self._waiting.clear()
            for film in self._films.values():
                film.wanted = False

    def state(self, episode: Episode) -> tuple[int, bool, str]:
        """How many frames of an episode are there, whether that is all, and why it went wrong where it did."""
        with self._changed:
            film = self._films.get(_key(episode))
            return (0, False, "") if film is None else (len(film.frames), film.ended, film.error)

    def frame(self, episode: Episode, t: int) -> Encoded | None:
        """A frame; waited for where it is on its way, None where there is none."""
        with self._changed:
            film = self._films.get(_key(episode))
            if film is None:
                return None
            self._changed.wait_for(lambda: len(film.frames) > t or film.ended, _PATIENCE)
            return film.frames[t] if t < len(film.frames) else None

    def _work(self) -> None:
        while True:
            with self._changed:
                if not self._waiting and not self._changed.wait_for(lambda: bool(self._waiting), 60):
                    self._thread = None
                    return
                episode = self._waiting.pop()  # the newest is what is looked at
                film = self._films.get(_key(episode))
            if film is not None:
                self._render(episode, film)

    def _render(self, episode: Episode, film: _Film) -> None:
        from gym_replay.replaying.replay import replay

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                for picture in replay(self._buffer, episode, render=True):
                    self._add(film, encode(rendered_rgb(picture)))
                    if not film.wanted or len(film.frames) >= _MOST_FRAMES:
                        break
        except Exception as error:  # whatever the environment raises
            film.error = f"{error}" or type(error).__name__
        with self._changed:
            film.ended = True
            self._changed.notify_all()

    def _add(self, film: _Film, frame: Encoded) -> None:
        with self._changed:
            film.frames.append(frame)
            film.nbytes += len(frame[0])
            self._changed.notify_all()


def _key(episode: Episode) -> tuple[str, int]:
    return episode.snapshot.metadata.uuid, episode.id
