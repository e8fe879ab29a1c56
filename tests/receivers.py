"""Receivers that stand in for people's backends: real HTTP servers that can be away, slow, full or unwilling."""

import contextlib
import json
import os
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from journals import PATIENCE

os.environ["no_proxy"] = os.environ["NO_PROXY"] = "127.0.0.1,localhost"  # what is local is reached directly


class Receiver:
    """An HTTP server that keeps what it takes.

    `answers` are the status codes of the next requests; 200 when there are none left. A code of 0 hangs up, and a
    function makes the code of the body. What it answers with 2xx it keeps, as a real one would.
    """

    def __init__(self, port: int = 0) -> None:
        self.answers: list[int | Callable[[bytes], int]] = []
        self.always: int | Callable[[bytes], int] = 200
        self.says = b""
        self.headers_back: dict[str, str] = {}
        self.bodies: list[bytes] = []
        self.paths: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.asked = 0
        self.seen: Counter[int] = Counter()
        self.changed = threading.Condition()
        self._server = ThreadingHTTPServer(("127.0.0.1", port), self._handler())
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def wait_for(self, come: Callable[["Receiver"], bool], what: str) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: come(self), PATIENCE), f"never came: {what}; seen: {self.seen}"

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The JSON lines of all bodies."""
        return [json.loads(line) for body in list(self.bodies) for line in body.splitlines()]

    @property
    def keys(self) -> list[str]:
        return [line["key"] for line in self.lines]

    def _take(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
        with self.changed:
            answer = self.answers.pop(0) if self.answers else self.always
            self.asked += 1
            self.changed.notify_all()
        code = answer(body) if callable(answer) else answer
        with self.changed:
            self.seen[code] += 1
            if 200 <= code < 300:
                self.bodies.append(body)
                self.paths.append(handler.path)
                self.headers.append(dict(handler.headers))
            self.changed.notify_all()
        if code == 0:
            handler.close_connection = True
            handler.connection.shutdown(socket.SHUT_RDWR)
            return
        handler.send_response(code)
        for name, value in self.headers_back.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(self.says)))
        handler.end_headers()
        handler.wfile.write(self.says)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                with contextlib.suppress(ConnectionError):
                    receiver._take(self)

            def log_message(self, *_: object) -> None:
                pass

        return Handler


@contextlib.contextmanager
def receiver(port: int = 0) -> Iterator[Receiver]:
    server = Receiver(port)
    try:
        yield server
    finally:
        server.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
