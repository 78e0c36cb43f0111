"""What probes of one version are worth on another, on topics and domains they were not fitted on."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from monitor.calibration.align import procrustes, row_map
from monitor.calibration.corpus import Corpus, exchange, user_says
from monitor.calibration.crossfit import GRADES
from monitor.calibration.lines import FOLDS, EmotionText, GridItem, Message
from monitor.probes.fit import Estimator

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]
Mask = NDArray[np.bool_]

TEXT, REPLY = 0, 1
"""Kinds of samples: texts as a user's, which carry an emotion, and replies of the grid, which carry a grade."""
WARRANTED, EXCESSIVE = 1, 2
_REPLIES = ("neutral", "warranted", "excessive")


class Sample(NamedTuple):
    """What every version reads.

    Attributes:
        conversations: Texts, each as a user's message, then exchanges of the grid, three replies to a user, [N].
        kind: TEXT or REPLY, [N].
        label: Emotion of a text, the number of emotions where it has none; grade of a reply, [N].
        fold: The part each is held out with, [N].
        cluster: Topic of a text, user of a reply: what intervals are drawn over, [N].
        names: The emotions.
    """

    conversations: list[list[Message]]
    kind: Labels
    label: Labels
    fold: Labels
    cluster: NDArray[np.str_]
    names: list[str]

    @property
    def text(self) -> Mask:
        """Which samples are texts, [N]."""
        text: Mask = self.kind == TEXT
        return text

    @property
    def truth(self) -> Mask:
        """Whether a text is of an emotion, [texts, E]."""
        truth: Mask = self.label[self.text, None] == np.arange(len(self.names))
        return truth


def draw_sample(corpus: Corpus, texts: int, users: int, rng: np.random.Generator) -> Sample:
    """Draws whole topics until they hold so many texts, and so many users of the grid, of all domains alike.

    Emotions that the draw leaves without texts to fit on, whichever fold is held out, are left out.
    """
    drawn, items = _topics(corpus, texts, rng), _items(corpus, users, rng)
    names = [
        emotion.name
        for emotion in corpus.emotions
        if len({text.fold for text in drawn if text.emotion == emotion.name}) > 1
    ]
    numbers = {name: number for number, name in enumerate(names)}
    return Sample(
        conversations=[user_says(text.text) for text in drawn]
        + [exchange(item.user, getattr(item, reply)) for item in items for reply in _REPLIES],
        kind=np.repeat([TEXT, REPLY], [len(drawn), len(items) * len(_REPLIES)]),
        label=np.array([numbers.get(text.emotion, len(names)) for text in drawn] + [0, 1, 2] * len(items)),
        fold=np.array(
            [text.fold for text in drawn] + [corpus.domain_folds[item.domain] for item in items for _ in _REPLIES]
        ),
        cluster=np.array([text.topic.lower() for text in drawn] + [item.place for item in items for _ in _REPLIES]),
        names=names,
    )


def _topics(corpus: Corpus, texts: int, rng: np.random.Generator) -> list[EmotionText]:
    by_topic: dict[str, list[EmotionText]] = {}
    for text in corpus.texts:
        by_topic.setdefault(text.topic.lower(), []).append(text)
    drawn: list[EmotionText] = []
    for topic in rng.permutation(sorted(by_topic)):
        if len(drawn) < texts:
            drawn += by_topic[topic]
    return drawn


