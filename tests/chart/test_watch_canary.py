"""A new bank on canary pods beside the others, and its way back."""

from __future__ import annotations

from typing import Any

import helm_python
import pytest
from helm_engine import CI, Document, documents, read_values, rendered_files

TRACK = "affect-monitor.io/track"
Tracks = dict[str, Document]


def rendered(values: Document) -> list[Document]:
    """Objects that values make."""
    return documents(rendered_files(values))


def tracks(objects: list[Document]) -> Tracks:
    """Deployments by track."""
    found = [each for each in objects if each["kind"] == "Deployment"]
    return {each["spec"]["template"]["metadata"]["labels"][TRACK]: each for each in found}


def bank(deployment: Document) -> str:
    """Image of the bank that a Deployment's pods mount."""
    volumes = deployment["spec"]["template"]["spec"]["volumes"]
    (found,) = (each["image"]["reference"] for each in volumes if each["name"] == "affect-monitor-bank")
    return str(found)


def config(deployment: Document) -> str:
    """Name of the ConfigMap that a Deployment's pods mount."""
    volumes = deployment["spec"]["template"]["spec"]["volumes"]
    (found,) = (each["configMap"]["name"] for each in volumes if each["name"] == "affect-monitor-config")
    return str(found)


@pytest.fixture
def values() -> Document:
    """Values of the feature."""
    return read_values(CI["canary"])


@pytest.fixture
def objects(values: Document) -> list[Document]:
    """What they make."""
    return rendered(values)


def test_two_tracks_run_two_banks(objects: list[Document]) -> None:
    """One pod in ten has the new bank, and its own ConfigMap."""
    both = tracks(objects)
    assert {track: each["spec"]["replicas"] for track, each in both.items()} == {"stable": 9, "canary": 1}
    assert bank(both["stable"]).endswith("1" * 64)
    assert bank(both["canary"]).endswith("2" * 64)
    assert {config(each) for each in both.values()} == {"affect-monitor-config", "affect-monitor-config-canary"}
    assert {config(each) for each in both.values()} <= {
        each["metadata"]["name"] for each in objects if each["kind"] == "ConfigMap"
    }


def test_no_track_takes_the_others_pods(objects: list[Document]) -> None:
    """Each Deployment selects its own pods, by the track."""
    for track, each in tracks(objects).items():
        chosen = each["spec"]["selector"]["matchLabels"]
        assert chosen[TRACK] == track
        assert chosen.items() <= each["spec"]["template"]["metadata"]["labels"].items()


def test_both_serve_the_same_users(objects: list[Document]) -> None:
    """The Service takes pods of both, without which the versions could not be compared."""
    (service,) = (each for each in objects if each["kind"] == "Service")
    for each in tracks(objects).values():
        assert service["spec"]["selector"].items() <= each["spec"]["template"]["metadata"]["labels"].items()


def test_scrapes_and_the_rule_see_both(objects: list[Document]) -> None:
    """The PodMonitor takes any sidecar, and the alert compares versions within each policy."""
    (monitor,) = (each for each in objects if each["kind"] == "PodMonitor")
    (rules,) = (each for each in objects if each["kind"] == "PrometheusRule")
    alerts = {rule.get("alert") for group in rules["spec"]["groups"] for rule in group["rules"]}
    assert monitor["spec"]["selector"] == {}
    assert "AffectVersionsDiffer" in alerts


def test_any_value_may_differ(values: Document) -> None:
    """Policy, settings and image of the canary are its own, and are checked like the others'."""
    policy = "version: 1\npolicies: [{name: tried, stance: neutral, turn: {false_alarm_rate: 0.02}}]\n"
    values["canary"]["values"] |= {"policy": policy, "image": {"tag": "next"}}
    objects = rendered(values)
    maps = {each["metadata"]["name"]: each["data"] for each in objects if each["kind"] == "ConfigMap"}
    assert "tried" in maps["affect-monitor-config-canary"]["policy.yaml"]
    assert "tried" not in maps["affect-monitor-config"]["policy.yaml"]
    images = {track: sidecar(each)["image"].split(":")[-1] for track, each in tracks(objects).items()}
    assert images["canary"] == "next" != images["stable"]


@pytest.mark.parametrize(
    ("bank", "told"),
    [
        ({"from": "image", "image": {"reference": ""}}, "reference"),
        ({"from": "claim"}, r"canary\.values\.bank\.claim\.name: is needed, as bank\.from is claim there"),
        ({"from": "initImage"}, r"canary\.values\.bank\.initImage\.image: is needed"),
        ({"from": "url"}, r"canary\.values\.bank\.url\.location: is needed"),
        ({"from": "url", "url": {"location": "https://b/x.tar.gz"}}, r"canary\.values\.bank\.url\.sha256: is needed"),
    ],
)
def test_a_bank_from_nowhere_is_refused(values: Document, bank: Document, told: str) -> None:
    """What the schema refuses of the chart's own bank is refused of the canary's as well, and named."""
    values["canary"]["values"] = {"bank": bank}
    with pytest.raises(helm_python.HelmError, match=told):
        rendered(values)


def test_a_canary_of_nothing_is_refused(values: Document) -> None:
    """Without the example there is no Deployment to put one beside, and the message says what to do."""
    with pytest.raises(helm_python.HelmError, match=r"canary\.enabled: .* demo\.enabled is false; set that to true"):
        rendered({**values, "demo": {"enabled": False}})


def test_rolled_back_it_is_as_before(values: Document) -> None:
    """Without the canary the stable track is the same to the letter: no pod of it is replaced."""
    before = tracks(rendered({**values, "canary": {"enabled": False}}))
    assert before == {"stable": tracks(rendered(values))["stable"]}


def sidecar(deployment: Document) -> dict[str, Any]:
    """The sidecar of a Deployment's pods."""
    (found,) = (
        each for each in deployment["spec"]["template"]["spec"]["initContainers"] if each["name"] == "affect-monitor"
    )
    return found
