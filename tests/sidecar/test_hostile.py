"""Clients that mean harm: they are refused, and the others are served as before."""

from __future__ import annotations

import socket
import threading
from typing import TYPE_CHECKING, Any

import grpc
import httpx
import pytest
import structlog
from engine import PATIENCE, Engine, Request, make_hello, make_turn, whole
from google.rpc.status_pb2 import Status
from grpc_health.v1 import health_pb2, health_pb2_grpc

from monitor.outputs import patience
from monitor.sidecar.limits import MAX_EVENTS, MAX_STREAMS_OF_PEER
from monitor.sidecar.server import _MAX_CONNECTIONS, _THREADS
from monitor.wire.v1 import ingest_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from monitor.probes.bank import Bank
    from monitor.sidecar.server import Sidecar

INGEST = "/affect.monitor.v1.IngestService/"


def describes(engine: Engine) -> bool:
    """Whether the sidecar answers an engine."""
    return bool(engine.ingest.Describe(ingest_pb2.DescribeRequest(), timeout=PATIENCE, wait_for_ready=True).bank_id)


class Silence:
    """A request that never comes."""

    def __init__(self) -> None:
        self._over = threading.Event()

    def __iter__(self) -> Iterator[bytes]:
        self._over.wait()
        yield from ()

    def end(self) -> None:
        """Lets go."""
        self._over.set()


