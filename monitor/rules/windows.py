"""Times of the rules: the windows of burn rates, and how Prometheus writes durations.

Windows and factors are those of the Site Reliability Workbook (Beyer et al. 2018), chapter 5, for a budget of 30 days.
"""

from __future__ import annotations

from dataclasses import dataclass

from monitor.policy.schema import Policy, RateRule

MINUTE, HOUR, DAY = 60, 3600, 86400
_PERIOD = 30 * DAY


@dataclass(frozen=True)
class Burn:
    """One pace at which a budget may be spent too fast.

    Attributes:
        factor: How many times too fast.
        long: Window in which that must be so, in seconds.
        short: Window in which it must still be so, in seconds.
    """

    factor: float
    long: int
    short: int


FAST = Burn(14.4, HOUR, 5 * MINUTE)
"""Spends 2 % of a month's budget in an hour."""
SLOW = Burn(6, 6 * HOUR, 30 * MINUTE)
"""Spends 5 % of a month's budget in six hours."""


@dataclass(frozen=True)
class Windows:
    """All times of a policy's rules, which scale with the period of its budget.

    Attributes:
        period: Seconds the budget is for.
        fast: The pace that is told at once.
        slow: The pace that is told within hours.
        pending: Seconds an alert must hold before it fires.
        keep: Seconds it goes on firing, so that a gap in the metrics does not resolve it.
    """

    period: float
    fast: Burn
    slow: Burn
    pending: int
    keep: int

    @classmethod
    def of(cls, policy: Policy) -> Windows:
        """Times of a policy; one without a budget has those of the default period."""
        rate = policy.rate
        period = DAY * (rate.period_days if rate else RateRule.model_fields["period_days"].default)

        def scaled(seconds: int) -> int:
            return max(1, round(seconds * period / _PERIOD))

        fast, slow = (Burn(burn.factor, scaled(burn.long), scaled(burn.short)) for burn in (FAST, SLOW))
        return cls(period, fast, slow, scaled(MINUTE), scaled(10 * MINUTE))

    @property
    def spans(self) -> tuple[int, ...]:
        """The windows, in seconds."""
        return (self.fast.short, self.slow.short, self.fast.long, self.slow.long)


def duration(seconds: int) -> str:
    """Seconds as Prometheus writes them, such as 1h30m."""
    written = ""
    for unit, size in (("d", DAY), ("h", HOUR), ("m", MINUTE), ("s", 1)):
        count, seconds = divmod(seconds, size)
        written += f"{count}{unit}" if count else ""
    return written
