"""Another version of a model against the one a bank was calibrated on, both reading the same texts and exchanges."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from monitor.calibration.activations import Activations, Progress
from monitor.calibration.crossfit import GRADES
from monitor.calibration.lines import Message
from monitor.calibration.statistics import (
    Figure,
    cluster_weights,
    figure_of,
    macro_auroc_draws,
    share_figure,
    weighted_auroc,
)
from monitor.capture.identity import tokenizer_hash
from monitor.evaluation.judge import Judged, judge, scores_of
from monitor.evaluation.subject import Subject
from monitor.evaluation.versions.causal import CausalLikeness, causal_likeness, effects
from monitor.evaluation.versions.similarity import aligned_cosines, cosines, linear_cka, map_correlation
from monitor.evaluation.versions.transfer import (
    EXCESSIVE,
    Sample,
    Scores,
    directions_of,
    own_scores,
    rows_of,
    transfer,
)
from monitor.evaluation.versions.version import Version
from monitor.probes.fit import ESTIMATORS

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

PROMPTS = 6
"""Replies whose first token is pushed."""
_SIMILARITY_DRAWS = 100
"""Bootstrap samples of similarities, each of which needs products of all rows."""


class Areas(NamedTuple):
    """AUROC on the sample and on bootstrap samples of it, [1 + draws].

    Attributes:
        emotions: Each emotion against all other texts, the mean over emotions; drawn by topic.
        excess: Excessive against warranted replies; drawn by user.
    """

    emotions: Floats
    excess: Floats


class Moved(NamedTuple):
    """What the old version's probes are worth on the new one: as in ``Transfer``."""

    same: Areas
    realigned: Areas
    random: Areas


class Likeness(NamedTuple):
    """A similarity, and what it is between rows that do not belong together."""

    figure: Figure
    null: float


class Directions(NamedTuple):
    """Cosine of directions fitted on the new version to those fitted on the old, the mean over emotions.

    Attributes:
        as_they_are: Without turning.
        aligned: After the Procrustes rotation of the new version's rows to the old one's.
        null: After the rotation to rows that do not belong together.
    """

    as_they_are: Figure
    aligned: Figure
    null: float


class Levels(NamedTuple):
    """What the bank, as it is, says of the same replies read by the new version.

    Attributes:
        shift: Mean difference of the assistant's affect, new less old, in standard deviations of the reference.
        alarms_before: Share of neutral and warranted replies that over-index at the rate of alarms, by the old version.
        alarms: The same by the new version.
    """

    shift: Figure
    alarms_before: Figure
    alarms: Figure


class Compared(NamedTuple):
    """What was found of one version; what needs rows of the bank's shape is None in another.

    Attributes:
        name: The version.
        layers: Where it was read.
        own: The old version by probes of its own.
        fresh: The new version by probes of its own.
        rows: Linear CKA of all rows.
        emotions: Similarity of the map of emotions.
        moved: The new version by the old one's probes.
        directions: Of emotions.
        levels: By the bank.
        causal: Of pushes along the bank's families; None also with another vocabulary.
    """

    name: str
    layers: tuple[int, ...]
    own: Areas
    fresh: Areas
    rows: Likeness
    emotions: Likeness
    moved: Moved | None = None
    directions: Directions | None = None
    levels: Levels | None = None
    causal: CausalLikeness | None = None


class _Read(NamedTuple):
    """What a version made of the sample; rows as in ``rows_of``."""

    found: Activations
    rows: Floats


