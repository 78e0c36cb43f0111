"""Who a model is: hashes by which a sidecar tells whether its bank is for this model."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from monitor.wire.v1 import ingest_pb2


def weights_fingerprint(model: nn.Module) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of a model's weights, in name order."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        add_weight(digest, name, tensor)
    return digest.hexdigest()


def add_weight(digest: Any, name: str, weight: torch.Tensor) -> None:
    """Takes one weight into a fingerprint."""
    digest.update(f"{name}:{weight.dtype}:{tuple(weight.shape)};".encode())
    digest.update(weight.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)


def tokenizer_hash(tokenizer: Any) -> str:
    """SHA-256 over a tokenizer's vocabulary, in id order."""
    digest = hashlib.sha256()
    for token, number in sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1]):
        digest.update(f"{number}:{token}\n".encode())
    return digest.hexdigest()


def template_hash(tokenizer: Any) -> str:
    """SHA-256 over a tokenizer's chat template."""
    return hashlib.sha256((tokenizer.chat_template or "").encode()).hexdigest()


def hello_of(
    model: nn.Module, tokenizer: Any, name: str, layers: Sequence[int], engine_id: str, data_parallel_rank: int = 0
) -> ingest_pb2.Hello:
    """How an engine introduces itself to the sidecar.

    Args:
        model: The model it serves.
        tokenizer: Its tokenizer.
        name: Name the model is served under.
        layers: Layers that will be in every row.
        engine_id: Name of the engine process, stable over reconnects.
        data_parallel_rank: Rank of the engine among its data-parallel copies.
    """
    config: Any = model.config
    return ingest_pb2.Hello(
        model_name=name,
        weights_fingerprint=weights_fingerprint(model),
        tokenizer_hash=tokenizer_hash(tokenizer),
        template_hash=template_hash(tokenizer),
        engine_id=engine_id,
        data_parallel_rank=data_parallel_rank,
        layers=layers,
        hidden_size=int(config.hidden_size),
    )
