"""Everything of SGLang that may change under us, in one place.

Known versions are those whose sources the contract tests were run against; on others nothing is captured. SGLang is
imported in functions alone, for importing it takes a GPU's libraries.
"""

from __future__ import annotations

import secrets
import socket
from typing import TYPE_CHECKING, Any, NamedTuple

from monitor.capture.checkpoint import checkpoint_fingerprint, local_folder
from monitor.capture.identity import template_hash, tokenizer_hash
from monitor.capture.plan import Begin
from monitor.wire.v1 import ingest_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SUPPORTED = ("0.5.23",)
PROCESSOR = "sglang.srt.managers.scheduler_components.batch_result_processor.SchedulerBatchResultProcessor"
REQUEST = "sglang.srt.managers.schedule_batch.Req"
LABELS = "affect_labels"
"""Key of the labels among a request's ``custom_params``, whose values may be flat objects at most."""
_PARTIAL_STREAMS = frozenset({"Gemma3ForCausalLM"})
"""Models whose captured states lack the residual."""
_REASONS: dict[str, int] = {"stop": ingest_pb2.END_REASON_STOP, "length": ingest_pb2.END_REASON_LENGTH}


class Part(NamedTuple):
    """A request's part in a batch that has run."""

    request: Any
    start: int
    """Absolute position of its first token."""
    length: int
    row: int
    """Its first row among those of the batch."""


def version() -> str:
    """Version of SGLang."""
    from sglang.version import __version__

    return str(__version__)


def is_known() -> bool:
    """Whether this SGLang is one that capture was made for."""
    return version() in SUPPORTED


