"""Tests of what the Containerfiles' instructions do: each RUN line is run in a clean environment, without containers.

What this environment has in the pinned version is lent to the builds; the rest pip fetches.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
import venv
from collections.abc import Iterable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, distribution, requires
from pathlib import Path

import httpx
import needs
import pytest
from containerfile import IMAGES, Build, stages
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from processes import free_port, program

from monitor import __version__

BANK = "smollm2-135m-instruct"
POLICY = """
version: 1
policies: [{name: everything, stance: neutral, turn: {false_alarm_rate: 0.01}}]
"""
pytestmark = pytest.mark.timeout(1800)


def packages(programs: Path) -> Path:
    """Where the packages of an environment lie."""
    (found,) = programs.parent.glob("lib/python*/site-packages")
    return found


def needed(extra: str) -> set[str]:
    """Names of the packages here that an extra asks for, and of those that these ask for in turn."""
    found: set[tuple[str, frozenset[str]]] = set()
    waiting = [Requirement(f"affect-monitor[{extra}]")]
    while waiting:
        asked = waiting.pop()
        key = (canonicalize_name(asked.name), frozenset(asked.extras))
        if key not in found:
            with suppress(PackageNotFoundError):
                waiting += asked_by(asked.name, asked.extras)
                found.add(key)
    return {name for name, _ in found}


def asked_by(name: str, extras: Iterable[str]) -> list[Requirement]:
    """What a package asks for, on this machine and with these extras of it."""
    told = [Requirement(line) for line in requires(name) or ()]
    return [each for each in told if not each.marker or any(each.marker.evaluate({"extra": e}) for e in ("", *extras))]


def lend(build: Build, extra: str) -> None:
    """Gives an image what is here of an extra's packages in the pinned version, as pip would lay it there.

    That is most of the time of a build. Links: what a RUN line takes out is gone from the image alone. A torch for GPUs
    asks for packages that are not pinned, and is not lent.
    """
    folder = build.inside(f"/opt/affect-monitor/lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages")
    for name in needed(extra) & pinned().keys():
        here = distribution(name)
        asks = {canonicalize_name(each.name) for each in asked_by(name, ())}
        if here.version.partition("+")[0] != pinned()[name] or not asks <= pinned().keys():
            continue
        for file in here.files or ():
            target = folder / file
            if ".." not in file.parts and not target.exists() and Path(here.locate_file(file)).exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                os.link(here.locate_file(file), target)


def copied(programs: Path, folder: Path) -> Path:
    """The programs of a base image once more, in no time."""
    venv.create(folder, with_pip=False)
    shutil.copytree(packages(programs), packages(folder / "bin"), dirs_exist_ok=True)
    return folder / "bin"


def torch_index() -> str:
    """PyTorch's own index, as in the image; where it cannot be reached, pip's."""
    try:
        socket.create_connection(("download.pytorch.org", 443), timeout=5).close()
    except OSError:
        return os.environ.get("PIP_INDEX_URL", "https://pypi.org/simple")
    return "https://download.pytorch.org/whl/cpu"


def installed(python: Path) -> dict[str, str]:
    """Version of every package that an environment has."""
    code = "from importlib.metadata import distributions as d; print(*(f'{x.name}=={x.version}' for x in d()))"
    done = subprocess.run([str(python), "-I", "-c", code], capture_output=True, text=True, check=True)
    return dict(line.split("==") for line in done.stdout.split())


def pinned() -> dict[str, str]:
    """Version of every package that the sidecar's image pins."""
    lines = (IMAGES / "sidecar" / "constraints.txt").read_text().splitlines()
    pins = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pins}


def unpinned(python: Path) -> dict[str, str]:
    """Packages of an environment that are not the ones, or not of the version, that the sidecar's image pins."""
    found = {name: version.partition("+")[0] for name, version in installed(python).items()}
    return {name: version for name, version in found.items() if pinned().get(canonicalize_name(name)) != version}


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of the base image: a Python with pip, and nothing else."""
    folder = tmp_path_factory.mktemp("base")
    venv.create(folder, with_pip=True)
    return folder / "bin"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory, programs: Path) -> Build:
    """The first stage of the images that install the wheel, which is the same in all of them."""
    build = Build(tmp_path_factory.mktemp("sidecar"), programs, {"TORCH_INDEX": torch_index()})
    build.carry_out(stages("sidecar")[0])
    return build


@pytest.fixture(scope="module")
def sidecar(wheel: Build) -> Build:
    """The sidecar's image, made by its own instructions."""
    lend(wheel, "sidecar")
    for stage in stages("sidecar")[1:]:
        wheel.carry_out(stage)
    return wheel


def capture(wheel: Build, root: Path, programs: Path) -> Build:
    """The last stage of vLLM's image, on a base with these programs."""
    build = Build(root, programs, {})
    shutil.copytree(wheel.inside("/wheels"), build.inside("/wheels"))
    build.carry_out(stages("vllm")[1])
    return build


