"""The chart as a whole: every values file of ``ci/`` through Helm."""

from __future__ import annotations

import pytest
from helm_engine import CI, Render, lint, read_values


@pytest.mark.parametrize("name", CI)
def test_lint_has_nothing_to_say(name: str) -> None:
    """Helm's strict lint is silent on every values file of the chart."""
    assert lint(read_values(CI[name])) == []


def test_makes_one_config_map_by_default(render: Render) -> None:
    """Nothing but the configuration is made unless the values ask for it."""
    assert [(made["kind"], made["metadata"]["name"]) for made in render("defaults")] == [
        ("ConfigMap", "affect-monitor-config")
    ]
