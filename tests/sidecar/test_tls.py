"""Mutual TLS: who gets in, and certificates that change while the sidecar serves."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from engine import PATIENCE, make_turn, whole
from pki import Authority, Pair, credentials, put

from monitor.capture.credentials import ClientTls, open_channel
from monitor.errors import SetupError
from monitor.sidecar.tls import ServerTls
from monitor.wire.v1 import ingest_pb2, ingest_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from engine import Engine

    from monitor.probes.bank import Bank
    from monitor.sidecar.server import Sidecar

OVER = dt.timedelta(days=-1)
REFUSED = ("affect_credentials_refused_total", "certificates")


class Doors:
    """A sidecar behind mutual TLS, its files, and those who sign.

    Args:
        folder: Where the files go.
        serve: Starts sidecars.
        connect: Makes engines.
    """

    def __init__(self, folder: Path, serve: Any, connect: Any) -> None:
        self.ours, self.clients, self.strangers = Authority("ours"), Authority("clients"), Authority("strangers")
        self.files = ServerTls(folder / "tls.crt", folder / "tls.key", folder / "ca.crt")
        self.give(self.ours.issue("sidecar"))
        put(self.files.client_ca, self.clients.pem)
        self._connect = connect
        self.sidecar: Sidecar = serve(
            ingest="127.0.0.1:0",
            tls_cert=self.files.certificate,
            tls_key=self.files.key,
            tls_client_ca=self.files.client_ca,
        )
        self.address = f"127.0.0.1:{self.sidecar.ingest_port}"

    def give(self, pair: Pair) -> None:
        """Gives the sidecar a certificate."""
        put(self.files.key, pair.key)
        put(self.files.certificate, pair.certificate)

    def client(self, pair: Pair | None, trusted: Authority | None = None) -> Engine:
        """An engine that shows a certificate and trusts an authority."""
        engine: Engine = self._connect(self.address, credentials(trusted or self.ours, pair))
        return engine

    def right(self, trusted: Authority | None = None) -> Engine:
        """An engine with a right certificate."""
        return self.client(self.clients.issue("engine"), trusted)


@pytest.fixture
def doors(tmp_path: Path, serve: Any, connect: Any) -> Doors:
    """A sidecar behind mutual TLS."""
    return Doors(tmp_path, serve, connect)


def describes(engine: Engine) -> bool:
    """Whether the sidecar answers an engine."""
    try:
        return bool(engine.ingest.Describe(ingest_pb2.DescribeRequest(), timeout=PATIENCE).bank_id)
    except grpc.RpcError as error:
        if error.code() is not grpc.StatusCode.UNAVAILABLE:
            raise
        return False


class TestClients:
    """Whoever comes to the port."""

    def test_right_certificate(self, doors: Doors, small_bank: Bank) -> None:
        """A client whose certificate the clients' authority signed is served."""
        assert doors.right().stream(small_bank).send(whole(make_turn(small_bank, "turn"))).assessments

    @pytest.mark.parametrize(
        "pair",
        [
            pytest.param(lambda _: None, id="none"),
            pytest.param(lambda doors: doors.strangers.issue("engine"), id="of another authority"),
            pytest.param(lambda doors: doors.ours.issue("engine"), id="of the sidecar's own authority"),
            pytest.param(lambda doors: doors.clients.issue("engine", valid_for=OVER), id="expired"),
        ],
    )
    def test_wrong_certificate(self, doors: Doors, pair: Callable[[Doors], Pair | None]) -> None:
        """Nobody else gets as far as a call, and those who may are served on."""
        assert not describes(doors.client(pair(doors)))
        assert describes(doors.right())

    def test_without_tls(self, doors: Doors, connect: Any) -> None:
        """Plain text is not heard."""
        assert not describes(connect(doors.address))

    def test_sidecar_of_somebody_else(self, doors: Doors) -> None:
        """A client does not talk to a sidecar that its own authority did not sign."""
        assert not describes(doors.right(trusted=doors.strangers))


