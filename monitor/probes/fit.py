"""Estimators of directions: what separates one class of mean rows from the others, or makes rows rise with a grade.

Three behind one interface; which one made a bank stands on its card.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]
Grades = NDArray[np.int64] | NDArray[np.float64]


class Estimator(Protocol):
    """Finds unit directions in mean rows."""

    def classes(self, rows: Floats, classes: Labels, labels: int) -> Floats:
        """Directions of classes, each against all others.

        Args:
            rows: [N, H].
            classes: Class of each row, [N]; classes from ``labels`` on are neutral and only serve as others.
            labels: Classes that get a direction.

        Returns:
            Unit directions, [labels, H].
        """
        ...

    def graded(self, rows: Floats, grades: Grades) -> Floats:
        """Direction along which rows rise with an ordered grade; grade 0 is neutral.

        Args:
            rows: [N, H].
            grades: Grade of each row, [N].

        Returns:
            Unit direction, [H].
        """
        ...


@dataclass(frozen=True)
class Whitened:
    """Whitened difference of means (linear discriminant analysis; Fisher 1936).

    Attributes:
        shrinkage: Share of a multiple of the identity in the covariance, in (0, 1] (Ledoit & Wolf 2004, with a given
            intensity): the classes hold fewer rows than the rows have dimensions. The default was the best of 0.15,
            0.3 and 0.6 on held-out topics and domains of the demo assistant.
    """

    shrinkage: float = 0.3

    def classes(self, rows: Floats, classes: Labels, labels: int) -> Floats:
        """See ``Estimator``."""
        return _unit(np.linalg.solve(self._covariance(rows, classes), _differences(rows, classes, labels).T).T)

    def graded(self, rows: Floats, grades: Grades) -> Floats:
        """See ``Estimator``; for two grades the whitened difference of means, for more the regression on the grade."""
        return _unit(np.linalg.solve(self._covariance(rows, grades), _slope(rows, grades)))

    def _covariance(self, rows: Floats, classes: Grades) -> Floats:
        """Covariance of rows about their class means, shrunk, [H, H]."""
        centred = rows.copy()
        for label in np.unique(classes):
            centred[classes == label] -= rows[classes == label].mean(axis=0)
        covariance = centred.T @ centred / len(rows)
        level = np.trace(covariance) / len(covariance)
        shrunk: Floats = (1 - self.shrinkage) * covariance + self.shrinkage * level * np.eye(len(covariance))
        return shrunk


@dataclass(frozen=True)
class Anchor:
    """Difference of means with what varies in neutral text projected out (Sofroniew et al. 2026).

    Attributes:
        explained: Share of the variance of neutral rows whose principal components are taken out.
    """

    explained: float = 0.5

    def classes(self, rows: Floats, classes: Labels, labels: int) -> Floats:
        """See ``Estimator``; each class's mean less the mean over classes."""
        means = np.stack([rows[classes == label].mean(axis=0) for label in range(labels)])
        return _unit(self._without_neutral(means - means.mean(axis=0), rows[classes >= labels]))

    def graded(self, rows: Floats, grades: Grades) -> Floats:
        """See ``Estimator``."""
        return _unit(self._without_neutral(_slope(rows, grades), rows[grades == 0]))

    def _without_neutral(self, directions: Floats, neutral: Floats) -> Floats:
        """Directions orthogonal to the leading principal components of neutral rows."""
        if len(neutral) < 2:  # noqa: PLR2004 - one row does not vary
            return directions
        _, sizes, components = np.linalg.svd(neutral - neutral.mean(axis=0), full_matrices=False)
        share = np.cumsum(sizes**2) / max(float((sizes**2).sum()), 1e-300)
        leading = components[: int(np.searchsorted(share, self.explained)) + 1]
        rest: Floats = directions - directions @ leading.T @ leading
        return rest


@dataclass(frozen=True)
class Logistic:
    """Logistic regression with an L2 penalty on standardised rows.

    Attributes:
        inverse_penalty: scikit-learn's C.
    """

    inverse_penalty: float = 0.01

    def classes(self, rows: Floats, classes: Labels, labels: int) -> Floats:
        """See ``Estimator``."""
        return np.stack([self._against_rest(rows, classes == label) for label in range(labels)])

    def graded(self, rows: Floats, grades: Grades) -> Floats:
        """See ``Estimator``; the mean over thresholds of the grade (Frank & Hall 2001)."""
        found = [self._against_rest(rows, grades >= grade) for grade in np.unique(grades)[1:]]
        return _unit(np.mean(found, axis=0))

    def _against_rest(self, rows: Floats, positive: NDArray[np.bool_]) -> Floats:
        from sklearn.linear_model import LogisticRegression

        spread = np.maximum(rows.std(axis=0), 1e-9)
        standard = (rows - rows.mean(axis=0)) / spread
        model = LogisticRegression(C=self.inverse_penalty, max_iter=300).fit(standard, positive)
        return _unit(model.coef_[0] / spread)


ESTIMATORS: dict[str, Estimator] = {"whitened": Whitened(), "anchor": Anchor(), "logistic": Logistic()}


def _differences(rows: Floats, classes: Labels, labels: int) -> Floats:
    """Mean of each class less the mean of all others, [labels, H]."""
    return np.stack(
        [rows[classes == label].mean(axis=0) - rows[classes != label].mean(axis=0) for label in range(labels)]
    )


def _slope(rows: Floats, grades: Grades) -> Floats:
    """Covariance of rows with their grade, [H]."""
    slope: Floats = (rows - rows.mean(axis=0)).T @ (grades - grades.mean()) / len(rows)
    return slope


def _unit(directions: NDArray[Any]) -> Floats:
    unit: Floats = directions / np.linalg.norm(directions, axis=-1, keepdims=True)
    return unit
