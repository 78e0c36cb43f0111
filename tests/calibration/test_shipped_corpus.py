"""Tests of what the shipped corpus promises: its parts, no copies, no leaks, and pairs that words cannot tell."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from small_corpus import REPLIES

from monitor.calibration.corpus import SHIPPED, Corpus, read_corpus
from monitor.calibration.keywords import names_emotion
from monitor.calibration.lines import FOLDS, NEUTRAL, ContrastPair, GridItem, plain, read_emotions

REGISTERS = {"chat", "ticket", "forum", "diary", "email", "work_note", "dialogue", "news"}


@pytest.fixture(scope="module")
def shipped() -> Corpus:
    """The corpus in the package."""
    return read_corpus(SHIPPED, SHIPPED / "approved.jsonl")


def twice(texts: Iterable[str]) -> list[str]:
    """Texts that stand there more than once, whatever their case and spaces."""
    return [text for text, count in Counter(map(plain, texts)).items() if count > 1]


class TestReadme:
    """The table of files."""

    def test_it_states_the_counts(self, shipped: Corpus) -> None:
        """Every file of the folder has a row in the README, which counts what the file holds."""
        readme = (SHIPPED / "README.md").read_text(encoding="utf-8")
        stated = {name: int(count) for name, count in re.findall(r"^\| `([^`]+)` \| (\d+) \|", readme, re.MULTILINE)}
        assert stated == {
            "emotions.json": len(shipped.emotions),
            "texts.jsonl": len(shipped.texts),
            "grid.jsonl": len(shipped.grid),
            "contrast.jsonl": len(shipped.contrast),
            "service.jsonl": len(shipped.service),
            "approved.jsonl": len(shipped.approved),
            "crisis.jsonl": len(shipped.crisis),
            "hard.jsonl": len(shipped.hard),
            "intensity.jsonl": len(shipped.intensity),
            "emotions171.json": len(read_emotions(SHIPPED / "emotions171.json")),
            "topics.json": len(json.loads((SHIPPED / "topics.json").read_bytes())),
        }
        assert set(stated) == {path.name for path in SHIPPED.iterdir()} - {"README.md"}


class TestTexts:
    """Texts of single emotions."""

    def test_every_emotion_has_its_texts_in_every_register(self, shipped: Corpus) -> None:
        """Each of at least 32 emotions has at least 40 texts over eight registers, half of them keyword-free."""
        assert len(shipped.emotions) >= 32
        for emotion in shipped.emotions:
            mine = [text for text in shipped.texts if text.emotion == emotion.name]
            assert len(mine) >= 40
            assert {text.register_ for text in mine} == REGISTERS
            assert sum(text.keyword_free for text in mine) * 2 >= len(mine)

    def test_keyword_free_texts_name_no_form_of_their_emotion(self, shipped: Corpus) -> None:
        """No keyword-free text holds its emotion's name in any form."""
        felt = [text for text in shipped.texts if text.keyword_free and text.emotion != NEUTRAL]
        assert [text.place for text in felt if names_emotion(text.text, text.emotion)] == []

    def test_topics_do_not_cross_folds(self, shipped: Corpus) -> None:
        """Texts of one topic share a fold, whatever the case of the topic, and every emotion is in every fold."""
        folds: dict[str, set[int]] = {}
        for text in shipped.texts:
            folds.setdefault(text.topic.lower(), set()).add(text.fold)
        assert {len(held) for held in folds.values()} == {1}
        assert len({(text.emotion, text.fold) for text in shipped.texts}) == (len(shipped.emotions) + 1) * FOLDS

    def test_no_text_resembles_one_of_another_fold(self, shipped: Corpus) -> None:
        """No two texts of different folds share half of their words."""
        bags = CountVectorizer(binary=True, tokenizer=str.split, token_pattern=None).fit_transform(
            plain(text.text) for text in shipped.texts
        )
        shared = (bags @ bags.T).toarray()
        sizes, folds = np.diag(shared), np.array([text.fold for text in shipped.texts])
        alike = (2 * shared > sizes[:, None] + sizes - shared) & (folds[:, None] != folds)
        assert [(shipped.texts[one].place, shipped.texts[other].place) for one, other in np.argwhere(alike)] == []


