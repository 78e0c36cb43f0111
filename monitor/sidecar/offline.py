"""Scores texts and conversations from a file, with the sidecar's scorer, tracker and assessor around a local model."""

from __future__ import annotations

import codecs
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from monitor.assess.mirror import mirror_slope
from monitor.assess.overindex import Assessor, TurnAssessment
from monitor.calibration.activations import Progress, render
from monitor.calibration.identity import check_identity, check_shape
from monitor.calibration.lines import ChatMessage
from monitor.capture.passes import LayerRows
from monitor.errors import CorpusError, SetupError
from monitor.policy.alert import over_on
from monitor.policy.schema import Policy, PolicyFile
from monitor.probes.bank import Bank
from monitor.probes.markers import Role
from monitor.probes.score import Scorer
from monitor.sidecar.judge import visibility_of
from monitor.turns.roles import Ints, Labels, RoleLabeller
from monitor.turns.tracker import TurnTracker

BATCH_TOKENS = 2048
"""Tokens of one batch, padding included."""
_NOT_THE_BANKS = "calibrate a bank for this model, or allow unvalidated models to score it all the same"
_ROLE_NAMES = {Role.SYSTEM: "system", Role.USER: "user", Role.ASSISTANT: "assistant"}
_STANDARD = {Role.SYSTEM: 0, Role.USER: 0, Role.ASSISTANT: 1}


class InputLine(BaseModel):
    """One line of input: a conversation or a bare text, which is read as a user's."""

    model_config = ConfigDict(extra="forbid")

    id: str | int
    messages: list[ChatMessage] | None = Field(default=None, min_length=1)
    text: str | None = Field(default=None, min_length=1)
    labels: dict[str, str] = Field(default_factory=dict)

    @field_validator("id", mode="before")
    @classmethod
    def _is_a_name(cls, given: object) -> object:
        if not _is_id(given):
            raise ValueError("must be a string or an integer")
        return given

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
    """A line that can be scored, and its place among the results."""

    place: int
    line: InputLine
    ids: list[int]


