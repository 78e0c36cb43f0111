"""Tests of ``affect-monitor attach`` and ``detach``: what is asked for, what is refused, and what is said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import Result, Run, runner

BANK = ("--bank", "smollm2-135m-instruct")
CONFIG = ("--config", "affect")
ENGINE = {"name": "engine", "image": "vllm/vllm-openai:v0.32.0", "args": ["org/model"]}
EXPANDED = """vllm serve m -sc '{"method": "extract_hidden_states", "draft": '"\\"$DRAFT\\"}" """

Manifest = Callable[..., Path]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process."""
    return runner(monkeypatch, capsys)


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    """Writes a Deployment of some containers, with what else is said of it and of its pod."""

    def write(
        *containers: dict[str, Any], kind: str = "Deployment", pod: dict[str, Any] | None = None, **more: Any
    ) -> Path:
        spec = {"template": {"spec": {"containers": list(containers), **(pod or {})}}}
        document = {"apiVersion": "apps/v1", "kind": kind, "metadata": {"name": "x"}, "spec": spec, **more}
        (tmp_path / "x.yaml").write_text(yaml.safe_dump(document))
        return tmp_path / "x.yaml"

    return write


def engine_of(done: Result) -> dict[str, Any]:
    """The engine's container in the last document of what was written."""
    assert done.code == 0, done.err
    *_, document = yaml.safe_load_all(done.out)
    found: dict[str, Any] = document["spec"]["template"]["spec"]["containers"][0]
    return found


class TestWhatIsAskedFor:
    """Flags of attach, without which something cannot be decided."""

    @pytest.mark.parametrize(
        ("flags", "told"),
        [
            (CONFIG, "--layers: is needed, or --bank"),
            (BANK, "--policy: name a policy file, or by --config a ConfigMap that is there"),
            ((*CONFIG, "--layers", "4"), "--bank-from: is needed for a bank that is not in the package"),
            ((*CONFIG, "--layers", "4", "--bank-from", "s3://banks"), "write pvc://CLAIM/FOLDER or oci://IMAGE"),
            ((*BANK, *CONFIG, "--setting", "max_open_turns=9"), "ConfigMap affect has its own settings"),
            ((*BANK, *CONFIG, "--container", "other"), "other is none of those there: Deployment/x: engine (vllm/vllm"),
        ],
    )
    def test_is_named(self, run: Run, manifest: Manifest, flags: tuple[str, ...], told: str) -> None:
        """With exit code 2, and what to give."""
        done = run("attach", manifest(ENGINE), *flags)
        assert (done.code, done.out) == (2, "")
        assert told in done.error

    @pytest.mark.parametrize(
        ("setting", "told"),
        [
            ("colour=red", "'colour' is no setting"),
            ("threads=0", "threads: Input should be"),
            ("http_port=8080", "http_port is what the engine, the probes and the pod's volumes count on; leave it out"),
            ("bank=other", "bank is said by --bank and --bank-from"),
            ("tls_cert=/c", "tls_cert goes with TCP"),
            ("token_file=/t", "token_file is said by --token-secret"),
        ],
    )
    def test_settings_are_checked(self, run: Run, manifest: Manifest, tmp_path: Path, setting: str, told: str) -> None:
        """Those that the sidecar would refuse are refused here, and those that would come to nothing."""
        policy = tmp_path / "policy.yaml"
        policy.write_text("version: 1\npolicies: [{name: a, stance: neutral, turn: {false_alarm_rate: 0.01}}]\n")
        done = run("attach", manifest(ENGINE), *BANK, "--policy", policy, "--setting", setting)
        assert done.code == 2
        assert told in done.error

    def test_a_patch_has_no_room_for_a_policy(self, run: Run, manifest: Manifest, tmp_path: Path) -> None:
        """A ConfigMap that is there has to be named."""
        policy = tmp_path / "policy.yaml"
        policy.write_text("version: 1\npolicies: [{name: a, stance: neutral, turn: {false_alarm_rate: 0.01}}]\n")
        assert "name it by --config" in run("attach", manifest(ENGINE), *BANK, "--policy", policy, "--patch").error


