"""The plots of a bank's report, each from held-out scores."""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle
from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray
from plotly.subplots import make_subplots

from monitor.assess.overindex import STANCES, Warranted
from monitor.calibration.corpus import CONTRAST, GRID, INTENSITY
from monitor.calibration.lines import NEUTRAL
from monitor.calibration.reference import QUANTILE
from monitor.calibration.statistics import auroc, reliability
from monitor.calibration.tables import EXCESSIVE
from monitor.evaluation.battery.evidence import Evidence
from monitor.evaluation.battery.rows import intensity_series
from monitor.evaluation.look import COLOURS, GREY, HEIGHT, styled
from monitor.probes.bank import Stance

Floats = NDArray[np.float64]

LENGTHS = (60, 20)
"""Assistant tokens for which the warranted level is drawn."""
POSITIONS = ("user's position", "assistant's position")
_LINE = 20


class Plot(NamedTuple):
    """One plot of the report.

    Attributes:
        title: What it shows.
        caption: How to read it, or why it is not drawn.
        figure: None where the data are missing.
    """

    title: str
    caption: str
    figure: go.Figure | None


def draw(evidence: Evidence) -> list[Plot]:
    """All plots, in the order of the report."""
    plots: list[Callable[[Evidence], Plot]] = [
        layer_sweep, reliability_curves, family_confusion, valence_arousal, expected_and_assistant, excess_roc,
        against_twin, intensity,
    ]  # fmt: skip
    return [plot(evidence) for plot in plots]


def layer_sweep(evidence: Evidence) -> Plot:
    """What each candidate layer alone is worth."""
    title, swept, chosen = "Layer sweep", evidence.calibration.sweep, evidence.bank.card.layers
    if not swept:
        return Plot(title, "Not drawn: the layers were given, so none were compared.", None)
    values = {"emotions (macro)": "emotions", "excess, grid": "excess"}
    if evidence.corpus.contrast:
        values["excess, contrast pairs"] = "contrast"
    figure = styled("layer", "AUROC on held-out topics and domains")
    layers = [layer for each in swept for layer in each.layers]
    size = [14 if layer in chosen else 6 for layer in layers]
    for (name, field), colour in zip(values.items(), COLOURS, strict=False):
        marker = {"size": size, "color": colour, "opacity": 1, "line": {"width": 0}}
        figure.add_scatter(x=layers, y=[getattr(each, field) for each in swept], name=name, marker=marker)
    figure.update_xaxes(tickvals=layers)
    caption = "Each point is one layer alone, higher is better; the large points are the layers the bank averages."
    return Plot(title, caption, figure)


def reliability_curves(evidence: Evidence) -> Plot:
    """Predicted and observed frequency in each position, pooled over emotions."""
    parts = make_subplots(rows=2, cols=1, shared_xaxes=True, row_heights=[0.75, 0.25], vertical_spacing=0.06)
    figure = styled("", "", HEIGHT + 100, parts)
    figure.add_scatter(x=[0, 1], y=[0, 1], mode="lines", name="perfect", line={"dash": "dot", "color": GREY})
    for position, name in enumerate(POSITIONS):
        bins = reliability(evidence.calibration.probabilities[position].ravel(), evidence.truth.ravel())
        predicted, observed, share = zip(*bins, strict=True)
        marker, place = {"color": COLOURS[position]}, {"width": 0.02, "offset": 0.02 * (position - 1)}
        figure.add_scatter(x=predicted, y=observed, name=name, marker=marker)
        figure.add_bar(x=predicted, y=share, marker=marker, **place, showlegend=False, row=2, col=1)
    figure.update_xaxes(title_text="mean predicted probability", range=[-0.02, 1.02], row=2, col=1)
    figure.update_yaxes(title_text="observed frequency", range=[-0.02, 1.02], row=1, col=1)
    figure.update_yaxes(title_text="share of all", type="log", dtick=1, tickformat=".2~%", row=2, col=1)
    caption = (
        "On the dotted line a probability means what it says, above it the bank is too cautious; the bars show what "
        "share of all probabilities lies in each bin, on a logarithmic scale."
    )
    return Plot("Reliability of the emotion probabilities", caption, figure)


def family_confusion(evidence: Evidence) -> Plot:
    """Which family's score is the highest, by the family a text was written for."""
    families = list(evidence.bank.card.families)
    family_of = [families.index(emotion.family) for emotion in evidence.bank.card.emotions]
    true = np.tile(np.append(family_of, len(families))[evidence.texts.emotion], 2)
    scores = evidence.calibration.scores.texts[..., evidence.columns.family]
    highest = scores.reshape(-1, len(families)).argmax(axis=1)
    rows = np.unique(true)
    shares = [np.bincount(highest[true == row], minlength=len(families)) / (true == row).sum() for row in rows]
    figure = styled("family with the highest score", "family of the text", 160 + 40 * len(rows))
    figure.add_heatmap(
        x=families, y=[[*families, NEUTRAL][row] for row in rows], z=np.round(shares, 4), zmin=0, zmax=1, xgap=2,
        ygap=2, texttemplate="%{z:.0%}", showscale=False, colorscale=[[0, "#e8edf2"], [1, "#08519c"]],
    )  # fmt: skip
    figure.update_yaxes(autorange="reversed", showgrid=False).update_xaxes(showgrid=False)
    caption = (
        "Each row is the texts of one family, held out and read in both positions, and sums to 100 %: the diagonal is "
        "right, and neutral texts, which have no right column, should spread."
    )
    return Plot("Which family scores highest", caption, figure)


