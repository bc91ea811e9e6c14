"""view: look at a folder in a browser."""

from __future__ import annotations

import os
import threading
import webbrowser

from gym_replay.extras import require
from gym_replay.files.folders import local_path
from gym_replay.viewing.frames import EXTRA
from gym_replay.viewing.server import Server
from gym_replay.viewing.view import View

_starting = threading.Lock()
_servers: list[Server] = []
"""None, or the one of this process."""


def view(source: str | os.PathLike[str], *, port: int = 0, browser: bool = True) -> View:
    """Look at a folder on a page of this machine's browser: episodes, frames, curves, outliers, labels.

    The page is served by this process on 127.0.0.1, to whoever has the address with its random token, and loads nothing
    from elsewhere. It reads the folder and shows what is recorded meanwhile; labels are written to ``labels.json`` in
    the folder. No code of the folder is run; frames that were not recorded are rendered by the recorded environment as
    it is installed here, once somebody agreed on the page.

    Args:
        source: the folder of a buffer, a folder of such folders, or a pattern.
        port: where the page is served; 0 for any free one. The first call in a process decides.
        browser: whether a browser is opened.

    Returns:
        A :class:`View`, which serves until it is closed or the process ends.

    Raises:
        BufferNotFoundError: there is no buffer.
        MissingExtraError: the extra ``view`` is not installed.
        StorageError: the port is taken.

    Example:
        >>> shown = view("data/cartpole")  # doctest: +SKIP
        >>> shown.close()  # doctest: +SKIP
    """
    for module in ("nicegui", "PIL.Image"):
        require(module, EXTRA, "the page")
    text = local_path(source)
    with _starting:
        if not _servers:
            from gym_replay.viewing import page  # which needs the extra

            page.register()
            _servers.append(Server(port))
    found = View(text, _servers[0])
    if browser:
        webbrowser.open(found.address)
    return found
