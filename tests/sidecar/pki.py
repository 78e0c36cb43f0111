"""Certificates made for a test."""

from __future__ import annotations

import datetime as dt
import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

if TYPE_CHECKING:
    from pathlib import Path

_DAY = dt.timedelta(days=1)


@dataclass(frozen=True)
class Pair:
    """A certificate and its private key, in PEM."""

    certificate: bytes
    key: bytes


class Authority:
    """Someone who signs certificates.

    Args:
        name: Its name.
    """

    def __init__(self, name: str) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _named(name)
        limits = x509.BasicConstraints(ca=True, path_length=None)
        self._certificate = self._sign(name, self._key.public_key(), _DAY, limits)
        self.pem = self._certificate.public_bytes(serialization.Encoding.PEM)

    def issue(self, name: str, *, valid_for: dt.timedelta = _DAY) -> Pair:
        """A certificate for a server on 127.0.0.1 or a client; it may be over already."""
        key = ec.generate_private_key(ec.SECP256R1())
        here = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        certificate = self._sign(name, key.public_key(), valid_for, here)
        return Pair(certificate.public_bytes(serialization.Encoding.PEM), _pem(key))

    def _sign(self, name: str, key: Any, valid_for: dt.timedelta, extension: Any) -> x509.Certificate:
        now = dt.datetime.now(dt.timezone.utc)
        return (
            x509.CertificateBuilder()
            .subject_name(_named(name))
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - 2 * _DAY)
            .not_valid_after(now + valid_for)
            .add_extension(extension, critical=False)
            .sign(self._key, hashes.SHA256())
        )


def credentials(trusted: Authority, pair: Pair | None = None) -> grpc.ChannelCredentials:
    """What a client knows and shows."""
    if pair is None:
        return grpc.ssl_channel_credentials(trusted.pem)
    return grpc.ssl_channel_credentials(trusted.pem, pair.key, pair.certificate)


def put(file: Path, content: bytes) -> None:
    """Puts a file in the place of another in one go, as Kubernetes does."""
    fresh = file.with_suffix(".new")
    fresh.write_bytes(content)
    fresh.replace(file)


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
