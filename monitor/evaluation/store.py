"""Keeps what a suite has computed under its subject's cache, so that a cut run goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from typing import Any

from monitor.evaluation.subject import Subject


def stored(subject: Subject, key: object, make: Callable[[], Any]) -> Any:
    """What was computed before under a key, or is now.

    Args:
        subject: The model it depends on.
        key: All else it depends on, as JSON takes it.
        make: Computes it, as JSON takes it.
    """
    name = hashlib.sha256(json.dumps([subject.fingerprint, key]).encode()).hexdigest()[:24]
    file = subject.cache / "interventions" / f"{name}.json"
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(f".{os.getpid()}.partial")
        partial.write_text(json.dumps(make()), encoding="utf-8")
        partial.replace(file)
    return json.loads(file.read_text(encoding="utf-8"))
