"""Whether a model is the one a bank was made for."""

from __future__ import annotations

from typing import Any

from monitor.capture.identity import hello_of
from monitor.capture.passes import decoder_blocks
from monitor.errors import ModelMismatchError
from monitor.probes.bank import Bank


def check_shape(bank: Bank, model: Any) -> None:
    """Refuses a model whose rows a bank cannot score.

    Raises:
        ModelMismatchError: It has another hidden size or depth.
    """
    card = bank.card.model
    hidden_size, depth = int(model.config.hidden_size), len(decoder_blocks(model))
    found = {"hidden size": (hidden_size, card.hidden_size), "blocks": (depth, card.depth)}
    for name, (has, wanted) in found.items():
        if has != wanted:
            raise ModelMismatchError("--model", f"{name}: {has} where the bank has {wanted}; name its own model")


def check_identity(bank: Bank, model: Any, tokenizer: Any, fix: str) -> None:
    """Refuses a model that is not the bank's, as the sidecar refuses its engine.

    Args:
        bank: The bank.
        model: The model.
        tokenizer: Its tokenizer.
        fix: What may be done about another model.

    Raises:
        ModelMismatchError: Weights, tokenizer or chat template are others.
    """
    card = bank.card.model
    hello = hello_of(model, tokenizer, card.name, bank.card.layers, "offline")
    for name in ("weights_fingerprint", "tokenizer_hash", "template_hash"):
        if getattr(hello, name) != getattr(card, name):
            raise ModelMismatchError("--model", f"{name} is not that of the bank's model {card.name}; {fix}")
