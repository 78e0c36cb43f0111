"""From a corpus and a model to a bank.

    corpus -> conversations -> mean rows -> directions -> scores of approved turns -> warranted levels -> bank

Every score that calibrates or is reported comes from directions fitted without its domain (grid) or topic (texts).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from monitor import __version__
from monitor.assess.overindex import STANCES, target_values
from monitor.calibration.activations import Activations, Message, Progress, collect
from monitor.calibration.corpus import (
    FOLDS,
    NEUTRAL,
    Approved,
    Dialogue,
    EmotionText,
    GridItem,
    check_grid,
    check_texts,
    plain,
    read_emotions,
    read_lines,
    sha256_of,
)
from monitor.calibration.figures import emotion_figures, excess_figures
from monitor.calibration.reference import QUANTILE, Warranted, fit_warranted
from monitor.capture.identity import template_hash, tokenizer_hash, weights_fingerprint
from monitor.capture.transformers import decoder_blocks
from monitor.errors import CorpusError, SetupError
from monitor.probes.bank import Bank, Columns, EmotionCard, Stance, Tensors, seal
from monitor.probes.fit import class_directions, graded_direction
from monitor.probes.markers import Marker, find_markers
from monitor.probes.twin import token_shares, token_weights, vocabulary

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

SHRINKAGE = 0.6
"""Best of 0.1, 0.3, 0.6 on held-out domains of the demo assistant, at every layer."""
DEPTHS = (0.54, 0.67)
"""Layers of the ensemble, as shares of the model's depth: affect is read best between 40 and 80 %."""
_OPENER = "What is on your mind?"
REPLIES = ("neutral", "warranted", "excessive")


@dataclass(frozen=True)
class Corpus:
    """Everything a bank is made from."""

    emotions: list[EmotionCard]
    texts: list[EmotionText]
    grid: list[GridItem]
    approved: list[Approved]
    service: list[Dialogue]
    grid_folds: dict[str, int]
    sha256: dict[str, str]

    @property
    def families(self) -> list[str]:
        """Families in the order of their first emotion."""
        return list(dict.fromkeys(emotion.family for emotion in self.emotions))

    def turns(self) -> list[tuple[str, list[Message]]]:
        """Turns that are as they should be, each with where it stands: approved ones, then exchanges of service."""
        approved = [(turn.place, turn.conversation) for turn in self.approved]
        return approved + [(talk.place, exchange) for talk in self.service for exchange in talk.exchanges()]

    def conversations(self) -> list[list[Message]]:
        """Texts as the user's, texts as the assistant's, the grid with its three replies, turns as they should be."""
        texts = [text.text for text in self.texts]
        return [
            *([{"role": "user", "content": text}] for text in texts),
            *([{"role": "user", "content": _OPENER}, {"role": "assistant", "content": text}] for text in texts),
            *(
                [{"role": "user", "content": item.user}, {"role": "assistant", "content": getattr(item, reply)}]
                for item in self.grid
                for reply in REPLIES
            ),
            *(conversation for _, conversation in self.turns()),
        ]

    def places(self) -> list[str]:
        """File, line and field of each of the conversations."""
        texts = [f"{text.place}:text" for text in self.texts]
        replies = [f"{item.place}:{reply}" for item in self.grid for reply in REPLIES]
        return [*texts, *texts, *replies, *(f"{place}:messages" for place, _ in self.turns())]


def read_corpus(folder: Path, approved: Path) -> Corpus:
    """Reads and checks a corpus folder and a file of approved conversations.

    Raises:
        CorpusError: A file or line cannot be used.
    """
    files = {name: folder / name for name in ("emotions.json", "texts.jsonl", "grid.jsonl", "service.jsonl")}
    emotions = read_emotions(files["emotions.json"])
    texts = read_lines(files["texts.jsonl"], EmotionText)
    check_texts(files["texts.jsonl"], texts, emotions)
    grid = read_lines(files["grid.jsonl"], GridItem)
    folds = check_grid(files["grid.jsonl"], grid)
    turns = read_lines(approved, Approved)
    if not turns:
        raise CorpusError(str(approved), "holds no conversations; the reference needs some of the model's own replies")
    service = read_lines(files["service.jsonl"], Dialogue)
    hashes = {name: sha256_of(path) for name, path in files.items()} | {"approved": sha256_of(approved)}
    return Corpus(emotions, texts, grid, turns, service, folds, hashes)


