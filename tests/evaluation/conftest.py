"""What a tiny model and small corpora give the battery and the report."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "calibration"))

from small_corpus import Files, grid_item, make_corpus, make_model, read, words, write_corpus

from monitor.calibration.calibrate import calibrate
from monitor.evaluation.evidence import Evidence


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Small matrices are slower on many threads."""
    torch.set_num_threads(1)


def optional_parts() -> Files:
    """The files a corpus may lack: contrast pairs, crises, hard texts and intensity series."""
    rng = np.random.default_rng(1)
    pairs = [grid_item(rng, f"domain {domain}", strength=1) for domain in range(6)]
    left_out = ("neutral", "excess_lexical", "neutral_names_emotion")
    return {
        "contrast.jsonl": [
            {**{name: value for name, value in pair.items() if name not in left_out}, "twin_hard": number % 2 == 0}
            for number, pair in enumerate(pairs)
        ],
        "crisis.jsonl": [
            {"domain": "crisis", **{part: words(rng) for part in ("user", "cold", "warranted", "excessive")}}
            for _ in range(3)
        ],
        "hard.jsonl": [{"kind": kind, "emotion": "fear", "text": words(rng)} for kind in ("reasoning", "denying")],
        "intensity.jsonl": [
            {"series": series, "level": level, "phrasing": 0, "emotion": "fear", "text": words(rng, 1 + level)}
            for series in ("hours_away", "dose")
            for level in range(3)
        ],
    }


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
