"""``affect-monitor chat``: serves a transformers model to OpenAI's clients, with capture on."""

from __future__ import annotations

import os
import signal
import socket
import threading
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from monitor.errors import SetupError
from monitor.terminal import chosen_layers, client_tls, load_model, need

if TYPE_CHECKING:
    from collections.abc import Sequence

chat_app = typer.Typer(help="Serve a model without vLLM, with capture on.", no_args_is_help=True)


@chat_app.command("serve")
def chat_serve(
    model: Annotated[str, typer.Option(help="Folder of a transformers model; demo: the demo assistant.")],
    bank: Annotated[
        str | None, typer.Option(help="The sidecar's bank, for its layers and the model's name; a folder or a name.")
    ] = None,
    layers: Annotated[str, typer.Option(help="Layers to capture, as in 16,20; default: the bank's.")] = "",
    sidecar: Annotated[str, typer.Option(help="The sidecar's ingest address.")] = "unix:///run/affect/ingest.sock",
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0: a free one.")] = 8000,
    name: Annotated[str, typer.Option(help="What clients call the model; default: as the bank, else the folder.")] = "",
    cap: Annotated[
        Path | None, typer.Option(help="Keeps a family down while the model replies: steering file of evaluate.")
    ] = None,
    cap_family: Annotated[str, typer.Option(help="Family to keep down.")] = "warmth",
    cap_at: Annotated[str, typer.Option(help="Its ceiling, a quantile of the reference.")] = "0.99",
    tls_ca: Annotated[
        Path | None, typer.Option(envvar="AFFECT_TLS_CA", help="Certificates that sign the sidecar's, PEM.")
    ] = None,
    tls_cert: Annotated[
        Path | None, typer.Option(envvar="AFFECT_TLS_CERT", help="Certificate to show to the sidecar.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(envvar="AFFECT_TLS_KEY", help="Its private key.")] = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="More log.")] = False,
) -> None:
    """Serve /v1/chat/completions, one request at a time, and send hidden states to a sidecar; SIGTERM ends it."""
    need("transformers", "demo")
    chosen, loaded = chosen_layers(layers, bank)
    tls = client_tls(tls_ca, tls_cert, tls_key)
    from monitor.calibration.identity import check_shape
    from monitor.capture.cap import Chosen
    from monitor.capture.client import SidecarClient
    from monitor.capture.identity import hello_of
    from monitor.chat.run import captured_chat
    from monitor.logs import configure_logs

    configure_logs(verbose=verbose)
    network, tokenizer = load_model(model)
    if loaded is not None:
        check_shape(loaded, network)
    _check(network, tokenizer, model, chosen)
    called = name or (Path(network.name_or_path).resolve().name if loaded is None else loaded.card.model.name)
    capped = None if cap is None else Chosen(cap, cap_family, cap_at)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    hello = hello_of(network, tokenizer, called, chosen, f"{socket.gethostname()}:{os.getpid()}")
    with (
        closing(SidecarClient(sidecar, hello, tls=tls)) as client,
        captured_chat(
            network, tokenizer, called, chosen, client, host=host, port=port, flag="--port", capped=capped
        ) as server,
    ):
        held = "" if capped is None else f"; {cap_family} is kept below {cap_at} of the reference"
        layered = ", ".join(map(str, chosen))
        print(f"serving {called} on {server.url}; layers {layered} go to {sidecar}{held}", flush=True)
        stop.wait()


def _check(network: Any, tokenizer: Any, model: str, layers: Sequence[int]) -> None:
    """Asks for what can be served and captured."""
    from monitor.capture.passes import decoder_blocks

    depth = len(decoder_blocks(network))
    if not all(0 <= layer <= depth for layer in layers):
        raise SetupError("--layers", f"{list(layers)} must lie within 0..{depth}, the blocks of this model")
    if not tokenizer.chat_template:
        raise SetupError("--model", f"{model} has no chat template; name a model that was made to chat")
