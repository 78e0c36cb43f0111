"""Whether pushing along a bank's families does to another version what it does to the bank's own model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from monitor.calibration.lines import Message
from monitor.calibration.statistics import Figure, cluster_weights, figure_of
from monitor.evaluation.interventions.steering import Tokens, add
from monitor.evaluation.subject import prompt_ids
from monitor.evaluation.versions.version import Version
from monitor.probes.bank import Bank

Floats = NDArray[np.float64]

DOSE = 8.0
"""Of a push, in standard deviations of the reference along the direction."""
_DRAWS = 100


class CausalLikeness(NamedTuple):
    """Correlation of what pushes do to two versions.

    Attributes:
        figure: The same family pushed in both, the mean over families; drawn by prompt.
        null: Other families pushed in the other version.
    """

    figure: Figure
    null: float


@torch.inference_mode()
def effects(version: Version, bank: Bank, prompts: Sequence[Sequence[Message]]) -> Floats:
    """What a push along each family does to the first token of a reply.

    Args:
        version: The version.
        bank: Its families, their directions and the units of a push, at the bank's first layer.
        prompts: Conversations that end with a user's message.

    Returns:
        Change of the log-probability of every token, in nats, about its mean over tokens, [families, prompts, tokens].
    """
    families, layer = bank.columns.family, bank.card.layers[0]
    directions = bank.tensors.directions[0, families].astype(np.float64)
    pushes = DOSE * bank.tensors.scales[0, families]
    found = []
    for messages in prompts:
        plain = _first_token(version, messages)
        for direction, push in zip(directions, pushes, strict=True):
            with add(direction, layer, float(push), tokens=Tokens.READ)(version.model):
                found.append(_first_token(version, messages) - plain)
    changes = np.stack(found).reshape(len(prompts), len(directions), -1).swapaxes(0, 1)
    centred: Floats = changes - changes.mean(axis=-1, keepdims=True)
    return centred


def causal_likeness(old: Floats, new: Floats, seed: int) -> CausalLikeness:
    """Compares effects of two versions, [families, prompts, tokens] each, of the same prompts."""
    weights = cluster_weights(np.arange(old.shape[1]), seed, _DRAWS)
    weights /= weights.sum(axis=1, keepdims=True)
    before, after = ([_unit(weights @ family) for family in each] for each in (old, new))
    same = np.mean([(a * b).sum(axis=1) for a, b in zip(before, after, strict=True)], axis=0)
    others = [float(a[0] @ b[0]) for i, a in enumerate(before) for j, b in enumerate(after) if i != j]
    return CausalLikeness(figure_of(same), float(np.mean(others)) if others else float("nan"))


def _first_token(version: Version, messages: Sequence[Message]) -> Floats:
    ids = torch.tensor([prompt_ids(version.tokenizer, messages)], device=version.model.device)
    logits = version.model(input_ids=ids, use_cache=False, logits_to_keep=1).logits[0, -1]
    likely: Floats = logits.float().log_softmax(-1).cpu().numpy().astype(np.float64)
    return likely


def _unit(rows: Floats) -> Floats:
    unit: Floats = rows / np.linalg.norm(rows, axis=-1, keepdims=True).clip(1e-12)
    return unit
