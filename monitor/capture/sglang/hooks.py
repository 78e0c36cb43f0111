"""The hooks, each a guarded call: an exception out of one would end the scheduler."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Any

from monitor.capture.breaker import Breaker
from monitor.capture.emitter import Emitter
from monitor.capture.introduction import Introduction
from monitor.capture.plan import StepPlan
from monitor.capture.sglang import compat
from monitor.capture.sglang.ledger import Ledger
from monitor.capture.sglang.rows import BatchRows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from monitor.capture.sglang.settings import SglangSettings

_LOG = logging.getLogger("affect_monitor.capture")


class Hooks:
    """What the plugin does in one scheduler process of SGLang.

    Args:
        settings: What the plugin is told.
    """

    def __init__(self, settings: SglangSettings) -> None:
        self._settings = settings
        self._ledger = Ledger()
        self._breaker = Breaker()
        self._rows: BatchRows | None = None
        self._emitter: Emitter | None = None

    def processor_made(self, _result: None, processor: Any, *_args: Any, **_kwargs: Any) -> None:
        """After ``SchedulerBatchResultProcessor.__init__``: the model is loaded, and no request has come yet."""
        with self._breaker.guard("SchedulerBatchResultProcessor.__init__"):
            reason = compat.refusal(processor)
            if reason:
                _LOG.error("%s: nothing is captured, serving goes on", reason)
            elif compat.speaks():
                self._begin(processor)

    def request_made(self, _result: None, request: Any, *_args: Any, **_kwargs: Any) -> None:
        """After ``Req.__init__``: hidden states are asked for in its name."""
        if self._emitter is not None and not self._breaker.open:
            with self._breaker.guard("Req.__init__"):
                compat.ask(request)

    def prefill_done(self, _result: None, _processor: Any, batch: Any, result: Any) -> None:
        """After ``process_batch_result_prefill``, which also reads mixed batches."""
        self._tell(compat.extend_parts, batch, result)

    def decode_done(self, _result: None, _processor: Any, batch: Any, result: Any) -> None:
        """After ``process_batch_result_decode``."""
        self._tell(compat.decode_parts, batch, result)

    def _begin(self, processor: Any) -> None:
        hello = compat.hello(processor)
        identify = partial(compat.identify, processor, told=self._settings.weights_fingerprint)
        introduction = Introduction(hello, identify, self._settings.sidecar, self._settings.tls)
        self._rows = BatchRows(len(hello.layers), hello.hidden_size)
        self._breaker = Breaker(introduction.failed)
        self._emitter = Emitter(self._rows, self._breaker, introduction.client)
        _LOG.warning("capture for SGLang is experimental: it has not run on a GPU yet; layers %s", list(hello.layers))

    def _tell(self, split: Callable[[Any], Iterator[compat.Part]], batch: Any, result: Any) -> None:
        """Sends what a batch brought; SGLang's own answers to its callers have gone out."""
        if self._emitter is None or self._rows is None:
            return
        plan, followed = StepPlan(), False
        if not self._breaker.open:
            with self._breaker.guard("a batch result"):
                self._ledger.fill(plan, split(batch))
                self._rows.hold(compat.hidden_states(result))
                followed = True
        with self._breaker.guard("the ends of requests"):
            if not followed:
                self._ledger.lose(plan)
            self._ledger.close(plan)
            self._emitter.emit(plan)
        self._rows.hold(None)
