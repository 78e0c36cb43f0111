"""The token: what it opens, what stays open, and files that change."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

import grpc
import httpx
import pytest
import structlog
from engine import PATIENCE, Engine, make_turn, whole
from grpc_health.v1 import health_pb2, health_pb2_grpc

from monitor.errors import SetupError
from monitor.sidecar.server import Sidecar
from monitor.wire.v1 import inspect_pb2

if TYPE_CHECKING:
    from pathlib import Path

    from monitor.probes.bank import Bank

TOKEN = "correct-horse"  # noqa: S105 - of these tests alone
LOOKS = [("GET", "/"), ("GET", "/turns"), ("GET", "/runbooks"), ("GET", "/api/status"), ("GET", "/api/turns")]
GUARDED = [*LOOKS, ("POST", "/-/reload")]
OPEN = [("GET", "/metrics"), ("GET", "/healthz"), ("GET", "/readyz"), ("GET", "/static/page.css")]
WRONG = ["", "Bearer", "Bearer wrong", f"Basic {TOKEN}", TOKEN, f"Bearer {TOKEN}x", "Bearer corr\u00e9ct"]


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    """A file with the token."""
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    file.chmod(0o600)
    return file


def ask(sidecar: Sidecar, method: str, path: str, authorization: str | None = None, **headers: str) -> httpx.Response:
    """A page, asked for with an Authorization header."""
    if authorization is not None:
        headers["authorization"] = authorization
    encoded = {name: value.encode("latin-1") for name, value in headers.items()}
    return httpx.request(method, sidecar.http_url + path, headers=encoded, timeout=PATIENCE)


def basic(user: str, password: str) -> str:
    """The Authorization header of a browser."""
    return f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"


def refused(sidecar: Sidecar) -> float:
    """How many requests were refused."""
    return sidecar.metrics.value("affect_credentials_refused_total", "token")


class TestPages:
    """HTTP."""

    @pytest.mark.parametrize(("method", "path"), GUARDED)
    @pytest.mark.parametrize("authorization", [None, *WRONG])
    def test_wrong_token(self, method: str, path: str, authorization: str | None, serve: Any, token_file: Path) -> None:
        """Without the token there is a 401 and nothing else; counted, unless it is a browser's first look."""
        sidecar = serve(token_file=token_file)

        answer = ask(sidecar, method, path, authorization)

        challenges = answer.headers.get_list("www-authenticate")
        assert (answer.status_code, challenges[0]) == (401, "Bearer")
        assert [challenge.split()[0] for challenge in challenges[1:]] == ([] if method == "POST" else ["Basic"])
        assert TOKEN not in answer.text
        assert refused(sidecar) == (0 if not authorization and method != "POST" else 1)

    @pytest.mark.parametrize(("method", "path"), GUARDED)
    def test_right_token(self, method: str, path: str, serve: Any, token_file: Path) -> None:
        """The token opens the page."""
        sidecar = serve(token_file=token_file)

        assert ask(sidecar, method, path, f"Bearer {TOKEN}").status_code == 200
        assert refused(sidecar) == 0

    @pytest.mark.parametrize(("method", "path"), LOOKS)
    @pytest.mark.parametrize("user", ["", "anyone"])
    def test_token_as_a_password(self, method: str, path: str, user: str, serve: Any, token_file: Path) -> None:
        """A browser, which asks for user and password, looks with the token as the password of anybody."""
        sidecar = serve(token_file=token_file)

        assert ask(sidecar, method, path, basic(user, TOKEN)).status_code == 200
        assert ask(sidecar, method, path, basic(TOKEN, user)).status_code == 401

    def test_password_changes_nothing(self, serve: Any, token_file: Path) -> None:
        """Browsers send passwords whoever makes them ask, so that a password does not reload."""
        assert ask(serve(token_file=token_file), "POST", "/-/reload", basic("", TOKEN)).status_code == 401

    @pytest.mark.parametrize(("method", "path"), OPEN)
    @pytest.mark.parametrize("flags", [{}, {"http_host": "0.0.0.0"}])  # noqa: S104 - what is tested
    def test_open_pages(self, method: str, path: str, flags: dict[str, str], serve: Any, token_file: Path) -> None:
        """Health and metrics are asked for without a token, with one set or none."""
        assert ask(serve(token_file=token_file, **flags), method, path).status_code == 200

    @pytest.mark.parametrize(("method", "path"), GUARDED)
    def test_without_a_token_beyond_loopback(self, method: str, path: str, serve: Any) -> None:
        """Where no token is set, pages that other machines reach stay closed and say which setting opens them."""
        answer = ask(serve(http_host="0.0.0.0"), method, path)  # noqa: S104 - what is tested

        assert answer.status_code == 403
        assert "token_file" in answer.text

    @pytest.mark.parametrize(("method", "path"), GUARDED)
    @pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "localhost.evil.example", "[::", ""])
    def test_name_of_a_web_page(self, method: str, path: str, host: str, serve: Any) -> None:
        """A name that was made to point at this machine does not open its pages to a browser."""
        assert ask(serve(), method, path, host=host).status_code == 403

    def test_form_of_a_web_page(self, serve: Any) -> None:
        """A page in a browser on this machine may send a form to a true name, and reloads nothing by it."""
        address = serve().http_url
        answer = httpx.post(f"{address}/-/reload", headers={"origin": "https://evil.example"})
        assert (answer.status_code, httpx.post(f"{address}/-/reload").status_code) == (403, 200)

    @pytest.mark.parametrize("host", ["localhost:9469", "127.0.0.1", "[::1]:9469"])
    def test_names_of_loopback(self, host: str, serve: Any) -> None:
        """Its true names do."""
        assert ask(serve(), "GET", "/", host=host).status_code == 200


