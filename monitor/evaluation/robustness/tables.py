"""Tables and curves of the robustness suite."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from monitor.calibration.statistics import figure_of
from monitor.evaluation.results import Cell, Curves, Series, Table
from monitor.evaluation.robustness.averaged import Averaged, Outcome, by_family, times_of
from monitor.evaluation.robustness.hiding import Hidden
from monitor.evaluation.robustness.presence import FALSE_ALARMS, Presence
from monitor.evaluation.robustness.recognition import Floats
from monitor.evaluation.robustness.suffix import WORDS

_VERDICTS = """\
Verdict and AUROC against neutral texts under the same perturbation; where texts are only talked about, the share of
emotional texts that fire. holds: at most 10 points of recall are lost, and at most 10 % of the neutral texts fire;
task-shaped: more than that; text-equivalent: words alone do as well; collapses: under half of the clean recall, or an
AUROC whose interval holds 0.5. Talked about: holds up to 10 %; collapses from half of what fires as it comes.
A family is the mean of its emotions, with the interval of that."""


def tables_of(outcome: Outcome, hidden: Sequence[Hidden], family_of: Mapping[str, str]) -> list[Table]:
    """The grid of verdicts, figures by kind, figures by emotion and kind, and suffixes.

    Args:
        outcome: What was read.
        hidden: What suffixes hid.
        family_of: Family of each emotion.
    """
    return [_grid(outcome, family_of), _by_kind(outcome), _by_emotion(outcome), *_suffixes(hidden)]


def curves_of(outcome: Outcome, hidden: Sequence[Hidden]) -> list[Curves]:
    """Recall by padding, and texts found by steps of the search for suffixes."""
    return [*_padding(outcome.lengths), *_steps(hidden)]


def _grid(outcome: Outcome, family_of: Mapping[str, str]) -> Table:
    rows = [(averaged, by_family(averaged, family_of)) for averaged in (outcome.clean, *outcome.families)]
    return Table(
        title="Emotions and families under perturbation",
        caption=_VERDICTS.replace("\n", " "),
        columns=["", *(each.emotion for each in outcome.clean.found), *rows[0][1]],
        rows=[
            [averaged.kind, *map(_cell, averaged.found), *map(_cell, families.values())] for averaged, families in rows
        ],
    )


def _cell(each: Presence | Averaged) -> str:
    figure = f"{each.probe.recall[0]:.0%}" if each.about else f"{each.probe.auroc[0]:.2f}"
    return f"{each.verdict} {figure}"


def _by_kind(outcome: Outcome) -> Table:
    columns = [
        "", "AUROC", "text twin", "recall clean", "recall", "recall of the twin clean", "recall of the twin",
        "neutral texts that fire", "the same by the twin", "emotions above 99 % of random directions",
        "95 % of shuffled labels below",
    ]  # fmt: skip
    return Table(
        title="By kind of perturbation",
        caption=f"Means over emotions, at {FALSE_ALARMS:.0%} false alarms on clean neutral texts; 95 % over pairs.",
        columns=columns,
        rows=[_kind_row(each) for each in (outcome.clean, *outcome.families, *outcome.lengths)],
    )


def _kind_row(averaged: Averaged) -> list[Cell]:
    probe, twin = averaged.probe, averaged.twin
    return [
        averaged.kind, _told(probe.auroc), _two(twin.auroc), _two(probe.clean), _told(probe.recall), _two(twin.clean),
        _two(twin.recall), _two(probe.alarms), _two(twin.alarms), averaged.above, round(averaged.shuffled, 2),
    ]  # fmt: skip


def _by_emotion(outcome: Outcome) -> Table:
    columns = [
        "", "verdict", "AUROC", "text twin", "beyond words", "recall clean", "recall", "neutral texts that fire",
        "recall of the twin", "p by shuffled labels", "share of random directions below", "texts", "neutral texts",
    ]  # fmt: skip
    return Table(
        title="Every emotion under every kind of perturbation",
        caption="95 % intervals over pairs of texts; labels are shuffled within pairs.",
        columns=columns,
        rows=[_emotion_row(each) for each in (*outcome.clean.found, *outcome.perturbed)],
    )


def _emotion_row(each: Presence) -> list[Cell]:
    probe = each.probe
    return [
        f"{each.emotion}: {each.kind}", each.verdict, _told(probe.auroc), _told(each.twin.auroc), _told(each.beyond),
        _two(probe.clean), _told(probe.recall), _two(probe.alarms), _two(each.twin.recall), round(each.chance, 3),
        round(each.above, 3), each.texts, each.neutral,
    ]  # fmt: skip


def _suffixes(hidden: Sequence[Hidden]) -> list[Table]:
    by_emotion: dict[str, list[Hidden]] = {}
    for each in hidden:
        by_emotion.setdefault(each.emotion, []).append(each)
    rows = [_suffix_row(emotion, held) for emotion, held in by_emotion.items()]
    caption = (
        f"Of texts that the probe finds as they come, how many are found with {WORDS} ordinary words after them, read "
        "anew. Words are searched by gradient against the probe until the text is not found."
    )
    columns = [
        "",
        "random words",
        "chosen words",
        "twin, as it comes",
        "twin, chosen words",
        "steps, median",
        "such as",
    ]
    return [Table(title="Words that hide an emotion", caption=caption, columns=columns, rows=rows)] if rows else []


def _suffix_row(emotion: str, held: Sequence[Hidden]) -> list[Cell]:
    def of(found: Iterable[bool]) -> str:
        return f"{sum(found)} of {len(held)}"

    steps = float(np.median([len(each.steps) - 1 for each in held]))
    return [
        emotion, of(each.probe[0] for each in held), of(each.probe[1] for each in held),
        of(each.twin[0] for each in held), of(each.twin[2] for each in held), steps, held[0].suffix.found.strip(),
    ]  # fmt: skip


def _padding(lengths: Sequence[Averaged]) -> list[Curves]:
    if not lengths:
        return []
    x = [float(times_of(each.kind)) for each in lengths]
    figures = [figure_of(each.kept) for each in lengths]
    low, high = [each.low for each in figures], [each.high for each in figures]
    twin = [float(each.twin.recall[0] / max(each.twin.clean[0], 1e-9)) for each in lengths]
    alarms = [float(each.probe.alarms[0]) for each in lengths]
    return [
        Curves(
            title="Neutral padding",
            caption="Share of the clean recall that is kept among neutral sentences of so many times a text's length.",
            x="times the text's length",
            y="share of the clean recall",
            series=[
                Series(name="probes", x=x, y=[each.value for each in figures], low=low, high=high),
                Series(name="text twin", x=x, y=twin),
                Series(name="neutral texts that fire", x=x, y=alarms, faint=True),
            ],
        )
    ]


def _steps(hidden: Sequence[Hidden]) -> list[Curves]:
    if not hidden:
        return []
    steps = max(len(each.steps) for each in hidden)
    # A search that has hidden its text stays where it ended.
    still = np.array([[each.steps[min(step, len(each.steps) - 1)] for step in range(steps)] for each in hidden])
    x = [float(step) for step in range(steps)]
    return [
        Curves(
            title="Words searched to hide an emotion",
            caption=f"Share of texts still found after so many steps, each of which replaces one of {WORDS} words.",
            x="steps",
            y="share of texts still found",
            series=[
                Series(name="chosen words", x=x, y=still.mean(axis=0).tolist()),
                Series(name="random words", x=x, y=[float(still[:, 0].mean())] * steps, faint=True),
            ],
        )
    ]


def _told(draws: Floats) -> str:
    figure = figure_of(draws)
    return f"{figure.value:.2f} ({figure.low:.2f} to {figure.high:.2f})"


def _two(draws: Floats) -> float:
    return round(float(draws[0]), 2)
