"""The whole measurement: engines, sidecar, every batch size, and what is to be said of the machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import asdict
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import NamedTuple

from monitor.bench.bank import write_bank
from monitor.bench.cores import choose_cores
from monitor.bench.engine.compare import WAYS, compare
from monitor.bench.engine.load import Engine, Load
from monitor.bench.engine.server import ServerEngine
from monitor.bench.engine.watched import WatchedSidecar
from monitor.bench.engine.worker import LAYERS, Capture, Plan, TransformersEngine
from monitor.bench.grid import Told
from monitor.bench.measure import Row
from monitor.bench.run import machine

_PROBES = 171
_WARM_RUNS = 2
"""Before any is counted: compiling, and what is filled at first use."""


class Servers(NamedTuple):
    """Servers that are up, and what the sidecar is to be.

    Attributes:
        off: Base address of the one without capture.
        on: Of the one with it.
        ingest: Address that it sends to.
        bank: Bank of its model.
    """

    off: str
    on: str
    ingest: str
    bank: str


def run_transformers(model: str, load: Load, told: Told, *, compiled: bool) -> Iterator[Row]:
    """Measures transformers, an engine process without capture and one with it.

    Args:
        model: A folder, or the name of a shape.
        load: What is generated.
        told: Called with runs done and runs in all.
        compiled: Static cache and torch.compile.

    Yields:
        After each batch size all that is known so far: ``machine``, ``engine``, ``model``, ``load`` and ``rows``, one
        for each batch size.

    Raises:
        SetupError: Something does not start, or fails.
    """
    # On small machines one core is left to the sidecar, with capture and without.
    threads = max(1, (os.cpu_count() or 2) - 1)
    plan = Plan(model, load, compiled, threads)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="affect-bench-")))
        off = stack.enter_context(closing(TransformersEngine(plan, None)))
        bank = write_bank(folder / "bank", off.about.hidden_size, _PROBES, LAYERS)
        address = f"unix://{folder}/ingest.sock"
        sidecar = stack.enter_context(closing(WatchedSidecar(address, bank, folder)))
        on = stack.enter_context(closing(TransformersEngine(plan, Capture(address, bank))))
        about = {"compiled": compiled, "threads": threads, "transformers": version("transformers")}
        head = {
            "machine": _machine(off.about.gpu) | about,
            "engine": "transformers",
            "model": Path(model).name,
            "load": asdict(load),
        }
        for rows in _measured(off, on, sidecar, load, told):
            yield head | {"rows": rows}


def run_servers(servers: Servers, load: Load, told: Told) -> Iterator[Row]:
    """Measures servers that are up; see ``run_transformers``.

    Raises:
        SetupError: A server does not answer, or the one with capture does not connect to the sidecar.
    """
    off, on = ServerEngine(servers.off, load), ServerEngine(servers.on, load)
    with (
        tempfile.TemporaryDirectory(prefix="affect-bench-") as folder,
        closing(WatchedSidecar(servers.ingest, servers.bank, Path(folder))) as sidecar,
    ):
        sidecar.connected()
        head = {"machine": _machine(_gpu()), "engine": "server", "model": on.model, "load": asdict(load)}
        for rows in _measured(off, on, sidecar, load, told):
            yield head | {"rows": rows}


def _measured(off: Engine, on: Engine, sidecar: WatchedSidecar, load: Load, told: Told) -> Iterator[list[Row]]:
    runs, total = count(1), len(load.batches) * load.rounds * len(WAYS)
    rows: list[Row] = []
    told(0, total)
    for batch in load.batches:
        sidecar.be(alive=True)
        _warm((off, on), batch)
        sidecar.settled()
        rows.append(compare(off, on, sidecar, batch, load.rounds, lambda: told(next(runs), total)))
        yield list(rows)


def _warm(engines: Sequence[Engine], batch: int) -> None:
    """Both at once: where they compile, they take minutes."""

    def runs(engine: Engine) -> None:
        for _ in range(_WARM_RUNS):
            engine.run(batch)

    with ThreadPoolExecutor(len(engines)) as pool:
        list(pool.map(runs, engines))


def _machine(gpu: str) -> Row:
    """As of the other bench; nothing is pinned here, for engines choose their cores themselves."""
    found = machine(choose_cores(unpinned=True))
    del found["pinning"]
    return found | {"gpu": gpu}


def _gpu() -> str:
    """Name of the first GPU, empty without one; by its driver's tool, for torch would take memory from the servers."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ""
    command = [tool, "--query-gpu=name", "--format=csv,noheader"]
    told = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - fixed arguments
    return told.stdout.splitlines()[0].strip() if told.returncode == 0 and told.stdout else ""