class TestWhichContainer:
    """The engine's container is seen, or asked for."""

    @pytest.mark.parametrize(
        ("container", "seen"),
        [
            ({"image": "vllm/vllm-openai", "args": ["m"]}, "vLLM"),
            ({"image": "gitlab.example.org/a/dependency_proxy/containers/vllm/vllm-openai:1", "args": ["m"]}, "vLLM"),
            ({"image": "lmcache/vllm-openai@sha256:0", "args": ["m"]}, "vLLM"),
            ({"image": "kserve/huggingfaceserver", "args": ["m"]}, "vLLM"),
            ({"image": "registry:5000/proxy/lmsysorg/sglang", "args": ["--model-path", "m"]}, "SGLang"),
            ({"image": "registry:5000/own", "command": ["vllm", "serve", "m"]}, "vLLM"),
            ({"image": "own", "command": ["bash", "-lc", "exec python -m vllm.entrypoints.openai.api_server"]}, "vLLM"),
            ({"image": "own", "command": ["bash", "-c", "p=$(f $(g)); vllm serve m"], "args": None}, "vLLM"),
            ({"image": "own", "command": ["/run.sh"], "args": ["--gpu-memory-utilization=0.9"]}, "vLLM"),
            ({"image": "own", "command": ["sglang", "serve", "--model-path", "m"]}, "SGLang"),
            ({"image": "own", "command": ["transformers", "serve"]}, "transformers"),
            ({"image": "own", "command": ["sh", "-c", "transformers serve"]}, "transformers"),
        ],
    )
    def test_is_seen(self, run: Run, manifest: Manifest, container: dict[str, Any], seen: str) -> None:
        """By its command, its image or its flags."""
        done = run("attach", manifest({"name": "a", **container}), *BANK, *CONFIG)
        assert f"note Deployment/x: sidecar added beside container a: {seen}" in done.err

    def test_is_asked_for_between_two(self, run: Run, manifest: Manifest) -> None:
        """Both are named; the flag decides."""
        two = manifest(ENGINE, {**ENGINE, "name": "second"})
        assert "engine, second all seem to run an engine" in run("attach", two, *BANK, *CONFIG).error
        assert run("attach", two, *BANK, *CONFIG, "--container", "second").code == 0

    def test_is_asked_for_where_none_is_seen(self, run: Run, manifest: Manifest) -> None:
        """The containers there are told; name and engine decide."""
        file = manifest({"name": "a", "image": "own:1", "args": ["m"]})
        assert (
            "name it, and by --engine what it runs: Deployment/x: a (own:1)"
            in run("attach", file, *BANK, *CONFIG).error
        )
        assert "--engine" in run("attach", file, *BANK, *CONFIG, "--container", "a").error
        assert engine_of(run("attach", file, *BANK, *CONFIG, "--container", "a", "--engine", "vllm"))["args"][0] == "m"

    @pytest.mark.parametrize(
        "other",
        [
            {"image": "org/vllm-router:1"},
            {"image": "registry.example.org/vllm/nginx:1"},
            {"image": "busybox", "command": ["sh", "-c", "n=$(( $(date +%s) - 60 )); echo $n"]},
            {"image": "busybox", "args": ["sh", "-c", "echo '"]},
        ],
    )
    def test_others_are_left_alone(self, run: Run, manifest: Manifest, other: dict[str, Any]) -> None:
        """Images that are called after an engine and run none, and scripts that cannot be read."""
        file = manifest({"name": "other", **other}, ENGINE)
        assert "beside container engine" in run("attach", file, *BANK, *CONFIG).err

    @pytest.mark.parametrize(
        ("named", "watched", "other"), [("leader/vllm", 0, "worker/vllm"), ("worker/vllm", 1, "leader/vllm")]
    )
    def test_pods_whose_containers_have_one_name(
        self, run: Run, tmp_path: Path, named: str, watched: int, other: str
    ) -> None:
        """The pod's role before the name tells them apart; what is not watched is told."""
        template = {"spec": {"containers": [{**ENGINE, "name": "vllm"}]}}
        pods = {"leaderTemplate": template, "workerTemplate": template}
        document = {"kind": "LeaderWorkerSet", "metadata": {"name": "x"}, "spec": {"leaderWorkerTemplate": pods}}
        (tmp_path / "x.yaml").write_text(yaml.safe_dump(document))
        asked = run("attach", tmp_path / "x.yaml", *BANK, *CONFIG)
        assert "leader/vllm, worker/vllm all seem to run an engine" in asked.error
        done = run("attach", tmp_path / "x.yaml", *BANK, *CONFIG, "--container", named)
        assert f"sidecar added beside container {named}" in done.err
        assert f"container {other} is seen to run an engine too, and is not watched" in done.err
        changed = yaml.safe_load(done.out)["spec"]["leaderWorkerTemplate"]
        specs = [changed[name]["spec"] for name in pods]
        assert ["initContainers" in spec for spec in specs] == [watched == 0, watched == 1]


