"""The look of the report's plots: readable on a light page and on a dark one, and on a phone."""

from __future__ import annotations

import plotly.graph_objects as go

GREY = "#808080"
COLOURS = ("#2b83ba", "#d95f02", "#1b9e77", "#cc79a7", "#c99700", "#56b4e9", "#8c6bb1", "#999999")
"""Told apart by most colour-blind readers."""
HEIGHT = 440
_FAINT, _CLEAR = "rgba(128,128,128,0.25)", "rgba(0,0,0,0)"


def styled(x: str, y: str, height: int = HEIGHT, figure: go.Figure | None = None) -> go.Figure:
    """A figure with axis titles and the report's look.

    Args:
        x: Title of the horizontal axis, with its unit.
        y: Title of the vertical axis, with its unit.
        height: In pixels.
        figure: A figure with axes of its own, where one pair is not enough.
    """
    figure = figure or go.Figure()
    figure.update_layout(
        template="none", height=height, paper_bgcolor=_CLEAR, plot_bgcolor=_CLEAR, dragmode=False, hovermode="closest",
        font={"color": GREY, "size": 12, "family": "system-ui, sans-serif"}, margin={"l": 8, "r": 12, "t": 12, "b": 8},
        legend={"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "x": 0},
    )  # fmt: skip
    axis = {"gridcolor": _FAINT, "linecolor": _FAINT, "zerolinecolor": _FAINT, "automargin": True, "title_standoff": 14}
    figure.update_xaxes(title_text=x, **axis)
    figure.update_yaxes(title_text=y, **axis)
    return figure
