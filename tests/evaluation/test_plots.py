"""Tests of the report's plots: that they show what the evidence holds."""

from __future__ import annotations

import numpy as np
import pytest

from monitor.calibration.corpus import GRID
from monitor.evaluation.battery import plots
from monitor.evaluation.battery.evidence import Evidence
from monitor.evaluation.judge import judge


class TestDraw:
    """All plots at once."""

    def test_every_plot_is_drawn(self, full: Evidence) -> None:
        """A corpus with every part gives every plot, each with marks, titled axes and a caption."""
        drawn = plots.draw(full)
        assert len({plot.title for plot in drawn}) == 8
        for plot in drawn:
            assert plot.figure is not None
            assert plot.figure.data
            assert plot.caption.endswith(".")
            assert plot.figure.layout.xaxis.title.text or plot.figure.layout.xaxis2.title.text

    def test_what_cannot_be_drawn_says_why(self, bare: Evidence) -> None:
        """Given layers leave no sweep, a corpus without series no series; the rest is drawn."""
        left = {plot.title: plot.caption for plot in plots.draw(bare) if plot.figure is None}
        assert set(left) == {"Layer sweep", "Intensity series"}
        assert all(caption.startswith("Not drawn:") for caption in left.values())


class TestFigures:
    """Single plots."""

    def test_chosen_layers_stand_out(self, full: Evidence) -> None:
        """The points of the bank's layers are larger than those of the other candidates."""
        line = plots.layer_sweep(full).figure.data[0]
        large = {layer for layer, size in zip(line.x, line.marker.size, strict=True) if size == max(line.marker.size)}
        assert large == set(full.bank.card.layers)

    def test_confusion_rows_are_shares(self, full: Evidence) -> None:
        """Every family and the neutral texts have a row that sums to one."""
        (heatmap,) = plots.family_confusion(full).figure.data
        assert list(heatmap.y) == [*full.bank.card.families, "neutral"]
        assert np.asarray(heatmap.z).sum(axis=1) == pytest.approx(1, abs=1e-3)

    def test_every_emotion_is_on_the_map(self, full: Evidence) -> None:
        """Each emotion is one named point."""
        points = [name for trace in plots.valence_arousal(full).figure.data for name in trace.text]
        assert sorted(points) == sorted(full.names)

    def test_all_replies_of_the_grid_are_points(self, full: Evidence) -> None:
        """Each grade of reply has a point for every user turn, where the judge put it."""
        grades = plots.expected_and_assistant(full).figure.data[:3]
        for grade, trace in enumerate(grades):
            here = (full.turns.source == GRID) & (full.turns.grade == grade)
            assert list(trace.x) == list(full.judged.expected[here])
            assert list(trace.y) == list(full.judged.assistant[here])

    def test_the_line_is_what_replies_are_judged_by(self, full: Evidence) -> None:
        """A line that passes through the warranted level of every reply of its length."""
        lines = plots.expected_and_assistant(full).figure.data[3:]
        assert [line.name for line in lines] == ["warranted, 60 tokens", "warranted, 20 tokens"]
        tokens = np.full(len(full.turns.tokens), 20)
        judged = judge(full.bank, full.calibration.scores.turns.swapaxes(0, 1), tokens)
        assert np.interp(judged.expected, lines[1].x, lines[1].y)[full.turns.source == GRID] == pytest.approx(
            judged.warranted[full.turns.source == GRID]
        )

    def test_curves_go_from_none_to_all(self, full: Evidence) -> None:
        """A curve of the over-index and one of the twin, on the grid and on twin-hard pairs, from (0, 0) to (1, 1)."""
        _chance, *curves = plots.excess_roc(full).figure.data
        assert len(curves) == 4
        for curve in curves:
            assert (curve.x[0], curve.y[0], curve.x[-1], curve.y[-1]) == (0, 0, 1, 1)
            assert (np.diff(curve.x) >= 0).all()
            assert (np.diff(curve.y) >= 0).all()

    def test_bars_are_intervals_of_the_difference(self, full: Evidence) -> None:
        """Laid off from the twin's mark a bar ends where the interval does; text-equivalent emotions are starred."""
        twin, *probes = plots.against_twin(full).figure.data
        mark = dict(zip(twin.y, twin.x, strict=True))
        expected = dict(zip(full.names, full.twin_differences, strict=True))
        told = [
            (label, probe.x[row], probe.error_x.arrayminus[row], probe.error_x.array[row])
            for probe in probes
            for row, label in enumerate(probe.y)
        ]
        assert len(told) == len(full.names)
        for label, place, below, above in told:
            figure = expected[label.removesuffix(" *")]
            assert place - mark[label] == pytest.approx(figure.value)
            assert place - below - mark[label] == pytest.approx(figure.low)
            assert place + above - mark[label] == pytest.approx(figure.high)
            assert label.endswith(" *") == (not figure.low > 0)

    def test_each_series_is_a_line_over_its_levels(self, full: Evidence) -> None:
        """A series of three levels is a line of three points."""
        lines = plots.intensity(full).figure.data
        assert [list(line.x) for line in lines] == [[0, 1, 2], [0, 1, 2]]
        assert lines[0].name.startswith("hours away (fear)")
