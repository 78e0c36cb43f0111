"""A policy's forecast on a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from monitor.policy.forecast import Forecast

_LEAST = 0.001
"""Alerts a day below which the figure itself says nothing more."""
_WHOLE, _TENTHS = 10, 1
_FIGURES = (
    "alerts a day: at the share of turns over that the reference shows. At most: at any share up to the rate, which "
    "the reference certifies with 95 % confidence. Of a budget both are bounds. Ever: the chance that it ever comes."
)
_ASSUMED = (
    "Each policy is given all turns, for its share of the traffic is not known. Turns are taken as independent, spread "
    "evenly over the day and never stale; muting windows do not count. Alerts on the monitor itself (coverage, lag, "
    "telemetry) depend on the installation, not on behaviour."
)


def show_forecasts(console: Console, found: Sequence[Forecast]) -> None:
    """Prints a table for each policy, and once what the figures mean."""
    for each in found:
        console.print(
            f"{each.policy}: stance {each.stance}, judged against {each.reference_turns} reference turns\n"
            f"at {each.turns_per_day} judged turns a day, unchanged behaviour raises {_count(each.per_day)} "
            f"alerts a day, at most {_count(each.per_day_at_most)}:"
        )
        console.print(_table(each))
        for burn in each.burn:
            if burn.never:
                console.print(Text(f" {burn.alert} never fires: {burn.never}", style="yellow"))
        console.print()
    for note in (_FIGURES, _ASSUMED):
        console.print(Text(note, style="dim"))


def _table(found: Forecast) -> Table:
    table = Table(box=None, header_style="bold")
    for name in ("alert", "rule"):
        table.add_column(name, no_wrap=True)
    for name in ("turns over", "alerts a day", "at most"):
        table.add_column(name, justify="right", no_wrap=True)
    for turn in found.turn:
        counts = _count(turn.per_day), _count(turn.per_day_at_most)
        table.add_row(turn.alert, f"{turn.target} at {turn.rate:g}", f"{turn.share:.2%}", *counts)
    for burn in found.burn:
        rule = f"over {burn.threshold:.1%} of {_span(burn.long_hours)} and of {_span(burn.short_hours)}"
        counts = ("never", "never") if burn.never else (_count(burn.per_day), _count(burn.per_day_at_most))
        table.add_row(burn.alert, rule, "", *counts)
    for ever in found.ever:
        table.add_row(ever.alert, f"alpha {ever.alpha:g}", "", "", f"{100 * ever.alpha:g}% ever")
    return table


def _span(hours: float) -> str:
    return f"{hours:.3g} h" if hours >= 1 else f"{60 * hours:.3g} min"


def _count(alerts: float) -> str:
    if alerts < _LEAST:
        return f"< {_LEAST:g}"
    return f"{alerts:.{0 if alerts >= _WHOLE else 1 if alerts >= _TENTHS else 3}f}"
