"""Tests of the command line: what it prints, where, and with which exit code."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import needs
import numpy as np
import pytest
import torch
from builders import make_card, make_stats, make_tensors
from commands import Result, Run, runner

from monitor import __version__
from monitor.assess.overindex import finest_rate
from monitor.errors import SetupError
from monitor.outputs.baseline import BaselineWriter
from monitor.outputs.metrics import Metrics
from monitor.policy.schema import PolicyFile
from monitor.probes.bank import Bank, Stance, load_bank, seal

PATIENCE = 60.0
POLICY = """
version: 1
policies:
  - name: desk
    stance: neutral
    turn: {false_alarm_rate: 0.02}
    families: {warmth: 0.05}
"""
MAIN = "from monitor.cli import main; main()"
COMMANDS = (
    "demo", "serve", "check-config", "calibrate", "reference", "score", "status", "bank", "bank show", "bank verify",
    "bank fetch", "bank realign", "bank diff", "corpus", "corpus write", "audit", "audit list", "audit show",
    "audit verify", "audit export", "bench", "bench engine", "canary", "chat", "chat serve", "rules",
    "rules build", "rules check",
    "vllm", "vllm serve", "attach", "detach", "evaluate", "evaluate robustness", "evaluate versions",
    "evaluate interventions", "evaluate distortion", "evaluate all", "evaluate report", "evaluate diff",
)  # fmt: skip


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process."""
    return runner(monkeypatch, capsys)


@pytest.fixture
def bank_folder(small_bank: Bank, tmp_path: Path) -> Path:
    """The small bank on disk."""
    small_bank.save(tmp_path / "bank")
    return tmp_path / "bank"


@pytest.fixture
def policy_file(tmp_path: Path) -> Path:
    """A policy that fits it."""
    file = tmp_path / "policy.yaml"
    file.write_text(POLICY)
    return file


def fresh(program: str, *arguments: str, **environment: str) -> Result:
    """Runs Python in a process of its own."""
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=PATIENCE, check=False, env={**os.environ, **environment}
    )
    return Result(done.returncode, done.stdout, done.stderr)


class TestHelp:
    """Help."""

    def test_of_every_command_says_what_it_does_without_heavy_imports(self) -> None:
        """Every command answers --help, lists its options, and loads neither torch nor transformers nor grpc for it."""
        told = json.loads(fresh(HELP).out)
        assert set(told["pages"]) == set(COMMANDS)
        assert not told["heavy"]
        for name, (code, page) in told["pages"].items():
            assert code == 0, name
            assert f"Usage: affect-monitor {name}" in page
        for option in ("--bank", "--model", "--input", "--output", "--policy"):
            assert option in told["pages"]["score"][1]

    def test_is_what_the_bare_command_shows(self, run: Run) -> None:
        """Without a command all commands are listed."""
        shown = run()
        assert all(name in shown.out for name in COMMANDS if " " not in name)

    def test_version_needs_no_command(self, run: Run) -> None:
        """It is printed alone."""
        assert run("--version") == Result(0, f"{__version__}\n", "")


HELP = """
import json, sys
from typer.main import get_command
from typer.testing import CliRunner
from monitor.cli import app

def walk(command, name=""):
    if name:
        yield name
    for part, inner in getattr(command, "commands", {}).items():
        yield from walk(inner, f"{name} {part}".strip())

runner, pages = CliRunner(), {}
for name in walk(get_command(app)):
    arguments, wide = [*name.split(), "--help"], {"COLUMNS": "200", "TERM": "dumb"}
    result = runner.invoke(app, arguments, prog_name="affect-monitor", env=wide)
    pages[name] = (result.exit_code, result.output)
heavy = sorted({"torch", "transformers", "grpc", "numpy", "sklearn"} & set(sys.modules))
print(json.dumps({"pages": pages, "heavy": heavy}))
"""


