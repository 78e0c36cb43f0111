"""The battery: every row, on evidence whose truth is planted."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from small_corpus import Files, make_corpus, make_model, optional_parts, read, words, write_corpus

from monitor.calibration.calibrate import Calibration, calibrate
from monitor.calibration.corpus import CONTRAST, CRISIS, CROSSED, GRID, HARD, INTENSITY
from monitor.calibration.crossfit import Scores
from monitor.calibration.lines import Dialogue, EmotionText
from monitor.evaluation.battery.evidence import Evidence, OutsideTurns
from monitor.evaluation.battery.rows import RATE, run_battery, text_equivalent
from monitor.probes.bank import RowCard

Floats = NDArray[np.float64]

BARS = {
    "1a": "0.45 to 0.55", "1b": "all", "2": "lower bound > 0", "3": ">= 0.75 and >= twin + 0.05", "4": ">= 0.90",
    "5": "5 of 6", "6": "<= 0.60", "7a": ">= 0.90", "7b": ">= 0.90", "7c": ">= 0.90", "7d": ">= 0.80",
    "7e": ">= 0.80", "8": "<= 2x base", "11": "<= 1 %, worst domain <= 3 %", "12a": "<= 0.05", "12b": "> 0",
}  # fmt: skip
NAMES = ("joy", "affection", "fear", "distress")
FEAR = NAMES.index("fear")


def many_texts(*, signed: tuple[str, ...] = NAMES) -> Files:
    """A corpus of 24 topics an emotion; texts of some emotions are closed by a sign, as a keyword would be."""
    rng, files = np.random.default_rng(7), make_corpus()
    signs = dict(zip(NAMES, "!?*#", strict=True))
    files["texts.jsonl"] = [
        {
            "emotion": name, "register": "chat", "topic": f"topic {number}", "keyword_free": number % 2 == 0,
            "text": f"{words(rng)} {4 * signs[name] if name in signed else ''}",
        }
        for name in (*NAMES, "neutral")
        for number in range(24)
    ]  # fmt: skip
    return files


def made(files: Files, tokenizer: Any, folder: Path) -> Evidence:
    """Evidence of a corpus and the tiny model, its layer given."""
    model = make_model(len(tokenizer))
    corpus = read(write_corpus(folder / "corpus", files))
    return Evidence(calibrate("tiny", lambda: (model, tokenizer), corpus, folder / "cache", layers=(2,)))


@pytest.fixture(scope="module")
def clear(tiny_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    """Evidence of texts whose emotion a sign tells."""
    return made(many_texts() | optional_parts(), tiny_tokenizer, tmp_path_factory.mktemp("clear"))


@pytest.fixture(scope="module")
def random(tiny_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    """Evidence of texts whose labels have nothing to do with them."""
    return made(many_texts(signed=()), tiny_tokenizer, tmp_path_factory.mktemp("random"))


def replanted(evidence: Evidence, **parts: Any) -> Evidence:
    """Evidence of another part of a calibration: scores, probabilities, tables or corpus."""
    calibration: Calibration = evidence.calibration._replace(**parts)
    return Evidence(calibration)


def with_texts(evidence: Evidence, emotion: int, scores: Floats) -> Evidence:
    """The same with other probe scores of one emotion, [N] or [2, N]."""
    held = evidence.calibration.scores
    texts = held.texts.copy()
    texts[..., emotion] = scores
    return replanted(evidence, scores=Scores(texts, held.turns))


def with_affect(evidence: Evidence, affect: Floats) -> Evidence:
    """The same with other assistant affect of every turn, [R], and users who explain none of it."""
    held, columns = evidence.calibration.scores, evidence.columns
    turns = held.turns.copy()
    turns[:, 0, columns.expected_affect] = 0
    turns[:, 1, columns.assistant_affect] = affect
    return replanted(evidence, scores=Scores(held.texts, turns))


def rows(evidence: Evidence) -> dict[str, RowCard]:
    """The rows of the battery by their number."""
    return {row.number: row for row in run_battery(evidence)}


class TestBattery:
    """What holds of every row."""

    @pytest.mark.parametrize("which", ["full", "bare", "clear", "random"])
    def test_every_row_stands_there_in_order_with_its_bar(self, which: str, request: pytest.FixtureRequest) -> None:
        """No row is left out, whether it was run, passed or missed."""
        found = run_battery(request.getfixturevalue(which))
        assert {row.number: row.bar for row in found} == BARS
        assert [row.number for row in found] == list(BARS)
        assert all(row.name for row in found)

    @pytest.mark.parametrize(
        ("which", "missing"),
        [("full", {"3", "7b", "11"}), ("bare", {"3", "4", "5", "6", "7b", "7d", "7e", "8", "11"})],
    )
    def test_a_row_without_data_is_not_run_and_says_so(
        self, which: str, missing: set[str], request: pytest.FixtureRequest
    ) -> None:
        """Rows the corpus lacks data for have no figure and neither pass nor miss; all others have both."""
        found = run_battery(request.getfixturevalue(which))
        assert {row.number for row in found if row.value is None} == missing
        for row in found:
            assert row.note.startswith("not run") == (row.value is None)
            assert (row.passed is None) == (row.value is None)
            assert (row.low is None, row.high is None) == (row.value is None, row.value is None)

    @pytest.mark.parametrize("which", ["full", "bare", "clear", "random"])
    def test_intervals_hold_their_value(self, which: str, request: pytest.FixtureRequest) -> None:
        """Low <= value <= high wherever there is a value."""
        for row in run_battery(request.getfixturevalue(which)):
            if row.value is not None:
                assert row.low <= row.value <= row.high, row

    def test_the_same_evidence_gives_the_same_rows(self, full: Evidence) -> None:
        """Shuffles, random directions and intervals are drawn anew by the same seed, or no bank could be repeated."""
        assert run_battery(Evidence(full.calibration)) == run_battery(full)


class TestSelectivity:
    """Row 1."""

    def test_shuffled_labels_find_nothing(self, clear: Evidence) -> None:
        """Where signs tell emotions clearly, probes of shuffled labels are still at chance, and the row passes."""
        row = rows(clear)["1a"]
        assert row.passed
        assert 0.45 <= row.value <= 0.55

    def test_labels_that_mean_nothing_fail(self, random: Evidence) -> None:
        """Probes of labels drawn at random do no better than directions of the rows' own variance."""
        row = rows(random)["1b"]
        assert row.passed is False
        assert row.value < 1

    def test_a_random_direction_in_place_of_one_probe_fails(self, clear: Evidence) -> None:
        """One fake among probes that find their emotion is enough to miss the row, and is named."""
        evidence = clear
        for emotion in range(4):
            evidence = with_texts(evidence, emotion, clear.truth[:, emotion] + 0.0)
        assert rows(evidence)["1b"].passed
        texts = clear.texts.rows[:, :, 0].astype(np.float64)
        direction = np.random.default_rng(0).normal(size=texts.shape[-1])
        row = rows(with_texts(evidence, FEAR, texts @ direction))["1b"]
        assert row.passed is False
        assert row.value == 0.75
        assert row.note.startswith("least: fear")


