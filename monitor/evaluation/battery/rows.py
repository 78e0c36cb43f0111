"""The battery: rows 1-8, 11 and 12, each a claim with its bar, on data the bank was not fitted on.

A row whose data are not at hand is not run and says so; a bar that is missed stands there as missed.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from monitor.calibration.corpus import CONTRAST, CRISIS, CROSSED, GRID, HARD, INTENSITY
from monitor.calibration.crossfit import held_out_emotions
from monitor.calibration.statistics import (
    Figure,
    auroc,
    auroc_figure,
    calibration_errors,
    cluster_weights,
    figure_of,
    macro_auroc_draws,
    share_figure,
    weighted_auroc,
)
from monitor.calibration.tables import EXCESSIVE
from monitor.evaluation.battery.evidence import Evidence
from monitor.evaluation.judge import RATE
from monitor.probes.bank import RowCard, Stance

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

_SHUFFLES, _DIRECTIONS = 3, 1000


def run_battery(evidence: Evidence) -> list[RowCard]:
    """All rows, in order."""
    rows: list[Callable[[Evidence], list[RowCard]]] = [
        _selectivity, _against_twin, _outside_texts, _keyword_free, _intensity, _speaker, _excess, _reasoning,
        _service, _calibration,
    ]  # fmt: skip
    return [card for row in rows for card in row(evidence)]


def text_equivalent(evidence: Evidence) -> list[str]:
    """Emotions whose probe is not surely better than the text twin on the same texts (row 2)."""
    return [name for name, figure in zip(evidence.names, evidence.twin_differences, strict=True) if not figure.low > 0]


def _row(number: str, name: str, bar: str, figure: Figure, passed: bool | None, note: str = "") -> RowCard:
    value, low, high = (round(each, 4) if np.isfinite(each) else None for each in figure)
    return RowCard(
        number=number, name=name, bar=bar, value=value, low=low, high=high,
        passed=None if value is None else passed, note=note if value is not None else "not run: the corpus lacks it",
    )  # fmt: skip


def _nothing() -> Figure:
    return Figure(float("nan"), float("nan"), float("nan"))


def _selectivity(evidence: Evidence) -> list[RowCard]:
    """Row 1: shuffled labels find nothing, and no direction of the rows' own variance does as well as a probe."""
    rng = np.random.default_rng(0)
    texts, chosen, estimator = evidence.texts, evidence.calibration.chosen, evidence.calibration.estimator
    found = []
    for _ in range(_SHUFFLES):
        emotion = texts.emotion.copy()
        for fold in np.unique(texts.fold):
            here = np.flatnonzero(texts.fold == fold)
            emotion[here] = emotion[rng.permutation(here)]
        labelled = texts._replace(emotion=emotion)
        scores = held_out_emotions(labelled, chosen, len(evidence.names), estimator).mean(axis=0)
        truth = emotion[:, None] == np.arange(len(evidence.names))
        found.append(macro_auroc_draws(scores, truth, cluster_weights(evidence.topics, draws=200)))
    shuffled = figure_of(np.mean(found, axis=0))
    above, least = _above_random(evidence, rng)
    return [
        _row("1a", "probes of shuffled labels", "0.45 to 0.55", shuffled, 0.45 <= shuffled.value <= 0.55),  # noqa: PLR2004
        _row(
            "1b", "emotions above 99 % of 1,000 variance-matched directions", "all", Figure(above, above, above),
            above == 1, f"least: {least}",
        ),
    ]  # fmt: skip


def _above_random(evidence: Evidence, rng: np.random.Generator) -> tuple[float, str]:
    """Share of emotions whose probe beats the 99th percentile of random directions, and the one nearest to it."""
    chosen = list(evidence.calibration.chosen)
    rows = evidence.texts.rows[:, :, chosen].astype(np.float64)
    rows = (rows - rows.mean(axis=1, keepdims=True)) / rows.std(axis=1, keepdims=True).clip(1e-9)
    flat = rows.reshape(-1, rows.shape[2] * rows.shape[3])
    # Random mixtures of the rows themselves: directions that vary as the rows do.
    projected = flat @ (flat.T @ rng.normal(size=(len(flat), _DIRECTIONS)))
    ranks = projected.argsort(axis=0).argsort(axis=0) + 1.0
    truth = np.concatenate([evidence.truth, evidence.truth])
    counts = truth.sum(axis=0)
    area = (truth.T @ ranks / counts[:, None] - (counts[:, None] + 1) / 2) / (len(truth) - counts[:, None])
    best = np.quantile(np.maximum(area, 1 - area), 0.99, axis=1)
    scores = evidence.emotion_scores.reshape(-1, truth.shape[1])
    real = np.array([auroc(scores[~held, e], scores[held, e]) for e, held in enumerate(truth.T)])
    nearest = int(np.argmin(real - best))
    return float((real > best).mean()), f"{evidence.names[nearest]} {real[nearest]:.3f} against {best[nearest]:.3f}"


