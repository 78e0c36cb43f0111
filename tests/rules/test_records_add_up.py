"""Recording rules over several pods: what is recorded is of all turns, not a mean of pods' numbers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_tools import promtool

from monitor.policy.schema import read_policy
from monitor.rules.build import build
from monitor.rules.manifest import write

POLICY = Path(__file__).parent / "policy.yaml"
RULES = {
    rule["record"]: rule["expr"] for group in build(read_policy(POLICY))["groups"] for rule in group["rules"]
    if "record" in rule
}  # fmt: skip
# A busy pod without a turn over, and one that serves a tenth of its turns and is over in a tenth of them.
PODS: dict[str, dict[str, Any]] = {
    "busy": {"judged": 90, "over": 0, "evalue": "2.302585092994046", "buckets": {"0.0": 90, "3.0": 90, "+Inf": 90}},
    "idle": {"judged": 10, "over": 1, "evalue": "0", "buckets": {"0.0": 0, "3.0": 10, "+Inf": 10}},
}


def series() -> list[dict[str, str]]:
    """Metrics of both pods, a sample a minute."""
    found = []
    for pod, told in PODS.items():
        labels = f'job="affect-monitor",instance="{pod}",policy="desk"'
        counters = {
            f"affect_turns_judged_total{{{labels}}}": told["judged"],
            f'affect_turns_over_total{{{labels},target="affect"}}': told["over"],
            **{
                f'affect_turn_over_index_bucket{{{labels},le="{bound}"}}': count
                for bound, count in told["buckets"].items()
            },
        }
        found += [{"series": name, "values": f"0+{step}x90"} for name, step in counters.items()]
        evalue = f'affect_drift_log_evalue{{{labels},test="overfitting"}}'
        found.append({"series": evalue, "values": f"{told['evalue']}x90"})
    return found


@pytest.mark.servers
@pytest.mark.parametrize(
    ("expression", "labels", "value"),
    [
        ("policy:affect_turns_judged:rate1h * 60", "", 100),
        ("policy:affect_turns_over:share1h", "", 0.01),
        ("policy:affect_turn_over_index:q50_1h", "", 0),
        ("policy:affect_turn_over_index:q95_1h", "", 1.5),
        ('policy_le:affect_turn_over_index_bucket:rate1h{le="0.0"} * 60', ', le="0.0"', 90),
        ("policy_test:affect_drift_evalue:avg", ', test="overfitting"', 5.5),
    ],
)
def test_numbers_of_a_fleet_are_those_of_all_its_turns(
    expression: str, labels: str, value: float, tmp_path: Path
) -> None:
    """Counters and buckets are summed, shares and quantiles come of the sums, e-values are averaged.

    The mean of the pods' own shares would be 5 %, that of their 95 % quantiles 1.4.
    """
    (tmp_path / "rules.yaml").write_text(write(build(read_policy(POLICY)), "a test"))
    asked = {"expr": f"round({expression} + 0, 0.000001)", "eval_time": "80m"}
    samples = [{"labels": f'{{policy="desk"{labels}}}', "value": value}]
    expected = [{**asked, "exp_samples": samples}]
    cases = [{"interval": "1m", "input_series": series(), "promql_expr_test": expected}]
    told = {"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": cases}
    (tmp_path / "test.yaml").write_text(yaml.safe_dump(told))
    promtool("test", "rules", tmp_path / "test.yaml")


def test_quantiles_are_of_summed_buckets() -> None:
    """No quantile is averaged: each is of buckets that are recorded as a sum, which other Prometheis can add to."""
    quantiles = {name: expr for name, expr in RULES.items() if re.search(r":q\d+_", name)}
    assert len(quantiles) == 8
    for expr in quantiles.values():
        (buckets,) = re.findall(r"^histogram_quantile\([\d.]+, (\w+:\w+:\w+)\)$", expr)
        assert RULES[buckets].startswith("sum by (")


@pytest.mark.parametrize("name", [name for name in RULES if re.search(r":(rate|increase|sum|count)\w*$", name)])
def test_what_is_called_a_sum_adds_up(name: str) -> None:
    """Such series are sums of pods, or sums and differences of them: added over Prometheis they are those of all."""
    assert not re.search(r"avg|quantile|\bmax\b|\bmin\b", RULES[name])
    assert re.match(r"\(?\s*(sum|count)\b", RULES[name])


def test_shares_have_their_parts_beside_them() -> None:
    """Whatever does not add up over Prometheis can be computed anew of what does."""
    shares = {name: expr for name, expr in RULES.items() if re.match(r"policy:\w+:share", name)}
    parts = {part for expr in shares.values() for part in re.findall(r"\w+:\w+:\w+", expr)}
    assert len(parts) == 17
    assert all(re.search(r":rate\w+$", part) for part in parts)