class _Rows(NamedTuple):
    """Mean rows of the corpus.

    Texts [2, N, L, H], grid users [G, L, H], replies [G, 3, L, H], turns as they should be [A, 2, L, H].
    """

    texts: Floats
    users: Floats
    replies: Floats
    turns: Floats


class _Shares(NamedTuple):
    """Share of each token in the segments of the corpus, by the same parts, and the tokens they are of."""

    tokens: NDArray[np.int32]
    texts: Floats
    users: Floats
    replies: Floats
    turns: Floats


class _Fit(NamedTuple):
    """Probes fitted on a part of the corpus; shapes as in ``Tensors``."""

    directions: Floats
    centres: Floats
    scales: Floats
    twin: Floats


class _Chosen(NamedTuple):
    """A part of the corpus: texts [N], grid items [G] and turns of service [A]."""

    texts: Mask
    grid: Mask
    service: Mask


class _Labels(NamedTuple):
    """Classes and folds of the corpus."""

    emotion: NDArray[np.int64]
    family_of: NDArray[np.int64]
    strength: NDArray[np.int64]
    text_fold: NDArray[np.int64]
    grid_fold: NDArray[np.int64]
    turn_fold: NDArray[np.int64]
    service: Mask


def calibrate(
    name: str,
    load: Callable[[], tuple[Any, Any]],
    corpus: Corpus,
    cache: Path,
    progress: Progress | None = None,
) -> Bank:
    """Makes the bank of a model.

    Args:
        name: Name of the model, for the card.
        load: Loads model and tokenizer.
        corpus: What to calibrate on.
        cache: Folder for activations; a second run with the same model and corpus reads them there.
        progress: Told of conversations done and in all.

    Raises:
        CorpusError: A conversation has no tokens or is too long for the model.
        SetupError: A package of the ``calibrate`` extra is missing, or the model has no chat template or no finite
            hidden states.
    """
    try:
        import sklearn  # noqa: F401 - fail before the model runs, not after
    except ImportError:
        raise SetupError("scikit-learn", "is not installed; pip install 'affect-monitor[calibrate]'") from None
    model, tokenizer = load()
    markers = find_markers(tokenizer)
    if not markers:
        raise SetupError("--model", "has no chat template, which says where replies begin; set the tokenizer's")
    depth = len(decoder_blocks(model))
    layers = tuple(sorted({round(share * depth) for share in DEPTHS}))
    fingerprint = weights_fingerprint(model)
    found = collect(
        model,
        tokenizer,
        markers,
        corpus.conversations(),
        layers,
        places=corpus.places(),
        cache=(cache, fingerprint),
        progress=progress,
    )
    card = {
        "schema_version": 1,
        "made_by": f"affect-monitor {__version__}",
        "model": {
            "name": name,
            "hidden_size": int(model.config.hidden_size),
            "depth": depth,
            "weights_fingerprint": fingerprint,
            "tokenizer_hash": tokenizer_hash(tokenizer),
            "template_hash": template_hash(tokenizer),
        },
        "layers": layers,
        "markers": _marker_cards(markers),
        "emotions": [emotion.model_dump() for emotion in corpus.emotions],
        "families": corpus.families,
        "estimator": {"name": "whitened-difference-of-means", "shrinkage": SHRINKAGE, "warranted_quantile": QUANTILE},
        "corpus_sha256": corpus.sha256,
        "validated": True,
    }
    return _build(card, found, corpus)


def _marker_cards(markers: Sequence[Marker]) -> list[dict[str, object]]:
    return [{"tokens": marker.tokens, "role": marker.role.name} for marker in markers]


