"""The sidecar in pods, field by field: the example Deployment, banks from everywhere, and other charts."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from helm_engine import CHART, CI, NAMESPACE, NEWEST, Document, Render, documents, read_values, rendered_files

from monitor.policy.schema import read_policy
from monitor.settings import load_settings

BANKS = "/var/lib/affect-monitor-bank"
DEMOS = [name for name, path in CI.items() if (read_values(path).get("demo") or {}).get("enabled")]
"""Values files with the example Deployment."""
EXAMPLE_CHART = re.compile(r"```yaml\n# (Chart\.yaml|templates/\S+)\n(.+?)```", re.DOTALL)
"""Files of somebody else's chart, in the README."""


def of_kind(made: list[Document], kind: str) -> Document:
    """The first object of its kind."""
    return next(each for each in made if each["kind"] == kind)


def template(made: list[Document]) -> Document:
    """The pod template of the example Deployment."""
    return of_kind(made, "Deployment")["spec"]["template"]


def named(items: list[Document], name: str) -> Document:
    """The item of a list that has a name."""
    return next(each for each in items if each["name"] == name)


def all_containers(pod: Document) -> list[Document]:
    """Those of a pod that start first, and the others."""
    return [*(pod.get("initContainers") or []), *pod["containers"]]


def settings(made: list[Document]) -> Document:
    """What the sidecar's settings file says."""
    return yaml.safe_load(of_kind(made, "ConfigMap")["data"]["settings.yaml"])


class TestEveryPod:
    """What holds for the pods of every values file."""

    @pytest.mark.parametrize("name", DEMOS)
    def test_is_restricted(self, render: Render, name: str) -> None:
        """Every container keeps to the restricted profile, writes to no root file system, and has its limits."""
        for container in all_containers(template(render(name))["spec"]):
            context = container["securityContext"]
            assert context["runAsNonRoot"] is True
            assert context["allowPrivilegeEscalation"] is False
            assert context["readOnlyRootFilesystem"] is True
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert context["seccompProfile"] == {"type": "RuntimeDefault"}
            assert {"cpu", "memory"} == set(container["resources"]["requests"])
            assert {"memory"} == set(container["resources"]["limits"])

    @pytest.mark.parametrize("name", DEMOS)
    def test_mounts_volumes_that_are_there(self, render: Render, name: str) -> None:
        """Every mount has its volume and every volume of ours a mount; only engine and sidecar see the socket."""
        pod = template(render(name))["spec"]
        mounts = {container["name"]: container["volumeMounts"] for container in all_containers(pod)}
        assert {mount["name"] for each in mounts.values() for mount in each} == {
            each["name"] for each in pod["volumes"]
        }
        holders = {
            name for name, each in mounts.items() if "affect-monitor-socket" in [mount["name"] for mount in each]
        }
        assert holders == {"assistant", "affect-monitor"}
        socket = named(pod["volumes"], "affect-monitor-socket")
        assert socket["emptyDir"] == {"medium": "Memory", "sizeLimit": "64Mi"}
        # A file mounted by subPath would never change in a running pod.
        assert not [mount for each in mounts.values() for mount in each if "subPath" in mount]

    @pytest.mark.parametrize("name", DEMOS)
    def test_shows_no_token_to_anybody(self, render: Render, name: str) -> None:
        """No pod gets a token of Kubernetes: neither by its own word nor by its account's."""
        made = render(name)
        pod, account = template(made)["spec"], of_kind(made, "ServiceAccount")
        assert pod["serviceAccountName"] == account["metadata"]["name"]
        assert (pod["automountServiceAccountToken"], account["automountServiceAccountToken"]) == (False, False)

    @pytest.mark.parametrize("name", DEMOS)
    def test_has_time_to_drain(self, render: Render, name: str) -> None:
        """The grace period holds what a classic sidecar waits, the drain, and some seconds for the engine."""
        made = render(name)
        pod = template(made)["spec"]
        command = named(all_containers(pod), "affect-monitor").get("lifecycle", {}).get("preStop", {})
        waits = int(command["exec"]["command"][-1].split("(")[1].strip(")")) if command else 0
        assert pod["terminationGracePeriodSeconds"] >= waits + settings(made)["drain_seconds"] + 5

    @pytest.mark.parametrize(
        ("sidecar", "seconds"),
        [
            ({"drainSeconds": 10}, 60),
            ({"drainSeconds": 120}, 135),
            ({"kind": "classic", "drainSeconds": 120, "preStopSeconds": 40}, 175),
        ],
    )
    def test_has_more_time_where_the_drain_takes_more(self, sidecar: Document, seconds: int) -> None:
        """The grace period grows with what the values ask for, and is a minute at least."""
        made = documents(rendered_files({"demo": {"enabled": True}, "sidecar": sidecar}))
        assert template(made)["spec"]["terminationGracePeriodSeconds"] == seconds

    @pytest.mark.parametrize("name", CI)
    def test_is_told_what_the_sidecar_understands(self, render: Render, name: str, tmp_path: Path) -> None:
        """Settings and policy of every ConfigMap pass the sidecar's own readers; it listens where others look."""
        data = of_kind(render(name), "ConfigMap")["data"]
        for file, text in data.items():
            (tmp_path / file).write_text(text)
        read = load_settings(tmp_path / "settings.yaml", {})
        assert (read.ingest, read.socket_mode) == ("unix:///run/affect-monitor/ingest.sock", "0660")
        assert f"{read.http_host}:{read.http_port}" == "0.0.0.0:9469"
        assert read.policy == Path("/etc/affect-monitor/policy.yaml")
        assert read_policy(tmp_path / "policy.yaml").policies


