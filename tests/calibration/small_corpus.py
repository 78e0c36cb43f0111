"""Small corpora and a tiny model for tests of calibration."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from builders import EMOTIONS
from transformers import LlamaConfig, LlamaForCausalLM

from monitor.calibration.corpus import Corpus, read_corpus

Files = dict[str, list[dict[str, Any]]]

HIDDEN, DEPTH, CONTEXT = 32, 4, 256
REPLIES = ("neutral", "warranted", "excessive")
NAMES = ("emotions.json", "texts.jsonl", "grid.jsonl", "service.jsonl", "approved.jsonl")
"""Files every corpus has."""
OWN_USER = "qq ww ee rr tt"
"""A user turn of the approved conversations that the grid lacks."""


def make_model(vocabulary: int, seed: int = 5, hidden: int = HIDDEN) -> Any:
    """A random Llama of four blocks."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=48, num_hidden_layers=DEPTH,
        num_attention_heads=4, max_position_embeddings=CONTEXT, initializer_range=0.2, bos_token_id=None,
        eos_token_id=2, pad_token_id=2,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def words(rng: np.random.Generator, count: int = 5, letters: str = "abcdefghijklmnop") -> str:
    """Random words of four letters."""
    return " ".join("".join(rng.choice(list(letters), 4)) for _ in range(count))


def make_corpus(domains: int = 6, seed: int = 0) -> Files:
    """Files of a corpus whose texts are random words, with a sign for each emotion, strength and kind of reply."""
    rng = np.random.default_rng(seed)
    emotions = [{"name": name, "family": family, "valence": 0.5, "arousal": 0.5} for name, family in EMOTIONS]
    signs = {name: sign for (name, _), sign in zip(EMOTIONS, "!?*#", strict=True)} | {"neutral": ""}
    texts = [
        {
            "emotion": name, "register": "chat", "topic": f"topic {number}", "keyword_free": True,
            "text": f"{words(rng)} {sign * 4}",
        }
        for name, sign in signs.items()
        for number in range(6)
    ]  # fmt: skip
    grid = [grid_item(rng, f"domain {domain}", strength) for domain in range(domains) for strength in range(4)]
    asked = [
        {
            "messages": [{"role": "user", "content": item["user"]}, {"role": "assistant", "content": words(rng)}],
            "labels": {"domain": item["domain"]},
        }
        for item in grid[::3]
    ]
    own = {
        "messages": [{"role": "user", "content": OWN_USER}, {"role": "assistant", "content": words(rng) + " ~^" * 9}]
    }
    service = [
        {
            "domain": f"service {number}",
            "messages": [{"role": role, "content": words(rng)} for role in ("user", "assistant") * 2],
        }
        for number in range(4)
    ]
    return dict(zip(NAMES, (emotions, texts, grid, service, [*asked, own]), strict=True))


def grid_item(
    rng: np.random.Generator, domain: str, strength: int, signs: Sequence[str] = ("....", ",,,,", ";;;;")
) -> dict[str, Any]:
    """One user turn and its replies, each closed by its sign."""
    return {
        "domain": domain, "user_emotion": "none", "strength": strength, "user": f"{words(rng)} {'+' * strength}",
        **{reply: f"{words(rng, 2)} {3 * sign}" for reply, sign in zip(REPLIES, signs, strict=True)},
        "excess_kind": "praise", "excess_lexical": False, "neutral_names_emotion": False,
    }  # fmt: skip


def optional_parts() -> Files:
    """Files a corpus may lack: contrast pairs, every second of them hard, crises, hard texts and intensity series."""
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


def write_corpus(folder: Path, files: Files) -> Path:
    """Writes the files of a corpus."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, entries in files.items():
        lines = (
            json.dumps(entries) if name.endswith(".json") else "".join(json.dumps(entry) + "\n" for entry in entries)
        )
        (folder / name).write_text(lines)
    return folder


def read(folder: Path) -> Corpus:
    """Reads a corpus written by ``write_corpus``."""
    return read_corpus(folder, folder / "approved.jsonl")


def changed(files: Files, file: str, line: int, **fields: Any) -> Files:
    """A corpus with some fields of one line (from 1) set; a field set to None is taken out."""
    files = copy.deepcopy(files)
    entry = files[file][line - 1]
    for field, value in fields.items():
        entry[field] = value
        if value is None:
            del entry[field]
    return files
