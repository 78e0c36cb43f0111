"""Who a model is, read from its files: for engines that keep weights in a form of their own."""

from __future__ import annotations

import hashlib
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from monitor.capture.identity import add_weight

_EMBEDDINGS, _HEAD = "model.embed_tokens.weight", "lm_head.weight"


def checkpoint_fingerprint(folder: Path, dtype: torch.dtype) -> str:
    """What ``weights_fingerprint`` gives for the model of a folder, loaded by transformers in some precision.

    Holds where the files name weights as the model does, as those of Llama, Qwen, Mistral, Gemma and their like do;
    elsewhere it is another hash, and the sidecar says so.

    Args:
        folder: Folder with ``*.safetensors``.
        dtype: Precision the model is served in.

    Raises:
        FileNotFoundError: The folder holds no such files.
    """
    with ExitStack() as opened:
        places = _places(folder, opened)
        if _HEAD not in places and _EMBEDDINGS in places:
            # One matrix under two names; files keep the first.
            places[_HEAD] = _EMBEDDINGS, places[_EMBEDDINGS][1]
        digest = hashlib.sha256()
        for name, (stored, file) in sorted(places.items()):
            weight = file.get_tensor(stored)
            add_weight(digest, name, weight.to(dtype) if weight.is_floating_point() else weight)
        return digest.hexdigest()


def local_folder(model: str, revision: str | None) -> Path:
    """The folder a served model lies in, here; a name of the hub is looked up in its cache.

    Raises:
        OSError: It is not on this machine.
    """
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(model, revision=revision, local_files_only=True))


def _places(folder: Path, opened: ExitStack) -> dict[str, tuple[str, Any]]:
    """Where each weight lies: its name in an open file."""
    from safetensors import safe_open

    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"{folder} holds no *.safetensors")
    handles = [opened.enter_context(safe_open(file, framework="pt")) for file in files]
    return {name: (name, handle) for handle in handles for name in handle.keys()}  # noqa: SIM118 - no mapping
