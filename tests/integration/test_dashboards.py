"""The committed dashboards on a real Prometheus, which scrapes two sidecars that saw turns of every kind."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, NamedTuple

import httpx
import needs
import pytest
from board_fleet import Watched
from boards import BOARDS, queries
from builders import make_bank
from servers import Server, eventually, free_port

from monitor.probes.bank import Bank

pytestmark = pytest.mark.servers

RULES = """
groups:
  - name: of the test
    rules:
      - {alert: AffectBankUnvalidated, expr: sum(affect_build_info) > 0, labels: {severity: warning}}
      - {alert: AffectDrift, expr: affect_policy_info, labels: {severity: warning}}
"""
DONE = (
    "sum(up) == 2",
    "count(ALERTS) > 0",
    "sum(affect_drift_turns) == sum(affect_turns_judged_total)",
    "sum(increase(affect_turns_visibility_total[1m])) > 0",
    'sum(increase(affect_notifications_total{result="failed"}[1m])) > 0',
    "count(affect_canary_p_value) == 2",
    "min(affect_state_saved_timestamp_seconds) > 0",
)
"""What is waited for: it happens in its own time."""


class Moment(NamedTuple):
    """A Prometheus, asked about one moment: what happens later changes no answer."""

    http: httpx.Client
    at: float

    def values(self, query: str) -> list[float]:
        """Values of a query, without those that are no numbers."""
        answer = self.http.get("/api/v1/query", params={"query": query, "time": self.at}).raise_for_status()
        values = [float(found["value"][1]) for found in answer.json()["data"]["result"]]
        return [value for value in values if math.isfinite(value)]

    def options(self, definition: str, chosen: dict[str, str]) -> list[str]:
        """What a variable can be."""
        selector, label = re.fullmatch(r"label_values\((.*), (\w+)\)", definition).groups()  # type: ignore[union-attr]
        answer = self.http.get(f"/api/v1/label/{label}/values", params={"match[]": filled(selector, chosen)})
        return list(answer.raise_for_status().json()["data"])


def when(http: httpx.Client, server: Server, *conditions: str) -> Moment:
    """The first moment at which all conditions hold."""

    def look() -> Moment | None:
        moment = Moment(http, time.time())
        return moment if all(map(moment.values, conditions)) else None

    found: Moment = eventually(look, server)
    return found


@pytest.fixture(scope="module")
def moment(tmp_path_factory: pytest.TempPathFactory, small_bank: Bank) -> Iterator[Moment]:
    """A Prometheus that has scraped two sidecars, of different banks, before, between and after their turns."""
    needs.server("prometheus")
    folder = tmp_path_factory.mktemp("prometheus")
    with ExitStack() as running:
        patch = running.enter_context(pytest.MonkeyPatch.context())
        patch.setattr("monitor.sidecar.server._STATE_SECONDS", 0.5)
        fleet = [Watched(bank, tmp_path_factory.mktemp("w")) for bank in (small_bank, make_bank(seed=1))]
        for watched in fleet:
            running.callback(watched.stop)
        targets = [watched.sidecar.http_url.removeprefix("http://") for watched in fleet]
        (folder / "rules.yml").write_text(RULES)
        config = {
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
            "rule_files": ["rules.yml"],
            "scrape_configs": [{"job_name": "affect", "static_configs": [{"targets": targets}]}],
        }
        (folder / "prometheus.yml").write_text(json.dumps(config))
        flags = ("--config.file=prometheus.yml", "--storage.tsdb.path=data")
        server = Server("prometheus", folder, free_port(), *flags)
        running.callback(server.stop)
        http = running.enter_context(httpx.Client(base_url=server.url))
        when(http, server, "count(affect_build_info) == 2")
        for _ in range(2):  # a rate needs a first value, and one that is larger
            for watched in fleet:
                watched.work()
            done = f"sum(affect_turns_total) >= {sum(watched.turns for watched in fleet)}"
            when(http, server, done)
        yield when(http, server, done, *DONE)


def chosen(board: dict[str, Any], moment: Moment) -> dict[str, str]:
    """What a reader has chosen who has just opened a dashboard: the values of its variables.

    A choice of many is a regular expression, as Grafana makes one.
    """
    values = {"__rate_interval": "1m"}
    for variable in board["templating"]["list"]:
        name = variable["name"]
        if variable["type"] != "query":
            values[name] = variable.get("current", {}).get("value", "")
            continue
        assert variable["query"]["query"] == variable["definition"]
        options = moment.options(variable["definition"], values)
        assert options, f"nothing to choose for {name}"
        everything = variable.get("allValue") or f"({'|'.join(map(re.escape, options))})"
        values[name] = everything if variable["includeAll"] else min(options)
    return values


def filled(query: str, values: dict[str, str]) -> str:
    """A query with its variables filled in."""
    quoted = {name: value.replace("\\", "\\\\") for name, value in values.items()}
    return re.sub(r"\$(\w+)", lambda found: quoted[found[1]], query)


@pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS)
def test_every_query_has_data(board: dict[str, Any], moment: Moment) -> None:
    """Each panel, annotation and variable finds something, as the dashboard stands when it is opened."""
    values = chosen(board, moment)
    lacking = [where for where, query in queries(board) if not moment.values(filled(query, values))]
    assert lacking == []
