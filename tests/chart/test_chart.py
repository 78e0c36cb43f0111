"""The chart as a whole: every values file of ``ci/`` through Helm."""

from __future__ import annotations

import os
from pathlib import Path

import kubernetes_validate
import pytest
from helm_engine import CHART, CI, NEWEST, Render, lint, read_values, rendered_files

from monitor import __version__

GOLDEN = Path(__file__).parent / "golden"
OLDEST = "1.29.0"
"""The oldest version of Kubernetes that the chart says it is for."""
NEEDS_NEWER = {
    "assigned-ids": "1.34",
    "bank-image": "1.31",
    "bank-url": "1.34",
    "canary": "1.31",
    "inject": "1.34",
    "inject-bare": "1.34",
    "inject-classic": "1.34",
}
"""Values files that ask for what the oldest version has not, and what has it."""
CUSTOM = "monitoring.coreos.com/"
"""Group of the Prometheus operator's resources, which are none of Kubernetes' own."""


def manifest(name: str) -> str:
    """All that a values file makes, as one text; notes are left to their tests."""
    files = rendered_files(read_values(CI[name]))
    kept = [text.strip("\n") for path, text in sorted(files.items()) if path.endswith(".yaml") and text.strip()]
    return "\n---\n".join(kept) + "\n"


class TestEveryValuesFile:
    """What holds for each of them."""

    @pytest.mark.parametrize("name", CI)
    def test_lint_has_nothing_to_say(self, name: str) -> None:
        """Helm's strict lint is silent."""
        assert lint(read_values(CI[name])) == []

    def test_lint_is_awake(self) -> None:
        """What the schema refuses, lint does."""
        assert "'/sidecar/kind': value must be one of 'native', 'classic'" in lint({"sidecar": {"kind": "odd"}})[0]

    @pytest.mark.parametrize("name", CI)
    def test_makes_the_golden_manifest(self, name: str) -> None:
        """What is made is on file, so that every change is seen in review (AFFECT_UPDATE_GOLDEN=1 writes it anew)."""
        golden = GOLDEN / f"{name}.yaml"
        if os.environ.get("AFFECT_UPDATE_GOLDEN"):
            golden.write_text(manifest(name))
        assert manifest(name) == golden.read_text()

    @pytest.mark.parametrize(
        ("name", "version"),
        [
            *((name, kubernetes_validate.latest_version()) for name in CI),
            *((name, OLDEST) for name in CI if name not in NEEDS_NEWER),
        ],
    )
    def test_makes_valid_objects(self, render: Render, name: str, version: str) -> None:
        """Every object of Kubernetes' own passes its strict schema, in the newest version and the oldest."""
        for made in render(name, version):
            if not made["apiVersion"].startswith(CUSTOM):
                kubernetes_validate.validate(made, version, strict=True)

    @pytest.mark.parametrize(("name", "version"), NEEDS_NEWER.items())
    def test_says_which_kubernetes_it_needs(self, render: Render, name: str, version: str) -> None:
        """Where the cluster is too old, the message names the value, the version it takes and what to do instead."""
        with pytest.raises(Exception, match=rf"(inject.enabled|bank.from): .* from Kubernetes {version} on.* v1.29.0"):
            render(name, OLDEST)
        assert render(name, f"{version}.0")

    def test_has_a_golden_manifest_and_no_other(self) -> None:
        """No golden file outlives its values file."""
        assert {path.stem for path in GOLDEN.iterdir()} == set(CI)


class TestDefaults:
    """What the chart does unasked."""

    def test_makes_one_config_map(self, render: Render) -> None:
        """Nothing but the configuration is made unless the values ask for it."""
        made = [(each["kind"], each["metadata"]["name"]) for each in render("defaults")]
        assert made == [("ConfigMap", "affect-monitor-config")]

    def test_is_of_the_package_version(self) -> None:
        """The chart deploys the version of the package it lies beside."""
        about = read_values(CHART / "Chart.yaml")
        assert (about["version"], about["appVersion"]) == (__version__, __version__)
        assert about["kubeVersion"] == f">={OLDEST}-0"


class TestNotes:
    """What Helm prints after an installation."""

    def notes(self, name: str) -> str:
        """The notes for a values file."""
        return rendered_files(read_values(CI[name]), NEWEST)["affect-monitor/templates/NOTES.txt"]

    @pytest.mark.parametrize(
        ("name", "said"),
        [
            ("defaults", "no pod has a sidecar yet"),
            ("demo", "port-forward deployment/affect-monitor-demo 8000 9469"),
            ("inject", 'affect-monitor.io/inject: "true"'),
            ("demo", '-d \'{"model": "smollm2-135m-instruct", '),
            ("bank-claim", "MODEL is the id that `curl -s localhost:8000/v1/models` names"),
            ("bank-claim", '-d \'{"model": "MODEL", '),
            ("settings", "Running sidecars take a changed policy within two minutes"),
            ("settings", "get secret affect-monitor-token -o go-template='{{index .data \"token\" | base64decode}}'"),
            ("demo", "answer 403: no token is set"),
        ],
    )
    def test_tell_what_to_do_next(self, name: str, said: str) -> None:
        """They are about what was asked for, and tell what to look at."""
        assert said in self.notes(name)
        assert "What to look at first" in self.notes(name)

    @pytest.mark.parametrize("name", CI)
    def test_begin_with_the_token(self, name: str) -> None:
        """What opens the pages, or how it is made, stands before everything else."""
        _, first, *_ = self.notes(name).split("\n\n")
        assert first.startswith("Status page, runbooks and turns ")

    def test_warn_of_an_engine_without_capture(self) -> None:
        """Injection without anything for the engine says that its manifest has to do it."""
        warning = "the engine's own manifest has to turn its capture on"
        assert warning in self.notes("inject-bare")
        assert warning not in self.notes("inject")