class TestSidecar:
    """The container."""

    def test_is_native_by_default(self, render: Render) -> None:
        """An init container that stays: started before the engine and stopped after it."""
        pod = template(render("demo"))["spec"]
        sidecar = named(pod["initContainers"], "affect-monitor")
        assert sidecar["restartPolicy"] == "Always"
        assert sidecar["args"] == ["serve", "--settings", "/etc/affect-monitor/settings.yaml"]
        assert sidecar["ports"] == [{"name": "affect-http", "containerPort": 9469, "protocol": "TCP"}]
        assert "lifecycle" not in sidecar
        assert [each["name"] for each in pod["containers"]] == ["assistant"]

    def test_waits_for_the_engine_when_classic(self, render: Render) -> None:
        """A container like any other goes on serving while the engine stops, and then drains."""
        made = render("classic")
        pod = template(made)["spec"]
        sidecar = named(pod["containers"], "affect-monitor")
        assert "initContainers" not in pod
        assert "restartPolicy" not in sidecar
        assert sidecar["lifecycle"]["preStop"]["exec"]["command"] == ["python", "-c", "import time; time.sleep(20)"]
        assert settings(made)["drain_seconds"] == 15

    def test_is_probed_where_it_answers(self, render: Render) -> None:
        """By HTTP on its port, on pages that it has; for as long as the values say, and never for readiness."""
        sidecar = named(template(render("settings"))["spec"]["initContainers"], "affect-monitor")
        asked = {probe: said["httpGet"] for probe, said in sidecar.items() if probe.endswith("Probe")}
        assert asked == {
            "startupProbe": {"path": "/readyz", "port": "affect-http"},
            "livenessProbe": {"path": "/healthz", "port": "affect-http"},
        }
        startup = sidecar["startupProbe"]
        assert startup["periodSeconds"] * startup["failureThreshold"] == 60

    def test_keeps_its_port_beside_any_service(self, render: Render) -> None:
        """What Kubernetes says of Services around the pod does not become its setting."""
        for name in ("demo", "classic"):
            sidecar = named(all_containers(template(render(name))["spec"]), "affect-monitor")
            assert sidecar["env"] == [{"name": "AFFECT_HTTP_PORT", "value": "9469"}]

    def test_shares_its_socket_by_group(self, render: Render) -> None:
        """Every container is in the sidecar's group, and no volume of the pod changes hands."""
        assert template(render("demo"))["spec"]["securityContext"] == {"supplementalGroups": [10001]}

    def test_is_the_image_of_the_values(self, render: Render) -> None:
        """Repository, tag and digest, and the secret to pull them with."""
        pod = template(render("settings"))["spec"]
        image = named(pod["initContainers"], "affect-monitor")["image"]
        assert image.startswith("registry.example.org/affect-monitor:0.1.0-1@sha256:0123456789abcdef")
        assert pod["imagePullSecrets"] == [{"name": "registry"}]

    def test_gets_its_token_from_a_secret(self, render: Render) -> None:
        """Readable by the volumes' group alone, since the sidecar refuses a token that everyone can read."""
        made = render("settings")
        volume = named(template(made)["spec"]["volumes"], "affect-monitor-token")
        assert volume["secret"] == {
            "secretName": "affect-monitor-token",
            "defaultMode": 0o440,
            "items": [{"key": "token", "path": "token"}],
        }
        mount = named(named(template(made)["spec"]["initContainers"], "affect-monitor")["volumeMounts"], volume["name"])
        assert settings(made)["token_file"] == f"{mount['mountPath']}/token"
        assert template(made)["spec"]["securityContext"] == {
            "supplementalGroups": [10001],
            "fsGroup": 10001,
            "fsGroupChangePolicy": "OnRootMismatch",
        }

    def test_takes_settings_over_those_of_the_chart(self, render: Render) -> None:
        """Settings of the values stand beside those that the chart makes."""
        told = settings(render("settings"))
        assert (told["threads"], told["audit_file"]) == (2, "/var/lib/affect-monitor/audit.db")
        assert told["state_file"] == "/var/lib/affect-monitor/state.json"

    @pytest.mark.parametrize("values", [{"inject": {"enabled": True}}, {"config": {"rollPods": False}}])
    def test_takes_a_setting_that_is_false(self, values: Document) -> None:
        """What the chart would say itself is said otherwise by a value, and the notes go by it."""
        files = rendered_files({**values, "settings": {"reload_on_change": False}})
        assert settings(documents(files))["reload_on_change"] is False
        assert "settings.reload_on_change is false" in files["affect-monitor/templates/NOTES.txt"]

    def test_reads_any_value_as_text(self) -> None:
        """Names that look like numbers, truths or comments reach Kubernetes as they are written."""
        values = {
            "demo": {"enabled": True, "model": "/m #1"},
            "inject": {"enabled": True},
            "token": {"secretName": "123", "key": "true"},
            "bank": {"from": "claim", "claim": {"name": "123"}},
        }
        made = documents(rendered_files(values, release="123", namespace="123"))
        for each in made:
            kubernetes_validate.validate(each, NEWEST, strict=True)
        assert "--model=/m #1" in named(template(made)["spec"]["containers"], "assistant")["args"]


