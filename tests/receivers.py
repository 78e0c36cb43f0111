"""A receiver of alerts over real HTTP that can be taken away, and alerts to send to it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any, ClassVar

from monitor.assess.overindex import Excess
from monitor.outputs.metrics import Metrics
from monitor.policy.alert import Alert, AlertState, Worst, labels_of
from monitor.policy.schema import Policy, TurnRule
from monitor.probes.bank import Stance

PATIENCE = 20.0
"""Seconds after which a wait is a failure."""
STARTED = 1.75e9


def alert(target: str = "affect", *, ended: float | None = None, name: str = "desk") -> Alert:
    """A firing alert, or a resolved one."""
    policy = Policy(
        name=name, stance=Stance.NEUTRAL, turn=TurnRule(false_alarm_rate=0.05), severity="critical", owner="desk-team"
    )
    state = AlertState.FIRING if ended is None else AlertState.RESOLVED
    worst = Worst("bank-1-1", Excess(3.0, 1.0, 2.0, 0.005), 0.0)
    labels = labels_of(policy, target)
    return Alert(name, target, labels, "", state, STARTED, ended, worst=worst, over_turns=1, turn_ids=("bank-1-1",))


def count(metrics: Metrics, receiver: str, result: str) -> float:
    """Alerts with this result."""
    return metrics.value("affect_notifications_total", receiver, result)


def wait_for_count(metrics: Metrics, receiver: str, result: str, least: int) -> None:
    """Waits until so many alerts have this result."""
    passed, tick = 0.0, threading.Event()
    while count(metrics, receiver, result) < least and passed < PATIENCE:
        tick.wait(0.005)
        passed += 0.005
    assert count(metrics, receiver, result) >= least


class Double:
    """An endpoint that keeps what is posted, and answers with ``status``."""

    def __init__(self) -> None:
        self.status = 200
        self.batches: list[Any] = []
        self.refused = 0
        self.paths: set[str] = set()
        self.changed = threading.Condition()
        self.arrived, self.hold = threading.Event(), threading.Event()
        self.hold.set()
        self._server: HTTPServer | None = None
        self.port = 0
        self.start()

    @property
    def url(self) -> str:
        """Base address."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def taken(self) -> list[dict[str, Any]]:
        """Alerts that were taken in lists, in order."""
        with self.changed:
            return [each for batch in self.batches for each in batch]

    def start(self) -> None:
        """Listens, at the same port as before."""
        double = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version: ClassVar[str] = "HTTP/1.1"  # type: ignore[misc]

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                double.arrived.set()
                double.hold.wait(PATIENCE)
                status = double.take(self.path, json.loads(body))
                self.send_response(status)
                self.send_header("content-length", "0")
                self.send_header("connection", "close")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Says nothing."""

        HTTPServer.allow_reuse_address = True
        self._server = HTTPServer(("127.0.0.1", self.port), Handler)
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        """Goes away."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def take(self, path: str, batch: Any) -> int:
        """Keeps what was posted unless it is to be refused."""
        with self.changed:
            self.paths.add(path)
            if self.status < 300:
                self.batches.append(batch)
            else:
                self.refused += 1
            self.changed.notify_all()
            return self.status

    def wait(self, condition: Callable[[], bool]) -> None:
        """Waits until something is so."""
        with self.changed:
            assert self.changed.wait_for(condition, PATIENCE)
