"""The same model in turned coordinates: it says what it said, and every hidden state is rotated."""

from __future__ import annotations

import copy
from typing import Any

import torch

_READS = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "lm_head", "embed_tokens")
_WRITES = ("o_proj", "down_proj")


@torch.inference_mode()
def turned(model: Any, seed: int = 0) -> Any:
    """A copy of a random Llama, whose norms weigh all dimensions alike, with its stream rotated."""
    torch.manual_seed(seed)
    rotation = torch.linalg.qr(torch.randn(model.config.hidden_size, model.config.hidden_size))[0]
    found = copy.deepcopy(model)
    for name, module in found.named_modules():
        last = name.rsplit(".", 1)[-1]
        if last in _READS:
            module.weight.copy_(module.weight @ rotation)
        elif last in _WRITES:
            module.weight.copy_(rotation.T @ module.weight)
    return found
