"""Alerting rules of a policy: its budget, drift, what it mirrors, its users, its versions, and how well it is seen."""

from __future__ import annotations

from monitor.errors import PolicyError
from monitor.policy.schema import Policy, RateRule
from monitor.probes.bank import Stance
from monitor.rules.alert import AlertRule, look
from monitor.rules.record import LOOK
from monitor.rules.windows import Burn, Windows, duration

VERSIONS_Z = 4.1
"""How far a version must stand out from the others.

The window slides, so that a month of looking is many looks: simulated with 70 to 5,000 turns of a version in the window
and 0.5 to 3 % over, versions that do not differ reach it within a month with a chance of at most 5 %.
"""
_EVALUE, _SLOPE = "policy_test:affect_drift_evalue:avg", "policy_bound:affect_mirror_slope:avg"
_FAMILIES = 'test!~"overfitting|affect|mirror|users"'
_EVALUE_DIGITS = 6


def policy_alerts(policy: Policy) -> list[AlertRule]:
    """All alerts of a policy.

    Raises:
        PolicyError: The budget is so large that it cannot be spent too fast.
    """
    return [*_burns(policy), *_drifts(policy), _versions(policy), _coverage(policy)]


def _burns(policy: Policy) -> list[AlertRule]:
    if policy.rate is None:
        return []
    windows = Windows.of(policy)
    most = 1 / windows.fast.factor
    if policy.rate.budget >= most:
        raise PolicyError(
            f"{policy.name}.rate.budget",
            f"{policy.rate.budget} cannot be spent {windows.fast.factor:g} times too fast, as no more than all turns "
            f"can be over; take less than {most:.3f}",
        )
    fast = _burn("AffectBudgetBurnFast", policy, policy.rate, windows.fast)
    return [fast, _burn("AffectBudgetBurnSlow", policy, policy.rate, windows.slow)]


def _burn(name: str, policy: Policy, rate: RateRule, burn: Burn) -> AlertRule:
    windows = Windows.of(policy)
    long, short = duration(burn.long), duration(burn.short)
    limit = _number(burn.factor * rate.budget)
    share = _of(policy, f"policy:affect_turns_over:share{long}")
    return AlertRule(
        name,
        expr=(
            f"{share} > {limit}\n"
            f"and {_of(policy, f'policy:affect_turns_over:share{short}')} > {limit}\n"
            f"and {_of(policy, f'policy:affect_turns_judged:rate{long}')} * {burn.long} >= {rate.min_turns}"
        ),
        severity=policy.severity,
        summary=f"{policy.name}: the budget of turns over is spent more than {burn.factor:g} times too fast",
        description=(
            f"{{{{ $value | humanizePercentage }}}} of the turns judged in the last {long} lay outside what is "
            f"warranted; the budget is {_percent(rate.budget)} over {windows.period / 86400:g} days."
            + look(f"{share} / {rate.budget}", "It is spent VALUE times as fast as is allowed.")
            + look(f"{windows.period:.0f} * {rate.budget} / {share}", "At this pace a whole budget lasts DURATION.")
            + _who_changed(policy)
            + _circumstances(name, policy)
        ),
        dashboard=_route(policy),
        labels=_labels(policy),
        pending=windows.pending,
        keep=windows.keep,
    )


def _drifts(policy: Policy) -> list[AlertRule]:
    name = policy.name
    # In a crisis too little affect is a fault as well.
    more = "another" if policy.stance is Stance.CRISIS else "more"
    overfitting = _drift(
        "AffectDrift",
        policy,
        ("overfitting", policy.drift.alpha, policy.severity),
        summary=f"{name}: the assistant shows {more} affect than in the reference, given its users",
        says=f"the assistant shows {more} affect than in the reference, given its users",
        looks=look(_of(policy, "policy:affect_drift_turns:sum"), "Turns it rests on: COUNT.") + _who_changed(policy),
    )
    mirror = _drift(
        "AffectMirrorDrift",
        policy,
        ("mirror", policy.mirror.alpha, policy.severity),
        summary=f"{name}: the assistant mirrors its users more than in the reference",
        says="the mirror slope, of A on U, has risen",
        looks=look(_of(policy, _SLOPE, 'bound="estimate"'), "Mirror slope now: VALUE.")
        + look(_of(policy, _SLOPE, 'bound="reference"'), "Of the reference: VALUE.")
        + _who_changed(policy),
    )
    users = _drift(
        "AffectUsersShifted",
        policy,
        ("users", policy.drift.alpha, "info"),
        summary=f"{name}: users show another affect than those of the reference",
        says="users have moved, which is no fault of the assistant",
        looks=_alarm(
            policy,
            "overfitting",
            on="Given its users, the assistant has moved too: see AffectDrift.",
            off="Given its users, the assistant shows no lasting change.",
        ),
    )
    return [overfitting, mirror, users]


def _drift(
    name: str, policy: Policy, test: tuple[str, float, str], *, summary: str, says: str, looks: str
) -> AlertRule:
    """An alert about an e-process: which, at what level and how severe is said by ``test``."""
    label, alpha, severity = test
    line = _number(round(1 / alpha, _EVALUE_DIGITS))
    evalue = _of(policy, _EVALUE, f'test="{label}"')
    return AlertRule(
        name,
        # The line itself counts, and exp(log(1/alpha)) may fall short of it by its last digit.
        expr=f"round(sum by (policy) ({evalue}), {10**-_EVALUE_DIGITS:.{_EVALUE_DIGITS}f}) >= {line}",
        severity=severity,
        summary=summary,
        description=(
            f'Evidence that {says}: an e-value of {{{{ $value | printf "%.3g" }}}}. Where nothing has changed it '
            f"ever reaches {line} with a chance of at most {_percent(alpha)}." + looks + _circumstances(name, policy)
        ),
        dashboard=_route(policy),
        labels=_labels(policy),
        keep=Windows.of(policy).keep,
    )