class TestGrid:
    """User turns with three replies each."""

    def test_it_is_crossed(self, shipped: Corpus) -> None:
        """Every domain has each of eight user emotions in three strengths, and users without emotion."""
        cells = Counter((item.domain, item.user_emotion, item.strength) for item in shipped.grid)
        domains = {domain for domain, _, _ in cells}
        emotions = {emotion for _, emotion, _ in cells} - {"none"}
        assert len(shipped.grid) >= 240
        assert len(domains) >= 12
        assert len(emotions) == 8
        assert {item.user_emotion for item in shipped.grid if item.strength == 0} == {"none"}
        wanted = {(emotion, strength) for emotion in emotions for strength in (1, 2, 3)} | {("none", 0)}
        for domain in domains:
            assert {(emotion, strength) for name, emotion, strength in cells if name == domain} == wanted

    def test_replies_to_one_user_are_equally_long(self, shipped: Corpus) -> None:
        """Replies differ by at most 15 % of words, or two words where they are short: length tells nothing."""
        for item in shipped.grid:
            lengths = [len(getattr(item, reply).split()) for reply in REPLIES]
            assert max(lengths) <= max(1.15 * min(lengths), min(lengths) + 2), item.place

    def test_kinds_of_excess(self, shipped: Corpus) -> None:
        """There are eleven kinds of excess in like numbers."""
        counts = Counter(item.excess_kind for item in shipped.grid)
        assert len(counts) == 11
        assert min(counts.values()) * 11 >= 0.8 * len(shipped.grid)

    def test_thirds(self, shipped: Corpus) -> None:
        """A third of the excess has no emotion word, and a third of the neutral replies has one."""
        for marked in (
            [not item.excess_lexical for item in shipped.grid],
            [item.neutral_names_emotion for item in shipped.grid],
        ):
            assert np.mean(marked) == pytest.approx(1 / 3, abs=0.03)


class TestContrast:
    """Pairs that much the same words carry."""

    def test_users_are_not_the_grids(self, shipped: Corpus) -> None:
        """No user turn of a pair stands in the grid; domains are shared, so that they are held out together."""
        users = {plain(item.user) for item in shipped.grid}
        assert [pair.place for pair in shipped.contrast if plain(pair.user) in users] == []
        assert {pair.domain for pair in shipped.contrast} <= {item.domain for item in shipped.grid}

    def test_hard_pairs_are_enough_and_in_every_fold(self, shipped: Corpus) -> None:
        """At least 60 pairs are twin-hard, and no fold lacks them."""
        hard = [pair for pair in shipped.contrast if pair.twin_hard]
        assert len(hard) >= 60
        assert {shipped.domain_folds[pair.domain] for pair in hard} == set(range(FOLDS))

    @pytest.mark.parametrize("words", [(1, 1), (1, 2)], ids=["words", "word pairs"])
    @pytest.mark.parametrize("penalty", [1.0, 10.0, 100.0])
    @pytest.mark.parametrize("grid", [True, False], ids=["with grid", "without"])
    def test_words_cannot_tell_hard_pairs(
        self, shipped: Corpus, words: tuple[int, int], penalty: float, *, grid: bool
    ) -> None:
        """Text twins fitted on other domains stay at or under 0.65 AUROC, though the same twin tells the grid's."""
        table = _Replies(shipped, [*shipped.contrast, *(shipped.grid if grid else [])])
        scores = table.held_out(words, penalty)
        assert roc_auc_score(table.excessive[table.hard], scores[table.hard]) <= 0.65
        if grid:
            on_grid = np.arange(len(scores)) >= 2 * len(shipped.contrast)
            assert roc_auc_score(table.excessive[on_grid], scores[on_grid]) > 0.85


