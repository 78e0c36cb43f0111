"""How a client proves to a sidecar who it is, and has the sidecar prove the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from monitor.errors import SetupError


@dataclass(frozen=True)
class ClientTls:
    """Files of mutual TLS, in PEM.

    Attributes:
        ca: Certificates of those that may sign the sidecar's.
        certificate: This client's certificate, and what leads from it to the sidecar's ``tls_client_ca``.
        key: Its private key.
    """

    ca: Path
    certificate: Path
    key: Path


def open_channel(address: str, options: Sequence[tuple[str, Any]] = (), tls: ClientTls | None = None) -> grpc.Channel:
    """Opens a channel to a sidecar. The files are read now, so that the next channel takes rotated ones.

    Args:
        address: ``unix:///PATH`` or ``HOST:PORT``.
        options: Channel arguments of gRPC.
        tls: Files for a ``HOST:PORT``; a unix socket is guarded by its mode and goes without.

    Raises:
        SetupError: A file cannot be read.
    """
    if tls is None or address.startswith("unix:"):
        return grpc.insecure_channel(address, options=options)
    credentials = grpc.ssl_channel_credentials(
        root_certificates=_read("tls_ca", tls.ca),
        private_key=_read("tls_key", tls.key),
        certificate_chain=_read("tls_cert", tls.certificate),
    )
    return grpc.secure_channel(address, credentials, options=options)


def _read(field: str, file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise SetupError(field, f"{file}: {error.strerror}; name a file that can be read") from None
