"""Looks for ordinary words that, put after a text, hide its emotion from a probe.

Greedy coordinate search by gradient: HotFlip (Ebrahimi et al. 2018, section 3) estimates from the gradient at a token's
embedding what any other token in its place would do; GCG (Zou et al. 2023, section 2.2) tries a sample of the most
promising replacements and keeps the best. Words come after the text, so that in a causal model only the words' own
rows differ: hidden states of the text are computed once.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from monitor.calibration.activations import LastLayerReachedError, render, segments, stop_at
from monitor.calibration.lines import Message
from monitor.capture.passes import LayerRows
from monitor.evaluation.subject import Subject, cache_name
from monitor.turns.roles import RoleLabeller

Ints = NDArray[np.int64]

WORDS = 8
"""Tokens of a suffix."""
_PROMISING = 64
"""Replacements a place, by the gradient, of which some are tried."""
_WORD = re.compile(r" [A-Za-z]+")


@dataclass(frozen=True)
class Effort:
    """Bounds of a search: steps, and replacements tried in each."""

    steps: int
    tried: int


class Suffix(NamedTuple):
    """A suffix that was found.

    Attributes:
        start: The random words the search began with: the null.
        found: The words it ended with.
        scores: The probe's score at the start and after each step, standardised as the bank's.
    """

    start: str
    found: str
    scores: list[float]


class Searcher:
    """Looks for suffixes against one bank's probes.

    Args:
        subject: Model and bank.
        effort: Bounds.
    """

    def __init__(self, subject: Subject, effort: Effort) -> None:
        self._subject, self._effort = subject, effort
        self._labeller = RoleLabeller(subject.markers)
        self.words = ordinary_words(subject.tokenizer)
        self._embedding: torch.Tensor = subject.model.get_input_embeddings().weight.detach()[self.words]

    def search(
        self, text: Sequence[Message], position: int, emotion: int, limit: float, rng: np.random.Generator
    ) -> Suffix:
        """Looks for a suffix that brings an emotion's score under a limit, and ends there or when steps are used up.

        Args:
            text: A conversation whose last message is the text.
            position: Who writes it: 0 a user, 1 the assistant.
            emotion: Index of the emotion in the bank.
            limit: Standardised score.
            rng: Draws the start and what is tried.
        """
        suffix = rng.choice(self.words, WORDS)
        start = self._spelled(suffix)
        last = {**text[-1], "content": text[-1]["content"] + start}
        probed = _Probed(self._subject, self._labeller, [*text[:-1], last], suffix, position, emotion)
        scores = [float(probed.scores(suffix[None])[0])]
        for _ in range(self._effort.steps):
            if scores[-1] <= limit:
                break
            tried = self._replaced(suffix, probed.gradient(suffix), rng)
            found = probed.scores(tried)
            best = int(found.argmin())
            if found[best] < scores[-1]:
                suffix = tried[best]
            scores.append(min(scores[-1], float(found[best])))
        return Suffix(start, self._spelled(suffix), scores)

    def _replaced(self, suffix: Ints, gradient: torch.Tensor, rng: np.random.Generator) -> Ints:
        """Suffixes with one token replaced by one that the gradient, [WORDS, H], promises most of, [tried, WORDS]."""
        promise = self._embedding @ gradient.T
        best = promise.topk(min(_PROMISING, len(self.words)), dim=0, largest=False).indices.cpu().numpy()
        tried = np.tile(suffix, (self._effort.tried, 1))
        place = rng.integers(WORDS, size=len(tried))
        tried[np.arange(len(tried)), place] = self.words[best[rng.integers(len(best), size=len(tried)), place]]
        return tried

    def _spelled(self, suffix: Ints) -> str:
        return str(self._subject.tokenizer.decode(suffix.tolist()))


def ordinary_words(tokenizer: Any) -> Ints:
    """Tokens that are a space and letters and, spelled out, come back as themselves: so do suffixes made of them."""
    count = len(tokenizer)
    spelled = tokenizer.batch_decode([[token] for token in range(count)])
    words = [token for token, text in enumerate(spelled) if _WORD.fullmatch(text)]
    again = tokenizer([spelled[token] for token in words], add_special_tokens=False)["input_ids"] if words else []
    return np.array([token for token, ids in zip(words, again, strict=True) if ids == [token]], np.int64)


class _Probed:
    """One emotion's standardised score of one text, as a function of its suffix.

    Args:
        subject: Model and bank.
        labeller: Of the model's chat template.
        messages: The conversation, with some suffix.
        suffix: Token ids of that.
        position: Who writes the text.
        emotion: Index of the emotion.
    """

    def __init__(
        self,
        subject: Subject,
        labeller: RoleLabeller,
        messages: Sequence[Message],
        suffix: Ints,
        position: int,
        emotion: int,
    ) -> None:
        from transformers import DynamicCache

        ids = render(subject.tokenizer, messages)
        begin = _last_place(ids, suffix.tolist())
        self._device = subject.model.device
        self._held = self._tensor(segments(labeller, ids) == position)
        self._model, self._layers = subject.model.base_model, subject.bank.card.layers
        self._embed = subject.model.get_input_embeddings()
        self._cache_name = cache_name(self._model)
        tensors = subject.bank.tensors
        self._centres = self._tensor(tensors.centres)
        self._directions = self._tensor(tensors.directions[:, emotion] / tensors.scales[:, emotion, None])
        self._mean = float(tensors.turn_means[position, emotion])
        self._scale = float(tensors.turn_scales[position, emotion])
        self._tail = self._tensor(ids[begin + len(suffix) :])
        self._cache = DynamicCache()
        with torch.no_grad():
            told = self._told(self._embed(self._tensor(ids[:begin])[None]), self._cache)
        self._before = told[0, self._held[:begin]].sum()
        self._rest = self._held[begin:]

    @torch.no_grad()
    def scores(self, suffixes: Ints) -> NDArray[np.float64]:
        """Scores with each of some suffixes, [N, WORDS]."""
        found = self._scores(self._embed(self._tensor(suffixes)))
        return np.asarray(found.double().cpu())

    def gradient(self, suffix: Ints) -> torch.Tensor:
        """Gradient of the score at the embeddings of a suffix, [WORDS, H]."""
        embedded = self._embed(self._tensor(suffix)[None]).detach().requires_grad_()
        gradient: torch.Tensor = torch.autograd.grad(self._scores(embedded).sum(), embedded)[0][0]
        return gradient

    def _scores(self, embedded: torch.Tensor) -> torch.Tensor:
        tail = self._embed(self._tail).detach().expand(len(embedded), -1, -1)
        cache = copy.deepcopy(self._cache)
        cache.batch_repeat_interleave(len(embedded))
        told = self._told(torch.cat([embedded, tail], dim=1), cache)
        mean = (self._before + told[:, self._rest].sum(dim=1)) / self._held.sum()
        return (mean - self._mean) / self._scale

    def _tensor(self, values: Any) -> torch.Tensor:
        return torch.tensor(values, device=self._device)

    def _told(self, embedded: torch.Tensor, cache: Any) -> torch.Tensor:
        """The probe's score of each token, [N, tokens]."""
        kept = LayerRows(self._model, self._layers)
        stop = stop_at(self._model, max(self._layers))
        try:
            with suppress(LastLayerReachedError):
                self._model(inputs_embeds=embedded, use_cache=True, **{self._cache_name: cache})
            rows = torch.stack([kept.rows[layer].float() for layer in self._layers], dim=2)
        finally:
            kept.close()
            stop.remove()
        return ((rows - self._centres) * self._directions).sum(-1).mean(-1)


def _last_place(ids: Sequence[int], part: Sequence[int]) -> int:
    """Where a part of some ids begins, the last time it stands there."""
    width = len(part)
    return next(at for at in range(len(ids) - width, -1, -1) if list(ids[at : at + width]) == list(part))