class OfflineScorer:
    """Scores conversations in batches.

    Args:
        bank: The probes.
        policies: Which policy a line falls under, by its labels.
        model: The model of the bank.
        tokenizer: Its tokenizer.
        allow_unvalidated: Score a model the bank was not made for.

    Raises:
        ModelMismatchError: The model is not the bank's.
    """

    def __init__(
        self, bank: Bank, policies: PolicyFile, model: Any, tokenizer: Any, *, allow_unvalidated: bool = False
    ) -> None:
        check_shape(bank, model)
        if not allow_unvalidated:
            check_identity(bank, model, tokenizer, _NOT_THE_BANKS)
        self._columns = bank.columns
        self._scorer = Scorer(bank)
        self._labeller = RoleLabeller(bank.markers)
        self._assessor = Assessor(bank)
        self._policies = policies
        self._model, self._tokenizer = model, tokenizer
        self._context = int(model.config.max_position_embeddings)
        self._model_seconds = 0.0
        self._layers = bank.card.layers

    def score_file(self, source: Path, target: Path, progress: Progress | None = None) -> Speed:
        """Scores every line of ``source`` into the same line of ``target``; a bad line gets its error there.

        Raises:
            CorpusError: ``source`` cannot be read.
            SetupError: ``target`` cannot be written.
        """
        raw = _read(source)
        _check_target(target)
        told = progress or (lambda _done, _total: None)
        told(0, len(raw))
        began = time.perf_counter()
        self._model_seconds = 0.0
        results: list[dict[str, Any]] = [{} for _ in raw]
        ready = list(self._ready(raw, results))
        done = len(raw) - len(ready)
        with closing(LayerRows(self._model, self._layers)) as kept:
            for batch in _batches(ready):
                for item, result in zip(batch, self._score(batch, kept), strict=True):
                    results[item.place] = result
                done += len(batch)
                told(done, len(raw))
        told(done, len(raw))
        _write(target, results)
        failed = sum("error" in result for result in results)
        tokens = sum(len(item.ids) for item in ready)
        return Speed(len(raw), failed, tokens, time.perf_counter() - began, self._model_seconds)

    def _ready(self, raw: Sequence[tuple[int, bytes]], results: list[dict[str, Any]]) -> Iterator[_Ready]:
        """Lines that can be scored; the others get their error."""
        for place, (number, text) in enumerate(raw):
            try:
                line, ids = self._prepare(text)
            except CorpusError as error:  # noqa: PERF203 - a bad line must not end the others
                results[place] = _failure(_id_of(text), error.field, f"line {number}: {error.message}")
            else:
                yield _Ready(place, line, ids)

    def _prepare(self, raw: bytes) -> tuple[InputLine, list[int]]:
        try:
            line = InputLine.model_validate_json(raw)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"])) or "(line)"
            raise CorpusError(field, first["msg"].removeprefix("Value error, ")) from None
        if (line.messages is None) == (line.text is None):
            raise CorpusError("messages", "give either messages or text")
        field = "text" if line.messages is None else "messages"
        try:
            ids = render(self._tokenizer, line.conversation)
        except Exception as error:  # noqa: BLE001 - chat templates raise whatever jinja raises
            raise CorpusError(field, f"the chat template refuses them: {error}") from None
        if not ids:
            raise CorpusError(field, "has no tokens; leave the line out")
        if len(ids) > self._context:
            raise CorpusError(field, f"{len(ids)} tokens where the model's context is {self._context}; cut it")
        return line, ids

    def _score(self, batch: Sequence[_Ready], kept: LayerRows) -> list[dict[str, Any]]:
        rows = self._forward([item.ids for item in batch], kept)
        counts = np.array([len(item.ids) for item in batch])
        tokens = np.concatenate([np.array(item.ids, np.int64) for item in batch])
        scores = self._scorer.score(rows, tokens)
        tracker = TurnTracker(self._labeller, self._columns.total, self._columns.assistant_affect, len(batch))
        slots = np.array([tracker.open(len(item.ids)) for item in batch])
        tracker.fold(slots, np.zeros(len(batch), np.int64), counts, tokens, scores)
        begins = np.cumsum(counts) - counts
        return [
            self._result(item.line, tokens[begin : begin + count], scores[begin : begin + count], tracker, slot)
            for item, begin, count, slot in zip(batch, begins, counts, slots, strict=True)
        ]

    @torch.inference_mode()
    def _forward(self, ids: Sequence[Sequence[int]], kept: LayerRows) -> torch.Tensor:
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
        stacked = torch.stack([kept.rows[layer] for layer in kept.layers], dim=2)
        kept.rows.clear()
        return stacked[mask.to(device)].cpu()

    def _result(
        self, line: InputLine, tokens: Ints, scores: np.ndarray[Any, Any], tracker: TurnTracker, slot: int
    ) -> dict[str, Any]:
        stats = tracker.close(slot)
        if stats.scored_tokens < stats.seen_tokens:
            count = stats.seen_tokens - stats.scored_tokens
            message = (
                f"the model's hidden states of {count} of {len(tokens)} tokens are not finite; look at its weights"
            )
            return _failure(line.id, "text" if line.messages is None else "messages", message)
        turns, user, assistant = self._turns(tokens, scores)
        result: dict[str, Any] = {"id": line.id, "turns": turns}
        if line.messages is None or not stats.assistant_tokens:
            return result
        policy = self._policies.route(line.labels)
        result["assessment"] = _assessment(
            self._assessor.assess(stats, policy.stance), policy, stats.assistant_tokens
        ) | {
            "mirror": mirror_slope(user, assistant),
            "coverage": stats.scored_tokens / len(tokens),
        }
        return result

    def _turns(
        self, tokens: Ints, scores: np.ndarray[Any, Any]
    ) -> tuple[list[dict[str, Any]], list[float], list[float]]:
        """Every message's emotions and families; U and A of each exchange: a reply and the user it answers."""
        start = np.array([self._labeller.initial_state], np.int64)
        tails = np.full((1, self._labeller.tail_length), -1, np.int64)
        labels = self._labeller.label(tokens, np.array([len(tokens)]), start, tails)
        turns: list[dict[str, Any]] = []
        exchanges: list[tuple[float, float]] = []
        asked: float | None = None
        for role, held in _messages(labels):
            mean = scores[held].mean(axis=0, dtype=np.float64).astype(np.float32)
            standard = self._assessor.standardise(mean, _STANDARD[role])
            emotions, families = self._assessor.named(standard, _STANDARD[role])
            turns.append(
                {"role": _ROLE_NAMES[role], "tokens": int(held.sum()), "emotions": emotions, "families": families}
            )
            if role is Role.USER:
                asked = float(standard[self._columns.user_affect])
            elif role is Role.ASSISTANT and asked is not None:
                exchanges.append((asked, float(standard[self._columns.assistant_affect])))
                asked = None
        return turns, [user for user, _ in exchanges], [assistant for _, assistant in exchanges]


