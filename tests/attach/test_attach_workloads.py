"""Attach and detach on workloads of the shapes that are in use, by the command line and by kubectl itself."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import kubernetes_validate
import pytest
from attach_cases import BANK, CASES, GOLDEN, POLICY, SETTINGS, Manifest, parsed, patched, workload
from commands import Result, Run, runner

from monitor.policy.schema import read_policy
from monitor.settings import load_settings

CORE = {"DaemonSet", "Deployment", "StatefulSet"}
VERSIONS = ["1.29", kubernetes_validate.latest_version()]

Attach = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process."""
    return runner(monkeypatch, capsys)


@pytest.fixture
def attach(run: Run) -> Attach:
    """Attaches to a workload by its name, or to a file, with the flags that the workload asks for."""

    def attach(name: str, file: Path | None = None, *flags: str) -> Result:
        given = flags or ("--policy", str(POLICY), *SETTINGS.get(name, ()))
        return run("attach", file or workload(name), "--bank", BANK, *given, *CASES[name])

    return attach


def attached_to(documents: list[Manifest]) -> Manifest:
    """The document that has been attached to."""
    (found,) = [d for d in documents if "affect-monitor.io/attached" in (d["metadata"].get("annotations") or {})]
    return found


def is_same(one: Manifest, other: Manifest) -> bool:
    """Whether two documents are of one object."""
    return (one["kind"], one["metadata"]["name"]) == (other["kind"], other["metadata"]["name"])


@pytest.mark.parametrize("name", CASES)
class TestWorkloads:
    """Every workload of the folder."""

    def test_becomes_what_it_is_known_to_become(self, attach: Attach, name: str) -> None:
        """Result and notes are those of the golden files (attach_golden.py writes them)."""
        done = attach(name)
        assert done.code == 0
        assert parsed(done.out) == parsed((GOLDEN / f"{name}.yaml").read_text())
        assert done.out == (GOLDEN / f"{name}.yaml").read_text()
        assert done.err == (GOLDEN / f"{name}.txt").read_text()

    def test_is_patched_to_the_same_by_kubectl(self, attach: Attach, name: str, tmp_path: Path) -> None:
        """The patch makes, by kubectl's own hand, what the whole manifest is."""
        flags = ("--config", "affect")
        whole, patch = attach(name, None, *flags), attach(name, None, *flags, "--patch")
        wanted = attached_to(parsed(whole.out))
        (original,) = [d for d in parsed(workload(name).read_text()) if is_same(d, wanted)]
        kind = re.findall(r"--type (\w+)", patch.err)[-1]
        assert kind == ("strategic" if wanted["kind"] in CORE else "merge")
        assert patched(tmp_path, original, kind, patch.out) == wanted

    def test_is_detached_to_what_it_was(self, run: Run, attach: Attach, name: str, tmp_path: Path) -> None:
        """The documents are those from before, none more and none less."""
        file = tmp_path / "attached.yaml"
        file.write_text(attach(name).out)
        done = run("detach", file)
        assert parsed(done.out) == parsed(workload(name).read_text())
        assert "detached" in done.err

    def test_is_attached_to_once(self, attach: Attach, name: str, tmp_path: Path) -> None:
        """Attach on what it wrote writes the same, to the letter."""
        file = tmp_path / "attached.yaml"
        file.write_text(attach(name).out)
        assert attach(name, file).out == file.read_text()

    @pytest.mark.parametrize("version", VERSIONS)
    def test_is_valid(self, attach: Attach, name: str, version: str) -> None:
        """What is Kubernetes' own passes its schemas, with no field beyond them."""
        for document in parsed(attach(name).out):
            if "." not in document["apiVersion"].partition("/")[0].removesuffix(".k8s.io"):
                kubernetes_validate.validate(document, version, strict=True)

    def test_tells_the_sidecar_what_it_can_read(self, attach: Attach, name: str, tmp_path: Path) -> None:
        """Settings and policy of the ConfigMap are such as the sidecar takes."""
        (config,) = [d for d in parsed(attach(name).out) if d["kind"] == "ConfigMap"]
        for key, text in config["data"].items():
            (tmp_path / key).write_text(text)
        settings = load_settings(tmp_path / "settings.yaml", {})
        assert (settings.ingest, settings.http_host) == ("unix:///run/affect-monitor/ingest.sock", "0.0.0.0")  # noqa: S104
        assert read_policy(tmp_path / "policy.yaml") == read_policy(POLICY)

    def test_keeps_comments(self, attach: Attach, name: str) -> None:
        """Every comment of the file is there afterwards."""
        comments = re.findall(r"(?:^|\s)(# .*)$", workload(name).read_text(), re.MULTILINE)
        assert [comment for comment in comments if comment not in attach(name).out] == []


