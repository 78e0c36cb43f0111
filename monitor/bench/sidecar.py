"""A real sidecar in a process of its own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import grpc

from monitor.bench.cores import pinned
from monitor.bench.grid import Setting
from monitor.bench.proc import cpu_seconds, resident_mb
from monitor.bench.scrape import Scrape, scrape
from monitor.errors import SetupError
from monitor.policy.schema import SHIPPED
from monitor.wire.v1 import ingest_pb2, ingest_pb2_grpc

_START_TIMEOUT, _STOP_TIMEOUT, _POLL = 120.0, 20.0, 0.05
_SHARED_MEMORY_BYTES = 64 << 20
_LOG_TAIL = 600
_ENVIRONMENTS = {
    "grpc": {"AFFECT_SHARED_MEMORY_BYTES": "0", "AFFECT_PROJECTION": "false"},
    "shared_memory": {"AFFECT_SHARED_MEMORY_BYTES": str(_SHARED_MEMORY_BYTES), "AFFECT_PROJECTION": "false"},
    "projected": {"AFFECT_SHARED_MEMORY_BYTES": "0", "AFFECT_PROJECTION": "true"},
}


class NotOfferedError(SetupError):
    """A transport that the sidecar does not offer."""


class SidecarProcess:
    """``affect-monitor serve`` on a unix socket, until it is closed.

    Args:
        setting: What it is to serve.
        bank: ``--bank``.
        folder: A folder for its log, and for its socket unless there is an address.
        cores: Where it may run; empty: anywhere.
        address: ``unix:///path`` it listens on.

    Raises:
        NotOfferedError: It does not offer the transport of the setting.
        SetupError: It does not start.
    """

    def __init__(self, setting: Setting, bank: str, folder: Path, cores: frozenset[int], address: str = "") -> None:
        self.address = address or f"unix://{folder}/ingest.sock"
        port = _free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._log = folder / "sidecar.log"
        command = [
            sys.executable, "-m", "monitor.cli", "serve", "--bank", bank,
            "--policy", str(SHIPPED / "service-desk.yaml"), "--ingest", self.address, "--http-port", str(port),
            "--drain-seconds", "0",
        ]  # fmt: skip
        own = {name: value for name, value in os.environ.items() if not name.startswith("AFFECT_")}
        own |= _ENVIRONMENTS[setting.transport] | {"AFFECT_MAX_OPEN_TURNS": str(setting.max_open_turns)}
        with self._log.open("wb") as log, pinned(cores):
            self._process = subprocess.Popen(command, env=own, stdout=log, stderr=log)  # noqa: S603 - ourselves
        try:
            self._wait_ready()
            self._check_offer(setting.transport)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Ends it."""
        self._process.terminate()
        try:
            self._process.wait(_STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """Ends it as a crash would."""
        self._process.kill()
        self._process.wait()

    def scrape(self) -> Scrape:
        """Its metrics now."""
        return scrape(self.url)

    @property
    def cpu_seconds(self) -> float:
        """Processor time used so far, of all its threads."""
        return cpu_seconds(self._process.pid)

    @property
    def rss_mb(self) -> float:
        """Resident memory now, in megabytes of 1,000,000 bytes."""
        return resident_mb(self._process.pid)

    def _wait_ready(self) -> None:
        deadline = time.monotonic() + _START_TIMEOUT
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                break
            try:
                with urllib.request.urlopen(f"{self.url}/readyz", timeout=1.0):  # noqa: S310 - our own sidecar
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(_POLL)
        tail = self._log.read_text(errors="replace")[-_LOG_TAIL:]
        raise SetupError("sidecar", f"did not start; the end of its log: {tail}")

    def _check_offer(self, transport: str) -> None:
        # Of any size: the offer of a projection holds the probes.
        with grpc.insecure_channel(self.address, [("grpc.max_receive_message_length", -1)]) as channel:
            offer: Any = ingest_pb2_grpc.IngestServiceStub(channel).Describe(ingest_pb2.DescribeRequest())
        offered = {"shared_memory": offer.shared_memory_bytes > 0, "projected": offer.HasField("projection")}
        if not offered.get(transport, True):
            raise NotOfferedError("transport", f"the sidecar does not offer {transport}; such rows are left out")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
