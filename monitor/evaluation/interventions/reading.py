"""Reads replies that were written under steering: by a pass without hooks, by tokens, by words, and by a judge."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from monitor.calibration.keywords import names_emotion
from monitor.calibration.lines import Message
from monitor.calibration.writers import Writer
from monitor.evaluation.interventions.axes import AFFECT
from monitor.evaluation.judge import judge
from monitor.evaluation.subject import Subject, said

Floats = NDArray[np.float64]

_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_MOST = 10.0


class Reading(NamedTuple):
    """What N replies show of K things: the bank's families, then affect as a whole.

    Attributes:
        probe: Scores of the reply, in standard deviations of the reference, [N, K].
        twin: The same by the text twin, [N, K].
        named: Share of a family's emotions that the reply names, for affect of all, [N, K].
        words: Words of the reply, [N].
        over: Over-index, [N].
    """

    probe: Floats
    twin: Floats
    named: Floats
    words: Floats
    over: Floats


def read(subject: Subject, prompts: Sequence[Sequence[Message]], replies: Sequence[str]) -> Reading:
    """Reads replies as the plain model sees them."""
    bank, columns = subject.bank, subject.bank.columns
    found = subject.activations(said(prompts, replies))
    scores = subject.scored(found)
    emotions = [emotions_of(subject, name) for name in (*bank.card.families, AFFECT)]
    named = [[np.mean([names_emotion(reply, each) for each in names]) for names in emotions] for reply in replies]
    return Reading(
        probe=np.column_stack([scores[1][:, columns.family], scores[1][:, columns.assistant_affect]]),
        twin=np.column_stack([scores[1][:, columns.twin_family], scores[1][:, columns.twin_assistant_affect]]),
        named=np.array(named),
        words=np.array([float(len(reply.split())) for reply in replies]),
        over=judge(bank, scores, found.tokens[:, 1]).over,
    )


def emotions_of(subject: Subject, name: str) -> list[str]:
    """Emotions of a family; all of them for affect."""
    return [each.name for each in subject.bank.card.emotions if name in (each.family, AFFECT)]


def rated(
    writer: Writer, emotions: Sequence[str], prompts: Sequence[Sequence[Message]], replies: Sequence[str], seed: int
) -> Floats:
    """A judge's rating of how much of some emotions replies show, 0 to 10; NaN where it gives no number, [N]."""
    return np.array(
        [
            _rating(writer.complete(_question(emotions, messages[-1]["content"], reply), seed))
            for messages, reply in zip(prompts, replies, strict=True)
        ]
    )


def _question(emotions: Sequence[str], asked: str, reply: str) -> str:
    return (
        f"A user wrote to an assistant:\n<message>\n{asked}\n</message>\n\nThe assistant replied:\n<reply>\n{reply}\n"
        f"</reply>\n\nHow strongly does the reply itself express any of these emotions: {', '.join(emotions)}? "
        "Judge how the assistant sounds, not what it writes about. Answer with one whole number from 0 (not at all) "
        "to 10 (overwhelmingly), and nothing else."
    )


def _rating(answer: str) -> float:
    found = _NUMBER.search(answer)
    return min(float(found.group()), _MOST) if found else float("nan")