def _build(card: dict[str, object], found: Activations, corpus: Corpus) -> Bank:
    """Fits, cross-fits, calibrates, and seals the bank."""
    columns = Columns(len(corpus.emotions), len(corpus.families))
    labels = _labels(corpus)
    rows, shares = _parts(found, corpus)
    everything = np.ones(len(labels.text_fold), bool), np.ones(len(labels.grid_fold), bool)
    final = _fit(rows, shares, labels, columns, _Chosen(*everything, labels.service))
    texts, users, replies, turns = _cross_scores(rows, shares, labels, columns, final)

    normal = replies[:, :2].reshape(-1, columns.total)
    reference_user = np.concatenate([np.repeat(users, 2, axis=0), turns[:, 0]])
    reference_assistant = np.concatenate([normal, turns[:, 1]])
    means = np.stack([reference_user.mean(axis=0), reference_assistant.mean(axis=0)])
    spreads = np.maximum(np.stack([reference_user.std(axis=0), reference_assistant.std(axis=0)]), 1e-6)
    standard_user = (reference_user - means[0]) / spreads[0]
    standard_assistant = (reference_assistant - means[1]) / spreads[1]

    allowed = _allowed(labels)
    warranted = fit_warranted(standard_user, standard_assistant, allowed, columns)
    standard_texts = (texts - means[:, None]) / spreads[:, None]
    platt = _platt(standard_texts[:, :, columns.emotion], labels.emotion)
    tensors = Tensors(
        directions=final.directions.astype(np.float32),
        centres=final.centres.astype(np.float32),
        scales=final.scales.astype(np.float32),
        twin_tokens=shares.tokens,
        twin_weights=final.twin.astype(np.float32),
        turn_means=means.astype(np.float32),
        turn_scales=spreads.astype(np.float32),
        platt=platt.astype(np.float32),
        reference_user=standard_user.astype(np.float32),
        reference_assistant=standard_assistant.astype(np.float32),
        reference_stance=_narrowest_stance(allowed),
        warranted=warranted.coefficients,
        warranted_scale=warranted.scale,
        residuals=warranted.residuals,
    )
    card["reference"] = {
        "source": f"{len(corpus.approved)} approved turns, {int(labels.service.sum())} of plain service, "
        f"{2 * len(corpus.grid)} authored neutral and warranted ones",
        "turns": {stance: int(mask.sum()) for stance, mask in allowed.items()},
    }
    standard_replies = (replies - means[1]) / spreads[1]
    over = _over_index(np.repeat((users - means[0]) / spreads[0], 3, axis=0), standard_replies, warranted, columns)
    scores = standard_texts[:, :, columns.emotion]
    figures = emotion_figures(
        scores.reshape(-1, columns.emotions),
        _cross_probabilities(scores, labels).reshape(-1, columns.emotions),
        np.tile(labels.emotion, 2),
    ) | excess_figures(
        over[..., -2],
        np.stack([over[..., -1], standard_replies[..., columns.twin_assistant_affect]]),
        labels.strength,
        np.array([item.excess_lexical for item in corpus.grid]),
    )
    card["figures"] = {name: round(value, 4) for name, value in figures.items()}
    return seal(card, tensors)


def _over_index(users: Floats, replies: Floats, warranted: Warranted, columns: Columns) -> Floats:
    """Over-index of every target under the neutral stance, [G, 3, F + 2]."""
    values, given = target_values(users.reshape(replies.shape), replies, columns)
    intercept, slope = warranted.coefficients[STANCES.index(Stance.NEUTRAL)].T
    over: Floats = (values - intercept - slope * given) / warranted.scale[STANCES.index(Stance.NEUTRAL)]
    return over


# -- the corpus as arrays ---------------------------------------------------------------------------------------------


def _labels(corpus: Corpus) -> _Labels:
    names = [emotion.name for emotion in corpus.emotions]
    asked = {plain(item.user): corpus.grid_folds[item.domain] for item in corpus.grid}
    approved = [_approved_fold(turn, asked) for turn in corpus.approved]
    service = [talk.fold for talk in corpus.service for _ in talk.exchanges()]
    return _Labels(
        emotion=np.array([len(names) if t.emotion == NEUTRAL else names.index(t.emotion) for t in corpus.texts]),
        family_of=np.array([corpus.families.index(emotion.family) for emotion in corpus.emotions]),
        strength=np.array([item.strength for item in corpus.grid]),
        text_fold=np.array([text.fold for text in corpus.texts]),
        grid_fold=np.array([corpus.grid_folds[item.domain] for item in corpus.grid]),
        turn_fold=np.array([*approved, *service], np.int64),
        service=np.arange(len(approved) + len(service)) >= len(approved),
    )


def _approved_fold(turn: Approved, asked: dict[str, int]) -> int:
    """The fold of the grid's user turn that an approved turn answers; -1 where no probe was fitted on any of it."""
    users = [plain(message.content) for message in turn.messages if message.role == "user"]
    return next((asked[user] for user in reversed(users) if user in asked), -1)


