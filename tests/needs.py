"""What some tests need from the machine: found, or the test is skipped; where it is required, its absence fails."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from monitor.demo.assistant import assistant_folder, is_cached


def server(name: str) -> str:
    """Path of a program of Debian's monitoring packages; AFFECT_REQUIRE_SERVERS=1 makes its absence a failure."""
    found = shutil.which(name)
    if found is None:
        _lacking("SERVERS", f"{name} is missing: apt-get install prometheus prometheus-alertmanager")
    return str(found)


def assistant() -> Path:
    """Folder of the demo assistant; AFFECT_REQUIRE_ASSISTANT=1 makes its absence a failure."""
    if not is_cached():
        _lacking("ASSISTANT", "the demo assistant is not cached: affect-monitor demo --once")
    return assistant_folder()


def _lacking(what: str, message: str) -> None:
    if os.environ.get(f"AFFECT_REQUIRE_{what}") == "1":
        pytest.fail(message)
    pytest.skip(message)
