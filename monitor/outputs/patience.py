"""HTTP for strangers: a bounded number of connections, each with a bounded time for every request."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

REQUEST_SECONDS = 10.0
"""From the connection, or the answer before, to the end of the answer."""
MAX_CONNECTIONS = 128
"""Beyond these, connections are closed unheard."""


class PatientProtocol(H11Protocol):
    """uvicorn's HTTP, which by itself waits for ever on a client that sends or reads a byte now and then."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Starts the clock."""
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            transport.abort()
            return
        self._restart()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops it."""
        self._stop()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """Starts it anew."""
        self._restart()
        super().on_response_complete()

    def _restart(self) -> None:
        self._stop()
        self._deadline = self.loop.call_later(REQUEST_SECONDS, self.transport.abort)

    def _stop(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
