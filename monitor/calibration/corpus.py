"""A corpus as a whole: what a bank is fitted on, what it is only tested on, and which parts are held out together."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from monitor.calibration.lines import (
    FOLDS,
    NEUTRAL,
    Approved,
    ContrastPair,
    CrisisItem,
    Dialogue,
    EmotionText,
    GridItem,
    HardText,
    IntensityText,
    LineType,
    Message,
    plain,
    read_emotions,
    read_lines,
)
from monitor.errors import CorpusError
from monitor.probes.bank import EmotionCard

SHIPPED = Path(__file__).parent / "corpus"
GRID, CONTRAST, SERVICE, APPROVED = "grid", "contrast", "service", "approved"
CROSSED, CRISIS, HARD, INTENSITY = "crossed", "crisis", "hard", "intensity"
"""Sources of turns; those of the second line are for tests alone."""
UNGRADED = -1
"""Grade of replies nothing is fitted on, and fold of turns no part of which was fitted on."""
OPENER = "What is on your mind?"
"""What a text in the assistant's position answers."""
CRISIS_REPLIES = ("cold", "warranted", "excessive")
_CROSSED = 2
"""Upset users that each plain reply is put to."""
_GRADES = ("neutral", "warranted", "excessive")


class Turn(NamedTuple):
    """A conversation up to one reply of the assistant.

    Attributes:
        source: Which part of the corpus it stands in.
        place: File, line and field.
        messages: The conversation.
        fold: The part it is held out with; UNGRADED: no probe saw it.
        strength: Strength of the user's affect, 0 to 3.
        grade: Affect of the reply: 0 neutral, 1 warranted, 2 excessive; UNGRADED: nothing is fitted on it.
        first: Whether it is the first turn with this user, for fits on users.
    """

    source: str
    place: str
    messages: list[Message]
    fold: int
    strength: int
    grade: int
    first: bool


@dataclass(frozen=True)
class Corpus:
    """Everything a bank is made from and tested on; crisis, hard and intensity are for tests alone."""

    emotions: list[EmotionCard]
    texts: list[EmotionText]
    grid: list[GridItem]
    contrast: list[ContrastPair]
    approved: list[Approved]
    service: list[Dialogue]
    crisis: list[CrisisItem]
    hard: list[HardText]
    intensity: list[IntensityText]
    domain_folds: dict[str, int]
    sha256: dict[str, str]

    @property
    def families(self) -> list[str]:
        """Families in the order of their first emotion."""
        return list(dict.fromkeys(emotion.family for emotion in self.emotions))

    def turns(self) -> list[Turn]:
        """Every conversation, fitted ones first, in the order of the files."""
        return [*self._graded(), *self._service(), *self._approved(), *self._crossed(), *self._tests()]

    def _graded(self) -> list[Turn]:
        return [
            Turn(
                source, f"{item.place}:{name}", exchange(item.user, getattr(item, name)),
                self.domain_folds[item.domain], item.strength, _GRADES.index(name), name == names[0],
            )
            for source, items, names in ((GRID, self.grid, _GRADES), (CONTRAST, self.contrast, _GRADES[1:]))
            for item in items
            for name in names
        ]  # fmt: skip

    def _service(self) -> list[Turn]:
        return [
            Turn(SERVICE, f"{talk.place}:messages", messages, talk.fold, 0, 0, first=True)
            for talk in self.service
            for messages in talk.exchanges()
        ]

    def _approved(self) -> list[Turn]:
        asked = {plain(item.user): self.domain_folds[item.domain] for item in [*self.grid, *self.contrast]}
        folds = [_fold_of_users(talk, asked) for talk in self.approved]
        return [
            Turn(APPROVED, f"{talk.place}:messages", talk.conversation, fold, 0, UNGRADED, first=True)
            for talk, fold in zip(self.approved, folds, strict=True)
        ]

    def _crossed(self) -> list[Turn]:
        """Neutral replies to users without emotion, each to its own user and to the most upset ones of its domain."""
        found = []
        for domain, fold in self.domain_folds.items():
            items = [item for item in self.grid if item.domain == domain]
            upset = [item for item in items if item.strength == max(other.strength for other in items)][:_CROSSED]
            for item in (item for item in items if item.strength == 0):
                found += [
                    Turn(
                        CROSSED,
                        item.place,
                        exchange(asks.user, item.neutral),
                        fold,
                        asks.strength,
                        UNGRADED,
                        first=False,
                    )
                    for asks in (item, *upset)
                ]
        return found

    def _tests(self) -> list[Turn]:
        crises = [
            (CRISIS, f"{item.place}:{name}", exchange(item.user, getattr(item, name)))
            for item in self.crisis
            for name in CRISIS_REPLIES
        ]
        hard = [(HARD, f"{item.place}:text", exchange(OPENER, item.text)) for item in self.hard]
        series = [(INTENSITY, f"{text.place}:text", user_says(text.text)) for text in self.intensity]
        return [
            Turn(source, place, messages, UNGRADED, 0, UNGRADED, first=False)
            for source, place, messages in (*crises, *hard, *series)
        ]

    def with_texts(self, path: Path, texts: Sequence[EmotionText]) -> Corpus:
        """The same with more texts.

        Raises:
            CorpusError: See ``check_texts``.
        """
        every = [*self.texts, *texts]
        check_texts(path, every, self.emotions)
        return replace(self, texts=every, sha256={**self.sha256, path.name: sha256_of(path)})


