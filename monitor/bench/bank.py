"""A made-up bank of any size: real in form and cost, without meaning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from monitor.probes.bank import Bank, Columns, Stance, Tensors, seal

_FAMILIES = ("warmth", "contagion", "hostility", "elation", "calm")
_BESIDES = len(_FAMILIES) + 3
"""Probe columns that are no emotions: families and three affects."""
_TURNS = 1000
_VOCABULARY, _KNOWN = 32_768, 4096
_STRICTEST = len(Stance) - 1
_QUANTILE_95 = 1.645
_TURN_SCALE = 0.06
"""Of the mean over a half turn's tokens of unit variance."""


def make_bank(hidden_size: int, probes: int, layers: int) -> Bank:
    """A sealed bank with ChatML-like markers and a reference of 1,000 turns.

    Args:
        hidden_size: Width of a row at one layer.
        probes: Columns that need hidden states, 9 at least.
        layers: Layers of a row.
    """
    emotions = probes - _BESIDES
    card: dict[str, Any] = {
        "schema_version": 2,
        "made_by": "affect-monitor bench",
        "model": {
            "name": f"bench-{hidden_size}", "hidden_size": hidden_size, "depth": layers,
            "weights_fingerprint": "b" * 64, "tokenizer_hash": "t" * 64, "template_hash": "c" * 64,
        },
        "layers": tuple(range(1, layers + 1)),
        "markers": [
            {"tokens": (2,), "role": "TEMPLATE"},
            {"tokens": (1, 3, 6), "role": "SYSTEM"},
            {"tokens": (1, 4, 6), "role": "USER"},
            {"tokens": (1, 5, 6), "role": "ASSISTANT"},
        ],
        "emotions": [
            {"name": f"emotion-{number}", "family": _FAMILIES[number % len(_FAMILIES)], "valence": 0, "arousal": 0}
            for number in range(emotions)
        ],
        "families": _FAMILIES,
        "estimator": {"name": "made up"},
        "reference": {"source": "made up", "turns": dict.fromkeys(Stance, _TURNS)},
        "corpus_sha256": {},
        "battery": (),
        "text_equivalent": (),
        "validated": True,
    }  # fmt: skip
    return seal(card, _tensors(Columns(emotions, len(_FAMILIES)), hidden_size, layers))


def write_bank(folder: Path, hidden_size: int, probes: int, layers: int) -> str:
    """Writes such a bank into ``folder``; returns it as ``--bank`` wants it."""
    make_bank(hidden_size, probes, layers).save(folder)
    return str(folder)


def _tensors(columns: Columns, hidden_size: int, layers: int) -> Tensors:
    rng = np.random.default_rng(0)
    targets, stances = columns.families + 2, len(Stance)

    def normal(*shape: int) -> NDArray[np.float32]:
        return rng.standard_normal(shape, np.float32)

    def repeated(value: list[float], *shape: int) -> NDArray[np.float32]:
        return np.tile(np.array(value, np.float32), (*shape, 1))

    directions = normal(layers, columns.probes, hidden_size)
    return Tensors(
        directions=directions / np.linalg.norm(directions, axis=2, keepdims=True),
        centres=0.1 * normal(layers, hidden_size),
        scales=np.ones((layers, columns.probes), np.float32),
        twin_tokens=np.arange(0, _VOCABULARY, _VOCABULARY // _KNOWN, dtype=np.int32),
        twin_weights=normal(_KNOWN, columns.twins),
        turn_means=np.zeros((2, columns.total), np.float32),
        turn_scales=np.full((2, columns.total), _TURN_SCALE, np.float32),
        platt=repeated([1.5, -1.0], 2, columns.emotions),
        reference_user=normal(_TURNS, columns.total),
        reference_assistant=normal(_TURNS, columns.total),
        reference_tokens=rng.integers(8, 400, _TURNS, dtype=np.int32),
        reference_stance=np.full(_TURNS, _STRICTEST, np.int32),
        warranted=repeated([_QUANTILE_95, 0.0, 0.0], stances, targets),
        spread=repeated([1.0, 0.0], stances, targets),
        residuals=np.sort(normal(stances, targets, _TURNS) - np.float32(_QUANTILE_95), axis=2),
    )