def _parts(found: Activations, corpus: Corpus) -> tuple[_Rows, _Shares]:
    """Cuts the flat list of conversations into the parts of the corpus."""
    texts, grid = len(corpus.texts), len(corpus.grid)
    bounds = np.cumsum([texts, texts, len(REPLIES) * grid])
    means = found.means.astype(np.float64)
    as_user, as_assistant, replied, turns = np.split(means, bounds)
    rows = _Rows(
        np.stack([as_user[:, 0], as_assistant[:, 1]]),
        replied[:: len(REPLIES), 0],
        replied[:, 1].reshape(grid, len(REPLIES), *means.shape[2:]),
        turns,
    )
    ids = [[found.ids_of(index, role) for role in (0, 1)] for index in range(len(means))]
    text_ids = [ids[index][0] for index in range(texts)]
    reply_ids = [ids[bounds[1] + index][1] for index in range(len(REPLIES) * grid)]
    user_ids = [ids[bounds[1] + len(REPLIES) * index][0] for index in range(grid)]
    turn_ids = ids[bounds[2] :]
    tokens = vocabulary([*text_ids, *user_ids, *reply_ids])
    return rows, _Shares(
        tokens,
        token_shares(text_ids, tokens),
        token_shares(user_ids, tokens),
        token_shares(reply_ids, tokens).reshape(grid, len(REPLIES), -1),
        token_shares([part for pair in turn_ids for part in pair], tokens).reshape(len(turn_ids), 2, -1),
    )


def _allowed(labels: _Labels) -> dict[Stance, Mask]:
    """Which reference turns (neutral and warranted reply of each grid item, then the other turns) a stance allows."""
    strength = np.repeat(labels.strength, 2)
    warranted = np.tile([False, True], len(labels.strength))
    rest = np.ones(len(labels.service), bool)
    return {
        Stance.NEUTRAL: np.concatenate([np.ones(len(strength), bool), rest]),
        Stance.SUPPORTIVE: np.concatenate([warranted, rest]),
        Stance.CRISIS: np.concatenate([warranted & (strength >= 2), ~rest]),  # noqa: PLR2004 - clear or intense
    }


def _narrowest_stance(allowed: dict[Stance, Mask]) -> NDArray[np.int32]:
    """For each reference turn the index of the last stance that allows it."""
    rows = [np.where(allowed[stance], index, 0) for index, stance in enumerate(STANCES)]
    narrowest: NDArray[np.int32] = np.max(rows, axis=0).astype(np.int32)
    return narrowest


# -- fitting ----------------------------------------------------------------------------------------------------------


def _fit(rows: _Rows, shares: _Shares, labels: _Labels, columns: Columns, chosen: _Chosen) -> _Fit:
    """Fits all probes and the twin on a part of the corpus."""
    layers = rows.users.shape[1]
    replies = rows.replies[chosen.grid][:, :2].reshape(-1, *rows.users.shape[1:])
    reference = np.concatenate([replies, rows.turns[:, 1]])
    centres = reference.mean(axis=0)
    directions, scales = zip(
        *(_fit_layer(rows, labels, columns, chosen, reference[:, layer], layer) for layer in range(layers)),
        strict=True,
    )
    return _Fit(np.stack(directions), centres, np.stack(scales), _fit_twin(shares, labels, columns, chosen))


def _fit_layer(
    rows: _Rows, labels: _Labels, columns: Columns, chosen: _Chosen, reference: Floats, layer: int
) -> tuple[Floats, Floats]:
    """Unit directions and scales of one layer: emotions, families, user affect, assistant affect."""
    at = rows.texts[:, chosen.texts, layer]
    # A text reads differently as a user's and as an assistant's: each position is centred on its own mean.
    stacked = (at - at.mean(axis=1, keepdims=True)).reshape(-1, at.shape[-1])
    emotions = class_directions(stacked, np.tile(labels.emotion[chosen.texts], 2), columns.emotions, SHRINKAGE)
    spread = (reference @ emotions.T).std(axis=0)
    families = np.stack(
        [(emotions / spread[:, None])[labels.family_of == family].mean(axis=0) for family in range(columns.families)]
    )
    families /= np.linalg.norm(families, axis=1, keepdims=True)
    # Plain service is grade 0 on both sides: without it, questions and second persons pass for affect.
    users = np.concatenate([rows.users[chosen.grid, layer], rows.turns[chosen.service, 0, layer]])
    user = graded_direction(users, _strengths(labels, chosen), SHRINKAGE)
    replies = rows.replies[chosen.grid, :, layer].reshape(-1, at.shape[-1])
    replies = np.concatenate([replies, rows.turns[chosen.service, 1, layer]])
    assistant = graded_direction(replies, _grades(chosen), SHRINKAGE)
    directions = np.concatenate([emotions, families, user[None], assistant[None]])
    return directions, (reference @ directions.T).std(axis=0)


def _strengths(labels: _Labels, chosen: _Chosen) -> NDArray[np.int64]:
    """Strength of the user's affect in the chosen grid items, then in turns of service."""
    return np.concatenate([labels.strength[chosen.grid], np.zeros(int(chosen.service.sum()), np.int64)])