class TestWhatIsWritten:
    """Arguments where the engine sees them, and YAML that kubectl's older reader takes for the same."""

    @pytest.mark.parametrize(
        "started",
        [
            {"command": ["/usr/bin/tini", "--"], "args": ["bash", "-c", "vllm serve m; true"]},
            {"command": ["/usr/bin/env", "bash", "-c"], "args": ["vllm serve m; true"]},
            {"args": ["/bin/bash", "-e", "-o", "errexit", "-c", "vllm serve m; true", "name"]},
            {"command": ["sh", "-ceu"], "args": ["p=$((8000 + ${I:-0}))\nexec vllm serve m --port $p; true"]},
            {"args": ["sh", "-c", "vllm serve m --port $(( (1 + 1) * 4000 )); true"]},
        ],
    )
    def test_arguments_go_into_a_script(self, run: Run, manifest: Manifest, started: dict[str, Any]) -> None:
        """Behind the engine's own, whatever starts the shell; all words around the script stay."""
        container = {"name": "engine", "image": "own", **started}
        changed = engine_of(run("attach", manifest(container), *BANK, *CONFIG))
        before, after = ([*each.get("command", []), *each["args"]] for each in (container, changed))
        ((old, new),) = [pair for pair in zip(before, after, strict=True) if pair[0] != pair[1]]
        start, end = old.split("; true")
        assert new.startswith(f"{start} --speculative-config ")
        assert new.endswith(f"; true{end}")

    def test_texts_that_look_like_truth_values(self, run: Run, tmp_path: Path) -> None:
        """A text such as on or no stays a text, in a file with aliases too, whose quotes are lost."""
        names = "&env [{name: A, value: 'on'}, {name: B, value: 'No'}]"
        engine = f"{{name: engine, image: vllm/vllm-openai:v0.32.0, args: [m], env: {names}}}"
        pod = f"{{containers: [{engine}, {{name: other, image: other, env: *env}}]}}"
        (tmp_path / "x.yaml").write_text(
            f"{{apiVersion: apps/v1, kind: Deployment, metadata: {{name: x}}, spec: {{template: {{spec: {pod}}}}}}}"
        )
        done = run("attach", tmp_path / "x.yaml", *BANK, *CONFIG)
        assert [variable["value"] for variable in engine_of(done)["env"]] == ["on", "No"]