def valence_arousal(evidence: Evidence) -> Plot:
    """The emotion directions of the deepest layer in the plane they vary most in."""
    emotions = evidence.bank.card.emotions
    title = f"Map of the emotion directions, layer {evidence.bank.card.layers[-1]}"
    if len(emotions) < 3:  # noqa: PLR2004 - two points lie on a line
        return Plot(title, "Not drawn: a plane needs three emotions or more.", None)
    directions = evidence.bank.tensors.directions[-1, evidence.columns.emotion].astype(np.float64)
    left, sizes, _ = np.linalg.svd(directions - directions.mean(axis=0), full_matrices=False)
    places, variance = left[:, :2] * sizes[:2], sizes**2 / (sizes**2).sum()
    # A name stands on the side that the nearest other point is not on, so that fewer overlap.
    apart = np.linalg.norm(places[:, None] - places, axis=2) + np.diag(np.full(len(places), np.inf))
    sides = np.where(places[apart.argmin(axis=1), 1] > places[:, 1], "bottom center", "top center")
    titles = [f"component {axis + 1} ({share:.0%} of variance)" for axis, share in enumerate(variance[:2])]
    figure = styled(titles[0], titles[1], 600)
    for family, colour in zip(evidence.bank.card.families, cycle(COLOURS), strict=False):
        here = [number for number, emotion in enumerate(emotions) if emotion.family == family]
        symbols = ["circle" if emotions[number].valence >= 0 else "x" for number in here]
        figure.add_scatter(
            x=places[here, 0], y=places[here, 1], text=[emotions[number].name for number in here], name=family,
            mode="markers+text", textposition=sides[here], textfont={"size": 10}, cliponaxis=False,
            marker={"color": colour, "symbol": symbols, "size": 9},
        )  # fmt: skip
    labels = {name: [getattr(emotion, name) for emotion in emotions] for name in ("valence", "arousal")}
    fits = [_best_fit(places, name, values) for name, values in labels.items()]
    caption = (
        "Emotions whose directions are alike lie together, a circle for pleasant and a cross for unpleasant ones; "
        f"{' and '.join(fits)}."
    )
    return Plot(title, caption, figure)


def _best_fit(places: Floats, name: str, values: list[float]) -> str:
    """The first or second component, whichever correlates better with what emotions are labelled, in words."""
    if np.ptp(values) == 0:
        return f"all emotions have the same {name}"
    fits = [abs(float(np.corrcoef(place, values)[0, 1])) for place in places.T]
    best = int(np.argmax(fits))
    return f"component {best + 1} correlates with {name} at |r| = {fits[best]:.2f}"


def expected_and_assistant(evidence: Evidence) -> Plot:
    """Affect of the grid's replies over what their users lead to expect, with the warranted level."""
    judged, turns, tensors = evidence.judged, evidence.turns, evidence.bank.tensors
    figure = styled("affect the user leads to expect (reference SD)", "assistant affect A (reference SD)", 520)
    grid = turns.source == GRID
    for grade, (name, colour) in enumerate(zip(("neutral", "warranted", "excessive"), (GREY, *COLOURS), strict=False)):
        here = grid & (turns.grade == grade)
        marker = {"color": colour, "size": 5, "opacity": 0.7}
        figure.add_scatter(x=judged.expected[here], y=judged.assistant[here], name=name, mode="markers", marker=marker)
    row = STANCES.index(Stance.NEUTRAL)
    lines = Warranted(tensors.warranted[row].astype(np.float64), tensors.spread[row].astype(np.float64))
    users = np.array([judged.expected[grid].min(), judged.expected[grid].max()])
    given = np.tile(users[:, None], len(lines.level))
    for length, dash, colour in zip(LENGTHS, ("solid", "dash"), COLOURS[2:], strict=False):
        level, _ = lines.excess(given, given, length)
        line = {"dash": dash, "color": colour, "width": 3}
        figure.add_scatter(x=users, y=level[:, -2], name=f"warranted, {length} tokens", mode="lines", line=line)
    caption = (
        "Each point is one authored reply, scored by probes that did not see its domain; what lies above the line for "
        f"its length carries more affect than {100 * QUANTILE:.0f} % of reference turns with such users on a neutral "
        "route (lines that coincide: length makes no difference)."
    )
    return Plot("Expected affect and assistant affect", caption, figure)


