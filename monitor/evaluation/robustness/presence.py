"""Is an emotion still found where a text is perturbed, and would words alone do as well?

Every figure has an interval over pairs of texts and two nulls: labels shuffled within pairs, and random directions.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from monitor.calibration.lines import NEUTRAL
from monitor.calibration.statistics import cluster_weights, figure_of, weighted_auroc
from monitor.evaluation.robustness.perturbed import CLEAN, Case, Items
from monitor.evaluation.robustness.recognition import Read

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

HOLDS, TASK_SHAPED, TEXT_EQUIVALENT, COLLAPSES = "holds", "task-shaped", "text-equivalent", "collapses"
VERDICTS = (HOLDS, TASK_SHAPED, TEXT_EQUIVALENT, COLLAPSES)
FALSE_ALARMS = 0.05
"""Rate on clean neutral texts that thresholds are set to."""
MOST_LOSS = 0.10
"""Recall an emotion may lose and hold: the bar of row 9."""
LEAST_KEPT = 0.50
"""Share of the clean recall below which it collapses: the bar of row 10."""
MOST_ALARMS = 2 * FALSE_ALARMS
"""False alarms an emotion may raise and hold: twice the base, the bar of row 8."""
_FLIPS = 1000


class Draws(NamedTuple):
    """What one reader makes of an emotion; each on the sample (first) and on bootstrap samples, [1 + draws].

    Attributes:
        auroc: Texts of the emotion against neutral ones under the same perturbations.
        clean: Recall on the same texts as they come.
        recall: Recall on the perturbed texts.
        alarms: False alarms on perturbed neutral texts.
    """

    auroc: Floats
    clean: Floats
    recall: Floats
    alarms: Floats


class Presence(NamedTuple):
    """An emotion under kinds of perturbation.

    Attributes:
        emotion: Its name.
        kind: What it was read under.
        about: Whether texts were only talked about: then what fires is a false alarm.
        texts: Texts of the emotion.
        neutral: Neutral texts.
        probe: By the probe.
        twin: By the text twin.
        shuffled: AUROC that 95 % of shuffled labels stay below.
        chance: Share of shuffled labels that reach the probe's AUROC.
        above: Share of random directions that stay below it, whichever way they point.
    """

    emotion: str
    kind: str
    about: bool
    texts: int
    neutral: int
    probe: Draws
    twin: Draws
    shuffled: float
    chance: float
    above: float

    @property
    def loss(self) -> Floats:
        """Recall lost."""
        return self.probe.clean - self.probe.recall

    @property
    def beyond(self) -> Floats:
        """What the probe knows beyond words."""
        return known_beyond(self.about, self.probe, self.twin)

    @property
    def verdict(self) -> str:
        """One word."""
        return verdict_of(self.about, self.probe, self.twin)

    @property
    def figure(self) -> str:
        """The figure behind the verdict, in words."""
        return figure_behind(self.about, self.probe, self.twin, f"{self.texts} texts against {self.neutral}")


def known_beyond(about: bool, probe: Draws, twin: Draws) -> Floats:
    """What the probe knows beyond words: AUROC less the twin's; where texts are talked about, alarms spared."""
    return twin.recall - probe.recall if about else probe.auroc - twin.auroc


def verdict_of(about: bool, probe: Draws, twin: Draws) -> str:
    """One word.

    - ``collapses``: fewer than half of the texts found clean are found, or the AUROC's interval holds 0.5, or as few
      are found clean as false alarms may be. Of texts that are only talked about: at least half as many fire as
      where the writer has the emotion.
    - ``text-equivalent``: else, the text twin does as well; the lower bound of ``beyond`` is not above 0.
    - ``holds``: else, at most 10 points of recall are lost, and at most 10 % of the neutral texts under the same
      perturbations fire. Of texts that are only talked about: at most 10 % fire.
    - ``task-shaped``: found clean, and shaped by what the text is put to: what is left.
    """
    recall, clean, kept = probe.recall[0], probe.clean[0], LEAST_KEPT * probe.clean[0]
    unfound = clean <= MOST_ALARMS or not figure_of(probe.auroc).low > 0.5  # noqa: PLR2004
    if recall >= kept if about else recall < kept or unfound:
        return COLLAPSES
    if not figure_of(known_beyond(about, probe, twin)).low > 0:
        return TEXT_EQUIVALENT
    if about:
        return HOLDS if recall <= MOST_ALARMS else TASK_SHAPED
    return HOLDS if clean - recall <= MOST_LOSS and probe.alarms[0] <= MOST_ALARMS else TASK_SHAPED


def figure_behind(about: bool, probe: Draws, twin: Draws, size: str) -> str:
    """The figure behind a verdict, in words; so is ``size``, what was read."""
    if about:
        return (
            f"{probe.recall[0]:.0%} fire where they are only talked about, {probe.clean[0]:.0%} as they "
            f"come; text twin {twin.recall[0]:.0%}, {twin.clean[0]:.0%}; {size}"
        )
    area = figure_of(probe.auroc)
    return (
        f"AUROC {area.value:.2f} ({area.low:.2f} to {area.high:.2f}), text twin {twin.auroc[0]:.2f}; recall "
        f"{probe.clean[0]:.0%} clean, {probe.recall[0]:.0%} perturbed; {probe.alarms[0]:.0%} of "
        f"perturbed neutral texts fire; {size}"
    )


class Limits(NamedTuple):
    """Scores above which emotions count as found, [E]: of clean neutral texts ``FALSE_ALARMS`` exceed them."""

    probes: Floats
    twin: Floats


