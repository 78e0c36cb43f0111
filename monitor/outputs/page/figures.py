"""The plots, as plotly takes them: data and layout. Colours that begin with two dashes are the style sheet's."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from monitor.outputs.page.routes import Mirror, RouteView, Turn, is_over
from monitor.outputs.page.wording import TESTS, evalue, signed

Figure = dict[str, Any]

_HEIGHT, _TALL = 270, 350
_TITLES, _ROW = 90, 26
"""Pixels of what stands about bars, and of a bar with its space."""
_LN10 = math.log(10)
_LEAST_DECADE, _MOST_DECADE = -3.0, 6.0
"""Powers of ten of e-values drawn: below there is nothing to see, above it is long since clear."""
_USERS, _ASSISTANT, _OVER, _SOFT, _INK = "--users", "--assistant", "--over", "--soft", "--ink"


def profile(view: RouteView) -> Figure:
    """Mean family scores of users and assistant, as bars."""
    families = [bar.family for bar in view.profile]
    stripes = {"shape": "/", "fillmode": "overlay", "size": 6, "solidity": 0.3, "fgcolor": "--raised"}
    sides = (
        ("users", [bar.user for bar in view.profile], {"color": _USERS, "pattern": stripes}),
        ("assistant", [bar.assistant for bar in view.profile], {"color": _ASSISTANT}),
    )
    data = [
        {
            "type": "bar", "orientation": "h", "name": name, "y": families, "x": values, "marker": marker,
            "hovertemplate": f"%{{y}}, {name}: %{{x:+.2f}}<extra></extra>",
        }
        for name, values, marker in sides
    ]  # fmt: skip
    layout = _layout("\N{GREEK SMALL LETTER SIGMA} of the reference", "", height=_TITLES + _ROW * len(families))
    layout["yaxis"] |= {"autorange": "reversed", "showgrid": False}
    layout |= {"bargap": 0.35, "bargroupgap": 0.05}
    return {"data": data, "layout": layout}


def over_time(view: RouteView) -> Figure:
    """Over-index of recent turns; the line at 0 is what was warranted."""
    layout = _layout("", "over-index")
    layout["xaxis"] |= {"type": "date", "showgrid": False, "nticks": 5}
    layout["shapes"] = [_line(x0=0, x1=1, y0=0, y1=0, xref="paper")]
    layout["annotations"] = [_note("warranted", x=1, y=0, xref="paper", xanchor="right", yanchor="bottom")]
    if not view.judged:
        layout["xaxis"]["visible"] = False  # it would begin in the year 2000
    dots = _dots(view.judged, lambda turn: turn.ended_unix_ns / 1e6, lambda turn: turn.over_index)
    return {"data": dots, "layout": layout}


def user_against_assistant(view: RouteView) -> Figure:
    """A against U for recent turns, with what was warranted for each, and the mirror slope."""
    turns = [turn for turn in view.judged if turn.user_tokens]
    warranted = {
        "type": "scatter", "mode": "markers", "name": "warranted", "x": [_number(turn.user_affect) for turn in turns],
        "y": [_number(turn.warranted) for turn in turns], "hoverinfo": "skip",
        "marker": {"symbol": "line-ew", "size": 9, "line": {"color": _SOFT, "width": 1.5}},
    }  # fmt: skip
    data = [
        *([warranted] if turns else []),
        *_slopes(turns, view.mirror),
        *_dots(turns, lambda turn: turn.user_affect, lambda turn: turn.assistant_affect),
    ]
    return {"data": data, "layout": _layout("U, users", "A, assistant", height=_TALL)}


def drift(view: RouteView) -> Figure:
    """The e-value of every test on a logarithmic scale, beside its line."""
    names = [TESTS.get(test.name, test.name) for test in view.tests]
    decades = [min(max(test.log_evalue / _LN10, _LEAST_DECADE), _MOST_DECADE) for test in view.tests]
    lined = [test for test in view.tests if test.log_line is not None]
    colours = [_OVER if test.alarm else _ASSISTANT if test.log_line is not None else _SOFT for test in view.tests]
    data = [
        {
            "type": "bar", "orientation": "h", "name": "e-value", "y": names, "x": decades,
            "marker": {"color": colours}, "text": [evalue(test.log_evalue) for test in view.tests],
            "textposition": "none", "showlegend": False, "hovertemplate": "%{y}: e-value %{text}<extra></extra>",
        },
        {
            "type": "scatter", "mode": "markers", "name": "alarm line",
            "y": [TESTS.get(test.name, test.name) for test in lined],
            "x": [test.log_line / _LN10 for test in lined if test.log_line is not None],
            "marker": {"symbol": "line-ns", "size": 20, "line": {"color": _OVER, "width": 2.5}},
            "text": [evalue(test.log_line) for test in lined if test.log_line is not None],
            "hovertemplate": "%{y}: alarms at %{text}<extra></extra>",
        },
    ]  # fmt: skip
    layout = _layout("e-value: evidence of a lasting change (1: none)", "", height=_TITLES + _ROW * len(names))
    highest = max([2.0, *decades, *((test.log_line or 0.0) / _LN10 for test in view.tests)])
    lowest = min([-1.0, *decades])
    step = 1 if highest - lowest < 6 else 2  # noqa: PLR2004 - labels that fit
    ticks = list(range(math.floor(lowest), math.ceil(highest) + 1, step))
    layout["xaxis"] |= {
        "tickvals": ticks, "ticktext": [evalue(tick * _LN10) for tick in ticks], "range": [lowest - 0.2, highest + 0.4],
    }  # fmt: skip
    layout["yaxis"] |= {"autorange": "reversed", "showgrid": False}
    layout |= {"bargap": 0.45}
    return {"data": data, "layout": layout}


def tokens(positions: Sequence[int], roles: Sequence[str], affect: Sequence[float | None], warranted: Any) -> Figure:
    """Affect along a turn's tokens, by whose they are."""
    colours = {"user": _USERS, "assistant": _ASSISTANT}
    data = [
        {
            "type": "scatter", "mode": "lines+markers", "name": role, "x": list(positions),
            "y": [value if each == role else None for value, each in zip(affect, roles, strict=True)],
            "line": {"color": colours.get(role, _SOFT), "dash": "solid" if role == "assistant" else "dot"},
            "marker": {"size": 4},
            "hovertemplate": f"position %{{x}}, {role}: %{{y:+.2f}}<extra></extra>",
        }
        for role in dict.fromkeys(roles)
    ]  # fmt: skip
    layout = _layout("position in the conversation", "affect of the token", height=240)
    if warranted is not None:
        layout["shapes"] = [_line(x0=0, x1=1, y0=warranted, y1=warranted, xref="paper")]
        layout["annotations"] = [
            _note("warranted for the turn", x=1, y=warranted, xref="paper", xanchor="right", yanchor="bottom")
        ]
    return {"data": data, "layout": layout}


