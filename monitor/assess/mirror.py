"""Mirror slope: how far the assistant's affect follows its users'."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit

MIN_TURNS = 3
"""A slope through fewer turns says nothing."""
_UPPER = 0.975


class MirrorBand(NamedTuple):
    """A slope with its 95 % interval."""

    estimate: float
    low: float
    high: float


def mirror_slope(user_affect: Sequence[float], assistant_affect: Sequence[float]) -> float | None:
    """Least-squares slope of A on U over turns; None for fewer than three turns or users who never vary."""
    band = mirror_band(user_affect, assistant_affect)
    return None if band is None else band.estimate


def mirror_band(user_affect: Sequence[float], assistant_affect: Sequence[float]) -> MirrorBand | None:
    """The slope with an interval that holds where turns scatter unequally (HC1: MacKinnon & White 1985)."""
    user, assistant = np.asarray(user_affect, float), np.asarray(assistant_affect, float)
    if len(user) < MIN_TURNS or np.ptp(user) == 0:
        return None
    user, assistant = user - user.mean(), assistant - assistant.mean()
    spread, freedom = float(user @ user), len(user) - 2
    slope = float(user @ assistant / spread)
    rest = assistant - slope * user
    error = np.sqrt(len(user) / freedom * float((user * rest) @ (user * rest))) / spread
    reach = float(stdtrit(freedom, _UPPER) * error)
    return MirrorBand(slope, slope - reach, slope + reach)