def excess_roc(evidence: Evidence) -> Plot:
    """Excessive against warranted replies, by over-index and by text twin."""
    turns, judged = evidence.turns, evidence.judged
    hard = turns.source == CONTRAST
    hard[hard] = np.repeat([pair.twin_hard for pair in evidence.corpus.contrast], 2)
    figure = styled("false-positive rate (warranted)", "true-positive rate (excessive)")
    figure.add_scatter(x=[0, 1], y=[0, 1], mode="lines", name="chance", line={"dash": "dot", "color": GREY})
    for part, where, colour in ((turns.source == GRID, "grid", COLOURS[0]), (hard, "twin-hard pairs", COLOURS[1])):
        if not part.any():
            continue
        warranted, excessive = part & (turns.grade == 1), part & (turns.grade == EXCESSIVE)
        twin = max(judged.twin, judged.twin_score, key=lambda way: auroc(way[warranted], way[excessive]))
        for who, way, dash in (("over-index", judged.over, "solid"), ("text twin", twin, "dash")):
            false, true = _roc(way[warranted], way[excessive])
            name = f"{who}, {where}: {auroc(way[warranted], way[excessive]):.3f}"
            figure.add_scatter(x=false, y=true, name=name, mode="lines", line={"color": colour, "dash": dash})
    caption = (
        "The nearer a curve to the upper left corner the better it tells excessive replies from warranted ones (area "
        "in the legend); what hidden states add to words is a solid curve's lead over the dashed one of its colour."
    )
    return Plot("Excess: over-index and text twin", caption, figure)


def _roc(negative: Floats, positive: Floats) -> tuple[Floats, Floats]:
    """False- and true-positive rate at every threshold, from none to all."""
    cuts = np.unique(np.concatenate([negative, positive, [np.inf]]))[::-1]
    false, true = (1 - np.searchsorted(np.sort(side), cuts) / len(side) for side in (negative, positive))
    return false, true


def against_twin(evidence: Evidence) -> Plot:
    """AUROC of each emotion's probe and of the text twin."""
    differences, truth = np.array(evidence.twin_differences), evidence.truth
    order = np.argsort(differences[:, 0])
    twin, probe = (
        np.array([auroc(way[~truth[:, e], e], way[truth[:, e], e]) for e in order])
        for way in (evidence.twin_scores, evidence.emotion_scores.mean(axis=0))
    )
    _, low, high = differences[order].T
    names = np.array([evidence.names[e] + (" *" if not differences[e, 1] > 0 else "") for e in order])
    figure = styled("AUROC on held-out topics", "", 120 + _LINE * len(names))
    mark = {"symbol": "line-ns", "size": 12, "line": {"color": GREY, "width": 3}}
    figure.add_scatter(x=twin, y=names, name="text twin", mode="markers", marker=mark)
    ends = {"array": twin + high - probe, "arrayminus": probe - twin - low}
    for name, here, colour in (("probe", low > 0, COLOURS[0]), ("probe, text-equivalent", ~(low > 0), COLOURS[1])):
        bars = {side: lengths[here] for side, lengths in ends.items()}
        figure.add_scatter(
            x=probe[here], y=names[here], name=name, mode="markers", marker={"color": colour, "size": 8},
            error_x={**bars, "color": GREY, "width": 0},
        )  # fmt: skip
    figure.update_yaxes(range=[-0.7, len(names) - 0.3])
    caption = (
        "A bar is the 95 % interval of the probe's lead over the text twin, laid off from the twin's mark; where it "
        "reaches the mark, the emotion is text-equivalent (orange, starred): words alone may read it as well."
    )
    return Plot("Each emotion beside its text twin", caption, figure)


def intensity(evidence: Evidence) -> Plot:
    """Mean score of the emotion at each level of every series."""
    title, texts, found = "Intensity series", evidence.corpus.intensity, intensity_series(evidence)
    if not found:
        return Plot(title, "Not drawn: the corpus has no intensity series.", None)
    scores = evidence.calibration.scores.turns[evidence.turns.source == INTENSITY, 0]
    figure = styled("level (0 is the least)", "mean score (reference SD)")
    for (series, rho), colour in zip(found.items(), cycle(COLOURS), strict=False):
        here = [(number, text) for number, text in enumerate(texts) if text.series == series]
        levels, emotion = sorted({text.level for _, text in here}), here[0][1].emotion
        own = scores[:, evidence.names.index(emotion)]
        means = [np.mean([own[number] for number, text in here if text.level == level]) for level in levels]
        name = f"{series.replace('_', ' ')} ({emotion}), {rho[0]:.2f}"
        figure.add_scatter(x=levels, y=means, name=name, marker={"color": colour})
    caption = (
        "In each series a quantity alone rises with the level, and its line should rise with it (Spearman correlation "
        "in the legend)."
    )
    return Plot(title, caption, figure)
