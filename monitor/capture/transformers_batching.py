"""Capture for the continuous batching of Hugging Face transformers 5.

    tap = BatchingTap(model, client, layers)
    manager = model.init_continuous_batching(...)  # or model.generate_batch(...)
    manager.start()
    tap.name("id-1", TappedRequest("id-1", labels={"policy": "service-desk"}))
    manager.add_request(token_ids, request_id="id-1")

A pass is one flat row of tokens of many requests: ``cu_seq_lens_q`` says where each begins, ``position_ids`` where it
stands in its request. A request that was preempted comes again from its beginning, and what came before is not sent
twice; tokens that other requests left in the cache never pass, and are told as gaps. Errors never reach the model. In
a tensor-parallel group the tap belongs to the first rank.
"""

from __future__ import annotations

import threading
import uuid
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from monitor.capture.breaker import Breaker
from monitor.capture.passes import Passes
from monitor.capture.transformers import TappedRequest
from monitor.errors import SetupError
from monitor.wire.v1 import ingest_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from monitor.capture.client import SidecarClient


@dataclass
class _Running:
    """A request whose rows came.

    Attributes:
        name: What the sidecar is told of it.
        prompt_length: Tokens of its prompt.
        state: transformers' own view of it, as of its last pass.
        position: Its tokens up to here passed, or never will.
        told: Whether the sidecar knows of it.
    """

    name: TappedRequest
    prompt_length: int
    state: Any
    position: int = 0
    told: bool = False


@dataclass(frozen=True)
class _Span:
    """New tokens of a request in a pass: where they stand in it and in the pass, and what is missing before them."""

    request: _Running
    start: int
    columns: slice
    missing: list[int]


