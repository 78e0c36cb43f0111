"""What the demo shows on a terminal while it plays."""

from __future__ import annotations

import math
from collections import deque

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from monitor.demo.script import Exchange
from monitor.wire.v1 import ingest_pb2

_ROWS = 10
"""With the alerts below them these fit a terminal of 24 lines."""
_BAR = 12
_BAR_SPAN = 6.0
_STYLES = {"ordinary": "green", "distressed": "cyan", "overshoot": "magenta"}


def over_index_bar(over_index: float) -> str:
    """An over-index as a bar; the middle is the level the reference warrants."""
    if math.isnan(over_index):
        return "?" * _BAR
    filled = round((min(max(over_index, -_BAR_SPAN), _BAR_SPAN) + _BAR_SPAN) / (2 * _BAR_SPAN) * _BAR)
    return "█" * filled + "·" * (_BAR - filled)


def top_emotions(assessment: ingest_pb2.Assessment, count: int = 2) -> str:
    """The likeliest emotions on the assistant's tokens."""
    ranked = sorted(assessment.emotions.items(), key=lambda entry: -entry[1])[:count]
    return ", ".join(f"{name} {probability:.2f}" for name, probability in ranked)


class DemoView:
    """Turns as they come in, newest last, and the alerts they raise."""

    def __init__(self, total: int, addresses: str) -> None:
        self._total = total
        self._addresses = addresses
        self._done = 0
        self._rows: deque[tuple[Exchange, ingest_pb2.Assessment]] = deque(maxlen=_ROWS)
        self._asking: Exchange | None = None
        self._alerts: deque[str] = deque(maxlen=3)

    def ask(self, exchange: Exchange) -> None:
        """An exchange is under way."""
        self._asking = exchange

    def show(self, exchange: Exchange, assessment: ingest_pb2.Assessment) -> None:
        """An exchange was assessed."""
        self._asking = None
        self._done += 1
        self._rows.append((exchange, assessment))
        if assessment.alerts:
            seen = "its words show it" if assessment.visibility == ingest_pb2.VISIBILITY_TEXT_VISIBLE else "text-silent"
            self._alerts.append(
                f"{exchange.id}: {', '.join(assessment.alerts)} {assessment.over_index:+.1f} beyond what is warranted "
                f"(p = {assessment.p_value:.4f}; {seen})"
            )

    def __rich__(self) -> RenderableType:
        """The view as rich draws it."""
        parts: list[RenderableType] = [self._table(), Text(self._addresses, style="dim")]
        if self._asking is not None:
            question = self._asking.messages[-1].content
            parts.append(Text(f"… {self._asking.id}: {question[:90]}", style="dim"))
        if self._alerts:
            alerts = Group(*(Text(line, overflow="fold") for line in self._alerts))
            parts.append(Panel(alerts, title="ALERT  AffectOverIndex", border_style="red", title_align="left"))
        return Group(*parts)

    def _table(self) -> Table:
        table = Table(
            title=f"affect-monitor demo · turn {self._done} of {self._total}", title_justify="left", expand=True
        )
        table.add_column("turn", no_wrap=True, overflow="ellipsis", min_width=12)
        for name, width in (("U", 4), ("A", 4), ("over-index", _BAR + 5), ("p", 6)):
            table.add_column(name, justify="right", no_wrap=True, min_width=width)
        table.add_column("assistant shows", no_wrap=True, overflow="ellipsis")
        for exchange, turn in self._rows:
            style = "bold red" if turn.alerts else _STYLES[exchange.kind]
            table.add_row(
                Text(exchange.id, style=style),
                f"{turn.user_affect:+.1f}",
                f"{turn.assistant_affect:+.1f}",
                Text(f"{over_index_bar(turn.over_index)} {turn.over_index:+.1f}", style=style),
                f"{turn.p_value:.4f}",
                top_emotions(turn),
            )
        return table
