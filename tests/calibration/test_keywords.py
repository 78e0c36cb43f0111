"""Tests of which words count as forms of an emotion's name."""

from __future__ import annotations

import pytest

from monitor.calibration.keywords import names_emotion


class TestNamesEmotion:
    """``names_emotion``."""

    @pytest.mark.parametrize(
        ("emotion", "word"),
        [
            ("joy", "Joyful"), ("joy", "joyous"), ("anger", "angrily"), ("pride", "proudest"), ("shame", "ashamed"),
            ("caring", "cares"), ("grief", "grieving"), ("sad", "sadder"), ("loneliness", "lonely"),
            ("gratitude", "grateful"), ("curiosity", "curious"), ("anxious", "anxiety"), ("contempt", "contemptuous"),
            ("frustrated", "frustration"), ("panicked", "panic"), ("worried", "worry"), ("grief-stricken", "grief"),
            ("self-confident", "confidence"), ("at ease", "ease"),
        ],
    )  # fmt: skip
    def test_forms_count(self, emotion: str, word: str) -> None:
        """A form of the word names the emotion, wherever it stands."""
        assert names_emotion(f"It was {word}, they said.", emotion)

    @pytest.mark.parametrize(
        ("emotion", "word"),
        [("caring", "car"), ("hope", "hopping"), ("hateful", "hat"), ("happy", "happen"), ("worried", "worse"),
         ("mad", "made"), ("joy", "delight"), ("fear", "afraid"), ("on edge", "on")],
    )  # fmt: skip
    def test_other_words_do_not(self, emotion: str, word: str) -> None:
        """Words that look alike and synonyms do not name the emotion."""
        assert not names_emotion(f"It was {word}, they said.", emotion)
