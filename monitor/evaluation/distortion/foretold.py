"""How well the over-index of a reply tells that its answer is wrong, beside the text twin and the reply's length."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from monitor.calibration.statistics import Floats, Mask, cluster_weights, figure_of
from monitor.evaluation.distortion.answered import READINGS, Answered
from monitor.evaluation.distortion.matched import auroc_within, share_of
from monitor.evaluation.distortion.questions import CONDITIONS
from monitor.evaluation.results import Curves, Measure, Series, measure

SCOPES = {
    "": "all replies",
    "within": "replies of one condition",
    "matched": "replies of one condition to one kind of question",
}
"""Which replies are compared with each other, by the part of the id that says so."""
PREDICTORS = {
    "": "Over-index",
    "twin": "Over-index by the text twin",
    "length": "Length",
    "gain": "Over-index less that by the text twin",
}
"""What tells, by the part of the id that says so; of the last, the difference of AUROCs."""
_FIFTHS = 5


class Target(NamedTuple):
    """What is to be told.

    Attributes:
        name: As in ids of measures.
        words: As in tables.
        true: Replies of which it is true, [C, Q].
        held: Replies that count, [C, Q].
    """

    name: str
    words: str
    true: Mask
    held: Mask


def foretold(answered: Answered, seed: int) -> dict[str, Measure]:
    """AUROC of every predictor for every target in every scope, with intervals over questions.

    Args:
        answered: What was answered.
        seed: Of the intervals.

    Returns:
        Measures by id: ``auroc.wrong``, ``auroc.wrong.twin``, ``auroc.wrong.within``, ``auroc.wrong.within.twin``, and
        so on; ``gain`` is the over-index's less that of its twin.
    """
    weights = _weights(answered, seed)
    told = [
        each
        for target in targets(answered)
        for scope, strata in _strata(answered).items()
        for each in _told(answered, target, scope, strata, weights)
    ]
    return {each.id: each for each in told}


def targets(answered: Answered) -> list[Target]:
    """Wrong answers and answers that are not right, then those of them that were right when put neutrally."""
    found = []
    for reading in READINGS:
        right, wrong = answered.read(reading)
        end = "" if reading == "reply" else f".{reading}"
        found.append(Target(f"wrong{end}", f"wrong by {reading}", wrong, right | wrong))
        found.append(Target(f"bent{end}", f"bent by {reading}", wrong, _elsewhere(right) & (right | wrong)))
    right, _ = answered.read("reply")
    found.append(Target("missed", "wrong, mixed or no answer", ~right, np.ones_like(right)))
    found.append(Target("lost", "no longer right", ~right, _elsewhere(right)))
    return found


def _elsewhere(right: Mask) -> Mask:
    """Replies in other conditions than neutral to questions answered right there, [C, Q]."""
    found = np.repeat(right[:1], len(right), axis=0)
    found[0] = False
    return found


def stem_of(target: Target, scope: str) -> str:
    """The id of the over-index's measure, to which those of other predictors add theirs."""
    return ".".join(part for part in ("auroc", target.name, scope) if part)


def _values(answered: Answered) -> dict[str, Floats]:
    """What tells, [C, Q] each."""
    judged = answered.judged
    return {"": judged.over, "twin": judged.twin, "length": answered.tokens}


def _strata(answered: Answered) -> dict[str, NDArray[np.str_]]:
    """Of each scope, which replies are compared: those that share a value, [C, Q]."""
    kinds = [each.kind + " yes or no" * each.closed for each in answered.questions]
    conditions, alike = np.array(CONDITIONS)[:, None], np.full(answered.outcomes.shape, "")
    matched = np.char.add(np.char.add(conditions, " "), np.array(kinds))
    return dict(zip(SCOPES, (alike, np.char.add(alike, conditions), matched), strict=True))


def _told(
    answered: Answered, target: Target, scope: str, strata: NDArray[np.str_], weights: Floats
) -> Iterator[Measure]:
    held = target.held.ravel()
    true, weights = target.true.ravel()[held], weights[:, held]
    stem = stem_of(target, scope)
    note = f"{true.sum()} of {held.sum()} replies; {SCOPES[scope]} compared"
    areas = {
        name: auroc_within(values.ravel()[held], true, strata.ravel()[held], weights)
        for name, values in _values(answered).items()
    }
    for name, area in (areas | {"gain": areas[""] - areas["twin"]}).items():
        words = f"{PREDICTORS[name]} tells what is {target.words}"
        yield measure(f"{stem}.{name}" if name else stem, words, figure_of(area), note)


def share_wrong(answered: Answered, seed: int) -> Curves:
    """Share of wrong answers by fifth of the over-index, and of the twin's, within each condition."""
    weights = _weights(answered, seed)
    series = [
        _by_fifth(answered, target, name, weights)
        for target in targets(answered)
        if target.name in ("missed", "wrong.preference")
        for name in ("", "twin")
    ]
    return Curves(
        title="Wrong answers by over-index",
        caption="Replies of each condition in fifths, from the least to the greatest; 95 % intervals over questions. "
        "A level line: the over-index says nothing of the answer.",
        x="Fifth of the replies",
        y="Share of wrong answers",
        series=series,
    )


def _by_fifth(answered: Answered, target: Target, name: str, weights: Floats) -> Series:
    values = _values(answered)[name]
    ranks = values.argsort(axis=1, kind="stable").argsort(axis=1, kind="stable")
    fifth = ranks * _FIFTHS // values.shape[1]
    questions = np.broadcast_to(np.arange(values.shape[1]), values.shape).ravel()
    figures = []
    for each in range(_FIFTHS):
        here = ((fifth == each) & target.held).ravel()
        figures.append(share_of(target.true.ravel()[here], weights[:, here], questions[here]))
    value, low, high = ([each if np.isfinite(each) else None for each in part] for part in zip(*figures, strict=True))
    return Series(
        name=f"{PREDICTORS[name]}, {target.words}",
        x=[each + 1.0 for each in range(_FIFTHS)],
        y=value,
        low=low,
        high=high,
    )


def _weights(answered: Answered, seed: int) -> Floats:
    """Bootstrap weights of all replies, [1 + draws, C * Q]; a question is drawn with all its conditions."""
    return np.tile(cluster_weights(np.arange(len(answered.questions)), seed), len(answered.outcomes))