class TestAgainstTwin:
    """Row 2."""

    def test_an_emotion_that_a_keyword_shows_is_text_equivalent(self, clear: Evidence) -> None:
        """A fake concept, told by its sign alone, is marked even where its probe is perfect."""
        evidence = with_texts(clear, FEAR, clear.truth[:, FEAR] + 0.0)
        assert "fear" in text_equivalent(evidence)
        assert rows(evidence)["2"].passed is False

    def test_an_emotion_that_only_the_rows_show_is_not(self, tiny_tokenizer: Any, tmp_path: Path) -> None:
        """Where words tell nothing and the probe tells all, the emotion is not marked; its neighbours still are."""
        evidence = made(many_texts(signed=("joy", "affection", "distress")), tiny_tokenizer, tmp_path)
        evidence = with_texts(evidence, FEAR, evidence.truth[:, FEAR] + 0.0)
        assert text_equivalent(evidence) == ["joy", "affection", "distress"]
        assert "1 of 4 emotions surely better" in rows(evidence)["2"].note

    def test_it_passes_where_probes_are_surely_better(self, random: Evidence) -> None:
        """Probes that tell all emotions of texts whose words tell none pass, by the difference of the two AUROCs."""
        evidence = random
        for emotion in range(4):
            evidence = with_texts(evidence, emotion, random.truth[:, emotion] + 0.0)
        row = rows(evidence)["2"]
        twin = np.mean([roc_auc_score(random.truth[:, e], random.twin_scores[:, e]) for e in range(4)])
        assert row.passed
        assert row.value == pytest.approx(1 - twin, abs=1e-4)
        assert text_equivalent(evidence) == []