class TestWhatIsTold:
    """Notes on what was attached."""

    @pytest.mark.parametrize(("namespace", "told"), [({}, ""), ({"namespace": "inference"}, " -n inference")])
    def test_how_a_patch_is_applied(self, run: Run, manifest: Manifest, namespace: dict[str, str], told: str) -> None:
        """With the workload's namespace, where it says one."""
        done = run("attach", manifest(ENGINE, metadata={"name": "x", **namespace}), *BANK, *CONFIG, "--patch")
        assert f"kubectl patch Deployment/x{told} --type strategic --patch-file FILE" in done.err

    @pytest.mark.parametrize(
        ("theirs", "group"), [({}, {"fsGroup": 10001, "fsGroupChangePolicy": "OnRootMismatch"}), ({"fsGroup": 7}, {})]
    )
    def test_pods_that_get_a_group_for_a_token(
        self, run: Run, manifest: Manifest, theirs: dict[str, Any], group: dict[str, Any]
    ) -> None:
        """The sidecar reads the Secret's file by the pod's own group, or by one that it gets, which is told."""
        engine = manifest(ENGINE, pod={"securityContext": theirs})
        done = run("attach", engine, *BANK, *CONFIG, "--token-secret", "page-token")
        (document,) = yaml.safe_load_all(done.out)
        spec = document["spec"]["template"]["spec"]
        assert spec["securityContext"] == {**theirs, **group, "supplementalGroups": [10001]}
        assert ("the pod gets fsGroup 10001" in done.err) == bool(group)
        (secret,) = [volume["secret"] for volume in spec["volumes"] if "secret" in volume]
        assert (secret["secretName"], secret["defaultMode"]) == ("page-token", 0o440)

    @pytest.mark.parametrize(
        ("pod", "flags", "told"),
        [
            ({}, ("drain_seconds=10",), ""),
            ({}, ("drain_seconds=60",), "terminationGracePeriodSeconds is 30, and the sidecar's end takes up to 61"),
            ({"terminationGracePeriodSeconds": 5}, (), "terminationGracePeriodSeconds is 5, and the sidecar's end"),
            ({"terminationGracePeriodSeconds": 20}, (), ""),
            ({"terminationGracePeriodSeconds": 20}, ("--classic",), "takes up to 26 of them: turns that end last"),
        ],
    )
    def test_pods_that_stop_too_soon(
        self, run: Run, manifest: Manifest, tmp_path: Path, pod: dict[str, Any], flags: tuple[str, ...], told: str
    ) -> None:
        """Where the grace period does not hold the sidecar's end, with what it has to wait; else nothing is said."""
        policy = tmp_path / "policy.yaml"
        policy.write_text("version: 1\npolicies: [{name: a, stance: neutral, turn: {false_alarm_rate: 0.01}}]\n")
        given = [part for flag in flags for part in ([flag] if flag.startswith("-") else ["--setting", flag])]
        done = run("attach", manifest(ENGINE, pod=pod), *BANK, "--policy", policy, *given)
        assert done.code == 0
        assert ("terminationGracePeriodSeconds" in done.err) == bool(told)
        assert told in done.err


