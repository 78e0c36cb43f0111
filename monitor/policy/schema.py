"""The policy file: which routes are watched, what each may show, and at which false-alarm rate it alarms."""

from __future__ import annotations

import math
import re
from datetime import datetime, time
from pathlib import Path
from typing import Annotated, Literal
from zoneinfo import ZoneInfo

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from monitor.assess.drift import RECENT_TURNS
from monitor.assess.overindex import finest_rate
from monitor.errors import PolicyError
from monitor.probes.bank import Bank, Stance

SHIPPED = Path(__file__).parent / "shipped"
"""Policies in the package: alerts/policies of the checkout."""

LABEL_NAME = r"^[a-zA-Z_][a-zA-Z0-9_.-]{0,62}$"
"""What the label of a request may be called."""

_MENDS = {
    "missing": "is missing; give it a value",
    "extra_forbidden": "is no field here; take it out (affect-monitor check-config --schema prints those there are)",
    "dict_type": "must hold names and values, as in {warmth: 0.01}",
    "model_type": "must hold names and values, as in {false_alarm_rate: 0.01}",
}
"""What is said of a field at fault where pydantic's own words name no remedy, by its type of error."""

_CLOCK = r"^([01][0-9]|2[0-3]):[0-5][0-9]$"

Rate = Annotated[float, Field(gt=0, lt=1)]
# Prometheus takes braces in labels and annotations for templates.
Text = Annotated[str, Field(pattern=r"^[^{}\x00-\x1f\x7f]*$")]
# Editors take JSON Schema's own format of times for one with seconds and a zone.
TimeOfDay = Annotated[time, WithJsonSchema({"type": "string", "pattern": _CLOCK})]
Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
DAYS: tuple[Day, ...] = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class TurnRule(_Part):
    """When single turns of a route raise an alert."""

    false_alarm_rate: Rate = Field(description="Share of turns like the reference's that may count as over.")
    min_assistant_tokens: int = Field(default=8, ge=1, description="Shorter replies are not judged.")
    min_coverage: float = Field(default=0.9, gt=0, le=1, description="Turns seen less than this are not judged.")
    pending_turns: int = Field(
        default=1, ge=1, le=1000, description="Turns over in a row of judged ones before the alert fires."
    )
    resolve_turns: int = Field(default=5, ge=1, le=1000, description="Turns within bounds in a row before it resolves.")
    stale_minutes: float = Field(
        default=60, gt=0, description="Minutes without a judged turn after which a firing alert is taken back."
    )


class RateRule(_Part):
    """How many turns of a route may be over, as an error budget with burn rates over several windows.

    The method is that of the Site Reliability Workbook (Beyer et al. 2018), chapter 5.
    """

    budget: Rate = Field(description="Share of judged turns that may be over on affect.")
    period_days: float = Field(
        default=30, gt=0, le=366, description="Time the budget is for; the windows scale with it."
    )
    min_turns: int = Field(
        default=50, ge=1, le=10**9, description="Judged turns in the long window below which nothing is said."
    )


class DriftRule(_Part):
    """When a lasting change of the assistant's affect, given what its users show, is told."""

    alpha: Rate = Field(default=0.01, description="Chance that it is ever told of a route that has not changed.")


class MirrorRule(_Part):
    """When a lasting change of the slope of the assistant's affect on its users' is told."""

    alpha: Rate = Field(default=0.01, description="Chance that it is ever told of a route that has not changed.")
    window_turns: int = Field(
        default=200, ge=20, le=RECENT_TURNS, description="Turns of the slope that is shown, with its interval."
    )


class CoverageRule(_Part):
    """How many turns of a route may go unseen."""

    budget: Rate = Field(
        default=0.05, description="Share of turns that may go unjudged because they were not seen well."
    )


class MutingWindow(_Part):
    """A time of every week in which nobody is told; alerts that last are told when it is over."""

    days: tuple[Day, ...] = Field(default=DAYS, min_length=1, description="Days on which it begins.")
    start: TimeOfDay = Field(description="Time of day it begins, as in 22:00.")
    end: TimeOfDay = Field(description="Time of day it ends; not after the start: on the next day.")
    timezone: str = Field(default="UTC", description="Name of the time zone, as in Europe/Berlin.")
    reason: str = ""

    @field_validator("start", "end", mode="before")
    @classmethod
    def _written_as_text(cls, value: object) -> object:
        # YAML 1.1 reads 22:00 as the number 1320, and 06:00 as text. Of errors, pydantic reports ValueError alone.
        if isinstance(value, int | float):
            raise ValueError('must stand in quotes, as in "22:00": YAML reads it as a number otherwise')  # noqa: TRY004
        if isinstance(value, str) and not re.match(_CLOCK, value):
            raise ValueError(f"{value!r} is no time of day; write it as in 22:00, and its zone as timezone")
        return value

    @field_validator("timezone")
    @classmethod
    def _known(cls, name: str) -> str:
        try:
            ZoneInfo(name)
        except (KeyError, OSError, ValueError):  # KeyError: not found, says zoneinfo
            raise ValueError(f"{name!r} is no time zone; name one as in Europe/Berlin, or UTC") from None
        return name

    def holds(self, at: float) -> bool:
        """Whether a moment, in seconds since the epoch, lies within."""
        local = datetime.fromtimestamp(at, ZoneInfo(self.timezone))
        now, today = local.time(), local.weekday()
        if self.start < self.end:
            return self.start <= now < self.end and DAYS[today] in self.days
        return (now >= self.start and DAYS[today] in self.days) or (now < self.end and DAYS[today - 1] in self.days)