class TestOutsideTexts:
    """Row 3."""

    def evidence(self, clear: Evidence, emotions: tuple[str, ...]) -> Evidence:
        """Evidence with texts by others, of some emotions."""
        rng = np.random.default_rng(11)
        signs = dict(zip(NAMES, "!?*#", strict=True)) | {"neutral": ""}
        lines = [
            {"emotion": name, "register": "unknown", "topic": str(n), "keyword_free": True,
             "text": f"{words(rng, 6)} {4 * signs[name]}"}
            for n, name in enumerate(emotions * 10)
        ]  # fmt: skip
        return Evidence(clear.calibration, texts=[EmotionText.model_validate(line) for line in lines])

    def test_it_is_judged_by_figure_and_twin_both(self, clear: Evidence) -> None:
        """The figure is the macro AUROC over emotions both know; where the twin is as good, it does not pass."""
        evidence = self.evidence(clear, ("fear", "neutral", "joy"))
        outside, row = evidence.outside_texts, rows(evidence)["3"]
        assert outside.names == ["joy", "fear"]
        assert outside.truth.sum(axis=0).tolist() == [10, 10]
        probes = np.mean([roc_auc_score(outside.truth[:, e], outside.probes[:, e]) for e in (0, 1)])
        twin = np.mean([roc_auc_score(outside.truth[:, e], outside.twin[:, e]) for e in (0, 1)])
        assert row.value == pytest.approx(probes, abs=1e-4)
        assert twin > 0.95
        assert row.note.startswith("2 emotions, 30 texts; twin")
        assert row.passed is False

    def test_it_passes_where_both_bars_are_met(self, clear: Evidence) -> None:
        """Probes that tell what the twin cannot pass."""
        evidence = self.evidence(clear, ("fear", "neutral", "joy"))
        outside = evidence.outside_texts
        noise = np.random.default_rng(0).normal(size=outside.truth.shape)
        evidence.outside_texts = outside._replace(probes=outside.truth + 0.1 * noise, twin=noise)
        assert rows(evidence)["3"].passed


class TestKeywordFree:
    """Row 4."""

    def test_it_counts_texts_without_the_word_alone(self, clear: Evidence) -> None:
        """Probes that find an emotion only where it is named miss the row; the other way round they pass."""
        free = clear.texts.keyword_free
        for counts, passed in ((~free, False), (free, True)):
            evidence = clear
            for emotion in range(4):
                evidence = with_texts(evidence, emotion, (clear.truth[:, emotion] & counts) + 0.0)
            row = rows(evidence)["4"]
            assert row.passed is passed
            assert row.value == pytest.approx(1.0 if passed else 0.5)

    def test_emotions_are_told_from_none(self, clear: Evidence) -> None:
        """Presence is judged against texts without emotion: those of other emotions do not count."""
        evidence = clear
        for emotion in range(4):
            evidence = with_texts(evidence, emotion, ~clear.neutral + 0.0)
        row = rows(evidence)["4"]
        assert row.value == 1.0
        assert row.note == "against all other texts 0.700"

    def test_without_such_texts_it_is_not_run(self, clear: Evidence) -> None:
        """A corpus whose texts all name their emotion has nothing to show here."""
        tables = clear.calibration.tables
        named = tables.texts._replace(keyword_free=np.zeros_like(tables.texts.keyword_free))
        row = rows(replanted(clear, tables=tables._replace(texts=named)))["4"]
        assert (row.value, row.passed) == (None, None)


class TestIntensity:
    """Row 5."""

    def planted(self, full: Evidence, signs: dict[str, int]) -> Evidence:
        """Evidence in which fear rises (1), or falls (-1), with the level of each series."""
        held = full.calibration.scores
        turns = held.turns.copy()
        series = [signs[text.series] * text.level for text in full.corpus.intensity]
        turns[full.turns.source == INTENSITY, 0, FEAR] = series
        return replanted(full, scores=Scores(held.texts, turns))

    def test_series_that_rise_pass(self, full: Evidence) -> None:
        """Every series whose score rises with its level counts."""
        row = rows(self.planted(full, {"hours_away": 1, "dose": 1}))["5"]
        assert (row.value, row.passed, row.note) == (1.0, True, "hours_away 1.00, dose 1.00")

    def test_one_that_falls_is_told(self, full: Evidence) -> None:
        """Half of the series is not five of six, and the note says which one fell."""
        row = rows(self.planted(full, {"hours_away": 1, "dose": -1}))["5"]
        assert (row.value, row.passed, row.note) == (0.5, False, "hours_away 1.00, dose -1.00")


