"""Distances between recent turns and the reference: for looking at, since none of them controls false alarms."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]

_PSI_BINS = 10


def distances(recent: Floats, reference: Floats) -> dict[str, float]:
    """All distances, by name.

    ks is the Kolmogorov-Smirnov distance, the largest difference of the two shares below any value, in [0, 1];
    wasserstein the earth mover's distance, in the unit of the values.

    Args:
        recent: Values of recent turns, [M].
        reference: Values of reference turns, [N].
    """
    values = np.sort(np.concatenate([recent, reference]))
    below = [np.searchsorted(np.sort(each), values, side="right") / len(each) for each in (recent, reference)]
    apart = np.abs(below[0] - below[1])
    return {
        "psi": psi(recent, reference),
        "ks": float(apart.max()),
        "wasserstein": float(apart[:-1] @ np.diff(values)),
    }


def psi(recent: Floats, reference: Floats) -> float:
    """Population stability index over deciles of the reference; 0.2 is the customary alarm (Siddiqi 2006).

    Args:
        recent: Values of recent turns, [M].
        reference: Values of reference turns, [N].
    """
    edges = np.quantile(reference, np.arange(1, _PSI_BINS) / _PSI_BINS)
    # Half a turn in every bin, so that an empty one does not make it infinite.
    shares = [
        (np.bincount(np.searchsorted(edges, values, side="right"), minlength=_PSI_BINS) + 0.5)
        / (len(values) + _PSI_BINS / 2)
        for values in (recent, reference)
    ]
    return float(((shares[0] - shares[1]) * np.log(shares[0] / shares[1])).sum())