class TestAssignedIds:
    """Pods for clusters that give users and groups out themselves."""

    def test_name_no_user_and_no_group(self, render: Render) -> None:
        """Neither the pod nor a container does; the rest of the restricted profile is as ever."""
        pod = template(render("assigned-ids"))["spec"]
        fixed = template(render("demo"))["spec"]
        assert "securityContext" not in pod
        for container, other in zip(all_containers(pod), all_containers(fixed), strict=True):
            ids = {"runAsUser": 10001, "runAsGroup": 10001}
            assert {**container["securityContext"], **ids} == other["securityContext"]
            assert not container["securityContext"].keys() & ids.keys()


class TestRolling:
    """What a changed configuration does to pods."""

    def checksum(self, values: Document) -> str | None:
        """The pod template's mark of its configuration."""
        made = documents(rendered_files({"demo": {"enabled": True}, **values}))
        return template(made)["metadata"]["annotations"].get("affect-monitor.io/config-checksum")

    def test_replaces_pods_when_it_changes(self) -> None:
        """Another policy or setting makes another mark, so that the Deployment rolls; another image tag does not."""
        same, policy = self.checksum({}), read_values(CI["settings"])["policy"]
        assert same == self.checksum({"image": {"tag": "next"}})
        assert len({same, self.checksum({"policy": policy}), self.checksum({"settings": {"threads": 2}})}) == 3

    def test_leaves_pods_alone_where_the_values_say_so(self) -> None:
        """Without the mark the files change within running pods, and the sidecar is told to follow them."""
        values = {"config": {"rollPods": False}}
        assert self.checksum(values) is None
        assert settings(documents(rendered_files(values)))["reload_on_change"] is True
        assert "reload_on_change" not in settings(documents(rendered_files({})))

    def test_lets_injected_sidecars_follow(self, render: Render) -> None:
        """Their workload does not know of the ConfigMap, and so does not roll with it."""
        assert settings(render("inject"))["reload_on_change"] is True

    def test_names_the_volumes_that_the_autoscaler_may_drop(self, render: Render) -> None:
        """The sidecar's scratch volumes keep no node from being drained."""
        for name in ("demo", "bank-url"):
            made = template(render(name))
            local = {each["name"] for each in made["spec"]["volumes"] if "emptyDir" in each}
            told = made["metadata"]["annotations"]["cluster-autoscaler.kubernetes.io/safe-to-evict-local-volumes"]
            assert set(told.split(",")) == {each for each in local if each.startswith("affect-monitor-")}


