"""Everything of vLLM that may change under us, in one place.

Known versions are those whose sources the contract tests were run against; on others nothing is captured.
"""

from __future__ import annotations

import logging
import re
from contextvars import ContextVar
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import vllm
from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
    SupportsHMA,
)

from monitor.capture.checkpoint import checkpoint_fingerprint, local_folder
from monitor.capture.credentials import ClientTls
from monitor.capture.identity import template_hash, tokenizer_hash
from monitor.capture.plan import Begin
from monitor.capture.vllm import CONNECTOR, SUPPORTED
from monitor.capture.vllm.ledger import Scheduled
from monitor.errors import SetupError
from monitor.wire.v1 import ingest_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import torch

__all__ = ["KVConnectorBase_V1", "KVConnectorMetadata", "KVConnectorRole", "SupportsHMA"]

_ATTENTION: ContextVar[Any] = ContextVar("attention", default=None)
"""Attention metadata of the step that is about to run, where there is no forward context."""
_UNIQUE_SUFFIX = re.compile(r"-[0-9a-f]{8}$")
_SIBLING_PREFIX = re.compile(r"^\d+_")


def version() -> str:
    """Version of vLLM."""
    return str(vllm.__version__)


def is_known() -> bool:
    """Whether this vLLM is one that capture was made for."""
    return version().startswith(tuple(f"{known}." for known in SUPPORTED))


def share_log(name: str) -> None:
    """Has a logger write where and as vLLM does, which configures no logger but its own."""
    logger = logging.getLogger(name)
    if not logger.handlers:
        logger.handlers.extend(logging.getLogger("vllm").handlers)
        logger.setLevel(logging.INFO)
        logger.propagate = False


def register_connector(name: str, module: str) -> None:
    """Makes a connector known by a name, once."""
    if name not in KVConnectorFactory._registry:  # noqa: SLF001 - there is no public way to ask
        KVConnectorFactory.register_connector(name, module, name)


# -- configuration ----------------------------------------------------------------------------------------------------


def setting(config: Any, key: str, default: Any = None) -> Any:
    """A setting of our connector, which may be one of several; the default also where it is not among them."""
    transfer = config.kv_transfer_config
    if transfer is None:
        return default
    extra: Mapping[str, Any] = transfer.kv_connector_extra_config
    ours = {transfer.kv_connector: extra} | {
        part.get("kv_connector"): part.get("kv_connector_extra_config") or {} for part in extra.get("connectors", ())
    }
    return ours.get(CONNECTOR, {}).get(key, default)


def is_tapped(config: Any) -> bool:
    """Whether rows are taken from taps in the model, and not from a cache of hidden states."""
    return bool(setting(config, "affect_capture", "cache") == "tap")


def layers(config: Any) -> list[int]:
    """Layers whose rows are taken, ascending; vLLM keeps them in this order whatever the order of the flag."""
    if is_tapped(config):
        return sorted(set(setting(config, "layers")))
    draft = config.speculative_config.draft_model_config.hf_config
    return sorted(set(draft.eagle_aux_hidden_state_layer_ids))


def cache_group(kv_cache_config: Any) -> tuple[int, int]:
    """Index and block size of the cache group that holds hidden states.

    Raises:
        LookupError: There is none.
    """
    from vllm.v1.kv_cache_interface import HiddenStateCacheSpec

    groups = kv_cache_config.kv_cache_groups
    found = [index for index, group in enumerate(groups) if isinstance(group.kv_cache_spec, HiddenStateCacheSpec)]
    if not found and len(groups) == 1:
        # Where pages are alike, all layers share one group.
        found = [0]
    if len(found) != 1:
        raise LookupError(f"{len(found)} of {len(groups)} cache groups hold hidden states; there should be one")
    return found[0], int(groups[found[0]].kv_cache_spec.block_size)


def required_layout(config: Any) -> str | None:
    """The cache layout that keeps the hidden states of a token together: what vLLM's own connector asks for."""
    if is_tapped(config):
        return None
    from vllm.distributed.kv_transfer.kv_connector.v1.example_hidden_states_connector import (
        ExampleHiddenStatesConnector,
    )

    layout: str | None = ExampleHiddenStatesConnector.get_required_kvcache_layout(config)
    return layout


