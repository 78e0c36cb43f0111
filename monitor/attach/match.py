"""Whether a bank is for the model that is to be served, as far as the model's files tell at once.

The weights are left out: their hash takes minutes, and the sidecar asks for it when the engine connects.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from monitor.attach.arguments import Arguments
from monitor.attach.model import ServedModel
from monitor.errors import SetupError

if TYPE_CHECKING:
    from monitor.probes.bank import ModelCard

_PRECISIONS = {"half": "float16", "float": "float32"}
_REFUSED = "the sidecar refuses it, or marks it as unvalidated"


def check_bank(card: ModelCard, model: ServedModel, given: Arguments) -> list[str]:
    """Compares the model a bank was calibrated on with the one that is to be served.

    Args:
        card: The bank's model.
        model: The model to be served.
        given: Arguments of ``vllm serve``.

    Returns:
        Differences that the sidecar may be told to bear, a sentence each.

    Raises:
        SetupError: The bank cannot score this model.
    """
    for what, has, wants in (
        ("hidden size", model.hidden_size, card.hidden_size),
        ("number of blocks", model.depth, card.depth),
    ):
        if has not in {wants, None}:
            raise SetupError(
                "--bank",
                f"is of {card.name}, {what} {wants}, and {model.folder} has {has}; name the bank of this model",
            )
    return [*_precision(model, given), *_tokens(card, model, given)]


def _precision(model: ServedModel, given: Arguments) -> list[str]:
    notes = []
    asked = given.get("--dtype") or "auto"
    # vLLM serves no model in float32 unasked.
    served = _PRECISIONS.get(asked, asked) if asked != "auto" else {"float32": "16 bits"}.get(str(model.dtype))
    if None not in {served, model.dtype} and served != model.dtype:
        notes.append(
            f"the weights are {model.dtype} and will be served in {served}: not the bank's model, {_REFUSED}; "
            f"--dtype {model.dtype} serves them as they are"
        )
    if given.get("--quantization", "-q"):
        notes.append("--quantization makes another model of the bank's, unseen by the sidecar: validate the bank anew")
    return notes


def _tokens(card: ModelCard, model: ServedModel, given: Arguments) -> list[str]:
    """What changes the tokens of a turn, or whose they are taken to be."""
    from monitor.capture.identity import template_hash, tokenizer_hash

    told = [
        f"{name} is not checked against the bank, which knows tokens and roles by the model's own"
        for name in ("--tokenizer", "--chat-template")
        if given.get(name)
    ]
    tokenizer, template = _tokenizer(model.folder), _template(model.folder)
    if tokenizer is not None and tokenizer_hash(tokenizer) != card.tokenizer_hash:
        told.append(f"{model.folder} has another tokenizer than the bank's model: {_REFUSED}")
    if template is not None and template_hash(SimpleNamespace(chat_template=template)) != card.template_hash:
        told.append(f"{model.folder} has another chat template than the bank's model: {_REFUSED}")
    return told


def _tokenizer(folder: Path) -> Any:
    """The tokenizer, where it is in a file that loads in no time."""
    with suppress(ImportError):
        from tokenizers import Tokenizer

        if (folder / "tokenizer.json").is_file():
            return Tokenizer.from_file(str(folder / "tokenizer.json"))
    return None


def _template(folder: Path) -> str | None:
    """The chat template, where there is a single one."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text()
    with suppress(OSError, ValueError):
        template = json.loads((folder / "tokenizer_config.json").read_bytes()).get("chat_template")
        return template if isinstance(template, str) else None
    return None