class TestWhatIsRefused:
    """Workloads that cannot be attached to, with what to do instead."""

    @pytest.mark.parametrize(
        ("engine", "told"),
        [
            ({"args": ["m", "--speculative-config", '{"method": "ngram"}']}, "--capture tap leaves that place to you"),
            ({"args": ["m", "--kv-transfer-config", '{"kv_connector": "NixlConnector"}']}, "use --capture tap"),
            ({"args": ["m"], "env": [{"name": "VLLM_PLUGINS", "value": "a"}]}, "set VLLM_PLUGINS=a,affect_monitor"),
            ({"args": "--model m"}, "containers/0/args: is not as Kubernetes has it: Input should be a valid list"),
            ({"env": {"A": "b"}}, "containers/0/env: is not as Kubernetes has it"),
            ({"env": [{"value": "b"}]}, "containers/0/env/0/name: is not as Kubernetes has it: Field required"),
            ({"name": ""}, "containers/0/name: is not as Kubernetes has it"),
            ({"name": 1}, "containers/0/name: is not as Kubernetes has it"),
            ({"image": "org/vllm-own", "args": None}, "write them out as args"),
            ({"command": ["sh", "-c", "/start.sh --max-model-len 4"]}, "its script shows no start of vllm"),
            ({"command": ["sh", "-c", "vllm serve a & vllm serve b"]}, "starts the engine more than once"),
            ({"args": ["tini", "--", "sh", "-c", "/start.sh"]}, "container engine sh -c: its script shows no start"),
            ({"command": ["sh", "-c", "vllm serve a --port $(b"]}, "container engine sh -c: cannot be read from"),
            ({"args": ["sh", "-c", EXPANDED]}, "into which the shell fills nothing; write it in them yourself"),
            ({"volumeMounts": [{"name": "affect-monitor-socket", "mountPath": "/x"}]}, "was not added by attach"),
            (
                {"volumeMounts": [{"name": "own", "mountPath": "/run/affect-monitor/"}]},
                "container engine volumeMounts/own: is at /run/affect-monitor, where the folder",
            ),
            ({"volumeMounts": [{"name": "affect-monitor-bank", "mountPath": "/b"}]}, "comes and goes with the sidecar"),
            ({"ports": [{"containerPort": 9469}]}, "container engine ports: 9469 is the sidecar's"),
            ({"args": ["m", "--port=9469"]}, "container engine --port: 9469 is the sidecar's"),
            ({"command": ["sh", "-c", "vllm serve m --port 9469"]}, "have this one listen on another"),
            ({"image": "s", "args": [], "command": ["sglang", "serve", "--speculative-algorithm", "EAGLE"]}, "drop it"),
            ({"image": "s", "args": [], "command": ["sglang", "serve", "--pp-size", "2"]}, "use tensor parallelism"),
        ],
    )
    def test_says_why(self, run: Run, manifest: Manifest, engine: dict[str, Any], told: str) -> None:
        """Each with exit code 2 and the workload's name."""
        done = run("attach", manifest({**ENGINE, **engine}), *BANK, *CONFIG)
        assert done.code == 2
        assert done.error.startswith("error Deployment/x ")
        assert told in done.error

    @pytest.mark.parametrize(
        ("pod", "metadata", "place"),
        [
            ({"terminationGracePeriodSeconds": "60"}, {}, "spec/template/spec/terminationGracePeriodSeconds"),
            ({"volumes": {"data": {}}}, {}, "spec/template/spec/volumes"),
            ({"initContainers": [None]}, {}, "spec/template/spec/initContainers/0"),
            (
                {"securityContext": {"supplementalGroups": 7}},
                {},
                "spec/template/spec/securityContext/supplementalGroups",
            ),
            ({}, {"annotations": ["a"]}, "metadata/annotations"),
            ({}, {"namespace": {}}, "metadata/namespace"),
        ],
    )
    @pytest.mark.parametrize("command", [("attach", *BANK, *CONFIG), ("detach",)])
    def test_what_kubernetes_would_not_take(
        self,
        run: Run,
        manifest: Manifest,
        command: tuple[str, ...],
        pod: dict[str, Any],
        metadata: dict[str, Any],
        place: str,
    ) -> None:
        """The place is told, whichever way the file goes."""
        file = manifest(ENGINE, pod=pod, metadata={"name": "x", **metadata})
        done = run(command[0], file, *command[1:])
        assert done.code == 2
        assert done.error.startswith(f"error Deployment/x {place}: is not as Kubernetes has it: Input should be")

    def test_a_pod_that_has_the_sidecar_from_elsewhere(self, run: Run, manifest: Manifest) -> None:
        """It is left to whoever added it."""
        done = run("attach", manifest(ENGINE, pod={"initContainers": [{"name": "affect-monitor"}]}), *BANK, *CONFIG)
        assert "is there already and was not added by attach" in done.error

    def test_a_port_that_another_container_has(self, run: Run, manifest: Manifest) -> None:
        """Containers of a pod share their ports, those that start first too; that container is named."""
        exporter = {"name": "exporter", "image": "e", "restartPolicy": "Always", "ports": [{"containerPort": 9469}]}
        done = run("attach", manifest(ENGINE, pod={"initContainers": [exporter]}), *BANK, *CONFIG)
        assert "Deployment/x container exporter ports: 9469 is the sidecar's" in done.error

    def test_files_without_workloads(self, run: Run, tmp_path: Path) -> None:
        """The kinds that are known are named."""
        (tmp_path / "x.yaml").write_text("kind: Service\n")
        assert "holds no workload; attach knows Deployment" in run("attach", tmp_path / "x.yaml", *BANK, *CONFIG).error
        (tmp_path / "x.yaml").write_text("a: [")
        assert "is not YAML" in run("attach", tmp_path / "x.yaml", *BANK, *CONFIG).error
        assert "cannot be read" in run("attach", tmp_path / "missing.yaml", *BANK, *CONFIG).error

    @pytest.mark.parametrize("mode", ["Serverless", "Knative"])
    def test_knative(self, run: Run, tmp_path: Path, mode: str) -> None:
        """It takes no init container that stays."""
        annotations = {"serving.kserve.io/deploymentMode": mode}
        predictor = {"model": {"modelFormat": {"name": "vLLM"}}}
        document = {"kind": "InferenceService", "metadata": {"name": "x", "annotations": annotations}}
        (tmp_path / "x.yaml").write_text(yaml.safe_dump(document | {"spec": {"predictor": predictor}}))
        assert "set it to Standard" in run("attach", tmp_path / "x.yaml", *BANK, *CONFIG).error


