"""The process around the pipeline: pages, looking inside, reloading, draining, settings."""

from __future__ import annotations

import json
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import httpx
import numpy as np
import pytest
from engine import PATIENCE, Engine, Request, make_frame, make_hello, make_turn, whole
from grpc_health.v1 import health_pb2, health_pb2_grpc

from monitor.errors import BankError, PolicyError, SetupError
from monitor.settings import load_settings
from monitor.sidecar.inspect_servicer import MAX_WATCHERS
from monitor.sidecar.server import Sidecar
from monitor.wire.v1 import ingest_pb2, inspect_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from monitor.probes.bank import Bank

INGEST = "affect.monitor.v1.IngestService"
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
BAD_POLICY = "version: 1\npolicies: []\n"
NEW_POLICY = """
version: 1
policies:
  - {name: renewed, stance: neutral, turn: {false_alarm_rate: 0.02}}
"""


def get(sidecar: Sidecar, path: str) -> httpx.Response:
    """A page of a sidecar."""
    return httpx.get(sidecar.http_url + path, timeout=PATIENCE)


def strict(text: str) -> Any:
    """JSON as browsers read it: without NaN."""

    def refuse(name: str) -> None:
        raise AssertionError(name)

    return json.loads(text, parse_constant=refuse)


def reload_successful(page: str) -> bool:
    """What the metric says of the last reload."""
    (line,) = (line for line in page.splitlines() if line.startswith("affect_config_last_reload_successful "))
    return float(line.split()[1]) == 1.0


def over_and_unfinished(bank: Bank, engine: Engine) -> None:
    """Sends a calm turn, one that alerts and one that is no number."""
    spoilt = make_turn(bank, "spoilt")
    spoilt.rows[5] = np.nan
    stream = engine.stream(bank)
    for turn in (make_turn(bank, "calm"), make_turn(bank, "over", assistant=9.0), spoilt):
        assert not stream.send(whole(turn)).faults


class TestPages:
    """What is served over HTTP."""

    def test_health_pages(self, serve: Any) -> None:
        """Liveness and readiness have a page each."""
        sidecar = serve()

        assert get(sidecar, "/healthz").status_code == 200
        assert get(sidecar, "/readyz").text == "ready\n"

    def test_metrics(self, serve: Any, connect: Any, small_bank: Bank) -> None:
        """The page for Prometheus tells of the turns, in the format that is asked for."""
        sidecar = serve()
        over_and_unfinished(small_bank, connect())

        plain = get(sidecar, "/metrics")
        open_metrics = httpx.get(
            sidecar.http_url + "/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"}
        )

        assert plain.headers["content-type"].startswith("text/plain")
        assert 'affect_turns_total{policy="desk"} 3.0' in plain.text
        assert 'affect_alerts_active{policy="desk",state="firing",target="affect"} 1.0' in plain.text
        assert open_metrics.headers["content-type"].startswith("application/openmetrics-text")
        assert open_metrics.text.endswith("# EOF\n")

    def test_landing_page(self, serve: Any, connect: Any, small_bank: Bank) -> None:
        """The first page says what is loaded, how it is doing and which alerts are up."""
        sidecar = serve()
        over_and_unfinished(small_bank, connect())

        page = strict(get(sidecar, "/").text)

        assert (page["bank"], page["model"]) == (small_bank.card.bank_id, "tiny")
        assert page["status"]["finished_turns"] == 3
        assert [(alert["policy"], alert["state"]) for alert in page["alerts"]] == [("desk", "firing")]
        for path in page["pages"]:
            assert get(sidecar, path).status_code == 200

    def test_turns(self, serve: Any, connect: Any, small_bank: Bank) -> None:
        """The last turns are there as JSON that any reader takes, those without numbers too."""
        sidecar = serve(keep_turns=2)
        over_and_unfinished(small_bank, connect())

        turns = strict(get(sidecar, "/api/turns").text)

        assert [turn["requestId"] for turn in turns] == ["over", "spoilt"]
        assert turns[0]["alerts"] == ["affect"]
        assert turns[1]["marks"] == ["nonfinite"]
        assert turns[1]["overIndex"] is None

    def test_finished_are_not_begun(self, serve: Any, connect: Any, small_bank: Bank) -> None:
        """Turns under way are counted as open, not as finished."""
        sidecar = serve()
        turn = make_turn(small_bank, "turn")
        connect().stream(small_bank).send(make_frame((turn, 0, 10), events=[turn.start]))

        status = strict(get(sidecar, "/").text)["status"]

        assert (status["open_turns"], status["finished_turns"]) == (1, 0)
        assert (status["open_streams"], status["scored_tokens"]) == (1, 10)


