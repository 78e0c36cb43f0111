"""Finds out who the model is, beside the engine's start, and then connects to the sidecar."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from monitor.capture.client import SidecarClient

if TYPE_CHECKING:
    from collections.abc import Callable

    from monitor.capture.credentials import ClientTls
    from monitor.wire.v1 import ingest_pb2

_LOG = logging.getLogger("affect_monitor.capture")


class Introduction:
    """A client of the sidecar, there once the model's hashes are known; the engine does not wait for them.

    Args:
        hello: Who is sending, but for the hashes of the model.
        identify: Adds the hashes; may take long and may fail.
        address: ``unix:///path`` or ``host:port`` of the sidecar.
        tls: Certificates for a sidecar on TCP.
    """

    def __init__(
        self,
        hello: ingest_pb2.Hello,
        identify: Callable[[ingest_pb2.Hello], None],
        address: str,
        tls: ClientTls | None,
    ) -> None:
        self._hello = hello
        self._identify = identify
        self._address = address
        self._tls = tls
        self._client: SidecarClient | None = None
        self._closed = threading.Event()
        threading.Thread(target=self._connect, name="affect-introduction", daemon=True).start()

    def client(self) -> SidecarClient | None:
        """The client; none while hashes are being computed."""
        return self._client

    def failed(self) -> None:
        """Counts an error in capture, where there is a client to count it."""
        if self._client is not None:
            self._client.failed()

    def close(self) -> None:
        """Ends the stream."""
        self._closed.set()
        if self._client is not None:
            self._client.close()

    def _connect(self) -> None:
        try:
            self._identify(self._hello)
        except Exception as error:  # noqa: BLE001 - files and tokenizers fail in many ways; the sidecar judges
            _LOG.warning("cannot tell all of who this model is (%s); the sidecar will call it unvalidated", error)
        if not self._closed.is_set():
            self._client = SidecarClient(self._address, self._hello, tls=self._tls)
