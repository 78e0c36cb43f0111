"""The options that make SGLang send hidden states, and what they do not go with.

Their names are those of SGLang 0.5.23, held against its files by a test; no such server has run with them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from monitor.attach.arguments import Arguments
from monitor.attach.vllm_flags import PLUGIN
from monitor.errors import SetupError

_ALGORITHM = "--speculative-algorithm"
_LAYERS = "--return-aux-hidden-state-layer-ids"
_RETURN = "--enable-return-aux-hidden-states"
_ADAPTERS = "adapters make another model of the bank's, and are not captured; drop it"
_SPECULATIVE = "SGLang captures in the place of speculative decoding; drop it"
_ALONE = {
    _ALGORITHM: _SPECULATIVE,
    "--speculative-draft-model-path": _SPECULATIVE,
    "--enable-pdmux": "is not captured; drop it",
    "--disaggregation-mode": "prefill and decode servers of their own are not captured; serve both in one",
    "--dllm-algorithm": "a diffusion model writes no token at a time, and is not captured; drop it",
    "--enable-lora": _ADAPTERS,
    "--lora-paths": _ADAPTERS,
}
_STAGES = ("--pp-size", "--pipeline-parallel-size")
NAMES = (_RETURN, _LAYERS, *_ALONE, *_STAGES)
"""Options of SGLang that are written or looked for."""


def with_sglang_capture(
    arguments: Sequence[str], layers: Sequence[int], environment: Mapping[str, str] | None = None
) -> list[str]:
    """Adds capture to the arguments of ``sglang.launch_server``.

    Args:
        arguments: The user's own.
        layers: Layers to capture, ascending.
        environment: Environment variables SGLang will run with.

    Raises:
        SetupError: Something the user asks of SGLang does not go with capture; says what to do instead.
    """
    given = Arguments(arguments)
    for name in sorted(given.names - {""}):
        # SGLang takes the beginning of an option for all of it.
        whole = next((each for each in _ALONE if each.startswith(name)), "")
        if whole and (whole, given.get(name)) != ("--disaggregation-mode", "null"):
            raise SetupError(name, _ALONE[whole])
    if given.count(*_STAGES) > 1:
        raise SetupError(_STAGES[0], "SGLang captures no pipeline stages; use tensor parallelism")
    if not layers or layers[0] < 1:
        raise SetupError("--layers", f"{list(layers)}: SGLang captures from layer 1 on; take a bank of such layers")
    plugins = (environment or {}).get("SGLANG_PLUGINS")
    if plugins is not None and PLUGIN not in plugins.split(","):
        told = ",".join(filter(None, (plugins, PLUGIN)))
        raise SetupError("SGLANG_PLUGINS", f"leaves the plugin of capture out; set SGLANG_PLUGINS={told}")
    # SGLang counts the block whose output it keeps, a bank the blocks that were passed.
    ids = [str(layer - 1) for layer in layers]
    return [*arguments, _RETURN, _ALGORITHM, "EAGLE3", _LAYERS, *ids]
