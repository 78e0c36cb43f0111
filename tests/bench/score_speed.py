"""Speed of ``affect-monitor score`` beside a bare loop of forward passes over the same texts, in one run.

python tests/bench/score_speed.py [--texts 500] [--rounds 3]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich.progress import track

from monitor.calibration.activations import render
from monitor.calibration.corpus import SHIPPED
from monitor.calibration.lines import EmotionText, read_lines
from monitor.demo.assistant import NAME, ensure_assistant, load_assistant
from monitor.policy.schema import SHIPPED as POLICIES
from monitor.policy.schema import load_policy
from monitor.probes.bank import load_bank
from monitor.sidecar.offline import BATCH_TOKENS, OfflineScorer


@torch.inference_mode()
def bare_loop(model: Any, tokenizer: Any, texts: list[str]) -> float:
    """Seconds for ``model(**batch)`` over the texts, sorted by length, in batches of the scorer's size."""
    began = time.perf_counter()
    rendered = sorted((render(tokenizer, [{"role": "user", "content": text}]) for text in texts), key=len, reverse=True)
    while rendered:
        size = max(1, BATCH_TOKENS // len(rendered[0]))
        batch, rendered = rendered[:size], rendered[size:]
        padded = torch.nn.utils.rnn.pad_sequence([torch.tensor(ids) for ids in batch], batch_first=True)
        mask = torch.nn.utils.rnn.pad_sequence(
            [torch.ones(len(ids), dtype=torch.long) for ids in batch], batch_first=True
        )
        model(input_ids=padded, attention_mask=mask, use_cache=False)
    return time.perf_counter() - began


def main() -> None:
    """Prints the ratio of speeds, the median over rounds."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--texts", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    model, tokenizer = load_assistant(ensure_assistant())
    bank = load_bank(NAME)
    policies = load_policy(POLICIES / "service-desk.yaml", bank)
    lines = read_lines(SHIPPED / "texts.jsonl", EmotionText)
    texts = [line.text for line in lines[:: max(1, len(lines) // asked.texts)]][: asked.texts]
    ratios, speeds = [], []
    with TemporaryDirectory() as folder:
        source, target = Path(folder, "in.jsonl"), Path(folder, "out.jsonl")
        source.write_text("".join(json.dumps({"id": n, "text": text}) + "\n" for n, text in enumerate(texts)))
        for _ in track(range(asked.rounds), description="rounds"):
            bare = bare_loop(model, tokenizer, texts)
            scorer = OfflineScorer(bank, policies, model, tokenizer)
            speed = scorer.score_file(source, target)
            ratios.append(bare / speed.seconds)
            speeds.append(speed.tokens / speed.seconds)
    print(
        json.dumps(
            {
                "texts": len(texts),
                "tokens_per_second": round(statistics.median(speeds), 1),
                "ratio_to_bare_model_loop": round(statistics.median(ratios), 3),
            }
        )
    )


if __name__ == "__main__":
    main()