class Study:
    """What was read of all cases, emotion by emotion and kind by kind.

    Args:
        items: The texts.
        cases: The cases, [M].
        read: What the readers made of each.
        emotions: Names of the emotions, in the order of the readers' columns.
        signs: Sign of each one's valence.
        seed: Of intervals and shuffles.
    """

    def __init__(
        self,
        items: Items,
        cases: Sequence[Case],
        read: Read,
        emotions: Sequence[str],
        signs: Mapping[str, int],
        seed: int,
    ) -> None:
        self.items, self.cases, self.read, self.emotions = items, list(cases), read, list(emotions)
        self._signs, self._seed = signs, seed
        self._kind = np.array([case.kind for case in cases])
        self._item = np.array([case.item for case in cases])
        self._sign = np.array([case.sign for case in cases])
        self._emotion = np.array([items.texts[case.item].emotion for case in cases])
        names, self._pair = np.unique([items.texts[case.item].pair for case in cases], return_inverse=True)
        self._weights = cluster_weights(np.arange(len(names)), seed)
        base = (self._kind == CLEAN) & (self._emotion == NEUTRAL)
        self.limits = Limits(*(_limits(scores[base]) for scores in (read.probes, read.twin)))

    def of(self, emotion: str, kind: str, kinds: Collection[str] = (), *, about: bool = False) -> Presence:
        """One emotion under one kind of perturbation.

        Args:
            emotion: Its name.
            kind: What to call the kind.
            kinds: Kinds to take together; none: the one alone.
            about: Whether texts are then only talked about.
        """
        sign = self._sign == self._signs[emotion]
        here = sign & np.isin(self._kind, sorted(kinds or {kind}))
        texts, neutral = (np.flatnonzero(here & (self._emotion == name)) for name in (emotion, NEUTRAL))
        plain = sign & (self._kind == CLEAN)
        base = np.flatnonzero(plain & (self._emotion == NEUTRAL))
        clean_of = {int(self._item[row]): row for row in np.flatnonzero(plain)}
        clean = np.array([clean_of[int(item)] for item in self._item[texts]])
        column = self.emotions.index(emotion)
        probe, twin = (
            self._draws(scores[:, column], base, clean, texts, neutral) for scores in (self.read.probes, self.read.twin)
        )
        real, shuffled = self._shuffled(self.read.probes[:, column], texts, neutral)
        against = _either_way(self.read.random[texts], self.read.random[neutral])
        return Presence(
            emotion, kind, about, len(texts), len(neutral), probe, twin,
            shuffled=float(np.quantile(shuffled, 0.95)),
            chance=float((shuffled >= real).mean()),
            above=float((against < probe.auroc[0]).mean()),
        )  # fmt: skip

    def _draws(self, scores: Floats, base: Ints, clean: Ints, texts: Ints, neutral: Ints) -> Draws:
        limit = _thresholds(scores[base], self._weights[:, self._pair[base]])
        both = np.concatenate([texts, neutral])
        area = weighted_auroc(scores[both], np.arange(len(both)) < len(texts), self._weights[:, self._pair[both]])
        shares = (_share_above(scores[at], limit, self._weights[:, self._pair[at]]) for at in (clean, texts, neutral))
        return Draws(area, *shares)

    def _shuffled(self, scores: Floats, texts: Ints, neutral: Ints) -> tuple[float, Floats]:
        """AUROC of texts against the neutral ones of their pairs, and the same with labels swapped within pairs."""
        own_of = {(self._pair[row], self._kind[row]): row for row in neutral}
        own = np.array([own_of[self._pair[row], self._kind[row]] for row in texts])
        both = scores[np.concatenate([texts, own])]
        wins = (both[:, None] > both) + 0.5 * (both[:, None] == both)
        swapped = np.random.default_rng(self._seed).random((1 + _FLIPS, len(texts))) < 0.5  # noqa: PLR2004 - a coin
        swapped[0] = False
        positive = np.concatenate([~swapped, swapped], axis=1)
        areas: Floats = ((positive @ wins) * ~positive).sum(axis=1) / len(texts) ** 2
        return float(areas[0]), areas[1:]


def _limits(scores: Floats) -> Floats:
    once = np.ones((1, len(scores)))
    return np.array([_thresholds(column, once)[0] for column in scores.T])


def _thresholds(scores: Floats, weights: Floats) -> Floats:
    """Score that a share of ``FALSE_ALARMS`` of weighted samples exceeds at most, for each set of weights, [B]."""
    order = np.argsort(scores)
    below = np.cumsum(weights[:, order], axis=1)
    # The small number keeps sums that should be equal from missing each other.
    at = np.argmax(below >= (1 - FALSE_ALARMS) * below[:, -1:] - 1e-9, axis=1)
    limits: Floats = scores[order][at]
    return limits


def _share_above(scores: Floats, limits: Floats, weights: Floats) -> Floats:
    """Weighted share of scores above each limit, [B]; NaN where all weights are 0."""
    with np.errstate(invalid="ignore"):
        share: Floats = (weights * (scores > limits[:, None])).sum(axis=1) / weights.sum(axis=1)
    return share


def _either_way(positive: Floats, negative: Floats) -> Floats:
    """AUROC of each column, [N, D] and [M, D], of the way it points or the other, whichever is better."""
    ranks = np.concatenate([positive, negative]).argsort(axis=0).argsort(axis=0) + 1.0
    count = len(positive)
    area = (ranks[:count].mean(axis=0) - (count + 1) / 2) / len(negative)
    best: Floats = np.maximum(area, 1 - area)
    return best
