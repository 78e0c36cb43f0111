"""Reads corpora: authored texts, the grid of replies, approved conversations. Every error names file and line."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from monitor.errors import CorpusError
from monitor.probes.bank import EmotionCard

SHIPPED = Path(__file__).parent / "corpus"
NEUTRAL = "neutral"
"""Label of texts that carry no emotion: they count among the others of every emotion."""

Text = Annotated[str, Field(min_length=1)]


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class EmotionText(_Line):
    """A short text somebody wrote who felt one emotion."""

    emotion: str
    register_: str = Field(alias="register")
    topic: str
    keyword_free: bool
    text: Text


class GridItem(_Line):
    """A user turn and three replies of the same content: without affect, with what is warranted, with too much."""

    domain: str
    user_emotion: str
    strength: int = Field(ge=0, le=3)
    user: Text
    neutral: Text
    warranted: Text
    excessive: Text
    excess_kind: str
    excess_lexical: bool
    neutral_names_emotion: bool


class ChatMessage(_Line):
    """One message of a conversation."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str


class Approved(_Line):
    """A conversation the operator holds to be as it should be; its last message is the assistant's."""

    messages: tuple[ChatMessage, ...] = Field(min_length=2)
    labels: dict[str, str] = Field(default_factory=dict)

    @property
    def conversation(self) -> list[dict[str, str]]:
        """The messages as chat templates take them."""
        return [message.model_dump() for message in self.messages]


LineType = TypeVar("LineType", bound=_Line)


def read_lines(path: Path, kind: type[LineType]) -> list[LineType]:
    """Reads a JSON Lines file.

    Raises:
        CorpusError: The file is missing or a line is not of its kind; names file, line and field.
    """
    return [_parse(path, number, raw, kind) for number, raw in _numbered(path)]


def read_emotions(path: Path) -> list[EmotionCard]:
    """Reads the list of emotions with family, valence and arousal.

    Raises:
        CorpusError: The file is missing or not valid.
    """
    try:
        return [EmotionCard.model_validate(entry) for entry in json.loads(path.read_bytes())]
    except (OSError, ValueError) as error:
        raise CorpusError(str(path), f"is no list of emotions: {error}") from None


def check_texts(path: Path, texts: list[EmotionText], emotions: list[EmotionCard]) -> None:
    """Checks texts against the emotions.

    Raises:
        CorpusError: An unknown emotion, a text that stands twice, or an emotion with fewer than two texts.
    """
    known = {emotion.name for emotion in emotions} | {NEUTRAL}
    seen: dict[str, int] = {}
    for number, text in enumerate(texts, 1):
        if text.emotion not in known:
            raise CorpusError(f"{path}:{number}:emotion", f"{text.emotion!r} is not in emotions.json {sorted(known)}")
        if text.text in seen:
            raise CorpusError(f"{path}:{number}:text", f"stands already on line {seen[text.text]}; remove one")
        seen[text.text] = number
    for emotion in emotions:
        if sum(text.emotion == emotion.name for text in texts) < 2:  # noqa: PLR2004 - one to fit, one to check
            raise CorpusError(str(path), f"has fewer than two texts for {emotion.name!r}; add some or drop the emotion")


def sha256_of(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _numbered(path: Path) -> Iterator[tuple[int, bytes]]:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise CorpusError(str(path), f"{error.strerror}") from None
    for number, line in enumerate(raw.splitlines(), 1):
        if line.strip():
            yield number, line


def _parse(path: Path, number: int, raw: bytes, kind: type[LineType]) -> LineType:
    try:
        return kind.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "(line)"
        raise CorpusError(f"{path}:{number}:{field}", first["msg"]) from None
