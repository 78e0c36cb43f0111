"""Fixtures of every room."""

from __future__ import annotations

from typing import Any

import pytest
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
