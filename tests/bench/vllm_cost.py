"""What capture costs vLLM on this machine's CPUs, and whose share is whose, by ``affect-monitor bench engine``.

python tests/bench/vllm_cost.py --venv DIR [--rounds 10] [--batch 1,8] [--out FOLDER]

Pairs of real servers that are up at once, one of them under load at a time: without capture against either way to
capture, and vLLM's own extract_hidden_states, with a connector that does nothing, against the same with ours.
"""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console

sys.path += [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "integration")]
from vllm_server import VllmServer, vllm_server

from monitor.attach import Capture
from monitor.attach.vllm_flags import with_capture
from monitor.bench.engine.load import Load
from monitor.bench.engine.run import Servers, run_servers
from monitor.bench.engine.show import show
from monitor.demo.assistant import NAME, ensure_assistant
from monitor.probes.bank import load_bank
from monitor.terminal import Bar

PAIRS = {"cache": (None, "cache"), "tap": (None, "tap"), "ours of cache": ("idle", "cache")}


class Vllm:
    """Starts servers of the demo assistant in an environment.

    Args:
        environment: Folder that tests/integration/vllm_server.py made.
        address: Where those with capture send to.
    """

    def __init__(self, environment: Path, address: str) -> None:
        self._environment, self._address = environment, address
        self._model, self._layers = ensure_assistant(), load_bank(NAME).card.layers

    def serving(self, capture: str | None) -> AbstractContextManager[VllmServer]:
        """One without capture, with one of its ways, or ``idle``."""
        if capture == "idle":
            return self._started(None, self._idle(), {"PYTHONPATH": str(Path(__file__).parent)})
        return self._started(capture, [], {})

    def _started(
        self, capture: str | None, extra: list[str], environment: dict[str, str]
    ) -> AbstractContextManager[VllmServer]:
        return vllm_server(
            self._environment, self._model, self._address, self._layers,
            capture=capture, extra=extra, environment=environment,
        )  # fmt: skip

    def _idle(self) -> list[str]:
        """Options of capture, with a connector that does nothing in the place of ours."""
        attached = with_capture([str(self._model)], self._layers, {"sidecar": self._address}, Capture.CACHE)
        ours = '"kv_connector":"AffectConnector"'
        other = '"kv_connector":"IdleConnector","kv_connector_module_path":"vllm_idle_connector"'
        return [option.replace(ours, other) for option in attached.arguments[1:]]


def main() -> None:
    """Prints a table for each pair; writes their figures where ``--out`` says."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--venv", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--batch", default="1,8")
    parser.add_argument("--pair", choices=PAIRS, action="append")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    load = Load(tuple(map(int, asked.batch.split(","))), 128, 64, asked.rounds)
    for name in asked.pair or PAIRS:
        with TemporaryDirectory(prefix="affect-") as folder:
            address = f"unix://{folder}/ingest.sock"
            start = Vllm(asked.venv, address).serving
            off, on = PAIRS[name]
            with start(off) as without, start(on) as capturing, Bar(name) as told:
                *_, found = run_servers(Servers(without.url, capturing.url, address, NAME), load, told)
        Console(width=120).print(f"\n{name}: {off or 'without capture'} against {on}")
        show(Console(width=120), found)
        if asked.out is not None:
            (asked.out / f"{name.replace(' ', '-')}.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
