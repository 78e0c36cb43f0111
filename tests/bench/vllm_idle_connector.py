"""A connector for vLLM's extract_hidden_states that does nothing: what is left is vLLM's own cost. Loaded by vLLM."""

from __future__ import annotations

from typing import Any

from monitor.capture.plan import StepPlan
from monitor.capture.vllm.connector import AffectConnector, AffectMetadata


class IdleConnector(AffectConnector):
    """Ours without its work: it follows no request, and finds no cache to send from."""

    def on_new_request(self, request: Any) -> None:
        """Is not followed."""

    def build_connector_meta(self, scheduler_output: Any) -> AffectMetadata:
        """Nothing is planned."""
        del scheduler_output
        return AffectMetadata(StepPlan())

    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, None]:
        """Nothing is held."""
        del request, block_ids
        return False, None

    def register_kv_caches(self, kv_caches: dict[str, Any]) -> None:
        """Nothing is sent."""
