"""Whether a reply gives an answer: by whole words, after normalisation."""

from __future__ import annotations

import re
from collections.abc import Iterable

_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")


def normalised(text: str) -> str:
    """Lower case, straight apostrophes, single spaces, no marks between thousands."""
    return " ".join(_THOUSANDS.sub("", text).lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'").split())


def mentions(text: str, answers: Iterable[str]) -> bool:
    """Whether any answer stands in a text as whole words; part of a compound or of a decimal does not count."""
    plain = normalised(text)
    return any(
        re.search(rf"(?<![\w-])(?<!\d[.,:]){re.escape(normalised(answer))}(?![\w-])(?![.,:]\d)", plain)
        for answer in answers
    )
