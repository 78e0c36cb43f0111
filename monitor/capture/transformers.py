"""Capture for Hugging Face transformers: hooks on the decoder blocks of any decoder-only model.

    tap = TransformersTap(model, client, layers)
    with tap.requests([TappedRequest("id-1", labels={"policy": "service-desk"})]):
        model.generate(**inputs)

One frame a forward pass, prefill and decode alike. The hooks never raise into the model: after repeated errors capture
stops for a while and says so. Under torch.compile, hook the model before its first compiled pass. One batch at a time;
for continuous batching see ``transformers_batching``. Beam search reorders the rows of a batch behind the hooks' back,
and assisted generation takes tokens back; neither is supported.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from monitor.capture.breaker import Breaker
from monitor.capture.passes import Passes
from monitor.wire.v1 import ingest_pb2

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from monitor.capture.client import SidecarClient

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class TappedRequest:
    """A row of the batch and what the sidecar is told of it.

    Attributes:
        request_id: Unique among the requests of this engine.
        labels: What the policy routes by.
        session_id: Conversation the request belongs to.
        external_id: Id by which the server's caller knows it.
    """

    request_id: str
    labels: Mapping[str, str] = field(default_factory=dict)
    session_id: str = ""
    external_id: str = ""


class Changes(Protocol):
    """What changes the hidden states of a model on purpose, and counts what it does to each request of a batch."""

    def begin(self, requests: int) -> None:
        """A batch of so many requests begins."""

    def count(self, fresh: Bools) -> None:
        """Counts the pass that has just run; ``fresh`` are its tokens that count, [batch, tokens]."""

    def intervention(self, row: int) -> ingest_pb2.Intervention:
        """What was done to one request of the batch."""


class _News(NamedTuple):
    """What is new in a pass: whose, from which position on, and which of its tokens these are."""

    rows: Ints
    starts: Ints
    counts: Ints
    fresh: Bools
    """[batch, tokens]"""


class _Batch:
    """Where the requests of a batch stand, a column each: a pass of hundreds must cost no loop."""

    def __init__(self, requests: Sequence[TappedRequest], changes: Sequence[Changes]) -> None:
        self.requests = list(requests)
        self.changes = tuple(changes)
        self.names = [request.request_id for request in requests]
        self.rows = np.arange(len(requests))
        self.positions = np.zeros(len(requests), np.int64)
        self.prompt_lengths = np.zeros(len(requests), np.int64)
        self.told = np.zeros(len(requests), np.bool_)
        self._finished = np.zeros(len(requests), np.bool_)

    def advance(self, ids: Ints, positions: Ints, end_tokens: Ints) -> _News:
        """Moves the requests on by the new tokens of a pass: no padding, nothing twice, nothing behind its end."""
        fresh = (positions >= self.positions[:, None]) & ~self._finished[:, None]
        counts = fresh.sum(1)
        newest = np.where(fresh, positions, -1)
        last = newest.argmax(1)
        reached = newest[self.rows, last] + 1
        moved = counts > 0
        begins = moved & (self.prompt_lengths == 0)
        # generate() feeds padding to a finished row until the whole batch is done; a prompt may hold end tokens.
        self._finished |= moved & ~begins & (ids[self.rows, last][:, None] == end_tokens).any(1)
        np.copyto(self.prompt_lengths, reached, where=begins)
        np.copyto(self.positions, reached, where=moved)
        return _News(self.rows[moved], (reached - counts)[moved], counts[moved], fresh)


class TransformersTap:
    """Streams the hidden states of a model to a sidecar.

    Args:
        model: The model whose ``forward`` runs the batch, such as LlamaForCausalLM.
        client: Where the rows go; its hello names the layers.
        layers: Layers to capture.
        end_tokens: Token ids after which a row of the batch is finished; the model's own by default.
    """

    def __init__(
        self,
        model: nn.Module,
        client: SidecarClient,
        layers: Sequence[int],
        end_tokens: Sequence[int] | None = None,
    ) -> None:
        self._client = client
        self._breaker = Breaker(client.failed)
        self._end_tokens = np.array(end_tokens_of(model) if end_tokens is None else end_tokens, np.int64)
        self._batch: _Batch | None = None
        self._changes: list[Changes] = []
        self._passes = Passes(model, layers, self._take)

    @contextmanager
    def requests(self, requests: Sequence[TappedRequest]) -> Iterator[None]:
        """Names the rows of the batches that run inside the block, and announces their start and end."""
        batch = _Batch(requests, self._changes)
        for changes in batch.changes:
            changes.begin(len(requests))
        self._batch = batch
        reason = ingest_pb2.END_REASON_ABORTED
        try:
            yield
            reason = ingest_pb2.END_REASON_STOP
        finally:
            self._batch = None
            for row in np.flatnonzero(batch.told):
                with self._breaker.guard("the end of a request"):
                    made = [changes.intervention(int(row)) for changes in batch.changes]
                    self._client.end(batch.names[row], int(batch.positions[row]), reason, interventions=made)

    def add(self, changes: Changes) -> None:
        """Tells the sidecar, with the end of every request from now on, what these changes did to it.

        Raises:
            ValueError: A batch is under way.
        """
        if self._batch is not None:
            raise ValueError("a batch is under way; begin to change the model before its requests are named")
        self._changes.append(changes)

    def remove(self, changes: Changes) -> None:
        """Tells of these changes no more, once the batch under way is over."""
        self._changes = [each for each in self._changes if each is not changes]

    def failed(self) -> None:
        """Counts an error that was kept from the model; the sidecar is told."""
        self._client.failed()

    def close(self) -> None:
        """Takes the hooks out of the model."""
        self._passes.close()

    def _take(self, given: dict[str, Any]) -> None:
        batch, ids = self._batch, given.get("input_ids")
        if batch is None or not isinstance(ids, torch.Tensor):
            return
        with self._breaker.guard("a forward pass"):
            tokens = ids.cpu().numpy()
            if len(tokens) != len(batch.requests):
                raise ValueError(f"a batch of {len(tokens)} rows where {len(batch.requests)} requests were named")
            width = tokens.shape[1]
            positions = _positions(width, given.get("attention_mask"), given.get("position_ids"), batch.positions)
            news = batch.advance(tokens, positions, self._end_tokens)
            for changes in batch.changes:
                changes.count(news.fresh)
            # A pass that is not sent was counted all the same: coverage has to show it.
            if len(news.rows) and not self._breaker.open:
                with self._breaker.guard("sending a forward pass"):
                    self._send(batch, tokens, news)

    def _send(self, batch: _Batch, ids: Ints, news: _News) -> None:
        for row in news.rows[~batch.told[news.rows]]:
            request = batch.requests[row]
            self._client.start(
                request.request_id,
                int(batch.prompt_lengths[row]),
                labels=request.labels,
                session_id=request.session_id,
                external_id=request.external_id,
            )
            batch.told[row] = True
        kept = self._passes.rows()
        if news.fresh.all():
            names, tokens, rows = batch.names, ids.reshape(-1), kept.flatten(0, 1)
        else:
            names = [batch.names[row] for row in news.rows]
            tokens, rows = ids[news.fresh], kept[torch.from_numpy(news.fresh).to(kept.device)]
        self._client.rows(names, news.starts.tolist(), news.counts.tolist(), tokens.tolist(), rows.cpu())


def _positions(width: int, attention_mask: object, position_ids: object, reached: Ints) -> Ints:
    """Absolute position of each token of a pass, [batch, width]; negative for padding."""
    if attention_mask is None:
        return reached[:, None] + np.arange(width)
    if isinstance(attention_mask, torch.Tensor) and attention_mask.dim() == 2:  # noqa: PLR2004 - [batch, tokens so far]
        last = attention_mask[:, -width:].long()
        behind = last if width == 1 else last.flip(1).cumsum(1).flip(1)
        # Worked out where the mask lies, which is as long as all that was said.
        return torch.where(last != 0, attention_mask.sum(1, keepdim=True) - behind, -1).cpu().numpy()
    if len(reached) == 1:
        return reached[:, None] + np.arange(width)
    return _left_padded(position_ids, width)


def _left_padded(position_ids: object, width: int) -> Ints:
    """Positions of a batch on a preallocated cache, whose masks tell no padding from tokens."""
    if isinstance(position_ids, torch.Tensor) and position_ids.dim() == 2:  # noqa: PLR2004 - [batch, width]
        given = position_ids.cpu().numpy()
        positions: Ints = given[:, -1:] + np.arange(1 - width, 1)
        # Padding stands at 0; on the right, or in an order of its own, it would not come out so.
        if np.array_equal(given, positions.clip(0)):
            return positions
    raise ValueError(
        "padding cannot be told from tokens: attention_mask must be [batch, tokens so far], or position_ids "
        "[batch, tokens] with padding on the left"
    )


def end_tokens_of(model: nn.Module) -> list[int]:
    """Token ids that end a reply of a model."""
    config = getattr(model, "generation_config", None) or getattr(model, "config", None)
    end = getattr(config, "eos_token_id", None)
    return [] if end is None else [end] if isinstance(end, int) else list(end)
