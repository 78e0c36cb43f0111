"""The audit store of a running sidecar: what was done to it, and a disk that fails as a fault that is told."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from audits import PATIENCE, records, verified
from engine import make_turn, whole

from monitor.errors import SetupError
from monitor.outputs import audit

if TYPE_CHECKING:
    from monitor.probes.bank import Bank

FAULT = 'affect_monitor_fault{fault="AffectAuditNotWritten"}'
Wait = Callable[[Callable[[], Any]], Any]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that failed is tried again at once."""
    monkeypatch.setattr(audit, "_COMMIT_SECONDS", 0.02)
    monkeypatch.setattr(audit, "_LAST_WAIT", 0.02)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The file, in a folder that can be taken away."""
    (tmp_path / "disk").mkdir()
    return tmp_path / "disk" / "audit.db"


@pytest.fixture
def alertmanager() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """An address that takes alerts, and the alerts it took."""
    taken: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            taken.extend(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", taken
    server.shutdown()
    server.server_close()


def page(sidecar: Any, name: str) -> httpx.Response:
    """A page of a sidecar."""
    return httpx.get(sidecar.http_url + name, timeout=PATIENCE)


class TestActions:
    """What was done to a sidecar."""

    def test_are_recorded(self, serve: Any, path: Path, policy_file: Path) -> None:
        """Start, reloads with their outcome and stop are in the chain, in order."""
        sidecar = serve(audit_file=path)
        assert sidecar.reload()
        policy_file.write_text("version: 1\npolicies: []\n")
        assert not sidecar.reload()
        sidecar.stop()
        told = [(row.payload["action"], row.payload.get("outcome")) for row in records(path)]
        assert told == [("start", None), ("reload", "taken"), ("reload", "refused"), ("stop", None)]
        assert verified(path).bad is None

    def test_are_not_recorded_without_a_file(self, serve: Any, tmp_path: Path) -> None:
        """Without the setting nothing is stored."""
        serve().stop()
        assert not list(tmp_path.rglob("*.db*"))


class TestTurns:
    """Turns that a sidecar records."""

    @pytest.mark.parametrize("text", [False, True])
    def test_that_alert_have_their_last_tokens(
        self, text: bool, serve: Any, connect: Any, small_bank: Bank, path: Path
    ) -> None:
        """A turn over its bound is recorded as it was answered, with the tokens asked for; a calm one is not."""
        sidecar = serve(audit_file=path, audit_sample_rate=0.0, audit_tokens=4, audit_text=text)
        stream = connect().stream(small_bank)
        calm, over = make_turn(small_bank, "calm"), make_turn(small_bank, "over", assistant=9.0)
        for turn in (calm, over):
            answer = stream.send(whole(turn))
        sidecar.stop()
        (row,) = [row for row in records(path) if row.kind == "turn"]
        (told,) = answer.assessments
        assert (row.payload["request_id"], row.payload["turn_id"]) == ("over", told.turn_id)
        assert row.payload["alerts"] == list(told.alerts) != []
        assert (row.payload["bank_id"], row.payload["stance"]) == (small_bank.card.bank_id, "neutral")
        trace = row.trace or {}
        assert len(trace["positions"]) == len(trace["affect"]) == 4
        assert trace["positions"] == sorted(trace["positions"])
        ids = [int(token) for token in over.token_ids]
        assert trace.get("token_ids") == ([ids[position] for position in trace["positions"]] if text else None)

    def test_are_sampled(self, serve: Any, connect: Any, small_bank: Bank, path: Path) -> None:
        """With a sample of everything calm turns are recorded too, without their tokens."""
        sidecar = serve(audit_file=path, audit_sample_rate=1.0, audit_tokens=4)
        connect().stream(small_bank).send(whole(make_turn(small_bank, "calm")))
        sidecar.stop()
        (row,) = [row for row in records(path) if row.kind == "turn"]
        assert (row.payload["alerts"], row.trace) == ([], None)


class TestDisk:
    """A disk that fails under a running sidecar."""

    def test_is_told_everywhere_and_over_when_it_is_back(
        self, serve: Any, path: Path, eventually: Wait, alertmanager: tuple[str, list[dict[str, Any]]]
    ) -> None:
        """Landing page, metrics and Alertmanager have the fault while it lasts, and its end when it is over."""
        url, taken = alertmanager
        sidecar = serve(audit_file=path, alertmanager_url=url)
        assert f"{FAULT} 0.0" in page(sidecar, "/metrics").text
        away = path.parent.rename(path.parent.with_name("away"))
        sidecar.reload()
        (fault,) = eventually(lambda: page(sidecar, "/").json()["faults"])
        assert (fault["alertname"], fault["severity"]) == ("AffectAuditNotWritten", "warning")
        assert str(path) in fault["description"]
        assert f"{FAULT} 1.0" in page(sidecar, "/metrics").text
        assert page(sidecar, "/readyz").status_code == 200
        away.rename(path.parent)
        eventually(lambda: not page(sidecar, "/").json()["faults"])
        eventually(lambda: f"{FAULT} 0.0" in page(sidecar, "/metrics").text)
        eventually(lambda: len(taken) == 2)
        assert [alert["labels"]["alertname"] for alert in taken] == ["AffectAuditNotWritten"] * 2
        assert ["endsAt" in alert for alert in taken] == [False, True]

    def test_fault_is_repeated_like_other_alerts(self, serve: Any, path: Path, eventually: Wait) -> None:
        """A fault that lasts is among what is sent to Alertmanager again and again."""
        sidecar = serve(audit_file=path)
        path.parent.rename(path.parent.with_name("away"))
        sidecar.reload()
        eventually(lambda: sidecar.faults.active)
        assert [each.labels["alertname"] for each in sidecar._firing()] == ["AffectAuditNotWritten"]


class TestStart:
    """Starting with an audit file."""

    def test_is_refused_for_another_file(self, serve: Any, path: Path) -> None:
        """A sidecar does not start on a file of something else."""
        path.write_text("something else")
        with pytest.raises(SetupError, match="move it away"):
            serve(audit_file=path)

    def test_that_fails_later_lets_go_of_the_file(self, serve: Any, path: Path) -> None:
        """When something else keeps a sidecar from starting, the next one can have the file."""
        with pytest.raises(SetupError):
            serve(audit_file=path, http_host="256.0.0.1")
        serve(audit_file=path)
