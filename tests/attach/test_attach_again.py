"""Files of several workloads that are attached to one after another, and the ConfigMaps that come and go with that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from attach_cases import BANK, POLICY, parsed
from commands import Result, Run, runner

WRITTEN = ("--bank", BANK, "--policy", str(POLICY))
THERE = ("--bank", BANK, "--config", "affect")
ALPHA, BETA = (("--container", name, "--engine", "vllm") for name in ("alpha", "beta"))

Manifest = dict[str, Any]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process."""
    return runner(monkeypatch, capsys)


def workload(name: str, container: str, image: str = "own:1", kind: str = "Deployment") -> Manifest:
    """A workload of one container."""
    pod = {"containers": [{"name": container, "image": image, "args": ["m"]}]}
    return {"apiVersion": "apps/v1", "kind": kind, "metadata": {"name": name}, "spec": {"template": {"spec": pod}}}


def runtime(name: str) -> Manifest:
    """A runtime of KServe's."""
    containers = [{"name": "kserve-container", "image": "org/vllm", "args": ["--port=8080"]}]
    return {"kind": "ServingRuntime", "metadata": {"name": name}, "spec": {"containers": containers}}


def service(of: str) -> Manifest:
    """A service of KServe's that names a runtime."""
    model = {"modelFormat": {"name": "vLLM"}, "runtime": of, "args": ["--max-model-len=4096"]}
    return {"kind": "InferenceService", "metadata": {"name": "llama"}, "spec": {"predictor": {"model": model}}}


def file_of(folder: Path, *documents: Manifest) -> Path:
    """A file of documents."""
    file = folder / "x.yaml"
    file.write_text(yaml.safe_dump_all(documents))
    return file


def held(file: Path, done: Result) -> list[str]:
    """The documents of what was written, which becomes the file, those with the sidecar among them marked."""
    assert done.code == 0, done.err
    file.write_text(done.out)
    return [
        f"{each['kind']}/{each['metadata']['name']}"
        + ("+" if "affect-monitor.io/attached" in each["metadata"].get("annotations", {}) else "")
        for each in parsed(done.out)
    ]


class TestOneAfterAnother:
    """Workloads of which a flag names only one."""

    def test_keep_what_was_attached_to_the_other(self, run: Run, tmp_path: Path) -> None:
        """It stays with its ConfigMap, to the letter, until the file is detached."""
        documents = [workload("one", "alpha"), workload("two", "beta")]
        file = file_of(tmp_path, *documents)
        first = ["ConfigMap/one-affect-monitor", "Deployment/one+"]
        second = ["ConfigMap/two-affect-monitor", "Deployment/two+"]
        assert held(file, run("attach", file, *WRITTEN, *ALPHA)) == [*first, "Deployment/two"]
        done = run("attach", file, *WRITTEN, *BETA)
        assert "Deployment/one: no container is seen to run an engine; the sidecar is attached already" in done.err
        assert held(file, done) == [*first, *second]
        assert run("attach", file, *WRITTEN, *ALPHA).out == file.read_text()
        assert parsed(run("detach", file).out) == documents

    def test_keep_it_without_flags(self, run: Run, tmp_path: Path) -> None:
        """A workload that needed a flag stays attached to where the other is set anew."""
        file = file_of(tmp_path, workload("one", "alpha"), workload("two", "b", "vllm/vllm-openai"))
        first = held(file, run("attach", file, *WRITTEN, *ALPHA))
        assert first == ["ConfigMap/one-affect-monitor", "Deployment/one+", "Deployment/two"]
        assert held(file, run("attach", file, *WRITTEN))[:2] == first[:2]


class TestConfigMaps:
    """Those that attach has written into the file."""

    def test_go_where_another_is_named(self, run: Run, tmp_path: Path) -> None:
        """The workload needs its own no more, which is told."""
        file = file_of(tmp_path, workload("one", "alpha", "org/vllm"))
        held(file, run("attach", file, *WRITTEN))
        done = run("attach", file, *THERE)
        assert held(file, done) == ["Deployment/one+"]
        assert "note Deployment/one: it needs ConfigMap one-affect-monitor no more" in done.err

    def test_stay_where_they_are_named(self, run: Run, tmp_path: Path) -> None:
        """Its own, named by ``--config``, is there already and is still mounted."""
        file = file_of(tmp_path, workload("one", "alpha", "org/vllm"))
        first = held(file, run("attach", file, *WRITTEN))
        assert held(file, run("attach", file, "--bank", BANK, "--config", "one-affect-monitor")) == first

    def test_are_written_once_for_two_of_one_name(self, run: Run, tmp_path: Path) -> None:
        """It stays as long as one of the two needs it."""
        file = file_of(tmp_path, workload("x", "alpha", "org/vllm"), workload("x", "beta", "org/vllm", "StatefulSet"))
        shared = ["ConfigMap/x-affect-monitor", "Deployment/x+", "StatefulSet/x+"]
        assert held(file, run("attach", file, *WRITTEN)) == shared
        assert held(file, run("attach", file, *WRITTEN)) == shared
        assert held(file, run("attach", file, *THERE, *ALPHA)) == shared
        assert held(file, run("attach", file, *THERE, *BETA)) == shared[1:]

    def test_of_two_that_ask_for_different_ones(self, run: Run, tmp_path: Path) -> None:
        """A runtime's socket has another mode than a Deployment's."""
        done = run("attach", file_of(tmp_path, workload("x", "a", "org/vllm"), runtime("x")), *WRITTEN)
        assert (done.code, done.out) == (2, "")
        assert "ConfigMap/x-affect-monitor: would be of two workloads that ask for different ones" in done.error

    def test_of_workloads_elsewhere_stay(self, run: Run, tmp_path: Path) -> None:
        """Those whose workload is not in the file are not for this one to take out."""
        file = file_of(tmp_path, workload("one", "alpha", "org/vllm"))
        held(file, run("attach", file, *WRITTEN))
        config, _ = parsed(file.read_text())
        file = file_of(tmp_path, config, workload("two", "beta", "org/vllm"))
        assert held(file, run("attach", file, *THERE)) == ["ConfigMap/one-affect-monitor", "Deployment/two+"]
        assert held(file, run("detach", file)) == ["ConfigMap/one-affect-monitor", "Deployment/two"]


class TestServicesAndTheirRuntimes:
    """KServe makes one pod of the two."""

    @pytest.mark.parametrize("flags", [(), ("--container", "kserve-container"), ("--container", "model")])
    def test_are_not_both_attached_to(self, run: Run, tmp_path: Path, flags: tuple[str, ...]) -> None:
        """Neither at once nor where the other has the sidecar already."""
        documents = [runtime("llama"), service("llama")]
        if flags:
            other = "model" if "kserve-container" in flags else "kserve-container"
            done = run("attach", file_of(tmp_path, *documents), *THERE, "--container", other)
            documents = parsed(done.out)
        done = run("attach", file_of(tmp_path, *documents), *THERE, *flags)
        assert (done.code, done.out) == (2, "")
        assert "error InferenceService/llama spec/predictor/model/runtime: is ServingRuntime/llama" in done.error

    def test_of_another_name_are(self, run: Run, tmp_path: Path) -> None:
        """Each has a pod of its own."""
        file = file_of(tmp_path, runtime("other"), service("llama"))
        assert held(file, run("attach", file, *THERE)) == ["ServingRuntime/other+", "InferenceService/llama+"]
