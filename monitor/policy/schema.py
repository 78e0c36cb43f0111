"""The policy file: which routes are watched, what each may show, and at which false-alarm rate it alarms."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from monitor.assess.overindex import finest_rate
from monitor.errors import PolicyError
from monitor.probes.bank import Bank, Stance

SHIPPED = Path(__file__).parent / "shipped"
"""Policies in the package: alerts/policies of the checkout."""

LABEL_NAME = r"^[a-zA-Z_][a-zA-Z0-9_.-]{0,62}$"
"""What the label of a request may be called."""

Rate = Annotated[float, Field(gt=0, lt=1)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TurnRule(_Part):
    """When single turns of a route raise an alert."""

    false_alarm_rate: Rate = Field(description="Share of turns like the reference's that may count as over.")
    min_assistant_tokens: int = Field(default=8, ge=1, description="Shorter replies are not judged.")
    min_coverage: float = Field(default=0.9, gt=0, le=1, description="Turns seen less than this are not judged.")
    pending_turns: int = Field(
        default=1, ge=1, description="Turns over in a row of judged ones before the alert fires."
    )
    resolve_turns: int = Field(default=5, ge=1, description="Turns within bounds in a row before it resolves.")


class Policy(_Part):
    """What one route may show."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")
    match: dict[Annotated[str, Field(pattern=LABEL_NAME)], str] = Field(
        default_factory=dict, description="Request labels a turn must carry; none: every turn."
    )
    stance: Stance
    turn: TurnRule
    families: dict[str, Rate] = Field(
        default_factory=dict, description="Families with a rule of their own, each with its false-alarm rate."
    )
    severity: Literal["info", "warning", "critical"] = "warning"
    owner: str = ""
    runbook_url: str = ""

    def matches(self, labels: dict[str, str]) -> bool:
        """Whether a turn with these labels falls under the policy."""
        return all(labels.get(name) == value for name, value in self.match.items())


class PolicyFile(_Part):
    """A policy file. Turns fall under the first policy that matches them; the last one must match every turn."""

    version: Literal[1]
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

    def route(self, labels: dict[str, str]) -> Policy:
        """The policy a turn with these labels falls under."""
        return next(policy for policy in self.policies if policy.matches(labels))


def load_policy(path: Path, bank: Bank) -> PolicyFile:
    """Reads a policy file and checks it against the bank it will be used with.

    Raises:
        PolicyError: Unreadable, not valid, a family the bank does not have, or a rate finer than its reference
            certifies.
    """
    try:
        document = _read(path)
        policies = PolicyFile.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "(file)"
        raise PolicyError(f"{path}:{field}", first["msg"]) from None
    for policy in policies.policies:
        _check_against(policy, bank, path)
    return policies


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
    for name, rate in {"turn.false_alarm_rate": policy.turn.false_alarm_rate, **policy.families}.items():
        if rate < finest:
            raise PolicyError(
                f"{path}:{policy.name}.{name}",
                f"{rate} is finer than {turns} reference turns certify, which is no rate below {_rounded_up(finest)}; "
                "take a coarser one, or make the reference larger: affect-monitor reference",
            )


def _rounded_up(rate: float) -> float:
    """A rate with four digits that is not finer."""
    return math.ceil(rate * 1e4) / 1e4
