"""Directions to steer along: of families, fitted on the corpus by the bank's estimator, and of nulls.

Families are fitted where steering acts, on texts in the assistant's position. The layer that is pushed is none the bank
reads, so that what is read of a steered reply owes nothing to it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from monitor.calibration.activations import Progress, render, segments
from monitor.calibration.corpus import APPROVED, SERVICE, Corpus
from monitor.calibration.lines import NEUTRAL, Message
from monitor.calibration.sweep import candidate_layers
from monitor.calibration.tables import as_texts
from monitor.capture.passes import LayerRows
from monitor.errors import SetupError
from monitor.evaluation.steering import Axis
from monitor.evaluation.subject import Subject
from monitor.probes.fit import ESTIMATORS, Estimator
from monitor.turns.roles import RoleLabeller

Floats = NDArray[np.float64]

DEPTH = 0.5
"""Where families are pushed, as a share of the depth: the free layer nearest to it."""
_BATCH = 8


class Reference(NamedTuple):
    """What the assistant's tokens of approved traffic are at one layer.

    Attributes:
        norm: Mean length of a row.
        projections: ``row . direction`` for each family, [T, F].
    """

    norm: float
    projections: Floats


class Axes(NamedTuple):
    """Directions of all families of a bank at the layers a bank may have, and their nulls at the layer that is pushed.

    Attributes:
        families: Names, [F].
        layer: The layer that is pushed.
        directions: Unit directions by layer, [F, H] each.
        reference: Approved traffic by layer.
        shuffled: What the estimator finds when labels mean nothing, [S] of [H].
        matched: Random directions that vary as rows do, [M] of [H].
        made_of: What the directions were fitted on, in words.
    """

    families: tuple[str, ...]
    layer: int
    directions: dict[int, Floats]
    reference: dict[int, Reference]
    shuffled: list[Floats]
    matched: list[Floats]
    made_of: str

    def axis(self, family: str, layer: int) -> Axis:
        """A family's axis at a layer, centred on the reference's tokens."""
        at = self.families.index(family)
        return Axis(layer, self.directions[layer][at], float(self.reference[layer].projections[:, at].mean()))

    def all_layers(self, family: str) -> list[Axis]:
        """A family's axes at every layer, ascending."""
        return [self.axis(family, layer) for layer in sorted(self.directions)]

    def quantile(self, family: str, layer: int, level: float) -> float:
        """A quantile of the centred projections of the reference's tokens."""
        told = self.reference[layer].projections[:, self.families.index(family)]
        return float(np.quantile(told, level) - told.mean())


def name_of(direction: Floats) -> str:
    """A short name that two directions share only if they are alike to single precision."""
    return hashlib.sha256(direction.astype(np.float32).tobytes()).hexdigest()[:12]


def fit_axes(
    subject: Subject,
    corpus: Corpus,
    *,
    shuffled: int,
    matched: int,
    turns: int,
    rng: np.random.Generator,
    progress: Progress | None = None,
) -> Axes:
    """Fits families at the layers of a sweep, and nulls.

    Args:
        subject: The model and its bank, whose estimator is used.
        corpus: Texts with emotions, and approved traffic.
        shuffled: Null directions from shuffled labels.
        matched: Random null directions.
        turns: Approved turns to read at most.
        rng: Draws the nulls.
        progress: Told of texts read and in all.

    Raises:
        SetupError: The corpus has emotions the bank does not know.
    """
    card = subject.bank.card
    layers = candidate_layers(card.model.depth)
    family = _families(subject, corpus)
    found = subject.activations(as_texts([text.text for text in corpus.texts], 1), layers, progress)
    rows = found.means[:, 1].astype(np.float64)
    estimator: Estimator = ESTIMATORS[str(card.estimator["name"])]
    directions = {layer: estimator.classes(rows[:, at], family, len(card.families)) for at, layer in enumerate(layers)}
    layer = _pushed(layers, card.layers, card.model.depth)
    here = rows[:, layers.index(layer)]
    approved = _approved(corpus, turns)
    return Axes(
        families=tuple(card.families),
        layer=layer,
        directions=directions,
        reference=_reference(subject, approved, directions),
        shuffled=[
            estimator.classes(here, rng.permutation(family), len(card.families))[number % len(card.families)]
            for number in range(shuffled)
        ],
        matched=_matched(here, rng, matched),
        made_of=f"{len(family)} texts of the corpus, by the bank's estimator ({card.estimator['name']}); "
        f"reference: {len(approved)} approved turns",
    )  # fmt: skip


