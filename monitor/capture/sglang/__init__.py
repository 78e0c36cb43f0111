"""Capture for SGLang: a plugin that SGLang loads by its entry point. EXPERIMENTAL: it has not run on a GPU yet.

result of a batch -> hooks -> Ledger -> StepPlan -> Emitter -> SidecarClient

SGLang captures the wanted layers by itself (``--enable-return-aux-hidden-states``) and, for a batch in which somebody
asks for them, brings them to the host beside its other results. The plugin asks in the name of every request, by the
mode of capture alone: SGLang makes lists, which is what its users found slow, only for those who asked themselves. It
takes the tensor of each batch where SGLang reads its results, so overlap scheduling, chunked prefill, retraction and
mixed batches need no care beyond positions. Rows of tokens found in the radix cache do not exist; they become gaps.
"""

from __future__ import annotations

import logging

from monitor.capture.sglang.settings import SglangSettings

_LOG = logging.getLogger("affect_monitor.capture")


def register() -> None:
    """Hangs capture into this process of SGLang; called by SGLang in each of its processes."""
    settings = SglangSettings.from_environment()
    if settings is None:
        _LOG.info("AFFECT_SIDECAR names no sidecar: nothing is captured")
        return
    from monitor.capture.sglang import compat
    from monitor.capture.sglang.hooks import Hooks

    if not compat.is_known():
        known = ", ".join(compat.SUPPORTED)
        _LOG.error(
            "SGLang %s is none of those that capture was made for (%s): nothing is captured, serving goes on",
            compat.version(), known,
        )  # fmt: skip
        return
    hooks = Hooks(settings)
    compat.register_hooks(
        processor_made=hooks.processor_made,
        request_made=hooks.request_made,
        prefill_done=hooks.prefill_done,
        decode_done=hooks.decode_done,
    )