def _messages(labels: Labels) -> Iterator[tuple[Role, np.ndarray[Any, Any]]]:
    """Role and token mask of each message that has tokens."""
    began = np.concatenate(([0], np.cumsum(labels.began[:-1] >= 0)))
    for segment in np.unique(began):
        held = (began == segment) & (labels.roles != Role.TEMPLATE)
        held[0] = False  # the first token of a sequence is an attention sink
        if held.any():
            yield Role(int(labels.roles[held][0])), held


def _assessment(assessment: TurnAssessment, policy: Policy, assistant_tokens: int) -> dict[str, Any]:
    """The numbers of the last turn, and what a sidecar would raise an alert for if it saw this turn alone."""
    affect = assessment.affect
    visible = visibility_of(assessment) if affect.p_value <= policy.turn.false_alarm_rate else None
    judged = assistant_tokens >= policy.turn.min_assistant_tokens
    return {
        "user_affect": assessment.user_affect,
        "assistant_affect": affect.value,
        "warranted": affect.warranted,
        "over_index": affect.over_index,
        "p_value": affect.p_value,
        "visibility": visible,
        "twin_over_index": assessment.twin.over_index,
        "alerts": list(over_on(policy, assessment)) if judged else [],
    }


def _read(source: Path) -> list[tuple[int, bytes]]:
    """Lines that are not blank, each with its number in the file."""
    try:
        raw = source.read_bytes().removeprefix(codecs.BOM_UTF8)
    except OSError as error:
        raise CorpusError("--input", f"{source}: {error.strerror}; name a file that can be read") from None
    return [(number, line) for number, line in enumerate(raw.splitlines(), 1) if line.strip()]


def _check_target(target: Path) -> None:
    """Refuses, before the work, a target that could not be written after it."""
    if target.is_dir():
        raise SetupError("--output", f"{target} is a folder; name a file")
    if not os.access(target if target.exists() else target.parent, os.W_OK):
        raise SetupError("--output", f"{target} cannot be written; make its folder or name another file")


def _write(target: Path, results: Sequence[dict[str, Any]]) -> None:
    text = "".join(json.dumps(result, ensure_ascii=False, allow_nan=False) + "\n" for result in results)
    try:
        # Half a surrogate pair has no UTF-8; written as an escape it is JSON all the same.
        target.write_bytes(text.encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise SetupError("--output", f"{target}: {error.strerror}; name another file") from None


def _failure(name: str | int | None, field: str, message: str) -> dict[str, Any]:
    return {"id": name, "error": {"field": field, "message": message}}


def _batches(ready: Sequence[_Ready]) -> Iterator[list[_Ready]]:
    """Batches of like length, longest first, so that little is padding and memory shows its peak at once."""
    batch: list[_Ready] = []
    for item in sorted(ready, key=lambda item: -len(item.ids)):
        if batch and (len(batch) + 1) * len(batch[0].ids) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch


def _is_id(value: object) -> bool:
    return isinstance(value, str | int) and not isinstance(value, bool)


def _id_of(raw: bytes) -> str | int | None:
    """The id of a line that cannot be scored, where it has one."""
    with suppress(ValueError, RecursionError):
        document = json.loads(raw)
        if isinstance(document, dict) and _is_id(document.get("id")):
            name: str | int = document["id"]
            return name
    return None
