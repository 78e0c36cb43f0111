"""Judges turns by the hundred, with the arithmetic of ``monitor.assess``."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from monitor.assess.overindex import STANCES, Warranted, certified_p, finest_rate, target_values
from monitor.calibration.activations import Activations
from monitor.probes.bank import Bank, Stance
from monitor.probes.twin import token_shares

Floats = NDArray[np.float64]

RATE = 0.01
"""Certified p-value at which a turn counts as an alarm."""


class Judged(NamedTuple):
    """Turns judged under one stance.

    Attributes:
        user: U, [N].
        expected: Affect that the users lead to expect, [N].
        assistant: A, [N].
        warranted: Warranted level of A, [N].
        over: Over-index, [N].
        p: Certified p-value of it, [N].
        fires: 1 where that is an alarm, [N]; NaN where the reference is too small for any p-value that small.
        twin: Over-index by the text twin, [N].
        twin_score: The twin's score itself, whatever its user, [N].
    """

    user: Floats
    expected: Floats
    assistant: Floats
    warranted: Floats
    over: Floats
    p: Floats
    fires: Floats
    twin: Floats
    twin_score: Floats


def judge(bank: Bank, scores: Floats, tokens: NDArray[np.int64], stance: Stance = Stance.NEUTRAL) -> Judged:
    """Judges turns by a bank's reference.

    Args:
        bank: The bank.
        scores: Standardised scores of users (0) and assistants (1), [2, N, C].
        tokens: Assistant tokens, [N].
        stance: What is asked of the turns.
    """
    columns, tensors, row = bank.columns, bank.tensors, STANCES.index(stance)
    value, given = target_values(scores[0], scores[1], columns)
    lines = Warranted(tensors.warranted[row].astype(np.float64), tensors.spread[row].astype(np.float64))
    level, over = lines.excess(value, given, np.asarray(tokens, np.float64)[:, None])
    residuals = tensors.residuals[row, -2]
    held = residuals[np.isfinite(residuals)]
    p = np.array([certified_p(held, each, stance is Stance.CRISIS) for each in over[:, -2]])
    known = finest_rate(stance, len(held)) <= RATE
    return Judged(
        user=scores[0][:, columns.user_affect],
        expected=given[:, -2],
        assistant=value[:, -2],
        warranted=level[:, -2],
        over=over[:, -2],
        p=p,
        fires=(p <= RATE).astype(np.float64) if known else np.full(len(p), np.nan),
        twin=over[:, -1],
        twin_score=value[:, -1],
    )


def scores_of(bank: Bank, found: Activations, layers: tuple[int, ...]) -> Floats:
    """Standardised scores by a bank's own probes and twin, as the sidecar's mean over tokens, [2, N, C].

    Args:
        bank: The bank.
        found: Pooled rows.
        layers: Where the bank's layers are among those of the rows.
    """
    tensors = bank.tensors
    rows = found.means[:, :, list(layers)].astype(np.float64)
    folded = tensors.directions.astype(np.float64) / tensors.scales[:, :, None] / len(layers)
    probes = np.einsum("nrlh,lph->rnp", rows - tensors.centres, folded)
    twin = np.stack([token_shares(found.ids(role), tensors.twin_tokens) @ tensors.twin_weights for role in (0, 1)])
    scores: Floats = np.concatenate([probes, twin], axis=-1)
    standard: Floats = (scores - tensors.turn_means[:, None]) / tensors.turn_scales[:, None]
    return standard
