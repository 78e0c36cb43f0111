"""The search for words that hide an emotion, on a tiny model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from builders import CHATML, CHATML_SPECIAL, CHATML_WORDS, make_bank, make_tokenizer
from small_corpus import make_model

from monitor.calibration.corpus import exchange, user_says
from monitor.evaluation.robustness.suffix import WORDS, Effort, Searcher, ordinary_words
from monitor.evaluation.subject import Subject

NOUNS = tuple(f"Ġ{word}" for word in ["stone", "river", "paper", "green", "table", "light", "under", "seven"])
EMOTION = 1
NEVER = -1e9
"""A limit no search reaches."""
TEXTS = [user_says("abc def"), exchange("abc", "def ghi")]


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """A tiny model, a tokenizer that knows some words, and a bank of any directions."""
    tokenizer = make_tokenizer(CHATML, CHATML_SPECIAL, eos="<|im_end|>", words=(*CHATML_WORDS, *NOUNS))
    model = make_model(len(tokenizer), hidden=16)
    return Subject("tiny", model, tokenizer, make_bank(depth=4), tmp_path_factory.mktemp("cache"))


def search(subject: Subject, position: int, limit: float = NEVER, seed: int = 0) -> Any:
    """A short search."""
    searcher = Searcher(subject, Effort(steps=4, tried=8))
    return searcher.search(TEXTS[position], position, EMOTION, limit, np.random.default_rng(seed))


@pytest.mark.parametrize("position", [0, 1])
class TestSearch:
    """What comes of a search, in either position."""

    def test_the_score_falls_and_never_rises(self, subject: Subject, position: int) -> None:
        """Words are only replaced by better ones, so that the search ends below where it began."""
        scores = search(subject, position).scores
        assert len(scores) == 5
        assert scores == sorted(scores, reverse=True)
        assert scores[-1] < scores[0]

    def test_scores_are_those_of_the_text_read_anew(self, subject: Subject, position: int) -> None:
        """What the search believes of its first and last words is what the bank reads in the whole conversation."""
        found = search(subject, position)
        last = TEXTS[position][-1]
        whole = [
            [*TEXTS[position][:-1], {**last, "content": last["content"] + suffix}]
            for suffix in (found.start, found.found)
        ]
        read = subject.scores(whole)[position, :, EMOTION]
        assert read == pytest.approx([found.scores[0], found.scores[-1]], abs=1e-3)

    def test_the_suffix_is_so_many_ordinary_words(self, subject: Subject, position: int) -> None:
        """Spaces and letters alone, as many tokens as allowed."""
        for suffix in search(subject, position)[:2]:
            assert all(word.isalpha() for word in suffix.split())
            assert len(subject.tokenizer(suffix, add_special_tokens=False)["input_ids"]) == WORDS

    def test_it_ends_once_the_limit_is_reached(self, subject: Subject, position: int) -> None:
        """No step is taken where the score is low enough already."""
        found = search(subject, position, limit=1e9)
        assert len(found.scores) == 1
        assert found.found == found.start

    def test_the_same_seed_finds_the_same_words(self, subject: Subject, position: int) -> None:
        """Everything drawn comes from the generator that is given."""
        assert search(subject, position) == search(subject, position)


def test_words_are_tokens_that_come_back_as_themselves(subject: Subject) -> None:
    """A space and letters; neither special tokens nor parts of what is spelled otherwise."""
    tokenizer = subject.tokenizer
    spelled = [tokenizer.decode([token]) for token in ordinary_words(tokenizer)]
    assert {" stone", " river", " the"} <= set(spelled)
    assert all(text[0] == " " and text[1:].isalpha() for text in spelled)
    assert not {"user", "<|im_end|>"} & set(spelled)
