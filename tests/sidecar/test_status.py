"""``affect-monitor status`` against a sidecar that asks who it is."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from pki import Authority
from typer.testing import CliRunner

from monitor.cli import app
from monitor.errors import SetupError

if TYPE_CHECKING:
    from pathlib import Path

    from monitor.sidecar.server import Sidecar


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """A token and the certificates of a sidecar and a client, by the name of their setting."""
    authority = Authority("ours")
    pair = authority.issue("both")
    content = {"token": b"secret", "ca": authority.pem, "cert": pair.certificate, "key": pair.key}
    found = {}
    for name, what in content.items():
        found[name] = tmp_path / name
        found[name].write_bytes(what)
        found[name].chmod(0o600)
    return found


@pytest.fixture
def sidecar(serve: Any, files: dict[str, Path]) -> Sidecar:
    """A sidecar with a token, behind mutual TLS."""
    tls = {"tls_cert": files["cert"], "tls_key": files["key"], "tls_client_ca": files["ca"]}
    found: Sidecar = serve(ingest="127.0.0.1:0", token_file=files["token"], **tls)
    return found


def status(sidecar: Sidecar, *flags: object, **environment: object) -> Any:
    """What the command prints; raises what it ends with."""
    command = ["status", "--address", f"127.0.0.1:{sidecar.ingest_port}", *map(str, flags)]
    result = CliRunner(env={name: str(value) for name, value in environment.items()}).invoke(app, command)
    if result.exception is not None:
        raise result.exception
    return json.loads(result.stdout)


def test_flags(sidecar: Sidecar, files: dict[str, Path]) -> None:
    """Token and certificates are given as flags."""
    tls = ("--tls-ca", files["ca"], "--tls-cert", files["cert"], "--tls-key", files["key"])

    assert status(sidecar, "--token-file", files["token"], *tls)["modelName"] == "tiny"


def test_environment(sidecar: Sidecar, files: dict[str, Path]) -> None:
    """Or as variables."""
    tls = {f"AFFECT_TLS_{name.upper()}": files[name] for name in ("ca", "cert", "key")}

    assert status(sidecar, AFFECT_TOKEN_FILE=files["token"], **tls)["modelName"] == "tiny"


def test_without_token(sidecar: Sidecar, files: dict[str, Path]) -> None:
    """Without the token the error names the flag."""
    tls = ("--tls-ca", files["ca"], "--tls-cert", files["cert"], "--tls-key", files["key"])

    with pytest.raises(SetupError) as raised:
        status(sidecar, *tls)

    assert raised.value.field == "--token-file"


def test_part_of_the_certificates(sidecar: Sidecar, files: dict[str, Path]) -> None:
    """Flags that go together are asked for together."""
    with pytest.raises(SetupError) as raised:
        status(sidecar, "--tls-ca", files["ca"])

    assert raised.value.field == "--tls-ca"


def test_without_certificates(sidecar: Sidecar, files: dict[str, Path]) -> None:
    """Without certificates nobody answers."""
    with pytest.raises(SetupError) as raised:
        status(sidecar, "--token-file", files["token"])

    assert raised.value.field == "--address"
