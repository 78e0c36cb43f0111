"""Makes lines of the corpus of texts that others have labelled: which label counts, what stands for what they lack."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from monitor.calibration.keywords import names_emotion
from monitor.calibration.lines import NEUTRAL, EmotionText, plain
from monitor.calibration.rows import LABELS, Row, read_rows
from monitor.errors import CorpusError

_GROUPS = ("thread", "thread_id", "link_id", "author")
"""Fields whose value texts of one origin share, the widest first: such texts are held out together."""
_GIVEN = ("register", "topic", "keyword_free")
_NUMBER = re.compile(r"-?\d{1,9}")
_SHOWN = 8


class Read(NamedTuple):
    """What was read.

    Attributes:
        texts: Texts with one emotion, each once.
        left_out: How many texts have no label that was asked for, or several.
        repeated: How many texts stand there already; the first counts, whatever the label of the others.
    """

    texts: list[EmotionText]
    left_out: int
    repeated: int


def read_texts(path: Path, emotions: Sequence[str]) -> Read:
    """Reads labelled texts in any of the layouts of ``rows``.

    A text is kept when exactly one of its labels is an emotion asked for, or when ``neutral`` is its only label. Where
    the source has no ``register`` it is ``unknown``. Where it has no ``topic``, texts of one thread or author share one
    that is a hash of it; without these, every text has its own. Of ``keyword_free`` the source's word counts; else it
    is whether no form of the emotion's name stands in the text.

    Args:
        path: File or folder.
        emotions: Names of the emotions, in any case.

    Raises:
        CorpusError: A file or line that cannot be read, or none with a label asked for; names file, line and field.
        SetupError: A folder, and pyarrow is missing.
    """
    known = {name.lower(): name for name in (*emotions, NEUTRAL)}
    kept: dict[str, EmotionText] = {}
    found: dict[str, None] = {}
    left_out = repeated = 0
    for row in read_rows(path):
        labels = _labels(row)
        found |= labels
        text = _text(row)
        felt = [known[label] for label in labels if label in known and label != NEUTRAL]
        if len(felt) != 1 and list(labels) != [NEUTRAL]:
            left_out += 1
        elif plain(text) in kept:
            repeated += 1
        else:
            kept[plain(text)] = _line(row, text, felt[0] if felt else NEUTRAL)
    if not kept:
        seen = f"its labels are {', '.join(list(found)[:_SHOWN])}" if found else "it is empty"
        raise CorpusError(str(path), f"has no text with one of {', '.join(list(known)[:_SHOWN])}; {seen}")
    return Read(list(kept.values()), left_out, repeated)


def _line(row: Row, text: str, emotion: str) -> EmotionText:
    given = {name: row.fields[name] for name in _GIVEN if row.fields.get(name) not in (None, "")}
    group = next((f"{name} {row.fields[name]}" for name in _GROUPS if row.fields.get(name)), plain(text))
    computed = {
        "register": "unknown",
        "topic": f"group {hashlib.sha256(group.encode(errors='replace')).hexdigest()[:12]}",
        "keyword_free": not names_emotion(text, emotion),
    }
    try:
        return EmotionText.model_validate(computed | given | {"emotion": emotion, "text": text}, context=row.place)
    except ValidationError as error:
        first = error.errors()[0]
        raise CorpusError(f"{row.place}:{first['loc'][0]}", f"{first['msg']}; correct it") from None


def _text(row: Row) -> str:
    if "text" not in row.fields:
        raise CorpusError(f"{row.place}:text", f"is missing; give the texts' column of {list(row.fields)} this name")
    text = row.fields["text"]
    if not isinstance(text, str) or not text.strip():
        raise CorpusError(f"{row.place}:text", "is no text or an empty one; write a text or remove the line")
    return text


def _labels(row: Row) -> dict[str, None]:
    """Names of a row's labels in lower case, each once, in their order."""
    field = next((name for name in LABELS if name in row.fields), None)
    if field is None:
        raise CorpusError(
            f"{row.place}:label", f"is missing, as are emotion and labels; give one of {list(row.fields)} this name"
        )
    value = row.fields[field]
    if isinstance(value, str):
        value = [part.strip(" []'\"") for part in value.split(",")]
    labels = value if isinstance(value, list) and value else [value]
    return {_name(f"{row.place}:{field}", label, row.names): None for label in labels}


def _name(place: str, label: Any, names: Sequence[str]) -> str:
    if isinstance(label, str) and label and not _NUMBER.fullmatch(label):
        return label.lower()
    if isinstance(label, bool) or not isinstance(label, int | str) or label == "":
        raise CorpusError(place, f"{label!r} is no label; give a name or a number, {NEUTRAL} where nothing is felt")
    if not names:
        raise CorpusError(place, f"{label} is a number that nothing names; put labels.txt beside it, a name a line")
    if not 0 <= int(label) < len(names):
        raise CorpusError(
            place, f"{label} is out of range: labels 0 to {len(names) - 1} are named; correct one of both"
        )
    return names[int(label)].strip().lower()
