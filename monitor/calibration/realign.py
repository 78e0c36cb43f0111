"""A bank for a new version of its model, from texts that both versions read: no label is needed.

A probe of the new version is the old one seen through a linear map of rows. Units follow the same texts: a turn that
both versions read alike scores alike, so the reference of the old bank stays what excess is measured against.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from monitor import __version__
from monitor.calibration.activations import Activations, Progress, collect
from monitor.calibration.align import about_means, row_map
from monitor.calibration.corpus import sha256_of
from monitor.calibration.identity import check_identity, check_shape
from monitor.calibration.rows import read_rows
from monitor.calibration.tables import as_texts
from monitor.capture.identity import template_hash, tokenizer_hash, weights_fingerprint
from monitor.errors import CorpusError, ModelMismatchError, SetupError
from monitor.probes.bank import Bank, seal, tensors_of
from monitor.probes.markers import Marker, find_markers

Floats = NDArray[np.float64]

LEAST_TEXTS = 100
"""Fewer say nothing of most of the directions rows have."""
METHOD = "ridge regression of rows, pulled towards the identity"
_FOLDS = 5


class SharedTexts(NamedTuple):
    """Texts both versions read, and the file they stand in."""

    texts: list[str]
    places: list[str]
    file: Path


def read_shared(path: Path) -> SharedTexts:
    """Reads texts from any file ``--texts`` takes; labels are not looked at.

    Raises:
        CorpusError: It cannot be read, holds too few, or a row has no text.
        SetupError: It is a folder, and pyarrow is missing.
    """
    rows = list(read_rows(path))
    for row in rows:
        if not str(row.fields.get("text") or "").strip():
            raise CorpusError(f"{row.place}:text", "is empty or missing; write a text or remove the row")
    if len(rows) < LEAST_TEXTS:
        raise CorpusError(str(path), f"holds {len(rows)} texts where {LEAST_TEXTS} are needed; add texts of your users")
    return SharedTexts([str(row.fields["text"]) for row in rows], [f"{row.place}:text" for row in rows], path)


def realign(
    bank: Bank,
    old: tuple[Any, Any],
    new: tuple[Any, Any],
    shared: SharedTexts,
    *,
    name: str,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Bank:
    """The bank of a new version of a model, marked as not validated.

    Args:
        bank: The bank of the old version.
        old: Model and tokenizer of the old version.
        new: Model and tokenizer of the new version.
        shared: Texts, each of which both versions read as a user's and as an assistant's.
        name: Name of the new version, for the card.
        cache: Folder for activations; none: nothing is kept.
        progress: Told of conversations done and in all.

    Raises:
        ModelMismatchError: The old version is not the bank's, or the new one has another shape or vocabulary.
        SetupError: The new version has no chat template, or hidden states are not finite.
        CorpusError: A text has no tokens or is too long for a model.
    """
    check_shape(bank, old[0])
    check_identity(bank, *old, fix="name the model the bank was calibrated on")
    check_shape(bank, new[0])
    if tokenizer_hash(new[1]) != bank.card.model.tokenizer_hash:
        raise ModelMismatchError("--model", "has another vocabulary, which the text twin cannot read; calibrate a bank")
    markers = find_markers(new[1])
    if not markers:
        raise SetupError("--model", "has no chat template, which says where replies begin; set the tokenizer's")
    read = _Reader(bank.card.layers, shared, cache, progress)
    before, after = read.rows(*old, bank.markers), read.rows(*new, markers)
    aligned = _Aligned(bank, before, after)
    card: dict[str, object] = bank.card.model_dump(exclude={"bank_id", "tensors_sha256"})
    card["made_by"] = f"affect-monitor {__version__}"
    card["model"] = {
        **bank.card.model.model_dump(),
        "name": name,
        "weights_fingerprint": weights_fingerprint(new[0]),
        "template_hash": template_hash(new[1]),
    }
    card["markers"] = [{"tokens": marker.tokens, "role": marker.role.name} for marker in markers]
    card["battery"], card["text_equivalent"], card["validated"] = (), (), False
    explained, agreement, agreement_before = aligned.held_out()
    card["realigned"] = {
        "from_bank": bank.card.bank_id,
        "from_model": bank.card.model.weights_fingerprint,
        "texts": len(shared.texts),
        "texts_sha256": sha256_of(shared.file),
        "method": METHOD,
        "explained": round(explained, 4),
        "agreement": round(agreement, 4),
        "agreement_before": round(agreement_before, 4),
    }
    return seal(card, tensors_of({**vars(bank.tensors), **aligned.tensors()}))


class _Reader:
    """Reads the shared texts by one model after the other, telling of progress over both."""

    def __init__(
        self, layers: Sequence[int], shared: SharedTexts, cache: Path | None, progress: Progress | None
    ) -> None:
        self._layers, self._shared, self._cache, self._progress = layers, shared, cache, progress
        self._done = 0

    def rows(self, model: Any, tokenizer: Any, markers: Sequence[Marker]) -> Floats:
        """Mean rows as a user's and as an assistant's, [2, N, L, H]."""
        cache = (self._cache, weights_fingerprint(model)) if self._cache else None
        found = []
        for position in (0, 1):
            told: Activations = collect(
                model, tokenizer, markers, as_texts(self._shared.texts, position), self._layers,
                places=self._shared.places, cache=cache, progress=self._tell,
            )  # fmt: skip
            found.append(told.means[:, position].astype(np.float64))
            self._done += len(self._shared.texts)
        return np.stack(found)

    def _tell(self, done: int, total: int) -> None:
        if self._progress is not None:
            self._progress(self._done + done, 4 * total)


class _Aligned:
    """What follows from rows of the same texts by the old and the new version, [2, N, L, H] each."""

    def __init__(self, bank: Bank, before: Floats, after: Floats) -> None:
        self._old = bank.tensors
        self._before, self._after = before, after
        positions, texts = before.shape[:2]
        self._position = np.repeat(np.arange(positions), texts)
        self._text = np.tile(np.arange(texts), positions)
        self._folded = self._old.directions.astype(np.float64) / self._old.scales[:, :, None] / len(self._old.scales)

    def tensors(self) -> dict[str, Any]:
        """Directions, centres and units for the new version."""
        everything = np.ones(len(self._text), bool)
        maps = np.stack([row_map(new, old, self._text) for new, old in self._layers(everything)])
        seen = np.einsum("lgh,lph->lpg", maps, self._old.directions.astype(np.float64))
        directions = seen / np.linalg.norm(seen, axis=-1, keepdims=True)
        centres = self._after[1].mean(axis=0)
        scales = self._old.scales * _spread(self._after[1], directions) / _spread(self._before[1], self._old.directions)
        folded = directions / scales[:, :, None] / len(scales)
        now = np.einsum("rnlh,lph->rnp", self._after - centres, folded)
        then = np.einsum("rnlh,lph->rnp", self._before - self._old.centres, self._folded)
        means, units = self._old.turn_means.astype(np.float64), self._old.turn_scales.astype(np.float64)
        probes = slice(0, now.shape[2])
        # What the texts score on average, and how far they scatter, stays as it was in standard units.
        level = (then.mean(axis=1) - means[:, probes]) / units[:, probes]
        units[:, probes] *= now.std(axis=1) / then.std(axis=1)
        means[:, probes] = now.mean(axis=1) - level * units[:, probes]
        return {
            "directions": directions, "centres": centres, "scales": scales, "turn_means": means, "turn_scales": units,
        }  # fmt: skip

    def held_out(self) -> tuple[float, float, float]:
        """Share of the variance of held-out rows that is explained, and mean correlation of scores after and before."""
        shape = len(self._text), self._folded.shape[1]
        own, after, before = np.zeros(shape), np.zeros(shape), np.zeros(shape)
        unexplained = total = 0.0
        for fold in range(_FOLDS):
            held = self._text % _FOLDS == fold
            fitted, left = self._layers(~held), self._layers(held)
            for folded, (new, old), (new_held, old_held) in zip(self._folded, fitted, left, strict=True):
                mapped = new_held @ row_map(new, old, self._text[~held])
                unexplained += float(((mapped - old_held) ** 2).sum())
                total += float((old_held**2).sum())
                for scores, rows in ((own, old_held), (after, mapped), (before, new_held)):
                    scores[held] += rows @ folded.T
        return 1 - unexplained / total, _agreement(own, after), _agreement(own, before)

    def _layers(self, chosen: NDArray[np.bool_]) -> list[tuple[Floats, Floats]]:
        """Rows of both versions, new and old, of some texts, centred by position, a layer each."""
        return [
            (
                about_means(self._flat(self._after, layer)[chosen], self._position[chosen]),
                about_means(self._flat(self._before, layer)[chosen], self._position[chosen]),
            )
            for layer in range(self._after.shape[2])
        ]

    @staticmethod
    def _flat(rows: Floats, layer: int) -> Floats:
        return rows[:, :, layer].reshape(-1, rows.shape[-1])


def _spread(rows: Floats, directions: Floats | NDArray[np.float32]) -> Floats:
    """Standard deviation of rows, [N, L, H], along directions, [L, P, H]: [L, P]."""
    spread: Floats = np.einsum("nlh,lph->lpn", rows, directions.astype(np.float64)).std(axis=-1)
    return spread


def _agreement(a: Floats, b: Floats) -> float:
    """Mean correlation of the columns of two arrays."""
    return float(np.mean([np.corrcoef(first, second)[0, 1] for first, second in zip(a.T, b.T, strict=True)]))