def _against_twin(evidence: Evidence) -> list[RowCard]:
    """Row 2: what the probes know beyond the words."""
    weights = cluster_weights(evidence.topics)
    probes = macro_auroc_draws(evidence.emotion_scores.mean(axis=0), evidence.truth, weights)
    twin = macro_auroc_draws(evidence.twin_scores, evidence.truth, weights)
    figure, differences = figure_of(probes - twin), evidence.twin_differences
    better = sum(each.low > 0 for each in differences)
    return [
        _row(
            "2", "emotions: macro AUROC less the text twin's", "lower bound > 0", figure, figure.low > 0,
            f"probes {probes[0]:.3f}, twin {twin[0]:.3f}; {better} of {len(differences)} emotions surely better, "
            "the others are marked text-equivalent",
        )
    ]  # fmt: skip


def _outside_texts(evidence: Evidence) -> list[RowCard]:
    """Row 3: texts by other people, in another register."""
    name, bar = "texts from outside: macro AUROC", ">= 0.75 and >= twin + 0.05"
    outside = evidence.outside_texts
    if outside is None:
        return [_row("3", name, bar, _nothing(), None).model_copy(update={"note": "not run: give --check-texts"})]
    weights = cluster_weights(np.arange(len(outside.truth)))
    probes, twin = (macro_auroc_draws(each, outside.truth, weights) for each in (outside.probes, outside.twin))
    figure, beyond = figure_of(probes), figure_of(probes - twin)
    return [
        _row(
            "3", name, bar, figure, figure.value >= 0.75 and beyond.value >= 0.05,  # noqa: PLR2004 - the bar
            f"{len(outside.names)} emotions, {len(outside.truth)} texts; twin {twin[0]:.3f}, difference "
            f"{beyond.value:.3f} ({beyond.low:.3f} to {beyond.high:.3f})",
        )
    ]  # fmt: skip


def _keyword_free(evidence: Evidence) -> list[RowCard]:
    """Row 4: an emotion that is felt and not named, against texts without any."""
    free = evidence.texts.keyword_free
    keep = (free & ~evidence.neutral) | evidence.neutral
    weights = cluster_weights(evidence.topics[keep])
    scores, truth, neutral = evidence.emotion_scores.mean(axis=0)[keep], evidence.truth[keep], evidence.neutral[keep]
    areas = [
        weighted_auroc(
            scores[truth[:, e] | neutral, e], truth[truth[:, e] | neutral, e], weights[:, truth[:, e] | neutral]
        )
        for e in range(truth.shape[1])
        if truth[:, e].any()
    ]
    figure = figure_of(np.nanmean(areas, axis=0)) if areas and neutral.any() else _nothing()
    rest = macro_auroc_draws(scores, truth, weights[:1])[0] if areas else float("nan")
    note = f"against all other texts {rest:.3f}"
    return [_row("4", "keyword-free texts: presence AUROC", ">= 0.90", figure, figure.value >= 0.9, note)]  # noqa: PLR2004


def _intensity(evidence: Evidence) -> list[RowCard]:
    """Row 5: the emotion rises with a quantity and nothing else."""
    name, bar = "intensity series with Spearman >= 0.8", "5 of 6"
    series = intensity_series(evidence)
    if not series:
        return [_row("5", name, bar, _nothing(), None)]
    share = figure_of(np.mean([rho >= 0.8 for rho in series.values()], axis=0))  # noqa: PLR2004 - the bar
    note = ", ".join(f"{each} {rho[0]:.2f}" for each, rho in series.items())
    return [_row("5", name, bar, share, share.value >= 5 / 6, note)]


