"""Numbers, times and states in words."""

from __future__ import annotations

import math
from datetime import datetime, timezone

from monitor.assess.overindex import Excess

NOTHING = "\N{EN DASH}"
"""Stands where there is no number."""
_MINUS = "\N{MINUS SIGN}"
_SMALL = 0.001
_FINE = 0.1
_HUGE = 1e6
MARKS = {
    "unvalidated": "the bank was not validated on this model",
    "sampled_out": "outside the sample",
    "partial": "seen in part, a sidecar restarted",
    "abandoned": "never ended",
    "nonfinite": "hidden states that are not finite",
    "low_coverage": "too few tokens seen",
    "short": "reply too short",
    "canary": "one of the canary prompts",
}
"""What keeps turns from being judged."""
GAPS = {
    "prefix_cached": "from the server's prefix cache",
    "dropped": "dropped by the capture, which was behind",
    "restarted": "lost with a sidecar that restarted",
    "sampled_out": "outside the sample",
    "untold": "never came, and nobody said why",
    "refused": "their request has no turn",
}
"""Why tokens are missing."""
TESTS = {
    "overfitting": "A given U",
    "mirror": "mirror slope",
    "users": "users (U)",
}
"""Tests of drift that have a line."""


def number(value: float | None, digits: int = 2) -> str:
    """A number; a dash for none."""
    if value is None or math.isnan(value):
        return NOTHING
    return f"{round(value, digits) + 0.0:.{digits}f}".replace("-", _MINUS)  # plus zero: there is no minus zero


def signed(value: float | None, digits: int = 1) -> str:
    """A number with its sign; a dash for none."""
    told = number(value, digits)
    return f"+{told}" if value is not None and round(value, digits) > 0 else told


def percent(share: float | None) -> str:
    """A share; with more digits where it is small."""
    if share is None or math.isnan(share):
        return NOTHING
    digits = 0 if share == 0 or share >= 1 else 2 if share < _SMALL * 10 else 1
    return f"{100 * share:.{digits}f}\N{NO-BREAK SPACE}%"


def p_value(p: float | None) -> str:
    """A p-value."""
    if p is None or math.isnan(p):
        return NOTHING
    return f"{p:.2g}" if p < _SMALL else f"{p:.4f}" if p < _FINE else f"{p:.2f}"


def count(value: float) -> str:
    """A whole number, in groups of three digits."""
    return f"{value:,.0f}"


def of_things(amount: float, one: str, many: str = "") -> str:
    """A number of things."""
    return f"{count(amount)} {one if amount == 1 else many or one + 's'}"


def evalue(log: float) -> str:
    """An e-value, from its natural logarithm."""
    value = math.exp(min(log, 700.0))
    if value >= _HUGE:
        return f"{value:.0e}".replace("e+0", "e").replace("e+", "e")
    return count(value) if value >= 10 else f"{value:.2g}"  # noqa: PLR2004 - digits worth showing


def milliseconds(seconds: float) -> str:
    """A time, in milliseconds."""
    if math.isnan(seconds):
        return NOTHING
    return "over 5 s" if math.isinf(seconds) else f"{1e3 * seconds:g} ms"


def moment(seconds: float) -> str:
    """A moment, to the second, in UTC."""
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")


def clock(seconds: float) -> str:
    """The time of day of a moment, in UTC."""
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%H:%M:%S")


def machine_time(seconds: float) -> str:
    """A moment as programs read it."""
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="seconds")


def excess(worst: Excess) -> str:
    """How far a turn lies out, in a sentence."""
    level = "at most" if worst.over_index >= 0 else "about"
    return (
        f"The worst turn showed {signed(worst.value)} where {level} {signed(worst.warranted)} was warranted: "
        f"over-index {signed(worst.over_index)}. No more than {percent(worst.p_value)} of approved turns lie as far "
        f"out (p = {p_value(worst.p_value)})."
    )


def who_moved(alarms: dict[str, bool]) -> str:
    """Whose affect has changed, by the alarms of drift."""
    assistant = alarms.get("overfitting", False) or alarms.get("mirror", False)
    if assistant and alarms.get("users"):
        return "The users have moved, and the assistant has moved beyond what they explain."
    if assistant:
        return "The assistant has moved; its users show no lasting change."
    if alarms.get("users"):
        return "The users have moved; the assistant, given its users, shows no lasting change."
    return "Neither the users nor the assistant show a lasting change."


def unjudged(marks: list[str]) -> str:
    """Why a turn was not judged."""
    return "; ".join(MARKS.get(mark, mark) for mark in marks)
