"""Mutual TLS of the ingest port: nobody without a certificate gets as far as a call."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import grpc

from monitor.errors import SetupError
from monitor.sidecar.watched import Watched


@dataclass(frozen=True)
class ServerTls:
    """Files of the sidecar's side, in PEM.

    Attributes:
        certificate: The sidecar's certificate, and what leads from it to the clients' ``ca``.
        key: Its private key.
        client_ca: Certificates of those that may sign a client's.
    """

    certificate: Path
    key: Path
    client_ca: Path

    def read(self) -> grpc.ServerCertificateConfiguration:
        """What the files say, checked.

        Raises:
            SetupError: A file cannot be read or used, or key and certificate are no pair.
        """
        # gRPC takes anything and fails at handshakes, so OpenSSL looks at it first.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(self.certificate, self.key, password=lambda: "")
        except (OSError, ValueError) as error:  # SSLError is an OSError
            fix = "give a certificate and its unencrypted key, in PEM"
            raise SetupError("tls_cert", f"{self.certificate} with {self.key}: {_reason(error)}; {fix}") from None
        try:
            context.load_verify_locations(self.client_ca)
        except (OSError, ValueError) as error:
            fix = "give the certificates that sign clients', in PEM"
            raise SetupError("tls_client_ca", f"{self.client_ca}: {_reason(error)}; {fix}") from None
        pair = (self.key.read_bytes(), self.certificate.read_bytes())
        return grpc.ssl_server_certificate_configuration([pair], self.client_ca.read_bytes())


def server_credentials(tls: ServerTls, told: Callable[[SetupError | None], None]) -> grpc.ServerCredentials:
    """Credentials that ask every client for a certificate; the files are looked at again at every handshake.

    Args:
        tls: The files.
        told: Called after every change of them: with None when it was taken, with the error when it was refused.

    Raises:
        SetupError: The files cannot be used.
    """
    watched = Watched((tls.certificate, tls.key, tls.client_ca), tls.read, told)
    served = first = watched.current()

    def changed() -> grpc.ServerCertificateConfiguration | None:
        nonlocal served
        found = watched.current()
        if found is served:
            return None
        served = found
        return found

    return grpc.dynamic_ssl_server_credentials(first, changed, require_client_authentication=True)


def _reason(error: Exception) -> str:
    return str(getattr(error, "reason", None) or getattr(error, "strerror", None) or error)
