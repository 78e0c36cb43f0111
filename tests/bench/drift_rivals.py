"""Customary ways to tell drift, each as the turns (counted from 1) at which it alarms."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from river.drift import PageHinkley
from scipy.stats import ks_2samp

from monitor.assess.distance import psi

Floats = NDArray[np.floating[Any]]
Alarms = NDArray[np.int64]
Rival = Callable[[Floats, Floats, np.random.Generator], Alarms]
"""Values of a stream and of the reference, and what chooses where windows begin."""

_OVER, _TIMES = 100, 3


def share_over(rate: float, values: Floats, reference: Floats, _: np.random.Generator) -> Alarms:
    """More than 3 times as many of the last 100 turns beyond the reference's quantile as would be expected."""
    over = np.concatenate([[0], np.cumsum(values > np.quantile(reference, 1 - rate))])
    return np.flatnonzero(over[_OVER:] - over[:-_OVER] > _TIMES * rate * _OVER) + _OVER


def psi_of_windows(values: Floats, reference: Floats, rng: np.random.Generator) -> Alarms:
    """Population stability index above 0.2 over 500 turns."""
    windows = _windows(values, 500, rng)
    return np.array([end for end, window in windows if psi(window, reference) > 0.2], np.int64)


def ks_each_hour(values: Floats, reference: Floats, rng: np.random.Generator) -> Alarms:
    """Kolmogorov-Smirnov test of two samples, p below 0.01, each hour of 400 turns."""
    windows = _windows(values, 400, rng)
    return np.array(
        [end for end, window in windows if ks_2samp(window, reference, method="asymp").pvalue < 0.01], np.int64
    )


def page_hinkley(options: dict[str, Any], values: Floats, reference: Floats, _: np.random.Generator) -> Alarms:
    """Page-Hinkley on values in standard deviations of the reference."""
    detector, alarms = PageHinkley(**options), []
    for turn, value in enumerate(((values - reference.mean()) / reference.std()).tolist(), 1):
        detector.update(value)
        if detector.drift_detected:
            alarms.append(turn)
    return np.array(alarms, np.int64)


RIVALS: dict[str, Rival] = {
    "5 % threshold, share over x 3": partial(share_over, 0.05),
    "1 % threshold, share over x 3": partial(share_over, 0.01),
    "PSI > 0.2, 500 turns": psi_of_windows,
    "KS each hour (400 turns), p < 0.01": ks_each_hour,
    "Page-Hinkley, river's defaults": partial(page_hinkley, {}),
    "Page-Hinkley, tuned": partial(page_hinkley, {"delta": 0.25, "threshold": 25.0, "alpha": 1.0, "mode": "up"}),
}


def _windows(values: Floats, length: int, rng: np.random.Generator) -> Iterator[tuple[int, Floats]]:
    """Windows side by side with their ends; the first begins at a turn chosen by lot."""
    for start in range(int(rng.integers(length)), len(values) - length + 1, length):
        yield start + length, values[start : start + length]
