"""The kinds of lines a corpus is made of, and how files of them are read. Every error names file, line and field."""

from __future__ import annotations

import codecs
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, model_validator

from monitor.errors import CorpusError
from monitor.probes.bank import EmotionCard

Message = dict[str, str]
"""A message as chat templates take it: role and content."""

NEUTRAL = "neutral"
"""Label of texts that carry no emotion: they count among the others of every emotion."""

FOLDS = 4
"""Parts of a corpus that are held out in turn."""

CLEAR = 2
"""Strength from which a user's affect is clear; 3 is intense."""


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("is empty; write a text or remove the line")
    return text


Text = Annotated[str, AfterValidator(_not_blank)]


def fold_of(group: str) -> int:
    """The fold of all lines that share a topic or domain."""
    return hashlib.sha256(group.lower().encode()).digest()[0] % FOLDS


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    _place: str = PrivateAttr("")

    def model_post_init(self, context: Any, /) -> None:
        """Notes where the line was read."""
        self._place = str(context or "")

    @property
    def place(self) -> str:
        """File and line it was read from, for errors that show up later; empty where it was not read."""
        return self._place


class EmotionText(_Line):
    """A short text somebody wrote who felt one emotion."""

    emotion: str
    register_: str = Field(alias="register")
    topic: str
    keyword_free: bool
    text: Text

    @property
    def fold(self) -> int:
        """The part of the corpus it is held out with: all texts of one topic share it."""
        return fold_of(self.topic)


class _Exchange(_Line):
    """A user turn to which several replies were written."""

    domain: str
    user_emotion: str
    strength: int = Field(ge=0, le=3)
    user: Text
    warranted: Text
    excessive: Text
    excess_kind: str

    @property
    def clear(self) -> bool:
        """Whether the user's affect is clear or intense."""
        return self.strength >= CLEAR


class GridItem(_Exchange):
    """A user turn and three replies of the same content: without affect, with what is warranted, with too much."""

    neutral: Text
    excess_lexical: bool
    neutral_names_emotion: bool


class ContrastPair(_Exchange):
    """A user turn and two replies that much the same words carry: a warranted and an excessive one.

    Attributes:
        twin_hard: Whether it belongs to the part on which text twins stay at chance or little above.
    """

    twin_hard: bool


class CrisisItem(_Line):
    """An acute crisis and three replies: a cold one, which is the fault here, a warranted and an excessive one."""

    domain: str
    user: Text
    cold: Text
    warranted: Text
    excessive: Text


class HardText(_Line):
    """A text in which an emotion is spoken of but not felt, or felt but not shown."""

    kind: Literal["reasoning", "quoting", "denying", "suppressed", "contradictory"]
    emotion: str
    text: Text


class IntensityText(_Line):
    """A text of a series in which only a quantity rises with the level, and the emotion with it."""

    series: str
    level: int = Field(ge=0)
    phrasing: int = Field(ge=0)
    emotion: str
    text: Text


class ChatMessage(_Line):
    """One message of a conversation."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str


class Approved(_Line):
    """A conversation the operator holds to be as it should be; its last message is the assistant's."""

    messages: tuple[ChatMessage, ...] = Field(min_length=2)
    labels: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _asked_and_answered(self) -> Approved:
        said = [message.role for message in self.messages if message.content.strip()]
        if "user" not in said or self.messages[-1].role != "assistant" or not self.messages[-1].content.strip():
            raise ValueError("must hold a user's message and end with the assistant's reply to it, neither empty")
        return self

    @property
    def conversation(self) -> list[Message]:
        """The messages as chat templates take them."""
        return [message.model_dump() for message in self.messages]


class Dialogue(_Line):
    """A plain service dialogue: every exchange of it is as it should be."""

    domain: str
    messages: tuple[ChatMessage, ...] = Field(min_length=2)

    @model_validator(mode="after")
    def _asked_and_answered(self) -> Dialogue:
        roles = [message.role for message in self.messages]
        if "assistant" not in roles or "user" not in roles[: roles.index("assistant")]:
            raise ValueError(
                "must hold a user's message before the assistant's first, so that every reply has its user"
            )
        if not all(message.content.strip() for message in self.messages):
            raise ValueError("must hold no empty message; write a text or remove the message")
        return self

    @property
    def fold(self) -> int:
        """The part of the corpus it is held out with: all dialogues of one domain share it."""
        return fold_of(self.domain)

    def exchanges(self) -> list[list[Message]]:
        """The dialogue up to each of the assistant's replies."""
        messages = [message.model_dump() for message in self.messages]
        return [messages[: end + 1] for end, message in enumerate(messages) if message["role"] == "assistant"]


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
        CorpusError: The file is missing or not valid; names the entry and field.
    """
    try:
        entries = json.loads(path.read_bytes())
    except OSError as error:
        raise CorpusError(str(path), f"{error.strerror}; name one that can be read") from None
    except (ValueError, RecursionError) as error:
        raise CorpusError(str(path), f"is not JSON: {error}; correct it or name another file") from None
    if not isinstance(entries, list) or not entries:
        raise CorpusError(str(path), "must be a list of emotions, at least one")
    emotions: list[EmotionCard] = []
    names = {NEUTRAL}
    for number, entry in enumerate(entries, 1):
        try:
            emotions.append(EmotionCard.model_validate(entry))
        except ValidationError as error:
            raise _line_error(f"{path}:entry {number}", error) from None
        if emotions[-1].name in names:
            taken = "means no emotion" if emotions[-1].name == NEUTRAL else "stands already"
            raise CorpusError(f"{path}:entry {number}:name", f"{emotions[-1].name!r} {taken}; take another name")
        names.add(emotions[-1].name)
    return emotions


def plain(text: str) -> str:
    """A text without what two copies of it may differ in: case and spaces."""
    return " ".join(text.casefold().split())


def _numbered(path: Path) -> Iterator[tuple[int, bytes]]:
    try:
        raw = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    except OSError as error:
        raise CorpusError(str(path), f"{error.strerror}; name one that can be read") from None
    for number, line in enumerate(raw.splitlines(), 1):
        if line.strip():
            yield number, line


def _parse(path: Path, number: int, raw: bytes, kind: type[LineType]) -> LineType:
    place = f"{path}:{number}"
    try:
        return kind.model_validate_json(raw, context=place)
    except ValidationError as error:
        raise _line_error(place, error) from None


def _line_error(place: str, error: ValidationError) -> CorpusError:
    first = error.errors()[0]
    field = ".".join(map(str, first["loc"])) or "(line)"
    message = first["msg"].removeprefix("Value error, ")
    return CorpusError(f"{place}:{field}", message if ";" in message else f"{message}; correct or remove it")
