"""Tests of what the shipped corpus promises beyond its shape: no copies, no leaks, the kinds its README names."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import pytest
from small_corpus import NAMES, REPLIES

from monitor.calibration.corpus import FOLDS, SHIPPED, Corpus, plain, read_corpus


@pytest.fixture(scope="module")
def shipped() -> Corpus:
    """The corpus in the package."""
    return read_corpus(SHIPPED, SHIPPED / "approved.jsonl")


class TestShippedTexts:
    """Texts of the shipped corpus, by its README."""

    def test_keyword_free_texts_lack_the_word(self, shipped: Corpus) -> None:
        """No keyword-free text holds the name of its emotion."""
        named = [
            text.place for text in shipped.texts if text.keyword_free and text.emotion in text.text.lower().split()
        ]
        assert named == []

    def test_topics_do_not_cross_folds(self, shipped: Corpus) -> None:
        """Texts of one topic share a fold, whatever the case of the topic, and every emotion is in every fold."""
        folds = {topic: {t.fold for t in shipped.texts if t.topic.lower() == topic} for topic in
                 {text.topic.lower() for text in shipped.texts}}  # fmt: skip
        assert {len(held) for held in folds.values()} == {1}
        assert len({(text.emotion, text.fold) for text in shipped.texts}) == 33 * FOLDS

    def test_no_text_in_two_folds(self, shipped: Corpus) -> None:
        """No text stands twice, and no two texts of different folds share half of their words."""
        assert len({plain(text.text) for text in shipped.texts}) == len(shipped.texts)
        bags = [(text.fold, frozenset(plain(text.text).split())) for text in shipped.texts]
        alike = [
            (one, other)
            for (fold, one), (another, other) in combinations(bags, 2)
            if fold != another and 2 * len(one & other) > len(one | other)
        ]
        assert alike == []


class TestShippedGrid:
    """The grid of the shipped corpus, by its README."""

    def test_kinds_of_excess(self, shipped: Corpus) -> None:
        """There are eleven kinds of excess in like numbers."""
        counts = Counter(item.excess_kind for item in shipped.grid)
        assert len(counts) == 11
        assert min(counts.values()) >= 25

    def test_thirds(self, shipped: Corpus) -> None:
        """A third of the excess has no emotion word, and a third of the neutral replies has one."""
        assert sum(not item.excess_lexical for item in shipped.grid) / len(shipped.grid) == pytest.approx(
            1 / 3, abs=0.03
        )
        assert sum(item.neutral_names_emotion for item in shipped.grid) / len(shipped.grid) == pytest.approx(
            1 / 3, abs=0.03
        )

    def test_no_duplicates(self, shipped: Corpus) -> None:
        """No user turn or reply stands twice, nor in the texts."""
        said = [getattr(item, field) for item in shipped.grid for field in ("user", *REPLIES)]
        said += [text.text for text in shipped.texts]
        assert [text for text, count in Counter(map(plain, said)).items() if count > 1] == []

    def test_approved_turns_are_held_out_with_their_users(self, shipped: Corpus) -> None:
        """Approved turns answer users of the grid, under the label of the same domain."""
        domain_of = {plain(item.user): item.domain for item in shipped.grid}
        answered = [(turn.messages[-2].content, turn.labels["domain"]) for turn in shipped.approved]
        assert [domain_of[plain(user)] for user, _ in answered] == [domain for _, domain in answered]

    def test_the_readme_states_the_counts(self, shipped: Corpus) -> None:
        """The README's table of files agrees with the files."""
        readme = (SHIPPED / "README.md").read_text()
        held = (shipped.emotions, shipped.texts, shipped.grid, shipped.service, shipped.approved)
        for name, entries in zip(NAMES, held, strict=True):
            assert f"| `{name}` | {len(entries)} |" in readme

    def test_service_shares_no_user_with_the_grid(self, shipped: Corpus) -> None:
        """No user of a service dialogue is a user of the grid, whose folds are others."""
        users = {plain(item.user) for item in shipped.grid}
        assert [talk.place for talk in shipped.service if any(plain(m.content) in users for m in talk.messages)] == []

    def test_service_dialogues_share_no_reply_across_folds(self, shipped: Corpus) -> None:
        """No message of five words and more stands in dialogues of two folds."""
        folds: dict[str, set[int]] = {}
        for talk in shipped.service:
            for message in talk.messages:
                folds.setdefault(plain(message.content), set()).add(talk.fold)
        assert [text for text, held in folds.items() if len(held) > 1 and len(text.split()) >= 5] == []
