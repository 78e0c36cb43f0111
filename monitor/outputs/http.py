"""Runs an ASGI application in a thread of this process: the sidecar's pages and the demo's chat server."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import socket
import threading
import time
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from monitor.errors import SetupError

_START_SECONDS = 30.0
_DRAIN_SECONDS = 2
"""Time that requests under way get when the server is stopped."""
_BACKLOG = 128
_MAX_CONNECTIONS = 64
"""Beyond these, requests are answered with 503."""
_MAX_HEAD = 16 << 10
"""Bytes of a request line and its headers."""
_LAST_PORT = 65535


class RunningServer:
    """A server that listens, until it is stopped.

    Args:
        server: The server, not yet run.
        listener: Its bound socket.
        host: The host as the user named it, which is how it appears in the address.
    """

    def __init__(self, server: uvicorn.Server, listener: socket.socket, host: str) -> None:
        self._server = server
        self._listener = listener
        self.port = int(listener.getsockname()[1])
        self.url = f"http://{_reachable(host)}:{self.port}"
        self._thread = threading.Thread(
            target=server.run, kwargs={"sockets": [listener]}, name=f"http-{self.port}", daemon=True
        )
        self._thread.start()

    def wait_started(self, timeout: float = _START_SECONDS) -> bool:
        """Waits until requests are answered; false where the application failed to start."""
        deadline = time.monotonic() + timeout
        while not self._server.started and self._thread.is_alive() and time.monotonic() < deadline:
            time.sleep(0.01)
        return self._server.started

    def stop(self, timeout: float = 10.0) -> None:
        """Stops listening, lets requests under way finish for a moment, then ends them."""
        self._server.should_exit = True
        self._thread.join(timeout)
        if self._thread.is_alive():
            self._server.force_exit = True
            self._thread.join(1.0)
        self._listener.close()


def serve_in_thread(
    app: Any, host: str, port: int, *, flag: str = "--http-port", protocol: type[H11Protocol] = H11Protocol
) -> RunningServer:
    """Serves an application until ``stop`` is called; signals stay with the caller.

    Args:
        app: An ASGI application.
        host: Address to listen on.
        port: Port to listen on; 0 takes a free one.
        flag: What the user changes to get another port, for the error.
        protocol: How HTTP is spoken.

    Raises:
        SetupError: The address cannot be listened on.
    """
    listener = _listen(host, port, flag)
    config = uvicorn.Config(
        app,
        http=protocol,
        ws="none",
        limit_concurrency=_MAX_CONNECTIONS,
        h11_max_incomplete_event_size=_MAX_HEAD,
        # The process has its own logging; uvicorn's would write a second format beside it.
        log_config=None,
        log_level="error",  # its warnings are of what clients do, and there is no end to that
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_DRAIN_SECONDS,
    )
    running = RunningServer(uvicorn.Server(config), listener, host)
    if not running.wait_started():
        running.stop(0.0)
        raise SetupError(flag, f"the server on {running.url} did not start; the log says why")
    return running


def _listen(host: str, port: int, flag: str) -> socket.socket:
    """Binds before the server starts, so that a taken port is an error of the caller and not of a thread."""
    if not 0 <= port <= _LAST_PORT:
        # The C library would wrap it round and listen somewhere else.
        raise SetupError(flag, f"cannot listen on {host}:{port}; choose a port from 0 to {_LAST_PORT}")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise SetupError(flag, f"cannot listen on {host}:{port} ({error}); choose another host or port") from None
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        # Two sockets may be bound to one port as long as neither listens.
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise SetupError(flag, _refusal(error, host, port, flag)) from None
    return listener


def _refusal(error: OSError, host: str, port: int, flag: str) -> str:
    number = error.errno
    if number == errno.EADDRINUSE:
        return (
            f"port {port} on {host} is in use; stop what listens there, or choose another with {flag} (0: a free one)"
        )
    if number == errno.EACCES:
        return f"port {port} needs privileges; choose one above 1023 with {flag}"
    reason = os.strerror(number) if number else str(error)
    return f"cannot listen on {host}:{port} ({reason}); choose another host, or another port with {flag}"


def _reachable(host: str) -> str:
    """The host as it stands in an address that a client on this machine can open."""
    with contextlib.suppress(ValueError):
        address = ipaddress.ip_address(host)
        if address.is_unspecified:
            return "127.0.0.1" if address.version == 4 else "[::1]"  # noqa: PLR2004 - IP version
        return host if address.version == 4 else f"[{host}]"  # noqa: PLR2004 - IP version
    return host or "127.0.0.1"
