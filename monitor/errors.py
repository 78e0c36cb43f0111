"""Typed errors: every one names the field at fault and how to mend it."""

from __future__ import annotations


class AffectMonitorError(Exception):
    """Base of every error this package raises on purpose.

    Args:
        field: Where the fault lies, as a path a user knows (``bank.json:layers``, ``rows.dtype``).
        message: What is wrong and what to do about it.
        reason: Stable name of the kind of fault, used as a metric label.
    """

    reason = "error"

    def __init__(self, field: str, message: str, *, reason: str | None = None) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field
        self.message = message
        if reason is not None:
            self.reason = reason


class FrameError(AffectMonitorError):
    """A frame, or a part of one, that cannot be scored."""

    reason = "frame"


class TurnError(AffectMonitorError):
    """An event or span that does not fit the life of its request."""

    reason = "turn"


class ModelMismatchError(AffectMonitorError):
    """The engine serves another model than the bank was calibrated on."""

    reason = "model_mismatch"


class BankError(AffectMonitorError):
    """A bank that cannot be loaded."""

    reason = "bank"


class PolicyError(AffectMonitorError):
    """A policy file that cannot be used."""

    reason = "policy"


class SteeringError(AffectMonitorError):
    """A steering file that cannot be used, or something in it that must not be."""

    reason = "steering"


class CorpusError(AffectMonitorError):
    """A corpus or input line that cannot be used."""

    reason = "corpus"


class SetupError(AffectMonitorError):
    """Something outside the process is missing: a port, a file, a package, the network."""

    reason = "setup"
