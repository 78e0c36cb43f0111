"""``evaluate versions``: what a bank is worth on other versions of its model, as it is, realigned, and calibrated anew.

Every version reads the same texts and exchanges. Old probes, old probes behind a map that was fitted without labels,
and probes fitted on the version itself then score the parts of the corpus that none of them has seen.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from monitor.calibration.activations import Progress
from monitor.calibration.corpus import Corpus
from monitor.calibration.identity import check_identity
from monitor.calibration.statistics import Figure, figure_of
from monitor.evaluation.judge import RATE
from monitor.evaluation.results import Cell, Findings, Measure, Table, Verdict, measure
from monitor.evaluation.subject import Subject
from monitor.evaluation.versions.comparison import PROMPTS, Areas, Compared, Comparison
from monitor.evaluation.versions.transfer import Sample, draw_sample
from monitor.evaluation.versions.version import OpenVersion

Floats = NDArray[np.float64]

LOSS = 0.01
"""AUROC that the same bank may lose on a version it is valid for (row 15 of the battery)."""
SHARE = 0.98
"""Of a fresh bank's AUROC that a realigned one must keep (the same row)."""
_CHANCE = 0.5
SAME, REALIGNED, FRESH = "same bank valid", "valid after realignment", "recalibrate"
SHAPE = "another shape: only CKA, emotion map and fresh bank"

_SIZES = {False: (600, 48), True: (300, 16)}
"""Texts and users of the grid that every version reads, in full and in short."""
_SKILLS = {"emotions": "emotions, macro AUROC", "excess": "excessive against warranted replies, AUROC"}


def versions(
    subject: Subject, others: Sequence[OpenVersion], corpus: Corpus, *, quick: bool, seed: int, told: Progress
) -> Findings:
    """Compares versions of a model with the one a bank was calibrated on.

    Args:
        subject: The bank and its own model.
        others: The versions; each is loaded when its turn comes.
        corpus: What to read; the bank's own, so that a fresh calibration is like the bank's.
        quick: Whether to read less.
        seed: Of everything drawn.
        told: Told of conversations done and in all.

    Raises:
        SetupError: The model is not the bank's own, or a version cannot be loaded or has no chat template.
    """
    check_identity(subject.bank, subject.model, subject.tokenizer, fix="name the model the bank was calibrated on")
    sample = draw_sample(corpus, *_SIZES[quick], np.random.default_rng(seed))
    planned = (1 + len(others)) * len(sample.conversations)

    def after(models: int) -> Progress:
        return lambda done, total: told(models * total + done, planned)

    comparison = Comparison(subject, sample, seed, after(0))
    compared = [comparison.of(opened(), after(number)) for number, opened in enumerate(others, 1)]
    verdicts = [_verdict(each) for each in compared]
    return Findings(
        answer=_answer(verdicts),
        measures=[found for each in compared for found in _measures(each, sample)],
        verdicts=verdicts,
        tables=[_transfer_table(compared, sample, skill) for skill in _SKILLS] + [_likeness_table(compared)],
    )


def judged(change: dict[str, float], share: dict[str, float]) -> str:
    """The verdict on a version.

    Args:
        change: AUROC of the same bank on the new version less that on its own, by skill.
        share: What AUROC of the realigned bank exceeds chance by, as a share of the fresh one's, by skill.
    """
    if all(each >= -LOSS for each in change.values()):
        return SAME
    return REALIGNED if all(each >= SHARE for each in share.values()) else FRESH


def _verdict(found: Compared) -> Verdict:
    if found.moved is None:
        figure = (
            f"CKA {found.rows.figure.value:.3f}, emotion map {found.emotions.figure.value:.3f}; emotions by a fresh "
            f"bank {found.fresh.emotions[0]:.3f}, by the original on its own model {found.own.emotions[0]:.3f}"
        )
        return Verdict(what=found.name, verdict=SHAPE, figure=figure)
    change = {skill: _first(found.moved.same, skill) - _first(found.own, skill) for skill in _SKILLS}
    share = {skill: _share(_first(found.moved.realigned, skill), _first(found.fresh, skill)) for skill in _SKILLS}
    figure = "; ".join(
        f"{skill}: AUROC {change[skill]:+.3f} with the same bank, realigned {share[skill]:.1%} of fresh above chance"
        for skill in _SKILLS
    )
    if found.levels is not None:
        # AUROC knows nothing of levels, and alarms know little else.
        figure += f"; the same replies read {found.levels.shift.value:+.2f} standard deviations of the reference higher"
        if math.isfinite(found.levels.alarms.value):
            figure += f", {found.levels.alarms.value:.1%} of those without excess alarm"
    return Verdict(what=found.name, verdict=judged(change, share), figure=figure)


def _share(realigned: float, fresh: float) -> float:
    """Of what exceeds chance; NaN where a fresh bank knows nothing either."""
    return (realigned - _CHANCE) / (fresh - _CHANCE) if fresh > _CHANCE else float("nan")


def _answer(verdicts: Sequence[Verdict]) -> str:
    by_verdict: dict[str, list[str]] = {}
    for each in verdicts:
        by_verdict.setdefault(each.verdict, []).append(each.what)
    return "; ".join(f"{verdict}: {', '.join(names)}" for verdict, names in by_verdict.items()) + "."


# -- measures ---------------------------------------------------------------------------------------------------------


