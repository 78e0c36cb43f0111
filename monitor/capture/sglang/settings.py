"""Settings of the SGLang plugin: SGLang hands plugins none, so they come from the environment."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from monitor.capture.credentials import ClientTls


@dataclass(frozen=True)
class SglangSettings:
    """What the plugin is told.

    Attributes:
        sidecar: ``unix:///path`` or ``host:port`` of the sidecar (``AFFECT_SIDECAR``).
        weights_fingerprint: Fingerprint of the weights (``AFFECT_WEIGHTS_FINGERPRINT``); else computed from the files.
        tls: Certificates for a sidecar on TCP (``AFFECT_TLS_CA``, ``AFFECT_TLS_CERT``, ``AFFECT_TLS_KEY``).
    """

    sidecar: str
    weights_fingerprint: str = ""
    tls: ClientTls | None = None

    @classmethod
    def from_environment(cls) -> SglangSettings | None:
        """The settings of this process; None where no sidecar is named."""
        sidecar = os.environ.get("AFFECT_SIDECAR", "")
        if not sidecar:
            return None
        files = [os.environ.get(f"AFFECT_TLS_{name}", "") for name in ("CA", "CERT", "KEY")]
        tls = ClientTls(*map(Path, files)) if all(files) else None
        return cls(sidecar, os.environ.get("AFFECT_WEIGHTS_FINGERPRINT", ""), tls)
