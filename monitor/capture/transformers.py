"""Capture for Hugging Face transformers: hooks on the decoder blocks of any decoder-only model.

    tap = TransformersTap(model, client)
    with tap.requests([TappedRequest("id-1", labels={"policy": "service-desk"})]):
        model.generate(**inputs)

One frame a forward pass, prefill and decode alike. The hooks never raise into the model: after repeated errors capture
stops and says so. Under torch.compile, hook the model before its first compiled pass. One batch at a time. Beam search
reorders the rows of a batch behind the hooks' back, and assisted generation takes tokens back; neither is supported.
"""

from __future__ import annotations

import inspect
import logging
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from monitor.wire.v1 import ingest_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from monitor.capture.client import SidecarClient

Ints = NDArray[np.int64]
_Span = tuple[str, int, int]
_Inputs = tuple[torch.Tensor, object, object]
"""Token ids, attention mask and position ids of a pass."""
_LOG = logging.getLogger("affect_monitor.capture")
_MAX_ERRORS = 5
"""Forward passes in a row that may fail before capture stops."""


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
    """The decoder blocks of a model: its longest list of modules that stands in no other (as experts do).

    Raises:
        ValueError: The model has no such list.
    """
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) > 0]
    nested = {id(inner) for outer in lists for inner in outer.modules() if inner is not outer}
    outermost = [blocks for blocks in lists if id(blocks) not in nested]
    if not outermost:
        raise ValueError(f"{type(model).__name__} has no list of decoder blocks to hook")
    return max(outermost, key=len)


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
                self._keep(layer, args[0] if args else kwargs.get("hidden_states"))

            return blocks[layer].register_forward_pre_hook(before, with_kwargs=True)

        def after(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
            self._keep(layer, output[0] if isinstance(output, tuple) else output)

        return blocks[-1].register_forward_hook(after)

    def _keep(self, layer: int, hidden: object) -> None:
        # A block that is called in an unknown way leaves its layer out: what is missing fails where it is looked for.
        if isinstance(hidden, torch.Tensor):
            self.rows[layer] = hidden

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
        self._arguments = tuple(inspect.signature(model.forward).parameters)
        self._rows: list[_Row] = []
        self._inputs: _Inputs | None = None
        self._errors = 0
        # Else torch.compile traces the whole way to the client, locks and counters, anew whenever one has changed.
        untraced: Any = torch.compiler.disable
        self._handles = [
            model.register_forward_pre_hook(untraced(self._before), with_kwargs=True),
            # Also when the pass fails: its rows must not stay in memory.
            model.register_forward_hook(untraced(self._after), always_call=True),
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
                    self._tell(self._client.end, row.request.request_id, row.position, reason)

    def close(self) -> None:
        """Takes the hooks out of the model."""
        self._kept.close()
        for handle in self._handles:
            handle.remove()

    def _before(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = {**dict(zip(self._arguments, args, strict=False)), **kwargs}
        ids = given.get("input_ids")
        self._inputs = None
        if self._rows and isinstance(ids, torch.Tensor):
            self._inputs = (ids, given.get("attention_mask"), given.get("position_ids"))

    def _after(self, _module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        inputs, self._inputs = self._inputs, None
        try:
            if inputs is not None and output is not None:
                # A pass that is not sent is counted all the same: coverage has to show it.
                self._emit(*inputs)
        except Exception:  # noqa: BLE001 - the model must not see it
            self._failed()
        finally:
            self._kept.rows.clear()

    def _tell(self, announce: Callable[..., None], *args: Any, **kwargs: Any) -> None:
        try:
            announce(*args, **kwargs)
        except Exception:  # noqa: BLE001 - the model must not see it
            self._failed()

    def _failed(self) -> None:
        """Called from an except clause; says so until capture has stopped."""
        self._errors += 1
        if self._errors <= _MAX_ERRORS:
            _LOG.exception(
                "capture failed on a forward pass; generation goes on, capture %s",
                "goes on" if self._errors < _MAX_ERRORS else "stops",
            )

    def _emit(self, input_ids: torch.Tensor, attention_mask: object, position_ids: object) -> None:
        """Sends the new rows of one forward pass: no padding, nothing twice."""
        ids = input_ids.cpu().numpy()
        reached = np.array([row.position for row in self._rows])
        if len(ids) != len(reached):
            raise ValueError(f"a batch of {len(ids)} rows where {len(reached)} requests were named")
        positions = _positions(ids.shape[1], attention_mask, position_ids, reached)
        fresh = positions >= reached[:, None]
        fresh[[row.finished for row in self._rows]] = False
        began, spans = self._advance(ids, positions, fresh)
        if self._errors >= _MAX_ERRORS or not spans:
            return
        for row in began:
            request = row.request
            self._client.start(
                request.request_id, row.prompt_length, labels=request.labels, session_id=request.session_id
            )
        if missing := [layer for layer in self._kept.layers if layer not in self._kept.rows]:
            raise ValueError(
                f"layers {missing} were not seen in this pass: torch.compile keeps only hooks that it finds when it "
                "traces, so hook the model before its first compiled pass"
            )
        kept = torch.stack([self._kept.rows[layer] for layer in self._kept.layers], dim=2).detach()
        if fresh.all():
            rows, tokens = kept.reshape(-1, *kept.shape[2:]), ids.reshape(-1)
        else:
            rows, tokens = kept[torch.from_numpy(fresh).to(kept.device)], ids[fresh]
        request_ids, starts, counts = zip(*spans, strict=True)
        self._client.rows(request_ids, starts, counts, tokens.tolist(), rows.cpu())
        self._errors = 0

    def _advance(self, ids: Ints, positions: Ints, fresh: NDArray[np.bool_]) -> tuple[list[_Row], list[_Span]]:
        """Moves every request on by its fresh tokens; returns those that began, and the span of each."""
        began: list[_Row] = []
        spans: list[_Span] = []
        for row, row_ids, row_positions, row_fresh in zip(self._rows, ids, positions, fresh, strict=True):
            columns = np.flatnonzero(row_fresh)
            if not len(columns):
                continue
            first, last = columns[0], columns[-1]
            row.position = int(row_positions[last]) + 1
            if not row.prompt_length:
                row.prompt_length = row.position
                began.append(row)
            elif int(row_ids[last]) in self._end_tokens:
                # generate() feeds padding to a finished row until the whole batch is done.
                row.finished = True
            spans.append((row.request.request_id, int(row_positions[first]), len(columns)))
        return began, spans


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


def _end_tokens(model: nn.Module) -> list[int]:
    config = getattr(model, "generation_config", None) or getattr(model, "config", None)
    end = getattr(config, "eos_token_id", None)
    return [] if end is None else [end] if isinstance(end, int) else list(end)
