"""What the reader of a dashboard chooses: where the numbers come from, which sidecars, which routes, how smooth."""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.models import dashboard

from monitor.dashboards.panels import SOURCE
from monitor.dashboards.queries import SCOPE

_POLICIES = f"label_values(affect_policy_info{{{SCOPE}}}, policy)"
_RUNBOOKS = "https://runbooks.example.org/affect"
"""Stands for the address that only the reader knows."""
Variable = builders.QueryVariable | builders.DatasourceVariable | builders.IntervalVariable | builders.TextBoxVariable


def of_fleet() -> list[Variable]:
    """Variables of dashboards that show many routes."""
    return [
        *_sidecars(),
        _many("instance", "Sidecar", 'label_values(affect_build_info{job=~"$job"}, instance)'),
        _many("policy", "Route (policy)", _POLICIES),
        *_ways(),
    ]


def of_route() -> list[Variable]:
    """Variables of a dashboard that shows one route; a model and a bank choose their sidecars."""
    model = 'label_values(affect_bank_info{job=~"$job"}, model)'
    bank = 'label_values(affect_bank_info{job=~"$job", model=~"$model"}, bank_id)'
    instance = 'label_values(affect_bank_info{job=~"$job", model=~"$model", bank_id=~"$bank"}, instance)'
    return [
        *_sidecars(),
        _many("model", "Model", model),
        _many("bank", "Bank", bank),
        _listed("instance", "Sidecar", instance),
        _choice("policy", "Route (policy)", _POLICIES),
        *_ways(),
    ]


_ALL = dashboard.VariableOption(selected=True, text=["All"], value=["$__all"])


def _sidecars() -> list[Variable]:
    return [
        builders.DatasourceVariable("datasource").label("Prometheus").type("prometheus"),
        _listed("job", "Job", "label_values(affect_build_info, job)"),
    ]


def _ways() -> list[Variable]:
    """How long a window is, and where the runbooks are."""
    hour = dashboard.VariableOption(selected=True, text="1h", value="1h")
    window = builders.IntervalVariable("window").label("Window").values("5m,15m,1h,6h,1d,7d").current(hour)
    told = dashboard.VariableOption(selected=True, text=_RUNBOOKS, value=_RUNBOOKS)
    runbooks = builders.TextBoxVariable("runbooks").label("Runbooks at").default_value(_RUNBOOKS).current(told)
    return [
        window.description("Turns are counted over this time: longer is smoother, shorter is sooner."),
        runbooks.description(
            "Address of the folder of runbooks, as links.runbooks in the policy file; set and save it."
        ),
    ]


def _choice(name: str, label: str, query: str) -> builders.QueryVariable:
    return (
        builders.QueryVariable(name)
        .label(label)
        .datasource(SOURCE)
        .query({"qryType": 1, "query": query, "refId": "PrometheusVariableQueryEditor-VariableQuery"})
        .definition(query)
        .refresh(dashboard.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(dashboard.VariableSort.ALPHABETICAL_ASC)
    )


def _listed(name: str, label: str, query: str) -> builders.QueryVariable:
    """Several or all, where all are those that the query finds and no others."""
    return _choice(name, label, query).multi(True).include_all(True).current(_ALL)


def _many(name: str, label: str, query: str) -> builders.QueryVariable:
    """Several or all, where all are any."""
    return _listed(name, label, query).all_value(".*")
