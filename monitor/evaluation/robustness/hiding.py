"""Words that hide an emotion: how much of what was found is still found once they stand after the texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from monitor.calibration.activations import Progress
from monitor.evaluation.robustness.perturbed import CLEAN, Case, conversation
from monitor.evaluation.robustness.presence import Study
from monitor.evaluation.robustness.recognition import Read, Reader
from monitor.evaluation.robustness.suffix import Searcher, Suffix


class Hidden(NamedTuple):
    """One text that the probe finds as it comes, and what suffixes make of it.

    Attributes:
        item: Index of the text.
        emotion: Its emotion.
        suffix: What was searched.
        steps: Whether the search still found it, at the random words it began with and after each step.
        probe: Whether the probe finds it after the random and after the chosen words, the texts read anew.
        twin: Whether the text twin finds it as it comes, after the random and after the chosen words.
    """

    item: int
    emotion: str
    suffix: Suffix
    steps: list[bool]
    probe: list[bool]
    twin: list[bool]


def hide(
    searcher: Searcher, reader: Reader, study: Study, searches: int, rng: np.random.Generator, progress: Progress
) -> list[Hidden]:
    """Searches suffixes for texts that the probe finds as they come.

    Args:
        searcher: Searches.
        reader: Reads texts.
        study: What was read so far.
        searches: Texts of each emotion at most.
        rng: Draws texts and words.
        progress: Told of searches done and in all.

    Returns:
        Nothing where the tokenizer has no ordinary words.
    """
    if not len(searcher.words):
        return []
    chosen = [
        (study.cases[row], column)
        for column, emotion in enumerate(study.emotions)
        for row in rng.permutation(_found(study, emotion, column))[:searches]
    ]
    made: list[tuple[Suffix, list[bool]]] = []
    for case, column in chosen:
        position = study.items.texts[case.item].position
        limit = reader.standardised(study.limits.probes[column], column, position)
        text = conversation(study.items, case)
        suffix = searcher.search(text, position, reader.emotions[column], limit, rng)
        made.append((suffix, [score > limit for score in suffix.scores]))
        progress(len(made), len(chosen))
    if not made:
        return []
    cases = [case for case, _ in chosen]
    again = [
        _read(reader, study, cases, words)
        for words in ([""] * len(made), [suffix.start for suffix, _ in made], [suffix.found for suffix, _ in made])
    ]
    return [
        Hidden(
            case.item, study.emotions[column], suffix, steps,
            [bool(read.probes[number, column] > study.limits.probes[column]) for read in again[1:]],
            [bool(read.twin[number, column] > study.limits.twin[column]) for read in again],
        )
        for number, ((case, column), (suffix, steps)) in enumerate(zip(chosen, made, strict=True))
    ]  # fmt: skip


def _found(study: Study, emotion: str, column: int) -> list[int]:
    """Cases of an emotion's clean texts whose probe fires."""
    return [
        row
        for row, case in enumerate(study.cases)
        if case.kind == CLEAN
        and study.items.texts[case.item].emotion == emotion
        and study.read.probes[row, column] > study.limits.probes[column]
    ]


def _read(reader: Reader, study: Study, cases: Sequence[Case], suffixes: Sequence[str]) -> Read:
    conversations = [conversation(study.items, case, suffix) for case, suffix in zip(cases, suffixes, strict=True)]
    return reader.read(conversations, np.array([study.items.texts[case.item].position for case in cases]))
