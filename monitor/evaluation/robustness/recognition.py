"""Reads emotions in texts by three readers: a bank's probes, a text twin, and random directions of like variance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from monitor.calibration.activations import Activations, Progress, render, segments
from monitor.calibration.corpus import Corpus
from monitor.calibration.lines import Message
from monitor.calibration.tables import as_texts
from monitor.evaluation.battery.emotion_twin import EmotionTwin
from monitor.evaluation.subject import Subject
from monitor.probes.twin import Ids, token_shares, vocabulary
from monitor.turns.roles import RoleLabeller

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

DIRECTIONS = 1000
"""Random directions."""


class CorpusTwin:
    """A text twin of emotions fitted on a corpus, by the tokens a model sees of its texts.

    Args:
        subject: The model.
        corpus: Texts with their emotions.
        emotions: Emotions to tell.
    """

    def __init__(self, subject: Subject, corpus: Corpus, emotions: Sequence[str]) -> None:
        labeller = RoleLabeller(subject.markers)
        ids = [_user_ids(subject, labeller, messages) for messages in as_texts([t.text for t in corpus.texts], 0)]
        self._known = vocabulary(ids)
        truth = np.array([text.emotion for text in corpus.texts])[:, None] == np.array(emotions)
        self._twin = EmotionTwin(token_shares(ids, self._known), truth)

    def score(self, texts: Sequence[Ids]) -> Floats:
        """Scores of texts, [N, E]."""
        return self._twin.score(token_shares(texts, self._known))


class Read(NamedTuple):
    """What three readers make of N texts, each in units of neutral texts in the same position.

    Attributes:
        probes: [N, E].
        twin: [N, E].
        random: [N, DIRECTIONS].
    """

    probes: Floats
    twin: Floats
    random: Floats


class Units(NamedTuple):
    """Mean and spread of neutral texts as they come, by position, [2, ...]."""

    mean: Floats
    spread: Floats

    def of(self, values: Floats, position: Ints) -> Floats:
        """Values of texts, [N, ...], in these units."""
        standard: Floats = (values - self.mean[position]) / self.spread[position]
        return standard


class Reader:
    """Reads texts in the users' or the assistant's position.

    A user's and an assistant's text read differently, so that each position is measured against neutral texts of its
    own; one threshold then serves both.

    Args:
        subject: Model and bank.
        twin: Twin of the same emotions.
        emotions: Indices of emotions in the bank.
        clean: Conversations of texts as they come, some of them neutral in either position.
        positions: Position of each, [N].
        neutral: Whether a text is neutral, [N].
        rng: Draws directions: mixtures of the clean rows, so that they vary as rows do.
    """

    def __init__(
        self,
        subject: Subject,
        twin: CorpusTwin,
        emotions: Sequence[int],
        clean: Sequence[Sequence[Message]],
        positions: Ints,
        neutral: NDArray[np.bool_],
        rng: np.random.Generator,
    ) -> None:
        self._subject, self._twin, self.emotions = subject, twin, list(emotions)
        rows = _rows(subject.activations(clean), positions)
        centred = rows - np.stack([rows[positions == position].mean(axis=0) for position in (0, 1)])[positions]
        self._directions = centred.T @ rng.normal(size=(len(rows), DIRECTIONS))
        at = [neutral & (positions == position) for position in (0, 1)]
        self._units = [_units_of(part, at) for part in self._raw(clean, positions, None)]

    def read(
        self, conversations: Sequence[Sequence[Message]], positions: Ints, progress: Progress | None = None
    ) -> Read:
        """Reads the last text of its position in each conversation."""
        parts = self._raw(conversations, positions, progress)
        return Read(*(units.of(part, positions) for units, part in zip(self._units, parts, strict=True)))

    def standardised(self, score: float, column: int, position: int) -> float:
        """A probe's score, in units of neutral texts, as the bank standardises it."""
        mean, spread = (float(part[position, column]) for part in self._units[0])
        return score * spread + mean

    def _raw(
        self, conversations: Sequence[Sequence[Message]], positions: Ints, progress: Progress | None
    ) -> tuple[Floats, Floats, Floats]:
        found = self._subject.activations(conversations, progress=progress)
        at = np.arange(len(positions))
        ids = [found.ids(int(position))[index] for index, position in enumerate(positions)]
        probes = self._subject.scored(found)[positions, at][:, self.emotions]
        return probes, self._twin.score(ids), _rows(found, positions) @ self._directions


def _rows(found: Activations, positions: Ints) -> Floats:
    """Mean rows of texts at all layers, one after the other, [N, L * H]."""
    rows: Floats = found.means[np.arange(len(positions)), positions].reshape(len(positions), -1).astype(np.float64)
    return rows


def _units_of(values: Floats, at: Sequence[NDArray[np.bool_]]) -> Units:
    return Units(
        np.stack([values[here].mean(axis=0) for here in at]),
        np.stack([values[here].std(axis=0).clip(1e-9) for here in at]),
    )


def _user_ids(subject: Subject, labeller: RoleLabeller, messages: Sequence[Message]) -> Ids:
    ids = np.array(render(subject.tokenizer, messages), np.int32)
    held: Ids = ids[segments(labeller, ids.tolist()) == 0]
    return held
