"""Turns on the status page: in a line each, and one with all its numbers, in words."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from monitor.outputs.audit_rows import turn_json
from monitor.outputs.page import figures
from monitor.outputs.page.wording import GAPS, signed, unjudged
from monitor.probes.markers import Role
from monitor.wire.v1 import ingest_pb2

_EMOTIONS = 10
_HEAT = ((-1.0, "cold"), (1.0, "calm"), (2.0, "warm"), (3.0, "hot"))
"""Upper ends of what each colour of a token stands for, in standard deviations of the reference; beyond: burning."""
_BURNING = "burning"


class Emotion(NamedTuple):
    """Probability of an emotion on each side."""

    name: str
    user: float | None
    assistant: float | None


class Part(NamedTuple):
    """Tokens that went one way."""

    what: str
    tokens: int


class Token(NamedTuple):
    """One token of a trace; its id only where the operator stores text."""

    position: int
    role: str
    affect: float | None
    heat: str
    token_id: int | None


class TurnView(NamedTuple):
    """A turn as the page shows it.

    Attributes:
        told: All its fields, as the audit store has them.
        verdict: over, within or unjudged.
        headline: The same in words.
        families: Family scores of users and assistant, by name.
        emotions: The likeliest emotions of either side.
        account: Where its tokens went; sums to all that the server processed.
        tokens: Affect token by token; empty where it is not kept.
        figure: The same, as a plot.
    """

    told: Mapping[str, Any]
    verdict: str
    headline: str
    families: list[Emotion]
    emotions: list[Emotion]
    account: list[Part]
    tokens: list[Token]
    figure: figures.Figure | None


def told_of(turn: ingest_pb2.Assessment, bank_id: str, stance: str) -> dict[str, Any]:
    """A turn in memory as the audit store would keep it."""
    told: dict[str, Any] = json.loads(turn_json(turn, bank_id, stance))
    return told


def verdict(marks: Sequence[str], alerts: Sequence[str], over_index: float | None) -> tuple[str, str]:
    """What became of a turn: in a word, and in a line."""
    if set(marks) - {"unvalidated"} or over_index is None:
        return "unjudged", f"Not judged: {unjudged(list(marks)) or 'no number'}"
    if alerts:
        return "over", f"Over on {', '.join(alerts)}"
    return "within", "Within bounds"


def turn_view(told: Mapping[str, Any], trace: Mapping[str, Sequence[Any]] | None) -> TurnView:
    """What is shown of a turn.

    Args:
        told: Its fields, as the audit store has them.
        trace: Its tokens, where they are kept.
    """
    kind, headline = verdict(told["marks"], told["alerts"], told["over_index"])
    tokens = _tokens(trace) if trace else []
    figure = (
        figures.tokens(
            [token.position for token in tokens],
            [token.role for token in tokens],
            [token.affect for token in tokens],
            told["warranted"],
        )
        if tokens
        else None
    )
    return TurnView(
        told=told,
        verdict=kind,
        headline=headline,
        families=_sides(told["user_families"], told["families"]),
        emotions=sorted(
            _sides(told["user_emotions"], told["emotions"]),
            key=lambda each: max(each.user or 0.0, each.assistant or 0.0),
            reverse=True,
        )[:_EMOTIONS],
        account=_account(told),
        tokens=tokens,
        figure=figure,
    )


def _sides(user: Mapping[str, float], assistant: Mapping[str, float]) -> list[Emotion]:
    return [Emotion(name, user.get(name), value) for name, value in assistant.items()]


def _account(told: Mapping[str, Any]) -> list[Part]:
    gaps = told["gaps"]
    lost = told["total_tokens"] - told["scored_tokens"] - sum(gaps.values())
    # Stores of earlier versions do not have it.
    filled = told.get("filled_tokens", 0)
    return [
        Part("scored", told["scored_tokens"] - filled),
        *([Part("scored in an earlier turn with the same beginning", filled)] if filled else []),
        Part("not finite", lost),
        *(Part(f"missing: {GAPS.get(reason, reason)}", tokens) for reason, tokens in sorted(gaps.items())),
    ]


def _tokens(trace: Mapping[str, Sequence[Any]]) -> list[Token]:
    ids = trace.get("token_ids") or [None] * len(trace["positions"])
    return [
        Token(position, Role(role).name.lower(), affect, _heat(affect), token_id)
        for position, role, affect, token_id in zip(
            trace["positions"], trace["roles"], trace["affect"], ids, strict=True
        )
    ]


def _heat(affect: float | None) -> str:
    if affect is None:
        return "none"
    return next((name for end, name in _HEAT if affect < end), _BURNING)


def token_words(token: Token) -> str:
    """A token, for those who do not see its colour."""
    return f"position {token.position}, {token.role}, affect {signed(token.affect)}"
