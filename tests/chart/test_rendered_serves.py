"""What the chart renders and what attach writes, started for real: the containers' commands, on the rendered files."""

from __future__ import annotations

import hashlib
import http.server
import queue
import subprocess
import tarfile
import tempfile
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import httpx
import needs
import pytest
import torch
import yaml
from commands import Run, runner
from helm_engine import CI, Document, Render, read_values
from pod_folder import PodFolder, port_of, with_port
from processes import PATIENCE, Program, free_port, program
from prometheus_client.parser import text_string_to_metric_families

from monitor.bench.load import hello
from monitor.capture.client import SidecarClient
from monitor.probes.bank import SHIPPED, Bank, load_bank
from monitor.wire.v1 import ingest_pb2

BANK = "smollm2-135m-instruct"
TOKEN = "a-token-of-the-test"  # noqa: S105 - of the test
SECRETS = {"affect-monitor-token": {"token": TOKEN}}
WORKLOADS = Path(__file__).parents[1] / "attach" / "workloads"
PROBES = ("startupProbe", "livenessProbe")


def template(made: list[Document]) -> Document:
    """Spec of the pods that have the sidecar, of the only Deployment whose pods do."""
    specs = [each["spec"]["template"]["spec"] for each in made if each["kind"] == "Deployment"]
    (found,) = [
        spec
        for spec in specs
        if "affect-monitor" in [each["name"] for each in [*spec.get("initContainers", []), *spec["containers"]]]
    ]
    return found


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short path: that of a socket in it may have 107 characters."""
    with tempfile.TemporaryDirectory(prefix="pod-") as made:
        yield Path(made)


@pytest.fixture(scope="module")
def bank() -> Bank:
    """The shipped bank."""
    return load_bank(BANK)


@contextmanager
def sidecar(pod: PodFolder, folder: Path) -> Iterator[Program]:
    """Runs a pod's sidecar until the block is left; its port is the only thing that is not as rendered."""
    port = free_port()
    environment = pod.environment("affect-monitor") | {"AFFECT_HTTP_PORT": str(port)}
    command, ready = pod.command("affect-monitor"), pod.container("affect-monitor")["startupProbe"]["httpGet"]["path"]
    url, log = f"http://127.0.0.1:{port}", folder / "sidecar.log"
    with program(command, url, log, ready=ready, environment=environment) as running:
        yield running


def take_turn(pod: PodFolder, bank: Bank) -> ingest_pb2.Assessment:
    """Sends a turn to the socket in the pod's volume, as the engine's container sees it; what comes back of it."""
    spoken = [*range(1000, 1012)]
    prompt = [1, 4093, 198, *spoken, 2, 198, 1, 520, 9531, 198]
    tokens, model = [*prompt, *spoken], bank.card.model
    rows = torch.randn(len(tokens), len(bank.card.layers), model.hidden_size)
    finished: queue.SimpleQueue[ingest_pb2.Assessment] = queue.SimpleQueue()
    address = f"unix://{pod.path('affect-monitor-socket')}/ingest.sock"
    with closing(SidecarClient(address, hello(bank), on_assessment=finished.put)) as client:
        client.start("request", len(prompt))
        client.rows(["request"], [0], [len(tokens)], tokens, rows)
        client.end("request", len(tokens))
        return finished.get(timeout=PATIENCE)


def samples(running: Program, name: str, **labels: str) -> list[float]:
    """Values of a metric, of the series with these labels, as a scrape finds them."""
    families = text_string_to_metric_families(httpx.get(f"{running.url}/metrics").text)
    found = [sample for family in families for sample in family.samples if sample.name == name]
    return [sample.value for sample in found if labels.items() <= sample.labels.items()]


def check_serves(pod: PodFolder, running: Program, bank: Bank) -> None:
    """Asks for what Kubernetes, Prometheus and an engine ask of a sidecar."""
    container = pod.container("affect-monitor")
    for probe in PROBES:
        asked = container[probe]["httpGet"]
        assert port_of(container, asked["port"]) == 9469
        timeout = container[probe].get("timeoutSeconds", 1)
        assert httpx.get(running.url + asked["path"], timeout=timeout).is_success
    assert take_turn(pod, bank).coverage == 1
    assert sum(samples(running, "affect_turns_total")) == 1