class TestHealth:
    """The gRPC health service."""

    def test_ready_and_live(self, serve: Any, connect: Any) -> None:
        """Liveness is asked for without a name, readiness by the name of the ingest service."""
        serve()
        health = health_pb2_grpc.HealthStub(connect().channel)

        for service in ("", INGEST):
            asked = health_pb2.HealthCheckRequest(service=service)
            assert health.Check(asked, timeout=PATIENCE).status == SERVING


class TestInspect:
    """The service that looks inside."""

    def test_status(self, serve: Any, connect: Any, small_bank: Bank) -> None:
        """The state says what is loaded and how much was done."""
        serve()
        engine = connect()
        over_and_unfinished(small_bank, engine)

        status = engine.inspect.GetStatus(inspect_pb2.GetStatusRequest(), timeout=PATIENCE)

        assert (status.bank_id, status.model_name) == (small_bank.card.bank_id, "tiny")
        assert (status.validated, status.open_streams, status.open_turns, status.finished_turns) == (True, 1, 0, 3)
        assert status.scored_tokens == 3 * make_turn(small_bank, "").length - 1
        assert status.policies == ["helpline", "desk"]

    def test_alerts(self, serve: Any, connect: Any, small_bank: Bank) -> None:
        """An alert names its policy, state and turns, and is gone once it is resolved."""
        serve()
        engine = connect()
        stream = engine.stream(small_bank)
        over = stream.send(whole(make_turn(small_bank, "over", assistant=9.0))).assessments[0]

        (alert,) = engine.inspect.ListAlerts(inspect_pb2.ListAlertsRequest(), timeout=PATIENCE).alerts

        assert (alert.name, alert.policy, alert.state) == ("AffectOverIndex", "desk", inspect_pb2.ALERT_STATE_FIRING)
        assert alert.turn_ids == [over.turn_id]
        assert alert.labels["target"] == "affect"
        assert alert.annotations["summary"]
        assert alert.started_unix_ns > 0
        for number in range(2):
            stream.send(whole(make_turn(small_bank, f"calm {number}")))
        assert not engine.inspect.ListAlerts(inspect_pb2.ListAlertsRequest(), timeout=PATIENCE).alerts

    def test_turn(self, serve: Any, connect: Any, small_bank: Bank) -> None:
        """A finished turn can be had by its id, as it was answered."""
        serve()
        engine = connect()
        answered = engine.stream(small_bank).send(whole(make_turn(small_bank, "turn"))).assessments[0]

        asked = inspect_pb2.GetTurnRequest(turn_id=answered.turn_id)
        found = engine.inspect.GetTurn(asked, timeout=PATIENCE).assessment

        assert found == answered

    def test_unknown_turn(self, serve: Any, connect: Any) -> None:
        """A turn that is not in memory is not found, and the answer says so."""
        serve()

        with pytest.raises(grpc.RpcError) as missing:
            connect().inspect.GetTurn(inspect_pb2.GetTurnRequest(turn_id="none"), timeout=PATIENCE)

        assert missing.value.code() is grpc.StatusCode.NOT_FOUND
        assert "'none'" in missing.value.details()

    @pytest.mark.parametrize(("policy", "expected"), [("", ["a", "b", "c"]), ("helpline", ["b"])])
    def test_watch(
        self, policy: str, expected: list[str], serve: Any, connect: Any, small_bank: Bank, eventually: Any
    ) -> None:
        """Whoever watches sees turns as they finish, of one policy or of all, until the watcher goes."""
        sidecar = serve()
        engine = connect()
        stream = engine.stream(small_bank)
        stream.send(whole(make_turn(small_bank, "before")))
        watching = engine.inspect.WatchTurns(inspect_pb2.WatchTurnsRequest(policy=policy), timeout=PATIENCE)
        eventually(lambda: sidecar.pipeline._watchers)

        for name, labels in (("a", {}), ("b", {"route": "helpline"}), ("c", {})):
            stream.send(whole(make_turn(small_bank, name, labels=labels)))
        found = [next(watching).assessment.request_id for _ in expected]
        watching.cancel()

        assert found == expected
        eventually(lambda: not sidecar.pipeline._watchers)
        assert not stream.send(whole(make_turn(small_bank, "after"))).faults

    def test_too_many_watchers(self, serve: Any, connect: Any, small_bank: Bank, eventually: Any) -> None:
        """A watcher too many is refused at once; frames are taken, and a watcher that goes makes room."""
        sidecar = serve()
        engine = connect()
        calls = [engine.inspect.WatchTurns(inspect_pb2.WatchTurnsRequest()) for _ in range(MAX_WATCHERS)]
        eventually(lambda: len(sidecar.pipeline._watchers) == MAX_WATCHERS)

        with pytest.raises(grpc.RpcError) as refused:
            next(engine.inspect.WatchTurns(inspect_pb2.WatchTurnsRequest(), timeout=PATIENCE))

        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert not engine.stream(small_bank).send(whole(make_turn(small_bank, "turn"))).faults
        assert [next(call).assessment.request_id for call in calls] == ["turn"] * MAX_WATCHERS
        calls[0].cancel()
        eventually(lambda: len(sidecar.pipeline._watchers) == MAX_WATCHERS - 1)
        again = engine.inspect.WatchTurns(inspect_pb2.WatchTurnsRequest(), timeout=PATIENCE)
        eventually(lambda: len(sidecar.pipeline._watchers) == MAX_WATCHERS)
        again.cancel()


