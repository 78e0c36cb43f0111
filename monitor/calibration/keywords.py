"""Whether a text names its emotion: by forms of the word, not by synonyms."""

from __future__ import annotations

import re

_WORDS = re.compile(r"[^\W\d_]+")
_ENDED = re.compile(
    r"(?P<stem>\w{3,}?)(?P<ending>ful|ness|ment|less|some|ly|lier|liest|liness|ity|ety|osity|ation|ition|ion|itude"
    r"|[ae]nce|[ae]nt|ate|ated|ating|ism|ist|istic|etic|ic|icked|icking|u?ous?|able|i?al|ia|ing|ed|er|est|y|i|e)"
)
_SAME = {"angr": "ang-", "proud": "prid", "asham": "sham", "joy-": "joy"}
"""Stems of one word that its endings do not bring together."""


def names_emotion(text: str, emotion: str) -> bool:
    """Whether a form of the emotion's word stands in a text: ``joyful`` for ``joy``, ``proudly`` for ``pride``.

    Of a name of several words each one of more than three letters counts. Errs to the side of yes.
    """
    parts = _WORDS.findall(emotion.lower())
    stems = {_stem(part) for part in parts if len(part) > 3 or len(parts) == 1}  # noqa: PLR2004 - at ease, on edge
    return not stems.isdisjoint(map(_stem, _WORDS.findall(text.lower())))


def _stem(word: str) -> str:
    """A word without its endings; one that may have lost an e is marked: ``caring`` has not the stem of ``car``."""
    stem = word[:-1] if word.endswith("s") and not word.endswith("ss") else word
    mark = ""
    while found := _ENDED.fullmatch(stem):
        stem = found["stem"]
        mark = "-" if len(stem) == 3 and found["ending"][0] in "aeiouy" else ""  # noqa: PLR2004 - car, hop, hat
        if stem[-1] == stem[-2]:
            stem = stem[:-1]
    if stem.endswith("v"):
        stem = stem[:-1] + "f"
    return _SAME.get(stem + mark, stem + mark)
