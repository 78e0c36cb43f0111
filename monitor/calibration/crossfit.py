"""Fits probes and twin on the corpus, and scores every part of it by probes that did not see the part.

Layers are fitted one by one, so that any ensemble of them is a mean of scores already there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from monitor.calibration.corpus import CONTRAST, GRID
from monitor.calibration.lines import CLEAR, FOLDS
from monitor.calibration.tables import EXCESSIVE, Mask, Tables, TextTable, TurnTable
from monitor.probes.bank import Columns
from monitor.probes.fit import Estimator
from monitor.probes.twin import token_weights

Floats = NDArray[np.float64]

CONTRAST_WEIGHT = 6
"""How often a contrast pair counts beside an item of the grid: what is learnt where words tell nothing is not words."""
GRADES = np.array([0.0, 0.5, 2.0])
"""Affect of neutral, warranted and excessive replies.

With the weight above it is a compromise found on replies by hands that were not fitted on: more weight on contrast and
excess tells excess from warmth better (0.80 to 0.92 AUROC), and warmth from none worse (0.92 to 0.72).
"""
_PENALTY = 10.0
"""Of the ridge regression of expected affect, in units of the rows' variance and dimensions."""


class Probes(NamedTuple):
    """Probes of every layer; shapes as in ``Tensors``."""

    directions: Floats
    centres: Floats
    scales: Floats


class Scores(NamedTuple):
    """Scores of texts [2, N, C] and turns [R, 2, C], each by probes fitted without its part of the corpus."""

    texts: Floats
    turns: Floats


class CrossFit(NamedTuple):
    """Final probes and twin, and held-out scores.

    Attributes:
        probes: Fitted on everything.
        twin: Weights of the text twin, fitted on everything, [K, T].
        texts: Held-out probe scores of texts, [L, 2, N, P].
        turns: Held-out probe scores of turns, [L, R, 2, P].
        twin_texts: Held-out twin scores of texts, [N, T].
        twin_turns: Held-out twin scores of turns, [R, 2, T].
    """

    probes: Probes
    twin: Floats
    texts: Floats
    turns: Floats
    twin_texts: Floats
    twin_turns: Floats

    def ensemble(self, layers: Sequence[int]) -> Scores:
        """Scores by the mean over some layers, given by index, as the scorer will give them."""
        at = list(layers)
        twin_texts = np.broadcast_to(self.twin_texts, (2, *self.twin_texts.shape))
        return Scores(
            np.concatenate([self.texts[at].mean(axis=0), twin_texts], axis=-1),
            np.concatenate([self.turns[at].mean(axis=0), self.twin_turns], axis=-1),
        )


class _Part(NamedTuple):
    """A part of the corpus to fit on."""

    texts: Mask
    turns: Mask


def cross_fit(tables: Tables, family_of: NDArray[np.int64], estimator: Estimator) -> CrossFit:
    """Fits on everything, and on everything but each fold in turn.

    Args:
        tables: The corpus.
        family_of: Family of each emotion, [E].
        estimator: Finds the directions.
    """
    columns = Columns(len(family_of), int(family_of.max()) + 1)
    texts, turns = tables.texts, tables.turns
    everything = _Part(np.ones(len(texts.emotion), bool), turns.fitted)
    rests = [_Part(texts.fold != fold, turns.fitted & (turns.fold != fold)) for fold in range(FOLDS)]
    layers = [
        _cross_fit_layer(tables, family_of, columns, estimator, (everything, rests), layer)
        for layer in range(turns.rows.shape[2])
    ]

    twin = _fit_twin(tables, family_of, columns, everything)
    twin_texts = texts.shares @ twin
    twin_turns = np.stack([side @ twin for side in turns.shares], axis=1)
    for fold, rest in enumerate(rests):
        weights = _fit_twin(tables, family_of, columns, rest)
        held, here = texts.fold == fold, turns.fold == fold
        twin_texts[held] = texts.shares[held] @ weights
        twin_turns[here] = np.stack([side[here] @ weights for side in turns.shares], axis=1)
    probes, held_texts, held_turns = zip(*layers, strict=True)
    return CrossFit(
        Probes(*(np.stack(parts) for parts in zip(*probes, strict=True))),
        twin, np.stack(held_texts), np.stack(held_turns), twin_texts, twin_turns,
    )  # fmt: skip


