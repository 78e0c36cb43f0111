"""PromQL of the dashboards: raw metrics alone, so that no recording rule is needed; sums and means go over pods."""

from __future__ import annotations

from collections.abc import Callable

from monitor.policy.marks import UNSEEN

WINDOW, STEP = "$window", "$__rate_interval"
"""Time a rate is taken over: what the reader chose for turns, which are rare; the pace of the graph for tokens."""
SCOPE = 'job=~"$job", instance=~"$instance"'
SIDECARS = f"affect_build_info{{{SCOPE}}}"
RULES_FIRING = 'ALERTS{alertname=~"Affect.*", alertstate="firing", policy=~"$policy|"}'
"""Alerts of Prometheus' rules; those of the monitor itself carry no policy."""
VERSION = ("model", "bank_id")
_MOST = 700
"""Logarithms beyond it have no number in double precision."""


def of_sidecar(metric: str, *matchers: str) -> str:
    """Series of a metric that is about the sidecar."""
    return f"{metric}{{{', '.join((SCOPE, *matchers))}}}"


def of_policy(metric: str, *matchers: str) -> str:
    """Series of a metric that is about a policy."""
    return of_sidecar(metric, 'policy=~"$policy"', *matchers)


def rate(series: str, window: str = WINDOW) -> str:
    """How fast counters grow, each second."""
    return f"rate({series}[{window}])"


def total(series: str, *labels: str) -> str:
    """Sum over pods, by labels."""
    return f"sum{_by(labels)} ({series})"


def mean(series: str, *labels: str) -> str:
    """Mean over pods, by labels."""
    return f"avg{_by(labels)} ({series})"


def most(series: str, *labels: str) -> str:
    """Largest value of any pod, by labels."""
    return f"max{_by(labels)} ({series})"


def least(series: str, *labels: str) -> str:
    """Smallest value of any pod, by labels."""
    return f"min{_by(labels)} ({series})"


def quantile(share: float, buckets: str, *labels: str) -> str:
    """Quantile of the histograms of all pods together, by labels; ``buckets`` are rates."""
    return f"histogram_quantile({share}, {total(buckets, 'le', *labels)})"


def or_none(count: str) -> str:
    """A count that is 0 where nothing is counted, and nothing where no sidecar is seen: silence is not calm."""
    return f"({count} or 0 * count({SIDECARS}))"


def of_version(series: str) -> str:
    """Series with the model and the bank of their sidecar as labels."""
    banks = most(of_sidecar("affect_bank_info"), "job", "instance", *VERSION)
    return f"{series} * on (job, instance) group_left ({', '.join(VERSION)}) {banks}"


def share_over(*labels: str) -> str:
    """Share of judged turns that were over on affect."""
    over = total(rate(of_policy("affect_turns_over_total", 'target="affect"')), *labels)
    return f"{over} / {total(rate(of_policy('affect_turns_judged_total')), *labels)}"


def share_unseen(*labels: str) -> str:
    """Share of turns that went unjudged because they were not seen well, of those that were to be seen."""
    return _share_unseen(lambda series: total(rate(series), *labels))


def share_unseen_by_version() -> str:
    """The same, by version."""
    return _share_unseen(lambda series: total(of_version(rate(series)), *VERSION))


def budget(name: str) -> str:
    """A budget of each policy."""
    return most(of_policy("affect_policy_budget", f'budget="{name}"'), "policy")


def evidence(log_evalues: str, *labels: str) -> str:
    """log10 of the mean e-value over pods, which is an e-value too."""
    return f"log10({mean(f'exp(clamp({log_evalues}, -{_MOST}, {_MOST}))', *labels)})"


def line(tests: str, *labels: str) -> str:
    """log10 of the e-value at which a test alarms."""
    return f"log10(exp({most(of_policy('affect_drift_log_line', tests), *labels)}))"


def _share_unseen(counted: Callable[[str], str]) -> str:
    reasons = f'reason=~"{"|".join(UNSEEN)}"'
    unseen = counted(of_policy("affect_turns_unjudged_total", reasons))
    elsewhere = counted(of_policy("affect_turns_unjudged_total", 'reason="sampled_out"'))
    seen = f"({counted(of_policy('affect_turns_total'))} - {elsewhere})"
    unjudged = f"({seen} - {counted(of_policy('affect_turns_judged_total'))})"
    # A turn may have several reasons, so that their sum counts it twice; it is not more than all unjudged ones.
    return f"({unseen} < {unjudged} or {unjudged}) / {seen}"


def _by(labels: tuple[str, ...]) -> str:
    return f" by ({', '.join(labels)})" if labels else ""
