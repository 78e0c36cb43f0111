"""The page of a run: the suites' answers at the top, every figure and plot below; it needs no network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import plotly.graph_objects as go

from monitor.evaluation.bars import figure_text
from monitor.evaluation.look import COLOURS, GREY, styled
from monitor.evaluation.offline_page import write_offline
from monitor.evaluation.results import Curves, Series, SuiteResult

QUESTIONS = {
    "robustness": "Is the concept there, and does it hold?",
    "versions": "Is it the same concept in other versions of the model?",
    "interventions": "Does pushing on it change behaviour predictably, within bounds?",
    "distortion": "Does too much of it bend the answers?",
}
_OUTCOMES = {True: "pass", False: "miss", None: ""}


def write_page(results: Sequence[SuiteResult], unmet: Sequence[str] | None, target: Path) -> None:
    """Writes the page.

    Args:
        results: Of one or more suites.
        unmet: What of the gate is not met; None where there was no gate.
        target: The file; its folder must exist.
    """
    filters = {"figure": figure_text, "outcome": lambda measure: _OUTCOMES[measure.passed]}
    write_offline(
        "page.html.j2",
        target,
        filters,
        results=results,
        questions=QUESTIONS,
        unmet=unmet,
        plots={result.suite: [draw(curves) for curves in result.curves] for result in results},
    )


def draw(curves: Curves) -> go.Figure:
    """Lines over a quantity, nulls thin and grey, intervals shaded."""
    figure = styled(curves.x, curves.y)
    strong = [series.name for series in curves.series if not series.faint]
    for series in sorted(curves.series, key=lambda each: not each.faint):
        colour = GREY if series.faint else COLOURS[strong.index(series.name) % len(COLOURS)]
        if series.low is not None and series.high is not None:
            _shade(figure, series, colour)
        line = {"color": colour, "width": 1 if series.faint else 3}
        figure.add_scatter(
            x=series.x, y=series.y, name=series.name, mode="lines" if series.faint else "lines+markers", line=line,
            opacity=0.6 if series.faint else 1,
        )  # fmt: skip
    return figure


def _shade(figure: go.Figure, series: Series, colour: str) -> None:
    x = [*series.x, *reversed(series.x)]
    y = [*(series.high or []), *reversed(series.low or [])]
    figure.add_scatter(
        x=x, y=y, fill="toself", fillcolor=colour, opacity=0.15, line={"width": 0}, mode="lines", hoverinfo="skip",
        showlegend=False,
    )  # fmt: skip
