"""Sidecars with everything switched on, and engines that send them turns of every kind."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from servers import Engine, free_port

from monitor.probes.bank import Bank
from monitor.settings import load_settings
from monitor.sidecar.server import Sidecar
from monitor.wire.v1 import ingest_pb2

POLICY = """
version: 1
policies:
  - name: helpline
    match: {route: helpline}
    stance: supportive
    turn: {false_alarm_rate: 0.05}
    rate: {budget: 0.1}
  - name: short
    match: {route: short}
    stance: neutral
    turn: {false_alarm_rate: 0.05, min_assistant_tokens: 100}
  - name: desk
    stance: neutral
    owner: desk-team
    turn: {false_alarm_rate: 0.02}
    families: {warmth: 0.05}
    rate: {budget: 0.05}
    mute: [{start: "00:00", end: "12:00"}, {start: "12:00", end: "00:00"}]
"""
ROUTES = ("desk", "helpline", "short")
TURNS = 40


class Watched:
    """A sidecar with everything switched on, and the engine it watches."""

    def __init__(self, bank: Bank, folder: Path) -> None:
        bank.save(folder / "bank")
        (folder / "policy.yaml").write_text(POLICY)
        (folder / "token").write_text("correct-horse")
        (folder / "token").chmod(0o600)
        self._random = np.random.default_rng(0)
        self._one_at_a_time = threading.Lock()
        self._canaries = serve_chat(self._reply)
        address = f"unix://{folder}/s"
        settings: dict[str, Any] = {
            "bank": str(folder / "bank"),
            "policy": folder / "policy.yaml",
            "ingest": address,
            "http_port": 0,
            "token_file": folder / "token",
            "audit_file": folder / "audit.db",
            "baseline_file": folder / "baseline",
            "state_file": folder / "state",
            "alertmanager_url": f"http://127.0.0.1:{free_port()}",
            "canary_url": f"http://127.0.0.1:{self._canaries.server_port}",
            "canary_record": folder / "canaries",
            "sampling_rate": 0.8,
            "drain_seconds": 0.0,
        }
        self.sidecar = Sidecar(load_settings(None, settings))
        self._engine = Engine(bank, address)
        self.turns = 0

    def work(self) -> None:
        """Sends turns to every route, of which some are over and some outside the sample."""
        for user, assistant in self._random.normal(size=(TURNS, 2)):
            for route in ROUTES:
                self._turn(assistant + 0.4 * user, user, route=route)
        for route in ROUTES:
            while "sampled_out" in self._turn(8.0, 0.0, route=route).marks:
                """The next one may be in the sample."""
        refused = httpx.get(f"{self.sidecar.http_url}/api/turns", headers={"authorization": "Bearer wrong"})
        assert refused.status_code == httpx.codes.UNAUTHORIZED

    def _turn(self, affect: float, user_affect: float, **labels: str) -> ingest_pb2.Assessment:
        with self._one_at_a_time:
            self.turns += 1
            return self._engine.turn(affect, user_affect, **labels)

    def _reply(self, request: dict[str, Any]) -> None:
        """Answers a canary prompt."""
        self._turn(0.5, 0.0, **request["metadata"])

    def stop(self) -> None:
        """Ends all of it."""
        self._canaries.shutdown()
        self._canaries.server_close()
        self._engine.close()
        self.sidecar.stop()


def serve_chat(reply: Callable[[dict[str, Any]], None]) -> ThreadingHTTPServer:
    """An inference server's HTTP side, which has every request answered."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            reply(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    return server
