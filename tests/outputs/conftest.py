"""What deliveries are tested with."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from receivers import Double

from monitor.outputs import delivery
from monitor.outputs.metrics import Metrics


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries follow one another at once."""
    monkeypatch.setattr(delivery, "_FIRST_WAIT", 0.01)
    monkeypatch.setattr(delivery, "_LAST_WAIT", 0.02)


@pytest.fixture
def double() -> Iterator[Double]:
    """A receiver."""
    made = Double()
    yield made
    made.hold.set()
    made.stop()


@pytest.fixture
def metrics() -> Metrics:
    """Where results are counted."""
    return Metrics()
