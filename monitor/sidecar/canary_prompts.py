"""Canary prompts: fixed exchanges, put to the inference server to see whether what answers is still the same."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from monitor.errors import SetupError
from monitor.policy.schema import PolicyFile
from monitor.sidecar.limits import MAX_LABELS

SHIPPED = Path(__file__).with_name("canaries.jsonl")
TOKEN_LABEL, ID_LABEL = "affect_canary", "affect_canary_id"
"""Labels of a canary's request: proof that the sidecar sent it, which no user knows, and which prompt it is."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class CanaryMessage(_Part):
    """One message of a prompt."""

    role: Literal["system", "user", "assistant"]
    content: str = Field(min_length=1)


class CanaryPrompt(_Part):
    """One prompt."""

    id: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")
    messages: tuple[CanaryMessage, ...] = Field(min_length=1, description="The conversation; the user speaks last.")
    max_tokens: int = Field(default=48, ge=1, description="Tokens to generate.")
    labels: dict[str, str] = Field(
        default_factory=dict, max_length=MAX_LABELS - 2, description="What the policy routes by."
    )

    def body(self, model: str, token: str) -> dict[str, Any]:
        """The prompt as the body of ``POST /v1/chat/completions``: always the likeliest token, nothing from a cache."""
        labels = {**self.labels, TOKEN_LABEL: token, ID_LABEL: self.id}
        return {
            "model": model,
            "messages": [message.model_dump() for message in self.messages],
            "max_tokens": self.max_tokens,
            "temperature": 0,
            "metadata": labels,
            # vLLM hands no metadata on to its engine.
            "kv_transfer_params": {"affect": {"labels": labels}},
            # vLLM: a prompt that was seen before would be taken from the prefix cache, and its rows would not come.
            "cache_salt": secrets.token_hex(8),
        }


def read_prompts(file: Path) -> tuple[CanaryPrompt, ...]:
    """Reads prompts, JSON Lines.

    Raises:
        SetupError: The file cannot be read, or a line is no prompt; names line and field.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SetupError("canary_file", f"{file} cannot be read ({error}); name a JSON Lines file of prompts") from None
    prompts: dict[str, CanaryPrompt] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        prompt = _parse(f"canary_file:{number}", line)
        if prompt.id in prompts:
            raise SetupError(f"canary_file:{number}:id", f"{prompt.id!r} is taken by an earlier line; choose another")
        prompts[prompt.id] = prompt
    return tuple(prompts.values())


def fingerprint(prompts: Sequence[CanaryPrompt], policies: PolicyFile) -> str:
    """SHA-256 of prompts and of the stance each is assessed under: scores of one fingerprint can be compared."""
    told = [[prompt.model_dump(), policies.route(prompt.labels).stance.value] for prompt in prompts]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _parse(place: str, line: str) -> CanaryPrompt:
    try:
        return CanaryPrompt.model_validate_json(line)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ":".join([place, ".".join(map(str, first["loc"]))]).rstrip(":")
        raise SetupError(field, f"{first['msg']}; see CanaryPrompt in monitor/sidecar/canary_prompts.py") from None
