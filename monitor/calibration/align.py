"""Maps between the rows that two versions of a model have of the same texts, found without any label."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

PENALTIES = (0.001, 0.01, 0.1, 1.0, 10.0)
"""Of what departs from the identity, in units of the rows' mean variance; the best on held-out texts is taken."""
_FOLDS = 4
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


def row_map(source: Floats, target: Floats, texts: NDArray[np.generic]) -> Floats:
    """The linear map that takes centred rows to others of the same texts, [H, H].

    Ridge regression (Hoerl & Kennard 1970) pulled towards the identity instead of zero, for versions of a model share
    their coordinates: few texts leave rows as they are. A rotation pulled to would fit a few hundred texts and lose
    what it was not shown.

    Args:
        source: Centred rows, [N, H].
        target: Centred rows they should become, [N, H].
        texts: Which text each row is of, [N]; a text's rows are held out together.
    """
    fold = np.unique(texts, return_inverse=True)[1] % _FOLDS
    errors = np.zeros(len(PENALTIES))
    for each in range(_FOLDS):
        held = fold == each
        departures = _Departures(source[~held], target[~held])
        gap = target[held] - source[held]
        errors += [((source[held] @ departures.under(penalty) - gap) ** 2).sum() for penalty in PENALTIES]
    best = PENALTIES[int(errors.argmin())]
    found: Floats = np.eye(source.shape[1]) + _Departures(source, target).under(best)
    return found


class _Departures:
    """What is to be added to the identity, for any penalty by one decomposition."""

    def __init__(self, source: Floats, target: Floats) -> None:
        self._values, self._vectors = np.linalg.eigh(source.T @ source)
        self._told = self._vectors.T @ (source.T @ (target - source))

    def under(self, penalty: float) -> Floats:
        unit = max(float(self._values.mean()), 1e-300)
        departure: Floats = self._vectors @ (self._told / (self._values + penalty * unit)[:, None])
        return departure
