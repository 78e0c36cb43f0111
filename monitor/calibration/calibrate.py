"""From a corpus and a model to a bank.

    corpus -> conversations -> mean rows -> directions by layer -> layers -> held-out scores -> reference -> bank

Every score that calibrates or is reported comes from directions fitted without its domain (turns) or topic (texts).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from monitor import __version__
from monitor.calibration.activations import Progress
from monitor.calibration.corpus import APPROVED, CONTRAST, GRID, SERVICE, Corpus
from monitor.calibration.crossfit import CONTRAST_WEIGHT, CrossFit, Scores, cross_fit
from monitor.calibration.lines import FOLDS
from monitor.calibration.reference import QUANTILE, Reference, ReferenceTurns, fit_reference, stance_turns
from monitor.calibration.sweep import Swept, candidate_layers, choose_layers
from monitor.calibration.tables import Runner, Tables, make_tables
from monitor.capture.identity import template_hash, tokenizer_hash, weights_fingerprint
from monitor.capture.passes import decoder_blocks
from monitor.errors import SetupError
from monitor.probes.bank import Bank, Columns, Tensors, seal, tensors_of
from monitor.probes.fit import ESTIMATORS, Estimator
from monitor.probes.markers import Marker, find_markers

Floats = NDArray[np.float64]


class Calibration(NamedTuple):
    """A bank and what it was made from, for the battery and the report.

    Attributes:
        bank: The bank, without figures.
        card: What ``seal`` was told of it.
        corpus: The corpus.
        tables: The corpus as arrays.
        estimator: What found the directions.
        chosen: Indices of the bank's layers among those of the tables.
        scores: Held-out scores, standardised as the bank's reference: texts [2, N, C], turns [R, 2, C].
        probabilities: Held-out probabilities of texts, calibrated on other folds, [2, N, E].
        sweep: What each candidate layer is worth.
        runner: Runs further conversations through the model.
    """

    bank: Bank
    card: dict[str, object]
    corpus: Corpus
    tables: Tables
    estimator: Estimator
    chosen: tuple[int, ...]
    scores: Scores
    probabilities: Floats
    sweep: list[Swept]
    runner: Runner


def calibrate(
    name: str,
    load: Callable[[], tuple[Any, Any]],
    corpus: Corpus,
    cache: Path,
    *,
    estimator: str = "whitened",
    layers: Sequence[int] = (),
    further: int = 0,
    progress: Progress | None = None,
) -> Calibration:
    """Makes the bank of a model.

    Args:
        name: Name of the model, for the card.
        load: Loads model and tokenizer.
        corpus: What to calibrate on.
        cache: Folder for activations; a second run with the same model and corpus reads them there.
        estimator: A name of ``ESTIMATORS``.
        layers: Layers of the bank; none: the best of a sweep.
        further: Conversations that will be run afterwards, for the progress.
        progress: Told of conversations done and in all.

    Raises:
        CorpusError: A conversation has no tokens or is too long for the model.
        SetupError: A package of the ``calibrate`` extra is missing, a layer is not the model's, or the model has no
            chat template or no finite hidden states.
    """
    _require_sklearn()
    model, tokenizer = load()
    markers = find_markers(tokenizer)
    if not markers:
        raise SetupError("--model", "has no chat template, which says where replies begin; set the tokenizer's")
    depth = len(decoder_blocks(model))
    candidates = _checked_layers(layers, depth) if layers else candidate_layers(depth)
    fingerprint = weights_fingerprint(model)
    planned = 2 * len(corpus.texts) + len(corpus.turns()) + further
    runner = Runner(model, tokenizer, markers, candidates, (cache, fingerprint), planned, progress)
    tables = make_tables(corpus, runner)

    columns = Columns(len(corpus.emotions), len(corpus.families))
    family_of = np.array([corpus.families.index(emotion.family) for emotion in corpus.emotions])
    found = cross_fit(tables, family_of, ESTIMATORS[estimator])
    chosen, sweep = (candidates, []) if layers else choose_layers(candidates, found, tables, columns)
    at = tuple(candidates.index(layer) for layer in chosen)
    scores = found.ensemble(at)
    turns = _reference_turns(tables, scores)
    reference = fit_reference(turns, columns)
    standard = Scores(
        _standardised(scores.texts, reference), _standardised(scores.turns.swapaxes(0, 1), reference).swapaxes(0, 1)
    )
    emotions = standard.texts[..., columns.emotion]
    card: dict[str, object] = {
        "schema_version": 2,
        "made_by": f"affect-monitor {__version__}",
        "model": {
            "name": name,
            "hidden_size": int(model.config.hidden_size),
            "depth": depth,
            "weights_fingerprint": fingerprint,
            "tokenizer_hash": tokenizer_hash(tokenizer),
            "template_hash": template_hash(tokenizer),
        },
        "layers": chosen,
        "markers": _marker_cards(markers),
        "emotions": [emotion.model_dump() for emotion in corpus.emotions],
        "families": corpus.families,
        "estimator": {
            "name": estimator,
            **{key: float(value) for key, value in vars(ESTIMATORS[estimator]).items()},
            "contrast_weight": float(CONTRAST_WEIGHT),
            "warranted_quantile": QUANTILE,
        },
        "reference": {"source": _source(tables), "turns": stance_turns(turns.stance)},
        "corpus_sha256": corpus.sha256,
        "battery": (),
        "text_equivalent": (),
        "validated": True,
    }
    platt = np.stack([_platt(position, tables.texts.emotion) for position in emotions])
    bank = seal(card, _tensors(found, at, tables, platt, reference))
    probabilities = np.stack([_held_out_probabilities(position, tables) for position in emotions])
    return Calibration(bank, card, corpus, tables, ESTIMATORS[estimator], at, standard, probabilities, sweep, runner)


def _require_sklearn() -> None:
    """Fails before the model runs, not after."""
    try:
        import sklearn  # noqa: F401
    except ImportError:
        raise SetupError("scikit-learn", "is not installed; pip install 'affect-monitor[calibrate]'") from None


def _checked_layers(layers: Sequence[int], depth: int) -> tuple[int, ...]:
    if any(not 0 < layer <= depth for layer in layers):
        raise SetupError("--layers", f"{list(layers)} where the model has layers 1 to {depth}")
    return tuple(sorted(set(layers)))


def _marker_cards(markers: Sequence[Marker]) -> list[dict[str, object]]:
    return [{"tokens": marker.tokens, "role": marker.role.name} for marker in markers]


def _reference_turns(tables: Tables, scores: Scores) -> ReferenceTurns:
    stance = tables.turns.stance
    held = stance >= 0
    user, assistant = scores.turns[held].swapaxes(0, 1)
    # Traffic is told by source and grade.
    traffic = np.char.add(tables.turns.source, tables.turns.grade.astype(str))[held]
    group = np.unique(traffic, return_inverse=True)[1]
    return ReferenceTurns(user, assistant, np.maximum(tables.turns.tokens[held], 1), stance[held], group)


def _source(tables: Tables) -> str:
    """What the reference is made of, in words."""
    names = {
        APPROVED: "approved turns of the model",
        SERVICE: "exchanges of plain service",
        GRID: "authored neutral and warranted replies",
        CONTRAST: "authored warranted replies of contrast pairs",
    }
    held = tables.turns.source[tables.turns.stance >= 0]
    return ", ".join(
        f"{int((held == source).sum())} {name}" for source, name in names.items() if (held == source).any()
    )


def _standardised(scores: Floats, reference: Reference) -> Floats:
    """Scores of users (0) and assistants (1), [2, ..., C], in standard deviations of the reference."""
    standard: Floats = (scores - reference.turn_means[:, None]) / reference.turn_scales[:, None]
    return standard


def _tensors(found: CrossFit, at: tuple[int, ...], tables: Tables, platt: Floats, reference: Reference) -> Tensors:
    return tensors_of(
        {
            "directions": found.probes.directions[list(at)],
            "centres": found.probes.centres[list(at)],
            "scales": found.probes.scales[list(at)],
            "twin_tokens": tables.vocabulary,
            "twin_weights": found.twin,
            "platt": platt,
            **reference._asdict(),
        }
    )


def _platt(scores: Floats, emotion: NDArray[np.int64]) -> Floats:
    """Slope and intercept of each emotion's probability on held-out texts in one position (Platt 1999), [E, 2]."""
    from sklearn.linear_model import LogisticRegression

    fits = [LogisticRegression(C=100.0).fit(scores[:, [index]], emotion == index) for index in range(scores.shape[1])]
    return np.array([[fit.coef_[0, 0], fit.intercept_[0]] for fit in fits])


def _held_out_probabilities(scores: Floats, tables: Tables) -> Floats:
    """Probabilities of texts by slopes and intercepts that the texts of other folds gave, [N, E]."""
    found = np.empty_like(scores)
    for fold in range(FOLDS):
        held = tables.texts.fold == fold
        slope, intercept = _platt(scores[~held], tables.texts.emotion[~held]).T
        found[held] = 1 / (1 + np.exp(-(scores[held] * slope + intercept)))
    return found
