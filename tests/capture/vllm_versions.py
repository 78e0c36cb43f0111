"""Runs the checks of ``vllm_checks`` against each version of vLLM that capture knows, once, whoever asks for them."""

from __future__ import annotations

import json
import os
import subprocess
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import needs
import pytest

from monitor.capture.vllm import SUPPORTED

CHECKS = (
    "known", "hooks", "completeness", "imports", "requests", "followed", "ends",
    "scheduling", "scheduling_of_the_second_runner", "scheduling_ahead", "scheduling_ahead_of_the_second_runner",
    "taps", "taps_ahead", "taps_without_ends", "tensor_parallel", "data_parallel",
    "errors_once", "errors_five_times", "errors_for_ever", "errors_at_the_start", "nonsense", "shutdown",
    "unknown_version",
)  # fmt: skip
_CHILD = Path(__file__).with_name("vllm_checks.py")
_VARIABLES = {"VLLM_TARGET_DEVICE": "cpu", "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}
_VARIABLES |= {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}  # its tensors are tiny, and the same happens every time

each_version = pytest.mark.parametrize("version", [f"{known}.0" for known in SUPPORTED])


def passes(version: str, check: str) -> None:
    """Fails, with what was found, where a check does not hold on a version."""
    wrong = _results(version)[check]
    assert wrong is None, wrong


@cache
def _results(version: str) -> dict[str, str | None]:
    environment, source = needs.vllm_environment(), needs.vllm_source(version)
    with TemporaryDirectory() as folder:
        results = Path(folder, "results.json")
        # The environment has what vLLM depends on, and a vLLM that these files come before.
        done = subprocess.run(
            [str(environment / "bin" / "python"), str(_CHILD), str(results), *CHECKS],
            env={**os.environ, **_VARIABLES, "PYTHONPATH": str(source)},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-3000:]
        told: dict[str, str | None] = json.loads(results.read_text())
    return told