class BatchingTap:
    """Streams the hidden states of a model that batches continuously to a sidecar.

    Watches every manager that the model makes from now on, one at a time.

    Args:
        model: A causal language model of transformers.
        client: Where the rows go; its hello names the layers.
        layers: Layers to capture.
    """

    def __init__(self, model: Any, client: SidecarClient, layers: Sequence[int]) -> None:
        self._model = model
        self._client = client
        # Passes come in the manager's thread, cancellations in any.
        self._lock = threading.Lock()
        self._breaker = Breaker(client.failed)
        self._passes = Passes(model, layers, self._take)
        self._manager: Any = None
        self._names: dict[str, TappedRequest] = {}
        self._running: dict[str, _Running] = {}
        self._cancelled: dict[str, Any] = {}
        """Their states, or None; they may be in a pass that was made up before."""
        self._make_manager = model.init_continuous_batching
        model.init_continuous_batching = self._watched

    def name(self, request_id: str, request: TappedRequest) -> None:
        """Says what the sidecar is told of a request; call it before the request is added.

        A request without a name gets one that is unique, and no labels. Unless the name has another, its id in the
        manager is its external id.

        Args:
            request_id: Its id in the manager; ``generate_batch`` calls its inputs req_0, req_1 and so on.
            request: Its name; further sequences of the same request are called after it, with -1, -2 and so on.
        """
        with self._lock:
            self._names[request_id] = request

    def close(self) -> None:
        """Takes the hooks out of the model and its manager."""
        self._passes.close()
        vars(self._model).pop("init_continuous_batching", None)
        self._unwatch()

    # -- the manager --------------------------------------------------------------------------------------------------

    def _watched(self, *args: Any, **kwargs: Any) -> Any:
        manager = self._make_manager(*args, **kwargs)
        if any(getattr(manager.continuous_batching_config, "cuda_graph_booleans", ())):
            raise SetupError(
                "continuous_batching_config.use_cuda_graph",
                "graphs are replayed without the hooks that capture needs; set it to False, or close the tap",
            )
        if manager is not self._manager:
            with self._breaker.guard("a new manager"):
                self._unwatch()
                self._watch(manager)
        return manager

    def _watch(self, manager: Any) -> None:
        router = manager.output_router
        router.deliver = _first(lambda output: self._delivered([output]), router.deliver)
        router.deliver_batch = _first(self._delivered, router.deliver_batch)
        # Told last: until then the manager may make up another pass with the request in it.
        manager.cancel_request = _first(manager.cancel_request, self._cancel)
        self._manager = manager

    def _unwatch(self) -> None:
        if self._manager is not None:
            router = self._manager.output_router
            del router.deliver, router.deliver_batch, self._manager.cancel_request
            self._manager = None

    def _delivered(self, outputs: Iterable[Any]) -> None:
        with self._lock, self._breaker.guard("the end of a request"):
            for output in outputs:
                if not output.is_finished():
                    continue
                self._names.pop(output.request_id, None)
                if output.request_id in self._running:
                    state = self._running[output.request_id].state
                    self._end(output.request_id, _reason(output, state))
                    self._forget_children(state)

    def _cancel(self, request_id: str) -> None:
        with self._lock, self._breaker.guard("a cancellation"):
            self._names.pop(request_id, None)
            request = self._running.get(request_id)
            self._cancelled[request_id] = None if request is None else request.state
            if request is not None:
                self._end(request_id, ingest_pb2.END_REASON_ABORTED)

    def _end(self, request_id: str, reason: int) -> None:
        request = self._running.pop(request_id)
        if request.told:
            self._client.end(request.name.request_id, request.position, reason)

    def _forget_children(self, state: Any) -> None:
        """Those of a request that is over before it was copied never come."""
        for child in _children(state):
            self._names.pop(child, None)

    # -- passes -------------------------------------------------------------------------------------------------------

    def _take(self, given: dict[str, Any]) -> None:
        manager = self._manager
        # Not running yet, it warms up with requests of its own making.
        if manager is None or not manager.is_running() or "cu_seq_lens_q" not in given:
            return
        with self._lock, self._breaker.guard("a pass of a batch"):
            processor = manager.batch_processor
            if given["cache"] is processor.cache:
                self._emit(_requests(processor.inputs_and_outputs), given)

    def _emit(self, states: list[Any], given: dict[str, Any]) -> None:
        bounds, positions = given["cu_seq_lens_q"].tolist(), given["position_ids"][0].tolist()
        for gone in self._cancelled.keys() - {state.request_id for state in states}:
            self._forget_children(self._cancelled.pop(gone))
        spans = [
            span
            for state, begin, end in zip(states, bounds, bounds[1:], strict=False)
            if state.request_id not in self._cancelled
            and (span := self._advance(state, positions[begin], slice(begin, end)))
        ]
        # A pass that is not sent was counted all the same: coverage has to show it.
        if spans and not self._breaker.open:
            with self._breaker.guard("sending a pass of a batch"):
                self._send(spans, given["input_ids"][0])

    def _advance(self, state: Any, first: int, columns: slice) -> _Span | None:
        """Moves a request on by its tokens of a pass; none if all of them came before, as after a preemption."""
        request = self._running.get(state.request_id) or self._begin(state)
        request.state = state
        reached, end = request.position, first + columns.stop - columns.start
        if end <= reached:
            return None
        missing = (state.initial_tokens + state.generated_tokens)[reached:first] if first > reached else []
        request.position = end
        start = max(first, reached)
        return _Span(request, start, slice(columns.stop - (end - start), columns.stop), missing)

    def _begin(self, state: Any) -> _Running:
        name = self._names.pop(state.request_id, None) or TappedRequest(uuid.uuid4().hex)
        # Once the prompt is through, the request is copied for each further sequence.
        for number, child in enumerate(_children(state), 1):
            self._names[child] = replace(name, request_id=f"{name.request_id}-{number}")
        self._running[state.request_id] = request = _Running(name, len(state.initial_tokens), state)
        return request

    def _send(self, spans: list[_Span], token_ids: torch.Tensor) -> None:
        for span in spans:
            request, name = span.request, span.request.name
            if not request.told:
                self._client.start(
                    name.request_id,
                    request.prompt_length,
                    labels=name.labels,
                    session_id=name.session_id,
                    external_id=name.external_id or request.state.request_id,
                )
                request.told = True
            if span.missing:
                self._client.gap(name.request_id, span.start - len(span.missing), span.missing)
        kept = self._passes.rows()[0]
        self._client.rows(
            [span.request.name.request_id for span in spans],
            [span.start for span in spans],
            [span.columns.stop - span.columns.start for span in spans],
            torch.cat([token_ids[span.columns] for span in spans]).tolist(),
            torch.cat([kept[span.columns] for span in spans]).cpu(),
        )


def _first(earlier: Callable[..., Any], later: Callable[..., Any]) -> Callable[..., None]:
    """One call after the other, on the same arguments."""

    def both(*args: Any, **kwargs: Any) -> None:
        earlier(*args, **kwargs)
        later(*args, **kwargs)

    return both


def _requests(inputs: Any) -> list[Any]:
    """The requests of the pass under way, in the order of their tokens; batches on a GPU come in two sets of inputs."""
    if hasattr(inputs, "io_pairs"):
        inputs = inputs.io_pairs[inputs.current_pair].host_io
    return [future.state for future in inputs.requests_in_batch]


def _children(state: Any) -> list[str]:
    """Ids of the copies that are still to be made of a request."""
    return [] if state is None else [f"{state.request_id}__child#{number}" for number in range(state.num_children)]


def _reason(output: Any, state: Any) -> int:
    if output.error is not None:
        return ingest_pb2.END_REASON_ABORTED
    ends = state.eos_token_id if isinstance(state.eos_token_id, list) else [state.eos_token_id]
    stopped = any(token in ends for token in output.generated_tokens[-1:])
    return ingest_pb2.END_REASON_STOP if stopped else ingest_pb2.END_REASON_LENGTH