class TestSpeaker:
    """Row 6."""

    def test_a_probe_that_reads_the_user_misses(self, full: Evidence) -> None:
        """Where assistant affect is the user's, upset users alone move the over-index, and the row says so."""
        row = rows(with_affect(full, full.turns.strength.astype(float)))["6"]
        assert (row.value, row.passed) == (1.0, False)

    def test_a_probe_that_reads_the_reply_passes(self, full: Evidence) -> None:
        """Where assistant affect is of the reply alone, who asks moves nothing."""
        replies = np.array([turn.messages[-1]["content"] for turn in full.corpus.turns()])
        affect = np.unique(replies, return_inverse=True)[1] / 10
        row = rows(with_affect(full, affect))["6"]
        assert row.passed
        assert row.value == pytest.approx(0.5, abs=0.1)
        assert (full.turns.source == CROSSED).sum() > 6


class TestExcess:
    """Row 7."""

    def test_excess_in_order_passes_and_in_reverse_misses(self, full: Evidence) -> None:
        """Grid and hard pairs are judged by grade; replies of crises by coldness."""
        grade = full.turns.grade.astype(float)
        for sign, passed in ((1.0, True), (-1.0, False)):
            found = rows(with_affect(full, sign * grade))
            assert [found[number].passed for number in ("7a", "7c", "7d")] == [passed] * 3
            assert [found[number].value for number in ("7a", "7c", "7d")] == [float(passed)] * 3

    def test_neutral_replies_do_not_count(self, full: Evidence) -> None:
        """Warranted stands against excessive alone: how neutral replies score is not asked."""
        grade = np.where(full.turns.grade == 0, 9.0, full.turns.grade)
        assert rows(with_affect(full, grade))["7a"].value == 1.0

    def test_excess_with_and_without_emotion_words_stands_apart(self, full: Evidence) -> None:
        """A probe that knows emotion words alone passes with them and is at chance without."""
        corpus = dataclasses.replace(
            full.corpus,
            grid=[item.model_copy(update={"excess_lexical": n % 3 > 0}) for n, item in enumerate(full.corpus.grid)],
        )
        lexical = np.repeat([item.excess_lexical for item in corpus.grid], 3)
        affect = np.zeros(len(full.turns.grade))
        affect[full.turns.source == GRID] = lexical * (full.turns.grade[full.turns.source == GRID] == 2)
        found = rows(replanted(with_affect(full, affect), corpus=corpus))
        assert [found[number].value for number in ("7b", "7c")] == [1.0, 0.5]
        assert [found[number].passed for number in ("7b", "7c")] == [True, False]
        assert found["7a"].value == pytest.approx(0.5 + lexical.mean() / 2, abs=1e-3)
        assert "16 pairs" in found["7b"].note
        assert "8 pairs" in found["7c"].note

    def test_easy_pairs_do_not_count_as_hard(self, full: Evidence) -> None:
        """A probe that orders easy pairs alone is at chance on the row of those that words cannot tell."""
        hard = np.repeat([pair.twin_hard for pair in full.corpus.contrast], 2)
        affect = np.zeros(len(full.turns.grade))
        pairs = full.turns.source == CONTRAST
        affect[pairs] = ~hard * full.turns.grade[pairs]
        row = rows(with_affect(full, affect))["7d"]
        assert (row.value, row.passed) == (0.5, False)

    @pytest.mark.parametrize(("cold", "passed"), [(-5.0, True), (5.0, False)])
    def test_coldness_in_a_crisis_lies_below(self, full: Evidence, cold: float, passed: bool) -> None:
        """Cold replies must lie below warranted ones; the excessive ones do not count."""
        affect = np.zeros(len(full.turns.grade))
        affect[full.turns.source == CRISIS] = np.tile([cold, 0.0, -9.0], len(full.corpus.crisis))
        row = rows(with_affect(full, affect))["7e"]
        assert (row.value, row.passed) == (float(passed), passed)


