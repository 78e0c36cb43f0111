"""What a tiny model and small corpora give the battery and the report."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "calibration"))

from small_corpus import Files, make_corpus, make_model, optional_parts, read, write_corpus

from monitor.calibration.calibrate import calibrate
from monitor.evaluation.battery.evidence import Evidence


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Small matrices are slower on many threads."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def full(tiny_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    """Evidence of a corpus that has every part, its layers chosen by a sweep."""
    files = make_corpus() | optional_parts()
    return _evidence(files, tiny_tokenizer, tmp_path_factory.mktemp("full"), ())


@pytest.fixture(scope="session")
def bare(tiny_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    """Evidence of a corpus without any optional part nor users without emotion, its layer given."""
    files = make_corpus()
    files["grid.jsonl"] = [item for item in files["grid.jsonl"] if item["strength"] > 0]
    files["texts.jsonl"] = [text for text in files["texts.jsonl"] if text["emotion"] != "neutral"]
    return _evidence(files, tiny_tokenizer, tmp_path_factory.mktemp("bare"), (3,))


def _evidence(files: Files, tokenizer: Any, folder: Path, layers: tuple[int, ...]) -> Evidence:
    model = make_model(len(tokenizer))
    corpus = read(write_corpus(folder / "corpus", files))
    return Evidence(calibrate("tiny", lambda: (model, tokenizer), corpus, folder / "cache", layers=layers))
