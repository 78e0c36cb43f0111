"""Mirror slope: how far the assistant's affect follows its users'."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

MIN_TURNS = 3
"""A slope through fewer turns says nothing."""


def mirror_slope(user_affect: Sequence[float], assistant_affect: Sequence[float]) -> float | None:
    """Least-squares slope of A on U over turns; None for fewer than three turns or users who never vary."""
    user, assistant = np.asarray(user_affect, float), np.asarray(assistant_affect, float)
    if len(user) < MIN_TURNS or np.ptp(user) == 0:
        return None
    centred = user - user.mean()
    return float(centred @ (assistant - assistant.mean()) / (centred @ centred))
