"""Directions to steer along: of families and of affect as a whole, and of nulls.

Families are fitted where steering acts, on texts in the assistant's position, and affect on graded replies. The layer
that is pushed is none the bank reads, so that what is read of a steered reply owes nothing to it.

Directions are differences of means, whatever the bank's estimator: what tells classes apart best is not where they lie
(Haufe et al. 2014). Chosen on 12 replies of the demo assistant's effusive fine-tune: of their over-index, a cap at
seven layers left 96 % along whitened directions and 71 % along differences of means.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from monitor.calibration.activations import SHARD, render, segments
from monitor.calibration.corpus import APPROVED, GRID, SERVICE, Corpus, Turn
from monitor.calibration.crossfit import GRADES
from monitor.calibration.lines import NEUTRAL, EmotionText, Message
from monitor.calibration.tables import as_texts
from monitor.capture.passes import LayerRows
from monitor.errors import SetupError
from monitor.evaluation.interventions.steering import Axis
from monitor.evaluation.item_files import spread
from monitor.evaluation.subject import Subject
from monitor.probes.fit import Estimator, Whitened
from monitor.turns.roles import RoleLabeller

Floats = NDArray[np.float64]

SHALLOWEST, DEEPEST = 0.27, 0.93
"""Between these shares of the depth every layer is capped. Chosen on the same 12 replies: a cap at layers 8 to 28 of 30
left 53 % of their over-index, one at 10 to 24 left 77 %."""
DEPTH = 2 / 3
"""Where families are pushed, as a share of the depth (Sofroniew et al. 2026): the free layer nearest to it."""
DIFFERENCE: Estimator = Whitened(shrinkage=1.0)
"""Difference of means: whitening by a multiple of the identity."""
AFFECT = "affect"
"""Stands beside families: the assistant's affect as a whole, as in policies."""
_BATCH = 8


class Amounts(NamedTuple):
    """How much is read and drawn.

    Attributes:
        texts: Texts with emotions at most.
        graded: Users of graded replies at most.
        turns: Approved turns at most.
        shuffled: Null directions from shuffled labels.
        matched: Random null directions.
    """

    texts: int
    graded: int
    turns: int
    shuffled: int
    matched: int


class Reference(NamedTuple):
    """What approved replies are at one layer.

    Attributes:
        norm: Mean length of a token's row.
        turns: Mean over the tokens of each reply of ``row . direction``, [R, K].
    """

    norm: float
    turns: Floats


class Axes(NamedTuple):
    """Directions of families and of affect at the layers that are steered, and nulls at the one that is pushed.

    Attributes:
        names: Families, then affect, [K].
        layer: The layer that is pushed.
        directions: Unit directions by layer, [K, H] each.
        reference: Approved traffic by layer.
        shuffled: Differences of means when labels mean nothing, [S] of [H].
        matched: Random directions that vary as rows do, [M] of [H].
        made_of: What the directions were fitted on, in words.
    """

    names: tuple[str, ...]
    layer: int
    directions: dict[int, Floats]
    reference: dict[int, Reference]
    shuffled: list[Floats]
    matched: list[Floats]
    made_of: str

    @property
    def nulls(self) -> list[Floats]:
        """All null directions, shuffled ones first."""
        return [*self.shuffled, *self.matched]

    def axis(self, name: str, layer: int) -> Axis:
        """The axis of a family or of affect at a layer, centred on the reference."""
        at = self.names.index(name)
        return Axis(layer, self.directions[layer][at], float(self.reference[layer].turns[:, at].mean()))

    def all_layers(self, name: str) -> list[Axis]:
        """The axes of a family or of affect at every layer, ascending."""
        return [self.axis(name, layer) for layer in sorted(self.directions)]

    def quantile(self, name: str, layer: int, level: float) -> float:
        """A quantile of the centred mean projections of the reference's replies.

        Of replies, not of tokens, which scatter far wider: where no token exceeds it, no reply's mean does.
        """
        told = self.reference[layer].turns[:, self.names.index(name)]
        return float(np.quantile(told, level) - told.mean())


def name_of(direction: Floats) -> str:
    """A short name that two directions share only if they are alike to single precision."""
    return hashlib.sha256(direction.astype(np.float32).tobytes()).hexdigest()[:12]


def steered_layers(depth: int) -> tuple[int, ...]:
    """Layers of a model that are ablated and capped, ascending."""
    return tuple(range(round(SHALLOWEST * depth), round(DEEPEST * depth) + 1))


