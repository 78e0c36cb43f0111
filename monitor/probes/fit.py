"""Estimators of directions: what separates one class of mean rows from the others."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def within_covariance(rows: Floats, classes: NDArray[np.int64], shrinkage: float) -> Floats:
    """Covariance of rows about their class means, shrunk towards a multiple of the identity.

    Shrinkage as in Ledoit & Wolf (2004), with a given intensity: the classes here hold fewer rows than the rows have
    dimensions, so an unshrunk covariance cannot be inverted.

    Args:
        rows: [N, H].
        classes: Class of each row, [N].
        shrinkage: Share of the identity's multiple, in (0, 1].
    """
    centred = rows.copy()
    for label in np.unique(classes):
        centred[classes == label] -= rows[classes == label].mean(axis=0)
    covariance = centred.T @ centred / len(rows)
    level = np.trace(covariance) / len(covariance)
    shrunk: Floats = (1 - shrinkage) * covariance + shrinkage * level * np.eye(len(covariance))
    return shrunk


def class_directions(rows: Floats, classes: NDArray[np.int64], labels: int, shrinkage: float) -> Floats:
    """Whitened difference of means, each class against all others (linear discriminant analysis; Fisher 1936).

    Args:
        rows: [N, H].
        classes: Class of each row, [N]; classes from ``labels`` on only serve as others.
        labels: Classes that get a direction.
        shrinkage: See ``within_covariance``.

    Returns:
        Unit directions, [labels, H].
    """
    differences = np.stack(
        [rows[classes == label].mean(axis=0) - rows[classes != label].mean(axis=0) for label in range(labels)]
    )
    return _unit(np.linalg.solve(within_covariance(rows, classes, shrinkage), differences.T).T)


def graded_direction(rows: Floats, grades: NDArray[np.int64], shrinkage: float) -> Floats:
    """Whitened direction along which rows rise with an ordered grade.

    For two grades this is the whitened difference of means; for more it is their regression onto the grade.

    Args:
        rows: [N, H].
        grades: Grade of each row, [N].
        shrinkage: See ``within_covariance``.

    Returns:
        Unit direction, [H].
    """
    slope = (rows - rows.mean(axis=0)).T @ (grades - grades.mean()) / len(rows)
    return _unit(np.linalg.solve(within_covariance(rows, grades, shrinkage), slope))


def _unit(directions: Floats) -> Floats:
    unit: Floats = directions / np.linalg.norm(directions, axis=-1, keepdims=True)
    return unit