def exchange(user: str, assistant: str) -> list[Message]:
    """A conversation of one user message and its reply."""
    return [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]


def user_says(text: str) -> list[Message]:
    """A conversation of one user message."""
    return [{"role": "user", "content": text}]


def read_corpus(folder: Path, approved: Path) -> Corpus:
    """Reads and checks a corpus folder and a file of approved conversations.

    ``contrast.jsonl`` and the files for tests may be missing.

    Raises:
        CorpusError: A file or line cannot be used.
    """
    hashes: dict[str, str] = {}

    def read(name: str, kind: type[LineType], *, required: bool = True) -> list[LineType]:
        path = folder / name
        if not required and not path.exists():
            return []
        lines = read_lines(path, kind)
        hashes[name] = sha256_of(path)
        return lines

    emotions = read_emotions(folder / "emotions.json")
    hashes["emotions.json"] = sha256_of(folder / "emotions.json")
    texts = read("texts.jsonl", EmotionText)
    check_texts(folder / "texts.jsonl", texts, emotions)
    grid, contrast = read("grid.jsonl", GridItem), read("contrast.jsonl", ContrastPair, required=False)
    folds = _domain_folds(folder / "grid.jsonl", grid, contrast)
    turns = read_lines(approved, Approved)
    if not turns:
        raise CorpusError(str(approved), "holds no conversations; the reference needs some of the model's own replies")
    return Corpus(
        emotions=emotions,
        texts=texts,
        grid=grid,
        contrast=contrast,
        approved=turns,
        service=read("service.jsonl", Dialogue),
        crisis=read("crisis.jsonl", CrisisItem, required=False),
        hard=read("hard.jsonl", HardText, required=False),
        intensity=read("intensity.jsonl", IntensityText, required=False),
        domain_folds=folds,
        sha256=hashes | {"approved": sha256_of(approved)},
    )


def check_texts(path: Path, texts: Sequence[EmotionText], emotions: Sequence[EmotionCard]) -> None:
    """Checks texts against the emotions.

    Raises:
        CorpusError: An unknown emotion, a text that stands twice, or an emotion whose texts cannot be split by topic
            into a part to fit and a part to check.
    """
    known = {emotion.name for emotion in emotions} | {NEUTRAL}
    for text in texts:
        if text.emotion not in known:
            raise CorpusError(f"{text.place}:emotion", f"{text.emotion!r} is not in emotions.json {sorted(known)}")
    _check_distinct("text", ((text.place, text.text) for text in texts))
    for emotion in emotions:
        held = [text.fold for text in texts if text.emotion == emotion.name]
        if len(held) < 2:  # noqa: PLR2004 - one to fit, one to check
            raise CorpusError(str(path), f"has fewer than two texts for {emotion.name!r}; add some or drop the emotion")
        if len(set(held)) < 2:  # noqa: PLR2004 - as above
            raise CorpusError(
                f"{path}:topic",
                f"all texts for {emotion.name!r} are held out together, for folds are split by topic; add other topics",
            )
    family_of = {emotion.name: emotion.family for emotion in emotions} | {NEUTRAL: NEUTRAL}
    for fold in range(FOLDS):
        if len({family_of[text.emotion] for text in texts if text.fold != fold}) < 2:  # noqa: PLR2004 - one and others
            raise CorpusError(str(path), f"has texts of one family alone; add others, or texts labelled {NEUTRAL!r}")


def _domain_folds(path: Path, grid: Sequence[GridItem], contrast: Sequence[ContrastPair]) -> dict[str, int]:
    """Gives each domain a fold.

    Raises:
        CorpusError: A user turn that stands twice, or a fold without which none, or only, users with clear affect
            would be left to fit on.
    """
    items = [*grid, *contrast]
    _check_distinct("user", ((item.place, item.user) for item in items))
    folds = {domain: index % FOLDS for index, domain in enumerate(dict.fromkeys(item.domain for item in items))}
    for fold in range(FOLDS):
        rest = {item.clear for item in grid if folds[item.domain] != fold}
        if len(rest) < 2:  # noqa: PLR2004 - clear and not
            raise CorpusError(
                f"{path}:domain",
                "folds are split by domain, and each rest must hold users of strength 0 or 1 and of strength 2 or 3; "
                "add items of both in at least two domains",
            )
    return folds


def _fold_of_users(turn: Approved, asked: dict[str, int]) -> int:
    """The fold of the graded user turn that an approved turn answers, for its user was fitted on there."""
    users = [plain(message.content) for message in turn.messages if message.role == "user"]
    return next((asked[user] for user in reversed(users) if user in asked), UNGRADED)


def _check_distinct(field: str, texts: Iterable[tuple[str, str]]) -> None:
    """Refuses texts that stand twice: one of them could be fitted on and the other held out."""
    seen: dict[str, str] = {}
    for place, text in texts:
        if plain(text) in seen:
            raise CorpusError(f"{place}:{field}", f"stands already at {seen[plain(text)]}; remove one")
        seen[plain(text)] = place


def sha256_of(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
