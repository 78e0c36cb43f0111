"""Fixtures of every room."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from builders import make_bank, make_chatml_tokenizer

from monitor.probes.bank import Bank


@pytest.fixture(scope="session")
def small_bank() -> Bank:
    """A bank of hidden size 16, layers 1 and 2, four emotions in two families (see ``builders.make_bank``)."""
    return make_bank()


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Any:
    """A ChatML tokenizer whose markers are those of ``small_bank``."""
    return make_chatml_tokenizer()


@pytest.fixture(autouse=True)
def _logs_of_its_own() -> Iterator[None]:
    """Undoes what a command said about logs: it may have pointed them at a stream that the test has closed."""
    yield
    structlog.reset_defaults()