class TestPatchesOfWhatIsAttached:
    """Attaching anew by a patch: what goes is taken out, what comes is put in."""

    @pytest.mark.parametrize(
        ("before", "after"),
        [
            ((), ("--classic",)),
            (("--classic",), ()),
            (("--bank-from", "pvc://banks/assistant"), ("--classic",)),
            (("--engine-image", "own:1"), ("--capture", "tap")),
        ],
    )
    @pytest.mark.parametrize("name", ["live-object", "existing-sidecars", "no-args"])
    def test_make_the_same_by_kubectl(
        self, run: Run, name: str, before: tuple[str, ...], after: tuple[str, ...], tmp_path: Path
    ) -> None:
        """A sidecar of the other kind, a bank from elsewhere, an image of the engine: nothing of them is left."""
        given = ("--bank", BANK, "--config", "affect")
        file = tmp_path / "attached.yaml"
        file.write_text(run("attach", workload(name), *given, *before).out)
        whole, patch = run("attach", file, *given, *after), run("attach", file, *given, *after, "--patch")
        original, wanted = attached_to(parsed(file.read_text())), attached_to(parsed(whole.out))
        assert patched(tmp_path, original, "strategic", patch.out) == wanted
        assert original != wanted


class TestLiveObjects:
    """What kubectl get prints."""

    def test_what_the_cluster_adds_does_not_hinder_detach(self, run: Run, attach: Attach, tmp_path: Path) -> None:
        """Defaults of the server in what attach added go with it; what else has changed since stays."""
        written = attach("live-object").out
        live = attached_to(parsed(written))
        (added,) = [c for c in live["spec"]["template"]["spec"]["containers"] if c["name"] == "affect-monitor"]
        added["terminationMessagePath"] = "/dev/termination-log"
        added["livenessProbe"] |= {"successThreshold": 1}
        live["spec"]["template"]["spec"]["volumes"][1]["configMap"]["defaultMode"] = 420
        live["spec"]["replicas"] = 7
        (tmp_path / "live.json").write_text(json.dumps(live))
        (original,) = parsed(workload("live-object").read_text())
        original["spec"]["replicas"] = 7
        assert parsed(run("detach", tmp_path / "live.json").out) == [original]

    def test_are_read_from_standard_input(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        """A dash stands for it, for attach and for detach."""
        text = workload("live-object").read_text()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        done = run("attach", "-", "--bank", BANK, "--config", "affect")
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(done.out.encode())))
        assert parsed(run("detach", "-").out) == parsed(text)

    def test_come_in_lists(self, run: Run, tmp_path: Path) -> None:
        """Every workload of a list is attached to, and its ConfigMap stands before the list."""
        items = [parsed(workload(name).read_text())[0] for name in ("no-args", "existing-sidecars")]
        file = tmp_path / "list.json"
        file.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))
        done = run("attach", file, "--bank", BANK, "--policy", POLICY)
        assert [document["kind"] for document in parsed(done.out)] == ["ConfigMap", "ConfigMap", "List"]
        file.write_text(done.out)
        assert parsed(run("detach", file).out)[0]["items"] == items
