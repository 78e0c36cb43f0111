"""Emotions under one kind of perturbation, taken together: every figure is the mean of the emotions'."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from monitor.evaluation.robustness.perturbed import CLEAN, PADDING, Kind
from monitor.evaluation.robustness.presence import Draws, Presence, Study, figure_behind, known_beyond, verdict_of
from monitor.evaluation.robustness.recognition import DIRECTIONS, Floats

ABOVE = 0.99
"""Share of random directions that a probe must beat."""


class Averaged(NamedTuple):
    """Emotions under one kind of perturbation; figures are means of draws, [1 + draws]."""

    kind: str
    found: list[Presence]

    @property
    def about(self) -> bool:
        """Whether texts are only talked about."""
        return self.found[0].about

    @property
    def probe(self) -> Draws:
        """By the probes."""
        return _mean([each.probe for each in self.found])

    @property
    def twin(self) -> Draws:
        """By the text twin."""
        return _mean([each.twin for each in self.found])

    @property
    def loss(self) -> Floats:
        """Recall lost."""
        return self.probe.clean - self.probe.recall

    @property
    def kept(self) -> Floats:
        """Share of the clean recall kept."""
        return self.probe.recall / np.maximum(self.probe.clean, 1e-9)

    @property
    def beyond(self) -> Floats:
        """What the probes know beyond words."""
        return known_beyond(self.about, self.probe, self.twin)

    @property
    def verdict(self) -> str:
        """One word on them all."""
        return verdict_of(self.about, self.probe, self.twin)

    @property
    def figure(self) -> str:
        """The figure behind the verdict, in words."""
        return figure_behind(self.about, self.probe, self.twin, self.size)

    @property
    def shuffled(self) -> float:
        """AUROC that 95 % of shuffled labels stay below."""
        return float(np.mean([each.shuffled for each in self.found]))

    @property
    def above(self) -> int:
        """Emotions above 99 % of random directions."""
        return sum(each.above >= ABOVE for each in self.found)

    @property
    def nulls(self) -> str:
        """Text twin and nulls, in words."""
        return (
            f"text twin {self.twin.auroc[0]:.3f}; 95 % of shuffled labels below {self.shuffled:.3f}; {self.above} of "
            f"{len(self.found)} emotions above 99 % of {DIRECTIONS} random directions; {self.size}"
        )

    @property
    def recalls(self) -> str:
        """Recalls, in words."""
        probe, twin = self.probe, self.twin
        return (
            f"recall {probe.clean[0]:.2f} clean, {probe.recall[0]:.2f} perturbed; text twin {twin.clean[0]:.2f}, "
            f"{twin.recall[0]:.2f}; {self.size}"
        )

    @property
    def size(self) -> str:
        """What was read, in words."""
        texts, neutral = (round(np.mean([getattr(each, part) for each in self.found])) for part in ("texts", "neutral"))
        return f"mean of {len(self.found)} emotions, {texts} texts each against {neutral} neutral ones"


class Outcome(NamedTuple):
    """What was read of all texts.

    Attributes:
        clean: As they come.
        families: Under each family of perturbations.
        lengths: Under padding of each length.
    """

    clean: Averaged
    families: list[Averaged]
    lengths: list[Averaged]

    @property
    def perturbed(self) -> list[Presence]:
        """Every emotion under every family."""
        return [each for averaged in self.families for each in averaged.found]


def outcome(study: Study, kinds: Sequence[Kind]) -> Outcome:
    """Every emotion as it comes, under each family and under each length of padding."""
    families = []
    for family in dict.fromkeys(kind.family for kind in kinds):
        held = [kind for kind in kinds if kind.family == family]
        families.append(_under(study, family, [kind.name for kind in held], about=held[0].about))
    lengths = sorted((kind.name for kind in kinds if kind.family == PADDING), key=times_of)
    return Outcome(_under(study, CLEAN, [CLEAN]), families, [_under(study, name, [name]) for name in lengths])


def by_family(averaged: Averaged, family_of: Mapping[str, str]) -> dict[str, Averaged]:
    """The bank's families of which several emotions were tried, each taken together; by name and emotions.

    Args:
        averaged: Emotions under one kind of perturbation.
        family_of: Family of each emotion.
    """
    held: dict[str, list[Presence]] = {}
    for each in averaged.found:
        held.setdefault(family_of[each.emotion], []).append(each)
    return {
        f"{family} ({', '.join(each.emotion for each in found)})": Averaged(averaged.kind, found)
        for family, found in held.items()
        if len(found) > 1
    }


def times_of(kind: str) -> int:
    """How many times a text's length a kind of padding has."""
    return int(kind.removeprefix(f"{PADDING}_").removesuffix("x"))


def _under(study: Study, kind: str, kinds: Collection[str], *, about: bool = False) -> Averaged:
    return Averaged(kind, [study.of(emotion, kind, kinds, about=about) for emotion in study.emotions])


def _mean(draws: Sequence[Draws]) -> Draws:
    mean: Callable[..., Floats] = np.mean
    return Draws(*(mean(parts, axis=0) for parts in zip(*draws, strict=True)))