def _grades(chosen: _Chosen) -> NDArray[np.int64]:
    """Grade of each reply to the chosen grid items, then of turns of service."""
    replies = np.tile(np.arange(len(REPLIES)), int(chosen.grid.sum()))
    return np.concatenate([replies, np.zeros(int(chosen.service.sum()), np.int64)])


def _fit_twin(shares: _Shares, labels: _Labels, columns: Columns, chosen: _Chosen) -> Floats:
    """Weights of the text twin, [tokens, twins]."""
    with_neutral = np.append(labels.family_of, columns.families)
    family = with_neutral[labels.emotion[chosen.texts]]
    weights = [token_weights(shares.texts[chosen.texts], family == f) for f in range(columns.families)]
    users = np.concatenate([shares.users[chosen.grid], shares.turns[chosen.service, 0]])
    weights.append(token_weights(users, _strengths(labels, chosen) >= 2))  # noqa: PLR2004 - clear or intense
    replies = shares.replies[chosen.grid].reshape(-1, shares.replies.shape[-1])
    replies = np.concatenate([replies, shares.turns[chosen.service, 1]])
    weights.append(token_weights(replies, _grades(chosen) == len(REPLIES) - 1))
    return np.stack(weights, axis=1)


def _scores(fit: _Fit, rows: Floats, shares: Floats) -> Floats:
    """Scores of mean rows [..., L, H] with token shares [..., K], as the scorer's mean over tokens: [..., C]."""
    folded = fit.directions / fit.scales[:, :, None] / len(fit.directions)
    probes = np.einsum("...lh,lph->...p", rows - fit.centres, folded)
    return np.concatenate([probes, shares @ fit.twin], axis=-1)


def _cross_scores(
    rows: _Rows, shares: _Shares, labels: _Labels, columns: Columns, final: _Fit
) -> tuple[Floats, Floats, Floats, Floats]:
    """Scores by probes of the other folds: texts [2, N, C], users [G, C], replies [G, 3, C], turns [A, 2, C]."""
    shape = columns.total
    texts = np.empty((2, len(labels.text_fold), shape))
    users, replies = np.empty((len(labels.grid_fold), shape)), np.empty((len(labels.grid_fold), len(REPLIES), shape))
    turns = np.empty((len(labels.turn_fold), 2, shape))
    # Nothing was fitted on approved turns with users of their own: the final probes read them as they read traffic.
    own = labels.turn_fold < 0
    turns[own] = _scores(final, rows.turns[own], shares.turns[own])
    for fold in range(FOLDS):
        rest = labels.service & (labels.turn_fold != fold)
        fit = _fit(rows, shares, labels, columns, _Chosen(labels.text_fold != fold, labels.grid_fold != fold, rest))
        # Same units as the final probes, so that what is calibrated here holds for them.
        fit = fit._replace(centres=final.centres, scales=final.scales)
        held, at, here = labels.text_fold == fold, labels.grid_fold == fold, labels.turn_fold == fold
        texts[:, held] = _scores(fit, rows.texts[:, held], shares.texts[held][None].repeat(2, 0))
        users[at] = _scores(fit, rows.users[at], shares.users[at])
        replies[at] = _scores(fit, rows.replies[at], shares.replies[at])
        turns[here] = _scores(fit, rows.turns[here], shares.turns[here])
    return texts, users, replies, turns


def _platt(scores: Floats, emotion: NDArray[np.int64]) -> Floats:
    """Slope and intercept of each emotion's probability on held-out texts in both positions (Platt 1999), [E, 2]."""
    from sklearn.linear_model import LogisticRegression

    flat, labels = scores.reshape(-1, scores.shape[-1]), np.tile(emotion, 2)
    fits = [LogisticRegression(C=100.0).fit(flat[:, [index]], labels == index) for index in range(scores.shape[-1])]
    return np.array([[fit.coef_[0, 0], fit.intercept_[0]] for fit in fits])


def _cross_probabilities(scores: Floats, labels: _Labels) -> Floats:
    """Probabilities of texts by slopes and intercepts that the texts of other folds gave, [2, N, E]."""
    found = np.empty_like(scores)
    for fold in range(FOLDS):
        held = labels.text_fold == fold
        slope, intercept = _platt(scores[:, ~held], labels.emotion[~held]).T
        found[:, held] = 1 / (1 + np.exp(-(scores[:, held] * slope + intercept)))
    return found