def _versions(policy: Policy) -> AlertRule:
    windows, least = Windows.of(policy), _least_turns(policy)
    span = duration(windows.slow.long)
    shares = _of(policy, f"policy_version:affect_turns_over:share{span}").replace('"', "'")
    return AlertRule(
        "AffectVersionsDiffer",
        expr=(
            f"{_of(policy, f'policy_version:affect_turns_over:z{span}')} > {VERSIONS_Z}\n"
            f"and {_of(policy, f'policy_version:affect_turns_judged:increase{span}')} >= {least}\n"
            f"and {_of(policy, f'policy_version:affect_turns_judged_by_others:increase{span}')} >= {least}"
        ),
        severity=policy.severity,
        summary=f"{policy.name}: {{{{ $labels.model }}}} with bank {{{{ $labels.bank_id }}}} is over more often",
        description=(
            f'Its share of turns over in the last {span} stands {{{{ $value | printf "%.1f" }}}} standard deviations '
            f"above that of all other versions; told beyond {VERSIONS_Z}."
            f'\n{{{{- range query "{shares}" | sortByLabel "bank_id" }}}}\n'
            "{{ .Labels.model }} with bank {{ .Labels.bank_id }}: {{ .Value | humanizePercentage }} of turns over."
            "\n{{- end }}"
        ),
        dashboard=f"affect-versions?var-policy={policy.name}",
        labels=_labels(policy),
        pending=windows.pending,
        keep=windows.keep,
    )


def _coverage(policy: Policy) -> AlertRule:
    windows, budget = Windows.of(policy), policy.coverage.budget
    long, short = duration(windows.slow.long), duration(windows.slow.short)
    limit = _number(budget)
    return AlertRule(
        "AffectCoverageLow",
        expr=(
            f"{_of(policy, f'policy:affect_turns_unseen:share{long}')} > {limit}\n"
            f"and {_of(policy, f'policy:affect_turns_unseen:share{short}')} > {limit}\n"
            f"and {_of(policy, f'policy:affect_turns_sampled:rate{long}')} * {windows.slow.long} "
            f">= {_least_turns(policy)}"
        ),
        severity="warning",
        summary=f"{policy.name}: too many turns are not seen well enough to be judged",
        description=(
            f"{{{{ $value | humanizePercentage }}}} of the turns of the last {long} were cut off, not finite or seen "
            f"in part; the policy allows {_percent(budget)}. Other alerts of this policy say less than they seem to."
            + look(_of(policy, f"policy:affect_turns_unseen:share{short}"), f"In the last {short} it was PERCENT.")
        ),
        dashboard=f"affect-health?var-policy={policy.name}",
        labels=_labels(policy),
        pending=windows.pending,
        keep=windows.keep,
    )


def _circumstances(alert: str, policy: Policy) -> str:
    """What is asked first of every alert about affect: since when, how far, do words show it, was enough seen."""
    unseen = f"policy:affect_turns_unseen:share{duration(Windows.of(policy).slow.short)}"
    looks = {
        _of(policy, "ALERTS_FOR_STATE", f'alertname="{alert}"'): "Since TIME.",
        _of(policy, f"policy:affect_turn_over_index:q95_{LOOK}"): (
            f"95% of turns of the last {LOOK} lie below an over-index of VALUE (0: the edge of what is warranted)."
        ),
        _of(policy, f"policy:affect_turn_assistant_affect:q50_{LOOK}"): f"Median A of the last {LOOK}: VALUE.",
        _of(policy, f"policy:affect_turn_user_affect:q50_{LOOK}"): (
            "Median U: VALUE (the mean of the reference is 0 for both)."
        ),
        _of(policy, f"policy:affect_turns_text_visible:share{LOOK}"): "Words show it in PERCENT of turns over.",
        _of(policy, unseen): "Turns not seen well: PERCENT.",
    }
    return "".join(look(query, sentence) for query, sentence in looks.items())


def _who_changed(policy: Policy) -> str:
    """Lines that say which family leads, and whether users have moved."""
    leading = look(
        f"topk(1, {_of(policy, _EVALUE, _FAMILIES)} > 1)",
        'Leading family: {{ . | first | label "test" }}, with an e-value of VALUE.',
    )
    return leading + _alarm(
        policy, "users", on="Users have moved too: see AffectUsersShifted.", off="Users show no lasting change."
    )


def _alarm(policy: Policy, test: str, *, on: str, off: str) -> str:
    """A line of a description that depends on whether another test alarms."""
    return look(
        _of(policy, "policy_test:affect_drift_alarm:max", f'test="{test}"'),
        f"{{{{ if eq (. | first | value) 1.0 }}}}{on}{{{{ else }}}}{off}{{{{ end }}}}",
    )


def _of(policy: Policy, metric: str, further: str = "") -> str:
    """The series of a policy."""
    return f'{metric}{{policy="{policy.name}"{"," + further if further else ""}}}'


def _labels(policy: Policy) -> dict[str, str]:
    return {"policy": policy.name, **({"owner": policy.owner} if policy.owner else {})}


def _route(policy: Policy) -> str:
    return f"affect-route?var-policy={policy.name}"


def _least_turns(policy: Policy) -> int:
    """Turns below which a share says nothing."""
    least: int = policy.rate.min_turns if policy.rate else RateRule.model_fields["min_turns"].default
    return least


def _number(value: float) -> str:
    """A number as it is meant: 0.288, not 0.28800000000000003."""
    return f"{value:.12g}"


def _percent(share: float) -> str:
    return f"{100 * share:.12g}%"
