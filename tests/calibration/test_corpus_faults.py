"""Tests of bad corpora: every fault is named by file, line and field before a model runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_corpus import NAMES, Files, changed, make_corpus, optional_parts, read, write_corpus

from monitor.errors import CorpusError


def whole_corpus() -> Files:
    """A corpus with every file."""
    return make_corpus() | optional_parts()


def broken(name: str, number: int, raw: str) -> Callable[[Path], None]:
    """Replaces one line of a file."""

    def do(folder: Path) -> None:
        lines = (folder / name).read_text().splitlines()
        lines[number - 1] = raw
        (folder / name).write_text("\n".join(lines))

    return do


def edited(file: str, number: int, **fields: Any) -> Callable[[Path], None]:
    """Sets fields of one line; None takes a field out."""
    return lambda folder: write_corpus(folder, changed(whole_corpus(), file, number, **fields)) and None


def kept(name: str, keep: Callable[[dict[str, Any]], bool]) -> Callable[[Path], None]:
    """Keeps some entries of a file."""
    files = make_corpus()
    return lambda folder: write_corpus(folder, {**files, name: [e for e in files[name] if keep(e)]}) and None


def said(*messages: tuple[str, str]) -> list[dict[str, str]]:
    """Messages by role and content."""
    return [{"role": role, "content": content} for role, content in messages]


def first_of(name: str, field: str) -> Any:
    """A field of the first line of a file."""
    return make_corpus()[name][0][field]


TEXTS, GRID, APPROVED, EMOTIONS = "texts.jsonl", "grid.jsonl", "approved.jsonl", "emotions.json"
SERVICE, CONTRAST, HARD, INTENSITY = "service.jsonl", "contrast.jsonl", "hard.jsonl", "intensity.jsonl"
BAD = {
    "not JSON": (broken(TEXTS, 3, "{oops"), f"{TEXTS}:3:(line)"),
    "not an object": (broken(GRID, 2, "[1]"), f"{GRID}:2:(line)"),
    "unknown emotion": (edited(TEXTS, 4, emotion="hunger"), f"{TEXTS}:4:emotion"),
    "missing label": (edited(TEXTS, 5, emotion=None), f"{TEXTS}:5:emotion"),
    "missing reply": (edited(GRID, 5, warranted=None), f"{GRID}:5:warranted"),
    "empty text": (edited(TEXTS, 6, text=""), f"{TEXTS}:6:text"),
    "blank text": (edited(TEXTS, 6, text=" \n"), f"{TEXTS}:6:text"),
    "blank reply": (edited(GRID, 3, excessive="  "), f"{GRID}:3:excessive"),
    "strength out of bounds": (edited(GRID, 3, strength=4), f"{GRID}:3:strength"),
    "unknown field": (edited(TEXTS, 7, mood="odd"), f"{TEXTS}:7:mood"),
    "duplicate": (edited(TEXTS, 9, text=first_of(TEXTS, "text")), f"{TEXTS}:9:text"),
    "duplicate but for case": (edited(TEXTS, 9, text=first_of(TEXTS, "text").upper() + " "), f"{TEXTS}:9:text"),
    "duplicate user": (edited(GRID, 9, user=first_of(GRID, "user")), f"{GRID}:9:user"),
    "user of the grid in a pair": (edited(CONTRAST, 2, user=first_of(GRID, "user") + " "), f"{CONTRAST}:2:user"),
    "pair without its kind": (edited(CONTRAST, 3, twin_hard=None), f"{CONTRAST}:3:twin_hard"),
    "crisis without a cold reply": (edited("crisis.jsonl", 1, cold=None), "crisis.jsonl:1:cold"),
    "hard text of another kind": (edited(HARD, 2, kind="musing"), f"{HARD}:2:kind"),
    "level below none": (edited(INTENSITY, 4, level=-1), f"{INTENSITY}:4:level"),
    "unknown role": (edited(APPROVED, 2, messages=said(("user", "a"), ("bot", "b"))), f"{APPROVED}:2:messages.1.role"),
    "no reply": (edited(APPROVED, 2, messages=said(("assistant", "a"), ("user", "b"))), f"{APPROVED}:2:(line)"),
    "no user": (edited(APPROVED, 2, messages=said(("system", "a"), ("assistant", "b"))), f"{APPROVED}:2:(line)"),
    "empty reply": (edited(APPROVED, 2, messages=said(("user", "a"), ("assistant", " "))), f"{APPROVED}:2:(line)"),
    "service without a user": (edited(SERVICE, 1, messages=said(*[("assistant", "a")] * 2)), f"{SERVICE}:1:(line)"),
    "service that greets first": (
        edited(SERVICE, 2, messages=said(("assistant", "a"), ("user", "b"), ("assistant", "c"))),
        f"{SERVICE}:2:(line)",
    ),
    "service with a blank": (
        edited(SERVICE, 2, messages=said(("user", "a"), ("assistant", "b"), ("user", " "), ("assistant", "c"))),
        f"{SERVICE}:2:(line)",
    ),
    "nothing approved": (kept(APPROVED, lambda _: False), APPROVED),
    "one text only": (kept(TEXTS, lambda e: e["emotion"] != "joy" or e["topic"] == "topic 1"), TEXTS),
    "one domain only": (kept(GRID, lambda e: e["domain"] == "domain 1"), f"{GRID}:domain"),
    "no clear user": (kept(GRID, lambda e: e["strength"] < 2), f"{GRID}:domain"),
    "emotion twice": (edited(EMOTIONS, 2, name="joy"), f"{EMOTIONS}:entry 2:name"),
    "emotion called neutral": (edited(EMOTIONS, 2, name="neutral"), f"{EMOTIONS}:entry 2:name"),
    "valence out of bounds": (edited(EMOTIONS, 3, valence=2), f"{EMOTIONS}:entry 3:valence"),
    "emotions not JSON": (broken(EMOTIONS, 1, "[{"), EMOTIONS),
    "emotions not a list": (broken(EMOTIONS, 1, "5"), EMOTIONS),
    "no emotions": (broken(EMOTIONS, 1, "[]"), EMOTIONS),
}


class TestBadCorpora:
    """What is refused, and how it is named."""

    @pytest.mark.parametrize(("do", "field"), BAD.values(), ids=list(BAD))
    def test_a_fault_names_file_line_and_field(self, corpus_folder: Path, do: Any, field: str) -> None:
        """Every kind of bad line is a CorpusError that names where it stands."""
        do(corpus_folder)
        with pytest.raises(CorpusError) as caught:
            read(corpus_folder)
        assert caught.value.field == f"{corpus_folder}/{field}"

    @pytest.mark.parametrize("name", NAMES)
    def test_a_missing_file_is_named(self, corpus_folder: Path, name: str) -> None:
        """A missing file is a CorpusError that names it."""
        (corpus_folder / name).unlink()
        with pytest.raises(CorpusError, match="No such file") as caught:
            read(corpus_folder)
        assert caught.value.field == str(corpus_folder / name)

    def test_all_texts_of_an_emotion_in_one_fold(self, corpus_folder: Path) -> None:
        """An emotion whose topics are all held out together could not be fitted, and is refused."""
        files = make_corpus()
        for entry in files[TEXTS]:
            entry["topic"] = "one" if entry["emotion"] == "joy" else entry["topic"]
        write_corpus(corpus_folder, files)
        with pytest.raises(CorpusError, match="held out together"):
            read(corpus_folder)

    def test_one_family_alone(self, corpus_folder: Path) -> None:
        """A corpus of one family and no neutral texts has nothing to tell it from, and is refused."""
        files = make_corpus()
        files[EMOTIONS] = [entry for entry in files[EMOTIONS] if entry["family"] == "warmth"]
        names = {entry["name"] for entry in files[EMOTIONS]}
        files[TEXTS] = [entry for entry in files[TEXTS] if entry["emotion"] in names]
        write_corpus(corpus_folder, files)
        with pytest.raises(CorpusError, match="one family alone"):
            read(corpus_folder)
