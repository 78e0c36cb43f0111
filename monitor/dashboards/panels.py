"""Panels of the dashboards, each with what it means, its unit, and the runbooks of the alerts it belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

from grafana_foundation_sdk.builders import bargauge, heatmap, prometheus, stat, statetimeline, table, timeseries
from grafana_foundation_sdk.builders import common as common_builders
from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.models import common, dashboard, units
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

SOURCE = common.DataSourceRef(type_val="prometheus", uid="${datasource}")
GREEN, RED = "green", "red"
SHARE, PLAIN, SECONDS, BYTES = units.PercentUnit, units.NoUnit, units.Seconds, units.BytesIEC
BYTES_PER_SECOND = units.BytesPerSecondIEC
MOMENT, DURATION = units.DateTimeFromNow, units.DurationSeconds
DEVIATIONS = "suffix: SD"
TURNS, TOKENS, FRAMES, EVENTS = "suffix: turns/s", "suffix: tokens/s", "suffix: frames/s", "suffix:/s"


class About(NamedTuple):
    """What is said of a panel.

    Attributes:
        title: Its title.
        text: What it shows, and what to do about it.
        unit: Grafana's name of the unit.
        alerts: Alerts whose runbooks it leads to.
        width: Columns of 24.
        height: Rows.
    """

    title: str
    text: str
    unit: str
    alerts: tuple[str, ...] = ()
    width: int = 12
    height: int = 8


class Ask(NamedTuple):
    """A query of a panel.

    Attributes:
        expr: PromQL.
        legend: Name of its series.
        limit: Whether it is a limit that others are held against.
    """

    expr: str
    legend: str = ""
    limit: bool = False


class Column(NamedTuple):
    """A column of a table.

    Attributes:
        name: Its head.
        expr: PromQL, with the labels of the table.
        unit: Grafana's name of the unit.
        limit: From which value on it is red.
    """

    name: str
    expr: str
    unit: str
    limit: float | None = None


_Panel = TypeVar(
    "_Panel", stat.Panel, timeseries.Panel, bargauge.Panel, heatmap.Panel, statetimeline.Panel, table.Panel
)


def lines(about: About, *asks: Ask, stacked: bool = False) -> timeseries.Panel:
    """Values over time; limits are dashed and red."""
    legend = common_builders.VizLegendOptions().display_mode(common.LegendDisplayMode.LIST).show_legend(True)
    tooltip = (
        common_builders.VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI).sort(common.SortOrder.DESCENDING)
    )
    panel = (
        _described(timeseries.Panel(), about)
        .legend(legend.placement(common.LegendPlacement.BOTTOM))
        .tooltip(tooltip)
        .show_points(common.VisibilityMode.NEVER)
        .fill_opacity(60 if stacked else 0)
    )
    if stacked:
        panel.stacking(common_builders.StackingConfig().mode(common.StackingMode.NORMAL))
    for reference, ask in zip(_REFERENCES, asks, strict=False):
        panel.with_target(_query(reference, ask).range())
        if ask.limit:
            panel.override_by_query(reference, _LIMIT)
    return panel


def band(about: About, *asks: Ask) -> timeseries.Panel:
    """Values over time, of which those named low and high bound an interval."""
    panel = lines(about, *asks)
    panel.override_by_name("high", [*_EDGE, dashboard.DynamicConfigValue("custom.fillBelowTo", "low")])
    return panel.override_by_name("low", _EDGE)


def numbers(about: About, *asks: Ask, red_from: float | None = None, red_below: float | None = None) -> stat.Panel:
    """Values of now, large."""
    panel = (
        _described(stat.Panel(), about)
        .thresholds(_thresholds(red_from, red_below))
        .graph_mode(common.BigValueGraphMode.NONE)
        .reduce_options(common_builders.ReduceDataOptions().calcs(["lastNotNull"]))
    )
    return _instant(panel, asks)


def bars(about: About, *asks: Ask) -> bargauge.Panel:
    """Values of now, as bars."""
    panel = (
        _described(bargauge.Panel(), about)
        .orientation(common.VizOrientation.HORIZONTAL)
        .display_mode(common.BarGaugeDisplayMode.BASIC)
        .reduce_options(common_builders.ReduceDataOptions().calcs(["lastNotNull"]))
        .min(0)
    )
    return _instant(panel, asks)


def states(about: About, *asks: Ask, yes: str) -> statetimeline.Panel:
    """What is true when, in red; ``yes`` says what a 1 means."""
    options = {
        "0": dashboard.ValueMappingResult(text="no", color=GREEN, index=0),
        "1": dashboard.ValueMappingResult(text=yes, color=RED, index=1),
    }
    panel = (
        _described(statetimeline.Panel(), about)
        .mappings([dashboard.ValueMap(options)])
        .show_value(common.VisibilityMode.NEVER)
        .fill_opacity(70)
    )
    for reference, ask in zip(_REFERENCES, asks, strict=False):
        panel.with_target(_query(reference, ask).range())
    return panel


def distribution(about: About, buckets: str) -> heatmap.Panel:
    """A histogram over time; ``buckets`` are rates by ``le``."""
    query = _query("A", Ask(buckets, "{{le}}")).range().format(PromQueryFormat.HEATMAP)
    return (
        _described(heatmap.Panel(), about)
        .calculate(False)
        .rows_frame(heatmap.RowsHeatmapOptions().layout(common.HeatmapCellLayout.AUTO))
        .y_axis(heatmap.YAxisConfig().unit(about.unit))
        .cell_values(heatmap.CellValues().unit(TURNS))
        .color(heatmap.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Oranges").exponent(0.5).steps(64))
        .max_data_points(100)
        .with_target(query)
    )


def rows(about: About, columns: Sequence[Column], *, by: str) -> table.Panel:
    """A table of now, whose queries share their labels; sorted by a column, largest first."""
    panel = _described(table.Panel(), about).sort_by(
        [common_builders.TableSortByFieldState().display_name(by).desc(True)]
    )
    names = {}
    for reference, column in zip(_REFERENCES, columns, strict=False):
        panel.with_target(_query(reference, Ask(column.expr)).instant().format(PromQueryFormat.TABLE))
        names[f"Value #{reference}"] = column.name
        properties = [dashboard.DynamicConfigValue("unit", column.unit)]
        if column.limit is not None:
            red = _thresholds(column.limit, None).build()
            properties += [
                dashboard.DynamicConfigValue("thresholds", red),
                dashboard.DynamicConfigValue("custom.cellOptions", {"type": "color-text"}),
            ]
        panel.override_by_name(column.name, properties)
    organised = {"excludeByName": {"Time": True}, "indexByName": {}, "renameByName": names}
    return panel.transformations([_transformed("merge", {}), _transformed("organize", organised)])


def to_route(policy: str) -> builders.DashboardLink:
    """Leads from a value to the dashboard of its route; ``policy`` says where its name stands."""
    url = f"/d/affect-route?var-policy={policy}&${{datasource:queryparam}}&${{job:queryparam}}&${{__url_time_range}}"
    return builders.DashboardLink("This route in depth").url(url)


def link_to(link: builders.DashboardLink) -> dashboard.DynamicConfigValue:
    """A link as the property of a column."""
    return dashboard.DynamicConfigValue("links", [link.build()])


_REFERENCES = "ABCDEFGHIJ"
_LIMIT = [
    dashboard.DynamicConfigValue("color", {"mode": "fixed", "fixedColor": RED}),
    dashboard.DynamicConfigValue("custom.lineStyle", {"fill": "dash", "dash": [10, 10]}),
    dashboard.DynamicConfigValue("custom.fillOpacity", 0),
]
_EDGE = [
    dashboard.DynamicConfigValue("color", {"mode": "fixed", "fixedColor": "blue"}),
    dashboard.DynamicConfigValue("custom.lineWidth", 0),
    dashboard.DynamicConfigValue("custom.fillOpacity", 20),
]


def _described(panel: _Panel, about: About) -> _Panel:
    links = [builders.DashboardLink(f"Runbook: {name}").url(f"${{runbooks:raw}}/{name}.md") for name in about.alerts]
    return (
        panel.title(about.title)
        .description(about.text)
        .unit(about.unit)
        .datasource(SOURCE)
        .links([link.type(dashboard.DashboardLinkType.LINK).target_blank(True) for link in links])
        .span(about.width)
        .height(about.height)
    )


def _query(reference: str, ask: Ask) -> prometheus.Dataquery:
    query = prometheus.Dataquery().ref_id(reference).expr(ask.expr).datasource(SOURCE)
    return query.legend_format(ask.legend) if ask.legend else query


def _instant(panel: _Panel, asks: Sequence[Ask]) -> _Panel:
    for reference, ask in zip(_REFERENCES, asks, strict=False):
        panel.with_target(_query(reference, ask).instant())
    return panel


def _thresholds(red_from: float | None, red_below: float | None) -> builders.ThresholdsConfig:
    steps = [dashboard.Threshold(None, GREEN if red_below is None else RED)]
    if red_from is not None:
        steps.append(dashboard.Threshold(red_from, RED))
    if red_below is not None:
        steps.append(dashboard.Threshold(red_below, GREEN))
    return builders.ThresholdsConfig().mode(dashboard.ThresholdsMode.ABSOLUTE).steps(steps)


def _transformed(name: str, options: dict[str, object]) -> dashboard.DataTransformerConfig:
    return dashboard.DataTransformerConfig(id_val=name, options=options)
