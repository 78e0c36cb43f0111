"""Maps between the rows that two versions of a model have of the same texts, found without any label."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

PENALTY = 0.1
"""Of what departs from a rotation, in units of the rows' mean variance."""
_UNSEEN = 1e-9
"""Weight of the identity beside what the rows show most of."""


def about_means(rows: Floats, groups: NDArray[np.int64]) -> Floats:
    """Rows, [N, ...], each less the mean of its group, [N]: positions and roles have means of their own."""
    centred = rows.copy()
    for group in np.unique(groups):
        centred[groups == group] -= rows[groups == group].mean(axis=0)
    return centred


def procrustes(source: Floats, target: Floats) -> Floats:
    """The rotation that takes centred rows nearest to others of the same texts (Schönemann 1966), [H, H].

    In dimensions in which the rows do not vary it keeps the coordinates, which versions of a model share.

    Args:
        source: Centred rows, [N, H].
        target: Centred rows they should become, [N, H].
    """
    cross = source.T @ target
    left, _, right = np.linalg.svd(cross + _UNSEEN * np.abs(cross).max() * np.eye(len(cross)))
    rotation: Floats = left @ right
    return rotation


def row_map(source: Floats, target: Floats) -> Floats:
    """The linear map that takes centred rows to others of the same texts, [H, H].

    Ridge regression (Hoerl & Kennard 1970) pulled towards the Procrustes rotation instead of zero: what the texts do
    not show is taken to be turned, not lost.

    Args:
        source: Centred rows, [N, H].
        target: Centred rows they should become, [N, H].
    """
    rotation = procrustes(source, target)
    gram = source.T @ source
    penalty = PENALTY * np.trace(gram) / len(gram)
    bent: Floats = np.linalg.solve(gram + penalty * np.eye(len(gram)), source.T @ (target - source @ rotation))
    return rotation + bent
