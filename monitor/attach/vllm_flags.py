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
_ONE_EACH = (
    ("--decode-context-parallel-size", "-dcp"),
    ("--prefill-context-parallel-size", "-pcp"),
    ("--ubatch-size",),
)
_ALONE = ("--enable-dbo", "--kv-sharing-fast-prefill")
"""Options with which the model runs on parts of a request or of a batch; so do larger numbers for ``_ONE_EACH``."""
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
    notes = []
    if given.unread_file is not None:
        notes.append(f"--config {given.unread_file} is not here: what it asks of vLLM was not checked")
    if model is None:
        named = f"the model {given.model}" if given.model else "the model"
        notes.append(f"{named} is not here: its depth and kind were not checked")
    _check_layers(layers, model)
    _check_environment(environment or {}, given)
    _check_whole(given)
    notes += _check_pipeline(given, capture, model)
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


def _check_whole(given: Arguments) -> None:
    """Refuses what takes a step's rows apart."""
    for names in _ONE_EACH:
        if given.count(*names) > 1:
            raise SetupError(names[0], "has the model run on parts, which capture does not put together; drop it")
    for name in _ALONE:
        if name in given.names:
            raise SetupError(name, "has the model run on parts, which capture does not put together; drop it")


def _check_pipeline(given: Arguments, capture: Capture, model: ServedModel | None) -> list[str]:
    name = "--pipeline-parallel-size"
    if given.count(name, "-pp") == 1:
        return []
    if capture is Capture.TAP:
        return [f"{name}: the tap sees one stage, and nothing is captured where the layers lie on several"]
    if model is not None and not _RELAYING & set(model.architectures):
        raise SetupError(
            name,
            f"vLLM's {' '.join(model.architectures)} does not hand hidden states on to the last stage, as "
            f"{', '.join(sorted(_RELAYING))} do; use tensor parallelism",
        )
    return []


def _check_cache(given: Arguments, model: ServedModel | None) -> None:
    """Refuses what extraction of hidden states does not go with."""
    tap = "--capture tap leaves that place to you"
    taken = f"mode cache takes the place of speculative decoding; {tap}, or drop it"
    for name in sorted(given.names):
        if name.startswith(("--spec-", f"{_SPECULATIVE}.", "-sc.")):
            raise SetupError(name, taken)
    mine = given.table(_SPECULATIVE, "-sc") or {}
    if mine and mine.get("method") != _METHOD:
        raise SetupError(_SPECULATIVE, taken)
    if "--watermark-config" in given.names:
        raise SetupError(
            "--watermark-config", f"vLLM marks no texts while it extracts hidden states; {tap}, or drop it"
        )
    if model is None:
        return
    if model.speculates:
        raise SetupError("model", f"{model.folder} brings a draft of its own, and mode cache takes its place; {tap}")
    if model.is_latent:
        raise SetupError(
            "model", "vLLM's extraction does not support multi-head latent attention, as this has it; use --capture tap"
        )
    _check_precision(given, model)


def _check_precision(given: Arguments, model: ServedModel) -> None:
    """Quantised caches leave hidden states alone; an unquantised one of another precision than the model's does not."""
    alias = {"half": "float16", "float": "float32", "auto": None, None: None}
    asked, cached = given.get("--dtype"), given.get("--kv-cache-dtype")
    served = alias.get(asked, asked) or model.dtype
    if cached in {"float16", "bfloat16"} and served not in {cached, None}:
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
    if capture is Capture.CACHE:
        raise SetupError(
            _TRANSFER,
            "another connector would carry the cached hidden states along, and bring tokens whose rows are not there; "
            f"use --capture tap, which shares the place with it in a {_MULTI}",
        )
    several = theirs if theirs.get("kv_connector") == _MULTI else _one_of_several(theirs)
    extra = several.get(_EXTRA) or {}
    parts = extra.get("connectors") or []
    present: dict[str, Any] = next((part for part in parts if part.get("kv_connector") == CONNECTOR), {})
    others = [part for part in parts if part.get("kv_connector") != CONNECTOR]
    return {**several, _EXTRA: {**extra, "connectors": [*others, _renewed(present, ours)]}}


def _one_of_several(theirs: dict[str, Any]) -> dict[str, Any]:
    """A connector as the only part of several. What vLLM reads of the whole, it finds there."""
    part = {key: value for key, value in theirs.items() if key != "engine_id"}  # which vLLM refuses on parts
    whole = {key: value for key, value in theirs.items() if key != "kv_connector_module_path"}
    return {**whole, "kv_connector": _MULTI, _EXTRA: {"connectors": [part]}}


def _renewed(present: dict[str, Any], ours: dict[str, Any]) -> dict[str, Any]:
    """Our connector as the arguments have it, with what is set now; other settings of it stay."""
    kept = {key: value for key, value in (present.get(_EXTRA) or {}).items() if key not in _OF_TAP}
    return {**present, **ours, _EXTRA: {**kept, **ours[_EXTRA]}}
