"""Each fault of faults.py once, in real processes: every token is accounted for, and what is promised is kept."""

from __future__ import annotations

from pathlib import Path

import pytest
from faults import SCENARIOS

NEEDS_SERVERS = {"disk_full"}


@pytest.mark.parametrize(
    "fault", [pytest.param(name, marks=[pytest.mark.servers] if name in NEEDS_SERVERS else []) for name in SCENARIOS]
)
def test_every_token_is_accounted_for(fault: str, tmp_path: Path) -> None:
    """Tokens sent are tokens scored, not finite and told as gaps, request by request and in all."""
    result = SCENARIOS[fault](tmp_path)
    assert result.broken == []
    assert result.exact
