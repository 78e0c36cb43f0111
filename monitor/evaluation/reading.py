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
from monitor.evaluation.judge import judge
from monitor.evaluation.subject import Subject, said

Floats = NDArray[np.float64]

_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_MOST = 10.0


class Reading(NamedTuple):
    """What N replies show, F families each.

    Attributes:
        probe: Family scores of the reply, in standard deviations of the reference, [N, F].
        twin: The same by the text twin, [N, F].
        named: Share of a family's emotions that the reply names, [N, F].
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
    emotions = [[each.name for each in bank.card.emotions if each.family == name] for name in bank.card.families]
    named = [[np.mean([names_emotion(reply, each) for each in names]) for names in emotions] for reply in replies]
    return Reading(
        probe=scores[1][:, columns.family],
        twin=scores[1][:, columns.twin_family],
        named=np.array(named),
        words=np.array([float(len(reply.split())) for reply in replies]),
        over=judge(bank, scores, found.tokens[:, 1]).over,
    )


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
