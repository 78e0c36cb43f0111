"""Who writes texts when asked: a model in this process, or one behind an OpenAI-compatible address."""

from __future__ import annotations

import os
from http import HTTPStatus
from typing import Any, Protocol

import httpx
import stamina

from monitor.errors import SetupError

API_KEY = "AFFECT_WRITER_API_KEY"
"""Environment variable with the endpoint's key; none is sent where it is empty."""

_MAX_TOKENS = 300
_TEMPERATURE, _TOP_P = 0.7, 0.95
_TIMEOUT = 120.0
_ATTEMPTS = 4
_TOLD = 300
"""Characters shown of what a server says."""


class Writer(Protocol):
    """Writes texts."""

    def complete(self, prompt: str, seed: int) -> str:
        """One answer to a prompt; ``seed``, of 31 bits, picks it."""


class LocalWriter:
    """Asks a transformers model through its chat template; on one machine a seed always gives the same answer.

    Args:
        model: A causal language model in eval mode.
        tokenizer: Its tokenizer.

    Raises:
        SetupError: The tokenizer has no chat template.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        if not tokenizer.chat_template:
            raise SetupError("--model", "has no chat template, so that it cannot be asked; name an instruct model")
        self._model = model
        self._tokenizer = tokenizer

    def complete(self, prompt: str, seed: int) -> str:
        """One answer to a prompt; the random state of the process is left as it was."""
        import torch

        asked = self._tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        ).to(self._model.device)
        with torch.random.fork_rng(), torch.inference_mode():
            torch.manual_seed(seed)
            answer = self._model.generate(
                **asked, do_sample=True, temperature=_TEMPERATURE, top_p=_TOP_P, top_k=0, max_new_tokens=_MAX_TOKENS
            )
        return str(self._tokenizer.decode(answer[0, asked["input_ids"].shape[1] :], skip_special_tokens=True))


class EndpointWriter:
    """Asks an OpenAI-compatible server; what a seed means is the server's affair.

    Args:
        base_url: Address of the server, with or without ``/v1``.
        model: What the server calls its model.

    Raises:
        SetupError: The address is none.
    """

    def __init__(self, base_url: str, model: str) -> None:
        self._url = _completions(base_url)
        self._model = model
        key = os.environ.get(API_KEY, "").strip()
        self._http = httpx.Client(timeout=_TIMEOUT, headers={"Authorization": f"Bearer {key}"} if key else {})

    def complete(self, prompt: str, seed: int) -> str:
        """One answer to a prompt; empty where the server gives none.

        Raises:
            SetupError: The server cannot be reached, refuses, or answers something else; says what it said.
        """
        body = {
            "model": self._model, "messages": [{"role": "user", "content": prompt}], "seed": seed,
            "temperature": _TEMPERATURE, "top_p": _TOP_P, "max_tokens": _MAX_TOKENS,
        }  # fmt: skip
        response = self._post(body)
        try:
            content = response.json()["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError):
            said = response.text[:_TOLD]
            raise SetupError(
                "--endpoint", f"{self._url} answers no chat completion but {said!r}; name another"
            ) from None
        return content if isinstance(content, str) else ""

    def _post(self, body: dict[str, Any]) -> httpx.Response:
        try:
            # As a block: the decorator's log would hold the arguments.
            for attempt in stamina.retry_context(on=_passes, attempts=_ATTEMPTS, timeout=None):
                with attempt:
                    response = self._http.post(self._url, json=body).raise_for_status()
        except httpx.HTTPStatusError as error:
            said = f"{error.response.status_code}: {error.response.text[:_TOLD]}"
            fix = f"correct the model's name or the address, or set {API_KEY}"
            raise SetupError("--endpoint", f"{self._url} answers {said}; {fix}") from None
        except httpx.TransportError as error:
            fix = "start the server or correct the address"
            raise SetupError("--endpoint", f"{self._url} cannot be reached ({error}); {fix}") from None
        return response


def _passes(error: Exception) -> bool:
    """Whether a fault is of the kind that passes by itself."""
    if isinstance(error, httpx.HTTPStatusError):
        status = error.response.status_code
        return status == HTTPStatus.TOO_MANY_REQUESTS or status >= HTTPStatus.INTERNAL_SERVER_ERROR
    return isinstance(error, httpx.TransportError)


def _completions(base_url: str) -> str:
    fix = "give one like http://127.0.0.1:8000/v1"
    try:
        parsed = httpx.URL(base_url)
    except httpx.InvalidURL as error:
        raise SetupError("--endpoint", f"{base_url!r} is no http address ({error}); {fix}") from None
    if parsed.scheme not in {"http", "https"} or not parsed.host:
        raise SetupError("--endpoint", f"{base_url!r} is no http address; {fix}")
    return base_url.rstrip("/").removesuffix("/v1") + "/v1/chat/completions"