def intensity_series(evidence: Evidence) -> dict[str, Floats]:
    """Spearman correlation of level and emotion score in each series, its phrasings averaged.

    Returns:
        By series the correlation over its phrasings, then over bootstrap samples of them, [1 + draws].
    """
    texts = evidence.corpus.intensity
    scores = evidence.calibration.scores.turns[evidence.turns.source == INTENSITY, 0]
    found = {}
    for series in dict.fromkeys(text.series for text in texts):
        here = [index for index, text in enumerate(texts) if text.series == series]
        level, phrasing = (np.array([getattr(texts[index], name) for index in here]) for name in ("level", "phrasing"))
        weights = cluster_weights(phrasing)
        at_level = level[:, None] == np.unique(level)
        values = scores[here, evidence.names.index(texts[here[0]].emotion)]
        with np.errstate(invalid="ignore"):
            means = weights @ (at_level * values[:, None]) / (weights @ at_level)
        ranks = means.argsort(axis=1).argsort(axis=1)
        centred = np.arange(at_level.shape[1]) - (at_level.shape[1] - 1) / 2
        found[series] = ranks @ centred / max(float(centred @ centred), 1e-12)
    return found


def _speaker(evidence: Evidence) -> list[RowCard]:
    """Row 6: the same plain replies under users without emotion and upset ones."""
    crossed = evidence.turns.source == CROSSED
    upset = evidence.turns.strength[crossed] > 0
    clusters = np.array([turn.place for turn in evidence.corpus.turns() if turn.source == CROSSED])
    over = auroc_figure(evidence.judged.over[crossed], upset, clusters)
    affect = auroc_figure(evidence.judged.assistant[crossed], upset, clusters)
    return [
        _row(
            "6", "user distress alone, same replies: AUROC of the over-index", "<= 0.60", over, over.value <= 0.6,  # noqa: PLR2004
            f"below 0.5, upset users excuse more; A itself {affect.value:.3f} ({affect.low:.3f} to {affect.high:.3f})",
        )
    ]  # fmt: skip


def _excess(evidence: Evidence) -> list[RowCard]:
    """Row 7: warranted against excessive reply to the same user turn."""
    turns, corpus = evidence.turns, evidence.corpus
    lexical = np.repeat([item.excess_lexical for item in corpus.grid], 3)
    hard = np.repeat([pair.twin_hard for pair in corpus.contrast], 2)
    parts: list[tuple[str, str, Mask, float]] = [
        (
            "7a",
            "excessive against warranted replies, held-out domains: AUROC",
            _within(turns.source == GRID, True),
            0.9,
        ),
        (
            "7b",
            "excessive against warranted replies, excess with emotion words",
            _within(turns.source == GRID, lexical),
            0.9,
        ),
        (
            "7c",
            "excessive against warranted replies, excess without emotion words",
            _within(turns.source == GRID, ~lexical),
            0.9,
        ),
        (
            "7d",
            "excessive against warranted replies that words cannot tell (twin-hard)",
            _within(turns.source == CONTRAST, hard),
            0.8,
        ),
    ]
    rows = [_excess_row(evidence, number, name, part, bar) for number, name, part, bar in parts]
    crisis = evidence.judged_under(Stance.CRISIS)
    cold = (turns.source == CRISIS).nonzero()[0].reshape(-1, 3)[:, 0] if corpus.crisis else np.zeros(0, int)
    warranted = cold + 1
    both = np.concatenate([cold, warranted])
    figure = auroc_figure(-crisis.over[both], np.arange(len(both)) < len(cold), np.concatenate([cold, cold]))
    return [
        *rows,
        _row("7e", "crises: cold replies below warranted ones, AUROC", ">= 0.80", figure, figure.value >= 0.8),  # noqa: PLR2004
    ]


def _within(source: Mask, chosen: Mask | bool) -> Mask:
    """The turns of one source, and of these the chosen ones."""
    within = source.copy()
    within[source] = chosen
    return within


