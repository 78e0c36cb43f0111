"""What differs between two banks: the card field by field, directions by their cosine, the battery row by row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from monitor.probes.bank import Bank, RowCard, Tensors

LOWEST = 5
"""Emotions whose directions differ most, that are listed."""
_TOLD_APART = {"bank_id", "tensors_sha256", "emotions", "reference", "battery", "text_equivalent", "markers"}
"""Fields of the card that are compared by themselves, or not at all because all others make them."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class Change(_Part):
    """A field of the card in both banks; None where it is missing."""

    field: str
    a: Any
    b: Any


class Cosine(_Part):
    """An emotion's directions in both banks, at the shared layer where they differ most."""

    emotion: str
    layer: int
    cosine: float


class RowChange(_Part):
    """A row of the battery in both banks; change = b - a, None where one has no figure."""

    number: str
    name: str
    a: float | None
    b: float | None
    change: float | None


class Names(_Part):
    """Names that one of the banks has and the other has not."""

    removed: tuple[str, ...]
    added: tuple[str, ...]


class BankDiff(_Part):
    """What differs between two banks, a and b.

    Attributes:
        bank_ids: Both ids.
        same: Whether they are one and the same bank.
        fields: Other fields of the card that differ.
        emotions: Emotions that b has no more, or has anew.
        layers: Layers both have.
        least_cosine: The lowest cosine; None without shared emotions and layers, or for other widths.
        cosines: The emotions with the lowest cosines, lowest first.
        battery: Every row of either bank.
        text_equivalent: Emotions that only a, or only b, has marked so.
        tensors: Arrays that differ.
    """

    bank_ids: tuple[str, str]
    same: bool
    fields: tuple[Change, ...]
    emotions: Names
    layers: tuple[int, ...]
    least_cosine: float | None
    cosines: tuple[Cosine, ...]
    battery: tuple[RowChange, ...]
    text_equivalent: Names
    tensors: tuple[str, ...]


def compare(a: Bank, b: Bank) -> BankDiff:
    """What differs between two banks."""
    cosines = sorted(_cosines(a, b), key=lambda found: found.cosine)
    return BankDiff(
        bank_ids=(a.card.bank_id, b.card.bank_id),
        same=a.card.bank_id == b.card.bank_id,
        fields=tuple(_changes(a, b)),
        emotions=_names(_emotions(a), _emotions(b)),
        layers=tuple(layer for layer in a.card.layers if layer in b.card.layers),
        least_cosine=cosines[0].cosine if cosines else None,
        cosines=tuple(cosines[:LOWEST]),
        battery=tuple(_rows(a.card.battery, b.card.battery)),
        text_equivalent=_names(a.card.text_equivalent, b.card.text_equivalent),
        tensors=tuple(field.name for field in fields(Tensors) if not _same(a, b, field.name)),
    )


def _changes(a: Bank, b: Bank) -> Iterator[Change]:
    was, now = (dict(_leaves(_told(bank))) for bank in (a, b))
    for field in dict.fromkeys([*was, *now]):
        if was.get(field) != now.get(field):
            yield Change(field=field, a=was.get(field), b=now.get(field))


def _told(bank: Bank) -> dict[str, Any]:
    """The card as fields to compare; an emotion by its name, for banks may list them in another order."""
    card = bank.card.model_dump(mode="json")
    emotions = {emotion.pop("name"): emotion for emotion in card["emotions"]}
    markers = {str(number): marker for number, marker in enumerate(card["markers"])}
    rest = {name: value for name, value in card.items() if name not in _TOLD_APART}
    return {**rest, "markers": markers, "reference": card["reference"], "emotions": emotions}


def _leaves(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, inner in value.items():
        if isinstance(inner, Mapping):
            yield from _leaves(inner, f"{prefix}{name}.")
        else:
            yield prefix + name, inner


def _emotions(bank: Bank) -> list[str]:
    return [emotion.name for emotion in bank.card.emotions]


def _names(a: Sequence[str], b: Sequence[str]) -> Names:
    return Names(removed=tuple(name for name in a if name not in b), added=tuple(name for name in b if name not in a))


def _cosines(a: Bank, b: Bank) -> Iterator[Cosine]:
    """The lowest cosine of every shared emotion over the shared layers; none where rows have another width."""
    layers = [layer for layer in a.card.layers if layer in b.card.layers]
    emotions = [name for name in _emotions(a) if name in _emotions(b)]
    if not layers or a.card.model.hidden_size != b.card.model.hidden_size:
        return
    first, second = (_directions(bank, layers, emotions) for bank in (a, b))
    # Directions are of unit length.
    cosines = np.einsum("leh,leh->el", first, second)
    for emotion, along in zip(emotions, cosines, strict=True):
        lowest = int(along.argmin())
        yield Cosine(emotion=emotion, layer=layers[lowest], cosine=float(along[lowest]))


def _directions(bank: Bank, layers: Sequence[int], emotions: Sequence[str]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Directions of some emotions at some layers, [layers, emotions, hidden]."""
    at = [bank.card.layers.index(layer) for layer in layers]
    names = _emotions(bank)
    return bank.tensors.directions[at][:, [names.index(name) for name in emotions]].astype(np.float64)


def _rows(a: Sequence[RowCard], b: Sequence[RowCard]) -> Iterator[RowChange]:
    was, now = ({(row.number, row.name): row.value for row in rows} for rows in (a, b))
    for number, name in dict.fromkeys([*was, *now]):
        before, after = was.get((number, name)), now.get((number, name))
        change = None if before is None or after is None else after - before
        yield RowChange(number=number, name=name, a=before, b=after, change=change)


def _same(a: Bank, b: Bank, name: str) -> bool:
    return np.array_equal(getattr(a.tensors, name), getattr(b.tensors, name), equal_nan=True)


# -- for people -------------------------------------------------------------------------------------------------------


def told(diff: BankDiff) -> Iterator[str]:
    """A difference in lines for people; values of a and b stand on both sides of an arrow."""
    a, b = diff.bank_ids
    if diff.same:
        yield f"both are bank {a}"
        return
    yield f"bank {a} -> {b}"
    yield from (f"{change.field}: {_value(change.a)} -> {_value(change.b)}" for change in diff.fields)
    yield from _told_names("emotions", diff.emotions)
    yield from _told_names("text-equivalent", diff.text_equivalent)
    if diff.least_cosine is not None:
        yield f"directions at layers {list(diff.layers)}: cosine at least {diff.least_cosine:.4f}"
        yield from (f"  {each.emotion} at layer {each.layer}: {each.cosine:.4f}" for each in diff.cosines)
    if diff.battery:
        yield "battery:"
        yield from (
            f"  {row.number} {row.name}: {_figure(row.a)} -> {_figure(row.b)}"
            + ("" if row.change is None else f" ({row.change:+.3f})")
            for row in diff.battery
        )
    yield f"arrays that differ: {', '.join(diff.tensors) or 'none'}"


def _told_names(what: str, names: Names) -> Iterator[str]:
    if names.removed or names.added:
        yield f"{what}: " + ", ".join([*(f"-{name}" for name in names.removed), *(f"+{name}" for name in names.added)])


def _value(value: object) -> str:
    return "none" if value is None else str(value)


def _figure(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"
