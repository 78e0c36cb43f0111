"""The options that make vLLM send hidden states, and what they do not go with.

Mode ``cache`` has vLLM keep the wanted layers in a cache beside the KV cache (``extract_hidden_states``), which takes
the place of speculative decoding. Mode ``tap`` takes rows from the running model and leaves that place free; rows of
tokens served from the prefix cache never come. Checked against the sources of vLLM 0.31 to 0.33.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from monitor.attach import Capture
from monitor.attach.arguments import Arguments
from monitor.attach.model import ServedModel
from monitor.capture.vllm import CONNECTOR
from monitor.errors import SetupError

PLUGIN = "affect_monitor"
"""Name of the plugin among vLLM's."""

_METHOD = "extract_hidden_states"
_SPECULATIVE, _TRANSFER = "--speculative-config", "--kv-transfer-config"
_EXTRA = "kv_connector_extra_config"
_MULTI = "MultiConnector"
_OF_TAP = ("affect_capture", "layers")

_RELAYING = {"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"}
"""Models whose pipeline stages hand hidden states on to the last one."""
_NO_SPECULATION = {
    "--enable-dbo": "overlaps two batches, which vLLM does not do while it extracts hidden states",
    "--watermark-config": "marks texts, which vLLM does not do while it extracts hidden states",
}
_ALLOCATOR = "PYTORCH_CUDA_ALLOC_CONF"


class Attached(NamedTuple):
    """Arguments of vLLM that make it send hidden states."""

    arguments: list[str]
    notes: list[str]
    """What could not be checked, and what to know."""


def with_capture(
    arguments: Sequence[str],
    layers: Sequence[int],
    settings: Mapping[str, Any],
    capture: Capture = Capture.CACHE,
    model: ServedModel | None = None,
    environment: Mapping[str, str] | None = None,
) -> Attached:
    """Adds capture to the arguments of ``vllm serve``; on arguments that have it already, it is set anew.

    Args:
        arguments: The user's own, the model among them.
        layers: Layers to capture, ascending.
        settings: Settings of the connector: ``sidecar`` (its ingest address), for TCP ``tls_ca``, ``tls_cert`` and
            ``tls_key``. Further ones that the arguments have for it already stay.
        capture: Where rows are taken from.
        model: The model, where it is on this machine; else what depends on it is left to vLLM, and noted.
        environment: Environment variables vLLM will run with.

    Raises:
        SetupError: Something the user asks of vLLM does not go with capture; says what to do instead.
    """
    given = Arguments(arguments)
    notes = [f"--config {given.unread_file} is not here: what it asks of vLLM was not checked"] * bool(
        given.unread_file
    )
    if model is None:
        notes.append(f"the model {given.model or ''} is not here: its depth and kind were not checked")
    _check_layers(layers, model)
    _check_environment(environment or {}, given)
    _check_parallel(given, capture, model)
    if "--kv-sharing-fast-prefill" in given.names:
        raise SetupError(
            "--kv-sharing-fast-prefill", "leaves out layers of prompts, whose rows are then wrong; drop it"
        )
    added = [_TRANSFER, _json(_transfer(given, _connector(layers, settings, capture), capture))]
    if capture is Capture.CACHE:
        _check_cache(given, model)
        added = [_SPECULATIVE, _json(_speculative(given, layers)), *added]
        replaced = [_TRANSFER, _SPECULATIVE, "-sc"]
    else:
        replaced = [_TRANSFER]
    return Attached([*given.without(*replaced), *added], notes)


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


def _check_layers(layers: Sequence[int], model: ServedModel | None) -> None:
    deepest = None if model is None else model.depth
    if not layers or list(layers) != sorted(set(layers)) or layers[0] < 0:
        raise SetupError("--layers", f"{list(layers)}: name layers in ascending order, from 0 (the embeddings)")
    if deepest is not None and layers[-1] > deepest:
        raise SetupError("--layers", f"{layers[-1]} lies beyond the model's {deepest} blocks; name layers up to these")


def _check_environment(environment: Mapping[str, str], given: Arguments) -> None:
    plugins = environment.get("VLLM_PLUGINS")
    if plugins is not None and PLUGIN not in plugins.split(","):
        told = ",".join(filter(None, (plugins, PLUGIN)))
        raise SetupError("VLLM_PLUGINS", f"leaves the plugin of capture out; set VLLM_PLUGINS={told}")
    moves = "expandable_segments:True" in environment.get(_ALLOCATOR, "")
    if moves and not {"--enable-sleep-mode", "--enable-cumem-allocator"} & given.names:
        raise SetupError(
            _ALLOCATOR, "vLLM has no KV connector with expandable_segments:True; unset it, or --enable-cumem-allocator"
        )