class TestReload:
    """Policies that change while the sidecar serves."""

    def reload(self, sidecar: Sidecar) -> httpx.Response:
        """Asks for a reload over HTTP."""
        return httpx.post(sidecar.http_url + "/-/reload", timeout=PATIENCE)

    def test_good(self, serve: Any, connect: Any, small_bank: Bank, policy_file: Path) -> None:
        """A good policy is taken: turns under way are judged by it."""
        sidecar = serve()
        turn = make_turn(small_bank, "turn")
        stream = connect().stream(small_bank)
        stream.send(make_frame((turn, 0, 10), events=[turn.start]))
        policy_file.write_text(NEW_POLICY)

        assert self.reload(sidecar).status_code == 200

        answer = stream.send(make_frame((turn, 10, turn.length), events=[turn.end]))
        assert answer.assessments[0].policy == "renewed"
        assert reload_successful(get(sidecar, "/metrics").text)
        assert 'affect_turns_total{policy="renewed"} 1.0' in get(sidecar, "/metrics").text

    @pytest.mark.parametrize("text", [BAD_POLICY, "{", "\x00", NEW_POLICY.replace("0.02", "0.000001")])
    def test_bad(self, text: str, serve: Any, connect: Any, small_bank: Bank, policy_file: Path) -> None:
        """A bad policy is refused: the old one serves on, the metric tells, and a good one mends it."""
        sidecar = serve()
        policy_file.write_text(text)

        assert self.reload(sidecar).status_code == 400

        assert not reload_successful(get(sidecar, "/metrics").text)
        stream = connect().stream(small_bank)
        assert stream.send(whole(make_turn(small_bank, "turn"))).assessments[0].policy == "desk"
        policy_file.write_text(NEW_POLICY)
        assert self.reload(sidecar).status_code == 200
        assert reload_successful(get(sidecar, "/metrics").text)

    def test_file_gone(self, serve: Any, policy_file: Path) -> None:
        """A policy file that is gone is refused like a bad one."""
        sidecar = serve()
        policy_file.unlink()

        assert self.reload(sidecar).status_code == 400
        assert get(sidecar, "/readyz").status_code == 200

    def test_alert_of_a_policy_that_is_gone(
        self, serve: Any, connect: Any, small_bank: Bank, policy_file: Path
    ) -> None:
        """An alert whose policy is gone is resolved by the reload."""
        sidecar = serve()
        over_and_unfinished(small_bank, connect())
        policy_file.write_text(NEW_POLICY)

        self.reload(sidecar)

        assert strict(get(sidecar, "/").text)["alerts"] == []
        assert "affect_alerts_active{" not in get(sidecar, "/metrics").text

    def test_only_by_post(self, serve: Any) -> None:
        """Looking at the address changes nothing."""
        assert get(serve(), "/-/reload").status_code == 405


