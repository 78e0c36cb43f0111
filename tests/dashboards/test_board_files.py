"""The dashboards that are committed: up to date, explained, and of metrics that exist."""

from __future__ import annotations

import re
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from boards import BOARDS, FOLDER, RUNBOOKS, panels, queries

from monitor.outputs.metrics import METRICS

generate = pytest.importorskip("monitor.dashboards.generate")

OF_PROMETHEUS = {"job", "instance", "le"}
each_board = pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS)


def selectors(query: str) -> list[tuple[str, str]]:
    """Metrics of the sidecar in a query, each with its matchers."""
    return re.findall(r"(affect_\w+)\{(.*?)\}", query)


def labels_of(name: str) -> tuple[str, ...]:
    """Labels that the sidecar gives a metric; the parts of a histogram have those of the whole."""
    spec = METRICS.get(name) or METRICS[re.sub(r"_(bucket|sum|count)$", "", name)]
    return spec.labels


def test_dashboards_are_up_to_date(tmp_path: Path) -> None:
    """Generating anew changes no file."""
    generate.generate(tmp_path)
    made = {file.name: file.read_text(encoding="utf-8") for file in tmp_path.iterdir()}
    kept = {file.name: file.read_text(encoding="utf-8") for file in FOLDER.iterdir()}
    assert made == kept, "run python -m monitor.dashboards.generate"


def test_uids_are_the_names_of_the_files() -> None:
    """Links between dashboards go by uid."""
    assert {name: board["uid"] for name, board in BOARDS.items()} == {name: name for name in BOARDS}
    assert list(BOARDS) == ["affect-fleet", "affect-health", "affect-route", "affect-versions"]


@each_board
class TestPanels:
    """Every panel."""

    def test_says_what_it_shows(self, board: dict[str, Any]) -> None:
        """It has a title, a description in sentences, and a unit."""
        for panel in panels(board):
            assert panel["title"]
            assert panel["description"].endswith((".", "?"))
            assert panel["fieldConfig"]["defaults"]["unit"]

    def test_is_told_from_the_others(self, board: dict[str, Any]) -> None:
        """Ids are unique; titles are too, so that a screenshot says where it is from."""
        for values in ([panel["id"] for panel in board["panels"]], [panel["title"] for panel in panels(board)]):
            assert len(set(values)) == len(values)

    def test_has_its_own_place(self, board: dict[str, Any]) -> None:
        """No panel lies over another or beyond the 24 columns."""
        places = [panel["gridPos"] for panel in board["panels"]]
        assert all(place["x"] >= 0 and place["x"] + place["w"] <= 24 for place in places)
        for one, other in combinations(places, 2):
            beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
            above = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
            assert beside or above, (one, other)

    def test_asks_the_chosen_prometheus(self, board: dict[str, Any]) -> None:
        """Panels, queries, annotations and variables go to the data source that the reader chose."""
        asked = [panel["datasource"] for panel in panels(board)]
        asked += [target["datasource"] for panel in panels(board) for target in panel["targets"]]
        asked += [annotation["datasource"] for annotation in board["annotations"]["list"]]
        asked += [choice["datasource"] for choice in board["templating"]["list"] if choice["type"] == "query"]
        assert all(source == {"type": "prometheus", "uid": "${datasource}"} for source in asked)

    def test_leads_to_runbooks(self, board: dict[str, Any]) -> None:
        """Links of panels are runbooks that exist, under the address that the reader has set."""
        links = {link["url"] for panel in panels(board) for link in panel["links"]}
        kept = {f"${{runbooks:raw}}/{file.name}" for file in RUNBOOKS.glob("*.md")}
        assert links
        assert links <= kept

    def test_heatmaps_are_of_buckets(self, board: dict[str, Any]) -> None:
        """A heatmap takes the buckets that Prometheus has; Grafana does not count anew."""
        for panel in panels(board):
            if panel["type"] == "heatmap":
                (target,) = panel["targets"]
                assert target["format"] == "heatmap"
                assert target["expr"].startswith("sum by (le) (rate(")
                assert panel["options"]["calculate"] is False


@each_board
class TestQueries:
    """Every query of a panel or an annotation."""

    def test_is_of_metrics_that_the_sidecar_has(self, board: dict[str, Any]) -> None:
        """Names of metrics and of the labels they are selected by are those of the sidecar's page."""
        for where, query in queries(board):
            for name, matchers in selectors(query):
                labels = set(re.findall(r"(\w+)(?:=~|!~|!=|=)\"", matchers))
                assert labels <= {*labels_of(name), *OF_PROMETHEUS}, (where, name)

    def test_is_of_the_chosen_sidecars(self, board: dict[str, Any]) -> None:
        """Every selector takes the chosen job and instances, and the chosen routes where the metric has them."""
        for where, query in queries(board):
            for name, matchers in selectors(query):
                chosen = {"job", "instance", *({"policy"} & {*labels_of(name)})}
                assert chosen <= set(re.findall(r'(\w+)=~"\$\1"', matchers)), (where, name)

    def test_variables_are_there(self, board: dict[str, Any]) -> None:
        """What is filled in is a variable of the dashboard or one of Grafana's own."""
        known = {choice["name"] for choice in board["templating"]["list"]} | {"__rate_interval"}
        for where, query in queries(board):
            assert set(re.findall(r"\$\{?(\w+)", query)) <= known, where