class TestInspect:
    """The gRPC service that looks inside."""

    def calls(self, engine: Engine, authorization: str | None) -> list[grpc.StatusCode]:
        """How each method answers."""
        metadata = [] if authorization is None else [("authorization", authorization)]
        stub, found = engine.inspect, []
        for method, request in (
            (stub.GetStatus, inspect_pb2.GetStatusRequest()),
            (stub.ListAlerts, inspect_pb2.ListAlertsRequest()),
            (stub.GetTurn, inspect_pb2.GetTurnRequest(turn_id="none")),
        ):
            found.append(method.future(request, timeout=PATIENCE, metadata=metadata).code())
        watch = stub.WatchTurns(inspect_pb2.WatchTurnsRequest(policy="x" * 300), timeout=PATIENCE, metadata=metadata)
        return [*found, watch.code()]

    @pytest.mark.parametrize("authorization", [None, "Bearer wrong", TOKEN])
    def test_wrong_token(self, authorization: str | None, serve: Any, connect: Any, token_file: Path) -> None:
        """Without the token no method is reached."""
        sidecar = serve(token_file=token_file)

        assert self.calls(connect(), authorization) == [grpc.StatusCode.UNAUTHENTICATED] * 4
        assert refused(sidecar) == 4

    def test_right_token(self, serve: Any, connect: Any, token_file: Path) -> None:
        """The token opens all of them."""
        sidecar = serve(token_file=token_file)
        code = grpc.StatusCode

        assert self.calls(connect(), f"Bearer {TOKEN}") == [code.OK, code.OK, code.NOT_FOUND, code.INVALID_ARGUMENT]
        assert refused(sidecar) == 0

    def test_two_tokens(self, serve: Any, connect: Any, token_file: Path) -> None:
        """Two headers, one of them right, are one too many."""
        serve(token_file=token_file)
        metadata = [("authorization", "Bearer wrong"), ("authorization", f"Bearer {TOKEN}")]

        call = connect().inspect.GetStatus.future(inspect_pb2.GetStatusRequest(), timeout=PATIENCE, metadata=metadata)

        assert call.code() is grpc.StatusCode.UNAUTHENTICATED

    def test_engines_and_health_need_none(self, serve: Any, connect: Any, token_file: Path, small_bank: Bank) -> None:
        """Frames and health are taken without it: the token is for reading."""
        serve(token_file=token_file)
        engine = connect()

        assert engine.stream(small_bank).send(whole(make_turn(small_bank, "turn"))).assessments
        health = health_pb2_grpc.HealthStub(engine.channel)
        assert health.Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE).status