class TestDraining:
    """The end of a sidecar."""

    def test_stop_waits_for_open_turns(self, serve: Any, connect: Any, small_bank: Bank, eventually: Any) -> None:
        """A sidecar that stops takes no new streams, is live but not ready, and lets open turns end."""
        import threading

        sidecar = serve(drain_seconds=PATIENCE)
        engine, turn = connect(), make_turn(small_bank, "turn")
        health = health_pb2_grpc.HealthStub(engine.channel)
        stream = engine.stream(small_bank)
        stream.send(make_frame((turn, 0, 10), events=[turn.start]))

        stopping = threading.Thread(target=sidecar.stop)
        stopping.start()
        eventually(lambda: get(sidecar, "/readyz").status_code == 503)

        def state(service: str) -> int:
            asked = health_pb2.HealthCheckRequest(service=service)
            return int(health.Check(asked, timeout=PATIENCE).status)

        eventually(lambda: state(INGEST) == NOT_SERVING)
        assert state("") == SERVING
        assert get(sidecar, "/healthz").status_code == 200

        def refused() -> bool:
            with pytest.raises(grpc.RpcError) as raised:
                engine.open().send(Request(hello=make_hello(small_bank, engine_id="late")))
            return raised.value.code() is grpc.StatusCode.UNAVAILABLE

        assert eventually(refused)
        answer = stream.send(make_frame((turn, 10, turn.length), events=[turn.end]))
        assert answer.assessments[0].coverage == 1.0
        stopping.join(PATIENCE)
        assert not stopping.is_alive()