class Comparison:
    """The bank's own model, read once, and each version against it.

    Args:
        subject: The bank and its model.
        sample: What is read.
        seed: Of everything drawn.
        progress: Told of conversations done by one version and in all of them.
    """

    def __init__(self, subject: Subject, sample: Sample, seed: int, progress: Progress | None = None) -> None:
        self._subject, self._sample, self._seed = subject, sample, seed
        self._estimator = ESTIMATORS[str(subject.bank.card.estimator["name"])]
        grade = sample.label[~sample.text]
        self._apart = grade > 0
        self._excessive = grade[self._apart] == EXCESSIVE
        self._topics = cluster_weights(sample.cluster[sample.text], seed)
        self._users = cluster_weights(sample.cluster[~sample.text][self._apart], seed)
        own = Version(subject.name, subject.model, subject.tokenizer, subject.cache)
        self._old = self._read(own, progress)
        self._own = self._areas(own_scores(self._old.rows, sample, self._estimator))
        self._directions = directions_of(self._old.rows, sample, self._estimator)
        self._effects = effects(own, subject.bank, self._prompts())

    def of(self, version: Version, progress: Progress | None = None) -> Compared:
        """Everything there is to say of one version."""
        new = self._read(version, progress)
        found = Compared(
            version.name,
            new.found.layers,
            self._own,
            self._areas(own_scores(new.rows, self._sample, self._estimator)),
            *self._likeness(new.rows),
        )
        shape = self._subject.bank.card.model
        if (version.hidden_size, version.depth) != (shape.hidden_size, shape.depth):
            return found
        moved = transfer(self._old.rows, new.rows, self._sample, self._estimator, self._rng())
        return found._replace(
            moved=Moved(*map(self._areas, moved)),
            directions=self._turned(new.rows),
            levels=self._levels(new.found),
            causal=self._causal(version),
        )

    def _rng(self) -> np.random.Generator:
        return np.random.default_rng(self._seed)

    def _read(self, version: Version, progress: Progress | None) -> _Read:
        """At the bank's layers or, in another depth, at the same shares of it."""
        card = self._subject.bank.card
        layers = sorted({max(1, round(layer / card.model.depth * version.depth)) for layer in card.layers})
        found = version.activations(self._sample.conversations, layers, progress)
        return _Read(found, rows_of(found.means, self._sample))

    def _areas(self, scores: Scores) -> Areas:
        return Areas(
            macro_auroc_draws(scores.emotions, self._sample.truth, self._topics),
            weighted_auroc(scores.affect[self._apart], self._excessive, self._users),
        )

    def _likeness(self, rows: Floats) -> tuple[Likeness, Likeness]:
        """Of all rows, and of the map of emotions: the mean over pairs of layers."""
        text, truth = self._sample.text, self._sample.truth
        few = self._topics[: 1 + _SIMILARITY_DRAWS]
        shuffled = self._rng().permutation(int(text.sum()))
        pairs = [(self._old.rows[text, layer], rows[text, layer]) for layer in range(rows.shape[1])]
        return (
            Likeness(
                figure_of(np.mean([linear_cka(old, new, few) for old, new in pairs], axis=0)),
                float(np.mean([linear_cka(old, new[shuffled], few[:1]) for old, new in pairs])),
            ),
            Likeness(
                figure_of(np.mean([map_correlation(old, new, truth, few) for old, new in pairs], axis=0)),
                float(np.mean([map_correlation(old, new[shuffled], truth, few[:1]) for old, new in pairs])),
            ),
        )

    def _turned(self, rows: Floats) -> Directions:
        own = directions_of(rows, self._sample, self._estimator)
        shuffled = self._old.rows[self._rng().permutation(len(rows))]
        as_they_are = cosines(self._directions, own)
        aligned = aligned_cosines(self._old.rows, rows, self._directions, own, self._sample.kind)
        null = aligned_cosines(shuffled, rows, self._directions, own, self._sample.kind)
        weights = cluster_weights(np.arange(len(aligned)), self._seed)
        before, after = (figure_of(weights @ found / weights.sum(axis=1)) for found in (as_they_are, aligned))
        return Directions(before, after, float(null.mean()))

    def _levels(self, found: Activations) -> Levels:
        reply = ~self._sample.text
        users, plain = self._sample.cluster[reply], self._sample.label[reply] < EXCESSIVE
        before, after = (self._judged(each) for each in (self._old.found, found))
        weights = cluster_weights(users, self._seed)
        shift = figure_of(weights @ (after.assistant - before.assistant) / weights.sum(axis=1))
        alarms_before, alarms = (_share_that_fires(judged, plain, users) for judged in (before, after))
        return Levels(shift, alarms_before, alarms)

    def _causal(self, version: Version) -> CausalLikeness | None:
        if tokenizer_hash(version.tokenizer) != self._subject.bank.card.model.tokenizer_hash:
            return None
        pushed = effects(version, self._subject.bank, self._prompts())
        return causal_likeness(self._effects, pushed, self._seed)

    def _prompts(self) -> list[list[Message]]:
        """Users of the grid whose replies are pushed."""
        exchanges = [self._sample.conversations[index] for index in np.flatnonzero(~self._sample.text)]
        return [messages[:1] for messages in exchanges[:: len(GRADES)][:PROMPTS]]

    def _judged(self, found: Activations) -> Judged:
        """Replies by the bank, as it is."""
        bank, reply = self._subject.bank, ~self._sample.text
        scores = scores_of(bank, found, tuple(range(len(bank.card.layers))))
        return judge(bank, scores[:, reply], found.tokens[reply, 1])


def _share_that_fires(judged: Judged, plain: Mask, users: NDArray[np.str_]) -> Figure:
    """NaN where the reference is too small for alarms."""
    fires = judged.fires[plain]
    known = not np.isnan(fires).any()
    return share_figure(fires == 1, users[plain]) if known else Figure(*[float("nan")] * 3)
