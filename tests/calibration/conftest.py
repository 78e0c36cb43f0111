"""A tiny model, and small corpora on disk."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from small_corpus import make_corpus, make_model, write_corpus

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Small matrices are slower on many threads."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def model(tiny_tokenizer: Any) -> Any:
    """A random Llama of four blocks."""
    return make_model(len(tiny_tokenizer))


@pytest.fixture
def corpus_folder(tmp_path: Path) -> Path:
    """A folder with a small corpus of four emotions and six domains."""
    return write_corpus(tmp_path / "corpus", make_corpus())