class TestDetach:
    """The way back."""

    def test_leaves_what_was_never_attached(self, run: Run, manifest: Manifest) -> None:
        """To the letter, and says so."""
        file = manifest(ENGINE)
        done = run("detach", file)
        assert (done.code, done.out) == (0, file.read_text())
        assert done.err == "note Deployment/x: nothing was attached; left as it is\n"

    def test_leaves_what_others_have_changed(self, run: Run, manifest: Manifest, tmp_path: Path) -> None:
        """An image that was set after attach stays, and is told of."""
        written = run("attach", manifest(ENGINE), *BANK, *CONFIG, "--engine-image", "own:1").out
        (tmp_path / "y.yaml").write_text(written.replace("own:1", "own:2"))
        done = run("detach", tmp_path / "y.yaml")
        assert engine_of(done)["image"] == "own:2"
        assert "containers/engine/image has been changed since attach wrote it, and stays" in done.err

    def test_refuses_arguments_that_others_have_changed(self, run: Run, manifest: Manifest, tmp_path: Path) -> None:
        """They are not guessed at; what was there before attach is told."""
        written = run("attach", manifest(ENGINE), *BANK, *CONFIG).out
        (tmp_path / "y.yaml").write_text(written.replace("- org/model", "- org/model\n            - --port=9", 1))
        done = run("detach", tmp_path / "y.yaml")
        assert done.code == 2
        assert 'before, it was ["org/model"]' in done.error

    def test_refuses_a_volume_that_others_use(self, run: Run, manifest: Manifest, tmp_path: Path) -> None:
        """A container that came later and mounts a volume of the sidecar's is named; attaching anew is no trouble."""
        written = run("attach", manifest(ENGINE), *BANK, *CONFIG).out
        (document,) = yaml.safe_load_all(written)
        mount = {"name": "affect-monitor-state", "mountPath": "/state"}
        document["spec"]["template"]["spec"]["containers"].append({"name": "audit", "volumeMounts": [mount]})
        file = tmp_path / "y.yaml"
        file.write_text(yaml.safe_dump(document))
        done = run("detach", file)
        assert (done.code, done.out) == (2, "")
        assert done.error.startswith("error Deployment/x container audit volumeMounts/affect-monitor-state: ")
        assert "take this mount out" in done.error
        (again,) = yaml.safe_load_all(run("attach", file, *BANK, *CONFIG).out)
        assert again["spec"]["template"]["spec"]["volumes"] == document["spec"]["template"]["spec"]["volumes"]

    def test_refuses_a_container_of_another_name(self, run: Run, manifest: Manifest, tmp_path: Path) -> None:
        """What was put into a container that is not found any more is not left behind in silence."""
        file = tmp_path / "attached.yaml"
        file.write_text(run("attach", manifest(ENGINE), *BANK, *CONFIG).out.replace("name: engine", "name: renamed"))
        done = run("detach", file)
        assert (done.code, done.out) == (2, "")
        assert "containers/engine: is there no more" in done.error

    def test_refuses_a_record_that_is_none(self, run: Run, manifest: Manifest) -> None:
        """Nothing is taken out on a guess."""
        metadata = {"name": "x", "annotations": {"affect-monitor.io/attached": "yes"}}
        done = run("detach", manifest(ENGINE, metadata=metadata))
        assert (done.code, done.out) == (2, "")
        assert "is no record of what was attached" in done.error

    @pytest.mark.parametrize("ends", ["\n", "\r\n"])
    @pytest.mark.parametrize("top", ["# one\n", "%YAML 1.1\n# one\n---\n"])
    def test_keeps_the_file_to_the_letter(self, run: Run, tmp_path: Path, top: str, ends: str) -> None:
        """Indents, quotes, nulls, comments, borders, directives, line ends come back; so does what nobody changed."""
        text = (
            f"{top}kind: Deployment\nmetadata:\n  name: 'x'   # its name\n  creationTimestamp: null\n"
            "spec:\n  template:\n    spec:\n"
            "      containers:\n      - name: e\n        image: vllm/vllm-openai\n"
            "        args:\n        - m   # the model\n"
            "        - '--port=8000'\n\n# two\n...\n---\nkind: Service # three\n"
        ).replace("\n", ends)
        (tmp_path / "x.yaml").write_bytes(text.encode())
        written = run("attach", tmp_path / "x.yaml", *BANK, *CONFIG).out
        assert written.count("\n") == written.count(ends)
        (tmp_path / "y.yaml").write_bytes(written.encode())
        assert run("detach", tmp_path / "y.yaml").out == text
