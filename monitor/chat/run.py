"""Runs the chat server around a model, with capture on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from monitor.capture.cap import Chosen, cap
from monitor.capture.client import SidecarClient
from monitor.capture.transformers import TransformersTap
from monitor.chat.server import ChatServer
from monitor.outputs.http import RunningServer, serve_in_thread


@contextmanager
def captured_chat(
    model: Any,
    tokenizer: Any,
    name: str,
    layers: Sequence[int],
    client: SidecarClient,
    *,
    host: str,
    port: int,
    flag: str,
    capped: Chosen | None = None,
) -> Iterator[RunningServer]:
    """Serves until the block is left, whether the sidecar is there or not.

    Args:
        model: A causal language model of transformers, in eval mode.
        tokenizer: Its tokenizer, with a chat template.
        name: What clients call it.
        layers: Layers to capture, those of the client's hello.
        client: Where hidden states go.
        host: Address to listen on.
        port: Port to listen on; 0: a free one.
        flag: What the user changes to get another port, for the error.
        capped: Cap on the model; None: it says what it says.

    Raises:
        SteeringError: There is no such cap, or no safe one.
        ModelMismatchError: The cap is another model's.
        SetupError: The address cannot be listened on.
        ValueError: The model has no such layers.
    """
    with ExitStack() as stack:
        tap = TransformersTap(model, client, layers)
        stack.callback(tap.close)
        if capped is not None:
            stack.enter_context(cap(model, *capped, tap=tap))
        chat = ChatServer(model, tokenizer, name, tap)
        # What is being generated must not outlive the hooks.
        stack.callback(chat.wait_idle)
        server = serve_in_thread(chat.app, host, port, flag=flag)
        stack.callback(server.stop)
        yield server
