"""One route in depth: what its assistant shows, what its users show, and what has changed since when."""

from __future__ import annotations

from monitor.dashboards.page import Page
from monitor.dashboards.panels import (
    DEVIATIONS,
    PLAIN,
    SHARE,
    TURNS,
    About,
    Ask,
    band,
    bars,
    distribution,
    lines,
    numbers,
    states,
)
from monitor.dashboards.queries import (
    STEP,
    budget,
    evidence,
    least,
    line,
    mean,
    most,
    of_policy,
    or_none,
    quantile,
    rate,
    share_over,
    share_unseen,
    total,
)
from monitor.dashboards.variables import of_route

_PAGED = 'test=~"overfitting|mirror|users"'
_FIRING = of_policy("affect_alerts_active", 'state="firing"')
_USER = rate(of_policy("affect_turn_user_affect_bucket"))
_ASSISTANT = rate(of_policy("affect_turn_assistant_affect_bucket"))
_OVER_INDEX = "affect_turn_over_index_bucket"
_EMOTIONS = of_policy("affect_emotion_probability")
_FAMILIES = rate(of_policy("affect_turn_family_score_bucket"))


def _slope(bound: str) -> str:
    return of_policy("affect_mirror_slope", f'bound="{bound}"')


_NOW = [
    numbers(
        About(
            "Share over",
            "Judged turns beyond what was warranted over the chosen window, and the share the policy allows.",
            SHARE, ("AffectBudgetBurnFast", "AffectBudgetBurnSlow"), 6, 4,
        ),
        Ask(share_over(), "over"),
        Ask(f"max({budget('over')})", "allowed"),
    ),
    numbers(
        About(
            "Alerts firing",
            "Alerts of this route's turns that fire now. affect-monitor audit show has the turns they name.",
            PLAIN, ("AffectOverIndex",), 6, 4,
        ),
        Ask(or_none(f"count({_FIRING})")),
        red_from=1,
    ),
    numbers(
        About(
            "Turns of the present run",
            "Judged turns since the drift tests last began anew: the evidence they have. Few turns, little to say.",
            PLAIN, ("AffectDrift",), 6, 4,
        ),
        Ask(total(of_policy("affect_drift_turns"))),
    ),
    numbers(
        About(
            "Turns not seen",
            "Turns that went unjudged because they were not seen well, and the share the policy allows.",
            SHARE, ("AffectCoverageLow",), 6, 4,
        ),
        Ask(share_unseen(), "not seen"),
        Ask(f"max({budget('unjudged')})", "allowed"),
    ),
]  # fmt: skip
_AFFECT = [
    distribution(
        About(
            "Over-index",
            "How many turns lie where, over time. 0 is the upper edge of what approved turns show for such users and "
            "tasks; 3 is far beyond it. A band that moves up as a whole is drift; a few cells high up are single "
            "turns: look at them with affect-monitor audit list.",
            DEVIATIONS, ("AffectOverIndex",), 24, 9,
        ),
        total(rate(of_policy(_OVER_INDEX), STEP), "le"),
    ),
    lines(
        About(
            "User affect against assistant affect",
            "Median and 90 % quantile of U and A, in standard deviations of the reference. Both rise: the users "
            "changed. A alone: the assistant did.",
            DEVIATIONS, ("AffectDrift", "AffectUsersShifted"),
        ),
        Ask(quantile(0.5, _USER), "users, median"),
        Ask(quantile(0.9, _USER), "users, 90 %"),
        Ask(quantile(0.5, _ASSISTANT), "assistant, median"),
        Ask(quantile(0.9, _ASSISTANT), "assistant, 90 %"),
    ),
    lines(
        About(
            "Families of affect",
            "Median and 90 % quantile of each family's score, in standard deviations of the reference. Says which "
            "families an excess is made of.",
            DEVIATIONS, ("AffectOverIndex", "AffectDrift"),
        ),
        Ask(quantile(0.5, _FAMILIES, "family"), "{{family}}, median"),
        Ask(quantile(0.9, _FAMILIES, "family"), "{{family}}, 90 %"),
    ),
    bars(
        About(
            "Strongest emotions",
            "Calibrated probabilities on the assistant's tokens, running means over judged turns, mean over pods. The "
            "profile to compare with yesterday's when something moved.",
            SHARE, ("AffectDrift",), 12, 10,
        ),
        Ask(f"topk(15, {mean(_EMOTIONS, 'emotion')})", "{{emotion}}"),
    ),
    lines(
        About(
            "Strongest emotions over time",
            "The five that are strongest at the end, over time. A line that climbs says in which direction the "
            "assistant moves.",
            SHARE, ("AffectDrift",), 12, 10,
        ),
        Ask(f"{mean(_EMOTIONS, 'emotion')} and topk(5, {mean(f'{_EMOTIONS} @ end()', 'emotion')})", "{{emotion}}"),
    ),
]  # fmt: skip
_CHANGE = [
    lines(
        About(
            "Drift e-values against their lines",
            "Evidence of lasting change as log10, for each test: overfitting (the assistant's affect given its users'; "
            "pages), affect and each family (its parts), mirror (how far it mirrors), users (their own affect; never "
            "pages). At its line (dashed) a test alarms; by chance that happens with at most the policy's alpha, ever.",
            PLAIN, ("AffectDrift", "AffectMirrorDrift", "AffectUsersShifted"), 12, 9,
        ),
        Ask(evidence(of_policy("affect_drift_log_evalue"), "test"), "{{test}}"),
        Ask(line(_PAGED, "test"), "line of {{test}}", limit=True),
    ),
    states(
        About(
            "Who moved",
            "Tests whose e-value has reached its line and whose change has not been found undone. users alone: look at "
            "the traffic. overfitting or mirror: look for a change of prompt, model or sampling at the moment it began "
            "to climb.",
            PLAIN, ("AffectDrift", "AffectMirrorDrift", "AffectUsersShifted"), 12, 9,
        ),
        Ask(most(of_policy("affect_drift_alarm"), "test"), "{{test}}"),
        yes="moved",
    ),
    band(
        About(
            "Mirror slope",
            "Slope of A on U over the last turns, with its interval (over several pods: the widest), and the "
            "reference's (dashed). 1 mirrors users fully, 0 not at all. Interval above the reference: the assistant "
            "takes over its users' distress.",
            PLAIN, ("AffectMirrorDrift",),
        ),
        Ask(mean(_slope("estimate")), "slope"),
        Ask(least(_slope("low")), "low"),
        Ask(most(_slope("high")), "high"),
        Ask(mean(_slope("reference")), "reference", limit=True),
    ),
    lines(
        About(
            "Distance from the reference",
            "Population stability index, Kolmogorov-Smirnov and Wasserstein distance of the last turns from the "
            "reference, largest of any pod. For looking at; nothing alarms on them, since they say nothing of chance.",
            PLAIN, ("AffectDrift", "AffectUsersShifted"),
        ),
        Ask(most(of_policy("affect_drift_distance"), "quantity", "measure"), "{{quantity}}, {{measure}}"),
    ),
]  # fmt: skip
_TURNS = [
    lines(
        About(
            "Turns over by target",
            "Turns beyond what was warranted, by what they are over on: affect as a whole or a family the policy "
            "watches.",
            TURNS, ("AffectOverIndex",), 8,
        ),
        Ask(total(rate(of_policy("affect_turns_over_total")), "target"), "{{target}}"),
    ),
    lines(
        About(
            "Do the words show it",
            "Turns over on affect, by whether the text twin sees the excess too. text_silent: only the hidden states "
            "show it, so that reading the replies will not settle it.",
            TURNS, ("AffectOverIndex",), 8,
        ),
        Ask(total(rate(of_policy("affect_turns_visibility_total")), "visibility"), "{{visibility}}"),
        stacked=True,
    ),
    lines(
        About(
            "Turns not judged, by reason",
            "short, sampled_out and canary are by design; partial, abandoned, nonfinite and low_coverage are losses: "
            "go to the monitor's health. unvalidated turns are judged, by a bank of another model. A turn may have "
            "several reasons.",
            TURNS, ("AffectCoverageLow", "AffectBankUnvalidated"), 8,
        ),
        Ask(total(rate(of_policy("affect_turns_unjudged_total")), "reason"), "{{reason}}"),
    ),
]  # fmt: skip

PAGE = Page(
    uid="affect-route",
    title="Affect: one route",
    text="What a route's assistant shows, what its users show, and what has changed since when.",
    variables=of_route(),
    rows={"Now": _NOW, "Affect": _AFFECT, "Change": _CHANGE, "Turns": _TURNS},
)