def _dots(turns: Sequence[Turn], x: Callable[[Turn], float], y: Callable[[Turn], float]) -> list[Figure]:
    """Turns as dots, those that were over as larger marks of another shape; a click opens the turn."""
    kinds = (
        ("within", [turn for turn in turns if not is_over(turn)],
         {"symbol": "circle", "size": 6, "color": _ASSISTANT, "opacity": 0.75}),
        ("over", [turn for turn in turns if is_over(turn)],
         {"symbol": "diamond", "size": 11, "color": _OVER, "line": {"color": "--paper", "width": 1}}),
    )  # fmt: skip
    return [
        {
            "type": "scatter", "mode": "markers", "name": f"{name} ({len(chosen)})",
            "x": [_number(x(turn)) for turn in chosen], "y": [_number(y(turn)) for turn in chosen], "marker": marker,
            "customdata": [f"/turns/{turn.turn_id}" for turn in chosen], "text": [_told(turn) for turn in chosen],
            "hovertemplate": "%{text}<extra></extra>",
        }
        for name, chosen, marker in kinds
        if chosen
    ]  # fmt: skip


def _told(turn: Turn) -> str:
    return (
        f"U {signed(turn.user_affect)}, A {signed(turn.assistant_affect)}, warranted {signed(turn.warranted)}<br>"
        f"over-index {signed(turn.over_index)}"
    )


def _slopes(turns: Sequence[Turn], mirror: Mirror) -> list[Figure]:
    """Lines through the middle of the turns, with the slope of these and that of the reference."""
    users = [turn.user_affect for turn in turns]
    if len(turns) < 3 or min(users) == max(users):  # noqa: PLR2004 - a line through fewer says nothing
        return []
    ends = (min(users), max(users))
    middle = sum(users) / len(users), sum(turn.assistant_affect for turn in turns) / len(turns)
    styles = (("mirror slope", mirror.estimate, _INK, "solid"), ("reference slope", mirror.reference, _SOFT, "dot"))
    return [
        {
            "type": "scatter", "mode": "lines", "name": name, "x": list(ends),
            "y": [middle[1] + slope * (end - middle[0]) for end in ends],
            "line": {"color": colour, "width": 1.5, "dash": dash}, "hoverinfo": "skip",
        }
        for name, slope, colour, dash in styles
        if slope is not None
    ]  # fmt: skip


def _layout(x: str, y: str, height: int = _HEIGHT) -> Figure:
    axis = {
        "gridcolor": "--line", "linecolor": "--line", "zerolinecolor": "--soft", "zerolinewidth": 1, "automargin": True,
        "fixedrange": True, "tickfont": {"size": 12},
    }  # fmt: skip
    return {
        "height": height, "margin": {"l": 8, "r": 8, "t": 30, "b": 8}, "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)", "font": {"color": _SOFT, "size": 12}, "dragmode": False,
        "hovermode": "closest", "showlegend": True, "separators": ".,",
        "legend": {"orientation": "h", "x": 0, "y": 1, "xanchor": "left", "yanchor": "bottom", "itemclick": False,
                   "itemdoubleclick": False},
        "hoverlabel": {"bgcolor": "--raised", "bordercolor": "--line", "font": {"color": _INK}},
        "xaxis": {**axis, "title": {"text": x, "standoff": 10}},
        "yaxis": {**axis, "title": {"text": y, "standoff": 10}},
    }  # fmt: skip


def _line(**ends: Any) -> Figure:
    return {"type": "line", **ends, "line": {"color": _INK, "width": 1.25, "dash": "dash"}, "layer": "below"}


def _note(text: str, **place: Any) -> Figure:
    return {"text": text, "showarrow": False, "font": {"size": 11, "color": _SOFT}, **place}


def _number(value: float) -> float | None:
    """A number as JSON has it, with the digits a plot can show."""
    return round(value, 3) if math.isfinite(value) else None