class TestBank:
    """Where the bank comes from."""

    @pytest.mark.parametrize(
        ("name", "volume", "folder"),
        [
            ("bank-claim", {"persistentVolumeClaim": {"claimName": "banks", "readOnly": True}}, "assistant/2026-11"),
            ("bank-init-image", {"emptyDir": {}}, "bank"),
            ("bank-url", {"emptyDir": {}}, "bank"),
        ],
    )
    def test_is_mounted_read_only(self, render: Render, name: str, volume: Document, folder: str) -> None:
        """The sidecar finds it in its folder, and cannot change it."""
        made = render(name)
        pod = template(made)["spec"]
        assert named(pod["volumes"], "affect-monitor-bank") == {"name": "affect-monitor-bank", **volume}
        mount = named(named(pod["initContainers"], "affect-monitor")["volumeMounts"], "affect-monitor-bank")
        assert (mount["mountPath"], mount["readOnly"]) == (BANKS, True)
        assert settings(made)["bank"] == f"{BANKS}/{folder}"

    def test_is_an_image_by_its_reference(self, render: Render) -> None:
        """An OCI image is a volume of its own; nothing copies it."""
        made = render("bank-image")
        volume = named(template(made)["spec"]["volumes"], "affect-monitor-bank")
        assert volume["image"]["reference"].startswith("registry.example.org/banks/assistant@sha256:")
        assert volume["image"]["pullPolicy"] == "IfNotPresent"
        assert settings(made)["bank"] == f"{BANKS}/bank"

    @pytest.mark.parametrize(
        ("name", "command"),
        [
            ("bank-init-image", {"command": ["cp", "-r", "/bank", f"{BANKS}/bank"]}),
            (
                "bank-url",
                {
                    "args": [
                        *("bank", "fetch", "--url", "https://banks.example.org/assistant-2026-11.tar.gz"),
                        *("--sha256", 4 * "0123456789abcdef", "--out", f"{BANKS}/bank"),
                    ]
                },
            ),
        ],
    )
    def test_is_brought_by_a_container_without_a_shell(self, render: Render, name: str, command: Document) -> None:
        """It runs before the sidecar, says what it does word by word, and writes to that volume alone."""
        first = template(render(name))["spec"]["initContainers"][0]
        assert first["name"] == "affect-monitor-bank"
        assert {key: first[key] for key in ("command", "args") if key in first} == command
        assert [mount["name"] for mount in first["volumeMounts"]] == ["affect-monitor-bank"]


