"""Rules as YAML and as a PrometheusRule."""

from __future__ import annotations

from typing import Any

import yaml

from monitor.rules.manifest import origin, prometheus_rule, write

RULE = {"alert": "A", "expr": "up == 0\nor up == 1", "labels": {"severity": "info"}}
RULES: dict[str, Any] = {"groups": [{"name": "g", "rules": [RULE, RULE]}]}


def test_what_is_written_is_read_again() -> None:
    """YAML holds the same rules, below the command that made them."""
    text = write(RULES, "affect-monitor rules build")
    assert text.startswith("# Made by: affect-monitor rules build\n")
    assert yaml.safe_load(text) == RULES


def test_is_written_for_people() -> None:
    """Expressions of several lines stay as they are; nothing is an alias."""
    text = write(RULES, "x")
    assert "expr: |-\n          up == 0\n          or up == 1\n" in text
    assert "&" not in text


def test_wraps_rules_for_the_operator() -> None:
    """A PrometheusRule holds the groups, with the labels by which a Prometheus finds it."""
    found = prometheus_rule(RULES, "affect", "monitoring", {"release": "prometheus"})
    assert (found["apiVersion"], found["kind"]) == ("monitoring.coreos.com/v1", "PrometheusRule")
    assert found["metadata"] == {"name": "affect", "namespace": "monitoring", "labels": {"release": "prometheus"}}
    assert found["spec"] == RULES


def test_says_nothing_of_what_is_not_given() -> None:
    """Without namespace and labels there are none."""
    assert prometheus_rule(RULES, "affect")["metadata"] == {"name": "affect"}


def test_tells_the_policy_it_is_of() -> None:
    """Blank lines around a policy file change nothing of it, and every other change does."""
    assert origin("version: 1\n") == origin("\nversion: 1")
    assert origin("version: 1") != origin("version: 1  # mine\n")
