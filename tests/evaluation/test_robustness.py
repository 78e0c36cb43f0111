"""The robustness suite, whole, on a tiny model whose emotions are told by signs; and fakes planted in it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_corpus import make_corpus, make_model, read, words, write_corpus

from monitor.calibration.calibrate import calibrate
from monitor.calibration.corpus import Corpus
from monitor.evaluation.battery.certify import certified
from monitor.evaluation.battery.evidence import Evidence
from monitor.evaluation.results import Findings, Measure
from monitor.evaluation.robustness.perturbed import Item, Items
from monitor.evaluation.robustness.suite import robustness
from monitor.evaluation.subject import Subject
from monitor.probes.bank import Bank

SIGNS = {"joy": "!", "fear": "*", "neutral": ""}
PERTURBATIONS = [
    {"id": "style-a", "family": "style", "expect": "same", "before": "aaaa "},
    {"id": "style-b", "family": "style", "expect": "same", "after": " bbbb"},
    {"id": "quoting-a", "family": "quoting", "expect": "about", "before": "cccc ", "after": " dddd"},
    {"id": "suppression-a", "family": "suppression", "expect": "same", "system": "eeee"},
    {"id": "padding-1", "family": "padding", "expect": "same", "pad": {"where": "after", "times": 1}},
    {"id": "padding-2", "family": "padding", "expect": "same", "pad": {"where": "before", "times": 2}},
]  # fmt: skip
EMOTIONS = ("joy", "fear", "neutral")


def make_items(pairs: int = 12) -> Items:
    """Pairs of texts of random words, each emotion told by its sign."""
    rng = np.random.default_rng(3)
    texts = [
        Item(f"pair {number}", emotion, number % 2, f"{words(rng)} {12 * SIGNS[emotion]}".strip())
        for number in range(pairs)
        for emotion in EMOTIONS
    ]
    return Items(texts, PERTURBATIONS, ["ffff gggg.", "hhhh iiii."])


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """A corpus of 24 topics an emotion."""
    rng, files = np.random.default_rng(7), make_corpus()
    signs = SIGNS | {"affection": "?", "distress": "#"}
    files["texts.jsonl"] = [
        {
            "emotion": name, "register": "chat", "topic": f"topic {number}", "keyword_free": True,
            "text": f"{words(rng)} {12 * sign}".strip(),
        }
        for name, sign in signs.items()
        for number in range(24)
    ]  # fmt: skip
    return read(write_corpus(tmp_path_factory.mktemp("corpus"), files))


@pytest.fixture(scope="module")
def subject(corpus: Corpus, tiny_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """The tiny model and the bank calibrated for it on the corpus."""
    model, cache = make_model(len(tiny_tokenizer)), tmp_path_factory.mktemp("cache")
    made = calibrate("tiny", lambda: (model, tiny_tokenizer), corpus, cache / "activations", layers=(2,))
    return Subject("tiny", model, tiny_tokenizer, certified(made, Evidence(made)), cache)


def run(subject: Subject, corpus: Corpus, *, quick: bool = False, items: Items | None = None) -> Findings:
    """The suite's findings."""
    return robustness(
        subject, corpus, items=items or make_items(), quick=quick, seed=0, told=lambda _done, _whole: None
    )  # fmt: skip


def by_id(findings: Findings) -> dict[str, Measure]:
    """Measures by id."""
    return {each.id: each for each in findings.measures}


@pytest.fixture(scope="module")
def found(subject: Subject, corpus: Corpus) -> Findings:
    """What the whole suite finds."""
    return run(subject, corpus)


def with_direction(subject: Subject, emotion: str, direction: Any, cache: Path) -> Subject:
    """The same with another direction for one emotion."""
    bank, directions = subject.bank, subject.bank.tensors.directions.copy()
    index = [each.name for each in bank.card.emotions].index(emotion)
    directions[:, index] = direction / np.linalg.norm(direction)
    tensors = dataclasses.replace(bank.tensors, directions=directions.astype(np.float32))
    return Subject("fake", subject.model, subject.tokenizer, Bank(bank.card, tensors), cache)


