"""The reference: what approved turns show, and from it the warranted level of A given U and its residuals."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from monitor.assess.overindex import target_values
from monitor.probes.bank import Columns, Stance

Floats = NDArray[np.float64]

QUANTILE = 0.95
"""Level of the warranted quantile: a turn at it is as affective as the reference's top twentieth at the same U."""
_FOLDS = 5
_NORMAL_95 = 1.6448536


class Warranted(NamedTuple):
    """Warranted levels per stance and target; shapes as in ``Tensors``."""

    coefficients: NDArray[np.float32]
    scale: NDArray[np.float32]
    residuals: NDArray[np.float32]


def fit_warranted(
    user: Floats, assistant: Floats, allowed: dict[Stance, NDArray[np.bool_]], columns: Columns
) -> Warranted:
    """Fits the warranted level of every target for every stance.

    Residuals come from folds that did not fit the quantile they are measured against (cross-conformal; Vovk 2015).

    Args:
        user: Standardised user scores, [N, C].
        assistant: Standardised assistant scores, [N, C].
        allowed: Turns that are as they should be under each stance, [N].
        columns: Layout of the scores.
    """
    values, given = target_values(user, assistant, columns)
    most = max(int(mask.sum()) for mask in allowed.values())
    shape = (len(Stance), values.shape[1])
    found = Warranted(
        np.zeros((*shape, 2), np.float32), np.ones(shape, np.float32), np.full((*shape, most), np.nan, np.float32)
    )
    for row, stance in enumerate(Stance):
        mask = allowed[stance]
        for target in range(values.shape[1]):
            _fit_target(given[mask, target], values[mask, target], found, (row, target))
    return found


def _fit_target(given: Floats, values: Floats, found: Warranted, at: tuple[int, int]) -> None:
    upper, middle = _line(given, values, QUANTILE), _line(given, values, 0.5)
    # The mean distance of the two lines is 1.645 standard deviations where values are normal about the middle.
    scale = max(float((_on(upper, given) - _on(middle, given)).mean()) / _NORMAL_95, 1e-3)
    folds = np.arange(len(values)) % _FOLDS
    residuals = np.empty(len(values))
    for fold in range(_FOLDS):
        held = folds == fold
        line = _line(given[~held], values[~held], QUANTILE)
        residuals[held] = (values[held] - _on(line, given[held])) / scale
    found.coefficients[at] = upper
    found.scale[at] = scale
    found.residuals[at][: len(values)] = np.sort(residuals)


def _line(given: Floats, values: Floats, level: float) -> Floats:
    """Intercept and slope of a linear quantile; the slope is not negative, for no user's affect forbids warmth."""
    from sklearn.linear_model import QuantileRegressor

    model = QuantileRegressor(quantile=level, alpha=0, solver="highs").fit(given[:, None], values)
    if model.coef_[0] >= 0:
        return np.array([model.intercept_, model.coef_[0]], np.float64)
    return np.array([np.quantile(values, level), 0.0])


def _on(line: Floats, given: Floats) -> Floats:
    levels: Floats = line[0] + line[1] * given
    return levels
