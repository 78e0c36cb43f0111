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
from typing import TYPE_CHECKING, Any

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


@dataclass
class _Row:
    """Where one request of the batch stands."""

    request: TappedRequest
    position: int = 0
    prompt_length: int = 0
    told: bool = False
    finished: bool = False


_Span = tuple[_Row, int, int]
"""A request, the position of its first token in a pass, and how many it has there."""


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
        self._end_tokens = frozenset(end_tokens_of(model) if end_tokens is None else end_tokens)
        self._rows: list[_Row] = []
        self._passes = Passes(model, layers, self._take)

    @contextmanager
    def requests(self, requests: Sequence[TappedRequest]) -> Iterator[None]:
        """Names the rows of the batches that run inside the block, and announces their start and end."""
        self._rows = [_Row(request) for request in requests]
        reason = ingest_pb2.END_REASON_ABORTED
        try:
            yield
            reason = ingest_pb2.END_REASON_STOP
        finally:
            rows, self._rows = self._rows, []
            for row in rows:
                if row.told:
                    with self._breaker.guard("the end of a request"):
                        self._client.end(row.request.request_id, row.position, reason)

    def close(self) -> None:
        """Takes the hooks out of the model."""
        self._passes.close()

    def _take(self, given: dict[str, Any]) -> None:
        ids = given.get("input_ids")
        if not self._rows or not isinstance(ids, torch.Tensor):
            return
        with self._breaker.guard("a forward pass"):
            tokens = ids.cpu().numpy()
            fresh, spans = self._advance(tokens, given.get("attention_mask"), given.get("position_ids"))
            # A pass that is not sent was counted all the same: coverage has to show it.
            if spans and not self._breaker.open:
                with self._breaker.guard("sending a forward pass"):
                    self._send(tokens, fresh, spans)

    def _advance(
        self, ids: Ints, attention_mask: object, position_ids: object
    ) -> tuple[NDArray[np.bool_], list[_Span]]:
        """Moves every request on by its fresh tokens: no padding, nothing twice; returns which these are, and spans."""
        reached = np.array([row.position for row in self._rows])
        if len(ids) != len(reached):
            raise ValueError(f"a batch of {len(ids)} rows where {len(reached)} requests were named")
        positions = _positions(ids.shape[1], attention_mask, position_ids, reached)
        fresh = positions >= reached[:, None]
        fresh[[row.finished for row in self._rows]] = False
        spans: list[_Span] = []
        for row, row_ids, row_positions, row_fresh in zip(self._rows, ids, positions, fresh, strict=True):
            columns = np.flatnonzero(row_fresh)
            if not len(columns):
                continue
            first, last = columns[0], columns[-1]
            row.position = int(row_positions[last]) + 1
            if not row.prompt_length:
                row.prompt_length = row.position
            elif int(row_ids[last]) in self._end_tokens:
                # generate() feeds padding to a finished row until the whole batch is done.
                row.finished = True
            spans.append((row, int(row_positions[first]), len(columns)))
        return fresh, spans

    def _send(self, ids: Ints, fresh: NDArray[np.bool_], spans: list[_Span]) -> None:
        for row, _, _ in spans:
            if not row.told:
                request = row.request
                self._client.start(
                    request.request_id,
                    row.prompt_length,
                    labels=request.labels,
                    session_id=request.session_id,
                    external_id=request.external_id,
                )
                row.told = True
        kept = self._passes.rows()
        if fresh.all():
            rows, tokens = kept.flatten(0, 1), ids.reshape(-1)
        else:
            rows, tokens = kept[torch.from_numpy(fresh).to(kept.device)], ids[fresh]
        sent, starts, counts = zip(*spans, strict=True)
        names = [row.request.request_id for row in sent]
        self._client.rows(names, starts, counts, tokens.tolist(), rows.cpu())


def _positions(width: int, attention_mask: object, position_ids: object, reached: Ints) -> Ints:
    """Absolute position of each token of a pass, [batch, width]; negative for padding."""
    if attention_mask is None:
        return reached[:, None] + np.arange(width)
    if isinstance(attention_mask, torch.Tensor) and attention_mask.dim() == 2:  # noqa: PLR2004 - [batch, tokens so far]
        real = attention_mask.cpu().numpy() != 0
        return np.where(real, real.cumsum(1) - 1, -1)[:, -width:]
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