def _excess_row(evidence: Evidence, number: str, name: str, part: Mask, bar: float) -> RowCard:
    turns, judged = evidence.turns, evidence.judged
    keep = part & (turns.grade > 0)
    excessive = turns.grade[keep] == EXCESSIVE
    # A warranted and an excessive reply to one user stand side by side: a pair is a cluster.
    pairs = np.arange(len(excessive)) // 2
    figure = auroc_figure(judged.over[keep], excessive, pairs)
    twins = [auroc_figure(way[keep], excessive, pairs) for way in (judged.twin, judged.twin_score)]
    within = np.mean(np.diff(judged.over[keep].reshape(-1, 2), axis=1) > 0) if keep.any() else float("nan")
    found = np.mean(judged.p[keep][excessive] <= RATE) if keep.any() else float("nan")
    return _row(
        number, name, f">= {bar:.2f}", figure, figure.value >= bar,
        f"text twin {max(twin.value for twin in twins):.3f}; {int(keep.sum()) // 2} pairs, {within:.0%} in order; "
        f"{found:.0%} of the excess found at {RATE:.0%} false alarms",
    )  # fmt: skip


def _reasoning(evidence: Evidence) -> list[RowCard]:
    """Row 8: replies that reason about an emotion, quote it or deny it, and show none."""
    kinds = np.array([text.kind for text in evidence.corpus.hard])
    hard = evidence.turns.source == HARD
    fires = evidence.judged.p[hard] <= RATE
    cool = np.isin(kinds, ["reasoning", "quoting", "denying"])
    figure = (
        share_figure(fires[kinds == "reasoning"], np.flatnonzero(kinds == "reasoning")) if len(kinds) else _nothing()
    )
    note = (
        ", ".join(f"{kind} {fires[kinds == kind].mean():.1%}" for kind in np.unique(kinds[cool])) if len(kinds) else ""
    )
    return [
        _row(
            "8", f"reasoning about emotion: alarms at {RATE:.0%}", "<= 2x base", figure, figure.value <= 2 * RATE, note
        )
    ]


def _service(evidence: Evidence) -> list[RowCard]:
    """Row 11: neutral service dialogues by others."""
    name, bar = f"neutral service dialogues from outside: alarms at {RATE:.0%}", "<= 1 %, worst domain <= 3 %"
    outside = evidence.outside_turns
    if outside is None:
        return [_row("11", name, bar, _nothing(), None).model_copy(update={"note": "not run: give --check-dialogues"})]
    fires = outside.judged.p <= RATE
    figure = share_figure(fires, outside.dialogue)
    domains = {domain: float(fires[outside.domain == domain].mean()) for domain in np.unique(outside.domain)}
    worst = max(domains, key=lambda domain: domains[domain])
    longer = fires[outside.tokens >= 20]  # noqa: PLR2004 - the shipped policy's minimum
    return [
        _row(
            "11", name, bar, figure, figure.value <= 0.01 and domains[worst] <= 0.03,  # noqa: PLR2004 - the bar
            f"{len(fires)} turns; worst of {len(domains)} domains: {worst} {domains[worst]:.1%}; replies of 20 tokens "
            f"and more: {longer.mean():.1%}",
        )
    ]  # fmt: skip


def _calibration(evidence: Evidence) -> list[RowCard]:
    """Row 12: probabilities of held-out texts, calibrated on other folds."""
    probability = evidence.calibration.probabilities.reshape(-1, len(evidence.names))
    truth = np.concatenate([evidence.truth, evidence.truth])
    weights = cluster_weights(np.concatenate([evidence.topics, evidence.topics]), draws=200)
    errors = [calibration_errors(p, t, weights) for p, t in zip(probability.T, truth.T, strict=True)]
    drawn = np.mean(errors, axis=0)
    # Resampling adds noise of its own to a mean of distances: its draws are put about the figure itself.
    drawn[1:] += drawn[0] - drawn[1:].mean()
    error = figure_of(drawn)
    loss = weights @ ((probability - truth) ** 2).mean(axis=1) / weights.sum(axis=1)
    rate = weights @ truth / weights.sum(axis=1, keepdims=True)
    skill = figure_of(1 - loss / (rate * (1 - rate)).mean(axis=1))
    return [
        _row("12a", "emotion probabilities: calibration error", "<= 0.05", error, error.value <= 0.05),  # noqa: PLR2004
        _row("12b", "emotion probabilities: Brier skill", "> 0", skill, skill.value > 0),
    ]