def shards(corpus: Corpus, amounts: Amounts) -> int:
    """How often ``fit_axes`` ticks."""
    read = min(len(corpus.texts), amounts.texts), len(GRADES) * min(len(corpus.grid), amounts.graded)
    return -(-sum(read) // SHARD)


def fit_axes(
    subject: Subject, corpus: Corpus, amounts: Amounts, rng: np.random.Generator, tick: Callable[[], None]
) -> Axes:
    """Fits families and affect at the layers that are steered, and nulls.

    Args:
        subject: The model and its bank.
        corpus: Texts with emotions, graded replies, and approved traffic.
        amounts: How much of it.
        rng: Draws the nulls.
        tick: Called once a shard of what is read for the directions.

    Raises:
        SetupError: The corpus has emotions the bank does not know.
    """
    card = subject.bank.card
    layers = steered_layers(card.model.depth)
    texts = spread(corpus.texts, amounts.texts)
    graded = _graded(corpus, amounts.graded)
    talks = [*as_texts([text.text for text in texts], 1), *(turn.messages for turn in graded)]
    rows = subject.activations(talks, layers, lambda *_: tick()).means[:, 1].astype(np.float64)
    family = _families(subject, texts)
    directions = {
        layer: _directions(rows[:, at], family, graded, len(card.families)) for at, layer in enumerate(layers)
    }
    layer = _pushed(layers, card.layers, card.model.depth)
    here = rows[: len(texts), layers.index(layer)]
    approved = _approved(corpus, amounts.turns)
    return Axes(
        names=(*card.families, AFFECT),
        layer=layer,
        directions=directions,
        reference=_reference(subject, approved, directions),
        shuffled=[
            DIFFERENCE.classes(here, rng.permutation(family), len(card.families))[number % len(card.families)]
            for number in range(amounts.shuffled)
        ],
        matched=_matched(here, rng, amounts.matched),
        made_of=f"differences of means of {len(texts)} texts and {len(graded)} "
        f"graded replies of the corpus; reference: {len(approved)} approved turns",
    )


def _directions(rows: Floats, family: NDArray[np.int64], graded: Sequence[Turn], families: int) -> Floats:
    """Families from the first rows, which are of texts, and affect from the others, [K, H]."""
    grades = GRADES[[turn.grade for turn in graded]]
    texts, replies = np.split(rows, [len(family)])
    return np.concatenate([DIFFERENCE.classes(texts, family, families), DIFFERENCE.graded(replies, grades)[None]])


def _graded(corpus: Corpus, most: int) -> list[Turn]:
    """Replies of all grades to so many users at most."""
    turns = [turn for turn in corpus.turns() if turn.source == GRID]
    users = [turns[begin : begin + len(GRADES)] for begin in range(0, len(turns), len(GRADES))]
    return [turn for replies in spread(users, most) for turn in replies]


def _families(subject: Subject, texts: Sequence[EmotionText]) -> NDArray[np.int64]:
    """Family of each text; the number of families for neutral ones, [N]."""
    card = subject.bank.card
    index = {emotion.name: card.families.index(emotion.family) for emotion in card.emotions}
    index[NEUTRAL] = len(card.families)
    if unknown := {text.emotion for text in texts} - set(index):
        raise SetupError("--corpus", f"has emotions the bank does not know: {sorted(unknown)}; name the bank's own")
    return np.array([index[text.emotion] for text in texts])


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
    """Length of the assistant's rows and projections of its replies, by layer."""
    labeller = RoleLabeller(subject.markers)
    norms: dict[int, list[torch.Tensor]] = {layer: [] for layer in directions}
    turns: dict[int, list[Floats]] = {layer: [] for layer in directions}
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
                    turns[layer].append(along @ rows.mean(dim=0).double().numpy())
    finally:
        kept.close()
    return {layer: Reference(float(torch.cat(norms[layer]).mean()), np.stack(turns[layer])) for layer in directions}


def _run(subject: Subject, batch: Sequence[Sequence[int]]) -> None:
    width = max(map(len, batch))
    tokens, mask = torch.zeros((2, len(batch), width), dtype=torch.long)
    for row, each in enumerate(batch):
        tokens[row, : len(each)] = torch.tensor(each)
        mask[row, : len(each)] = 1
    device = subject.model.device
    subject.model.base_model(input_ids=tokens.to(device), attention_mask=mask.to(device), use_cache=False)