def _check_parallel(given: Arguments, capture: Capture, model: ServedModel | None) -> None:
    for name, short in (("--decode-context-parallel-size", "-dcp"), ("--prefill-context-parallel-size", "-pcp")):
        if given.count(name, short) > 1:
            raise SetupError(name, "spreads the tokens of a request over ranks, which capture does not follow; drop it")
    name = "--pipeline-parallel-size"
    if given.count(name, "-pp") == 1:
        return
    if capture is Capture.TAP:
        raise SetupError(name, "spreads layers over stages, and the tap sits in one; use tensor parallelism")
    if model is not None and not _RELAYING & set(model.architectures):
        raise SetupError(
            name,
            f"vLLM's {' '.join(model.architectures)} does not hand hidden states on to the last stage, as "
            f"{', '.join(sorted(_RELAYING))} do; use tensor parallelism",
        )


def _check_cache(given: Arguments, model: ServedModel | None) -> None:
    """Refuses what extraction of hidden states does not go with."""
    tap = "--capture tap leaves speculation to you"
    mine = given.table(_SPECULATIVE, "-sc") or {}
    if mine and mine.get("method") != _METHOD:
        raise SetupError(_SPECULATIVE, f"mode cache takes the place of speculative decoding; {tap}, or drop it")
    for name in sorted(given.names):
        if name.startswith("--spec-"):
            raise SetupError(name, f"mode cache takes the place of speculative decoding; {tap}, or drop it")
        if name in _NO_SPECULATION:
            raise SetupError(name, f"{_NO_SPECULATION[name]}; {tap}, or drop it")
    if model is None:
        return
    if model.speculates:
        raise SetupError("model", f"{model.folder} brings its own draft, and mode cache takes its place; {tap}")
    if model.is_latent:
        raise SetupError(
            "model", "vLLM extracts no hidden states beside multi-head latent attention; use --capture tap"
        )
    _check_precision(given, model)


def _check_precision(given: Arguments, model: ServedModel) -> None:
    """Quantised caches leave hidden states alone; an unquantised one of another precision than the model's does not."""
    alias = {"half": "float16", "float": "float32", "auto": None, None: None}
    asked, cached = given.get("--dtype"), given.get("--kv-cache-dtype")
    served = alias.get(asked, asked) or model.dtype
    if cached in {"float16", "bfloat16"} and served != cached:
        raise SetupError(
            "--kv-cache-dtype", f"{cached} holds no rows of a model in {served}; drop it, or --dtype {cached}"
        )


def _speculative(given: Arguments, layers: Sequence[int]) -> dict[str, Any]:
    mine = given.table(_SPECULATIVE, "-sc") or {}
    draft = {"hf_config": {"eagle_aux_hidden_state_layer_ids": list(layers)}}
    return {**mine, "method": _METHOD, "num_speculative_tokens": 1, "draft_model_config": draft}


def _connector(layers: Sequence[int], settings: Mapping[str, Any], capture: Capture) -> dict[str, Any]:
    of_tap = dict(zip(_OF_TAP, (capture.value, list(layers)), strict=True)) if capture is Capture.TAP else {}
    return {"kv_connector": CONNECTOR, "kv_role": "kv_producer", _EXTRA: {**settings, **of_tap}}


def _transfer(given: Arguments, ours: dict[str, Any], capture: Capture) -> dict[str, Any]:
    """The KV connectors: ours, alone or beside the user's."""
    if "--kv-offloading-size" in given.names:
        raise SetupError(
            "--kv-offloading-size",
            "puts its own connector in the place of every other; with --capture tap, name that connector by "
            f"{_TRANSFER} instead (OffloadingConnector), and it shares the place",
        )
    theirs = given.table(_TRANSFER)
    if theirs is None:
        return ours
    if theirs.get("kv_connector") == CONNECTOR:
        return _renewed(theirs, ours)
    extra = theirs.get(_EXTRA) or {}
    if theirs.get("kv_connector") == _MULTI:
        several, children = theirs, list(extra.get("connectors") or [])
    else:
        # What vLLM reads of the whole stays with the whole; it refuses an engine_id on a part.
        several = {**theirs, "kv_connector": _MULTI}
        several.pop("kv_connector_module_path", None)
        extra, children = {}, [{key: value for key, value in theirs.items() if key != "engine_id"}]
    if capture is Capture.CACHE:
        raise SetupError(
            _TRANSFER,
            "another connector would carry the cached hidden states along, and bring tokens whose rows are not there; "
            f"use --capture tap, which shares the place with it in a {_MULTI}",
        )
    kept = [child for child in children if child.get("kv_connector") != CONNECTOR]
    mine = [_renewed(child, ours) for child in children if child.get("kv_connector") == CONNECTOR] or [ours]
    return {**several, _EXTRA: {**extra, "connectors": [*kept, *mine]}}


def _renewed(present: dict[str, Any], ours: dict[str, Any]) -> dict[str, Any]:
    """Our connector as the arguments have it, with what is set now; other settings of it stay."""
    kept = {key: value for key, value in (present.get(_EXTRA) or {}).items() if key not in _OF_TAP}
    return {**present, **ours, _EXTRA: {**kept, **ours[_EXTRA]}}
