"""Recording rules: sums over all pods of a fleet, which dashboards and alerts read.

Names are level:metric:operation, the level being the labels that are left. Only these rules name what to select.
Rates, increases, sums and counts add up over several Prometheis as they do over pods; shares, quantiles and z-scores do
not, and are to be computed anew from those.
"""

from __future__ import annotations

from monitor.policy.marks import UNSEEN
from monitor.rules.windows import HOUR, MINUTE, duration

LATE_SECONDS = 1.0
"""Age of a frame at its scoring from which it is late; a bucket of the lag's histogram ends there."""
LOOK, LAG = duration(HOUR), duration(5 * MINUTE)
"""Windows of what is looked at and no budget is for: of turns, and of frames."""
_QUANTILES = (0.5, 0.95)
_LAG_QUANTILES = (0.5, 0.99)

Rules = dict[str, str]
"""Expressions by the names they are recorded under."""


def of_window(seconds: int, only: str) -> Rules:
    """How many turns were judged, over and unseen in a window, by policy.

    Args:
        seconds: The window.
        only: Selector of the sidecars.
    """
    span = duration(seconds)
    unseen = f'{only},reason=~"{"|".join(UNSEEN)}"'
    return {
        f"policy:affect_turns_judged:rate{span}": (
            f"sum by (policy) (rate(affect_turns_judged_total{{{only}}}[{span}]))"
        ),
        f"policy:affect_turns_over:rate{span}": (
            f'sum by (policy) (rate(affect_turns_over_total{{{only},target="affect"}}[{span}]))'
        ),
        f"policy:affect_turns_over:share{span}": (
            f"policy:affect_turns_over:rate{span} / policy:affect_turns_judged:rate{span}"
        ),
        f"policy:affect_turns_sampled:rate{span}": (
            f"sum by (policy) (rate(affect_turns_total{{{only}}}[{span}]))\n"
            f'- sum by (policy) (rate(affect_turns_unjudged_total{{{only},reason="sampled_out"}}[{span}]))'
        ),
        # A turn may carry several marks, so that their sum may count it twice; it is not more than all unjudged ones.
        f"policy:affect_turns_unseen:rate{span}": (
            f"sum by (policy) (rate(affect_turns_unjudged_total{{{unseen}}}[{span}]))\n"
            f"  < (policy:affect_turns_sampled:rate{span} - policy:affect_turns_judged:rate{span})\n"
            f"or (policy:affect_turns_sampled:rate{span} - policy:affect_turns_judged:rate{span})"
        ),
        f"policy:affect_turns_unseen:share{span}": (
            f"policy:affect_turns_unseen:rate{span} / policy:affect_turns_sampled:rate{span}"
        ),
    }


def of_versions(seconds: int, only: str) -> Rules:
    """Turns over by version of bank and model, and how surely a version differs from the others.

    The difference is a z-score of two proportions on Anscombe's scale (1948), the arcsine of the square root: where few
    turns are over, the z-score of the proportions themselves is large far too often. Turns count for the version that a
    sidecar runs now.
    """
    span = duration(seconds)
    version = f"on (job, instance) group_left (bank_id, model) affect_bank_info{{{only}}}"
    judged, over = (f"policy_version:affect_turns_{what}:increase{span}" for what in ("judged", "over"))
    others_judged, others_over = (
        f"policy_version:affect_turns_{what}_by_others:increase{span}" for what in ("judged", "over")
    )
    rules = {
        judged: (
            f"sum by (policy, bank_id, model) (\n  increase(affect_turns_judged_total{{{only}}}[{span}]) * {version}\n)"
        ),
        over: (
            "sum by (policy, bank_id, model) (\n"
            f'  increase(affect_turns_over_total{{{only},target="affect"}}[{span}])\n'
            f"  * {version}\n"
            ")"
        ),
        f"policy_version:affect_turns_over:share{span}": f"{over} / {judged}",
    }
    for own, others in ((judged, others_judged), (over, others_over)):
        rules[others] = f"sum by (policy) ({own}) - on (policy) group_right () {own}"
    rules[f"policy_version:affect_turns_over:z{span}"] = (
        "2 * (\n"
        f"  asin(sqrt(clamp_max(({over} + 3/8) / ({judged} + 3/4), 1)))\n"
        f"  - asin(sqrt(clamp_max(({others_over} + 3/8) / ({others_judged} + 3/4), 1)))\n"
        ")\n"
        f"/ sqrt(1 / {judged} + 1 / {others_judged})"
    )
    return rules


def of_fleet(only: str) -> Rules:
    """What needs no policy: levels of affect, evidence of drift, lag and number of sidecars."""
    rules: Rules = {}
    for what in ("over_index", "user_affect", "assistant_affect"):
        buckets = f"policy_le:affect_turn_{what}_bucket:rate{LOOK}"
        rules[buckets] = f"sum by (policy, le) (rate(affect_turn_{what}_bucket{{{only}}}[{LOOK}]))"
        for quantile in _QUANTILES:
            quantiles = f"policy:affect_turn_{what}:q{_percent(quantile)}_{LOOK}"
            rules[quantiles] = f"histogram_quantile({quantile}, {buckets})"
    seen = f"policy_visibility:affect_turns_over:rate{LOOK}"
    rules[seen] = f"sum by (policy, visibility) (rate(affect_turns_visibility_total{{{only}}}[{LOOK}]))"
    rules[f"policy:affect_turns_text_visible:share{LOOK}"] = (
        f'sum by (policy) ({seen}{{visibility="text_visible"}})\n/ sum by (policy) ({seen})'
    )
    # The mean of e-values is an e-value, whatever the pods have in common (Vovk and Wang 2021).
    rules["policy_test:affect_drift_evalue:avg"] = f"avg by (policy, test) (exp(affect_drift_log_evalue{{{only}}}))"
    rules["policy_test:affect_drift_alarm:max"] = f"max by (policy, test) (affect_drift_alarm{{{only}}})"
    rules["policy:affect_drift_turns:sum"] = f"sum by (policy) (affect_drift_turns{{{only}}})"
    rules["policy_bound:affect_mirror_slope:avg"] = f"avg by (policy, bound) (affect_mirror_slope{{{only}}})"
    lags = f"fleet_le:affect_ingest_lag_seconds_bucket:rate{LAG}"
    rules[lags] = f"sum by (le) (rate(affect_ingest_lag_seconds_bucket{{{only}}}[{LAG}]))"
    for quantile in _LAG_QUANTILES:
        rules[f"fleet:affect_ingest_lag_seconds:q{_percent(quantile)}_{LAG}"] = (
            f"histogram_quantile({quantile}, {lags})"
        )
    rules[f"fleet:affect_frames_late:share{LAG}"] = (
        "(\n"
        f"  sum(rate(affect_ingest_lag_seconds_count{{{only}}}[{LAG}]))\n"
        f'  - sum({lags}{{le="{LATE_SECONDS}"}})\n'
        ")\n"
        f"/ sum(rate(affect_ingest_lag_seconds_count{{{only}}}[{LAG}]))"
    )
    rules["fleet:affect_sidecars:count"] = f"count(affect_build_info{{{only}}})"
    return rules


def _percent(quantile: float) -> str:
    return f"{100 * quantile:g}"
