"""A plugin of vLLM that makes parts of capture fail in its processes, as a file tells: for tests of what then happens.

The file holds the name of a part; while it stands there, every call of the part fails. AFFECT_FAULT_FILE names it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

PARTS = (
    "compat.is_followed", "compat.begin", "compat.tokens", "compat.scheduled", "compat.runs", "compat.end_reason",
    "Ledger.begin", "Ledger.fill", "Ledger.finish",
    "CachedRows.take", "HostCopies.hand_on", "Introduction.client",
    "SidecarClient.start", "SidecarClient.rows", "SidecarClient.end",
)  # fmt: skip
PAUSE_SECONDS = 2.0
"""How long capture stops after five errors in a row."""


def kind(part: str) -> str:
    """Name of the exception that a part fails with; each has its own, so that the log tells them apart."""
    return part.replace(".", "") + "Fault"


def register() -> None:
    """Puts what can fail around every part; called by vLLM in each of its processes, maybe more than once."""
    from monitor.capture import breaker, emitter, introduction
    from monitor.capture.vllm import cached, compat, ledger

    if breaker._PAUSE_SECONDS == PAUSE_SECONDS:
        return
    breaker._PAUSE_SECONDS = PAUSE_SECONDS
    owners = {"compat": compat, "Ledger": ledger.Ledger, "CachedRows": cached.CachedRows}
    owners |= {"HostCopies": emitter.HostCopies, "Introduction": introduction.Introduction}
    owners |= {"SidecarClient": introduction.SidecarClient}
    for part in PARTS:
        owner, name = part.split(".")
        setattr(owners[owner], name, _fallible(part, getattr(owners[owner], name)))


def _fallible(part: str, works: Any) -> Any:
    file, error = Path(os.environ["AFFECT_FAULT_FILE"]), type(kind(part), (RuntimeError,), {})

    def call(*arguments: Any, **named: Any) -> Any:
        if file.read_text() == part:
            raise error("injected")
        return works(*arguments, **named)

    return call
