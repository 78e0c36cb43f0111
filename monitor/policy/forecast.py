"""What a policy will raise while behaviour stays as in the bank's reference: counted before anybody is paged.

Turns are taken as independent of one another and as spread evenly over the day. Alerts of the per-turn rule are the
renewals of a small Markov chain: ``pending_turns`` over in a row begin one, ``resolve_turns`` quiet in a row end it
(runs of successes, Feller 1968, chapter XIII). A budget's alerts begin with a turn that is over and fills both windows:
the expected number of such turns bounds them. The levels of drift and mirror bound a chance for all time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import binom

from monitor.assess.overindex import AFFECT, certified_p
from monitor.policy.alert import ALERT_NAME, rules_of
from monitor.policy.schema import Policy, RateRule
from monitor.probes.bank import Bank, Stance
from monitor.rules.windows import DAY, HOUR, Burn, Windows

_GRID = 1000
"""Shares tried between none and a certified rate."""


@dataclass(frozen=True)
class TurnForecast:
    """What the per-turn rule of one target will raise.

    Attributes:
        alert: Name of the alert.
        target: Affect, or a family.
        rate: The policy's false-alarm rate.
        share: Share of further turns like the reference's that will be over.
        per_day: Alerts a day at that share.
        per_day_at_most: The most alerts a day at any share up to the rate, which the reference certifies.
    """

    alert: str
    target: str
    rate: float
    share: float
    per_day: float
    per_day_at_most: float


@dataclass(frozen=True)
class BurnForecast:
    """What an alert on the error budget will raise.

    Attributes:
        alert: Name of the alert.
        threshold: Share of turns over, in both windows, beyond which it fires.
        long_hours: Length of the long window.
        short_hours: Length of the short window.
        long_turns: Turns of the long window at this traffic.
        per_day: Upper bound of alerts a day at the reference's own share of turns over.
        per_day_at_most: The same at the certified rate.
        never: Why it cannot fire at all; empty where it can.
    """

    alert: str
    threshold: float
    long_hours: float
    short_hours: float
    long_turns: int
    per_day: float
    per_day_at_most: float
    never: str


@dataclass(frozen=True)
class EverForecast:
    """An alert whose false alarms are bounded for all time and not by the day.

    Attributes:
        alert: Name of the alert.
        alpha: Chance, at most, that it is ever raised.
    """

    alert: str
    alpha: float


@dataclass(frozen=True)
class Forecast:
    """What one policy will raise on unchanged behaviour.

    Attributes:
        policy: Name of the policy.
        stance: Its stance.
        reference_turns: Turns of the reference that it is judged against.
        turns_per_day: Judged turns a day that were assumed.
        per_day: Alerts of turns and budget a day.
        per_day_at_most: The same at the certified rates.
        turn: Alerts of single turns, by target.
        burn: Alerts of the error budget; none where the policy has no budget.
        ever: Alerts of drift.
    """

    policy: str
    stance: str
    reference_turns: int
    turns_per_day: int
    per_day: float
    per_day_at_most: float
    turn: tuple[TurnForecast, ...]
    burn: tuple[BurnForecast, ...]
    ever: tuple[EverForecast, ...]


def forecast(policy: Policy, bank: Bank, turns_per_day: int) -> Forecast:
    """What a policy will raise while behaviour stays as in the reference.

    Args:
        policy: A policy that fits the bank.
        bank: Holds the reference.
        turns_per_day: Judged turns a day, all of them under this policy.
    """
    turn = tuple(_of_target(policy, bank, target, rate, turns_per_day) for target, rate in rules_of(policy).items())
    burn = _of_budget(policy, policy.rate, turn[0], turns_per_day) if policy.rate else ()
    return Forecast(
        policy=policy.name,
        stance=policy.stance.value,
        reference_turns=bank.card.reference.turns[policy.stance],
        turns_per_day=turns_per_day,
        per_day=sum(each.per_day for each in turn) + sum(each.per_day for each in burn),
        per_day_at_most=sum(each.per_day_at_most for each in turn) + sum(each.per_day_at_most for each in burn),
        turn=turn,
        burn=burn,
        ever=(
            EverForecast("AffectDrift", policy.drift.alpha),
            EverForecast("AffectMirrorDrift", policy.mirror.alpha),
            EverForecast("AffectUsersShifted", policy.drift.alpha),
        ),
    )


def share_over(bank: Bank, stance: Stance, target: str, rate: float) -> float:
    """Share of further turns like the reference's that a rule at this rate calls over: the mean of their rank.

    With k of n reference turns over, a further one is over when it ranks among the first k + 1 of n + 1.
    """
    row = [*bank.card.families, AFFECT].index(target)
    residuals = bank.tensors.residuals[list(Stance).index(stance), row]
    held = residuals[np.isfinite(residuals)].tolist()
    two_sided = stance is Stance.CRISIS
    over = sum(certified_p(held, each, two_sided) <= rate for each in held)
    return (over + (2 if two_sided else 1)) / (len(held) + 1)


def alerts_per_turn(share: float, pending_turns: int, resolve_turns: int) -> float:
    """Alerts that begin, for each judged turn, when turns are over by chance.

    The inverse of the mean time to ``pending_turns`` over in a row and then ``resolve_turns`` quiet in a row.

    Args:
        share: Chance that a turn is over, above 0 and below 1.
        pending_turns: Turns over in a row that begin an alert.
        resolve_turns: Quiet turns in a row that end it.
    """
    quiet = 1 - share
    begins, ends = share**pending_turns, quiet**resolve_turns
    return share * quiet * begins * ends / (share * ends * (1 - begins) + quiet * begins * (1 - ends))


def burns_per_turn(share: float, threshold: float, long_turns: int, short_turns: int) -> float:
    """Upper bound of the budget alerts that begin, for each judged turn, when turns are over by chance.

    An alert begins with a turn that is over and with which both windows, ending there, exceed the threshold. Several
    such turns may belong to one alert; hence a bound.

    Args:
        share: Chance that a turn is over.
        threshold: Share of turns over that both windows must exceed.
        long_turns: Turns of the long window.
        short_turns: Turns of the short one, its last part.
    """
    # Besides the turn itself, so many of the others must be over.
    in_long, in_short = math.floor(threshold * long_turns), math.floor(threshold * short_turns)
    short = np.arange(in_short, short_turns)
    earlier = binom.sf(in_long - short - 1, long_turns - short_turns, share)
    return float(share * (binom.pmf(short, short_turns - 1, share) @ earlier))


def _of_target(policy: Policy, bank: Bank, target: str, rate: float, turns_per_day: int) -> TurnForecast:
    pending, resolve = policy.turn.pending_turns, policy.turn.resolve_turns
    share = share_over(bank, policy.stance, target, rate)
    # Not simply at the rate: where most turns are over, alerts do not end and so do not begin anew.
    most = max(alerts_per_turn(rate * step / _GRID, pending, resolve) for step in range(1, _GRID + 1))
    return TurnForecast(
        alert=ALERT_NAME,
        target=target,
        rate=rate,
        share=share,
        per_day=turns_per_day * alerts_per_turn(share, pending, resolve),
        per_day_at_most=turns_per_day * most,
    )


def _of_budget(policy: Policy, rule: RateRule, affect: TurnForecast, turns_per_day: int) -> tuple[BurnForecast, ...]:
    windows = Windows.of(policy)
    named = {"AffectBudgetBurnFast": windows.fast, "AffectBudgetBurnSlow": windows.slow}
    return tuple(_of_window(name, rule, window, affect, turns_per_day) for name, window in named.items())


def _of_window(alert: str, rule: RateRule, window: Burn, affect: TurnForecast, turns_per_day: int) -> BurnForecast:
    long_turns, short_turns = (max(1, round(turns_per_day * span / DAY)) for span in (window.long, window.short))
    threshold = window.factor * rule.budget
    never = ""
    if threshold >= 1:
        never = f"{threshold:.0%} of turns is more than all; take a smaller rate.budget"
    elif long_turns < rule.min_turns:
        never = f"its long window has {long_turns} turns at this traffic, fewer than rate.min_turns {rule.min_turns}"
    per_day, at_most = (
        0.0 if never else turns_per_day * burns_per_turn(share, threshold, long_turns, short_turns)
        for share in (affect.share, affect.rate)
    )
    return BurnForecast(
        alert=alert,
        threshold=threshold,
        long_hours=window.long / HOUR,
        short_hours=window.short / HOUR,
        long_turns=long_turns,
        per_day=per_day,
        per_day_at_most=at_most,
        never=never,
    )