class TestErrors:
    """What goes wrong."""

    def test_a_typed_error_is_one_line_and_exit_code_2(self, run: Run) -> None:
        """The error names the field and the fix on standard error, nothing stands on standard output."""
        shown = run("bank", "show", "no-such-bank")
        assert (shown.code, shown.out) == (2, "")
        assert shown.error.startswith("error --bank: 'no-such-bank' is neither a folder with bank.json nor")

    def test_square_brackets_survive(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        """Extras and lists in a message are no markup."""

        def refuse(_name: str) -> Bank:
            raise SetupError("rows[0]", "has [3, 2]\nwants [bold]; pip install 'affect-monitor[demo]'")

        monkeypatch.setattr("monitor.probes.bank.load_bank", refuse)
        shown = run("bank", "show", "any")
        assert shown.err == "error rows[0]: has [3, 2] wants [bold]; pip install 'affect-monitor[demo]'\n"

    @pytest.mark.parametrize("arguments", [("nonsense",), ("score", "--bank", "x"), ("serve", "--no-such-flag")])
    def test_wrong_usage_is_exit_code_2(self, arguments: tuple[str, ...], run: Run) -> None:
        """Unknown commands and flags, and missing ones, cannot be done."""
        assert run(*arguments).code == 2

    @pytest.mark.parametrize(
        ("package", "arguments", "extra"),
        [
            ("transformers", ("demo", "--once"), "demo"),
            ("transformers", ("score", "--bank", "b", "--model", "m", "--input", "i", "--output", "o"), "demo"),
            ("transformers", ("chat", "serve", "--model", "m", "--layers", "1"), "demo"),
            ("sklearn", ("calibrate", "--model", "m", "--out", "o"), "calibrate"),
        ],
        ids=["demo", "score", "chat", "calibrate"],
    )
    def test_a_missing_extra_gives_the_pip_command(
        self, package: str, arguments: tuple[str, ...], extra: str, run: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A command whose extra is not installed says how to install it."""
        monkeypatch.setattr("monitor.terminal.find_spec", lambda name: None if name == package else object())
        shown = run(*arguments)
        assert (shown.code, shown.error) == (
            2, f"error {package}: is not installed; pip install 'affect-monitor[{extra}]'",
        )  # fmt: skip

    @pytest.mark.parametrize(
        ("package", "arguments", "extra"),
        [("typer", ["--help"], "sidecar"), ("rich", ["--help"], "sidecar"), ("structlog", ["serve"], "demo")],
        ids=["typer", "rich", "structlog"],
    )
    def test_a_missing_package_gives_it_too(self, package: str, arguments: list[str], extra: str) -> None:
        """A package that is missing anywhere below is named with the pip command, and never with a traceback."""
        shown = fresh(f"import sys; sys.modules[{package!r}] = None; {MAIN}", *arguments)
        assert shown.code == 2
        assert shown.err == f"error {package}: is not installed; pip install 'affect-monitor[{extra}]'\n"

    @pytest.mark.parametrize(
        ("arguments", "field"),
        [
            (("demo", "--once", "--json", "/no/such/folder/summary.json"), "--json"),
            (("calibrate", "--model", "m", "--out", "/dev/null/bank"), "--out"),
            (("reference", "--bank", "b", "--baseline", "l", "--out", "/dev/null/bank"), "--out"),
        ],
        ids=["demo", "calibrate", "reference"],
    )
    def test_a_place_that_cannot_be_written_is_named_before_the_work(
        self, arguments: tuple[str, ...], field: str, run: Run
    ) -> None:
        """A long command refuses at its start what it could not write at its end."""
        shown = run(*arguments)
        assert shown.code == 2
        assert shown.error.startswith(f"error {field}: ")


class TestBank:
    """Looking at banks."""

    def test_show_names_model_layers_and_emotions(self, run: Run, bank_folder: Path, small_bank: Bank) -> None:
        """A person sees what the bank is of and what it holds."""
        shown = run("bank", "show", bank_folder)
        assert shown.code == 0
        assert small_bank.card.bank_id in shown.out
        for word in ("tiny", "[1, 2] of 2", "warmth: joy, affection", "contagion: fear, distress", "neutral"):
            assert word in shown.out

    def test_show_json_is_the_card(self, run: Run, bank_folder: Path, small_bank: Bank) -> None:
        """A program gets the card as it stands in the bank."""
        shown = run("bank", "show", bank_folder, "--json")
        assert json.loads(shown.out) == small_bank.card.model_dump(mode="json")

    def test_verify_says_yes(self, run: Run, bank_folder: Path, small_bank: Bank) -> None:
        """A sound bank verifies."""
        assert run("bank", "verify", bank_folder) == Result(0, f"{small_bank.card.bank_id} ok\n", "")

    def test_verify_says_no_with_exit_code_1(self, run: Run, bank_folder: Path) -> None:
        """A damaged bank is the answer no, and says where the damage is."""
        tensors = bank_folder / "bank.safetensors"
        tensors.write_bytes(tensors.read_bytes()[:-1] + b"!")
        shown = run("bank", "verify", bank_folder)
        assert (shown.code, shown.out) == (1, "")
        assert shown.error.startswith("error bank.safetensors: ")
        assert "restore it" in shown.error

    def test_verify_of_nothing_cannot_be_done(self, run: Run, tmp_path: Path) -> None:
        """A folder without a bank is exit code 2."""
        shown = run("bank", "verify", tmp_path)
        assert shown.code == 2
        assert shown.error.startswith("error --bank: ")


class TestBankDiff:
    """Comparing banks."""

    def test_of_one_bank_is_exit_code_0(self, run: Run, bank_folder: Path, small_bank: Bank) -> None:
        """A bank and itself are the same, as diff has it."""
        assert run("bank", "diff", bank_folder, bank_folder) == Result(
            0, f"both are bank {small_bank.card.bank_id}\n", ""
        )

    def test_of_two_banks_is_exit_code_1(self, run: Run, bank_folder: Path, small_bank: Bank, tmp_path: Path) -> None:
        """What differs is listed for people, and as JSON for programs."""
        other = seal({**make_card(), "made_by": "others"}, make_tensors(seed=1))
        other.save(tmp_path / "other")
        shown = run("bank", "diff", bank_folder, tmp_path / "other")
        assert shown.code == 1
        assert shown.out.startswith(
            f"bank {small_bank.card.bank_id} -> {other.card.bank_id}\nmade_by: tests -> others\n"
        )
        as_json = run("bank", "diff", bank_folder, tmp_path / "other", "--json")
        assert as_json.code == 1
        assert json.loads(as_json.out)["fields"] == [{"field": "made_by", "a": "tests", "b": "others"}]

    def test_of_nothing_cannot_be_done(self, run: Run, bank_folder: Path, tmp_path: Path) -> None:
        """A bank that is not there is exit code 2, for there is nothing to compare."""
        shown = run("bank", "diff", bank_folder, tmp_path / "none")
        assert (shown.code, shown.out) == (2, "")
        assert shown.error.startswith("error --bank: ")


class TestReference:
    """A reference of one's own traffic."""

    @pytest.fixture
    def baseline(self, tmp_path: Path, small_bank: Bank) -> Path:
        """Sixty turns that a sidecar kept."""
        rng, file = np.random.default_rng(0), tmp_path / "baseline.jsonl"
        writer = BaselineWriter(file, small_bank, 100, Metrics())
        for user, assistant in rng.normal(size=(60, 2)):
            writer.add(make_stats(small_bank, user, assistant), Stance.SUPPORTIVE, small_bank)
        return file

    def test_of_a_baseline_file(self, run: Run, bank_folder: Path, baseline: Path, tmp_path: Path) -> None:
        """The bank is written and loads; JSON says turns and the finest certified rate of each stance."""
        shown = run("reference", "--bank", bank_folder, "--baseline", baseline, "--out", tmp_path / "own", "--json")
        assert shown.code == 0
        said, card = json.loads(shown.out), load_bank(str(tmp_path / "own")).card
        assert said["bank_id"] == card.bank_id
        assert said["turns"] == {"neutral": 60, "supportive": 60, "crisis": 100}
        assert said["finest_false_alarm_rate"] == {
            stance.value: finest_rate(stance, turns) for stance, turns in card.reference.turns.items()
        }

    def test_for_people(self, run: Run, bank_folder: Path, baseline: Path, tmp_path: Path) -> None:
        """Without --json the same stands in words."""
        shown = run("reference", "--bank", bank_folder, "--baseline", baseline, "--out", tmp_path / "own")
        assert shown.code == 0
        assert "60 turns of a sidecar's traffic" in shown.out
        assert "neutral: 60 turns, which certify false-alarm rates down to 0.0487" in shown.out
        assert "crisis: 100 turns, which certify false-alarm rates down to 0.0590" in shown.out

    def test_of_approved_conversations(self, run: Run, model_folder: Path, tmp_path: Path) -> None:
        """Approved conversations run through the bank's model, with a bar on standard error."""
        talk = [{"role": "user", "content": "Where is it?"}, {"role": "assistant", "content": "On its way to you."}]
        lines = [json.dumps({"messages": [*talk[:1], {**talk[1], "content": f"It is {n}."}]}) for n in range(50)]
        (tmp_path / "approved.jsonl").write_text("\n".join(lines))
        shown = run(
            "reference", "--bank", model_folder / "bank", "--model", model_folder, "--out", tmp_path / "own",
            "--approved", tmp_path / "approved.jsonl",
        )  # fmt: skip
        assert shown.code == 0
        assert "50/50" in shown.err
        assert load_bank(str(tmp_path / "own")).card.reference.turns[Stance.SUPPORTIVE] == 50

    @pytest.mark.parametrize(
        ("flags", "field"),
        [
            ((), "--approved"),
            (("--approved", "a", "--model", "m", "--baseline", "b"), "--approved"),
            (("--approved", "a"), "--model"),
            (("--baseline", "b", "--model", "m"), "--model"),
        ],
        ids=["neither", "both", "no model", "model with a baseline"],
    )
    def test_asks_for_one_source(self, flags: tuple[str, ...], field: str, run: Run, tmp_path: Path) -> None:
        """Flags that do not go together are exit code 2, by the flag that is too many or missing."""
        shown = run("reference", "--bank", "b", "--out", tmp_path / "own", *flags)
        assert shown.code == 2
        assert shown.error.startswith(f"error {field}: ")

    def test_of_too_few_turns_writes_nothing(self, run: Run, bank_folder: Path, baseline: Path, tmp_path: Path) -> None:
        """Too few turns are exit code 2 with the file's name, and there is no half a bank."""
        baseline.write_text("".join(baseline.read_text().splitlines(keepends=True)[:49]))
        shown = run("reference", "--bank", bank_folder, "--baseline", baseline, "--out", tmp_path / "own")
        assert shown.code == 2
        assert shown.error.startswith(f"error {baseline}: holds 49 turns")
        assert not (tmp_path / "own").exists()


class TestCheckConfig:
    """Checking without serving."""

    @pytest.fixture(params=["check-config", "serve --check-config"])
    def command(self, request: pytest.FixtureRequest) -> list[str]:
        """The two ways to check."""
        return str(request.param).split()

    def test_says_what_will_be_judged(self, command: list[str], run: Run, bank_folder: Path, policy_file: Path) -> None:
        """Policies that fit the bank are listed with their rates, the reference behind them and the alerts to come."""
        shown = run(*command, "--bank", bank_folder, "--policy", policy_file)
        assert shown.code == 0
        assert shown.out.startswith(
            "desk: stance neutral, judged against 200 reference turns\nat 10000 judged turns a day"
        )
        for rule in ("affect at 0.02", "warmth at 0.05", "alpha 0.01"):
            assert rule in shown.out
        assert "AffectBudgetBurn" not in shown.out
        assert "its share of the traffic is not known" in shown.out

    def test_forecasts_for_the_traffic_it_is_told(self, run: Run, bank_folder: Path, policy_file: Path) -> None:
        """JSON has every rule's alerts a day; a tenth of the turns raises a tenth of the alerts."""
        check = ("check-config", "--bank", bank_folder, "--policy", policy_file, "--json")
        (much,) = json.loads(run(*check).out)["policies"]
        (little,) = json.loads(run(*check, "--turns-per-day", 1000).out)["policies"]
        assert [rule["target"] for rule in much["turn"]] == ["affect", "warmth"]
        assert little["turns_per_day"] == 1000
        assert little["per_day"] == pytest.approx(much["per_day"] / 10)
        assert {rule["alert"]: rule["alpha"] for rule in much["ever"]}["AffectDrift"] == 0.01

    def test_says_which_budget_never_burns(self, run: Run, bank_folder: Path, policy_file: Path) -> None:
        """A budget alert that cannot fire at this traffic is named with what keeps it from that."""
        policy_file.write_text(POLICY + "    rate: {budget: 0.03}\n")
        shown = run("check-config", "--bank", bank_folder, "--policy", policy_file, "--turns-per-day", 500)
        assert shown.code == 0
        assert "AffectBudgetBurnFast never fires: its long window has 21 turns at this traffic" in shown.out
        assert "AffectBudgetBurnSlow never fires" not in shown.out

    def test_prints_the_schema_of_policies(self, run: Run) -> None:
        """Editors get the JSON Schema without a bank or a policy."""
        shown = run("check-config", "--schema")
        assert shown.code == 0
        assert json.loads(shown.out) == PolicyFile.model_json_schema()

    @pytest.mark.parametrize(("flags", "field"), [((), "--bank"), (("--bank", "b"), "--policy")])
    def test_asks_for_what_it_checks(self, flags: tuple[str, ...], field: str, run: Run) -> None:
        """Without the schema asked for, bank and policy are needed, and the missing one is named."""
        shown = run("check-config", *flags)
        assert (shown.code, shown.error.split(":")[0]) == (2, f"error {field}")

    @pytest.mark.parametrize(
        ("change", "field"),
        [(("warmth", "wrath"), "desk.families.wrath"), (("0.02", "1.5"), "policies.0.turn.false_alarm_rate")],
        ids=["family", "rate"],
    )
    def test_says_no_with_exit_code_1(
        self, change: tuple[str, str], field: str, command: list[str], run: Run, bank_folder: Path, policy_file: Path
    ) -> None:
        """A policy that cannot be used is the answer no, with file and field."""
        policy_file.write_text(POLICY.replace(*change))
        shown = run(*command, "--bank", bank_folder, "--policy", policy_file)
        assert (shown.code, shown.out) == (1, "")
        assert shown.error.startswith(f"error {policy_file}:{field}: ")

    def test_of_files_that_are_not_there_cannot_be_done(
        self, command: list[str], run: Run, bank_folder: Path, policy_file: Path
    ) -> None:
        """A missing bank or policy is exit code 2, with its flag."""
        shown = run(*command, "--bank", bank_folder / "none", "--policy", policy_file)
        assert (shown.code, shown.error.split(":")[0]) == (2, "error --bank")
        shown = run(*command, "--bank", bank_folder, "--policy", policy_file.with_name("none.yaml"))
        assert (shown.code, shown.error.split(":")[0]) == (2, "error --policy")

    def test_takes_the_baseline_window(self, run: Run, bank_folder: Path, policy_file: Path) -> None:
        """The window's bound is a setting like others: one that is no bound is named with its flag."""
        serve = (
            "serve",
            "--check-config",
            "--bank",
            bank_folder,
            "--policy",
            policy_file,
            "--baseline-file",
            "b.jsonl",
        )
        assert run(*serve, "--baseline-turns", 500).code == 0
        shown = run(*serve, "--baseline-turns", 0)
        assert shown.code == 2
        assert shown.error.startswith("error baseline_turns: ")
        assert "--baseline-turns" in shown.error

    def test_names_a_setting_that_is_missing(self, run: Run, policy_file: Path) -> None:
        """Serve without a bank says by which flag, variable or file to give one."""
        shown = run("serve", "--check-config", "--policy", policy_file)
        assert shown.code == 2
        assert shown.error.startswith("error bank: ")
        assert "--bank" in shown.error
        assert "AFFECT_BANK" in shown.error

    def test_flags_win_over_the_environment_and_that_over_the_file(
        self, run: Run, bank_folder: Path, policy_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Each source is asked in its turn."""
        settings = tmp_path / "settings.yaml"
        settings.write_text(json.dumps({"bank": str(bank_folder), "policy": "from-file.yaml"}))
        serve = ("serve", "--check-config", "--settings", settings)
        assert "from-file.yaml" in run(*serve).error
        monkeypatch.setenv("AFFECT_POLICY", "from-environment.yaml")
        assert "from-environment.yaml" in run(*serve).error
        assert run(*serve, "--policy", policy_file).code == 0


class Serving:
    """``affect-monitor serve`` in a process of its own."""

    def __init__(self, folder: Path, *flags: Any) -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            self.port = int(taken.getsockname()[1])
        self.url, self.address = f"http://127.0.0.1:{self.port}", f"unix://{folder}/s"
        self._log = folder / "serve.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    sys.executable, "-m", "monitor.cli", "serve", "--ingest", self.address,
                    "--http-port", str(self.port), "--drain-seconds", "0", *map(str, flags),
                ],
                stdout=log, stderr=log,
            )  # fmt: skip

    @property
    def log(self) -> list[dict[str, Any]]:
        """What it logged."""
        return [json.loads(line) for line in self._log.read_text().splitlines()]

    def wait(self, condition: Callable[[], Any]) -> None:
        """Waits until something is so."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                if condition():
                    return
            except httpx.TransportError:
                pass
            assert self._process.poll() is None, self._log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def metric(self, name: str) -> float:
        """A metric without labels."""
        lines = httpx.get(f"{self.url}/metrics").text.splitlines()
        return next(float(line.split()[1]) for line in lines if line.split()[0] == name)

    def signal(self, number: int) -> None:
        """Sends a signal."""
        self._process.send_signal(number)

    def stop(self) -> int:
        """Ends it as Kubernetes does; its exit code."""
        self._process.terminate()
        return self._process.wait(PATIENCE)

    def kill(self) -> None:
        """Ends it in any case."""
        self._process.kill()
        self._process.wait()


class TestServe:
    """The sidecar as a process."""

    @pytest.fixture
    def serving(self, tmp_path: Path, bank_folder: Path, policy_file: Path) -> Iterator[Serving]:
        """A sidecar that serves."""
        running = Serving(tmp_path, "--bank", bank_folder, "--policy", policy_file)
        try:
            running.wait(lambda: httpx.get(f"{running.url}/readyz").is_success)
            yield running
        finally:
            running.kill()

    def test_reloads_on_sighup_answers_status_and_drains_on_sigterm(
        self, serving: Serving, policy_file: Path, run: Run
    ) -> None:
        """A bad policy is refused and the old one stays; a good one is taken; SIGTERM ends it with exit code 0."""
        policy_file.write_text(POLICY.replace("warmth", "wrath"))
        serving.signal(signal.SIGHUP)
        serving.wait(lambda: serving.metric("affect_config_last_reload_successful") == 0)
        policy_file.write_text(POLICY.replace("name: desk", "name: counter"))
        serving.signal(signal.SIGHUP)
        serving.wait(lambda: serving.metric("affect_config_last_reload_successful") == 1)

        shown = run("status", "--address", serving.address)
        assert shown.code == 0
        status = json.loads(shown.out)
        assert (status["modelName"], status["policies"], status["alerts"]) == ("tiny", ["counter"], [])

        assert serving.stop() == 0
        log = serving.log
        assert {"serving", "stopped"} <= {line["event"] for line in log}
        done = [(line["action"], line.get("outcome")) for line in log if line["event"] == "admin"]
        assert done == [("start", None), ("reload", "refused"), ("reload", "taken"), ("stop", None)]
        assert not [line for line in log if line["level"] == "error"]
        assert all(line["timestamp"].endswith("Z") for line in log)

    def test_a_port_in_use_ends_it_with_exit_code_2(self, tmp_path: Path, bank_folder: Path, policy_file: Path) -> None:
        """What stands in the way is named with the flag that helps, and the process does not hang about."""
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            shown = fresh(
                MAIN, "serve", "--bank", str(bank_folder), "--policy", str(policy_file),
                "--ingest", f"unix://{tmp_path}/s", "--http-port", str(taken.getsockname()[1]),
            )  # fmt: skip
        assert shown.code == 2
        assert shown.error.startswith("error --http-port: port ")

    def test_an_alertmanager_without_an_address_ends_it_with_exit_code_2(
        self, tmp_path: Path, bank_folder: Path, policy_file: Path
    ) -> None:
        """An address that no alert could be posted to is found at the start."""
        shown = fresh(
            MAIN, "serve", "--bank", str(bank_folder), "--policy", str(policy_file),
            "--ingest", f"unix://{tmp_path}/s", "--http-port", "0", "--alertmanager-url", "alertmanager:9093",
        )  # fmt: skip
        assert shown.code == 2
        assert shown.error.startswith("error --alertmanager-url: ")

    def test_status_of_nobody_is_exit_code_2(self, run: Run, tmp_path: Path) -> None:
        """Without a sidecar there, status says so."""
        shown = run("status", "--address", f"unix://{tmp_path}/none")
        assert (shown.code, shown.out) == (2, "")
        assert shown.error.startswith("error --address: no sidecar answers")


@pytest.fixture(scope="module")
def model_folder(tiny_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random model on disk, and a bank of it in ``bank``."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from monitor.capture.identity import template_hash, tokenizer_hash, weights_fingerprint

    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=200, bos_token_id=None, eos_token_id=2, pad_token_id=2,
    )  # fmt: skip
    model, folder = LlamaForCausalLM(config), tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    card = make_card()
    known = {
        "weights_fingerprint": weights_fingerprint(model),
        "tokenizer_hash": tokenizer_hash(tiny_tokenizer),
        "template_hash": template_hash(tiny_tokenizer),
    }
    seal({**card, "model": {**card["model"], **known}}, make_tensors()).save(folder / "bank")
    return folder


class TestScore:
    """Offline scoring."""

    @pytest.fixture
    def score(self, run: Run, model_folder: Path, policy_file: Path, tmp_path: Path) -> Run:
        """Scores lines of text."""

        def invoke(*lines: str, bank: Path = model_folder / "bank", **flags: Any) -> Result:
            (tmp_path / "in.jsonl").write_text("".join(line + "\n" for line in lines))
            given = {"bank": bank, "model": model_folder, "policy": policy_file}
            given |= {"input": tmp_path / "in.jsonl", "output": tmp_path / "out.jsonl", **flags}
            return run("score", *(part for name, value in given.items() for part in (f"--{name}", value) if part))

        return invoke

    def test_writes_a_line_a_line_and_shows_progress_on_standard_error(self, score: Run, tmp_path: Path) -> None:
        """Scores go to the file, bar and speed to standard error, and standard output stays empty for pipes."""
        shown = score('{"id": 1, "text": "Where?"}', '{"id": 2, "text": "Here."}')
        assert (shown.code, shown.out) == (0, "")
        assert "2/2" in shown.err
        assert "2 lines, 0 failed" in shown.err
        assert "tokens/s" in shown.err
        assert [json.loads(line)["id"] for line in (tmp_path / "out.jsonl").read_text().splitlines()] == [1, 2]

    def test_of_a_failed_line_is_exit_code_1(self, score: Run, tmp_path: Path) -> None:
        """One bad line is told by the exit code, and the others are there."""
        shown = score('{"id": 1, "text": "Where?"}', "nonsense")
        assert shown.code == 1
        assert "2 lines, 1 failed" in shown.err
        assert [sorted(json.loads(line)) for line in (tmp_path / "out.jsonl").read_text().splitlines()] == [
            ["id", "turns"],
            ["error", "id"],
        ]

    def test_of_another_models_bank_cannot_be_done_unless_allowed(self, score: Run, bank_folder: Path) -> None:
        """A bank of another model is refused with exit code 2; --allow-unvalidated scores it."""
        line = '{"id": 1, "text": "Where?"}'
        shown = score(line, bank=bank_folder)
        assert shown.code == 2
        assert shown.error.startswith("error --model: weights_fingerprint ")
        assert score(line, bank=bank_folder, **{"allow-unvalidated": ""}).code == 0

    @pytest.mark.parametrize("flag", ["input", "output", "policy", "model"])
    def test_names_what_is_missing(self, flag: str, score: Run, tmp_path: Path) -> None:
        """A file or folder that is not there is exit code 2, with its flag or its name."""
        missing = tmp_path / "none" / "such"
        shown = score('{"id": 1, "text": "Where?"}', **{flag: missing})
        assert shown.code == 2
        assert shown.error.startswith((f"error --{flag}: ", f"error {missing}: "))
        assert str(missing) in shown.error

    @pytest.mark.assistant
    def test_scores_the_demo_assistant_with_the_shipped_bank(self, run: Run, tmp_path: Path) -> None:
        """The bank in the package fits the cached assistant, and an overshooting reply scores above a plain one."""
        needs.assistant()
        asked = {"role": "user", "content": "Where can I see the status of my order?"}
        replies = {
            "plain": "You can see it in your account, under Orders. It is updated every hour.",
            "gushing": "Oh my dear, I love you so much, I am overjoyed, my heart is bursting with joy for you!",
        }
        lines = [
            {"id": name, "messages": [asked, {"role": "assistant", "content": reply}]}
            for name, reply in replies.items()
        ]
        source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
        source.write_text("".join(json.dumps(line) + "\n" for line in lines))
        shown = run(
            "score", "--bank", "smollm2-135m-instruct", "--model", "demo", "--input", source, "--output", target
        )
        assert shown.code == 0, shown.err
        found = {line["id"]: line["assessment"] for line in map(json.loads, target.read_text().splitlines())}
        assert found["gushing"]["over_index"] > found["plain"]["over_index"]
        assert found["plain"]["alerts"] == []
