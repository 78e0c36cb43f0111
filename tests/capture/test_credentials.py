"""Channels to a sidecar."""

from __future__ import annotations

from pathlib import Path

import pytest

from monitor.capture.credentials import ClientTls, open_channel
from monitor.errors import SetupError


@pytest.mark.parametrize(("name", "field"), [("ca", "tls_ca"), ("certificate", "tls_cert"), ("key", "tls_key")])
def test_missing_file(name: str, field: str, tmp_path: Path) -> None:
    """A file that cannot be read is named, with its setting."""
    tls = ClientTls(tmp_path / "ca", tmp_path / "certificate", tmp_path / "key")
    for file in (tls.ca, tls.certificate, tls.key):
        file.write_bytes(b"x")
    (tmp_path / name).unlink()

    with pytest.raises(SetupError) as raised:
        open_channel("127.0.0.1:1", tls=tls)

    assert (raised.value.field, str(tmp_path / name) in raised.value.message) == (field, True)


def test_unix_socket_needs_none() -> None:
    """A unix socket goes without TLS, whatever is set."""
    open_channel("unix:///none", tls=ClientTls(Path("none"), Path("none"), Path("none"))).close()
