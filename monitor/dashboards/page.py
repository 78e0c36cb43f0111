"""A dashboard from its parts: rows of panels, variables, links to the others, alerts as annotations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import dashboard

from monitor.dashboards.panels import SOURCE
from monitor.dashboards.queries import RULES_FIRING, most, of_policy

_TAG = "affect-monitor"


class Page(NamedTuple):
    """What makes up a dashboard.

    Attributes:
        uid: Its name in addresses.
        title: Its title.
        text: What it is for.
        variables: What its reader chooses.
        rows: Panels under their headings.
    """

    uid: str
    title: str
    text: str
    variables: Sequence[Builder[dashboard.VariableModel]]
    rows: Mapping[str, Sequence[Builder[dashboard.Panel]]]


def assemble(page: Page) -> dashboard.Dashboard:
    """Puts a dashboard together."""
    others = builders.DashboardLink("affect-monitor").type(dashboard.DashboardLinkType.DASHBOARDS).tags([_TAG])
    made = (
        builders.Dashboard(page.title)
        .uid(page.uid)
        .description(page.text)
        .tags([_TAG])
        .time("now-24h", "now")
        .refresh("1m")
        .tooltip(dashboard.DashboardCursorSync.CROSSHAIR)
        .variables(list(page.variables))
        .links([others.include_vars(True).keep_time(True)])
        .annotations(_alerts())
    )
    for heading, panels in page.rows.items():
        made.with_row(builders.Row(heading))
        for panel in panels:
            made.with_panel(panel)
    built = made.build()
    for number, placed in enumerate(built.panels or [], 1):
        placed.id_val = number
    return built


def _alerts() -> list[Builder[dashboard.AnnotationQuery]]:
    """Alerts of Prometheus' rules, and those that sidecars raise themselves."""
    firing = most(of_policy("affect_alerts_active", 'state="firing"'), "policy", "target")
    return [
        _annotation("Alerts of rules", RULES_FIRING, "red", "{{alertname}} {{policy}}"),
        _annotation("Alerts of turns", firing, "orange", "AffectOverIndex {{policy}} {{target}}"),
    ]


def _annotation(name: str, query: str, colour: str, title: str) -> builders.AnnotationQuery:
    return (
        builders.AnnotationQuery()
        .name(name)
        .datasource(SOURCE)
        .enable(True)
        .icon_color(colour)
        .expr(query)
        .title_format(title)
        .tag_keys("policy")
        .step("60s")
    )
