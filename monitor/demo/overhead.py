"""What capture costs generation: the same prompts with capture on and off, interleaved in one run."""

from __future__ import annotations

import statistics
import time
import uuid
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch

from monitor.capture.client import SidecarClient
from monitor.capture.transformers import TappedRequest, TransformersTap


def generation_ratio(
    model: Any,
    tokenizer: Any,
    layers: Sequence[int],
    client: SidecarClient,
    prompts: Sequence[str],
    *,
    tokens: int,
    rounds: int,
) -> float:
    """Speed with capture on over speed with capture off: the median over pairs of neighbouring runs.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        layers: Layers to capture.
        client: A connected client.
        prompts: What to generate from.
        tokens: Tokens to generate for each prompt, no fewer.
        rounds: Times each prompt is run with and without.
    """
    ratios = []
    _generate(model, tokenizer, prompts[0], tokens, None)
    for number in range(rounds):
        for prompt in prompts:
            taken = {}
            # The order alternates, so that a machine that slows down or speeds up favours neither.
            for capture in (True, False) if number % 2 else (False, True):
                tap = TransformersTap(model, client, layers) if capture else None
                began = time.perf_counter()
                _generate(model, tokenizer, prompt, tokens, tap)
                taken[capture] = time.perf_counter() - began
                if tap is not None:
                    tap.close()
            ratios.append(taken[False] / taken[True])
    return round(statistics.median(ratios), 3)


@torch.inference_mode()
def _generate(model: Any, tokenizer: Any, prompt: str, tokens: int, tap: TransformersTap | None) -> None:
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
    )
    inputs = tokenizer(text, return_tensors="pt", add_special_tokens=False)
    request = TappedRequest(f"overhead-{uuid.uuid4().hex}", labels={"purpose": "overhead"})
    with tap.requests([request]) if tap else nullcontext():
        model.generate(
            **inputs, do_sample=False, min_new_tokens=tokens, max_new_tokens=tokens, pad_token_id=tokenizer.eos_token_id
        )
