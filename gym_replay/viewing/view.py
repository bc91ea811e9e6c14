"""A folder that is looked at: its table, its frames, and what was agreed on."""

from __future__ import annotations

import html
import secrets

from gym_replay.buffer.concat import open_source
from gym_replay.buffer.episode import Episode
from gym_replay.viewing.episodes import EpisodeTable
from gym_replay.viewing.frames import Encoded, encode, rgb_frame
from gym_replay.viewing.rendered import Renderer
from gym_replay.viewing.server import Server

VIEWS: dict[str, View] = {}
"""What is looked at in this process, by the last part of its address."""


class View:
    """A folder that is looked at; :func:`~gym_replay.view` makes one.

    Attributes:
        source: the folder, as it was given.
        address: of the page, with the token that lets one in.
        table: the episodes.
        renderer: renders frames that were not recorded.
        has_agreed: whether somebody has agreed that frames are rendered by running the recorded environment.

    Example:
        >>> with view("data/cartpole", browser=False) as shown:  # doctest: +SKIP
        ...     print(shown.address)
    """

    def __init__(self, source: str, server: Server) -> None:
        self.source = source
        self._server = server
        self._buffer = open_source(source)
        self.table = EpisodeTable(self._buffer)
        self.renderer = Renderer(self._buffer)
        self.has_agreed = False
        self._name = secrets.token_hex(4)
        self.address = f"{server.address}/{self._name}"
        VIEWS[self._name] = self

    def close(self) -> None:
        """Stop answering, and close the buffer. Closing twice is fine."""
        if VIEWS.pop(self._name, None) is not None:
            self.renderer.stop()
            self._buffer.close()

    def wait(self) -> None:
        """Return when the server ends, which is at Ctrl-C."""
        while not self._server.join(0.5):
            pass

    def __enter__(self) -> View:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"View({self.source!r}, {self.address})"

    def _repr_html_(self) -> str:
        address = html.escape(self.address, quote=True)
        return f'<a href="{address}" target="_blank" rel="noreferrer">{html.escape(self.source)}</a>'

    # --- what the page asks ---

    def address_of(self, episode: Episode) -> str:
        """The address of an episode's frames, to which a field and t are added."""
        part = self.table.part_of(episode)
        return f"/frame/{self._name}/{part}/{episode.snapshot.metadata.uuid[:8]}/{episode.id}"

    def frame(self, part: int, uuid: str, episode_id: int, field: str, t: int) -> Encoded | None:
        """A frame; ``field`` is the place of an image field among the fields, or ``r`` for rendered ones.

        Raises:
            LookupError: there is no such episode, field or row.
        """
        episode = self.table.find(part, uuid, episode_id)
        if field == "r":
            return self.renderer.frame(episode, t) if self.has_agreed else None
        name = list(episode)[int(field)]
        return encode(rgb_frame(episode, name, t))  # the browser keeps it
