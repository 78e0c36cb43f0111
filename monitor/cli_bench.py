"""``affect-monitor bench``: how fast the sidecar is, and what capture costs an inference engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from monitor.errors import SetupError
from monitor.terminal import Bar, check_file, need, numbers

if TYPE_CHECKING:
    from monitor.bench.engine.run import Servers

bench_app = typer.Typer(invoke_without_command=True)


@bench_app.callback()
def bench(
    context: typer.Context,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures to this file.")] = None,
    plot: Annotated[Path | None, typer.Option("--plot", help="Write a page with plots to this file.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="The main size alone, about a minute.")] = False,
    transport: Annotated[
        list[str] | None, typer.Option(help="grpc, shared_memory or projected; default: all three.")
    ] = None,
    soak: Annotated[float, typer.Option(min=0, help="Minutes at half load, to see whether memory grows.")] = 0,
    profile: Annotated[bool, typer.Option("--profile", help="Time the stages of a frame.")] = False,
    unpinned: Annotated[bool, typer.Option("--unpinned", help="Do not give sidecar and clients a core each.")] = False,
) -> None:
    """Measure the sidecar end to end beside its own physical limit: real processes, one run. Takes minutes."""
    if context.invoked_subcommand:
        return
    for file, flag in ((json_file, "--json"), (plot, "--plot")):
        if file is not None:
            check_file(file, flag)
    if plot is not None:
        need("plotly", "calibrate")
    from monitor.bench.bars import bars
    from monitor.bench.cores import choose_cores
    from monitor.bench.grid import FULL, QUICK, TRANSPORTS, full_grid, quick_grid
    from monitor.bench.run import run
    from monitor.bench.show import show

    unknown = set(transport or ()) - set(TRANSPORTS)
    if unknown:
        raise SetupError("--transport", f"{sorted(unknown)} is none of {list(TRANSPORTS)}")
    grid = (quick_grid if quick else full_grid)(tuple(transport or TRANSPORTS))
    cores = choose_cores(unpinned=unpinned)
    with Bar("bench") as told:
        result = run(grid, QUICK if quick else FULL, cores, told, soak_minutes=soak, stages=profile)
    cleared = bars(result["rows"], result.get("soak"))
    show(Console(), result, cleared)
    if json_file is not None:
        json_file.write_text(json.dumps({**result, "bars": [bar._asdict() for bar in cleared]}, indent=1) + "\n")
    if plot is not None:
        from monitor.bench.plots import write_page

        write_page(result, cleared, plot)


@bench_app.command("engine")
def bench_engine(
    model: Annotated[str, typer.Option(help="Folder of a transformers model; demo: the demo assistant.")] = "demo",
    shape: Annotated[
        str, typer.Option(help="Instead of it, a model of this shape with random weights: llama-3.1-8b or tiny.")
    ] = "",
    server: Annotated[
        list[str] | None,
        typer.Option(help="Instead of both, running OpenAI-compatible servers: off=URL, and on=URL with capture."),
    ] = None,
    ingest: Annotated[
        str, typer.Option(help="unix:///PATH that the server with capture sends to; the sidecar is started here.")
    ] = "",
    bank: Annotated[
        str, typer.Option(help="Bank of the servers' model: a folder, or the name of a shipped one.")
    ] = "smollm2-135m-instruct",
    batch: Annotated[str, typer.Option(help="Requests at once; default: 1,8, or 1,32,256 on a GPU.")] = "",
    prompt_tokens: Annotated[int, typer.Option(min=16, help="Tokens of a prompt; of servers: about so many.")] = 128,
    new_tokens: Annotated[int, typer.Option(min=2, help="Tokens of a reply.")] = 64,
    rounds: Annotated[int, typer.Option(min=1, help="Times each way is run; intervals need 6.")] = 10,
    compiled: Annotated[
        bool | None,
        typer.Option("--compile/--no-compile", help="Static cache and torch.compile; default: on a GPU."),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures to this file, after each batch size.")
    ] = None,
) -> None:
    """Measure what capture costs an inference engine: off, on, and on with a dead sidecar, in turn in one run."""
    if json_file is not None:
        check_file(json_file, "--json")
    need("transformers", "demo")
    import torch

    from monitor.bench.engine.load import Load
    from monitor.bench.engine.run import run_servers, run_transformers
    from monitor.bench.engine.show import show

    gpu = torch.cuda.is_available()
    batches = numbers(batch or ("1,32,256" if gpu else "1,8"), "--batch")
    if min(batches, default=0) < 1:
        raise SetupError("--batch", f"{batch} is no list of batch sizes; write them as in 1,8")
    load = Load(tuple(batches), prompt_tokens, new_tokens, rounds)
    servers = _servers(server, ingest, bank) if server else None
    with Bar("runs") as told:
        if servers is not None:
            results = run_servers(servers, load, told)
        else:
            results = run_transformers(_model(model, shape), load, told, compiled=gpu if compiled is None else compiled)
        for result in results:
            # After each batch size: whoever stops a run that takes long keeps what it found.
            if json_file is not None:
                json_file.write_text(json.dumps(result, indent=1) + "\n")
    show(Console(), result)


def _servers(named: list[str], ingest: str, bank: str) -> Servers:
    from monitor.bench.engine.run import Servers

    urls = dict(each.split("=", 1) for each in named if "=" in each)
    if len(named) != len(urls) or urls.keys() != {"off", "on"}:
        raise SetupError(
            "--server", "name two, as in --server off=http://127.0.0.1:8000 --server on=http://127.0.0.1:8001"
        )
    if not ingest.startswith("unix://"):
        raise SetupError("--ingest", "name the address that the server with capture sends to, as unix:///PATH")
    return Servers(urls["off"], urls["on"], ingest, bank)


def _model(model: str, shape: str) -> str:
    """A folder, or the name of a shape."""
    from monitor.bench.engine.model import SHAPES
    from monitor.demo.assistant import resolve_model

    if shape and shape not in SHAPES:
        raise SetupError("--shape", f"{shape!r} is none of {list(SHAPES)}")
    return shape or str(resolve_model(model))