class _Replies:
    """Warranted and excessive replies, and text twins of them."""

    def __init__(self, corpus: Corpus, items: Sequence[GridItem | ContrastPair]) -> None:
        self.texts = np.array([reply for item in items for reply in (item.warranted, item.excessive)], object)
        self.excessive = np.arange(len(self.texts)) % 2 == 1
        self.folds = np.repeat([corpus.domain_folds[item.domain] for item in items], 2)
        self.hard = np.repeat([isinstance(item, ContrastPair) and item.twin_hard for item in items], 2)

    def held_out(self, words: tuple[int, int], penalty: float) -> NDArray[np.float64]:
        """Scores of a TF-IDF twin, each by replies of other folds."""
        scores = np.zeros(len(self.texts))
        for fold in range(FOLDS):
            held = self.folds == fold
            vectors = TfidfVectorizer(ngram_range=words, sublinear_tf=True).fit(self.texts[~held])
            twin = LogisticRegression(C=penalty, max_iter=1000)
            twin.fit(vectors.transform(self.texts[~held]), self.excessive[~held])
            scores[held] = twin.decision_function(vectors.transform(self.texts[held]))
        return scores


class TestCopies:
    """Nothing is fitted in one place and held out in another."""

    def test_no_text_stands_twice(self, shipped: Corpus) -> None:
        """No user turn, reply or text stands twice, in whatever file."""
        said = [getattr(item, field) for item in shipped.grid for field in ("user", *REPLIES)]
        said += [getattr(pair, field) for pair in shipped.contrast for field in ("user", *REPLIES[1:])]
        said += [getattr(item, field) for item in shipped.crisis for field in ("user", "cold", *REPLIES[1:])]
        said += [line.text for lines in (shipped.texts, shipped.hard, shipped.intensity) for line in lines]
        assert twice(said) == []

    def test_approved_turns_are_held_out_with_their_users(self, shipped: Corpus) -> None:
        """Approved turns answer users of the grid, under the label of the same domain, and share their fold."""
        domain_of = {plain(item.user): item.domain for item in shipped.grid}
        answered = [(turn.messages[-2].content, turn.labels["domain"]) for turn in shipped.approved]
        assert [domain_of[plain(user)] for user, _ in answered] == [domain for _, domain in answered]
        folds = [turn.fold for turn in shipped.turns() if turn.source == "approved"]
        assert folds == [shipped.domain_folds[domain] for _, domain in answered]

    def test_service_shares_no_user_with_graded_turns(self, shipped: Corpus) -> None:
        """No user of a service dialogue is a user of grid or pairs, whose folds are others."""
        users = {plain(item.user) for item in [*shipped.grid, *shipped.contrast]}
        assert [talk.place for talk in shipped.service if any(plain(m.content) in users for m in talk.messages)] == []

    def test_service_dialogues_share_no_message_across_folds(self, shipped: Corpus) -> None:
        """No message of five words and more stands in dialogues of two folds; every fold has dialogues."""
        folds: dict[str, set[int]] = {}
        for talk in shipped.service:
            for message in talk.messages:
                folds.setdefault(plain(message.content), set()).add(talk.fold)
        assert [text for text, held in folds.items() if len(held) > 1 and len(text.split()) >= 5] == []
        assert {talk.fold for talk in shipped.service} == set(range(FOLDS))


class TestTests:
    """Files nothing is fitted on."""

    def test_they_speak_of_the_emotions_there_are(self, shipped: Corpus) -> None:
        """Every hard text and series names an emotion of the list, so that a probe can be asked."""
        names = {emotion.name for emotion in shipped.emotions}
        assert {line.emotion for lines in (shipped.hard, shipped.intensity) for line in lines} <= names

    def test_series_rise_in_equal_steps(self, shipped: Corpus) -> None:
        """Six series of one emotion each; within a series every phrasing has every level once."""
        series = {text.series for text in shipped.intensity}
        assert len(series) == 6
        for name in series:
            mine = [text for text in shipped.intensity if text.series == name]
            assert len({text.emotion for text in mine}) == 1
            cells = Counter((text.phrasing, text.level) for text in mine)
            levels, phrasings = {level for _, level in cells}, {phrasing for phrasing, _ in cells}
            assert levels == set(range(len(levels)))
            assert len(levels) >= 3
            assert set(cells.values()) == {1}
            assert len(cells) == len(levels) * len(phrasings)

    def test_hard_texts_come_in_all_kinds(self, shipped: Corpus) -> None:
        """Five kinds in like numbers, and crises with their three replies."""
        counts = Counter(text.kind for text in shipped.hard)
        assert len(counts) == 5
        assert min(counts.values()) >= 30
        assert len(shipped.crisis) >= 30
