"""What a served model's ``config.json`` says, as far as capture cares."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monitor.errors import SetupError

CONFIG = "config.json"


@dataclass(frozen=True)
class ServedModel:
    """A model on this machine.

    Attributes:
        folder: Where it lies.
        architectures: Classes that its config names.
        hidden_size: Length of a row; None where the config does not say.
        depth: Blocks; None where the config does not say.
        dtype: Precision of its weights, as in ``bfloat16``.
        is_latent: Whether its attention caches latents (multi-head latent attention).
        speculates: Whether it brings a draft model that vLLM speculates with unasked.
    """

    folder: Path
    architectures: tuple[str, ...]
    hidden_size: int | None
    depth: int | None
    dtype: str | None
    is_latent: bool
    speculates: bool


def find_model(name: str, revision: str | None = None) -> ServedModel | None:
    """Finds a model in a folder or in the cache of the hub; nothing is fetched.

    Returns:
        The model; None where it is not on this machine.

    Raises:
        SetupError: It is here, and its config cannot be read.
    """
    from monitor.capture.checkpoint import local_folder

    try:
        folder = local_folder(name, revision)
    # ValueError: a path that is no folder here, and no name of the hub either.
    except (ImportError, OSError, ValueError):
        return None
    return _read(folder) if (folder / CONFIG).is_file() else None


def _read(folder: Path) -> ServedModel:
    try:
        config = json.loads((folder / CONFIG).read_bytes())
        # Models that see or hear keep what concerns their language model in a part of its own.
        text: dict[str, Any] = config.get("text_config") or config
        dtype = next((part[key] for part in (text, config) for key in ("dtype", "torch_dtype") if part.get(key)), None)
        return ServedModel(
            folder,
            tuple(config.get("architectures") or ()),
            text.get("hidden_size"),
            text.get("num_hidden_layers"),
            dtype,
            text.get("kv_lora_rank") is not None,
            "speculators_config" in config,
        )
    except (OSError, ValueError, AttributeError) as error:
        raise SetupError(str(folder / CONFIG), f"cannot be read ({error}); name a model whose config can") from None
