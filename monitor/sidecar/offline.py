"""Scores texts and conversations from a file, with the sidecar's scorer, tracker and assessor around a local model."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from monitor.assess.mirror import mirror_slope
from monitor.assess.overindex import Assessor, TurnAssessment
from monitor.calibration.activations import Progress, render
from monitor.calibration.corpus import ChatMessage
from monitor.capture.transformers import LayerRows
from monitor.errors import AffectMonitorError, CorpusError
from monitor.policy.schema import PolicyFile
from monitor.probes.bank import Bank
from monitor.probes.markers import Role
from monitor.probes.score import Scorer
from monitor.sidecar.pipeline import visibility_of
from monitor.turns.roles import Ints, Labels, RoleLabeller
from monitor.turns.tracker import TurnTracker

_BATCH_TOKENS = 2048
_ROLE_NAMES = {Role.SYSTEM: "system", Role.USER: "user", Role.ASSISTANT: "assistant"}
_STANDARD = {Role.SYSTEM: 0, Role.USER: 0, Role.ASSISTANT: 1}


class InputLine(BaseModel):
    """One line of input: a conversation or a bare text, which is read as a user's."""

    model_config = ConfigDict(extra="forbid")

    id: str | int
    messages: list[ChatMessage] | None = Field(default=None, min_length=1)
    text: str | None = Field(default=None, min_length=1)
    labels: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_of(self) -> InputLine:
        if (self.messages is None) == (self.text is None):
            raise ValueError("give either messages or text")
        return self

    @property
    def conversation(self) -> list[dict[str, str]]:
        """The messages as chat templates take them."""
        if self.messages is None:
            return [{"role": "user", "content": self.text or ""}]
        return [message.model_dump() for message in self.messages]


@dataclass(frozen=True)
class Speed:
    """What scoring a file took; the model's share is the time inside its forward passes."""

    lines: int
    failed: int
    tokens: int
    seconds: float
    model_seconds: float


@dataclass(frozen=True)
class _Ready:
    """A line that can be scored."""

    number: int
    line: InputLine
    ids: list[int]


