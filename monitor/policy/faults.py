"""Faults of the monitor itself, told the way alerts are: a monitor that fails must not look like a calm assistant."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

AUDIT_NOT_WRITTEN = "AffectAuditNotWritten"
BLIND = "AffectBlind"


@dataclass(frozen=True)
class MonitorFault:
    """Something that keeps the monitor from doing its work.

    Attributes:
        name: Name of the alert.
        description: What is wrong now.
        started: When it began, in seconds since the epoch.
        ended: When it was over; None while it lasts.
        runbook_url: Where to read on.
    """

    name: str
    description: str
    started: float
    ended: float | None = None
    runbook_url: str = ""

    @property
    def labels(self) -> dict[str, str]:
        """What identifies the alert."""
        return {"alertname": self.name, "severity": FAULTS[self.name].severity}

    @property
    def annotations(self) -> dict[str, str]:
        """What the alert says."""
        return {
            "summary": FAULTS[self.name].summary,
            "description": self.description,
            **({"runbook_url": self.runbook_url} if self.runbook_url else {}),
        }


@dataclass(frozen=True)
class FaultKind:
    """What is the same each time a fault comes up.

    Attributes:
        severity: Label of its alert.
        summary: What its alert says first.
        inhibits: Whether affect alerts are doubtful while it lasts, so that nobody is told of new ones.
    """

    severity: str
    summary: str
    inhibits: bool


FAULTS: dict[str, FaultKind] = {
    AUDIT_NOT_WRITTEN: FaultKind(
        "warning", "The audit store cannot be written; turns are scored, and not recorded", inhibits=False
    ),
    BLIND: FaultKind("critical", "The monitor sees too little: most recent turns could not be judged", inhibits=True),
}
"""Every fault there is, by the name of its alert."""


class Faults:
    """Keeps the faults that last; safe to use from several threads.

    Args:
        notify: Called with a fault when it comes up and when it is over.
        runbook: Gives the address of an alert's runbook.
        clock: Seconds since the epoch.
    """

    def __init__(
        self,
        notify: Callable[[MonitorFault], None],
        runbook: Callable[[str], str] = lambda _alert: "",
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._notify = notify
        self._runbook = runbook
        self._clock = clock
        self._active: dict[str, MonitorFault] = {}
        self._lock = threading.Lock()

    @property
    def active(self) -> list[MonitorFault]:
        """Faults that last, oldest first."""
        with self._lock:
            return sorted(self._active.values(), key=lambda fault: fault.started)

    def inhibit(self) -> bool:
        """Whether one lasts that makes affect alerts doubtful."""
        return any(FAULTS[fault.name].inhibits for fault in self.active)

    def set(self, name: str, failing: bool, description: str = "") -> None:
        """Says whether a fault is there; what is known already is not told again.

        Args:
            name: One of ``FAULTS``.
            failing: Whether it is there.
            description: What is wrong, for a fault that comes up.

        Raises:
            KeyError: There is no fault of this name.
        """
        with self._lock:
            if failing == (name in self._active):
                return
            if failing:
                FAULTS[name]
                fault = MonitorFault(name, description, self._clock(), runbook_url=self._runbook(name))
                self._active[name] = fault
            else:
                fault = replace(self._active.pop(name), ended=self._clock())
            # Within the lock: two changes are told in the order in which they happened.
            self._notify(fault)
