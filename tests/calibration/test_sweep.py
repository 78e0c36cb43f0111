"""Which layers a bank gets, on scores whose worth is planted."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from small_corpus import HIDDEN

from monitor.calibration.corpus import CONTRAST, GRID
from monitor.calibration.crossfit import CrossFit, Probes
from monitor.calibration.sweep import candidate_layers, choose_layers
from monitor.calibration.tables import Tables, TextTable, TurnTable
from monitor.probes.bank import Columns

COLUMNS = Columns(emotions=3, families=1)
TEXTS, TURNS = 240, 600
LAYERS = (10, 12, 14, 16)


def tables(*, contrast: bool = True) -> Tables:
    """Texts of three emotions and neutral ones; graded replies of the grid, every second of contrast pairs."""
    turn = np.arange(TURNS)
    nothing = csr_matrix((TURNS, 0))
    return Tables(
        TextTable(
            rows=np.zeros((2, TEXTS, 0, HIDDEN), np.float32), shares=csr_matrix((TEXTS, 0)),
            emotion=np.arange(TEXTS) % 4, fold=np.arange(TEXTS) // 4 % 4, keyword_free=np.ones(TEXTS, bool),
        ),
        TurnTable(
            rows=np.zeros((TURNS, 2, 0, HIDDEN), np.float32), shares=(nothing, nothing), tokens=np.full(TURNS, 9),
            source=np.where(contrast & (turn % 2 == 0), CONTRAST, GRID), fold=turn // 6 % 4,
            strength=turn % 4, grade=turn // 2 % 3, first=turn % 3 == 0,
        ),
        np.zeros(0, np.int32),
    )  # fmt: skip


def found(held: Tables, noise: dict[int, float], *, shared: bool = False) -> CrossFit:
    """Held-out scores of each layer: the truth under noise of its own width, or noise alone where none is given.

    Args:
        held: The tables.
        noise: Width of the noise, by layer.
        shared: Whether all layers have the same noise, so that their mean is no better than one.
    """
    rng = np.random.default_rng(0)
    truth = np.zeros((2, TEXTS, COLUMNS.probes)), np.zeros((TURNS, 2, COLUMNS.probes))
    truth[0][..., COLUMNS.emotion] = held.texts.emotion[:, None] == np.arange(COLUMNS.emotions)
    truth[1][:, 1, COLUMNS.assistant_affect] = held.turns.grade

    scores: list[NDArray[np.float64]] = []
    for part in truth:
        once = rng.normal(size=part.shape)
        drawn = [once if shared else rng.normal(size=part.shape) for _ in LAYERS]
        scores.append(
            np.stack([part + noise[at] * own if at in noise else own for at, own in zip(LAYERS, drawn, strict=True)])
        )
    empty = np.zeros(0)
    return CrossFit(
        Probes(empty, empty, empty), np.zeros((0, COLUMNS.twins)), scores[0], scores[1],
        np.zeros((TEXTS, COLUMNS.twins)), np.zeros((TURNS, 2, COLUMNS.twins)),
    )  # fmt: skip


class TestCandidates:
    """Layers that are tried."""

    @pytest.mark.parametrize("depth", [2, 4, 12, 24, 30, 80])
    def test_lie_between_40_and_80_percent_of_the_depth(self, depth: int) -> None:
        """At most seven ascending layers, none twice, from about 40 to about 80 % of the blocks, both ends tried."""
        layers = candidate_layers(depth)
        assert 1 <= len(layers) <= 7
        assert list(layers) == sorted(set(layers))
        assert layers[0] == pytest.approx(0.4 * depth, abs=0.5)
        assert layers[-1] == pytest.approx(0.8 * depth, abs=0.5)
        assert all(1 <= layer <= depth for layer in layers)


class TestChoice:
    """Layers that are taken."""

    @pytest.mark.parametrize("best", LAYERS)
    def test_the_planted_layer_is_chosen_and_useless_ones_are_not_added(self, best: int) -> None:
        """Where one layer shows the truth and the others nothing, the bank has that one."""
        held = tables()
        chosen, sweep = choose_layers(LAYERS, found(held, {best: 0.5}), held, COLUMNS)
        assert chosen == (best,)
        assert [swept.layers for swept in sweep] == [(layer,) for layer in LAYERS]
        for swept in sweep:
            figures = (swept.emotions, swept.excess, swept.contrast)
            assert min(figures) > 0.8 if swept.layers == (best,) else max(figures) < 0.6
            assert swept.worth == pytest.approx(np.mean(figures))

    def test_layers_that_help_each_other_are_taken_together(self) -> None:
        """Two layers with noise of their own are better than one, and come in ascending order."""
        held = tables()
        chosen, _ = choose_layers(LAYERS, found(held, {16: 1.0, 12: 1.1}), held, COLUMNS)
        assert chosen == (12, 16)

    def test_layers_that_say_the_same_are_not(self) -> None:
        """A layer that repeats another adds bytes and nothing else: one is enough."""
        held = tables()
        chosen, _ = choose_layers(LAYERS, found(held, dict.fromkeys(LAYERS, 1.0), shared=True), held, COLUMNS)
        assert len(chosen) == 1

    def test_there_are_never_more_than_three(self) -> None:
        """Even where each of four layers would help, three are taken."""
        held = tables()
        chosen, _ = choose_layers(LAYERS, found(held, dict.fromkeys(LAYERS, 1.5)), held, COLUMNS)
        assert len(chosen) == 3

    def test_without_contrast_pairs_the_grid_counts_for_them(self) -> None:
        """A corpus that lacks them is judged by emotions and grid alone, and no figure is NaN."""
        held = tables(contrast=False)
        chosen, sweep = choose_layers(LAYERS, found(held, {12: 0.5}), held, COLUMNS)
        assert chosen == (12,)
        assert all(swept.contrast == swept.excess for swept in sweep)
        assert np.isfinite([swept.worth for swept in sweep]).all()