def _cross_fit_layer(
    tables: Tables,
    family_of: NDArray[np.int64],
    columns: Columns,
    estimator: Estimator,
    parts: tuple[_Part, list[_Part]],
    layer: int,
) -> tuple[Probes, Floats, Floats]:
    """Final probes of one layer, and held-out scores of texts [2, N, P] and turns [R, 2, P]."""
    texts, turns = tables.texts, tables.turns
    text_rows = texts.rows[:, :, layer].astype(np.float64)
    turn_rows = turns.rows[:, :, layer].astype(np.float64)
    reference = turn_rows[turns.stance >= 0, 1]
    centre = reference.mean(axis=0)

    def fit(part: _Part) -> Floats:
        emotions = _emotion_directions(text_rows, texts, part.texts, estimator, columns)
        spread = (reference @ emotions.T).std(axis=0)
        families = np.stack(
            [(emotions / spread[:, None])[family_of == f].mean(axis=0) for f in range(columns.families)]
        )
        families /= np.linalg.norm(families, axis=1, keepdims=True)
        users = part.turns & turns.first
        user = estimator.graded(turn_rows[users, 0], turns.strength[users])
        affect = _affect_direction(turn_rows, turns, part, estimator)
        expected = _expected_direction(turn_rows, turns, part, affect)
        return np.concatenate([emotions, families, user[None], affect[None], expected[None]])

    everything, rests = parts
    final = fit(everything)
    scales = (reference @ final.T).std(axis=0)

    def score(rows: Floats, directions: Floats) -> Floats:
        # Same units as the final probes, so that what is calibrated here holds for them.
        scores: Floats = (rows - centre) @ directions.T / scales
        return scores

    held_texts, held_turns = score(text_rows, final), score(turn_rows, final)
    for fold, rest in enumerate(rests):
        directions = fit(rest)
        held, here = texts.fold == fold, turns.fold == fold
        held_texts[:, held] = score(text_rows[:, held], directions)
        held_turns[here] = score(turn_rows[here], directions)
    return Probes(final, centre, scales), held_texts, held_turns


def held_out_emotions(texts: TextTable, layers: Sequence[int], labels: int, estimator: Estimator) -> Floats:
    """Emotion scores of texts by the mean over some layers, each by probes of the other folds, [2, N, labels].

    Args:
        texts: Texts, with whatever labels.
        layers: Indices of layers.
        labels: Emotions that get a direction.
        estimator: Finds the directions.
    """
    columns = Columns(labels, 0)
    found = np.zeros((*texts.rows.shape[:2], labels))
    for layer in layers:
        rows = texts.rows[:, :, layer].astype(np.float64)
        for fold in range(FOLDS):
            held = texts.fold == fold
            directions = _emotion_directions(rows, texts, ~held, estimator, columns)
            found[:, held] += rows[:, held] @ directions.T / (rows[:, ~held] @ directions.T).std(axis=(0, 1))
    return found


def _emotion_directions(rows: Floats, texts: TextTable, part: Mask, estimator: Estimator, columns: Columns) -> Floats:
    """Directions of emotions, [E, H], from both positions of texts, [2, N, H]."""
    at = rows[:, part]
    # A text reads differently as a user's and as an assistant's: each position is centred on its own mean.
    stacked = (at - at.mean(axis=1, keepdims=True)).reshape(-1, at.shape[-1])
    return estimator.classes(stacked, np.tile(texts.emotion[part], 2), columns.emotions)


def _affect_direction(rows: Floats, turns: TurnTable, part: _Part, estimator: Estimator) -> Floats:
    """Direction of the assistant's affect, [H], from graded replies, [R, 2, H].

    Plain service is grade 0: without it, questions and second persons pass for affect. Contrast pairs are put where
    the grid's upper grades lie, so that what they are written about is no sign of a grade.
    """
    contrast = part.turns & (turns.source == CONTRAST)
    rest = part.turns & ~contrast
    replies, grades = rows[rest, 1], GRADES[turns.grade[rest]]
    if contrast.any():
        upper = rows[part.turns & (turns.source == GRID) & (turns.grade > 0), 1].mean(axis=0)
        pairs = rows[contrast, 1] + (upper - rows[contrast, 1].mean(axis=0))
        replies = np.concatenate([replies, *[pairs] * CONTRAST_WEIGHT])
        grades = np.concatenate([grades, *[GRADES[turns.grade[contrast]]] * CONTRAST_WEIGHT])
    return estimator.graded(replies, grades)


def _expected_direction(rows: Floats, turns: TurnTable, part: _Part, affect: Floats) -> Floats:
    """Direction in users' rows of the affect their replies show beyond their grade, [H].

    Ridge regression (Hoerl & Kennard 1970): there are fewer users than a row has dimensions.
    """
    grade = turns.grade[part.turns]
    shown = rows[part.turns, 1] @ affect
    beyond = shown.copy()
    for each in np.unique(grade):
        beyond[grade == each] -= shown[grade == each].mean()
    users = rows[part.turns, 0]
    spread = np.maximum(users.std(axis=0), 1e-9)
    standard = (users - users.mean(axis=0)) / spread
    penalty = _PENALTY * standard.shape[1]
    gram = standard.T @ standard + penalty * np.eye(standard.shape[1])
    direction = np.linalg.solve(gram, standard.T @ beyond) / spread
    unit: Floats = direction / np.linalg.norm(direction)
    return unit


def _fit_twin(tables: Tables, family_of: NDArray[np.int64], columns: Columns, part: _Part) -> Floats:
    """Weights of the text twin, [K, T]: families, strength of the user's affect, excess of the assistant's."""
    texts, turns = tables.texts, tables.turns
    users, replies = turns.shares
    family = np.append(family_of, columns.families)[texts.emotion[part.texts]]
    weights = [token_weights(texts.shares[part.texts], family == f) for f in range(columns.families)]
    asking = part.turns & turns.first
    weights.append(token_weights(users[asking], turns.strength[asking] >= CLEAR))
    weights.append(token_weights(replies[part.turns], turns.grade[part.turns] == EXCESSIVE))
    return np.stack(weights, axis=1)
