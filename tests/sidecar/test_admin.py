"""What is told of administrative actions."""

from __future__ import annotations

import pytest
import structlog

from monitor.errors import SetupError
from monitor.outputs.metrics import Metrics
from monitor.sidecar.admin import Doorbook, admin


class Sink:
    """Keeps actions."""

    def __init__(self) -> None:
        self.kept: list[tuple[str, dict[str, str]]] = []

    def action(self, name: str, **details: str) -> None:
        """Keeps one."""
        self.kept.append((name, details))


def test_line() -> None:
    """An action is one line with its name and details; a refused one is a warning."""
    with structlog.testing.capture_logs() as log:
        admin("start", version="1")
        admin("reload", outcome="refused")

    assert log == [
        {"event": "admin", "action": "start", "version": "1", "log_level": "info"},
        {"event": "admin", "action": "reload", "outcome": "refused", "log_level": "warning"},
    ]


def test_sink() -> None:
    """Where a record is kept, it says the same."""
    sink = Sink()

    admin("stop", sink=sink, by="SIGTERM")

    assert sink.kept == [("stop", {"by": "SIGTERM"})]


@pytest.mark.parametrize("kind", ["certificates", "token_file"])
def test_files(kind: str) -> None:
    """Credentials that change are kept, and counted when they are refused."""
    sink, metrics = Sink(), Metrics()
    doors = Doorbook(metrics, sink)
    changed = getattr(doors, f"{kind}_changed")

    changed(SetupError("tls_cert", "is bad"))
    changed(None)

    assert sink.kept == [
        (kind, {"outcome": "refused", "field": "tls_cert", "message": "is bad"}),
        (kind, {"outcome": "taken"}),
    ]
    assert metrics.value("affect_credentials_refused_total", kind) == 1


def test_flood_does_not_fill_the_record() -> None:
    """A stranger can grow neither log nor record at will; the counter tells all."""
    sink, metrics = Sink(), Metrics()
    doors = Doorbook(metrics, sink)

    for _ in range(1000):
        doors.token_refused("ipv4:10.0.0.1:1")

    assert 0 < len(sink.kept) < 10
    assert metrics.value("affect_credentials_refused_total", "token") == 1000
