"""Injection by label: the admission policy field by field, and at work on pods."""

from __future__ import annotations

import copy
from typing import Any

import kubernetes_validate
import pytest
from helm_engine import NAMESPACE, Document, Render, documents, rendered_files

admission = pytest.importorskip("admission", reason="CEL's library is for Python 3.11 and newer")
Admission = admission.Admission

LABEL = {"affect-monitor.io/inject": "true"}
ARGS = ["--model", "assistant"]


def made(documents: list[Document], kind: str) -> Document:
    """The only object of its kind."""
    (found,) = [each for each in documents if each["kind"] == kind]
    return found


def named(items: list[Document], name: str) -> Document:
    """The item of a list that has a name."""
    (found,) = [each for each in items if each["name"] == name]
    return found


def pod(**spec: Any) -> Document:
    """A pod of vLLM that asks for the sidecar."""
    engine = {"name": "vllm", "image": "vllm/vllm-openai:v0.32.0", "args": list(ARGS)}
    about = {"name": "assistant-0", "namespace": NAMESPACE, "labels": {"app": "assistant", **LABEL}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": about, "spec": {"containers": [engine], **spec}}


@pytest.fixture(scope="module")
def native(render: Render) -> Admission:
    """The policy that adds a native sidecar, and vLLM's options."""
    return Admission(made(render("inject"), "MutatingAdmissionPolicy"))


@pytest.fixture(scope="module")
def classic(render: Render) -> Admission:
    """The policy that adds a classic sidecar, and SGLang's environment."""
    return Admission(made(render("inject-classic"), "MutatingAdmissionPolicy"))


class TestPolicy:
    """The policy and its binding."""

    @pytest.mark.parametrize(
        ("version", "api"), [("1.34.0", "v1beta1"), ("1.35.2", "v1beta1"), ("1.36.0", "v1"), ("1.37.0", "v1")]
    )
    def test_speaks_the_api_of_the_cluster(self, render: Render, version: str, api: str) -> None:
        """The beta until Kubernetes 1.35, version 1 from 1.36 on; each passes that version's schema."""
        for kind in ("MutatingAdmissionPolicy", "MutatingAdmissionPolicyBinding"):
            found = made(render("inject", version), kind)
            assert found["apiVersion"] == f"admissionregistration.k8s.io/{api}"
            kubernetes_validate.validate(found, version, strict=True)

    def test_matches_pods_that_are_made_with_the_label(self, render: Render) -> None:
        """The API server sends it new pods with the label, and no others."""
        spec = made(render("inject"), "MutatingAdmissionPolicy")["spec"]
        assert spec["matchConstraints"] == {
            "objectSelector": {"matchLabels": LABEL},
            "resourceRules": [
                {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}
            ],
        }
        assert (spec["failurePolicy"], spec["reinvocationPolicy"]) == ("Ignore", "IfNeeded")
        assert [each["patchType"] for each in spec["mutations"]] == ["JSONPatch"]

    def test_is_bound_to_the_release_namespace(self, render: Render) -> None:
        """Where its ConfigMap is, and nowhere else unless the values say so."""
        documents = render("inject")
        binding = made(documents, "MutatingAdmissionPolicyBinding")["spec"]
        assert binding["policyName"] == made(documents, "MutatingAdmissionPolicy")["metadata"]["name"]
        assert binding["matchResources"]["namespaceSelector"] == {
            "matchLabels": {"kubernetes.io/metadata.name": NAMESPACE}
        }

    def test_may_be_bound_to_other_namespaces_and_strict(self, render: Render) -> None:
        """A selector of one's own takes the place of the release's namespace; a pod may be refused instead."""
        documents = render("inject-classic")
        binding = made(documents, "MutatingAdmissionPolicyBinding")["spec"]
        assert binding["matchResources"]["namespaceSelector"] == {"matchLabels": {"affect": "watched"}}
        assert made(documents, "MutatingAdmissionPolicy")["spec"]["failurePolicy"] == "Fail"


class TestInjection:
    """What becomes of pods."""

    def test_adds_what_the_templates_say(self, native: Admission, render: Render) -> None:
        """Sidecar, volumes, group and annotations are those of the example Deployment, to the letter."""
        admitted, example = native.admit(pod()), made(render("demo"), "Deployment")["spec"]["template"]
        assert admitted["spec"]["initContainers"] == example["spec"]["initContainers"]
        ours = [volume for volume in example["spec"]["volumes"] if volume["name"].startswith("affect-monitor-")]
        assert admitted["spec"]["volumes"] == ours
        assert admitted["spec"]["securityContext"] == example["spec"]["securityContext"]
        autoscaler = "cluster-autoscaler.kubernetes.io/safe-to-evict-local-volumes"
        assert admitted["metadata"]["annotations"][autoscaler] == example["metadata"]["annotations"][autoscaler]
        assert admitted["metadata"]["labels"] == {"app": "assistant", **LABEL, "affect-monitor.io/sidecar": "true"}

    def test_gives_the_engine_its_socket_and_options(self, native: Admission) -> None:
        """The engine keeps its arguments, gets vLLM's options after them, and the socket's folder."""
        (engine,) = native.admit(pod())["spec"]["containers"]
        assert engine["args"][: len(ARGS)] == ARGS
        assert engine["args"][len(ARGS) :: 2] == ["--speculative-config", "--kv-transfer-config"]
        assert engine["volumeMounts"] == [{"name": "affect-monitor-socket", "mountPath": "/run/affect-monitor"}]
        assert "env" not in engine

    def test_adds_a_classic_sidecar_beside_the_engine(self, classic: Admission, render: Render) -> None:
        """A container like any other, the same as in the example Deployment but for the values; the environment too."""
        engine, sidecar = classic.admit(pod())["spec"]["containers"]
        example = named(
            made(render("classic"), "Deployment")["spec"]["template"]["spec"]["containers"], "affect-monitor"
        )
        assert sidecar == {**example, "lifecycle": sidecar["lifecycle"]}
        assert sidecar["lifecycle"]["preStop"]["exec"]["command"][-1] == "import time; time.sleep(15)"
        assert engine["env"] == [{"name": "AFFECT_SIDECAR", "value": "unix:///run/affect-monitor/ingest.sock"}]
        assert "initContainers" not in classic.admit(pod())["spec"]

    @pytest.mark.parametrize("policy", ["native", "classic"])
    def test_makes_a_valid_pod(self, policy: str, request: pytest.FixtureRequest) -> None:
        """What is admitted passes Kubernetes' strict schema."""
        admitted = request.getfixturevalue(policy).admit(pod())
        kubernetes_validate.validate(admitted, "1.36", strict=True)

    @pytest.mark.parametrize("labels", [{}, {"app": "assistant"}, {"affect-monitor.io/inject": "false"}])
    def test_leaves_pods_alone_that_do_not_ask(self, native: Admission, labels: dict[str, str]) -> None:
        """Without the label, or with another value of it, a pod stays as it is."""
        unasked = pod()
        unasked["metadata"]["labels"] = labels
        assert native.admit(unasked) == unasked

    @pytest.mark.parametrize("first", ["native", "classic"])
    @pytest.mark.parametrize("second", ["native", "classic"])
    def test_adds_nothing_twice(self, first: str, second: str, request: pytest.FixtureRequest) -> None:
        """A pod that has a sidecar, of whichever kind, is left alone, also when admission runs again."""
        once = request.getfixturevalue(first).admit(pod())
        again = request.getfixturevalue(second)
        assert not again.is_for(once)
        assert again.admit(once) == once

    def test_takes_the_container_that_the_label_names(self, native: Admission) -> None:
        """Of several containers the engine is the one a label names, else the first."""
        several = pod()
        proxy = {"name": "proxy", "image": "envoy", "args": [], "volumeMounts": [{"name": "certs", "mountPath": "/c"}]}
        several["spec"]["containers"].insert(0, proxy)
        assert [len(each["volumeMounts"]) for each in native.admit(several)["spec"]["containers"][:1]] == [2]
        several["metadata"]["labels"]["affect-monitor.io/container"] = "vllm"
        first, engine = native.admit(several)["spec"]["containers"]
        assert first == proxy
        assert engine["volumeMounts"][0]["name"] == "affect-monitor-socket"

    def test_does_not_guess_a_container(self, native: Admission) -> None:
        """A label that names no container is an error, on which failurePolicy decides."""
        lost = pod()
        lost["metadata"]["labels"]["affect-monitor.io/container"] = "engine"
        with pytest.raises(ValueError, match="Index error"):
            native.admit(lost)

    def test_does_not_invent_arguments(self, native: Admission) -> None:
        """An engine that runs what its image says would lose it with arguments of ours: an error, nothing half done."""
        bare = pod()
        del bare["spec"]["containers"][0]["args"]
        with pytest.raises(ValueError, match="/spec/containers/0/args/- is no place"):
            native.admit(bare)

    @pytest.mark.parametrize("folder", ["/run/affect-monitor", "/run/affect-monitor/"])
    def test_leaves_the_sockets_folder_to_the_engine(self, native: Admission, folder: str) -> None:
        """An engine with something of its own there cannot have two: an error, nothing half done."""
        mount = {"name": "theirs", "mountPath": folder}
        taken = pod(volumes=[{"name": "theirs", "emptyDir": {}}])
        taken["spec"]["containers"][0]["volumeMounts"] = [mount]
        with pytest.raises(ValueError, match="Index error"):
            native.admit(taken)
        # Not the engine's.
        taken["spec"]["containers"][0]["volumeMounts"] = []
        taken["spec"]["containers"].append({"name": "proxy", "image": "envoy", "volumeMounts": [mount]})
        assert native.admit(taken)["spec"]["containers"][0]["volumeMounts"][0]["name"] == "affect-monitor-socket"

    def test_takes_the_claim_of_a_stateful_set(self, native: Admission) -> None:
        """Its pod has the volume for state already, which stays in the place of ours."""
        claim = {"name": "affect-monitor-state", "persistentVolumeClaim": {"claimName": "affect-monitor-state-a-0"}}
        admitted = native.admit(pod(volumes=[claim], securityContext={"fsGroup": 2000}))
        kubernetes_validate.validate(admitted, "1.36", strict=True)
        names = [each["name"] for each in admitted["spec"]["volumes"]]
        assert sorted(names) == sorted(each["name"] for each in native.admit(pod())["spec"]["volumes"])
        assert named(admitted["spec"]["volumes"], "affect-monitor-state") == claim

    def test_keeps_the_engines_own_environment(self, classic: Admission) -> None:
        """A variable that the engine's manifest sets is not set a second time."""
        own = [{"name": "AFFECT_SIDECAR", "value": "unix:///run/affect-monitor/other.sock"}]
        asking = pod()
        asking["spec"]["containers"][0]["env"] = own
        assert classic.admit(asking)["spec"]["containers"][0]["env"] == own

    def test_keeps_what_the_pod_has(self, native: Admission) -> None:
        """Volumes, init containers, annotations and groups of the pod's own stay, and ours come after them."""
        autoscaler = {"cluster-autoscaler.kubernetes.io/safe-to-evict-local-volumes": "scratch"}
        full = pod(
            volumes=[{"name": "weights", "persistentVolumeClaim": {"claimName": "weights"}}],
            initContainers=[{"name": "fetch", "image": "fetch"}],
            securityContext={"runAsUser": 0, "fsGroup": 2000, "supplementalGroups": [3000]},
        )
        full["metadata"]["annotations"] = autoscaler
        before = copy.deepcopy(full)
        admitted = native.admit(full)
        assert full == before
        assert admitted["spec"]["volumes"][0] == before["spec"]["volumes"][0]
        assert [each["name"] for each in admitted["spec"]["initContainers"]] == ["fetch", "affect-monitor"]
        groups = {"supplementalGroups": [3000, 10001]}
        assert admitted["spec"]["securityContext"] == {**before["spec"]["securityContext"], **groups}
        (volumes,) = [admitted["metadata"]["annotations"][key] for key in autoscaler]
        assert volumes == "scratch,affect-monitor-socket,affect-monitor-state,affect-monitor-tmp"

    @pytest.mark.parametrize("theirs", [{}, {"supplementalGroups": []}, {"supplementalGroups": [10001]}])
    def test_adds_the_group_to_a_security_context_without(self, native: Admission, theirs: Document) -> None:
        """A pod that says something of its security has the group that the socket needs, once."""
        admitted = native.admit(pod(securityContext={"runAsNonRoot": True, **theirs}))
        assert admitted["spec"]["securityContext"] == {"runAsNonRoot": True, "supplementalGroups": [10001]}

    @pytest.mark.parametrize(
        ("theirs", "group"),
        [
            ({}, {"fsGroup": 10001, "fsGroupChangePolicy": "OnRootMismatch"}),
            ({"fsGroup": 2000}, {"fsGroup": 2000}),
        ],
    )
    def test_gives_the_volumes_a_group_for_a_token(self, theirs: Document, group: Document) -> None:
        """The sidecar reads the token's file as one of the volumes' group: the pod's own, where it has one."""
        values = {"inject": {"enabled": True}, "token": {"secretName": "affect-monitor-token"}}
        policy = made(documents(rendered_files(values)), "MutatingAdmissionPolicy")
        admitted = Admission(policy).admit(pod(securityContext=theirs) if theirs else pod())
        assert admitted["spec"]["securityContext"] == {"supplementalGroups": [10001], **group}

    @pytest.mark.parametrize("theirs", [{}, {"runAsNonRoot": True}])
    def test_leaves_ids_to_the_cluster(self, render: Render, theirs: Document) -> None:
        """Where the values say so, no user and no group is added to a pod, for a token neither."""
        policy = Admission(made(render("assigned-ids"), "MutatingAdmissionPolicy"))
        asking = pod(securityContext=theirs) if theirs else pod()
        admitted = policy.admit(asking)["spec"]
        assert admitted.get("securityContext", {}) == theirs
        sidecar = named(admitted["initContainers"], "affect-monitor")
        assert not sidecar["securityContext"].keys() & {"runAsUser", "runAsGroup"}

    def test_brings_the_bank_before_the_sidecar(self, render: Render) -> None:
        """A bank that has to be fetched is there when the sidecar starts."""
        fetching = Admission(made(render("bank-url"), "MutatingAdmissionPolicy"))
        admitted = fetching.admit(pod())["spec"]
        assert [each["name"] for each in admitted["initContainers"]] == ["affect-monitor-bank", "affect-monitor"]
        assert named(admitted["volumes"], "affect-monitor-bank") == {"name": "affect-monitor-bank", "emptyDir": {}}


class TestLanguage:
    """What Kubernetes' CEL asks for, beyond the language."""

    def test_has_lists_and_maps_of_one_type(self, render: Render) -> None:
        """Every value within a list or map is wrapped in dyn: Kubernetes refuses literals of mixed types."""
        (mutation,) = made(render("inject"), "MutatingAdmissionPolicy")["spec"]["mutations"]
        patches = [line for line in mutation["jsonPatch"]["expression"].splitlines() if "value: {" in line]
        assert patches
        for line in patches:
            value = line.split("value: {", 1)[1]
            assert value.count('": ') == value.count('": dyn(')

    def test_refuses_what_is_no_cel(self, render: Render) -> None:
        """The checker of these tests is awake: an unknown field of a patch and a broken expression are refused."""
        policy = made(render("inject"), "MutatingAdmissionPolicy")
        for wrong in ('[JSONPatch{op: "add", pth: "/spec"}]', "object.spec.containers.exists(c"):
            broken = copy.deepcopy(policy)
            broken["spec"]["mutations"][0]["jsonPatch"]["expression"] = wrong
            with pytest.raises(RuntimeError, match=r"undefined field 'pth'|Syntax error"):
                Admission(broken)

    def test_says_any_value_as_it_is(self) -> None:
        """Quotes, backslashes, octal modes and numbers in values reach the pod unharmed."""
        text = 'x<y>&"z"\n\'é\\d ${x} {{ y }}'
        values = {
            "inject": {"enabled": True},
            "token": {"secretName": "affect-monitor-token"},
            "sidecar": {"resources": {"requests": {"cpu": 2}}},
            "engine": {"env": [{"name": "TEXT", "value": text}]},
        }
        policy = made(documents(rendered_files(values)), "MutatingAdmissionPolicy")
        admitted = Admission(policy).admit(pod())["spec"]
        assert admitted["containers"][0]["env"] == [{"name": "TEXT", "value": text}]
        assert named(admitted["volumes"], "affect-monitor-token")["secret"]["defaultMode"] == 0o440
        assert named(admitted["initContainers"], "affect-monitor")["resources"]["requests"]["cpu"] == 2
