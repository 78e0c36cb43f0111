"""Capture for vLLM: a plugin that vLLM loads by its entry point, and a KV connector that streams hidden states.

scheduler: requests and steps -> Ledger -> StepPlan -> worker: rows of the plan -> Emitter -> SidecarClient

The connector stores and loads nothing. vLLM's ``extract_hidden_states`` keeps the wanted layers in a cache of its own,
paged like the KV cache; each step the scheduler's half says which positions have become final, and the worker's half
takes their rows from the cache. So batching, chunked prefill, preemption, prefix-cache hits and speculation need no
care of ours: a row lies where vLLM says that its position lies.

``extract_hidden_states`` takes the place of speculative decoding. For servers that need it, taps in the model write the
wanted layers into memory of ours instead, which lasts for a step; rows are found by the same slots. What a step does
not compute, prefixes from the cache, is told as missing.
"""

from __future__ import annotations

import logging

CONNECTOR = "AffectConnector"
SUPPORTED = ("0.30", "0.31", "0.32", "0.33")
"""Versions of vLLM that capture was made for; here, since importing ``compat`` takes vLLM's own seconds."""


def register() -> None:
    """Makes the connector known to vLLM; called by vLLM in each of its processes, maybe more than once.

    Whatever fails stays here: vLLM would not start, asked for capture or not.
    """
    try:
        _register()
    except Exception:
        logging.getLogger("affect_monitor.capture").exception("capture does not fit this vLLM, which goes on without")


def _register() -> None:
    from monitor.capture.vllm import compat
    from monitor.capture.vllm.placing import TAPS

    compat.share_log("affect_monitor")
    compat.register_connector(CONNECTOR, "monitor.capture.vllm.connector")
    if compat.is_known():
        compat.call_around_loading(TAPS.before_loading, TAPS.after_loading)
