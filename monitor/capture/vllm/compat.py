"""Everything of vLLM that may change under us, in one place.

Known versions are those whose sources the contract tests were run against; on others nothing is captured.
"""

from __future__ import annotations

import logging
import re
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
from monitor.capture.vllm import SUPPORTED
from monitor.capture.vllm.ledger import Scheduled
from monitor.capture.vllm.plan import Begin
from monitor.wire.v1 import ingest_pb2

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import torch

__all__ = ["KVConnectorBase_V1", "KVConnectorMetadata", "KVConnectorRole", "SupportsHMA"]

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
    """A setting of ours among those of the connector."""
    return config.kv_transfer_config.get_from_extra_config(key, default)


def layers(config: Any) -> list[int]:
    """Layers that vLLM keeps, ascending; the model puts them in this order whatever the order of the flag."""
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
    told = (request.kv_transfer_params or {}).get("affect") or {}
    return Begin(
        request.request_id,
        len(request.prompt_token_ids),
        {str(name): str(value) for name, value in dict(told.get("labels") or {}).items()},
        str(told.get("session_id") or request.session_id or ""),
        str(told.get("external_id") or _external_id(request.request_id)),
    )


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