class OfflineScorer:
    """Scores conversations in batches.

    Args:
        bank: The probes.
        policies: Which policy a line falls under, by its labels.
        model: The model of the bank.
        tokenizer: Its tokenizer.
    """

    def __init__(self, bank: Bank, policies: PolicyFile, model: Any, tokenizer: Any) -> None:
        self._columns = bank.columns
        self._scorer = Scorer(bank)
        self._labeller = RoleLabeller(bank.markers)
        self._assessor = Assessor(bank)
        self._policies = policies
        self._model, self._tokenizer = model, tokenizer
        self._context = int(model.config.max_position_embeddings)
        self._model_seconds = 0.0
        self._kept = LayerRows(model, bank.card.layers)

    def score_file(self, source: Path, target: Path, progress: Progress | None = None) -> Speed:
        """Scores every line of ``source`` into the same line of ``target``; a bad line gets its error there.

        Raises:
            CorpusError: ``source`` cannot be read.
        """
        try:
            raw = [line for line in source.read_bytes().splitlines() if line.strip()]
        except OSError as error:
            raise CorpusError("--input", f"{source}: {error.strerror}") from None
        began = time.perf_counter()
        self._model_seconds = 0.0
        results: list[dict[str, Any]] = [{} for _ in raw]
        ready = list(self._ready(raw, results))
        done = len(raw) - len(ready)
        for batch in _batches(ready):
            for item, result in zip(batch, self._score(batch), strict=True):
                results[item.number] = result
            done += len(batch)
            if progress is not None:
                progress(done, len(raw))
        target.write_text("".join(json.dumps(result, ensure_ascii=False) + "\n" for result in results))
        failed = sum("error" in result for result in results)
        tokens = sum(len(item.ids) for item in ready)
        return Speed(len(raw), failed, tokens, time.perf_counter() - began, self._model_seconds)

    def _ready(self, raw: Sequence[bytes], results: list[dict[str, Any]]) -> Iterator[_Ready]:
        """Lines that can be scored; the others get their error."""
        for number, text in enumerate(raw):
            try:
                yield self._prepare(number, text)
            except AffectMonitorError as error:
                results[number] = {"id": _id_of(text), "error": {"field": error.field, "message": error.message}}

    def _prepare(self, number: int, raw: bytes) -> _Ready:
        try:
            line = InputLine.model_validate_json(raw)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"])) or "(line)"
            raise CorpusError(field, f"line {number + 1}: {first['msg']}") from None
        try:
            ids = render(self._tokenizer, line.conversation)
        except Exception as error:  # noqa: BLE001 - chat templates raise whatever jinja raises
            raise CorpusError("messages", f"line {number + 1}: the chat template refuses them: {error}") from None
        if len(ids) > self._context:
            raise CorpusError(
                "messages" if line.messages else "text",
                f"line {number + 1}: {len(ids)} tokens where the model's context is {self._context}; cut it",
            )
        return _Ready(number, line, ids)

    def _score(self, batch: Sequence[_Ready]) -> list[dict[str, Any]]:
        rows = self._forward([item.ids for item in batch])
        counts = np.array([len(item.ids) for item in batch])
        tokens = np.concatenate([np.array(item.ids, np.int64) for item in batch])
        scores = self._scorer.score(rows, tokens)
        tracker = TurnTracker(self._labeller, self._columns.total, len(batch))
        slots = np.array([tracker.open(len(item.ids)) for item in batch])
        tracker.fold(slots, np.zeros(len(batch), np.int64), counts, tokens, scores)
        begins = np.cumsum(counts) - counts
        return [
            self._result(item.line, tokens[begin : begin + count], scores[begin : begin + count], tracker, slot)
            for item, begin, count, slot in zip(batch, begins, counts, slots, strict=True)
        ]

    @torch.inference_mode()
    def _forward(self, ids: Sequence[Sequence[int]]) -> torch.Tensor:
        """Rows of all tokens of a batch, padding left out: [tokens, layers, hidden]."""
        lengths = torch.tensor([len(sequence) for sequence in ids])
        padded = torch.zeros((len(ids), int(lengths.max())), dtype=torch.long)
        for row, sequence in enumerate(ids):
            padded[row, : len(sequence)] = torch.tensor(sequence)
        mask = torch.arange(padded.shape[1]) < lengths[:, None]
        device = self._model.device
        began = time.perf_counter()
        self._model.base_model(input_ids=padded.to(device), attention_mask=mask.long().to(device), use_cache=False)
        self._model_seconds += time.perf_counter() - began
        stacked = torch.stack([self._kept.rows[layer] for layer in self._kept.layers], dim=2)
        return stacked[mask.to(device)].cpu()

    def _result(
        self, line: InputLine, tokens: Ints, scores: np.ndarray[Any, Any], tracker: TurnTracker, slot: int
    ) -> dict[str, Any]:
        turns, user, assistant = self._turns(tokens, scores)
        result: dict[str, Any] = {"id": line.id, "turns": turns}
        stats = tracker.close(slot)
        if line.messages is None or not stats.assistant_tokens:
            return result
        policy = self._policies.route(line.labels)
        assessment = self._assessor.assess(stats, policy.stance)
        rules = {"affect": policy.turn.false_alarm_rate, **policy.families}
        excesses = {"affect": assessment.affect, **assessment.families}
        over = [target for target, rate in rules.items() if excesses[target].p_value <= rate]
        result["assessment"] = _assessment(assessment, over) | {
            "mirror": mirror_slope(user, assistant),
            "coverage": stats.scored_tokens / len(tokens),
        }
        return result

    def _turns(
        self, tokens: Ints, scores: np.ndarray[Any, Any]
    ) -> tuple[list[dict[str, Any]], list[float], list[float]]:
        """Every message's emotions and families; U and A of each exchange."""
        start = np.array([self._labeller.initial_state], np.int64)
        tails = np.full((1, self._labeller.tail_length), -1, np.int64)
        labels = self._labeller.label(tokens, np.array([len(tokens)]), start, tails)
        turns, affect = [], {Role.USER: [0.0][:0], Role.ASSISTANT: [0.0][:0]}
        for role, held in _messages(labels):
            standard = self._assessor.standardise(scores[held].mean(axis=0), _STANDARD[role])
            emotions, families = self._assessor.named(standard)
            turns.append(
                {"role": _ROLE_NAMES[role], "tokens": int(held.sum()), "emotions": emotions, "families": families}
            )
            if role in affect:
                at = self._columns.user_affect if role is Role.USER else self._columns.assistant_affect
                affect[role].append(float(standard[at]))
        pairs = min(len(affect[Role.USER]), len(affect[Role.ASSISTANT]))
        return turns, affect[Role.USER][:pairs], affect[Role.ASSISTANT][:pairs]


def _messages(labels: Labels) -> Iterator[tuple[Role, np.ndarray[Any, Any]]]:
    """Role and token mask of each message that has tokens."""
    began = np.concatenate(([0], np.cumsum(labels.began[:-1] >= 0)))
    for segment in np.unique(began):
        held = (began == segment) & (labels.roles != Role.TEMPLATE)
        held[0] = False  # the first token of a sequence is an attention sink
        if held.any():
            yield Role(int(labels.roles[held][0])), held


def _assessment(assessment: TurnAssessment, over: list[str]) -> dict[str, Any]:
    return {
        "user_affect": assessment.user_affect,
        "assistant_affect": assessment.affect.value,
        "warranted": assessment.affect.warranted,
        "over_index": assessment.affect.over_index,
        "p_value": assessment.affect.p_value,
        "visibility": visibility_of(assessment) if "affect" in over else None,
        "twin_over_index": assessment.twin.over_index,
        "alerts": over,
    }


def _batches(ready: Sequence[_Ready]) -> Iterator[list[_Ready]]:
    """Batches of like length, longest first, so that little is padding and memory shows its peak at once."""
    batch: list[_Ready] = []
    for item in sorted(ready, key=lambda item: -len(item.ids)):
        if batch and (len(batch) + 1) * len(batch[0].ids) > _BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch


def _id_of(raw: bytes) -> Any:
    with suppress(ValueError):
        document = json.loads(raw)
        if isinstance(document, dict):
            return document.get("id")
    return None
