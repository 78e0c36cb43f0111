"""Texts whose emotion is known, and which perturbations each of them is read under."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from monitor.calibration.lines import NEUTRAL, Message
from monitor.calibration.tables import as_texts
from monitor.evaluation.item_files import ITEMS, item_lines
from monitor.evaluation.robustness.perturbations import perturb, read_perturbations

CLEAN = "clean"
PADDING = "padding"
COMPOSED = (("suppression", "style"), ("denial", "language"), ("system_cold", "suppression"))
"""Families of which one perturbation each is applied, one after the other."""
_POSITIONS = ("user", "assistant")


class Item(NamedTuple):
    """A text with its emotion.

    Attributes:
        pair: Texts of one pair share setting and position; with emotions stands one without any.
        emotion: Name of the emotion, or neutral.
        position: Who writes it: 0 a user, 1 the assistant.
        text: The text.
    """

    pair: str
    emotion: str
    position: int
    text: str


class Items(NamedTuple):
    """Texts, perturbations as ``perturb`` takes them, and neutral sentences for padding."""

    texts: list[Item]
    perturbations: list[dict[str, Any]]
    padding: list[str]

    @property
    def emotions(self) -> list[str]:
        """Emotions in the order of their first text."""
        return [name for name in dict.fromkeys(item.emotion for item in self.texts) if name != NEUTRAL]

    def only(self, emotions: Sequence[str]) -> Items:
        """The same with texts of some emotions, and the neutral ones of their pairs."""
        pairs = {item.pair for item in self.texts if item.emotion in emotions}
        kept = [item for item in self.texts if item.pair in pairs and item.emotion in (*emotions, NEUTRAL)]
        return self._replace(texts=kept)


class Kind(NamedTuple):
    """A kind of perturbation.

    Attributes:
        name: Its name in ids of measures.
        family: The same, but for padding, whose lengths are kinds of one family.
        groups: Perturbations, by index, of which one each is applied.
        about: Whether the text is then only talked about: the writer need not have the emotion.
    """

    name: str
    family: str
    groups: list[list[int]]
    about: bool


class Case(NamedTuple):
    """A text to be read.

    Attributes:
        kind: Name of the kind of perturbation, or clean.
        item: Index of the text.
        how: Indices of the perturbations, applied in order.
        sign: Valence, -1 or 1, of the emotions it stands for or, without emotion, stands against.
    """

    kind: str
    item: int
    how: tuple[int, ...]
    sign: int


def read_items(folder: Path = ITEMS) -> Items:
    """The authored items of a folder."""
    rows = item_lines("recognition.jsonl", folder)
    texts = [Item(row["pair"], row["emotion"], _POSITIONS.index(row["speaker"]), row["text"]) for row in rows]
    return Items(texts, *read_perturbations(folder / "perturbations.json"))


def kinds_of(perturbations: Sequence[Mapping[str, Any]]) -> list[Kind]:
    """Kinds of perturbation: families, padding by its length, and compositions of two."""
    groups: dict[tuple[str, str], list[int]] = {}
    for index, each in enumerate(perturbations):
        name = f"{PADDING}_{each['pad']['times']}x" if "pad" in each else each["family"]
        groups.setdefault((name, each["family"]), []).append(index)
    about = {each["family"] for each in perturbations if each["expect"] == "about"}
    single = [Kind(name, family, [group], family in about) for (name, family), group in groups.items()]
    by_name = {kind.name: kind for kind in single}
    composed = [
        Kind(name, name, [by_name[part].groups[0] for part in parts], about=False)
        for parts in COMPOSED
        for name in ("_with_".join(parts),)
        if by_name.keys() >= set(parts)
    ]
    return [*single, *composed]


def plan(
    items: Items, kinds: Sequence[Kind], signs: Mapping[str, int], pairs: int, padded: int, rng: np.random.Generator
) -> list[Case]:
    """Which texts are read how: each once under every kind, the texts of a pair under the same perturbations.

    Args:
        items: Texts and perturbations.
        kinds: Kinds of perturbation.
        signs: Sign of each emotion's valence, which decides what contradicts it.
        pairs: Pairs taken of each set of emotions in each position.
        padded: Of these, pairs that are padded: padded texts are long.
        rng: Draws pairs and perturbations; those of a family come up equally often.
    """
    strata: dict[tuple[object, ...], list[str]] = {}
    members: dict[str, list[int]] = {}
    for index, item in enumerate(items.texts):
        members.setdefault(item.pair, []).append(index)
    for pair, held in members.items():
        emotions = tuple(sorted(items.texts[index].emotion for index in held))
        strata.setdefault((emotions, items.texts[held[0]].position), []).append(pair)
    drawn = [list(rng.permutation(stratum))[:pairs] for stratum in strata.values()]
    every = [pair for stratum in drawn for pair in stratum]
    fewer = [pair for stratum in drawn for pair in stratum[:padded]]
    cases = list(_cases(items, CLEAN, [(members[pair], {-1: (), 1: ()}) for pair in every], signs))
    for kind in kinds:
        chosen = [members[pair] for pair in (fewer if kind.family == PADDING else every)]
        cases += _cases(items, kind.name, _drawn(items, kind, chosen, rng), signs)
    # Pair by pair, what is computed and kept at a time takes about as long as the next.
    return sorted(cases, key=lambda case: items.texts[case.item].pair)


def conversation(items: Items, case: Case, suffix: str = "") -> list[Message]:
    """The text of a case in its position, perturbed, and followed by a suffix."""
    item, text = items.texts[case.item], items.texts[case.item].text
    how = [items.perturbations[index] for index in case.how]
    for each in how:
        text = perturb(text, each, items.padding)
    system: list[Message] = [{"role": "system", "content": each["system"]} for each in how if "system" in each]
    return [*system, *as_texts([text + suffix], item.position)[0]]


_Drawn = tuple[list[int], dict[int, tuple[int, ...]]]
"""Texts of a pair, and by sign the perturbations drawn for them."""


def _drawn(items: Items, kind: Kind, pairs: Sequence[list[int]], rng: np.random.Generator) -> Iterator[_Drawn]:
    for position in (0, 1):
        here = [held for held in pairs if items.texts[held[0]].position == position]
        allowed = {
            sign: [[i for i in group if _suits(items.perturbations[i], position, sign)] for group in kind.groups]
            for sign in (-1, 1)
        }
        if here and all(group for groups in allowed.values() for group in groups):
            decks = {-1: [_deck(group, len(here), rng) for group in allowed[-1]]}
            same = allowed[1] == allowed[-1]
            decks[1] = decks[-1] if same else [_deck(group, len(here), rng) for group in allowed[1]]
            for number, held in enumerate(here):
                yield held, {sign: tuple(deck[number] for deck in decks[sign]) for sign in decks}


def _suits(perturbation: Mapping[str, Any], position: int, sign: int) -> bool:
    against = perturbation.get("against")
    return _POSITIONS[position] in perturbation.get("roles", _POSITIONS) and (
        against is None or against == ("negative" if sign < 0 else "positive")
    )


def _deck(choices: Sequence[int], count: int, rng: np.random.Generator) -> list[int]:
    """So many of the choices, each as often as the others or once more, in random order."""
    return [int(index) for index in rng.permutation(np.resize(rng.permutation(choices), count))]


def _cases(
    items: Items, kind: str, drawn: Iterator[_Drawn] | Sequence[_Drawn], signs: Mapping[str, int]
) -> Iterator[Case]:
    for held, how in drawn:
        emotions = {items.texts[index].emotion for index in held} - {NEUTRAL}
        for index in held:
            emotion = items.texts[index].emotion
            for sign in sorted({signs[name] for name in (emotions if emotion == NEUTRAL else {emotion})}):
                yield Case(kind, index, how[sign], sign)
