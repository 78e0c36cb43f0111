"""Tests of what the authored items of the evaluations promise, and of the perturbations as functions of texts."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

import pytest

from monitor.calibration.corpus import SHIPPED
from monitor.calibration.keywords import names_emotion
from monitor.calibration.lines import plain, read_emotions
from monitor.evaluation.answers import mentions, normalised
from monitor.evaluation.item_files import ITEMS
from monitor.evaluation.robustness.perturbations import perturb, read_perturbations, sentences

Row = dict[str, Any]
CONDITIONS = ["neutral", "distress", "flattery", "pressure"]
PAIRS = {("sadness", "joy"), ("fear", "calm"), ("anger", "gratitude"), ("love", "contempt")}
SYNONYMS = {
    "sadness": "unhappy sorrow sorry grief grieve mourn miserable heartbroken depressed gloomy melancholy",
    "joy": "happy happily happiness glad gladly delighted delight thrilled elated overjoyed cheerful",
    "fear": "afraid scared scary frightened frightening terror terrified panic anxious worried nervous dread horror",
    "calm": "peace peaceful relaxed relax relaxing serene tranquil restful",
    "anger": "furious fury rage mad outraged livid enraged cross",
    "gratitude": "thank thanks thanked thankful grateful gratefully appreciate appreciated obliged",
    "love": "adore fond fondly affection dear dearest darling cherish sweetheart beloved tender",
    "contempt": "despise scorn disdain pathetic sneer sneering inferior loathe",
}
TEXT = "The big cat sat on the mat, because it can't see. I'm there! Do you know its name?"
PERTURBATIONS, PADDING = read_perturbations()


def rows(name: str) -> list[Row]:
    """The items of a file."""
    return [json.loads(line) for line in (ITEMS / name).read_text(encoding="utf-8").splitlines()]


def words(text: str) -> list[str]:
    """The words of a text, in lower case."""
    return re.findall(r"[a-z']+", text.lower())


def twice(texts: list[str]) -> list[str]:
    """Texts that stand there more than once, whatever their case and spaces."""
    return [text for text, count in Counter(map(plain, texts)).items() if count > 1]


class TestAllFiles:
    """What holds for every file."""

    def test_ids_are_unique(self) -> None:
        """No id stands twice, in whatever file."""
        ids = [row["id"] for path in ITEMS.glob("*.jsonl") for row in rows(path.name)]
        assert twice(ids + [each["id"] for each in PERTURBATIONS]) == []

    def test_the_readme_states_the_counts(self) -> None:
        """Every file has a row in the README, which counts what the file holds."""
        readme = (ITEMS / "README.md").read_text(encoding="utf-8")
        stated = {
            name: int(count) for name, count in re.findall(r"^\| `([^`]+\.jsonl?)` \| (\d+) \|", readme, re.MULTILINE)
        }
        held = {path.name: len(rows(path.name)) for path in ITEMS.glob("*.jsonl")}
        assert stated == held | {"perturbations.json": len(PERTURBATIONS)}

    def test_no_text_is_one_of_the_calibration_corpus(self) -> None:
        """What is tested here was not fitted there."""
        fitted = (SHIPPED / "texts.jsonl").read_text(encoding="utf-8").splitlines()
        own = [row["text"] for row in rows("recognition.jsonl") + rows("neutral.jsonl")]
        assert not {plain(json.loads(line)["text"]) for line in fitted} & {plain(text) for text in own}


class TestFacts:
    """Short questions with one right answer."""

    FACTS = rows("facts.jsonl")

    def test_kinds_are_balanced_and_most_are_easy(self) -> None:
        """Eighteen of each kind; more than half of level 1; as many yes as no."""
        assert set(Counter(row["kind"] for row in self.FACTS).values()) == {18}
        levels = Counter(row["level"] for row in self.FACTS)
        assert levels[1] > len(self.FACTS) / 2
        assert set(levels) == {1, 2, 3}
        said = Counter(row["answers"][0] for row in self.FACTS if row["kind"] == "yes_no")
        assert said == {"yes": 9, "no": 9}

    def test_answers_are_normalised_and_not_in_the_question(self) -> None:
        """An echo of the question is no right answer."""
        assert twice([row["question"] for row in self.FACTS]) == []
        for row in self.FACTS:
            assert [normalised(each) for each in row["answers"]] == row["answers"]
            assert row["kind"] == "yes_no" or not mentions(row["question"], row["answers"])


class TestDistortion:
    """The same question in four frames."""

    ITEMS = rows("distortion.jsonl")

    def test_each_condition_asks_the_question_in_its_own_frame(self) -> None:
        """The question stands there word for word, once; what is around it stands nowhere else."""
        frames = []
        for row in self.ITEMS:
            assert list(row["conditions"]) == CONDITIONS
            for text in row["conditions"].values():
                assert text.count(row["question"]) == 1
                frames.append(text.replace(row["question"], ""))
        assert twice(frames) == []
        assert len(frames) >= 480

    def test_no_frame_gives_the_answer_away(self) -> None:
        """Nor the wrong one, unless the user presses for it, and then the item says so."""
        for row in self.ITEMS:
            frames = {name: text.replace(row["question"], "") for name, text in row["conditions"].items()}
            assert not any(mentions(frame, row["answers"]) for frame in frames.values()), row["id"]
            assert not any(mentions(frames[name], row["wrong"]) for name in CONDITIONS[:3]), row["id"]
            assert mentions(frames["pressure"], row["wrong"]) == row["pressure_names_wrong"], row["id"]

    def test_no_opening_is_a_template(self) -> None:
        """No five words begin more than two frames of a condition."""
        for name in CONDITIONS:
            opened = Counter(
                " ".join(words(row["conditions"][name].replace(row["question"], ""))[:5]) for row in self.ITEMS
            )
            assert opened.most_common(1)[0][1] <= 2, opened.most_common(1)

    def test_frames_are_of_like_length(self) -> None:
        """The means of the conditions differ by a quarter at most: length alone should not move the answer."""
        means = [sum(len(row["conditions"][name].split()) for row in self.ITEMS) for name in CONDITIONS]
        assert max(means) <= 1.25 * min(means)

    def test_right_and_wrong_can_be_told_apart(self) -> None:
        """No accepted answer is in a wrong one, nor the other way round; the policy states what it is asked for."""
        for row in self.ITEMS:
            assert [normalised(each) for each in row["answers"] + row["wrong"]] == row["answers"] + row["wrong"]
            assert not any(mentions(each, row["answers"]) for each in row["wrong"]), row["id"]
            assert not any(mentions(each, row["wrong"]) for each in row["answers"]), row["id"]
            assert bool(row["policy"]) == (row["kind"] == "policy")
            closed = set(row["answers"]) <= {"yes", "no"}
            assert row["kind"] == "fact" or closed or mentions(row["policy"], row["answers"]), row["id"]
            asked = mentions(row["question"], row["answers"])
            assert not asked or mentions(row["question"], row["wrong"]), row["id"]  # a choice names both

    def test_both_kinds_and_both_answers_are_there(self) -> None:
        """Neither always yes nor always no is a good strategy."""
        assert min(Counter(row["kind"] for row in self.ITEMS).values()) >= 60
        closed = Counter(row["answers"][0] for row in self.ITEMS if row["answers"][0] in {"yes", "no"})
        assert min(closed.values()) >= 20


class TestOthers:
    """Requests to refuse, neutral passages, open messages."""

    def test_half_of_the_requests_are_to_be_refused(self) -> None:
        """Each topic has one of either sort."""
        sorts = Counter((row["topic"], row["refuse"]) for row in rows("refusals.jsonl"))
        assert set(sorts.values()) == {1}
        assert len(sorts) == 40
        assert {topic for topic, refuse in sorts if refuse} == {topic for topic, refuse in sorts if not refuse}

    def test_neutral_passages_are_of_the_length_stated(self) -> None:
        """Between 60 and 150 words, in many domains, none twice."""
        passages = rows("neutral.jsonl")
        assert all(60 <= len(row["text"].split()) <= 150 for row in passages)
        assert twice([row["text"] for row in passages]) == []
        assert len({row["domain"] for row in passages}) >= 20

    def test_open_messages_vary(self) -> None:
        """Ten of each domain, affects of many sorts, none twice."""
        messages = rows("prompts.jsonl")
        assert set(Counter(row["domain"] for row in messages).values()) == {10}
        assert len({row["affect"] for row in messages}) >= 20
        assert twice([row["message"] for row in messages]) == []


class TestRecognition:
    """Emotions that a situation carries."""

    TEXTS = rows("recognition.jsonl")

    def test_each_pair_is_two_emotions_and_a_neutral_text_of_one_speaker(self) -> None:
        """Twenty texts of each emotion, half of them by the assistant."""
        found = {}
        for row in self.TEXTS:
            found.setdefault((row["pair"], row["speaker"]), []).append(row["emotion"])
        assert all(tuple(each[:2]) in PAIRS and each[2:] == ["neutral"] for each in found.values())
        assert len({pair for pair, _ in found}) == len(found) == 80
        counts = Counter((row["emotion"], row["speaker"]) for row in self.TEXTS if row["emotion"] != "neutral")
        assert len(counts) == 16
        assert set(counts.values()) == {10}

    def test_no_text_names_an_emotion(self) -> None:
        """Neither its own nor another's: no form of an emotion's word, no close synonym."""
        banned = {word for each in SYNONYMS.values() for word in each.split()}
        names = [each.name for each in read_emotions(SHIPPED / "emotions.json")]
        for row in self.TEXTS:
            assert row["keyword_free"]
            assert not banned & set(words(row["text"])), row["id"]
            assert not [name for name in names if names_emotion(row["text"], name)], row["id"]
        assert twice([row["text"] for row in self.TEXTS]) == []


class TestPerturbations:
    """Functions from text to text."""

    def test_families_have_several_each(self) -> None:
        """At least sixty in ten families; prompts that demand coldness or warmth ten each."""
        families = Counter(each["family"] for each in PERTURBATIONS)
        assert len(PERTURBATIONS) >= 60
        assert len(families) >= 10
        assert min(families.values()) >= 2
        assert families["system_cold"] == families["system_warm"] == 10
        assert {each["expect"] for each in PERTURBATIONS} == {"same", "about"}

    @pytest.mark.parametrize("how", PERTURBATIONS, ids=lambda how: how["id"])
    def test_each_changes_the_text_and_keeps_its_words(self, how: Row) -> None:
        """Four fifths of the words that no replacement touches are still there; system prompts leave the text alone."""
        changed = perturb(TEXT, how, PADDING)
        assert (changed == TEXT) == ("system" in how)
        replaced = {word for old, _ in how.get("replace", ()) for word in words(old)}
        kept = [word for word in words(TEXT) if word not in replaced]
        assert sum(word in words(changed) for word in kept) >= 0.8 * len(kept)
        assert not re.search(r"\{(i|lower)?\}", changed)

    def test_all_compose(self) -> None:
        """The result of one can be given to any other."""
        for first in PERTURBATIONS:
            once = perturb(TEXT, first, PADDING)
            assert all(perturb(once, second, PADDING) for second in PERTURBATIONS[::7])

    @pytest.mark.parametrize("times", [1, 2, 4, 8, 16])
    def test_padding_is_as_long_as_it_says(self, times: int) -> None:
        """At least so many times the words of the text, and less than a sentence more."""
        size = len(TEXT.split())
        for where in ("before", "after", "around", "between"):
            long = perturb(TEXT, {"pad": {"where": where, "times": times}}, PADDING)
            assert 0 <= len(long.split()) - size - times * size < 16

    def test_padding_is_neutral_and_without_repeats(self) -> None:
        """Enough sentences, none twice, none with a word of emotion."""
        assert len(PADDING) >= 80
        assert twice(PADDING) == []
        names = [each.name for each in read_emotions(SHIPPED / "emotions.json")]
        assert not [text for text in PADDING for name in names if names_emotion(text, name)]

    def test_words_are_replaced_whole_and_keep_their_capital(self) -> None:
        """An apostrophe belongs to its word; a word that goes takes its space along."""
        how = {"replace": [["it", "that"], ["can't", "cannot"], ["the", ""]]}
        assert perturb("It sits. The cat can't; it's hot", how, ()) == "That sits. cat cannot; it's hot"

    def test_sentences_are_rewritten_one_by_one(self) -> None:
        """Numbered, in reverse, in a list."""
        assert sentences("One. Two! Three?") == ["One.", "Two!", "Three?"]
        assert perturb("One. Two!", {"sentence": "{i}) {}", "join": "\n"}, ()) == "1) One.\n2) Two!"
        assert perturb("One. Two!", {"order": "reverse"}, ()) == "Two! One."
        assert perturb("One. I'm NO.", {"sentence": "so {lower}"}, ()) == "so one. so I'm NO."


class TestAnswers:
    """Whether a reply gives an answer."""

    @pytest.mark.parametrize(
        ("text", "answers", "found"),
        [
            ("It is Paris.", ["paris"], True),
            ("Comparison is hard.", ["paris"], False),
            ("There are 1,000 grams.", ["1000"], True),
            ("Thirty-two teeth", ["thirty"], False),
            ("It is 0.5", ["0"], False),
            ("It is 10.", ["10"], True),
            ("From 9:00 on", ["9"], False),
        ],
    )
    def test_whole_words_count(self, text: str, answers: list[str], found: bool) -> None:
        """Parts of words, compounds, decimals and hours do not."""
        assert mentions(text, answers) is found
