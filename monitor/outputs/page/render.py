"""Pages as HTML: templates filled with what is to be shown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from monitor import __version__
from monitor.outputs.page import figures, wording
from monitor.outputs.page.assets import address, plotly_styles
from monitor.outputs.page.cards import cards, headline
from monitor.outputs.page.health import health_view
from monitor.outputs.page.routes import route_view
from monitor.outputs.page.snapshot import Snapshot
from monitor.outputs.page.turns import TurnView, token_words, verdict
from monitor.wire.v1 import ingest_pb2

_TEMPLATES = Path(__file__).parent / "templates"


class Pages:
    """Makes the pages."""

    def __init__(self) -> None:
        self._templates = Environment(
            loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
            lstrip_blocks=True, auto_reload=False,
        )  # fmt: skip
        self._templates.globals |= {
            "asset": address, "plotly_styles": plotly_styles, "version": __version__, "verdict": verdict,
        }  # fmt: skip
        self._templates.filters |= {
            "clock": wording.clock, "count": wording.count, "evalue": wording.evalue, "iso": wording.machine_time,
            "milliseconds": wording.milliseconds, "moment": wording.moment, "number": wording.number,
            "p_value": wording.p_value, "percent": wording.percent, "signed": wording.signed,
            "token_words": token_words, "unjudged": wording.unjudged,
        }  # fmt: skip

    def status(self, snapshot: Snapshot) -> str:
        """The first page: everything at a glance."""
        routes = [route_view(snapshot, policy) for policy in snapshot.policies.policies]
        shown = cards(snapshot, routes)
        state, line = headline(snapshot, routes, shown)
        return self._render(
            "status.html.j2",
            snapshot=snapshot,
            routes=routes,
            cards=shown,
            state=state,
            headline=line,
            health=health_view(snapshot.metrics),
            figures=figures,
            words=wording,
        )

    def turns(self, turns: Sequence[ingest_pb2.Assessment], policies: Sequence[str], asked: dict[str, Any]) -> str:
        """A list of turns, newest first.

        Args:
            turns: What is to be listed.
            policies: Names of all policies.
            asked: The filter: policy (or None), over, limit.
        """
        return self._render("turns.html.j2", turns=turns, policies=policies, asked=asked)

    def turn(self, view: TurnView, *, traced: str) -> str:
        """One turn.

        Args:
            view: The turn.
            traced: Why its tokens are not shown, where they are not.
        """
        return self._render("turn.html.j2", view=view, traced=traced)

    def runbook(self, alert: str, html: str) -> str:
        """A runbook.

        Args:
            alert: Name of the alert.
            html: Its text, already HTML.
        """
        return self._render("runbook.html.j2", alert=alert, text=Markup(html))  # noqa: S704 - rendered with HTML off

    def runbooks(self, names: Sequence[str]) -> str:
        """All runbooks."""
        return self._render("runbooks.html.j2", names=names)

    def message(self, title: str, text: str) -> str:
        """A page that says why there is nothing else on it."""
        return self._render("message.html.j2", title=title, text=text)

    def _render(self, template: str, **context: Any) -> str:
        return self._templates.get_template(template).render(**context)