class TestRotation:
    """Files that change while the sidecar serves."""

    def test_new_pair(self, doors: Doors, small_bank: Bank) -> None:
        """A new certificate is shown from the next connection on; an open stream goes on."""
        stream, renewed = doors.right().stream(small_bank), Authority("renewed")

        doors.give(renewed.issue("sidecar"))

        assert describes(doors.right(trusted=renewed))
        assert not describes(doors.right(trusted=doors.ours))
        assert stream.send(whole(make_turn(small_bank, "turn"))).assessments

    def test_new_authority_of_clients(self, doors: Doors) -> None:
        """Who may come in changes with the file, too."""
        old = doors.clients.issue("engine")
        doors.clients = Authority("renewed")
        put(doors.files.client_ca, doors.clients.pem)

        assert describes(doors.right())
        assert not describes(doors.client(old))

    @pytest.mark.parametrize(
        "spoil",
        [
            pytest.param(lambda doors: put(doors.files.key, doors.ours.issue("x").key), id="key of another"),
            pytest.param(lambda doors: put(doors.files.certificate, b"none"), id="no certificate"),
            pytest.param(lambda doors: doors.files.key.unlink(), id="key gone"),
            pytest.param(lambda doors: put(doors.files.client_ca, b""), id="no authority"),
        ],
    )
    def test_bad_pair(self, doors: Doors, spoil: Callable[[Doors], object]) -> None:
        """Files that cannot be used are refused and counted once; the old serve on until better ones come."""
        spoil(doors)

        assert describes(doors.right())
        assert describes(doors.right())
        assert doors.sidecar.metrics.value(*REFUSED) == 1
        renewed = Authority("renewed")
        doors.give(renewed.issue("sidecar"))
        put(doors.files.client_ca, doors.clients.pem)
        assert describes(doors.right(trusted=renewed))


class TestFiles:
    """Files that cannot be used to begin with."""

    @pytest.fixture
    def files(self, tmp_path: Path) -> ServerTls:
        """Files that can."""
        authority = Authority("ours")
        pair = authority.issue("sidecar")
        found = ServerTls(tmp_path / "crt", tmp_path / "key", tmp_path / "ca")
        for file, content in ((found.certificate, pair.certificate), (found.key, pair.key)):
            file.write_bytes(content)
        found.client_ca.write_bytes(authority.pem)
        return found

    @pytest.mark.parametrize(
        ("name", "field"), [("certificate", "tls_cert"), ("key", "tls_cert"), ("client_ca", "tls_client_ca")]
    )
    @pytest.mark.parametrize("content", [None, b"", b"\xff"])
    def test_errors(self, name: str, field: str, content: bytes | None, files: ServerTls) -> None:
        """The error names the setting, the file and what to give."""
        file: Path = getattr(files, name)
        file.unlink()
        if content is not None:
            file.write_bytes(content)

        with pytest.raises(SetupError) as raised:
            files.read()

        assert raised.value.field == field
        assert str(file) in raised.value.message
        assert "PEM" in raised.value.message

    def test_part_of_the_settings(self, settings: Any, files: ServerTls) -> None:
        """Settings that go together are asked for together."""
        from monitor.sidecar.server import Sidecar

        with pytest.raises(SetupError) as raised:
            Sidecar(settings(ingest="127.0.0.1:0", tls_cert=files.certificate, tls_key=files.key))

        assert raised.value.field == "tls_client_ca"


class TestOurClient:
    """The channel of capture and of the command line."""

    def test_rotated_certificate(self, doors: Doors, tmp_path: Path) -> None:
        """A channel takes the files as they are when it is opened."""
        mine = ClientTls(tmp_path / "mine.ca", tmp_path / "mine.crt", tmp_path / "mine.key")
        mine.ca.write_bytes(doors.ours.pem)

        def answered(authority: Authority) -> bool:
            pair = authority.issue("engine")
            mine.certificate.write_bytes(pair.certificate)
            mine.key.write_bytes(pair.key)
            with open_channel(doors.address, [("grpc.use_local_subchannel_pool", 1)], mine) as channel:
                stub = ingest_pb2_grpc.IngestServiceStub(channel)
                try:
                    return bool(stub.Describe(ingest_pb2.DescribeRequest(), timeout=PATIENCE).bank_id)
                except grpc.RpcError:
                    return False

        assert [answered(doors.strangers), answered(doors.clients)] == [False, True]
