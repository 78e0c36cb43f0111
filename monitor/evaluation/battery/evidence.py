"""What the battery is computed from: held-out scores of the corpus, and data from outside scored by the bank."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from monitor.calibration.calibrate import Calibration
from monitor.calibration.corpus import Corpus
from monitor.calibration.lines import FOLDS, NEUTRAL, Dialogue, EmotionText
from monitor.calibration.statistics import Figure, cluster_weights, figure_of, weighted_auroc
from monitor.calibration.tables import as_texts
from monitor.evaluation.battery.emotion_twin import EmotionTwin
from monitor.evaluation.judge import Floats, Judged, judge, scores_of
from monitor.probes.bank import Bank, Stance
from monitor.probes.twin import token_shares

Mask = NDArray[np.bool_]


class OutsideTexts(NamedTuple):
    """Texts others labelled, scored in the user's position by the bank and by a twin fitted on the corpus.

    Attributes:
        names: Emotions both name.
        probes: Scores of these, [N, E].
        twin: The same by the text twin, [N, E].
        truth: Whether a text is labelled so, [N, E].
    """

    names: list[str]
    probes: Floats
    twin: Floats
    truth: Mask


class OutsideTurns(NamedTuple):
    """Exchanges of neutral service dialogues, judged under the neutral stance."""

    judged: Judged
    tokens: NDArray[np.int64]
    dialogue: NDArray[np.int64]
    domain: NDArray[np.str_]


class Evidence:
    """Everything the battery asks for.

    Args:
        calibration: A bank and what it was made from.
        texts: Labelled texts from outside, or none.
        dialogues: Neutral service dialogues from outside, or none.
    """

    def __init__(
        self, calibration: Calibration, texts: Sequence[EmotionText] = (), dialogues: Sequence[Dialogue] = ()
    ) -> None:
        self.calibration = calibration
        self.bank: Bank = calibration.bank
        self.corpus: Corpus = calibration.corpus
        self.texts = calibration.tables.texts
        self.turns = calibration.tables.turns
        self.columns = self.bank.columns
        self.names = [emotion.name for emotion in self.bank.card.emotions]
        self.outside_texts = self._outside_texts(texts) if texts else None
        self.outside_turns = self._outside_turns(dialogues) if dialogues else None

    @cached_property
    def emotion_scores(self) -> Floats:
        """Held-out emotion scores of texts in both positions, [2, N, E]."""
        scores: Floats = self.calibration.scores.texts[..., self.columns.emotion]
        return scores

    @cached_property
    def truth(self) -> Mask:
        """Whether a text is of an emotion, [N, E]."""
        truth: Mask = self.texts.emotion[:, None] == np.arange(self.columns.emotions)
        return truth

    @cached_property
    def neutral(self) -> Mask:
        """Texts without emotion, [N]."""
        neutral: Mask = self.texts.emotion == self.columns.emotions
        return neutral

    @cached_property
    def topics(self) -> NDArray[np.str_]:
        """Topic of each text: the clusters intervals are drawn over, [N]."""
        return np.array([text.topic.lower() for text in self.corpus.texts])

    @cached_property
    def twin_scores(self) -> Floats:
        """Held-out emotion scores of texts by a twin of emotions, [N, E]."""
        found = np.empty((len(self.texts.emotion), self.columns.emotions))
        for fold in range(FOLDS):
            held = self.texts.fold == fold
            found[held] = EmotionTwin(self.texts.shares[~held], self.truth[~held]).score(self.texts.shares[held])
        return found

    @cached_property
    def twin_differences(self) -> list[Figure]:
        """AUROC of each emotion's probe less that of the text twin on the same held-out texts."""
        weights = cluster_weights(self.topics)
        probes = self.emotion_scores.mean(axis=0)
        return [
            figure_of(
                weighted_auroc(probes[:, e], self.truth[:, e], weights)
                - weighted_auroc(self.twin_scores[:, e], self.truth[:, e], weights)
            )
            for e in range(len(self.names))
        ]

    @cached_property
    def judged(self) -> Judged:
        """Turns of the corpus, each judged by held-out scores under the neutral stance."""
        return self.judged_under(Stance.NEUTRAL)

    def judged_under(self, stance: Stance) -> Judged:
        """Turns of the corpus, each judged by held-out scores."""
        return judge(self.bank, self.calibration.scores.turns.swapaxes(0, 1), self.turns.tokens, stance)

    def _outside_texts(self, texts: Sequence[EmotionText]) -> OutsideTexts:
        found = self.calibration.runner.run(
            as_texts([text.text for text in texts], 0), [f"{text.place}:text" for text in texts]
        )
        labels = {text.emotion for text in texts} - {NEUTRAL}
        shared = [index for index, name in enumerate(self.names) if name in labels]
        twin = EmotionTwin(self.texts.shares, self.truth)
        shares = token_shares(found.ids(0), self.calibration.tables.vocabulary)
        given = np.array([text.emotion for text in texts])
        return OutsideTexts(
            names=[self.names[index] for index in shared],
            probes=scores_of(self.bank, found, self.calibration.chosen)[0][:, self.columns.emotion][:, shared],
            twin=twin.score(shares)[:, shared],
            truth=given[:, None] == np.array(self.names)[shared],
        )

    def _outside_turns(self, dialogues: Sequence[Dialogue]) -> OutsideTurns:
        exchanges = [(number, talk, messages) for number, talk in enumerate(dialogues) for messages in talk.exchanges()]
        found = self.calibration.runner.run(
            [messages for _, _, messages in exchanges], [f"{talk.place}:messages" for _, talk, _ in exchanges]
        )
        tokens = found.tokens[:, 1]
        return OutsideTurns(
            judged=judge(self.bank, scores_of(self.bank, found, self.calibration.chosen), tokens),
            tokens=tokens,
            dialogue=np.array([number for number, _, _ in exchanges]),
            domain=np.array([talk.domain for _, talk, _ in exchanges]),
        )
