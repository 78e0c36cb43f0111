"""The fleet at a glance: which route needs somebody, and whether its users or its assistant moved."""

from __future__ import annotations

from monitor.dashboards.page import Page
from monitor.dashboards.panels import (
    EVENTS,
    PLAIN,
    SHARE,
    TOKENS,
    TURNS,
    About,
    Ask,
    Column,
    lines,
    link_to,
    numbers,
    rows,
    states,
    to_route,
)
from monitor.dashboards.queries import (
    RULES_FIRING,
    SIDECARS,
    STEP,
    budget,
    evidence,
    line,
    most,
    of_policy,
    of_sidecar,
    or_none,
    rate,
    share_over,
    share_unseen,
    total,
)
from monitor.dashboards.variables import of_fleet

_OVERFITTING = 'test="overfitting"'
_FIRING = of_policy("affect_alerts_active", 'state="firing"')
_SPENT = f"{share_over('policy')} / {budget('over')}"
_E_VALUE = evidence(of_policy("affect_drift_log_evalue", _OVERFITTING), "policy")
_DRIFT_LINE = line(_OVERFITTING, "policy")
_UNSEEN = share_unseen("policy")
_JUDGED = total(rate(of_policy("affect_turns_judged_total")), "policy")
_HERE = to_route("${__field.labels.policy}")


def _moved(test: str) -> str:
    return most(of_policy("affect_drift_alarm", f'test=~"{test}"'), "policy")


