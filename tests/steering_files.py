"""Steering files for tests, made for a model at hand."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch

from monitor.capture.identity import weights_fingerprint

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import nn

WHY = "arithmetic falls by 9 points at every dose that helps"


def unit(size: int, seed: int = 0) -> torch.Tensor:
    """A random direction."""
    drawn = torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return drawn / drawn.norm()


def steering(model: nn.Module, ceilings: Mapping[int, float], centre: float = 0.0) -> dict[str, Any]:
    """A file on a model in which warmth may be capped, at these layers, and calm may not."""
    config: Any = model.config
    layers = [
        {
            "layer": layer,
            "direction": unit(config.hidden_size, layer).tolist(),
            "centre": centre,
            "ceilings": {"0.90": ceiling - 1, "0.99": ceiling},
        }
        for layer, ceiling in ceilings.items()
    ]
    cap = {"layers": layers, "figures": {"over_index_halved": 0.5}}
    return {
        "schema_version": 1,
        "made_by": "tests",
        "model": {
            "name": "tiny",
            "weights_fingerprint": weights_fingerprint(model),
            "hidden_size": config.hidden_size,
        },
        "bank": "0123456789ab",
        "families": {
            "warmth": {"safe": True, "why": "", "window": {"add": [-0.1, 0.1]}, "cap": cap},
            "calm": {"safe": False, "why": WHY, "window": {"add": None}, "cap": cap},
        },
    }


def write(folder: Path, told: Any) -> Path:
    """The file, written."""
    file = folder / "steering.json"
    file.write_text(json.dumps(told))
    return file
