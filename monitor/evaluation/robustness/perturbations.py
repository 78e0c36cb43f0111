"""Perturbations of a text: each a function from text to text, so that they compose."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from monitor.evaluation.item_files import ITEMS

_SENTENCE = re.compile(r"(?<=[.!?…])[\"'”]?\s+")


def read_perturbations(path: Path = ITEMS / "perturbations.json") -> tuple[list[dict[str, Any]], list[str]]:
    """The perturbations of a file, and its neutral sentences for padding."""
    read = json.loads(path.read_text(encoding="utf-8"))
    return read["perturbations"], read["padding"]


def perturb(text: str, how: Mapping[str, Any], padding: Sequence[str]) -> str:
    """A text with one perturbation: words first, then sentences, then what stands around them.

    One with a system prompt leaves the text as it is.
    """
    for old, new in how.get("replace", ()):
        text = _replaced(text, old, new)
    text = text.translate(str.maketrans("", "", how.get("strip", "")))
    text = {"lower": text.lower(), "upper": text.upper()}.get(how.get("case", ""), text)
    if {"sentence", "join", "order"} & how.keys():
        text = _by_sentence(sentences(text), how)
    text = "\n".join([text] * int(how.get("repeat", 1)))
    text = how.get("before", "") + text + how.get("after", "")
    return _padded(text, how["pad"], padding) if "pad" in how else text


def sentences(text: str) -> list[str]:
    """The sentences of a text, by their end marks alone."""
    return [part for part in _SENTENCE.split(text.strip()) if part]


def _replaced(text: str, old: str, new: str) -> str:
    """Replaces a whole word, keeping a capital at its start; a word that goes takes its space along."""
    word = old[0].isalpha()
    left, right = (r"(?<![\w'\u2019])", r"(?![\w'\u2019])") if word else ("", "")
    pattern = re.compile(f"{left}{re.escape(old)}{right}" + ("" if new else r"\s?"), re.IGNORECASE)

    def chosen(found: re.Match[str]) -> str:
        capital = word and old[0].islower() and found[0][0].isupper()
        return new[:1].upper() + new[1:] if capital else new

    return pattern.sub(chosen, text)


def _by_sentence(parts: list[str], how: Mapping[str, Any]) -> str:
    ordered = parts[::-1] if how.get("order") == "reverse" else parts
    template = how.get("sentence", "{}")
    made = [
        template.replace("{i}", str(i)).replace("{lower}", _lowered(part)).replace("{}", part)
        for i, part in enumerate(ordered, start=1)
    ]
    return str(how.get("join", " ")).join(made)


def _lowered(part: str) -> str:
    """A sentence with a small first letter, unless its first word is ``I`` or all capitals."""
    return part[:1].lower() + part[1:] if part[1:2].islower() else part


def _padded(text: str, pad: Mapping[str, Any], padding: Sequence[str]) -> str:
    """Neutral sentences around a text, at least ``times`` its words in all; short lists are gone through again."""
    wanted, chosen, words = int(pad["times"]) * len(text.split()), [], 0
    for sentence in islice(cycle(padding), wanted):
        if words >= wanted:
            break
        chosen.append(sentence)
        words += len(sentence.split())
    half = len(chosen) // 2
    if pad["where"] == "between":
        parts = sentences(text)
        share = -(-len(chosen) // len(parts))
        return " ".join(" ".join([part, *chosen[i * share : (i + 1) * share]]) for i, part in enumerate(parts)).strip()
    before = {"before": chosen, "after": [], "around": chosen[:half]}[pad["where"]]
    return " ".join([*before, text, *chosen[len(before) :]])
