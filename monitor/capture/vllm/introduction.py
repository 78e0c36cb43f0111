"""Finds out who the model is, beside the engine's start, and then connects to the sidecar."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any

from monitor.capture.client import SidecarClient
from monitor.capture.vllm import compat

if TYPE_CHECKING:
    from monitor.wire.v1 import ingest_pb2

_LOG = logging.getLogger("affect_monitor.capture")


class Introduction:
    """A client of the sidecar, there once the model's hashes are known; the engine does not wait for them.

    Args:
        config: vLLM's configuration.
        hello: Who is sending, but for the hashes of the model.
    """

    def __init__(self, config: Any, hello: ingest_pb2.Hello) -> None:
        self._config = config
        self._hello = hello
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
            compat.identify(self._config, self._hello)
        except Exception as error:  # noqa: BLE001 - files and tokenizers fail in many ways; the sidecar judges
            _LOG.warning("cannot tell all of who this model is (%s); the sidecar will call it unvalidated", error)
        if not self._closed.is_set():
            self._client = SidecarClient(
                compat.setting(self._config, "sidecar", "unix:///run/affect/ingest.sock"),
                self._hello,
                tls=compat.tls(self._config),
            )
