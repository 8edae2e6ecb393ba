"""The live page's server: three answers, read-only."""

from __future__ import annotations

import hashlib
import ipaddress
import socket
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fedlightning.errors import EnvironmentFailure
from fedlightning.watching.page import POLICY, live_part, whole_page
from fedlightning.watching.runs import RunFolders

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

__all__ = ["LivePage", "application", "is_loopback", "listen", "may_ask", "serve"]

_HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_FRESH = 1.0


class LivePage:
    """The page of some folders, drawn again at most once a second, and only if files have changed.

    Args:
        folders: Folders that contain runs, at any depth; they may appear later.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self.title = ", ".join(folder.resolve().name for folder in folders)
        self._folders = RunFolders(folders)
        self._lock = threading.Lock()  # requests come in threads; matplotlib is not made for them
        self._read_at = -_FRESH
        self._runs: list[object] | None = None
        self._live = ""

    def live(self) -> str:
        """Return the part that changes."""
        with self._lock:
            if time.monotonic() - self._read_at >= _FRESH:
                runs = self._folders.read()
                if self._runs is None or [id(r) for r in runs] != [id(r) for r in self._runs]:
                    self._live = live_part(runs, [str(each) for each in self._folders.folders])
                    self._runs = list(runs)
                self._read_at = time.monotonic()
            return self._live

    def whole(self) -> str:
        """Return the document."""
        return whole_page(self.title, self.live())


def application(page: LivePage, host: str) -> Starlette:
    """Return the application that serves a page.

    Nothing in a request names a file, so no request can reach one. A request is refused unless its
    ``Host`` is an address, ``localhost`` or the name that the server was given: a page of another
    site whose name is made to point here cannot read the answer.

    Args:
        page: The page.
        host: The host that the server was told to listen on.
    """
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.responses import HTMLResponse, PlainTextResponse
    from starlette.responses import Response as PlainResponse
    from starlette.routing import Route

    def guarded(request: Request) -> Response | None:
        if may_ask(request.headers.get("host", ""), host):
            return None
        return PlainTextResponse("unknown host\n", status_code=400, headers=_HEADERS)

    def document(request: Request) -> Response:
        return guarded(request) or HTMLResponse(page.whole(), headers=_HEADERS)

    def live(request: Request) -> Response:
        if refused := guarded(request):
            return refused
        text = page.live()
        tag = f'"{hashlib.sha256(text.encode()).hexdigest()[:32]}"'
        headers = {**_HEADERS, "ETag": tag}
        if request.headers.get("if-none-match") == tag:
            return PlainResponse(status_code=304, headers=headers)
        return HTMLResponse(text, headers=headers)

    def nothing_here(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        headers = {**_HEADERS, **(error.headers or {})}
        return guarded(request) or PlainTextResponse(
            f"{error.detail}\n", status_code=error.status_code, headers=headers
        )

    return Starlette(
        routes=[
            Route("/", document, methods=["GET"]),
            Route("/live", live, methods=["GET"]),
        ],
        exception_handlers={HTTPException: nothing_here},
    )


def may_ask(asked: str, host: str) -> bool:
    """Whether a request may be answered, by the host that it names.

    Args:
        asked: The request's ``Host``.
        host: The host that the server was told to listen on.

    Example:
        >>> may_ask("127.0.0.1:8000", "127.0.0.1"), may_ask("[::1]:8000", "::1")
        (True, True)
        >>> may_ask("evil.example:8000", "127.0.0.1"), may_ask("node7:8000", "node7")
        (False, True)
    """
    name = asked.rpartition("]")[0].removeprefix("[") or asked.partition(":")[0]
    if name.lower() in ("localhost", host.lower()):
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    return address.is_loopback or not is_loopback(host)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a host.

    Example:
        >>> [is_loopback(host) for host in ("127.0.0.1", "localhost", "::1", "0.0.0.0", "node7")]
        [True, True, True, False, False]
    """
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Args:
        host: An address, or a name of this machine.
        port: The port, 0 for a free one.

    Raises:
        EnvironmentFailure: The host is not this machine's, or the port is in use.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        family, address = found[0], found[4]
        return socket.create_server(address[:2], family=family, backlog=32)
    except OSError as error:
        way_out = "; --port 0 takes a free one" if port else ""
        raise EnvironmentFailure(
            f"cannot listen on {host}, port {port}: {error.strerror or error}{way_out}."
        ) from error


def serve(page: LivePage, host: str, listening: socket.socket) -> None:
    """Answer requests until the process is told to end."""
    import uvicorn

    config = uvicorn.Config(
        application(page, host),
        log_level="warning",
        access_log=False,
        ws="none",
        lifespan="off",
        server_header=False,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=1,
        limit_concurrency=64,
    )
    uvicorn.Server(config).run(sockets=[listening])