class TestNetworkPolicy:
    """Who reaches the sidecar."""

    def test_lets_the_named_alone_scrape(self, render: Render) -> None:
        """The sidecar's port is for the peers of the values; the engine's ports stay open, and nothing else is."""
        spec = of_kind(render("settings"), "NetworkPolicy")["spec"]
        assert spec["podSelector"] == {"matchLabels": {"affect-monitor.io/sidecar": "true"}}
        assert spec["policyTypes"] == ["Ingress"]
        assert spec["ingress"] == [
            {
                "from": [
                    {
                        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "observability"}},
                        "podSelector": {"matchLabels": {"app.kubernetes.io/name": "prometheus"}},
                    }
                ],
                "ports": [{"port": 9469, "protocol": "TCP"}],
            },
            {"ports": [{"port": 8000, "protocol": "TCP"}, {"port": 8080, "protocol": "TCP"}]},
        ]

    def test_selects_every_pod_with_a_sidecar(self, render: Render) -> None:
        """The label that it selects by is on the example's pods."""
        labels = template(render("settings"))["metadata"]["labels"]
        assert labels["affect-monitor.io/sidecar"] == "true"


class TestOtherCharts:
    """Charts that depend on this one and include its templates, as its README says."""

    @pytest.fixture
    def other(self, tmp_path: Path) -> Path:
        """The chart of the README, to the letter, with this one in it."""
        chart = tmp_path / "engine"
        (chart / "templates").mkdir(parents=True)
        for name, text in EXAMPLE_CHART.findall((CHART / "README.md").read_text()):
            about = "apiVersion: v2\nname: engine\nversion: 1.0.0\n" if name == "Chart.yaml" else ""
            (chart / name).write_text(about + text)
        shutil.copytree(CHART, chart / "charts" / "affect-monitor")
        return chart

    @pytest.mark.parametrize("kind", ["native", "classic"])
    def test_get_the_same_sidecar(self, other: Path, render: Render, kind: str) -> None:
        """With the chart's values under its name, their pods have what the example's have."""
        values = {"sidecar": read_values(CI["classic"])["sidecar"]} if kind == "classic" else {}
        made = documents(rendered_files({"affect-monitor": values}, chart=other))
        kubernetes_validate.validate(of_kind(made, "Deployment"), NEWEST, strict=True)
        pod, example = template(made), template(render("classic" if kind == "classic" else "demo"))
        assert named(all_containers(pod["spec"]), "affect-monitor") == named(
            all_containers(example["spec"]), "affect-monitor"
        )
        assert pod["spec"]["volumes"] == example["spec"]["volumes"][: len(pod["spec"]["volumes"])]
        assert pod["spec"]["securityContext"] == example["spec"]["securityContext"]
        assert pod["metadata"]["labels"].items() - {("app", "assistant")} <= example["metadata"]["labels"].items()
        assert pod["metadata"]["annotations"] == example["metadata"]["annotations"]
        config = named(pod["spec"]["volumes"], "affect-monitor-config")["configMap"]["name"]
        assert of_kind(made, "ConfigMap")["metadata"] == {
            **of_kind(render("defaults"), "ConfigMap")["metadata"],
            "name": config,
            "namespace": NAMESPACE,
        }

    def test_tell_their_engine(self, other: Path) -> None:
        """It gets options and environment of the values, and the socket."""
        told = {"args": ["--speculative-config", "{}"], "env": [{"name": "AFFECT_SIDECAR", "value": "unix:///s"}]}
        made = documents(rendered_files({"affect-monitor": {"engine": told}}, chart=other))
        (engine,) = template(made)["spec"]["containers"]
        assert engine["args"] == ["--model=assistant", *told["args"]]
        assert engine["env"] == told["env"]
        assert engine["volumeMounts"] == [{"name": "affect-monitor-socket", "mountPath": "/run/affect-monitor"}]

    def test_do_without_by_a_condition(self, other: Path) -> None:
        """Turned off, nothing of the sidecar is left in their pods and nothing else is made."""
        (deployment,) = documents(rendered_files({"affect-monitor": {"enabled": False}}, chart=other))
        kubernetes_validate.validate(deployment, NEWEST, strict=True)
        assert deployment["spec"]["template"] == {
            "metadata": {"labels": {"app": "assistant"}},
            "spec": {
                "containers": [{"name": "vllm", "image": "REGISTRY/vllm-affect:0.33.0", "args": ["--model=assistant"]}]
            },
        }
