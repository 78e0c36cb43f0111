"""The KV connector: vLLM's hooks, each a guarded call of the half it belongs to."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Any

from monitor.capture.breaker import Breaker
from monitor.capture.emitter import Emitter, RowSource
from monitor.capture.introduction import Introduction
from monitor.capture.plan import StepPlan
from monitor.capture.vllm import SUPPORTED, compat
from monitor.capture.vllm.cached import CachedRows
from monitor.capture.vllm.ledger import MOST_ROWS, Ledger
from monitor.capture.vllm.placing import TAPS
from monitor.capture.vllm.tapped import TappedRows

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

_LOG = logging.getLogger("affect_monitor.capture")


class AffectMetadata(compat.KVConnectorMetadata):  # type: ignore[misc]
    """Carries a plan from the scheduler to the workers."""

    def __init__(self, plan: StepPlan) -> None:
        self.plan = plan


class AffectConnector(compat.KVConnectorBase_V1, compat.SupportsHMA):  # type: ignore[misc]
    """Streams hidden states to a sidecar; stores and loads nothing.

    vLLM makes one in the scheduler's process and one in every worker. An exception out of any hook would end the
    engine, so each does its work under the breaker and has an answer that changes nothing.
    """

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        super().__init__(vllm_config=vllm_config, role=role, kv_cache_config=kv_cache_config)
        self._breaker = Breaker()
        self._config = vllm_config
        self._kv_cache = kv_cache_config
        self._group = 0
        self._ledger: Ledger | None = None
        self._emitter: Emitter | None = None
        self._tapped: TappedRows | None = None
        self._layer = ""
        self._introduction: Introduction | None = None
        self._speaks = True
        """Better several that let blocks go than none."""
        if not compat.is_known():
            known = ", ".join(SUPPORTED)
            _LOG.error(
                "vLLM %s is none of those that capture was made for (%s): nothing is captured, serving goes on",
                compat.version(), known,
            )  # fmt: skip
        elif role == compat.KVConnectorRole.SCHEDULER:
            with self._breaker.guard("the constructor"):
                tapped = compat.is_tapped(vllm_config)
                find = compat.attention_group if tapped else compat.cache_group
                self._group, block_size, *_ = find(kv_cache_config)
                tokens, _ = compat.step_room(vllm_config)
                self._ledger = Ledger(block_size, keeps_cached=not tapped, most=max(MOST_ROWS, 2 * tokens))

    # -- what vLLM asks of every connector ----------------------------------------------------------------------------

    @property
    def requires_kv_delivery(self) -> bool:
        """Rows that a preemption discards are computed again; nothing has to be recomputed for us."""
        return False

    def get_finished_count(self) -> int | None:
        """One worker speaks for all; where rows are tapped nobody has to, and the count is left to other connectors."""
        with self._breaker.guard("get_finished_count"):
            if compat.is_tapped(self._config):
                return None
        return 1

    @classmethod
    def get_required_kvcache_layout(cls, vllm_config: Any) -> str | None:
        """The layout that keeps the hidden states of a token together."""
        with Breaker().guard("get_required_kvcache_layout"):
            return compat.required_layout(vllm_config)
        return None

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int, bool]:
        """Nothing is loaded."""
        del request, num_computed_tokens
        return 0, False

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        """Nothing is loaded."""

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        """Nothing is loaded."""

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Nothing is loaded."""

    def save_kv_layer(self, layer_name: str, kv_layer: Any, attn_metadata: Any, **kwargs: Any) -> None:
        """Rows are taken once a step, not once a layer."""

    def wait_for_save(self) -> None:
        """Rows are taken a little later: vLLM 0.30 does not call this where the model does not run."""

    # -- in the scheduler ---------------------------------------------------------------------------------------------

    def on_new_request(self, request: Any) -> None:
        """Takes in a request."""
        if self._ledger is None or self._breaker.open:
            return
        with self._breaker.guard("on_new_request"):
            if compat.is_followed(request):
                self._ledger.begin(compat.begin(request), compat.tokens(request))

    def build_connector_meta(self, scheduler_output: Any) -> AffectMetadata:
        """Says which rows will be final after a step."""
        if self._ledger is None:
            return AffectMetadata(StepPlan())
        plan = self._ledger.take()
        followed = False
        if not self._breaker.open:
            with self._breaker.guard("build_connector_meta"):
                plan.runs = compat.runs(scheduler_output)
                self._ledger.fill(plan, compat.scheduled(scheduler_output, self._group))
                followed = True
        if not followed:
            self._ledger.lose(plan)
        plan.errors = self._breaker.errors
        return AffectMetadata(plan)

    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        """Ends a request; its blocks stay where rows in them are still to be sent."""
        del block_ids
        held = False
        if self._ledger is not None:
            with self._breaker.guard("request_finished"):
                held = self._ledger.finish(request.request_id, request.num_computed_tokens, compat.end_reason(request))
        return held, None

    def request_finished_all_groups(
        self, request: Any, block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        """Ends a request, for engines with several cache groups."""
        return self.request_finished(request, block_ids[0] if block_ids else [])

    # -- in a worker --------------------------------------------------------------------------------------------------

    def register_kv_caches(self, kv_caches: Mapping[str, torch.Tensor]) -> None:
        """Finds the cache of hidden states; called once, before the first step."""
        if not compat.is_known():
            return
        with self._breaker.guard("register_kv_caches"):
            self._speaks = compat.is_first_tensor_rank()
            if not self._speaks:
                return
            source: RowSource
            if compat.is_tapped(self._config):
                source = self._tapped = self._tapped_rows()
            else:
                source = CachedRows(compat.hidden_cache(self._config, kv_caches))
            self._introduction = Introduction(
                compat.hello(self._config, source.hidden_size),
                partial(compat.identify, self._config),
                compat.setting(self._config, "sidecar", "unix:///run/affect/ingest.sock"),
                compat.tls(self._config),
            )
            self._breaker = Breaker(self._introduction.failed)
            self._emitter = Emitter(source, self._breaker, self._introduction.client)

    def bind_connector_metadata(self, connector_metadata: AffectMetadata) -> None:
        """Receives the plan of a step that is about to run."""
        if self.has_connector_metadata() and self._get_connector_metadata() is not connector_metadata:
            # A pipeline's stage that is not the last ends no step while there are drafts: the next one does.
            self.clear_connector_metadata()
        super().bind_connector_metadata(connector_metadata)
        if self._tapped is None:
            return
        if self._breaker.open:
            self._tapped.forget()
            return
        with self._breaker.guard("bind_connector_metadata"):
            self._tapped.begin(connector_metadata.plan, compat.step_slots(self._layer))

    def clear_connector_metadata(self) -> None:
        """Sends the rows of a step that is over, and what is left of others where the model did not run."""
        if self._emitter is not None and self.has_connector_metadata():
            with self._breaker.guard("clear_connector_metadata"):
                self._emitter.emit(self._get_connector_metadata().plan)
        super().clear_connector_metadata()

    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:
        """Lets go of the blocks of requests whose last rows are being sent: they have been gathered, or given up."""
        del finished_req_ids
        if not self._speaks or not self.has_connector_metadata():
            return None, None
        return set(self._get_connector_metadata().plan.held) or None, None

    def shutdown(self) -> None:
        """Ends the stream to the sidecar."""
        with self._breaker.guard("shutdown"):
            if self._emitter is not None:
                self._emitter.close()
            if self._introduction is not None:
                self._introduction.close()

    def _tapped_rows(self) -> TappedRows:
        if TAPS.rows is None:
            raise LookupError("no taps were placed; what was said when the model was loaded tells why")
        _, block_size, self._layer = compat.attention_group(self._kv_cache)
        compat.note_attention()
        tokens, _ = compat.step_room(self._config)
        return TappedRows(TAPS.rows, tokens, self._kv_cache.num_blocks * block_size)
