"""Tests of the Containerfiles as they are written: linted, pinned, without root; nothing is built."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import needs
import pytest
from containerfile import IMAGES, NAMES, stages

from monitor import __version__
from monitor.attach.pod import Sidecar
from monitor.probes.bank import Bank

OURS = f"ghcr.io/affect-monitor/affect-monitor:{__version__}"
ROOTLESS = ("sidecar", "demo")


@pytest.mark.parametrize("name", NAMES)
def test_hadolint_has_nothing_to_say(name: str) -> None:
    """Hadolint finds nothing but what is a matter of taste (how many RUN lines a stage that is thrown away has)."""
    command = [needs.hadolint(), "--no-color", "--failure-threshold", "warning", str(IMAGES / name / "Containerfile")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", NAMES)
def test_bases_are_pinned(name: str) -> None:
    """Whatever a stage starts from is named by digest, or is nothing, or our own image of this version."""
    for stage in stages(name):
        assert stage.base in ("scratch", OURS) or re.fullmatch(r"docker\.io/\S+:\S+@sha256:[0-9a-f]{64}", stage.base)


def test_images_start_from_one_python() -> None:
    """The wheel is built on the same base and by the same lines in every image, and the sidecar runs on that base."""
    bases = {stage.base for name in ("sidecar", "vllm") for stage in stages(name)}
    (python,) = [base for base in bases if "/python:" in base]
    assert {stage.base for stage in stages("sidecar")} == {python}
    assert stages("sidecar")[0] == stages("vllm")[0]
    assert stages("sidecar")[-1].last("LABEL").endswith(f'"{python.partition("@")[0]}"')


@pytest.mark.parametrize("name", NAMES)
def test_fetches_nothing_but_packages(name: str) -> None:
    """No file comes from an address: what is installed comes from an index of packages."""
    steps = [step for stage in stages(name) for step in stage.steps]
    run = " ".join(value for instruction, value in steps if instruction == "RUN")
    assert "ADD" not in [instruction for instruction, _ in steps]
    assert not re.search(r"\b(curl|wget|git)\b", run)


@pytest.mark.parametrize("name", ROOTLESS)
def test_runs_without_root(name: str) -> None:
    """The user is a number that is not root's, which is what `runAsNonRoot` can check."""
    user, group = stages(name)[-1].last("USER").split(":")
    assert int(user) > 0
    assert int(group) > 0


def test_pods_say_the_user_of_the_image() -> None:
    """Attach writes the image's own user and group into the pod, and the chart the same (test_chart_like_attach)."""
    context = Sidecar("", "").container(native=True)["securityContext"]
    assert stages("sidecar")[-1].last("USER") == f"{context['runAsUser']}:{context['runAsGroup']}"


@pytest.mark.parametrize("name", NAMES)
def test_is_of_this_version(name: str) -> None:
    """The version an image says and installs is the package's."""
    versions = [value for stage in stages(name) for step, value in stage.steps if step == "ARG" and "VERSION" in value]
    assert set(versions) <= {f"VERSION={__version__}"}


def test_last_stage_installs_nothing() -> None:
    """The sidecar's image is its base and one folder."""
    steps = [instruction for instruction, _ in stages("sidecar")[-1].steps]
    assert steps.count("COPY") == 1
    assert "RUN" not in steps


def test_sidecar_image_is_the_command() -> None:
    """What a pod gives as arguments are those of `affect-monitor`."""
    assert stages("sidecar")[-1].last("ENTRYPOINT") == '["affect-monitor"]'


@pytest.mark.parametrize("name", ["sidecar", "vllm"])
def test_context_is_what_is_copied(name: str) -> None:
    """The ignore file lets nothing into the build but what the Containerfile copies."""
    lines = (IMAGES / name / "Containerfile.dockerignore").read_text().splitlines()
    copied = [value.split() for stage in stages(name) for step, value in stage.steps if step == "COPY"]
    wanted = {source for words in copied if not words[0].startswith("--from=") for source in words[:-1]}
    assert next(line for line in lines if not line.startswith("#")) == "*"
    assert {line[1:] for line in lines if line.startswith("!")} == wanted


def test_bank_image_holds_a_whole_bank(small_bank: Bank, tmp_path: Path) -> None:
    """The bank's image copies every file that a bank cannot do without."""
    small_bank.save(tmp_path)
    copied = stages("bank")[-1].last("COPY").split()[:-1]
    assert sorted(copied) == sorted(path.name for path in tmp_path.iterdir())