class TestCalls:
    """Calls over gRPC."""

    @pytest.fixture
    def silent(self) -> Iterator[Callable[[Engine, str], Any]]:
        """Opens calls that say nothing."""
        silence = Silence()

        def call(engine: Engine, method: str) -> Any:
            return engine.channel.stream_stream(method)(iter(silence), timeout=PATIENCE)

        yield call
        silence.end()

    @pytest.mark.parametrize(
        "method", [f"{INGEST}Describe", f"{INGEST}StreamActivations", "/grpc.health.v1.Health/Check"]
    )
    def test_silent_call(self, method: str, serve: Any, connect: Any, silent: Any) -> None:
        """A call that says nothing is ended after a while, whatever it is of."""
        sidecar = serve()
        sidecar._prompt._seconds = 0.0

        assert silent(connect(), method).code() is grpc.StatusCode.CANCELLED

    def test_silent_call_without_token(self, serve: Any, connect: Any, silent: Any, tmp_path: Path) -> None:
        """A call that will be refused has no more time than others to say what it wants."""
        (tmp_path / "token").write_text("secret")
        (tmp_path / "token").chmod(0o600)
        sidecar = serve(token_file=tmp_path / "token")
        sidecar._prompt._seconds = 0.0

        call = silent(connect(), "/affect.monitor.v1.InspectService/GetStatus")

        assert call.code() is grpc.StatusCode.CANCELLED

    def test_engine_with_little_traffic(self, serve: Any, connect: Any, small_bank: Bank) -> None:
        """A stream that has said its hello may be silent for as long as it likes."""
        sidecar = serve()
        stream = connect().stream(small_bank)
        sidecar._prompt._seconds = 0.0

        sidecar._prompt.sweep()

        assert stream.send(whole(make_turn(small_bank, "turn"))).assessments

    def test_no_request(self, serve: Any, connect: Any) -> None:
        """A call that ends before its request is refused."""
        serve()

        call = connect().channel.stream_stream(f"{INGEST}Describe")(iter(()), timeout=PATIENCE)

        assert call.code() is grpc.StatusCode.INVALID_ARGUMENT

    def test_more_calls_than_threads(self, serve: Any, connect: Any, silent: Any) -> None:
        """Silent calls by the hundred are refused beyond the limit, and their threads come back."""
        sidecar = serve()
        calls = [silent(connect(), f"{INGEST}Describe") for _ in range(4) for _ in range(_THREADS // 2)]
        refused = grpc.StatusCode.RESOURCE_EXHAUSTED

        assert any(call.code() is refused for call in calls[_THREADS:])
        sidecar._prompt._seconds = 0.0
        assert {call.code() for call in calls} <= {refused, grpc.StatusCode.CANCELLED}
        assert describes(connect())

    @pytest.mark.parametrize("size", [20_000, 1 << 20])
    def test_metadata(self, size: int, serve: Any, connect: Any) -> None:
        """Metadata beyond the limit end their call."""
        serve()
        engine = connect()
        metadata = [("x-much", "x" * size)]

        call = engine.ingest.Describe.future(ingest_pb2.DescribeRequest(), timeout=PATIENCE, metadata=metadata)

        assert call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert describes(engine)

    def test_bomb(self, serve: Any, connect: Any, small_bank: Bank) -> None:
        """Bytes that grow when they are unpacked count as large as they become."""
        serve(max_frame_bytes=1 << 16)
        engine = connect()
        frame = Request(hello=make_hello(small_bank), rows=ingest_pb2.Tensor(data=bytes(1 << 24)))

        call = engine.ingest.StreamActivations(iter([frame]), timeout=PATIENCE, compression=grpc.Compression.Gzip)

        assert call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert engine.stream(small_bank).send(whole(make_turn(small_bank, "turn"))).assessments

    def test_unknown_method(self, serve: Any, connect: Any) -> None:
        """What is not served is not served."""
        serve()

        call = connect().channel.unary_unary("/affect.monitor.v1.IngestService/Shutdown").future(b"", timeout=PATIENCE)

        assert call.code() is grpc.StatusCode.UNIMPLEMENTED

    def test_health_under_made_up_names(self, serve: Any, connect: Any) -> None:
        """Names of services that a client makes up are not kept."""
        sidecar = serve()
        health = health_pb2_grpc.HealthStub(connect().channel)

        for number in range(10):
            watched = health.Watch(health_pb2.HealthCheckRequest(service=f"{number}"), timeout=PATIENCE)
            assert watched.code() is grpc.StatusCode.UNIMPLEMENTED

        assert not sidecar._health._send_response_callbacks


class TestStreams:
    """Streams and what comes over them."""

    def refused(self, call: Any) -> tuple[grpc.StatusCode, list[str]]:
        """How a stream ends, and the kinds of details that come with it."""
        code = call.code()
        packed = dict(call.trailing_metadata()).get("grpc-status-details-bin", b"")
        return code, [detail.TypeName().rpartition(".")[2] for detail in Status.FromString(packed).details]

    def test_too_many_of_one_machine(self, serve: Any, connect: Any, small_bank: Bank) -> None:
        """One machine has its part of the streams, and is told when to come again; one that ends makes room."""
        sidecar = serve(ingest="127.0.0.1:0", insecure=True)
        engine = connect(f"127.0.0.1:{sidecar.ingest_port}")
        streams = [engine.stream(small_bank, engine_id=f"{number}") for number in range(MAX_STREAMS_OF_PEER)]

        late = engine.ingest.StreamActivations(iter([Request(hello=make_hello(small_bank))]), timeout=PATIENCE)

        assert self.refused(late) == (grpc.StatusCode.RESOURCE_EXHAUSTED, ["RetryInfo"])
        assert streams[0].send(whole(make_turn(small_bank, "turn"))).assessments

    @pytest.mark.parametrize("first", [Request(), Request(hello=ingest_pb2.Hello())])
    def test_bad_hello(self, first: Request, serve: Any, connect: Any) -> None:
        """A stream that begins badly is told which field is to blame."""
        serve()

        call = connect().ingest.StreamActivations(iter([first]), timeout=PATIENCE)

        assert self.refused(call) == (grpc.StatusCode.INVALID_ARGUMENT, ["BadRequest"])

    def test_garbage_for_a_hello(self, serve: Any, connect: Any) -> None:
        """A stream that begins with bytes that are no frame is refused at once: it holds nothing."""
        sidecar = serve()

        call = connect().channel.stream_stream(f"{INGEST}StreamActivations")(iter([b"\xff" * 99]), timeout=PATIENCE)

        assert self.refused(call) == (grpc.StatusCode.INVALID_ARGUMENT, ["BadRequest"])
        assert sidecar.metrics.value("affect_streams_open") == 0

    @pytest.mark.parametrize("count", [MAX_EVENTS + 1, 1 << 18])
    def test_flood_of_events(self, count: int, serve: Any, connect: Any, small_bank: Bank) -> None:
        """A frame of more events than anyone has is set aside whole, with one fault; the stream goes on."""
        serve()
        stream = connect().raw_stream(small_bank)

        answer = stream.send(Request(events=[ingest_pb2.Event()]).SerializeToString() * count)

        assert [(fault.field, fault.reason) for fault in answer.faults] == [("events", "events")]
        assert stream.send(whole(make_turn(small_bank, "turn")).SerializeToString()).assessments

    def test_flood_of_faults_in_the_log(self, serve: Any, connect: Any, small_bank: Bank) -> None:
        """Bad input is counted every time and fills no log."""
        sidecar = serve()
        stream = connect().stream(small_bank)

        with structlog.testing.capture_logs() as log:
            for _ in range(50):
                stream.send(Request(events=[ingest_pb2.Event(request_id="none", end=ingest_pb2.End())]))

        assert 0 < len([line for line in log if line["event"] == "bad_input"]) < 50
        assert sidecar.metrics.value("affect_faults_total", "end_without_start") == 50


class TestConnections:
    """Connections that never become a call."""

    @pytest.fixture
    def sidecar(self, serve: Any) -> Sidecar:
        """A sidecar on loopback."""
        found: Sidecar = serve(ingest="127.0.0.1:0", insecure=True)
        return found

    def test_too_many(self, sidecar: Sidecar, connect: Any) -> None:
        """Connections beyond the limit are closed at once; engines that are connected are served on."""
        engine = connect(f"127.0.0.1:{sidecar.ingest_port}")
        assert describes(engine)
        held = [socket.create_connection(("127.0.0.1", sidecar.ingest_port)) for _ in range(_MAX_CONNECTIONS)]

        assert ended(held[-1])
        assert describes(engine)
        for connection in held:
            connection.close()
        assert describes(connect(f"127.0.0.1:{sidecar.ingest_port}"))

    @pytest.mark.parametrize("said", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01" + bytes(500), b"\xff" * 1000])
    def test_another_protocol(self, said: bytes, sidecar: Sidecar, connect: Any) -> None:
        """Who speaks something else is hung up on."""
        with socket.create_connection(("127.0.0.1", sidecar.ingest_port)) as connection:
            connection.sendall(said)
            assert ended(connection)
        assert describes(connect(f"127.0.0.1:{sidecar.ingest_port}"))


def ended(connection: socket.socket) -> bool:
    """Whether the other side hangs up."""
    connection.settimeout(PATIENCE)
    try:
        while connection.recv(1 << 16):
            pass
    except TimeoutError:
        return False
    except ConnectionError:
        return True
    return True


class TestHttp:
    """The pages."""

    @pytest.fixture
    def at(self, serve: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], socket.socket]]:
        """Connects to the pages of a sidecar that has little patience."""
        monkeypatch.setattr(patience, "REQUEST_SECONDS", 0.3)
        self.url = serve().http_url
        host, _, port = self.url.removeprefix("http://").partition(":")
        held: list[socket.socket] = []

        def connect() -> socket.socket:
            held.append(socket.create_connection((host, int(port))))
            return held[-1]

        yield connect
        for connection in held:
            connection.close()

    def unharmed(self) -> bool:
        """Whether a page is served."""
        return httpx.get(f"{self.url}/healthz", timeout=PATIENCE).status_code == 200

    @pytest.mark.parametrize(
        "said",
        [
            pytest.param(b"", id="nothing"),
            pytest.param(b"GET /healthz HTTP/1.1\r\nhost: x\r\n", id="half a head"),
            pytest.param(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n", id="nothing more"),
            pytest.param(b"POST /-/reload HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n", id="no body"),
        ],
    )
    def test_silence(self, said: bytes, at: Callable[[], socket.socket]) -> None:
        """A client that stops in the middle of anything is hung up on."""
        connection = at()
        connection.sendall(said)

        assert ended(connection)
        assert self.unharmed()

    @pytest.mark.parametrize(
        "head", [b"GET /healthz HTTP/1.1\r\n", b"POST /-/reload HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n"]
    )
    def test_drops(self, head: bytes, at: Callable[[], socket.socket]) -> None:
        """A client that sends a little now and then gets no more time than others."""
        connection = at()
        connection.sendall(head)
        connection.settimeout(0.05)

        def hung_up() -> bool:
            try:
                connection.sendall(b"x")
                return connection.recv(1000) == b""
            except TimeoutError:
                return False
            except ConnectionError:
                return True

        assert any(hung_up() for _ in range(int(PATIENCE / 0.05)))
        assert self.unharmed()

    def test_never_reads(self, at: Callable[[], socket.socket]) -> None:
        """A client that asks and asks and reads no answer is hung up on."""
        connection = at()
        connection.settimeout(PATIENCE)

        with pytest.raises(ConnectionError):  # noqa: PT012 - it may be hung up on at any of these
            for _ in range(100_000):
                connection.sendall(b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n" * 100)

        assert self.unharmed()

    def test_large_head(self, at: Callable[[], socket.socket]) -> None:
        """A head beyond the limit is refused."""
        connection = at()
        with pytest.raises(ConnectionError):  # noqa: PT012 - it may be hung up on at any of these
            for _ in range(1000):
                connection.sendall(b"GET / HTTP/1.1\r\nx-much: " + b"x" * (1 << 20))
            raise AssertionError
        assert self.unharmed()

    @pytest.mark.parametrize("chunked", [False, True])
    def test_endless_body(self, chunked: bool, at: Callable[[], socket.socket]) -> None:
        """A body that has no end is not waited for, nor kept."""
        kind = b"transfer-encoding: chunked" if chunked else b"content-length: 99999999999"
        block = b"10000\r\n" + b"x" * (1 << 16) + b"\r\n" if chunked else b"x" * (1 << 16)
        connection = at()
        connection.sendall(b"POST /-/reload HTTP/1.1\r\nhost: x\r\n" + kind + b"\r\n\r\n")
        with pytest.raises(ConnectionError):  # noqa: PT012 - it may be hung up on at any of these
            for _ in range(100_000):
                connection.sendall(block)

        assert self.unharmed()

    def test_too_many(self, at: Callable[[], socket.socket], monkeypatch: pytest.MonkeyPatch) -> None:
        """Connections beyond the limit are closed at once, and there is room again when some have gone."""
        monkeypatch.setattr(patience, "REQUEST_SECONDS", PATIENCE)
        held = [at() for _ in range(patience.MAX_CONNECTIONS + 8)]

        assert ended(held[-1])
        for connection in held:
            connection.close()
        assert self.unharmed()