def _families(subject: Subject, corpus: Corpus) -> NDArray[np.int64]:
    """Family of each text of the corpus; the number of families for neutral ones, [N]."""
    card = subject.bank.card
    index = {emotion.name: card.families.index(emotion.family) for emotion in card.emotions}
    index[NEUTRAL] = len(card.families)
    if unknown := {text.emotion for text in corpus.texts} - set(index):
        raise SetupError("--corpus", f"has emotions the bank does not know: {sorted(unknown)}; name the bank's own")
    return np.array([index[text.emotion] for text in corpus.texts])


def _pushed(layers: Sequence[int], own: Sequence[int], depth: int) -> int:
    """The layer nearest to ``DEPTH`` that the bank does not read and that comes before its last; else its first."""
    free = [each for each in layers if each not in own and each < own[-1]]
    return min(free, key=lambda each: (abs(each - DEPTH * depth), each), default=own[0])


def _matched(rows: Floats, rng: np.random.Generator, count: int) -> list[Floats]:
    centred = rows - rows.mean(axis=0)
    drawn = rng.standard_normal((count, len(centred))) @ centred
    return list(drawn / np.linalg.norm(drawn, axis=1, keepdims=True))


def _approved(corpus: Corpus, most: int) -> list[list[Message]]:
    """The model's own approved replies, then plain service, at most so many."""
    turns = corpus.turns()
    return [turn.messages for source in (APPROVED, SERVICE) for turn in turns if turn.source == source][:most]


@torch.inference_mode()
def _reference(
    subject: Subject, conversations: Sequence[Sequence[Message]], directions: dict[int, Floats]
) -> dict[int, Reference]:
    """Length and projections of the assistant's single tokens, by layer."""
    labeller = RoleLabeller(subject.markers)
    norms: dict[int, list[torch.Tensor]] = {layer: [] for layer in directions}
    found: dict[int, list[torch.Tensor]] = {layer: [] for layer in directions}
    ids = sorted((render(subject.tokenizer, messages) for messages in conversations), key=len)
    kept = LayerRows(subject.model, tuple(directions))
    try:
        for begin in range(0, len(ids), _BATCH):
            batch = ids[begin : begin + _BATCH]
            _run(subject, batch)
            for layer, along in directions.items():
                for row, tokens in enumerate(batch):
                    held = np.flatnonzero(segments(labeller, tokens) == 1)
                    rows = kept.rows[layer][row].float().cpu()[torch.from_numpy(held)]
                    norms[layer].append(rows.norm(dim=1))
                    found[layer].append(rows @ torch.from_numpy(along).float().T)
    finally:
        kept.close()
    return {
        layer: Reference(float(torch.cat(norms[layer]).mean()), torch.cat(found[layer]).double().numpy())
        for layer in directions
    }


def _run(subject: Subject, batch: Sequence[Sequence[int]]) -> None:
    width = max(map(len, batch))
    tokens, mask = torch.zeros((2, len(batch), width), dtype=torch.long)
    for row, each in enumerate(batch):
        tokens[row, : len(each)] = torch.tensor(each)
        mask[row, : len(each)] = 1
    device = subject.model.device
    subject.model.base_model(input_ids=tokens.to(device), attention_mask=mask.to(device), use_cache=False)
