"""What was done to a sidecar, and by whom: one structured log line each, and a record where one is kept."""

from __future__ import annotations

from typing import Protocol

import structlog

from monitor.errors import SetupError
from monitor.outputs.metrics import Metrics
from monitor.sidecar.limits import LogLimiter

_LOG = structlog.get_logger("admin")
_REFUSED = "refused"
_COUNTED = "affect_credentials_refused_total"
_KINDS = ("token", "token_file", "certificates")


class AdminSink(Protocol):
    """Keeps administrative actions."""

    def action(self, name: str, **details: str) -> None:
        """Keeps one."""


def admin(action: str, *, sink: AdminSink | None = None, **details: str) -> None:
    """Tells of an administrative action; one that was refused as a warning.

    Args:
        action: What was done: start, stop, reload, token, token_file, certificates.
        sink: Keeps it as well.
        details: How it went and for whom, such as ``outcome`` and ``peer``.
    """
    log = _LOG.warning if details.get("outcome") == _REFUSED else _LOG.info
    log("admin", action=action, **details)
    if sink is not None:
        sink.action(action, **details)


class Doorbook:
    """Tells of what happens at the doors: tokens that are refused, files of credentials that change.

    Args:
        metrics: Counts what was refused.
        sink: Keeps all of it.
    """

    def __init__(self, metrics: Metrics, sink: AdminSink | None = None) -> None:
        self._metrics, self._sink = metrics, sink
        self._limiter = LogLimiter()
        metrics.declare(_COUNTED, [(kind,) for kind in _KINDS])

    def token_refused(self, peer: str) -> None:
        """A request without the right token. A stranger can send any number: all are counted, some are told."""
        self._metrics.add(_COUNTED, 1, "token")
        left_out = self._limiter.admit("token")
        if left_out is not None:
            admin("token", sink=self._sink, outcome=_REFUSED, peer=peer, left_out=str(left_out))

    def token_file_changed(self, error: SetupError | None) -> None:
        """The token file was taken anew, or refused."""
        self._changed("token_file", error)

    def certificates_changed(self, error: SetupError | None) -> None:
        """Certificates were taken anew, or refused."""
        self._changed("certificates", error)

    def _changed(self, action: str, error: SetupError | None) -> None:
        if error is None:
            admin(action, sink=self._sink, outcome="taken")
            return
        self._metrics.add(_COUNTED, 1, action)
        admin(action, sink=self._sink, outcome=_REFUSED, field=error.field, message=error.message)
