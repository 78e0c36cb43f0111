"""The figures of the robustness suite by id, as files of bars name them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from monitor.calibration.statistics import figure_of, share_figure
from monitor.evaluation.results import Measure, measure
from monitor.evaluation.robustness.averaged import ABOVE, Averaged, Outcome
from monitor.evaluation.robustness.hiding import Hidden
from monitor.evaluation.robustness.perturbed import PADDING
from monitor.evaluation.robustness.presence import FALSE_ALARMS, MOST_ALARMS, VERDICTS, Presence
from monitor.evaluation.robustness.recognition import DIRECTIONS
from monitor.evaluation.robustness.suffix import WORDS

_ROW_10 = ("paraphrase", PADDING)


def measures_of(outcome: Outcome, hidden: Sequence[Hidden]) -> list[Measure]:
    """Measures of texts as they come, of each family and length of padding, of suffixes and verdicts."""
    return [
        *_recognition(outcome.clean),
        *(each for averaged in outcome.families for each in _family(averaged)),
        *(_kept(averaged) for averaged in outcome.lengths),
        *_suffixes(hidden),
        *_verdicts(outcome.perturbed),
    ]


def _recognition(clean: Averaged) -> list[Measure]:
    better = ", ".join(each.emotion for each in clean.found if figure_of(each.beyond).low > 0)
    least = min(clean.found, key=lambda each: each.above)
    share = sum(each.above >= ABOVE for each in clean.found) / len(clean.found)
    what = "situations that carry an emotion"
    return [
        measure("recognition.auroc", f"{what}: AUROC against neutral ones", figure_of(clean.probe.auroc), clean.nulls),
        measure(
            "recognition.recall", f"{what}: recall at {FALSE_ALARMS:.0%} false alarms", figure_of(clean.probe.clean),
            f"text twin {clean.twin.clean[0]:.2f}; {clean.size}",
        ),
        measure(
            "recognition.twin_difference", f"{what}: AUROC less the text twin's", figure_of(clean.beyond),
            f"surely better than words: {better or 'none'}",
        ),
        measure(
            "recognition.above_random", f"{what}: above 99 % of {DIRECTIONS} variance-matched directions", share,
            f"least: {least.emotion}, above {least.above:.1%}",
        ),
    ]  # fmt: skip


def _family(averaged: Averaged) -> list[Measure]:
    kind, probe, twin = averaged.kind, averaged.probe, averaged.twin
    row = "row10" if kind in _ROW_10 else "row9"
    if averaged.about:
        return [
            measure(
                f"{row}.{kind}.false_alarms", f"{kind}: emotional texts only talked about that fire",
                figure_of(probe.recall),
                f"as they come {probe.clean[0]:.2f}; text twin {twin.recall[0]:.2f}, {twin.clean[0]:.2f}; neutral "
                f"texts under the same {probe.alarms[0]:.2f}; {averaged.size}",
            )
        ]  # fmt: skip
    found = probe.clean[0] > MOST_ALARMS
    lost = measure(
        f"{row}.{kind}.recall_loss", f"{kind}: recall lost", figure_of(averaged.loss) if found else None,
        averaged.recalls if found else f"not found as they come: {averaged.recalls}",
    )  # fmt: skip
    return [
        _kept(averaged) if kind in _ROW_10 else lost,
        measure(
            f"{row}.{kind}.auroc", f"{kind}: AUROC against neutral texts under the same", figure_of(probe.auroc),
            averaged.nulls,
        ),
        measure(
            f"{row}.{kind}.twin_difference", f"{kind}: AUROC less the text twin's", figure_of(averaged.beyond),
            averaged.size,
        ),
        measure(
            f"{row}.{kind}.neutral_alarms", f"{kind}: neutral texts that fire", figure_of(probe.alarms),
            f"{FALSE_ALARMS:.0%} as they come; text twin {twin.alarms[0]:.2f}; {averaged.size}",
        ),
    ]  # fmt: skip


def _kept(averaged: Averaged) -> Measure:
    return measure(
        f"row10.{averaged.kind}.recall_kept", f"{averaged.kind}: share of the clean recall kept",
        figure_of(averaged.kept), averaged.recalls,
    )  # fmt: skip


def _suffixes(hidden: Sequence[Hidden]) -> list[Measure]:
    texts = np.array([each.item for each in hidden])
    random, chosen = (np.array([each.probe[at] for each in hidden], bool) for at in (0, 1))
    plain, after = (np.array([each.twin[at] for each in hidden], bool) for at in (0, 2))
    size = f"{len(hidden)} texts that the probe finds as they come" if hidden else "not run: no such text or no words"
    null = f"{WORDS} random words {random.mean():.2f}; {size}" if hidden else size
    return [
        measure(
            "row10.suffix.recall_kept", f"{WORDS} words chosen against the probe: share still found",
            share_figure(chosen, texts), null,
        ),
        measure(
            "row10.suffix.random_kept", f"{WORDS} random words: share still found", share_figure(random, texts), size
        ),
        measure(
            "row10.suffix.twin_kept", f"{WORDS} words chosen against the probe: share the text twin still finds",
            share_figure(after[plain], texts[plain]), f"{plain.sum()} texts that the text twin finds as they come",
        ),
    ]  # fmt: skip


def _verdicts(perturbed: Sequence[Presence]) -> list[Measure]:
    counts = Counter(each.verdict for each in perturbed)
    return [
        measure(
            f"verdicts.{verdict.replace('-', '_')}", f"emotions under perturbation: share of {verdict!r}",
            counts[verdict] / len(perturbed), f"{counts[verdict]} of {len(perturbed)}",
        )
        for verdict in VERDICTS
    ]  # fmt: skip
