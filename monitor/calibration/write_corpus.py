"""Has a model write a corpus of its own: every emotion on every topic, without the emotion's word.

After Sofroniew et al., "Emotion Concepts and their Function in a Large Language Model" (2026); the prompts are ours.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from monitor.calibration.keywords import names_emotion
from monitor.calibration.lines import NEUTRAL, EmotionText, plain, read_lines
from monitor.calibration.writers import Writer
from monitor.errors import CorpusError, SetupError

REGISTERS = {
    "story": "a story of one paragraph",
    "chat": "a chat message of one to four sentences, in the first person",
    "forum": "a post for an online forum, in the first person",
    "ticket": "a message to a company's support, in the first person",
    "diary": "an entry in a diary",
    "email": "a short email to somebody the writer knows",
    "work_note": "a note to colleagues at work, in the first person",
    "dialogue": "a dialogue of four to eight lines between two people",
    "news": "a short local news item that quotes one person",
}
"""What texts may be: the anchor recipe's stories, and the registers of the shipped corpus."""

_TRIES = 4
_FEWEST_WORDS = 8
_BEGIN = b'{"emotion":'
_ASIDE = re.compile(
    r"<think>.*?(</think>|$)|^\s*(sure|certainly|of course|here)\b[^\n]*:\s*\n", re.DOTALL | re.IGNORECASE
)
_REFUSAL = re.compile(
    r"((i.?m|i am) )?((sorry|afraid)\W+(but )?)?(i can.?t|i can ?not|i won.?t|(i am|i.?m) (unable|not able) to)"
    r" (help|assist|write|create|generate|provide|produce|fulfil|comply)|as an ai\b",
    re.IGNORECASE,
)


class Written(NamedTuple):
    """What a run of ``write_texts`` came to.

    Attributes:
        written: Texts it wrote.
        named: How many of these name their emotion after all.
        left_out: Texts for which no try gave anything of use; the next run tries them again.
        present: Texts that stood there before.
    """

    written: int
    named: int
    left_out: int
    present: int


class _Cell(NamedTuple):
    emotion: str
    topic: str
    register: str
    number: int


def read_topics(path: Path) -> list[str]:
    """Reads a list of topics.

    Raises:
        CorpusError: The file is missing or no JSON list of texts.
    """
    try:
        topics = json.loads(path.read_bytes())
    except OSError as error:
        raise CorpusError(str(path), f"cannot be read ({error.strerror}); name a file that can") from None
    except ValueError as error:
        raise CorpusError(str(path), f"is not JSON ({error}); write a list of topics") from None
    if (
        not isinstance(topics, list)
        or not topics
        or not all(isinstance(topic, str) and topic.strip() for topic in topics)
    ):
        raise CorpusError(str(path), "must be a list of topics, at least one, none of them empty")
    return topics


def write_texts(
    writer: Writer,
    emotions: Sequence[str],
    topics: Sequence[str],
    registers: Sequence[str],
    per_pair: int,
    target: Path,
    progress: Callable[[int, int], None],
) -> Written:
    """Has texts written, and goes on where an earlier run ended: texts that stand in the file are not written again.

    A text that names its emotion, repeats another, has fewer than eight words or is a refusal is tried again, three
    times. Then one that only names its emotion is kept, as not ``keyword_free``, and any other left out. Every text is
    flushed as soon as it is there. All pairs get their first text before any gets its second.

    Args:
        writer: Who writes.
        emotions: Names of emotions; ``neutral`` asks for texts without any.
        topics: What to write about.
        registers: Kinds of texts, of ``REGISTERS``.
        per_pair: Texts for each emotion, topic and register.
        target: Corpus file, JSON Lines; made if need be.
        progress: Told of texts done and in all.

    Raises:
        CorpusError: The file holds other lines than texts.
        SetupError: An unknown register, a file that cannot be written, or a writer that fails.
    """
    unknown = set(registers) - set(REGISTERS)
    if unknown:
        raise SetupError("--register", f"{sorted(unknown)} are not known; name some of {', '.join(REGISTERS)}")
    cells = list(_cells(emotions, topics, registers, per_pair))
    counts: Counter[str] = Counter()
    try:
        texts = _begun(target)
        held = Counter((text.emotion, text.topic, text.register_) for text in texts)
        seen = {plain(text.text) for text in texts}
        with target.open("a", encoding="utf-8") as file:
            for done, cell in enumerate(cells):
                progress(done, len(cells))
                if cell.number < held[cell[:3]]:
                    counts["present"] += 1
                    continue
                text = _write(writer, cell, seen)
                if text is None:
                    counts["left_out"] += 1
                    continue
                seen.add(plain(text.text))
                counts["written"] += 1
                counts["named"] += not text.keyword_free
                file.write(text.model_dump_json(by_alias=True) + "\n")
                file.flush()
    except OSError as error:
        raise SetupError("--out", f"{target} cannot be written ({error.strerror}); name another file") from None
    progress(len(cells), len(cells))
    return Written(**{name: counts[name] for name in Written._fields})


def _cells(emotions: Sequence[str], topics: Sequence[str], registers: Sequence[str], per_pair: int) -> Iterator[_Cell]:
    for number in range(per_pair):
        for topic in dict.fromkeys(topics):
            for emotion in dict.fromkeys(emotions):
                for register in dict.fromkeys(registers):
                    yield _Cell(emotion, topic, register, number)


def _begun(target: Path) -> list[EmotionText]:
    """Texts of an earlier run; a line in which it was cut off is taken away."""
    if not target.exists():
        return []
    raw = target.read_bytes()
    end = raw.rfind(b"\n") + 1
    last = raw[end:]
    try:
        EmotionText.model_validate_json(last)
    except ValidationError:
        if _BEGIN.startswith(last[: len(_BEGIN)]):
            os.truncate(target, end)
    else:
        with target.open("ab") as file:
            file.write(b"\n")
    return read_lines(target, EmotionText)


def _write(writer: Writer, cell: _Cell, seen: set[str]) -> EmotionText | None:
    """A text for a cell, by as many tries as it takes; none where none is of use."""
    kept = None
    for attempt in range(_TRIES):
        key = json.dumps([*cell, attempt])
        seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") >> 1
        text = _cleaned(writer.complete(_prompt(cell), seed))
        if len(text.split()) < _FEWEST_WORDS or _REFUSAL.match(text) or plain(text) in seen:
            continue
        fields = cell._asdict() | {"text": text, "keyword_free": not names_emotion(text, cell.emotion)}
        del fields["number"]
        kept = EmotionText.model_validate(fields)
        if kept.keyword_free:
            break
    return kept


def _prompt(cell: _Cell) -> str:
    feeling = (
        f"The person it is about, or who writes it, feels this: {cell.emotion}. Let it show in what happens and in "
        f'what is done, said, thought and sensed. Never use the word "{cell.emotion}", a form of it or a synonym.'
    )
    if cell.emotion == NEUTRAL:
        feeling = "It keeps to facts: nobody in it feels or shows an emotion."
    asked = f"Write {REGISTERS[cell.register]}. Topic: {cell.topic}."
    return f"{asked} {feeling} Answer with the text alone: no title, no comment."


def _cleaned(answer: str) -> str:
    """An answer without what a model says around the text, and without halves of characters."""
    return _ASIDE.sub("", answer.encode(errors="ignore").decode()).strip().strip('"“”').strip()
