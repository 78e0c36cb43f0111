"""Models to measure: one from a folder, or one of a known shape whose weights are random, which speed does not see."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from monitor.demo.assistant import load_assistant

_ROPE_3_1 = {
    "rope_type": "llama3", "rope_theta": 500_000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "llama-3.1-8b": {
        "vocab_size": 128_256, "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 131_072,
        "rope_parameters": _ROPE_3_1,
    },
    "tiny": {
        "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
    },
}  # fmt: skip
"""Llama's, by name: the sizes of meta-llama/Llama-3.1-8B, and of a model that tells whether the bench runs."""


def build(model: str) -> Any:
    """A causal language model, on the GPU where there is one, that never ends a reply by itself.

    Args:
        model: A folder, or a name in ``SHAPES``.

    Raises:
        SetupError: It is neither, or transformers is missing.
    """
    built = _shaped(model) if model in SHAPES else load_assistant(Path(model))[0]
    built.generation_config.eos_token_id = None
    built.generation_config.pad_token_id = 0
    return built


def _shaped(name: str) -> Any:
    import transformers

    auto: Any = transformers.AutoModelForCausalLM
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    with torch.device(device):
        model = auto.from_config(transformers.LlamaConfig(**SHAPES[name]), dtype=torch.bfloat16)
    return model.train(mode=False)
