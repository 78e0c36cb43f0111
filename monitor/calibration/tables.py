"""A corpus and its activations as tables: what every later step is computed from.

Texts are read in two positions, as a user's (0) and as an assistant's (1); turns hold a user (0) and an assistant (1).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from monitor.calibration.activations import Activations, Progress, collect
from monitor.calibration.corpus import APPROVED, CONTRAST, GRID, OPENER, UNGRADED, Corpus, Turn, exchange, user_says
from monitor.calibration.lines import NEUTRAL, Message
from monitor.probes.bank import Stance
from monitor.probes.markers import Marker
from monitor.probes.twin import token_shares, vocabulary

Mask = NDArray[np.bool_]
EXCESSIVE = 2


class TextTable(NamedTuple):
    """Texts with their emotion.

    Attributes:
        rows: Mean hidden states, [2, N, L, H].
        shares: Share of each token, sparse [N, K].
        emotion: Index of the emotion; the number of emotions for neutral texts, [N].
        fold: The part each text is held out with, [N].
        keyword_free: Whether no form of the emotion's word stands in it, [N].
    """

    rows: NDArray[np.float32]
    shares: Any
    emotion: NDArray[np.int64]
    fold: NDArray[np.int64]
    keyword_free: Mask


class TurnTable(NamedTuple):
    """Turns; the fields after ``tokens`` as in ``corpus.Turn``.

    Attributes:
        rows: Mean hidden states, [R, 2, L, H].
        shares: Share of each token on the user's and the assistant's side, sparse [R, K] each.
        tokens: Assistant tokens, [R].
    """

    rows: NDArray[np.float32]
    shares: tuple[Any, Any]
    tokens: NDArray[np.int64]
    source: NDArray[np.str_]
    fold: NDArray[np.int64]
    strength: NDArray[np.int64]
    grade: NDArray[np.int64]
    first: Mask

    @property
    def fitted(self) -> Mask:
        """Turns probes may be fitted on."""
        fitted: Mask = self.grade != UNGRADED
        return fitted

    @property
    def stance(self) -> NDArray[np.int64]:
        """Index of the last stance that allows each turn, -1 where none does: excess, and turns for tests.

        A neutral reply is right on a neutral route alone, where the user needs more; a warranted one on every route,
        but on a crisis route only where the user's affect is clear.
        """
        known = (self.grade != UNGRADED) | (self.source == APPROVED)
        last = np.where(known, _index(Stance.SUPPORTIVE), -1)
        authored = np.isin(self.source, (GRID, CONTRAST))
        last[authored & (self.grade == 0)] = _index(Stance.NEUTRAL)
        last[authored & (self.grade == 1) & (self.strength >= 2)] = _index(Stance.CRISIS)  # noqa: PLR2004 - clear
        last[self.grade == EXCESSIVE] = -1
        return last


class Tables(NamedTuple):
    """Everything a bank is fitted on, and the tokens the twin may know, ascending, [K]."""

    texts: TextTable
    turns: TurnTable
    vocabulary: NDArray[np.int32]


class Runner:
    """Runs conversations through one model, with one cache, telling of progress over all that is planned.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        markers: Markers of its chat template.
        layers: Layers to keep.
        cache: Folder of the cache and fingerprint of the weights.
        planned: Conversations of all runs to come.
        progress: Told of conversations done and in all.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        markers: Sequence[Marker],
        layers: Sequence[int],
        cache: tuple[Path, str],
        planned: int,
        progress: Progress | None = None,
    ) -> None:
        self._collect: Callable[..., Activations] = lambda conversations, places, told: collect(
            model, tokenizer, markers, conversations, layers, places=places, cache=cache, progress=told
        )
        self._planned, self._progress, self._done = planned, progress, 0

    def run(self, conversations: Sequence[Sequence[Message]], places: Sequence[str]) -> Activations:
        """Pooled hidden states of conversations; errors as in ``collect``."""
        before = self._done

        def told(done: int, _total: int) -> None:
            self._done = before + done
            if self._progress is not None:
                self._progress(self._done, max(self._planned, self._done))

        return self._collect(conversations, places, told)


def as_texts(texts: Sequence[str], position: int) -> list[list[Message]]:
    """Texts as the user's (0) or the assistant's (1) message."""
    return [exchange(OPENER, text) if position else user_says(text) for text in texts]


def make_tables(corpus: Corpus, runner: Runner) -> Tables:
    """Runs a corpus through a model.

    Raises:
        CorpusError: A conversation has no tokens or is too long for the model.
        SetupError: The model's hidden states are not finite.
    """
    written = [text.text for text in corpus.texts]
    places = [f"{text.place}:text" for text in corpus.texts]
    positions = [runner.run(as_texts(written, position), places) for position in (0, 1)]
    turns = corpus.turns()
    told = runner.run([turn.messages for turn in turns], [turn.place for turn in turns])

    text_ids = positions[0].ids(0)
    user_ids, reply_ids = told.ids(0), told.ids(1)
    graded = [index for index, turn in enumerate(turns) if turn.source in (GRID, CONTRAST)]
    users = [index for index in graded if turns[index].first]
    known = vocabulary([*text_ids, *(user_ids[index] for index in users), *(reply_ids[index] for index in graded)])
    names = [emotion.name for emotion in corpus.emotions]
    texts = TextTable(
        rows=np.stack([found.means[:, role] for role, found in enumerate(positions)]),
        shares=token_shares(text_ids, known),
        emotion=np.array([len(names) if t.emotion == NEUTRAL else names.index(t.emotion) for t in corpus.texts]),
        fold=np.array([text.fold for text in corpus.texts]),
        keyword_free=np.array([text.keyword_free for text in corpus.texts]),
    )
    shares = token_shares(user_ids, known), token_shares(reply_ids, known)
    return Tables(texts, turn_table(turns, told, shares), known)


def turn_table(turns: Sequence[Turn], told: Activations, shares: tuple[Any, Any]) -> TurnTable:
    """Turns and their activations side by side."""
    return TurnTable(
        rows=told.means,
        shares=shares,
        tokens=told.tokens[:, 1],
        source=np.array([turn.source for turn in turns]),
        fold=np.array([turn.fold for turn in turns]),
        strength=np.array([turn.strength for turn in turns]),
        grade=np.array([turn.grade for turn in turns]),
        first=np.array([turn.first for turn in turns]),
    )


def _index(stance: Stance) -> int:
    return list(Stance).index(stance)