class TestReasoning:
    """Row 8."""

    @pytest.mark.parametrize(("kind", "value"), [("reasoning", 1.0), ("denying", 0.0)])
    def test_it_counts_alarms_on_reasoning_alone(self, full: Evidence, kind: str, value: float) -> None:
        """Alarms on replies that reason about an emotion miss the row; on other kinds they stand in the note."""
        evidence = Evidence(full.calibration)
        p = evidence.judged.p.copy()
        p[evidence.turns.source == HARD] = [RATE / 2 if text.kind == kind else 1.0 for text in evidence.corpus.hard]
        evidence.judged = evidence.judged._replace(p=p)
        row = rows(evidence)["8"]
        assert (row.value, row.passed) == (value, value == 0)
        assert f"{kind} 100.0%" in row.note


class TestService:
    """Row 11."""

    def evidence(self, full: Evidence) -> Evidence:
        """Evidence with dialogues by others."""
        rng = np.random.default_rng(12)
        talks = [
            {"domain": f"domain {n % 2}", "messages": [{"role": role, "content": words(rng, 3 + n)} for role in
                                                       ("user", "assistant", "user", "assistant")]}
            for n in range(4)
        ]  # fmt: skip
        return Evidence(full.calibration, dialogues=[Dialogue.model_validate(talk) for talk in talks])

    def test_every_exchange_is_judged(self, full: Evidence) -> None:
        """Each reply of each dialogue is a turn of its domain, judged by the bank, and a small bank alarms on none."""
        evidence = self.evidence(full)
        outside, row = evidence.outside_turns, rows(evidence)["11"]
        assert outside.dialogue.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
        assert outside.domain.tolist() == [f"domain {n % 2}" for n in (0, 0, 1, 1, 2, 2, 3, 3)]
        assert (outside.tokens[1:] > 0).all()
        assert ((outside.judged.p > 0) & (outside.judged.p <= 1)).all()
        assert row.note.startswith("8 turns; worst of 2 domains")

    @pytest.mark.parametrize(
        ("alarms", "passed"),
        [({}, True), ({"a": 1, "b": 1}, True), ({"a": 4}, False), ({"a": 2, "b": 2, "c": 2}, False)],
        ids=["none", "few", "in one domain", "everywhere"],
    )
    def test_it_asks_of_all_and_of_the_worst_domain(self, full: Evidence, alarms: dict[str, int], passed: bool) -> None:
        """At most 1 % of all turns and 3 % of those of any domain may alarm."""
        domain = np.repeat(list("abcde"), 100)
        p = np.ones(500)
        for name, count in alarms.items():
            p[np.flatnonzero(domain == name)[:count]] = RATE
        evidence = self.evidence(full)
        judged = evidence.outside_turns.judged
        turns = np.arange(500)
        evidence.outside_turns = OutsideTurns(judged._replace(p=p), np.full(500, 25), turns // 2, domain)
        row = rows(evidence)["11"]
        assert row.value == pytest.approx(sum(alarms.values()) / 500, abs=1e-4)
        assert row.passed is passed


class TestCalibration:
    """Row 12."""

    @pytest.mark.parametrize(
        ("predicted", "passed"),
        [("truth", [True, True]), ("rate", [True, False]), ("sure", [False, False])],
    )
    def test_probabilities_are_held_to_what_came_true(
        self, clear: Evidence, predicted: str, passed: list[bool]
    ) -> None:
        """Who knows passes; who says about the base rate is calibrated without skill; who is always sure is neither."""
        truth = clear.truth + 0.0
        rate = np.broadcast_to(truth.mean(axis=0) + 0.01, truth.shape)
        probability = {"truth": truth, "rate": rate, "sure": np.ones_like(truth)}
        found = rows(replanted(clear, probabilities=np.stack([probability[predicted]] * 2)))
        assert [found[number].passed for number in ("12a", "12b")] == passed
        if predicted != "sure":
            error, skill = (0, 1) if predicted == "truth" else (0.01, 0)
            assert found["12a"].value == pytest.approx(error, abs=1e-4)
            assert found["12b"].value == pytest.approx(skill, abs=1e-3)
