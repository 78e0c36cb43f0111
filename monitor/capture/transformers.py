"""Capture for Hugging Face transformers: hooks on the decoder blocks of any decoder-only model.

    tap = TransformersTap(model, client)
    with tap.requests([TappedRequest("id-1", labels={"policy": "service-desk"})]):
        model.generate(**inputs)

One frame a forward pass, prefill and decode alike. The hooks never raise into the model: after repeated errors capture
stops and says so. Beam search reorders the rows of a batch behind the hooks' back and is not supported.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from monitor.capture.client import SidecarClient
from monitor.wire.v1 import ingest_pb2

_LOG = logging.getLogger("affect_monitor.capture")
_MAX_ERRORS = 5


@dataclass(frozen=True)
class TappedRequest:
    """A row of the batch and what the sidecar is told of it.

    Attributes:
        request_id: Unique among the requests of this engine.
        labels: What the policy routes by.
        session_id: Conversation the request belongs to.
    """

    request_id: str
    labels: Mapping[str, str] = field(default_factory=dict)
    session_id: str = ""


@dataclass
class _Row:
    """Where one request of the batch stands."""

    request: TappedRequest
    position: int = 0
    prompt_length: int = 0
    finished: bool = False


def decoder_blocks(model: nn.Module) -> nn.ModuleList:
    """The decoder blocks of a model: its longest list of modules of one class.

    Raises:
        ValueError: The model has no such list.
    """
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) > 0]
    if not lists:
        raise ValueError(f"{type(model).__name__} has no list of decoder blocks to hook")
    return max(lists, key=len)


def weights_fingerprint(model: nn.Module) -> str:
    """SHA-256 over names, dtypes and bytes of a model's weights, in name order."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


class LayerRows:
    """Keeps the residual stream at some layers during each forward pass of a model.

    Layer i is the stream after i blocks, 0 to depth, before any final norm.

    Args:
        model: A decoder-only model.
        layers: Layers to keep.

    Attributes:
        rows: Hidden states of the pass under way, by layer: [batch, tokens, hidden].
    """

    def __init__(self, model: nn.Module, layers: Sequence[int]) -> None:
        blocks = decoder_blocks(model)
        if not all(0 <= layer <= len(blocks) for layer in layers):
            raise ValueError(f"layers {list(layers)} must lie within 0..{len(blocks)}")
        self.layers = tuple(layers)
        self.rows: dict[int, torch.Tensor] = {}
        self._handles = [self._hook(blocks, layer) for layer in self.layers]

    def _hook(self, blocks: nn.ModuleList, layer: int) -> torch.utils.hooks.RemovableHandle:
        # What enters block i is the stream after i blocks, whatever an architecture does to its embeddings.
        if layer < len(blocks):

            def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                self.rows[layer] = args[0] if args else kwargs["hidden_states"]

            return blocks[layer].register_forward_pre_hook(before, with_kwargs=True)

        def after(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
            self.rows[layer] = output[0] if isinstance(output, tuple) else output

        return blocks[-1].register_forward_hook(after)

    def close(self) -> None:
        """Takes the hooks out."""
        for handle in self._handles:
            handle.remove()
        self.rows.clear()


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
        self._kept = LayerRows(model, layers)
        self._end_tokens = frozenset(_end_tokens(model) if end_tokens is None else end_tokens)
        self._rows: list[_Row] = []
        self._inputs: tuple[torch.Tensor, torch.Tensor | None] | None = None
        self._errors = 0
        self._handles = [
            model.register_forward_pre_hook(self._before, with_kwargs=True),
            model.register_forward_hook(self._after),
        ]

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
                if row.prompt_length:
                    self._client.end(row.request.request_id, row.position, reason)

    def close(self) -> None:
        """Takes the hooks out of the model."""
        self._kept.close()
        for handle in self._handles:
            handle.remove()

    def _before(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = kwargs.get("input_ids", args[0] if args else None)
        mask = kwargs.get("attention_mask", args[1] if len(args) > 1 else None)
        self._inputs = (ids, mask) if self._rows and isinstance(ids, torch.Tensor) else None

    def _after(self, _module: nn.Module, _args: tuple[Any, ...], _output: Any) -> None:
        inputs, self._inputs = self._inputs, None
        if inputs is None or self._errors >= _MAX_ERRORS:
            return
        try:
            self._emit(*inputs)
        except Exception:
            self._errors += 1
            _LOG.exception(
                "capture failed on a forward pass; generation goes on, capture %s",
                "goes on" if self._errors < _MAX_ERRORS else "stops",
            )
        finally:
            self._kept.rows.clear()

    def _emit(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> None:
        """Sends the rows of one forward pass, padding left out."""
        batch, width = input_ids.shape
        if batch != len(self._rows):
            raise ValueError(f"a batch of {batch} rows where {len(self._rows)} requests were named")
        ids = input_ids.cpu()
        real = torch.ones_like(ids, dtype=torch.bool)
        if attention_mask is not None and attention_mask.dim() == 2:  # noqa: PLR2004 - [batch, tokens so far]
            real = attention_mask[:, -width:].cpu().bool()
        counts = self._advance(ids, real)
        kept = torch.stack([self._kept.rows[layer] for layer in self._kept.layers], dim=2).detach()
        if real.all():
            rows, tokens = kept.reshape(-1, *kept.shape[2:]).cpu(), ids.reshape(-1)
        else:
            rows, tokens = kept[real.to(kept.device)].cpu(), ids[real]
        spans = [(row, count) for row, count in zip(self._rows, counts, strict=True) if count]
        if spans:
            self._client.rows(
                [row.request.request_id for row, _ in spans],
                [row.position - count for row, count in spans],
                [count for _, count in spans],
                tokens.tolist(),
                rows,
            )

    def _advance(self, ids: torch.Tensor, real: torch.Tensor) -> list[int]:
        """Moves every request on by its tokens of this pass; clears finished ones from ``real``; returns the counts."""
        counts = []
        for number, row in enumerate(self._rows):
            if row.finished:
                real[number] = False
            count = int(real[number].sum())
            if not row.prompt_length and count:
                row.prompt_length = count
                request = row.request
                self._client.start(request.request_id, count, labels=request.labels, session_id=request.session_id)
            elif count and self._end_tokens.intersection(ids[number][real[number]].tolist()):
                # generate() feeds padding to a finished row until the whole batch is done.
                row.finished = True
            row.position += count
            counts.append(count)
        return counts


def _end_tokens(model: nn.Module) -> list[int]:
    config = getattr(model, "generation_config", None) or getattr(model, "config", None)
    end = getattr(config, "eos_token_id", None)
    return [] if end is None else [end] if isinstance(end, int) else list(end)
