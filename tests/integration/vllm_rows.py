"""Compares rows that came through an inference server with transformers' own hidden states of the same tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

Rows = dict[int, tuple[int, torch.Tensor]]


@dataclass
class Compared:
    """What became of the rows of one request.

    Attributes:
        tokens: Its tokens, by position.
        worst: Largest distance of a row from transformers', relative to that row's length.
        missing: Positions below the total that did not come.
        beyond: Positions that came and are none of the total.
    """

    tokens: list[int]
    worst: float
    missing: list[int]
    beyond: list[int]


@torch.inference_mode()
def hidden_states(model: Any, layers: Sequence[int], tokens: Sequence[int]) -> torch.Tensor:
    """Transformers' rows of some tokens: [tokens, layers, hidden], in the model's precision."""
    # Without the head: it costs a fifth and makes no row.
    states = model.base_model(input_ids=torch.tensor([tokens]), output_hidden_states=True).hidden_states
    return torch.stack([states[layer][0] for layer in layers], dim=1)


def compare(model: Any, layers: Sequence[int], rows: Rows, total: int) -> Compared:
    """Compares the rows of one request, of which the server processed ``total`` tokens."""
    missing = [position for position in range(total) if position not in rows]
    beyond = [position for position in rows if position >= total]
    if missing or not rows:
        return Compared([], float("inf"), missing, beyond)
    tokens = [rows[position][0] for position in range(total)]
    expected = hidden_states(model, layers, tokens).float()
    got = torch.stack([rows[position][1] for position in range(total)]).float()
    relative = (got - expected).norm(dim=-1) / expected.norm(dim=-1)
    return Compared(tokens, float(relative.max()), missing, beyond)