class TestChart:
    """What the chart renders."""

    @pytest.mark.parametrize("name", ["demo", "classic", "settings"])
    def test_sidecar_serves(self, render: Render, folder: Path, bank: Bank, name: str) -> None:
        """It answers its probes, scores a turn on its socket, is scraped, and drains within the pod's grace period."""
        made = render(name)
        spec = template(made)
        pod = PodFolder(folder, spec, made, SECRETS)
        with sidecar(pod, folder) as running:
            check_serves(pod, running, bank)
            assert running.stop(spec["terminationGracePeriodSeconds"]) == 0
        assert list(pod.path("affect-monitor-state").iterdir())

    def test_sidecar_asks_for_the_token_of_the_secret(self, render: Render, folder: Path) -> None:
        """Turns are shown to who has the mounted token, and to nobody else."""
        made = render("settings")
        pod = PodFolder(folder, template(made), made, SECRETS)
        with sidecar(pod, folder) as running:
            told = {"authorization": f"Bearer {TOKEN}"}
            assert httpx.get(f"{running.url}/api/turns").status_code == 401
            assert httpx.get(f"{running.url}/api/turns", headers=told).is_success

    def test_example_shows_a_turn_of_its_assistant(self, render: Render, folder: Path) -> None:
        """The example's containers, started and stopped in their order, score what a client is answered."""
        made = render("demo")
        spec = template(made)
        pod = PodFolder(folder, spec, made, given={"cache": needs.assistant().parent})
        grace = spec["terminationGracePeriodSeconds"]
        engine, port = pod.container("assistant"), free_port()
        command, environment = with_port(pod.command("assistant"), port), pod.environment("assistant")
        ready = engine["startupProbe"]["httpGet"]
        assert port_of(engine, ready["port"]) == port_of(engine, "http")
        url, log = f"http://127.0.0.1:{port}", folder / "engine.log"
        with (
            sidecar(pod, folder) as watching,
            program(command, url, log, ready=ready["path"], environment=environment) as serving,
        ):
            asked = {"model": BANK, "messages": [{"role": "user", "content": "Where is my parcel?"}], "max_tokens": 16}
            httpx.post(f"{url}/v1/chat/completions", json=asked, timeout=PATIENCE).raise_for_status()
            assert serving.stop(grace) == 0
            assert sum(samples(watching, "affect_turns_total")) == 1
            assert sum(samples(watching, "affect_tokens_missing_total")) == 0
            assert watching.stop(grace) == 0


class _Files(http.server.SimpleHTTPRequestHandler):
    """Serves a folder, and says nothing."""

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[tuple[str, str]]:
    """Address of the shipped bank as a .tar.gz on a server of this machine, and its SHA-256."""
    shop = tmp_path / "shop"
    shop.mkdir()
    with tarfile.open(shop / "bank.tar.gz", "w:gz") as packed:
        packed.add(SHIPPED / BANK, "assistant")
    digest = hashlib.sha256((shop / "bank.tar.gz").read_bytes()).hexdigest()

    def handler(*given: object) -> _Files:
        return _Files(*given, directory=str(shop))  # type: ignore[arg-type]

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/bank.tar.gz", digest
        server.shutdown()


class TestBankByUrl:
    """The init container that fetches the bank."""

    @pytest.fixture
    def pod(self, render: Render, folder: Path, tmp_path: Path, archive: tuple[str, str]) -> PodFolder:
        """A pod of the example whose bank comes from the server, with the digest of the test's choice."""
        values = read_values(CI["bank-url"])
        values["bank"]["url"] = dict(zip(("location", "sha256"), archive, strict=True))
        (tmp_path / "values.yaml").write_text(yaml.safe_dump(values))
        made = render(tmp_path / "values.yaml")
        return PodFolder(folder, template(made), made)

    def fetch(self, pod: PodFolder) -> subprocess.CompletedProcess[str]:
        """Runs the init container."""
        command, environment = pod.command("affect-monitor-bank"), pod.environment("affect-monitor-bank")
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=PATIENCE)

    def test_sidecar_serves_what_it_fetched(self, pod: PodFolder, folder: Path, bank: Bank) -> None:
        """The bank arrives in the volume, and the sidecar serves with it."""
        assert self.fetch(pod).returncode == 0
        with sidecar(pod, folder) as running:
            check_serves(pod, running, bank)
            assert samples(running, "affect_bank_info", bank_id=bank.card.bank_id) == [1]

    def test_another_digest_is_refused(self, pod: PodFolder) -> None:
        """A file that is not the one promised ends the init container, which keeps nothing of it."""
        arguments = pod.container("affect-monitor-bank")["args"]
        arguments[arguments.index("--sha256") + 1] = "0" * 64
        done = self.fetch(pod)
        assert done.returncode != 0
        assert "--sha256" in done.stderr
        assert [path.name for path in pod.path("affect-monitor-bank").rglob("*") if path.is_file()] == []


class TestAttach:
    """What attach writes."""

    @pytest.fixture
    def run(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
        """Runs affect-monitor attach."""
        return runner(monkeypatch, capsys, "attach")

    @pytest.mark.parametrize(
        ("workload", "flags"),
        [
            ("production-stack", ["--capture", "tap"]),
            ("live-object", ["--classic"]),
            ("transformers", ["--container", "app", "--engine", "transformers"]),
        ],
    )
    def test_sidecar_serves(self, run: Run, folder: Path, bank: Bank, workload: str, flags: list[str]) -> None:
        """The sidecar that a workload was given answers its probes, scores a turn, is scraped, and drains."""
        policy = WORKLOADS.parent / "small-policy.yaml"
        done = run(WORKLOADS / f"{workload}.yaml", "--bank", BANK, "--policy", policy, *flags)
        assert done.code == 0, done.err
        made = [each for each in yaml.safe_load_all(done.out) if each]
        spec = template(made)
        pod = PodFolder(folder, spec, made)
        with sidecar(pod, folder) as running:
            check_serves(pod, running, bank)
            assert running.stop(spec.get("terminationGracePeriodSeconds", 30)) == 0