def hidden_cache(config: Any, caches: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The cache of hidden states, [blocks, layers, block_size, hidden].

    Raises:
        LookupError: There is none, or there are several.
    """
    from vllm.config import get_layers_from_vllm_config
    from vllm.model_executor.models.extract_hidden_states import CacheOnlyAttentionLayer

    names = get_layers_from_vllm_config(config, CacheOnlyAttentionLayer, list(caches))
    if len(names) != 1:
        raise LookupError(f"{len(names)} caches of hidden states where there should be one")
    return caches[next(iter(names))]


def is_first_tensor_rank() -> bool:
    """Whether this worker is the one of its tensor-parallel group that speaks for it."""
    from vllm.distributed.parallel_state import get_tensor_model_parallel_rank

    return bool(get_tensor_model_parallel_rank() == 0)


def hello(config: Any, hidden_size: int) -> ingest_pb2.Hello:
    """How the engine introduces itself, but for the hashes of its model."""
    names = config.model_config.served_model_name
    return ingest_pb2.Hello(
        model_name=names if isinstance(names, str) else names[0],
        model_revision=config.model_config.revision or "",
        engine_id=config.kv_transfer_config.engine_id,
        data_parallel_rank=config.parallel_config.data_parallel_index,
        layers=layers(config),
        hidden_size=hidden_size,
        lacks_cached_prefixes=is_tapped(config),
    )


def identify(config: Any, hello: ingest_pb2.Hello) -> None:
    """Adds the hashes of weights, tokenizer and chat template to a hello; reads all weights, so takes a while.

    Raises:
        OSError: The model's files cannot be read.
    """
    from vllm.tokenizers import cached_tokenizer_from_config

    model = config.model_config
    tokenizer = cached_tokenizer_from_config(model)
    hello.tokenizer_hash, hello.template_hash = tokenizer_hash(tokenizer), template_hash(tokenizer)
    told = setting(config, "weights_fingerprint")
    hello.weights_fingerprint = told or checkpoint_fingerprint(local_folder(model.model, model.revision), model.dtype)


def tls(config: Any) -> ClientTls | None:
    """Certificates for a sidecar on TCP, where the settings name them."""
    files = [setting(config, key) for key in ("tls_ca", "tls_cert", "tls_key")]
    return ClientTls(*map(Path, files)) if all(files) else None


# -- taps -------------------------------------------------------------------------------------------------------------


def call_around_loading(before: Callable[[Any], None], after: Callable[[Any], None]) -> None:
    """Has two functions called around the loading of a worker's model: with its configuration, and with the worker."""
    from vllm.v1.worker.worker_base import WorkerWrapperBase

    def load_model(self: Any, *arguments: Any, **named: Any) -> None:
        before(self.vllm_config)
        self.worker.load_model(*arguments, **named)
        after(self.worker)

    # Executors call it on the wrapper, which has none and hands the call to its worker.
    WorkerWrapperBase.load_model = load_model


def mark_graphs(config: Any, mark: Mapping[str, Any]) -> None:
    """Has vLLM's cache of compiled graphs tell this model from the same one without the mark."""
    config.additional_config.update(mark)


def check_tappable(config: Any) -> None:
    """Checks that a step's rows are those of its batch, in its order, and whole.

    Raises:
        SetupError: An option has it otherwise; names it.
    """
    parallel, passes = config.parallel_config, config.compilation_config.pass_config
    against = {
        "--enable-dbo": parallel.use_ubatching,
        "--decode-context-parallel-size": parallel.decode_context_parallel_size > 1,
        "--prefill-context-parallel-size": parallel.prefill_context_parallel_size > 1,
        "--kv-sharing-fast-prefill": config.cache_config.kv_sharing_fast_prefill,
        "--compilation-config pass_config.enable_sp": getattr(passes, "enable_sp", False),
    }
    for option, on in against.items():
        if on:
            raise SetupError(option, "has the model run on parts of a batch, which taps do not follow; drop it")


def step_room(config: Any) -> tuple[int, int]:
    """Most tokens of a step, and rows to keep for later: drafts, and tokens of steps scheduled ahead."""
    scheduler, speculation = config.scheduler_config, config.speculative_config
    drafts = 0 if speculation is None else speculation.num_speculative_tokens
    tokens = scheduler.max_num_batched_tokens
    return tokens, min(4 * (1 + drafts) * scheduler.max_num_seqs, 4 * tokens)


def blocks(config: Any, model: Any) -> list[Any]:
    """The blocks of a model; None for those on other pipeline stages.

    Raises:
        LookupError: They cannot be told.
    """
    from torch.nn import ModuleList
    from vllm.model_executor.models.utils import PPMissingLayer

    language = model.get_language_model() if hasattr(model, "get_language_model") else model
    depth = config.model_config.get_total_num_hidden_layers()
    lists = {name: part for name, part in language.named_modules() if isinstance(part, ModuleList)}
    found = [part for part in lists.values() if len(part) == depth]
    if len(found) != 1:
        raise LookupError(f"{len(found)} of {', '.join(lists)} are {depth} long, as the list of blocks should be")
    return [None if isinstance(block, PPMissingLayer) else block for block in found[0]]


def count_memory(worker: Any, size: int) -> None:
    """Has vLLM leave room for bytes that it did not allocate itself, where it measures its model's memory."""
    runner = worker.model_runner
    if hasattr(runner, "model_memory_usage"):
        runner.model_memory_usage += size


def attention_group(kv_cache_config: Any) -> tuple[int, int, str]:
    """Index, block size and a layer's name of the first cache group that keeps every token.

    Raises:
        LookupError: There is none.
    """
    from vllm.v1.kv_cache_interface import FullAttentionSpec, UniformTypeKVCacheSpecs

    for index, group in enumerate(kv_cache_config.kv_cache_groups):
        spec = group.kv_cache_spec
        one = next(iter(spec.kv_cache_specs.values())) if isinstance(spec, UniformTypeKVCacheSpecs) else spec
        if isinstance(one, FullAttentionSpec):
            return index, int(spec.block_size), group.layer_names[0]
    raise LookupError("no cache group of this model keeps every token; taps need one to tell tokens apart")


def note_attention() -> None:
    """Has ``step_slots`` know the slots of steps that replay a whole graph, for which there is no forward context.

    Connectors are told them by ``start_load_kv``; before vLLM 0.33 that comes when a drafter has written its own slots
    in their place.
    """
    from vllm.v1.worker.gpu.kv_connector import ActiveKVConnector

    inner = getattr(ActiveKVConnector.pre_forward, "__wrapped__", ActiveKVConnector.pre_forward)

    @wraps(inner)
    def pre_forward(self: Any, *arguments: Any, **named: Any) -> None:
        before = _ATTENTION.set(named.get("attn_metadata"))
        try:
            inner(self, *arguments, **named)
        finally:
            _ATTENTION.reset(before)

    ActiveKVConnector.pre_forward = pre_forward


def step_slots(layer: str) -> torch.Tensor | None:
    """Cache slots of the tokens of the step that is about to run, -1 for padding; None where they are not told.

    Args:
        layer: Name of a layer of the cache group.
    """
    from vllm.forward_context import get_forward_context, is_forward_context_available

    attention = _ATTENTION.get()
    if isinstance(attention, dict):
        slots: torch.Tensor | None = getattr(attention.get(layer), "slot_mapping", None)
        return slots
    told = get_forward_context().slot_mapping if is_forward_context_available() else None
    return told.get(layer) if isinstance(told, dict) else None


# -- requests ---------------------------------------------------------------------------------------------------------


def is_followed(request: Any) -> bool:
    """Whether a request is a plain generation from tokens by the model itself.

    Not followed are pooling, prompts of embeddings, inputs that go on arriving, and adapters: they are other models.
    """
    return bool(
        request.sampling_params is not None
        and request.prompt_token_ids is not None
        and request.prompt_embeds is None
        and request.lora_request is None
        and not request.resumable
    )


def begin(request: Any) -> Begin:
    """What the sidecar is told of a request; labels come from ``kv_transfer_params: {"affect": {...}}``."""
    # Callers write what they like, and others must not pay for it.
    told = _mapping(_mapping(request.kv_transfer_params).get("affect"))
    return Begin(
        request.request_id,
        len(request.prompt_token_ids),
        {str(name): str(value) for name, value in _mapping(told.get("labels")).items()},
        str(told.get("session_id") or request.session_id or ""),
        str(told.get("external_id") or _external_id(request.request_id)),
    )


def _mapping(told: Any) -> dict[Any, Any]:
    return told if isinstance(told, dict) else {}


def _external_id(request_id: str) -> str:
    """The id that the caller sees: without what vLLM adds for several answers to one request, and to be unique."""
    return _UNIQUE_SUFFIX.sub("", _SIBLING_PREFIX.sub("", request_id))


def tokens(request: Any) -> Sequence[int]:
    """A live view of a request's prompt and output."""
    view: Sequence[int] = request.all_token_ids
    return view


def end_reason(request: Any) -> int:
    """EndReason of the wire for a request that is over."""
    from vllm.v1.request import RequestStatus

    reasons: dict[Any, int] = {
        RequestStatus.FINISHED_STOPPED: ingest_pb2.END_REASON_STOP,
        RequestStatus.FINISHED_LENGTH_CAPPED: ingest_pb2.END_REASON_LENGTH,
    }
    return reasons.get(request.status, ingest_pb2.END_REASON_ABORTED)


def scheduled(output: Any, group: int) -> Iterator[Scheduled]:
    """The requests of a step."""
    counts = output.num_scheduled_tokens
    for new in output.scheduled_new_reqs:
        # Version 2 of the model runner gets resumed requests as new ones.
        yield Scheduled(new.req_id, new.block_ids[group], True, new.num_computed_tokens, counts[new.req_id])
    old = output.scheduled_cached_reqs
    for request_id, blocks, computed in zip(old.req_ids, old.new_block_ids, old.num_computed_tokens, strict=True):
        resumed = request_id in old.resumed_req_ids
        yield Scheduled(request_id, blocks[group] if blocks else (), resumed, computed, counts[request_id])


def runs(output: Any) -> bool:
    """Whether the model runs in a step."""
    return bool(output.total_num_scheduled_tokens > 0)