def _measures(found: Compared, sample: Sample) -> Iterator[Measure]:
    key, texts, replies = slug(found.name), int(sample.text.sum()), int((~sample.text).sum())
    yield measure(
        f"{key}.cka", f"{found.name}: linear CKA of rows", found.rows.figure,
        f"{texts} texts; rows of other texts {found.rows.null:.3f}",
    )  # fmt: skip
    yield measure(
        f"{key}.emotion_map", f"{found.name}: similarity of the map of emotions, Spearman", found.emotions.figure,
        f"{len(sample.names)} emotions, {texts} texts; rows of other texts {found.emotions.null:.3f}",
    )  # fmt: skip
    if found.directions is not None:
        yield measure(
            f"{key}.cosine", f"{found.name}: cosine of directions after alignment", found.directions.aligned,
            f"mean and interval over {len(sample.names)} emotions; without alignment "
            f"{_told(found.directions.as_they_are)}, aligned to rows of other texts {found.directions.null:.3f}",
        )  # fmt: skip
    if found.causal is not None:
        yield measure(
            f"{key}.causal", f"{found.name}: correlation of what pushes along families do", found.causal.figure,
            f"log-probabilities of the first token of {PROMPTS} replies; other families {found.causal.null:.3f}",
        )  # fmt: skip
    for skill in _SKILLS:
        yield from _skill_measures(found, skill, f"{texts} texts" if skill == "emotions" else f"{replies} replies")
    if found.levels is not None:
        yield measure(
            f"{key}.shift", f"{found.name}: affect of the same replies, new less old", found.levels.shift,
            f"{replies} replies by the same bank, in standard deviations of the reference",
        )  # fmt: skip
        yield measure(
            f"{key}.alarms", f"{found.name}: replies without excess that alarm, same bank", found.levels.alarms,
            f"{replies * 2 // 3} neutral and warranted replies; by the original {_told(found.levels.alarms_before)}"
            if math.isfinite(found.levels.alarms.value)
            else f"the bank's reference is too small for a p-value of {RATE:g}",
        )  # fmt: skip


def _skill_measures(found: Compared, skill: str, count: str) -> Iterator[Measure]:
    key, title = f"{slug(found.name)}.{skill}", f"{found.name}: {_SKILLS[skill]}"
    own, fresh = getattr(found.own, skill), getattr(found.fresh, skill)
    yield measure(f"{key}.fresh", f"{title}, fresh bank", figure_of(fresh), f"{count}, held out")
    if found.moved is None:
        return
    same, realigned, random = (getattr(each, skill) for each in found.moved)
    yield measure(
        f"{key}.same", f"{title}, same bank", figure_of(same), f"{count}, held out; on its own model {own[0]:.3f}"
    )
    yield measure(f"{key}.change", f"{title}, same bank less on its own model", figure_of(same - own), count)
    yield measure(
        f"{key}.realigned", f"{title}, realigned bank", figure_of(realigned),
        f"{count}, held out; turned to rows of other texts {_told(figure_of(random))}",
    )  # fmt: skip
    yield measure(f"{key}.share", f"{title}, realigned as a share of fresh", figure_of(realigned / fresh), count)


def slug(name: str) -> str:
    """A version's name as measures have it: lower case, underscores."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def _first(areas: Areas, skill: str) -> float:
    return float(getattr(areas, skill)[0])


def _told(figure: Figure) -> str:
    return f"{figure.value:.3f} ({figure.low:.3f} to {figure.high:.3f})"


# -- tables -----------------------------------------------------------------------------------------------------------


def _transfer_table(compared: Sequence[Compared], sample: Sample, skill: str) -> Table:
    count = f"{int(sample.text.sum())} texts" if skill == "emotions" else f"{int((~sample.text).sum())} replies"
    rows: list[list[Cell]] = []
    for found in compared:
        moved: list[float | None] = [_first(each, skill) for each in found.moved] if found.moved else [None] * 3
        same, realigned, random = moved
        rows.append(_row(found.name, _first(found.own, skill), same, realigned, _first(found.fresh, skill), random))
    return Table(
        title=f"Old probes on new rows: {_SKILLS[skill]}",
        caption=f"{count}, each scored by probes and maps that were fitted without its fold; maps see no label.",
        columns=[
            "version",
            "on its own model",
            "same bank",
            "realigned",
            "fresh bank",
            "turned to rows of other texts",
        ],
        rows=rows,
    )


def _likeness_table(compared: Sequence[Compared]) -> Table:
    rows: list[list[Cell]] = []
    for found in compared:
        directions, levels, causal = found.directions, found.levels, found.causal
        rows.append(
            _row(
                found.name,
                directions and directions.as_they_are.value,
                directions and directions.aligned.value,
                found.rows.figure.value,
                found.emotions.figure.value,
                causal and causal.figure.value,
                levels and levels.shift.value,
                levels and levels.alarms_before.value,
                levels and levels.alarms.value,
            )
        )
    return Table(
        title="How alike the versions are",
        caption=(
            "Cosine of emotion directions before and after Procrustes alignment; CKA of rows; Spearman of the map of "
            "emotions; correlation of what pushes along families do; what the same bank says of the same replies: "
            "shift of affect in standard deviations of the reference, and alarms on replies without excess."
        ),
        columns=["version", "cosine", "aligned", "CKA", "emotion map", "causal", "shift", "alarms, original", "alarms"],
        rows=rows,
    )


def _row(name: str, *figures: float | None) -> list[Cell]:
    return [name, *(None if figure is None or math.isnan(figure) else round(figure, 3) for figure in figures)]
