"""The server of the page: on 127.0.0.1 only, below a random token, and for browsers that nobody else sent there.

There is one server in a process, with any number of views. Everything that it answers, the library's own files and
sockets included, lies below ``/<token>``. All else is answered with 403 before anything looks at it.
"""

from __future__ import annotations

import logging
import secrets
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from gym_replay.errors import StorageError
from gym_replay.extras import require
from gym_replay.viewing.frames import EXTRA

HOST = "127.0.0.1"
_PATIENCE = 30.0
"""Seconds that the server may take to answer."""

_HEADERS = {
    "content-security-policy": "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; object-src 'none'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cross-origin-resource-policy": "same-origin",
}
"""Headers of every answer: what the page may load comes from here, and the address with its token goes nowhere."""

Scope = Mapping[str, Any]
App = Callable[[Any, Any, Any], Awaitable[None]]


class Guard:
    """An ASGI application in front of another one, that lets only requests through which know the token.

    A request must name this server as its host, so that no other name that leads here (DNS rebinding) is answered, and
    where it says from which page it comes, that must be one of this server's own.

    Args:
        app: what is guarded.
        token: the first part of every path.
        port: of the server.
    """

    def __init__(self, app: App, token: str, port: int) -> None:
        self._app, self._prefix = app, f"/{token}"
        self._hosts = {f"{name}:{port}".encode() for name in (HOST, "localhost")}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
        elif self._is_welcome(scope):
            await self._app(scope, receive, _with_headers(send))
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})
        else:
            headers = [(b"content-type", b"text/plain"), *_encoded(_HEADERS)]
            await send({"type": "http.response.start", "status": 403, "headers": headers})
            await send({"type": "http.response.body", "body": b"Use the address that gym-replay view printed.\n"})

    def _is_welcome(self, scope: Scope) -> bool:
        path: str = scope["path"]
        first = path[: len(self._prefix)].encode()
        if not secrets.compare_digest(first, self._prefix.encode()) or path[len(self._prefix) :][:1] not in ("", "/"):
            return False
        hosts = [value for name, value in scope["headers"] if name == b"host"]
        origins = [value for name, value in scope["headers"] if name == b"origin"]
        allowed = {b"http://" + host for host in self._hosts}
        return len(hosts) == 1 and hosts[0] in self._hosts and all(origin in allowed for origin in origins)


def _encoded(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode()) for name, value in headers.items()]


def _with_headers(send: Any) -> Any:
    async def sends(message: Any) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), *_encoded(_HEADERS)]}
        await send(message)

    return sends


class Server:
    """The server of this process, in a thread of its own.

    Args:
        port: where it listens; 0 for any free one.

    Attributes:
        address: of everything below the token, without a slash at its end.

    Raises:
        MissingExtraError: the package of the page is not installed.
        StorageError: the port is taken.
    """

    def __init__(self, port: int = 0) -> None:
        nicegui = require("nicegui", EXTRA, "the page")
        import uvicorn
        from fastapi import FastAPI

        listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((HOST, port))
        except OSError as error:
            listening.close()
            raise StorageError(error.errno, f"{error.strerror}; choose another port", f"{HOST}:{port}") from error
        self.port: int = listening.getsockname()[1]
        token = secrets.token_urlsafe(24)
        self.address = f"http://{HOST}:{self.port}/{token}"
        app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
        nicegui.ui.run_with(
            app,
            mount_path=f"/{token}",
            title="gym-replay",
            dark=None,
            tailwind=False,
            show_welcome_message=False,
            gzip_middleware_factory=None,
            reconnect_timeout=30.0,
        )
        config = uvicorn.Config(
            Guard(app, token, self.port),
            log_config=None,
            access_log=False,
            ws_max_size=1 << 20,
            timeout_graceful_shutdown=1,
        )
        for name in ("uvicorn.error", "uvicorn.access", "uvicorn.asgi"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [listening]}, name="gym-replay view", daemon=True
        )
        self._thread.start()
        until = time.monotonic() + _PATIENCE
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > until:
                raise StorageError(None, "the server of the page did not start", f"{HOST}:{self.port}")
            time.sleep(0.01)

    def join(self, seconds: float) -> bool:
        """Wait for the server's end; whether it has ended."""
        self._thread.join(seconds)
        return not self._thread.is_alive()