class TestSidecar:
    """The sidecar's image."""

    def test_every_package_is_pinned(self, sidecar: Build) -> None:
        """What was installed is what constraints.txt pins, to the version, and the package itself."""
        assert unpinned(sidecar.inside("/opt/affect-monitor/bin/python")) == {"affect-monitor": __version__}

    def test_holds_no_more_than_a_sidecar_needs(self, sidecar: Build) -> None:
        """There is no installer in it, nothing of the demo's, nothing of CUDA's."""
        unwanted = re.compile(r"pip|wheel|transformers|scikit-learn|accelerate|nvidia-.*|triton")
        found = installed(sidecar.inside("/opt/affect-monitor/bin/python"))
        assert [name for name in found if unwanted.fullmatch(name)] == []

    def test_bytecode_is_there_and_never_checked(self, sidecar: Build, monkeypatch: pytest.MonkeyPatch) -> None:
        """Every module of the sidecar has its bytecode where Python looks for it, of the kind that is not checked."""
        monkeypatch.setattr(sys, "pycache_prefix", sidecar.variables["PYTHONPYCACHEPREFIX"])
        modules = sidecar.inside("/opt/affect-monitor").glob("lib/python*/site-packages/monitor/sidecar/*.py")
        made = [Path(importlib.util.cache_from_source(str(module))).read_bytes()[4:8] for module in modules]
        assert set(made) == {b"\x01\x00\x00\x00"}

    def test_serves(self, sidecar: Build, tmp_path: Path) -> None:
        """The entry point serves with the shipped bank, and answers what probes and Prometheus ask."""
        (tmp_path / "policy.yaml").write_text(POLICY)
        port = free_port()
        command = [
            str(sidecar.inside("/opt/affect-monitor/bin/affect-monitor")), "serve", "--bank", BANK,
            "--policy", f"{tmp_path}/policy.yaml", "--ingest", f"unix://{tmp_path}/ingest.sock",
            "--http-port", str(port),
        ]  # fmt: skip
        url, log = f"http://127.0.0.1:{port}", tmp_path / "log"
        with program(command, url, log, ready="/readyz", environment=sidecar.variables) as running:
            assert "affect_build_info" in httpx.get(f"{url}/metrics").text
            assert running.stop() == 0


def test_demo_serves_the_assistant(sidecar: Build, programs: Path, tmp_path: Path) -> None:
    """The demo's image, which is the sidecar's and its extra within the same pins, serves a chat."""
    build = Build(tmp_path, programs, {})
    build.inside("/opt").mkdir()
    # Hard links: nothing of the sidecar's is changed, only added to.
    subprocess.run(["cp", "-al", str(sidecar.inside("/opt/affect-monitor")), str(build.inside("/opt"))], check=True)
    build.carry_out(stages("sidecar")[-1])
    lend(build, "demo")
    for stage in stages("demo"):
        build.carry_out(stage)
    python = build.inside("/opt/affect-monitor/bin/python")
    assert unpinned(python) == {"affect-monitor": __version__}
    build.variables["AFFECT_MONITOR_CACHE"] = str(needs.assistant().parent)
    # The image's bytecode is for the path at which the sidecar's lies; what was lent has its own beside it.
    del build.variables["PYTHONPYCACHEPREFIX"]
    port = free_port()
    command = [
        str(python), "-c", "from monitor.cli import main; main()", "chat", "serve", "--model", "demo", "--bank", BANK,
        "--sidecar", f"unix://{tmp_path}/none.sock", "--port", str(port),
    ]  # fmt: skip
    url, log = f"http://127.0.0.1:{port}", tmp_path / "log"
    with program(command, url, log, ready="/health", environment=build.variables) as running:
        assert running.stop() == 0


@pytest.mark.vllm
def test_capture_moves_nothing_in_vllm(wheel: Build, programs: Path, tmp_path: Path) -> None:
    """An environment with vLLM has this package more, and is what it was otherwise."""
    present = {entry.name for entry in packages(programs).iterdir()}
    theirs = copied(programs, tmp_path / "base")
    for entry in packages(needs.vllm_environment() / "bin").iterdir():
        if entry.name not in present and not re.search(r"affect_monitor|^(pip|setuptools)-", entry.name):
            (packages(theirs) / entry.name).symlink_to(entry)
    before = installed(theirs / "python")
    capture(wheel, tmp_path / "image", theirs)
    assert installed(theirs / "python") == before | {"affect-monitor": __version__}


def test_capture_asks_for_what_is_missing(
    wheel: Build, programs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """On a base that is no vLLM's the build fails, and says what is not there."""
    with pytest.raises(subprocess.CalledProcessError):
        capture(wheel, tmp_path / "image", copied(programs, tmp_path / "base"))
    assert "requires grpcio, which is not installed" in capfd.readouterr().out
