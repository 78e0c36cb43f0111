"""Chooses the layers of a bank: the best of a sweep over depth, and others where an ensemble is better."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from monitor.calibration.corpus import CONTRAST, GRID
from monitor.calibration.crossfit import CrossFit, Scores
from monitor.calibration.statistics import auroc
from monitor.calibration.tables import EXCESSIVE, Tables
from monitor.probes.bank import Columns

SHALLOWEST, DEEPEST = 0.4, 0.8
"""Affect is read best between these shares of a model's depth."""
_CANDIDATES, _MOST = 7, 3
_WORTH = 0.001
"""What another layer must add to the mean AUROC: every layer adds to the bytes an engine sends."""


class Swept(NamedTuple):
    """What one layer, or an ensemble, is worth on held-out domains and topics.

    Attributes:
        layers: The layers.
        emotions: Macro AUROC of emotions.
        excess: AUROC of excessive against warranted replies of the grid.
        contrast: The same of contrast pairs; that of the grid where the corpus has none.
    """

    layers: tuple[int, ...]
    emotions: float
    excess: float
    contrast: float

    @property
    def worth(self) -> float:
        """The mean of all three."""
        return (self.emotions + self.excess + self.contrast) / 3


def candidate_layers(depth: int) -> tuple[int, ...]:
    """Layers of the sweep over a model of some blocks, ascending."""
    return tuple(
        int(layer) for layer in np.unique(np.linspace(SHALLOWEST * depth, DEEPEST * depth, _CANDIDATES).round())
    )


def choose_layers(
    candidates: tuple[int, ...], found: CrossFit, tables: Tables, columns: Columns
) -> tuple[tuple[int, ...], list[Swept]]:
    """The layers of the bank, ascending, and the sweep over all candidates.

    Layers are added one by one, the best first, while the ensemble gains. They are chosen on the same held-out scores
    that are reported later; with seven candidates that flatters the figures little.
    """

    def worth(layers: tuple[int, ...]) -> Swept:
        scores = found.ensemble([candidates.index(layer) for layer in layers])
        return Swept(layers, *_worth(scores, tables, columns))

    sweep = [worth((layer,)) for layer in candidates]
    best = max(sweep, key=lambda swept: swept.worth)
    while len(best.layers) < min(_MOST, len(candidates)):
        wider = [worth(tuple(sorted((*best.layers, layer)))) for layer in candidates if layer not in best.layers]
        further = max(wider, key=lambda swept: swept.worth)
        if further.worth < best.worth + _WORTH:
            break
        best = further
    return best.layers, sweep


def _worth(scores: Scores, tables: Tables, columns: Columns) -> tuple[float, float, float]:
    texts, turns = tables.texts, tables.turns
    truth = np.tile(texts.emotion, 2)[:, None] == np.arange(columns.emotions)
    emotions = scores.texts[..., columns.emotion].reshape(-1, columns.emotions)
    affect = scores.turns[:, 1, columns.assistant_affect]
    excess = [_excess(affect, turns.grade, turns.source == source) for source in (GRID, CONTRAST)]
    macro = float(np.mean([auroc(emotions[~held, e], emotions[held, e]) for e, held in enumerate(truth.T)]))
    return macro, excess[0], excess[0] if np.isnan(excess[1]) else excess[1]


def _excess(affect: NDArray[np.float64], grade: NDArray[np.int64], chosen: NDArray[np.bool_]) -> float:
    return auroc(affect[chosen & (grade == 1)], affect[chosen & (grade == EXCESSIVE)])
