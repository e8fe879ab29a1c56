"""Sanctum in a browser: textual-serve on this machine's own address, for pages of its own alone."""

import ipaddress
import shlex
from collections.abc import Awaitable, Callable, Sequence
from urllib.parse import urlsplit

from aiohttp import web
from textual_serve.server import Server

from sapflow.errors import InputError

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

# The page of textual-serve asks for a font on the web; nothing of it may leave this machine.
_POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob: {url} {websocket}"


def serve(command: Sequence[str], host: str, port: int) -> None:
    """Runs `command`, a Sanctum, for every page that is opened at http://host:port, until Ctrl+C.

    Raises:
        InputError: the host is not this machine's own address, or there is no such port.
        OSError: the port is taken.
    """
    if not is_loopback(host):
        raise InputError(
            f"--host {host} is open to others: Sanctum is served on localhost alone, reach it by an ssh tunnel"
        )
    if not 0 < port < 65_536:
        raise InputError(f"--port {port} is no port: name one from 1 to 65535")
    _LocalServer(shlex.join(command), host=host, port=port, title="Sanctum").serve()


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the host; IPv6 has no place in a content security policy, so it is left out."""
    try:
        return ipaddress.IPv4Address(host).is_loopback
    except ValueError:
        return host == "localhost"


class _LocalServer(Server):
    """Answers only what is asked of this machine by its own name: a page from elsewhere could press keys otherwise."""

    async def _make_app(self) -> web.Application:
        app = await super()._make_app()
        app.middlewares.append(_only_from_here)
        app.on_response_prepare.append(self._keep_here)
        return app

    async def _keep_here(self, request: web.Request, response: web.StreamResponse) -> None:
        websocket = self.public_url.replace("http", "ws", 1)
        response.headers["Content-Security-Policy"] = _POLICY.format(url=self.public_url, websocket=websocket)

    async def on_startup(self, app: web.Application) -> None:
        """Says where it is."""
        print(f"Sanctum is at {self.public_url}  (Ctrl+C ends it; the run goes on)", flush=True)


@web.middleware
async def _only_from_here(request: web.Request, handler: Handler) -> web.StreamResponse:
    origin = request.headers.get("Origin")
    asked = [f"//{request.headers.get('Host', '')}", *([origin] if origin is not None else [])]
    ports = {_local_port(address) for address in asked}
    if None in ports or len(ports) > 1:
        raise web.HTTPForbidden(text="Sanctum answers only its own pages on this machine")
    return await handler(request)


def _local_port(address: str) -> int | None:
    """The port that an address of this machine names; None for any other address."""
    try:
        parts = urlsplit(address)
        return (parts.port or 80) if is_loopback(parts.hostname or "") else None
    except ValueError:
        return None
