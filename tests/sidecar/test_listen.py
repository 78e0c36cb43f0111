"""Where the sidecar listens, and to whom."""

from __future__ import annotations

import grp
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import structlog
from engine import PATIENCE

from monitor.errors import SetupError
from monitor.sidecar import listen
from monitor.sidecar.listen import is_loopback
from monitor.sidecar.server import Sidecar
from monitor.wire.v1 import ingest_pb2

if TYPE_CHECKING:
    from collections.abc import Iterator

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")


@pytest.fixture
def path(address: str) -> Path:
    """The socket."""
    return Path(address.removeprefix("unix://"))


@pytest.fixture
def open_umask() -> Iterator[None]:
    """A process whose files are everyone's."""
    before = os.umask(0)
    yield
    os.umask(before)


class TestSocket:
    """The unix socket."""

    @pytest.mark.parametrize("mode", ["0600", "0660", "0666", "600"])
    def test_mode(self, mode: str, serve: Any, path: Path) -> None:
        """The socket has the mode of the settings."""
        serve(socket_mode=mode)

        assert stat.S_IMODE(path.stat().st_mode) == int(mode, 8)

    @pytest.mark.parametrize("mode", ["", "rw", "0888", "01660", "66"])
    def test_no_mode(self, mode: str, settings: Any) -> None:
        """A mode that is none is an error that names the setting."""
        with pytest.raises(SetupError) as raised:
            settings(socket_mode=mode)

        assert raised.value.field == "socket_mode"

    @pytest.mark.usefixtures("open_umask")
    def test_never_wider(self, serve: Any, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Before it is given to anyone the socket is its owner's alone, whatever the process makes else."""
        seen: list[int] = []
        give = listen.open_to

        def look(*given: Any) -> None:
            seen.append(stat.S_IMODE(path.stat().st_mode))
            give(*given)

        monkeypatch.setattr(listen, "open_to", look)
        serve()

        assert seen == [0o600]
        assert stat.S_IMODE(path.stat().st_mode) == 0o660

    @as_root
    def test_owner_and_group(self, serve: Any, path: Path) -> None:
        """The socket is given to a user and a group, by name or by number."""
        group = next(entry for entry in grp.getgrall() if entry.gr_gid)

        serve(socket_owner="4711", socket_group=group.gr_name)

        assert (path.stat().st_uid, path.stat().st_gid) == (4711, group.gr_gid)

    @pytest.mark.parametrize("field", ["socket_owner", "socket_group"])
    def test_nobody_of_that_name(self, field: str, settings: Any) -> None:
        """A user or group that does not exist is an error that names the setting."""
        with pytest.raises(SetupError) as raised:
            Sidecar(settings(**{field: "no-such-name"}))

        assert raised.value.field == field

    @pytest.mark.parametrize(("mode", "warned"), [(0o777, True), (0o1777, False), (0o3777, False), (0o755, False)])
    def test_folder_for_everyone(self, mode: int, warned: bool, serve: Any, tmp_path: Path) -> None:
        """A folder in which anyone can replace the socket is warned of."""
        folder = tmp_path / "open"
        folder.mkdir()
        folder.chmod(mode)

        with structlog.testing.capture_logs() as log:
            serve(ingest=f"unix://{folder}/s")

        assert any(line["event"] == "open_folder" for line in log) == warned

    def test_tls_settings(self, settings: Any, tmp_path: Path) -> None:
        """Settings of TLS beside a unix socket are a misunderstanding, and told as one."""
        with pytest.raises(SetupError) as raised:
            Sidecar(settings(tls_cert=tmp_path / "crt"))

        assert raised.value.field == "tls_cert"
        assert "socket_mode" in raised.value.message


class TestPort:
    """A TCP port without TLS."""

    def refusal(self, settings: Any, **flags: Any) -> SetupError:
        """The error a sidecar with these settings ends with."""
        with pytest.raises(SetupError) as raised:
            Sidecar(settings(**flags))
        return raised.value

    @pytest.mark.parametrize("ingest", ["127.0.0.1:0", "0.0.0.0:0", "localhost:0"])
    def test_not_by_accident(self, ingest: str, settings: Any) -> None:
        """Without TLS a port is refused, and the error says what to do."""
        error = self.refusal(settings, ingest=ingest)

        assert error.field == "--ingest"
        for way in ("--tls-cert", "--tls-client-ca", "unix socket", "--insecure"):
            assert way in error.message

    @pytest.mark.parametrize(
        "ingest", ["0.0.0.0:0", "[::]:0", "10.1.2.3:0", "example.invalid:0", "ipv4:0.0.0.0:0", ":0"]
    )
    def test_never_beyond_loopback(self, ingest: str, settings: Any) -> None:
        """Where other machines reach it, a port without TLS is refused even when it is asked for."""
        error = self.refusal(settings, ingest=ingest, insecure=True)

        assert error.field == "--insecure"
        assert "--tls-cert" in error.message

    def test_on_loopback(self, serve: Any, connect: Any) -> None:
        """On loopback it is served when it is asked for."""
        sidecar = serve(ingest="127.0.0.1:0", insecure=True)

        engine = connect(f"127.0.0.1:{sidecar.ingest_port}")
        assert engine.ingest.Describe(ingest_pb2.DescribeRequest(), timeout=PATIENCE).bank_id

    @pytest.mark.parametrize(
        ("host", "expected"),
        [
            ("localhost", True),
            ("127.0.0.1", True),
            ("127.9.8.7", True),
            ("::1", True),
            ("[::1]", True),
            ("", False),
            ("0.0.0.0", False),  # noqa: S104 - what is tested
            ("::", False),
            ("127.0.0.1.example.com", False),
            ("localhost.example.com", False),
        ],
    )
    def test_loopback(self, host: str, expected: bool) -> None:
        """Only addresses of loopback and its one name count as loopback."""
        assert is_loopback(host) == expected