class TestFile:
    """The file of the token."""

    @pytest.mark.parametrize(
        ("content", "mode", "said"),
        [(b"", 0o600, "empty"), (b" \n", 0o600, "empty"), (b"t", 0o604, "chmod"), (b"\xff", 0o600, "ASCII")],
    )
    def test_errors(self, content: bytes, mode: int, said: str, settings: Any, token_file: Path) -> None:
        """A file that cannot be used is an error that says why."""
        token_file.write_bytes(content)
        token_file.chmod(mode)

        with pytest.raises(SetupError) as raised:
            Sidecar(settings(token_file=token_file))

        assert raised.value.field == "token_file"
        assert said in raised.value.message

    def test_missing(self, settings: Any, token_file: Path) -> None:
        """So is one that is not there."""
        token_file.unlink()

        with pytest.raises(SetupError, match=str(token_file)):
            Sidecar(settings(token_file=token_file))

    def test_new_token(self, serve: Any, token_file: Path) -> None:
        """A new token counts from the next request on, and the old one no more."""
        sidecar = serve(token_file=token_file)
        token_file.write_text("renewed")

        assert ask(sidecar, "GET", "/", f"Bearer {TOKEN}").status_code == 401
        assert ask(sidecar, "GET", "/", "Bearer renewed").status_code == 200

    def test_bad_new_token(self, serve: Any, token_file: Path) -> None:
        """A new file that cannot be used is refused, logged and counted once; the old token counts on."""
        sidecar = serve(token_file=token_file)

        with structlog.testing.capture_logs() as log:
            token_file.write_text("")
            assert ask(sidecar, "GET", "/", "Bearer").status_code == 401
            assert ask(sidecar, "GET", "/", f"Bearer {TOKEN}").status_code == 200

        told = [line for line in log if line.get("action") == "token_file"]
        assert [(line["outcome"], line["field"], line["log_level"]) for line in told] == [
            ("refused", "token_file", "warning")
        ]
        assert sidecar.metrics.value("affect_credentials_refused_total", "token_file") == 1


class TestLog:
    """What is told of it."""

    def test_flood_of_refusals(self, serve: Any, token_file: Path) -> None:
        """A stranger who asks again and again is counted every time and fills no log."""
        sidecar = serve(token_file=token_file)

        with structlog.testing.capture_logs() as log, httpx.Client(base_url=sidecar.http_url) as client:
            for _ in range(30):
                answer = client.get("/", timeout=PATIENCE, headers={"authorization": "Bearer wrong"})
                assert answer.status_code == 401

        told = [line for line in log if line.get("action") == "token"]
        assert 0 < len(told) < 30
        assert told[0]["peer"] == "127.0.0.1"
        assert refused(sidecar) == 30

    def test_reload(self, serve: Any, token_file: Path) -> None:
        """A reload is told with its outcome and who asked for it."""
        sidecar = serve(token_file=token_file)

        with structlog.testing.capture_logs() as log:
            ask(sidecar, "POST", "/-/reload", f"Bearer {TOKEN}")
            sidecar.reload()

        told = [(line["action"], line["outcome"], line["peer"]) for line in log if line["event"] == "admin"]
        assert told == [("reload", "taken", "127.0.0.1"), ("reload", "taken", "SIGHUP")]