def register_hooks(
    *,
    processor_made: Callable[..., None],
    request_made: Callable[..., None],
    prefill_done: Callable[..., None],
    decode_done: Callable[..., None],
) -> None:
    """Registers the hooks; SGLang applies them when all plugins are loaded."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    HookRegistry.register(f"{PROCESSOR}.__init__", processor_made, HookType.AFTER)
    HookRegistry.register(f"{REQUEST}.__init__", request_made, HookType.AFTER)
    HookRegistry.register(f"{PROCESSOR}.process_batch_result_prefill", prefill_done, HookType.AFTER)
    HookRegistry.register(f"{PROCESSOR}.process_batch_result_decode", decode_done, HookType.AFTER)


# -- configuration ----------------------------------------------------------------------------------------------------


def refusal(processor: Any) -> str:
    """Why nothing can be captured from this server; empty if it can."""
    from sglang.srt.runtime_context import get_disagg, get_exec

    model = processor.model_config
    if get_exec().features.aux_hidden_state_capture != "eagle3":
        return (
            "SGLang captures no layers; start it with --enable-return-aux-hidden-states --speculative-algorithm EAGLE3 "
            "--return-aux-hidden-state-layer-ids and each layer of the bank less one"
        )
    if not processor.is_generation or model.is_encoder_decoder or get_exec().dllm.dllm_algorithm is not None:
        return "capture follows decoders that write a token at a time; this model does not"
    if processor.disaggregation_mode.value != "null" or get_disagg().enable_pdmux:
        return "capture needs prefill and decode in one server; drop --disaggregation-mode and --enable-pdmux"
    if any(type(module).__name__ in _PARTIAL_STREAMS for module in _model(processor).modules()):
        return f"SGLang {version()} captures less than the residual stream of this model"
    return ""


def speaks() -> bool:
    """Whether this process is the one of its tensor- and context-parallel group that speaks for it.

    There is one pipeline stage where hidden states are captured at all.
    """
    from sglang.srt.runtime_context import get_parallel

    parallel = get_parallel()
    return bool(parallel.attn_tp_rank == 0 and parallel.attn_cp_rank == 0)


def hello(processor: Any) -> ingest_pb2.Hello:
    """How the engine introduces itself, but for the hashes of its model."""
    from sglang.srt.runtime_context import get_parallel, get_serving

    model, parallel, serving = processor.model_config, get_parallel(), get_serving()
    return ingest_pb2.Hello(
        model_name=serving.served_model_name or model.model_path,
        model_revision=model.revision or "",
        engine_id=f"{socket.gethostname()}:{serving.port}",
        # Copies are either servers of their own or groups of one server.
        data_parallel_rank=parallel.attn_dp_rank if parallel.attn_dp_size > 1 else parallel.dp_rank or 0,
        layers=layers(_model(processor)),
        hidden_size=model.hidden_size,
        lacks_cached_prefixes=True,
    )


def layers(model: Any) -> list[int]:
    """Layers in each row, ascending.

    Models note the blocks before which they capture: before block i the stream has passed i blocks. The ids of the
    flag are one less for most of them, and the model's own business for others.

    Raises:
        LookupError: The model notes none, or several different ones.
    """
    noted = {tuple(sorted(found)) for part in model.modules() if (found := getattr(part, "layers_to_capture", None))}
    if len(noted) != 1:
        raise LookupError(f"the model notes {len(noted)} lists of layers_to_capture; there should be one")
    return list(noted.pop())


def identify(processor: Any, hello: ingest_pb2.Hello, *, told: str) -> None:
    """Adds the hashes of weights, tokenizer and chat template to a hello; may read all weights, so takes a while.

    Args:
        processor: SGLang's processor of batch results.
        hello: What is added to.
        told: Fingerprint of the weights, where it is known already.

    Raises:
        OSError: The model's files cannot be read.
    """
    from sglang.srt.runtime_context import get_serving

    tokenizer = processor.model_worker.tokenizer
    if tokenizer is not None:
        hello.tokenizer_hash = tokenizer_hash(tokenizer)
        # A template of the server's own need not be the tokenizer's.
        hello.template_hash = template_hash(tokenizer) if get_serving().chat_template is None else ""
    model = processor.model_config
    hello.weights_fingerprint = told or checkpoint_fingerprint(
        local_folder(model.model_path, model.revision), model.dtype
    )


def _model(processor: Any) -> Any:
    return processor.model_worker.model_runner.model


# -- requests ---------------------------------------------------------------------------------------------------------


def ask(request: Any) -> None:
    """Asks for the hidden states of a request, without having SGLang make lists of them.

    Not asked for are health checks, prompts of embeddings, and adapters, which are other models.
    """
    from sglang.srt.constants import HEALTH_CHECK_RID_PREFIX
    from sglang.srt.model_executor.forward_batch_info import CaptureHiddenMode

    plain = request.input_embeds is None and request.positional_embed_overrides is None and request.lora_id is None
    if plain and not request.rid.startswith(HEALTH_CHECK_RID_PREFIX):
        request.return_hidden_states_mode = CaptureHiddenMode.FULL
        request.affect_followed = True


def begin(request: Any) -> Begin:
    """What the sidecar is told of a request; labels come from ``custom_params: {"affect_labels": {...}}``."""
    custom = request.sampling_params.custom_params
    # Callers write what they like, and others must not pay for it.
    labels = custom.get(LABELS) if isinstance(custom, dict) else None
    labels = labels if isinstance(labels, dict) else {}
    return Begin(
        # Ids come from callers, who may use one again.
        f"{request.rid}-{secrets.token_hex(4)}",
        len(request.origin_input_ids),
        {str(name): str(value) for name, value in labels.items()},
        str(request.session_id or ""),
        request.rid,
    )


def cached_tokens(request: Any) -> int:
    """Tokens of a request that were found in the cache when it was first scheduled."""
    return int(request.cached_tokens)


def tokens(request: Any, start: int, end: int) -> list[int]:
    """Tokens of a request from one position to another.

    Raises:
        LookupError: It has not got so many.
    """
    prompt, output = request.origin_input_ids, request.output_ids
    if end > len(prompt) + len(output):
        raise LookupError(f"a request of {len(prompt)} + {len(output)} tokens computed {end}")
    return [*prompt[start:end], *output[max(0, start - len(prompt)) : max(0, end - len(prompt))]]


def is_over(request: Any) -> bool:
    """Whether a request is finished."""
    return bool(request.finished())


def end_reason(request: Any) -> int:
    """EndReason of the wire for a request that is over."""
    return _REASONS.get(request.finished_reason.to_json()["type"], ingest_pb2.END_REASON_ABORTED)


def processed_tokens(request: Any) -> int:
    """Tokens of a request that ended by itself which the model processed: all but the one sampled last."""
    return int(request.seqlen) - 1


# -- batches ----------------------------------------------------------------------------------------------------------


def extend_parts(batch: Any) -> Iterator[Part]:
    """The requests of a batch that extends them by several tokens, or some by one."""
    row = 0
    for request, start, count in zip(batch.reqs, batch.prefix_lens, batch.extend_lens, strict=True):
        if _is_followed(request):
            yield Part(request, start, count, row)
        row += count


def decode_parts(batch: Any) -> Iterator[Part]:
    """The requests of a batch that extends each by a token; rows of a beam's members come behind them."""
    for row, (request, length) in enumerate(zip(batch.reqs, batch.seq_lens_cpu.tolist(), strict=False)):
        if _is_followed(request):
            yield Part(request, length - 1, 1, row)


def _is_followed(request: Any) -> bool:
    """Whether rows of a request count; SGLang discards what was computed on a cache that failed to load."""
    asked = getattr(request, "affect_followed", False) and request.beam_group is None
    return bool(asked and request.discard_output_reason is None)


def hidden_states(result: Any) -> Any:
    """Hidden states of a batch, [tokens, layers * hidden], on the host or the device; None if there are none."""
    return result.logits_output.hidden_states
