"""``affect-monitor attach`` and ``detach``: the sidecar into workloads of Kubernetes, and out of them again."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from monitor import __version__
from monitor.attach import Capture
from monitor.attach.engine import Engine
from monitor.attach.pod import IMAGE, Sidecar
from monitor.errors import SetupError
from monitor.terminal import ERRORS, chosen_layers

if TYPE_CHECKING:
    from monitor.attach.files import Configuration
    from monitor.probes.bank import Bank

_WORKLOAD = Annotated[Path, typer.Argument(help="File of manifests; -: standard input.", allow_dash=True)]


def attach(
    workload: _WORKLOAD,
    bank: Annotated[
        str | None, typer.Option(help="The sidecar's bank: the name of a shipped one; a folder with --bank-from.")
    ] = None,
    bank_from: Annotated[
        str, typer.Option(help="Where a pod finds the bank: pvc://CLAIM/FOLDER, or oci://IMAGE that has it in /bank.")
    ] = "",
    layers: Annotated[str, typer.Option(help="Layers to capture, as in 16,20; default: the bank's.")] = "",
    policy: Annotated[Path | None, typer.Option(help="Policy file; a ConfigMap with it is written too.")] = None,
    setting: Annotated[
        list[str] | None, typer.Option(help="A setting for it, as in alertmanager_url=http://alertmanager:9093.")
    ] = None,
    config: Annotated[
        str, typer.Option(help="In the place of --policy: a ConfigMap of settings.yaml and policy.yaml that is there.")
    ] = "",
    token_secret: Annotated[
        str,
        typer.Option(help="Secret with the token (key: token) that opens the sidecar's pages; else they stay shut."),
    ] = "",
    capture: Annotated[
        Capture | None, typer.Option(help="Where vLLM takes rows from; default: cache, and tap for vLLM on CPUs.")
    ] = None,
    container: Annotated[str, typer.Option(help="The engine's container, where it is not seen.")] = "",
    engine: Annotated[Engine | None, typer.Option(help="What it runs, where that is not seen.")] = None,
    engine_image: Annotated[str, typer.Option(help="The engine's image with the package affect-monitor in it.")] = "",
    image: Annotated[str, typer.Option(help="The sidecar's image.")] = f"{IMAGE}:{__version__}",
    classic: Annotated[
        bool, typer.Option("--classic", help="A container like any other, for Kubernetes before 1.29.")
    ] = False,
    patch: Annotated[
        bool, typer.Option("--patch", help="Write the patch of one workload, not the whole file; with --config.")
    ] = False,
) -> None:
    """Add the sidecar to workloads, and to their engine what it needs to send hidden states.

    kubectl get deploy NAME -o yaml | affect-monitor attach - --bank BANK --policy FILE | kubectl apply -f -

    What a workload was attached with before is set anew. Notes on standard error say what was done, and what could not
    be checked.
    """
    from monitor.attach.capturing import Wanted
    from monitor.attach.config import bank_volume
    from monitor.attach.files import attach_file

    chosen, loaded = chosen_layers(layers, bank)
    volume, place = bank_volume(bank_from) if bank_from else (None, _shipped(bank))
    configuration = _configuration(config, place, setting or [], policy, loaded)
    model = None if loaded is None else loaded.card.model
    sidecar = Sidecar(image, config, volume, token_secret=token_secret)
    wanted = Wanted(sidecar, chosen, capture, container, engine, engine_image, classic, model)
    if patch and policy is not None:
        raise SetupError("--patch", "has no room for the ConfigMap of --policy; make one, and name it by --config")
    changed = attach_file(_read(workload), wanted, configuration)
    if patch and len(changed.patches) > 1:
        raise SetupError("--patch", f"is of one workload, and these are {len(changed.patches)}; give a file for each")
    _tell(changed.notes)
    if not patch:
        print(changed.text, end="")
        return
    made = changed.patches[0]
    _tell([f"apply it by kubectl patch {made.of} --type {made.kind} --patch-file FILE"])
    print(_dump(made.content), end="")


def detach(workload: _WORKLOAD) -> None:
    """Take out of workloads what attach put there: they are as they were before.

    kubectl get deploy NAME -o yaml | affect-monitor detach - | kubectl replace -f -

    Replace, since kubectl apply takes out only what was put in by kubectl apply.
    """
    from monitor.attach.files import detach_file

    changed = detach_file(_read(workload))
    _tell(changed.notes)
    print(changed.text, end="")


def _shipped(bank: str | None) -> str:
    """Name of the bank in the package."""
    from monitor.probes.bank import SHIPPED

    if bank is None or not (SHIPPED / bank).is_dir() or Path(bank).is_dir():
        raise SetupError("--bank-from", "is needed for a bank that is not in the package: where does a pod find it?")
    return bank


def _configuration(
    config: str, bank: str, settings: Sequence[str], policy: Path | None, loaded: Bank | None
) -> Configuration:
    from monitor.attach.config import further_settings
    from monitor.attach.files import Configuration
    from monitor.policy.schema import load_policy, read_policy

    if bool(config) == (policy is not None):
        raise SetupError("--policy", "name a policy file, or by --config a ConfigMap that is there; one of the two")
    if config and settings:
        raise SetupError("--setting", f"goes with --policy; ConfigMap {config} has its own settings")
    if policy is not None:
        read_policy(policy) if loaded is None else load_policy(policy, loaded)
    return Configuration(config, bank, further_settings(settings), policy)


def _read(workload: Path) -> str:
    """A file's text, with its line ends as they are."""
    try:
        return (sys.stdin.buffer.read() if str(workload) == "-" else workload.read_bytes()).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise SetupError("WORKLOAD", f"{workload} cannot be read ({error}); name a file of manifests") from None


def _tell(notes: Sequence[str]) -> None:
    for note in notes:
        ERRORS.print(Text.assemble(("note", "bold yellow"), " ", note), soft_wrap=True)


def _dump(content: dict[str, Any]) -> str:
    from monitor.attach.manifest import added

    return added(content).text