_NOW = [
    numbers(
        About(
            "Budget in use, worst route",
            "Share of judged turns over, divided by the share the policy allows, of the route where it is largest. "
            "From 100 % on, the route spends its error budget faster than it comes in: open the route's dashboard.",
            SHARE, ("AffectBudgetBurnFast", "AffectBudgetBurnSlow"), 4, 4,
        ),
        Ask(f"max({_SPENT})"),
        red_from=1,
    ),
    numbers(
        About(
            "Alerts firing",
            "Alerts that fire now: those sidecars raise about turns, and those of Prometheus' rules. Empty when no "
            "sidecar is seen, which is not calm. Look at who was told in Alertmanager, and at the runbook of each.",
            PLAIN, ("AffectOverIndex",), 4, 4,
        ),
        Ask(or_none(f"count({_FIRING})"), "of turns"),
        Ask(or_none(f"count({RULES_FIRING})"), "of rules"),
        red_from=1,
    ),
    numbers(
        About(
            "Assistants that moved",
            "Routes whose assistant lastingly shows more affect than in the reference, given its users (crisis: or "
            "less), or mirrors them more. Compare versions, prompts and model; the route's dashboard says since when.",
            PLAIN, ("AffectDrift", "AffectMirrorDrift"), 4, 4,
        ),
        Ask(or_none(f"count({_moved('overfitting|mirror')} == 1)")),
        red_from=1,
    ),
    numbers(
        About(
            "Users that moved",
            "Routes whose users show lastingly other affect than the reference's. Nobody's fault and nobody is paged; "
            "it says whom to look at first, and whether the reference still fits the traffic.",
            PLAIN, ("AffectUsersShifted",), 4, 4,
        ),
        Ask(or_none(f"count({_moved('users')} == 1)")),
    ),
    numbers(
        About(
            "Turns not seen",
            "Share of turns that went unjudged because the monitor did not see them well. What is not seen raises no "
            "alert: when this grows, calm means nothing; go to the monitor's health.",
            SHARE, ("AffectCoverageLow", "AffectBlind"), 4, 4,
        ),
        Ask(share_unseen()),
    ),
    numbers(
        About(
            "Sidecars and engine streams",
            "Sidecars that Prometheus scrapes, and streams from inference engines to them. No sidecar or no stream: "
            "nothing is watched.",
            PLAIN, ("AffectTelemetryMissing", "AffectEngineMissing"), 4, 4,
        ),
        Ask(f"count({SIDECARS})", "sidecars"),
        Ask(total(of_sidecar("affect_streams_open")), "streams"),
        red_below=1,
    ),
]  # fmt: skip
_ROUTES = [
    rows(
        About(
            "Worst routes",
            "Every route over the chosen window, worst first. Budget in use: share over / share allowed. Evidence: "
            "log10 of the drift e-value as a part of its line; 100 % is an alarm. A route's name leads to its "
            "dashboard.",
            PLAIN, ("AffectBudgetBurnFast", "AffectDrift"), 24, 9,
        ),
        [
            Column("Budget in use", _SPENT, SHARE, 1),
            Column("Share over", share_over("policy"), SHARE),
            Column("Evidence of drift", f"{_E_VALUE} / {_DRIFT_LINE}", SHARE, 1),
            Column("Alerts firing", f"{total(_FIRING, 'policy')} or 0 * {_JUDGED}", PLAIN, 1),
            Column("Not seen", _UNSEEN, SHARE),
            Column("Judged", _JUDGED, TURNS),
        ],
        by="Budget in use",
    ).override_by_name("policy", [link_to(to_route("${__value.raw}"))]),
    lines(
        About(
            "Share of judged turns over",
            "Turns beyond what was warranted, of those judged, and the share each policy allows (dashed). False alarms "
            "alone stay at the policy's false-alarm rate, below the budget. Above the dashed line: open the route.",
            SHARE, ("AffectBudgetBurnFast", "AffectBudgetBurnSlow", "AffectOverIndex"),
        ),
        Ask(share_over("policy"), "{{policy}}"),
        Ask(budget("over"), "{{policy}} allows", limit=True),
    ).data_links([_HERE]),
    lines(
        About(
            "Drift e-value of the assistant",
            "Evidence, as log10, that the assistant's affect given its users' has changed lastingly; mean over pods, "
            "which is an e-value too. It reaches its line (dashed) by chance with at most the policy's alpha, ever. At "
            "the line: what was rolled out since it began to climb?",
            PLAIN, ("AffectDrift",),
        ),
        Ask(_E_VALUE, "{{policy}}"),
        Ask(_DRIFT_LINE, "line of {{policy}}", limit=True),
    ).data_links([_HERE]),
    states(
        About(
            "Who moved",
            "Lasting changes by who changed: the users (their affect), the assistant (its affect given theirs), or how "
            "far it mirrors them. Users alone: no fault of the assistant. Assistant alone: look for a change of prompt "
            "or model.",
            PLAIN, ("AffectDrift", "AffectMirrorDrift", "AffectUsersShifted"),
        ),
        Ask(_moved("users"), "{{policy}}: users"),
        Ask(_moved("overfitting"), "{{policy}}: assistant"),
        Ask(_moved("mirror"), "{{policy}}: mirroring"),
        yes="moved",
    ),
    states(
        About(
            "Alerts over time",
            "Which alert fired when: those of turns by route and target, those of rules by name. Read the runbook of "
            "the one that came first; a sidecar that is blind tells of no new alert of affect.",
            PLAIN, ("AffectOverIndex",),
        ),
        Ask(most(_FIRING, "policy", "target"), "AffectOverIndex {{policy}} {{target}}"),
        Ask(f"max by (alertname, policy) ({RULES_FIRING})", "{{alertname}} {{policy}}"),
        yes="firing",
    ),
]  # fmt: skip
_TRAFFIC = [
    lines(
        About(
            "Turns not seen, by route",
            "Turns that went unjudged because they were not seen well, of all finished, and what each policy allows "
            "(dashed). Above it, the route is not watched as promised; the monitor's health says where tokens are "
            "lost.",
            SHARE, ("AffectCoverageLow",), 8,
        ),
        Ask(_UNSEEN, "{{policy}}"),
        Ask(budget("unjudged"), "{{policy}} allows", limit=True),
    ).data_links([_HERE]),
    lines(
        About(
            "Turns judged",
            "Turns that rules judged, by route. Shares mean little where there are few of them.",
            TURNS, (), 8,
        ),
        Ask(_JUDGED, "{{policy}}"),
        stacked=True,
    ).data_links([_HERE]),
    lines(
        About(
            "Alerts begun",
            "Alerts of turns that began to fire, by route and target. Many short ones: raise pending_turns or "
            "resolve_turns; one that stays: look at the route.",
            EVENTS, ("AffectOverIndex",), 8,
        ),
        Ask(total(rate(of_policy("affect_alerts_fired_total")), "policy", "target"), "{{policy}} {{target}}"),
        stacked=True,
    ).data_links([_HERE]),
    lines(
        About(
            "Engine streams",
            "Streams from inference engines, by sidecar. One that falls to 0 sees nothing: is its engine down, or did "
            "it lose the socket?",
            PLAIN, ("AffectEngineMissing",),
        ),
        Ask(total(of_sidecar("affect_streams_open"), "instance"), "{{instance}}"),
    ),
    lines(
        About(
            "Tokens scored",
            "Tokens scored in the whole fleet, and those that never came. Missing ones are gaps that turns account "
            "for.",
            TOKENS, ("AffectCoverageLow",),
        ),
        Ask(total(rate(of_sidecar("affect_tokens_scored_total"), STEP)), "scored"),
        Ask(total(rate(of_sidecar("affect_tokens_missing_total"), STEP)), "missing"),
    ),
]  # fmt: skip

PAGE = Page(
    uid="affect-fleet",
    title="Affect: fleet",
    text="Which route needs somebody, and whether its users or its assistant moved.",
    variables=of_fleet(),
    rows={"Now": _NOW, "Routes": _ROUTES, "Traffic": _TRAFFIC},
)