def _items(corpus: Corpus, users: int, rng: np.random.Generator) -> list[GridItem]:
    each = -(-users // len({item.domain for item in corpus.grid}))
    taken: dict[str, int] = {}
    drawn = []
    for index in rng.permutation(len(corpus.grid)):
        item = corpus.grid[index]
        taken[item.domain] = taken.get(item.domain, 0) + 1
        if taken[item.domain] <= each:
            drawn.append(item)
    return drawn


def rows_of(means: NDArray[np.float32], sample: Sample) -> Floats:
    """Pooled rows, [N, 2, L, H]: of texts the user's, of exchanges the reply's, [N, L, H]."""
    rows: Floats = means[np.arange(len(means)), sample.kind].astype(np.float64)
    return rows


class Scores(NamedTuple):
    """Held-out scores: of the emotions of texts, [texts, E], and of the affect of replies, [replies]."""

    emotions: Floats
    affect: Floats


class Transfer(NamedTuple):
    """Held-out scores of a new version's rows.

    Attributes:
        same: By probes fitted on the old version's rows.
        realigned: By the same, through a map that was fitted without labels on the texts of the other folds.
        random: By the same, through a rotation fitted to pairs that do not belong together.
    """

    same: Scores
    realigned: Scores
    random: Scores


def own_scores(rows: Floats, sample: Sample, estimator: Estimator) -> Scores:
    """Scores of a version's rows, [N, L, H], by probes fitted on its own rows of the other folds."""
    found = _empty(sample)
    for held, layer in _parts(rows, sample):
        at = _about(rows[:, layer], sample, ~held)
        found[held] += at[held] @ _probes(at[~held], sample, ~held, estimator).T
    return _scores(found, sample)


def transfer(old: Floats, new: Floats, sample: Sample, estimator: Estimator, rng: np.random.Generator) -> Transfer:
    """Scores of a new version's rows by probes of the old one; rows of both are [N, L, H]."""
    same, realigned, random = (_empty(sample) for _ in Transfer._fields)
    for held, layer in _parts(old, sample):
        before, after = (_about(rows[:, layer], sample, ~held) for rows in (old, new))
        probes = _probes(before[~held], sample, ~held, estimator).T
        same[held] += after[held] @ probes
        texts = sample.cluster[~held]
        realigned[held] += after[held] @ (row_map(after[~held], before[~held], texts) @ probes)
        apart = rng.permutation(int((~held).sum()))
        random[held] += after[held] @ (procrustes(after[~held], before[~held][apart]) @ probes)
    return Transfer(*(_scores(found, sample) for found in (same, realigned, random)))


def directions_of(rows: Floats, sample: Sample, estimator: Estimator) -> Floats:
    """Unit directions of emotions, fitted on all rows, [L, E, H]."""
    everything = np.ones(len(rows), bool)
    found = np.stack(
        [
            _probes(_about(rows[:, layer], sample, everything), sample, everything, estimator)[:-1]
            for layer in range(rows.shape[1])
        ]
    )
    unit: Floats = found / np.linalg.norm(found, axis=-1, keepdims=True)
    return unit


def _parts(rows: Floats, sample: Sample) -> list[tuple[Mask, int]]:
    """What is held out in turn, and each layer."""
    return [(sample.fold == fold, layer) for fold in range(FOLDS) for layer in range(rows.shape[1])]


def _about(rows: Floats, sample: Sample, part: Mask) -> Floats:
    """Rows, [N, H], about the mean of the part's rows of their kind: folds have no offset against each other."""
    found = rows.copy()
    for kind in (TEXT, REPLY):
        found[sample.kind == kind] -= rows[part & (sample.kind == kind)].mean(axis=0)
    return found


def _probes(rows: Floats, sample: Sample, part: Mask, estimator: Estimator) -> Floats:
    """Directions of emotions and of affect from a part's rows, in units of their own spread, [E + 1, H]."""
    text, label = sample.text[part], sample.label[part]
    emotions = estimator.classes(rows[text], label[text], len(sample.names))
    affect = estimator.graded(rows[~text], GRADES[label[~text]])
    spread = np.append((rows[text] @ emotions.T).std(axis=0), (rows[~text] @ affect).std())
    scaled: Floats = np.concatenate([emotions, affect[None]]) / spread[:, None]
    return scaled


def _empty(sample: Sample) -> Floats:
    return np.zeros((len(sample.kind), len(sample.names) + 1))


def _scores(found: Floats, sample: Sample) -> Scores:
    return Scores(found[sample.text, :-1], found[~sample.text, -1])