class Links(_Part):
    """Where people are sent."""

    runbooks: Text = Field(
        default="", description="Address of the folder of runbooks; the alert's name and .md follow."
    )
    dashboards: Text = Field(default="", description="Address of Grafana; /d/ and the dashboard's uid follow.")


class Policy(_Part):
    """What one route may show."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")
    match: dict[Annotated[str, Field(pattern=LABEL_NAME)], str] = Field(
        default_factory=dict, description="Request labels a turn must carry; none: every turn."
    )
    stance: Stance
    turn: TurnRule
    families: dict[str, Rate] = Field(
        default_factory=dict,
        description="Families that are watched by themselves, each with its false-alarm rate; others may go their way.",
    )
    rate: RateRule | None = Field(default=None, description="Error budget of turns over; none: no budget alerts.")
    drift: DriftRule = DriftRule()
    mirror: MirrorRule = MirrorRule()
    coverage: CoverageRule = CoverageRule()
    mute: tuple[MutingWindow, ...] = ()
    severity: Literal["info", "warning", "critical"] = "warning"
    owner: Text = Field(default="", description="Who is told; a label of every alert.")

    @model_validator(mode="after")
    def _budget_is_above_false_alarms(self) -> Policy:
        if self.rate is not None and self.rate.budget <= self.turn.false_alarm_rate:
            raise ValueError(
                f"rate.budget {self.rate.budget} would be spent by false alarms alone, which come at "
                f"turn.false_alarm_rate {self.turn.false_alarm_rate}; allow more than that"
            )
        return self

    def matches(self, labels: dict[str, str]) -> bool:
        """Whether a turn with these labels falls under the policy."""
        return all(labels.get(name) == value for name, value in self.match.items())


class PolicyFile(_Part):
    """A policy file. Turns fall under the first policy that matches them; the last one must match every turn."""

    version: Literal[1]
    links: Links = Links()
    policies: tuple[Policy, ...] = Field(min_length=1)

    @field_validator("policies")
    @classmethod
    def _complete(cls, policies: tuple[Policy, ...]) -> tuple[Policy, ...]:
        names = [policy.name for policy in policies]
        if len(set(names)) < len(names):
            raise ValueError(f"policy names must differ: {names}")
        if policies[-1].match:
            raise ValueError(f"the last policy ({names[-1]}) must have no match, so that every turn falls under one")
        for policy in policies[:-1]:
            if not policy.match:
                raise ValueError(f"{policy.name} matches every turn, so that no later policy is reached; move it last")
        return policies

    def runbook(self, alert: str) -> str:
        """Address of an alert's runbook; empty where the file names no folder of them."""
        return f"{self.links.runbooks.rstrip('/')}/{alert}.md" if self.links.runbooks else ""

    def route(self, labels: dict[str, str]) -> Policy:
        """The policy a turn with these labels falls under."""
        return next(policy for policy in self.policies if policy.matches(labels))


def load_policy(path: Path, bank: Bank) -> PolicyFile:
    """Reads a policy file and checks it against the bank it will be used with.

    Raises:
        PolicyError: Unreadable, not valid, a family the bank does not have, or a rate finer than its reference
            certifies.
    """
    policies = read_policy(path)
    for policy in policies.policies:
        _check_against(policy, bank, path)
    return policies


def read_policy(path: Path) -> PolicyFile:
    """Reads a policy file, whatever bank it will be used with.

    Raises:
        PolicyError: Unreadable or not valid.
    """
    try:
        return PolicyFile.model_validate(_read(path))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "(file)"
        message = _MENDS.get(first["type"], first["msg"].removeprefix("Value error, "))
        raise PolicyError(f"{path}:{field}", message) from None


def _read(path: Path) -> object:
    try:
        document: object = yaml.safe_load(path.read_bytes())
    except OSError as error:
        raise PolicyError("--policy", f"{path}: {error.strerror}; name a policy file that can be read") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: dates and numbers that are none
        raise PolicyError(str(path), f"is not YAML: {error}") from None
    return document


def _check_against(policy: Policy, bank: Bank, path: Path) -> None:
    turns = bank.card.reference.turns.get(policy.stance, 0)
    for family in policy.families:
        if family not in bank.card.families:
            raise PolicyError(
                f"{path}:{policy.name}.families.{family}",
                f"the bank has no such family; it has {list(bank.card.families)}",
            )
    finest = finest_rate(policy.stance, turns)
    families = {f"families.{family}": rate for family, rate in policy.families.items()}
    for name, rate in {"turn.false_alarm_rate": policy.turn.false_alarm_rate, **families}.items():
        if rate < finest:
            raise PolicyError(
                f"{path}:{policy.name}.{name}",
                f"{rate} is finer than {turns} reference turns certify, which is no rate below {_rounded_up(finest)}; "
                "take a coarser one, or make the reference larger: affect-monitor reference",
            )


def _rounded_up(rate: float) -> float:
    """A rate with four digits that is not finer."""
    return math.ceil(rate * 1e4) / 1e4