class TestSuite:
    """The whole."""

    def test_every_row_and_family_has_its_measure(self, found: Findings) -> None:
        """Bars name measures by these ids, each of which there is once."""
        names = [each.id for each in found.measures]
        assert len(set(names)) == len(names)
        assert {
            "row1a", "row1b", "row2", "row3", "row4", "row5", "row6", "row7a", "row7e", "row8", "row11", "row12b",
            "row9.style.recall_loss", "row9.suppression.recall_loss", "row9.quoting.false_alarms",
            "row9.suppression_with_style.recall_loss", "row10.padding.recall_kept", "row10.padding_2x.recall_kept",
            "row10.suffix.recall_kept", "recognition.above_random", "verdicts.collapses",
        } <= set(names)  # fmt: skip

    def test_values_lie_in_their_intervals(self, found: Findings) -> None:
        """Low <= value <= high wherever there is an interval."""
        for each in found.measures:
            if each.low is not None:
                assert each.low <= each.value <= each.high, each

    def test_every_emotion_has_a_verdict_under_every_family(self, found: Findings) -> None:
        """One word and its figure for each, the clean texts included."""
        kinds = ("clean", "style", "quoting", "suppression", "padding", "suppression_with_style")
        assert {each.what for each in found.verdicts} == {
            f"{name}: {kind}" for name in ("joy", "fear") for kind in kinds
        }
        assert {each.verdict for each in found.verdicts} <= {"holds", "task-shaped", "text-equivalent", "collapses"}
        assert all(each.figure for each in found.verdicts)

    def test_the_same_seed_finds_the_same(self, found: Findings, subject: Subject, corpus: Corpus) -> None:
        """Perturbations, words and intervals are drawn from the seed alone."""
        assert run(subject, corpus) == found

    def test_rows_are_measured_anew_and_say_so(self, found: Findings, subject: Subject) -> None:
        """On the bank's own model and corpus the rows come out as its card states them."""
        measures = by_id(found)
        assert "measured anew" in measures["row2"].note
        for row in subject.bank.card.battery:
            assert measures[f"row{row.number}"].value == row.value

    def test_the_short_form_takes_the_rows_of_the_card(self, subject: Subject, corpus: Corpus) -> None:
        """The quick form calibrates nothing, and says whose rows these are."""
        measures = by_id(run(subject, corpus, quick=True))
        assert "of the bank's card" in measures["row2"].note
        assert measures["row9.style.recall_loss"].value is not None

    def test_items_of_unknown_emotions_leave_the_battery(self, subject: Subject, corpus: Corpus) -> None:
        """Where no text has an emotion of the bank, rows 9 and 10 are not run and say so."""
        items = make_items()
        strange = items._replace(texts=[each._replace(emotion="envy") for each in items.texts])
        measures = by_id(run(subject, corpus, quick=True, items=strange))
        assert measures["row9"].value is None
        assert measures["row9"].note.startswith("not run")
        assert "row2" in measures


class TestPlantedFakes:
    """What must be exposed."""

    def test_a_concept_that_follows_a_keyword_is_text_equivalent(self, found: Findings) -> None:
        """Emotions whose texts differ by a sign alone are read by probes, and no better than by words."""
        verdicts = {each.what: each.verdict for each in found.verdicts}
        assert by_id(found)["recognition.auroc"].value > 0.9
        assert {verdicts["joy: clean"], verdicts["fear: clean"]} == {"text-equivalent"}
        assert by_id(found)["recognition.twin_difference"].note == "surely better than words: none"

    def test_a_random_direction_fails_selectivity(self, subject: Subject, corpus: Corpus, tmp_path: Path) -> None:
        """A direction that finds nothing stays among the random ones, and its emotion is named."""
        direction = np.random.default_rng(1).normal(size=subject.bank.tensors.directions.shape[-1])
        measures = by_id(run(with_direction(subject, "fear", direction, tmp_path), corpus, quick=True))
        assert measures["recognition.above_random"].value < 1
        assert measures["recognition.above_random"].note.startswith("least: fear")

    def test_a_bank_from_elsewhere_keeps_the_rows_of_its_card(
        self, subject: Subject, corpus: Corpus, tmp_path: Path
    ) -> None:
        """Rows are not measured by directions that the corpus does not give, and the note says why."""
        direction = np.random.default_rng(1).normal(size=subject.bank.tensors.directions.shape[-1])
        measures = by_id(run(with_direction(subject, "fear", direction, tmp_path), corpus))
        assert "made from another corpus" in measures["row2"].note
