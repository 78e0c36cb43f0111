"""The whole bench: every setting, one after the other, and what is to be said of the machine."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from monitor.bench.bank import make_bank
from monitor.bench.bars import main_row
from monitor.bench.cores import Cores
from monitor.bench.grid import Pace, Setting, Told
from monitor.bench.measure import Row, measure
from monitor.bench.sidecar import NotOfferedError
from monitor.bench.soak import soak
from monitor.bench.stages import profile
from monitor.errors import SetupError


def run(
    settings: Sequence[Setting],
    pace: Pace,
    cores: Cores,
    told: Told,
    *,
    soak_minutes: float = 0.0,
    stages: bool = False,
) -> Row:
    """Measures every setting, then memory and stages where they are asked for.

    Args:
        settings: The rows.
        pace: How long each is looked at.
        cores: Who runs where.
        told: Called with rows done and rows in all, then with samples of the soak.
        soak_minutes: Length of a load at half speed that shows whether memory grows; 0: none.
        stages: Whether to time the stages of a frame.

    Returns:
        ``machine``, ``rows`` and ``left_out`` (what could not be measured, and why); ``soak`` and ``profile`` where
        asked for.

    Raises:
        SetupError: The system has no /proc, nothing could be measured, or a process of the soak does not start.
    """
    if not Path("/proc/self/stat").exists():
        raise SetupError("system", "memory and processor time are read from /proc, which is not here; bench on Linux")
    result: Row = {"machine": machine(cores), "rows": [], "left_out": []}
    missing: set[str] = set()
    for number, setting in enumerate(settings):
        told(number, len(settings))
        if setting.transport in missing:
            continue
        try:
            result["rows"].append(measure(setting, pace, cores))
        except SetupError as error:
            # One that fails must not cost the figures of all others.
            offered = not isinstance(error, NotOfferedError)
            missing |= set() if offered else {setting.transport}
            result["left_out"].append(f"{setting}: {error.message}" if offered else error.message)
    told(len(settings), len(settings))
    if not result["rows"]:
        raise SetupError("bench", f"nothing was measured: {result['left_out'][0]}")
    if stages:
        result["profile"] = _profile(result["rows"], cores)
    if soak_minutes:
        result["soak"] = soak(Setting(settings[0].transport), soak_minutes, cores, told)
    return result


def machine(cores: Cores) -> Row:
    """What the figures were measured on."""
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 2),
        "pinning": (
            f"sidecar and limits on core {_listed(cores.sidecar)}, clients on core {_listed(cores.clients)}"
            if cores.sidecar
            else "nothing is pinned to a core: ratios are rough"
        ),
        "system": platform.platform(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "numpy", "grpcio", "protobuf")},
    }


def _profile(rows: Sequence[Row], cores: Cores) -> list[Row]:
    """The stages of a frame with many probes and with few."""
    profiles = []
    for probes in (171, 16):
        setting = Setting(probes=probes)
        bank = make_bank(setting.hidden_size, probes, setting.layers)
        stages = profile(setting, bank, cores, main_row(rows, transport="grpc", probes=probes))
        profiles.append({"hidden_size": setting.hidden_size, "probes": probes, "stages": stages})
    return profiles


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _listed(cores: frozenset[int]) -> str:
    return ", ".join(map(str, sorted(cores)))