@pytest.fixture
def process(bank_folder: Path, policy_file: Path, address: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """``affect-monitor serve`` as a process of its own, and the address of its pages."""
    flags = ("--bank", bank_folder, "--policy", policy_file, "--ingest", address, "--http-port", "0")
    command = [sys.executable, "-m", "monitor.cli", "serve", *map(str, flags), "--drain-seconds", str(PATIENCE)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as running:
        assert running.stderr is not None
        try:
            lines = (json.loads(line) for line in running.stderr if line.startswith("{"))
            yield running, next(line["http"] for line in lines if line.get("event") == "serving")
        finally:
            running.kill()


class TestProcess:
    """The sidecar as it is run."""

    def test_signals(
        self,
        process: tuple[subprocess.Popen[str], str],
        policy_file: Path,
        connect: Callable[[], Engine],
        small_bank: Bank,
        eventually: Any,
    ) -> None:
        """SIGHUP takes a good policy and refuses a bad one; SIGTERM lets open turns end, then exits 0."""
        running, url = process

        def page(path: str) -> str:
            return httpx.get(url + path, timeout=PATIENCE).text

        stream, turn = connect().stream(small_bank), make_turn(small_bank, "turn")
        stream.send(make_frame((turn, 0, 10), events=[turn.start]))
        policy_file.write_text(BAD_POLICY)
        running.send_signal(signal.SIGHUP)
        eventually(lambda: not reload_successful(page("/metrics")))
        assert stream.send(whole(make_turn(small_bank, "old"))).assessments[0].policy == "desk"
        policy_file.write_text(NEW_POLICY)
        running.send_signal(signal.SIGHUP)
        eventually(lambda: reload_successful(page("/metrics")))

        running.send_signal(signal.SIGTERM)
        eventually(lambda: page("/readyz") != "ready\n")
        assert running.poll() is None
        answer = stream.send(make_frame((turn, 10, turn.length), events=[turn.end]))

        assert (answer.assessments[0].policy, answer.assessments[0].coverage) == ("renewed", 1.0)
        assert running.wait(PATIENCE) == 0


class TestSetup:
    """Addresses and files that cannot be used."""

    def fails(self, settings: Any, **flags: Any) -> SetupError:
        """The error a sidecar with these settings ends with."""
        with pytest.raises(SetupError) as raised:
            Sidecar(settings(**flags))
        return raised.value

    def test_http_port_in_use(self, settings: Any, serve: Any, address: str) -> None:
        """A port in use is an error that names the flag, and leaves nothing behind that serves."""
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            error = self.fails(settings, http_port=taken.getsockname()[1])

        assert error.field == "--http-port"
        assert not Path(address.removeprefix("unix://")).exists()
        serve()

    def test_ingest_port_in_use(self, settings: Any, serve: Any) -> None:
        """So is a port of the ingest service; the pages' port is given back."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            http_port = free.getsockname()[1]
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            error = self.fails(
                settings, ingest=f"127.0.0.1:{taken.getsockname()[1]}", insecure=True, http_port=http_port
            )

        assert error.field == "--ingest"
        serve(http_port=http_port)

    @pytest.mark.parametrize("ingest", ["nonsense", "127.0.0.1:99999", "unix:///" + "x" * 200])
    def test_no_address(self, ingest: str, settings: Any) -> None:
        """An address that is none is an error that names the flag."""
        assert self.fails(settings, ingest=ingest).field == "--ingest"

    def test_missing_folder(self, settings: Any, tmp_path: Path) -> None:
        """A socket in a folder that does not exist is an error that says so."""
        error = self.fails(settings, ingest=f"unix://{tmp_path}/missing/s")

        assert error.field == "--ingest"
        assert f"{tmp_path}/missing does not exist" in error.message

    def test_file_in_the_way(self, settings: Any, tmp_path: Path) -> None:
        """A file that is no socket is left alone."""
        (tmp_path / "s").write_text("precious")

        assert self.fails(settings).field == "--ingest"
        assert (tmp_path / "s").read_text() == "precious"

    def test_socket_in_use(self, settings: Any, serve: Any, connect: Any) -> None:
        """The socket of a sidecar that serves is refused, and that sidecar serves on."""
        serve()

        error = self.fails(settings)

        assert (error.field, "another sidecar" in error.message) == ("--ingest", True)
        assert connect().ingest.Describe(ingest_pb2.DescribeRequest(), timeout=PATIENCE).hidden_size == 16

    @pytest.mark.parametrize("prefix", ["unix://", "unix:"])
    def test_stale_socket(self, prefix: str, serve: Any, connect: Any, tmp_path: Path) -> None:
        """A socket that a dead sidecar left is used again, by its group and nobody else."""
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(tmp_path / "s"))

        serve(ingest=f"{prefix}{tmp_path}/s")

        assert connect().ingest.Describe(ingest_pb2.DescribeRequest(), timeout=PATIENCE).hidden_size == 16
        assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o660

    def test_bank_and_policy(self, settings: Any, tmp_path: Path) -> None:
        """A bank or policy that cannot be used is an error of its own kind."""
        with pytest.raises(BankError):
            Sidecar(settings(bank=str(tmp_path / "none")))
        with pytest.raises(PolicyError):
            Sidecar(settings(policy=tmp_path / "none"))


class TestSettings:
    """Where settings come from."""

    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        """A settings file."""
        path = tmp_path / "settings.yaml"
        path.write_text("bank: file\npolicy: file\ningest: unix:///file\nhttp_port: 1\n")
        return path

    def test_precedence(self, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A flag wins over the environment, that over the file, and that over the default."""
        monkeypatch.setenv("AFFECT_BANK", "environment")
        monkeypatch.setenv("AFFECT_POLICY", "environment")

        chosen = load_settings(file, {"bank": "flag", "policy": None, "ingest": None})

        assert (chosen.bank, chosen.policy, chosen.ingest) == ("flag", Path("environment"), "unix:///file")
        assert (chosen.http_port, chosen.http_host, chosen.allow_unvalidated) == (1, "127.0.0.1", False)

    def test_missing(self) -> None:
        """A setting that is missing is named with its flag and its variable."""
        with pytest.raises(SetupError) as raised:
            load_settings(None, {"bank": None, "policy": Path("p")})

        assert raised.value.field == "bank"
        assert "--bank" in raised.value.message
        assert "AFFECT_BANK" in raised.value.message

    @pytest.mark.parametrize(
        ("name", "value"),
        [("HTTP_PORT", "70000"), ("HTTP_PORT", "x"), ("MAX_OPEN_TURNS", "0"), ("TURN_TIMEOUT_SECONDS", "-1")],
    )
    def test_out_of_bounds(self, name: str, value: str, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A value out of bounds is named, by the places it can be set at and no others."""
        monkeypatch.setenv(f"AFFECT_{name}", value)

        with pytest.raises(SetupError) as raised:
            load_settings(file, {"http_port": None})

        assert raised.value.field == name.lower()
        assert f"AFFECT_{name}" in raised.value.message
        assert ("--http-port" in raised.value.message) == (name == "HTTP_PORT")

    @pytest.mark.parametrize(
        ("text", "where"),
        [
            ("max_turns: 3", ":max_turns"),
            ("- a", ""),
            ("1: 2", ""),
            ("bank: [", ""),
            ("bank: \xff", ""),
            ("when: 2026-99-99", ""),
        ],
    )
    def test_bad_file(self, text: str, where: str, file: Path) -> None:
        """A file that cannot be used is an error that names it, and the setting in it."""
        file.write_bytes(text.encode("latin-1"))

        with pytest.raises(SetupError) as raised:
            load_settings(file, {"bank": "b", "policy": "p"})

        assert raised.value.field == f"{file}{where}"
        assert raised.value.message

    def test_no_file(self, tmp_path: Path) -> None:
        """A settings file that is not there is an error that names the flag."""
        with pytest.raises(SetupError) as raised:
            load_settings(tmp_path / "none", {})

        assert raised.value.field == "--settings"

    def test_empty_file(self, file: Path) -> None:
        """An empty file sets nothing."""
        file.write_text("")

        assert load_settings(file, {"bank": "b", "policy": "p"}).http_port == 9469
