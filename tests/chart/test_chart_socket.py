"""Who reaches the socket in a pod: users, groups and modes as the kubelet sets them, tried on this machine."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from helm_engine import Document, Render

from monitor.settings import SidecarSettings
from monitor.sidecar.listen import open_to, owners_alone

ENGINE, STRANGER = 2000, 3000
POD_GROUP = 4000
"""An fsGroup of the pod's own."""
ASSIGNED = 1000650000
"""User and fsGroup that a cluster gives a pod that names none."""

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be every user in turn")


def become(user: int, group: int, groups: Sequence[int], work: Callable[[], object]) -> bool:
    """Does something as another user, in a process of its own; tells whether it could be done."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setgroups(groups)
            os.setgid(group)
            os.setuid(user)
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def connect(path: Path) -> None:
    """Reaches the socket, or raises OSError."""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


@contextmanager
def emptied(mode: int, group: int) -> Iterator[Path]:
    """A folder as the kubelet makes an emptyDir."""
    folder = Path(tempfile.mkdtemp())
    os.chown(folder, 0, group)
    folder.chmod(mode)
    yield folder
    shutil.rmtree(folder)


@contextmanager
def served(folder: Path, user: int, group: int, groups: Sequence[int], made: list[Document]) -> Iterator[Path]:
    """The socket, made by a user with the mode that the rendered settings say."""
    told = next(each for each in made if each["kind"] == "ConfigMap")["data"]["settings.yaml"]
    settings = SidecarSettings.model_validate(yaml.safe_load(told))
    found = folder / "ingest.sock"
    with socket.socket(socket.AF_UNIX) as listener:

        def make() -> None:
            with owners_alone():
                listener.bind(str(found))
            open_to(found, settings)
            listener.listen()

        assert become(user, group, groups, make)
        yield found


@pytest.fixture(params=["disk", "memory", "own"])
def place(request: pytest.FixtureRequest, render: Render) -> Iterator[tuple[Path, int]]:
    """A folder as the kubelet makes an emptyDir, without and with an fsGroup, and the group that the socket gets."""
    (ours,) = pod(render)["securityContext"]["supplementalGroups"]
    owner, mode, group = {
        "disk": (0, 0o777, ours),
        "memory": (0, 0o1777, ours),
        "own": (POD_GROUP, 0o3777, POD_GROUP),
    }[request.param]
    with emptied(mode, owner) as folder:
        yield folder, group


@pytest.fixture
def path(place: tuple[Path, int], render: Render) -> Iterator[Path]:
    """The socket, made by the sidecar's user and served."""
    context = next(each for each in pod(render)["initContainers"] if each["name"] == "affect-monitor")[
        "securityContext"
    ]
    with served(place[0], context["runAsUser"], context["runAsGroup"], [place[1]], render("demo")) as found:
        yield found


def pod(render: Render) -> Document:
    """The example's pod."""
    return next(made for made in render("demo") if made["kind"] == "Deployment")["spec"]["template"]["spec"]


class TestSocket:
    """The socket of a rendered pod."""

    def test_belongs_to_the_pods_group(self, path: Path, place: tuple[Path, int]) -> None:
        """It is of the sidecar's group, or of the one that the folder hands on; nobody else may connect."""
        found = path.stat()
        assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (10001, place[1], 0o660)

    def test_is_reached_by_an_engine_that_is_not_root(self, path: Path, place: tuple[Path, int]) -> None:
        """Every container of the pod is in that group, besides its own."""
        assert become(ENGINE, ENGINE, [place[1]], lambda: connect(path))

    def test_is_reached_by_a_root_without_capabilities(self, path: Path, place: tuple[Path, int]) -> None:
        """As root's power over files is a capability, the group has to do it then."""
        code = f"import socket; socket.socket(socket.AF_UNIX).connect({str(path)!r})"
        bare = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
        done = [
            subprocess.run([*bare, *groups, sys.executable, "-c", code], check=False, capture_output=True).returncode
            for groups in ([f"--groups={place[1]}"], ["--clear-groups"])
        ]
        assert done == [0, 1]

    def test_is_not_reached_by_strangers(self, path: Path) -> None:
        """Who is not in the group is refused, even where the folder can be seen."""
        assert not become(STRANGER, STRANGER, [], lambda: connect(path))


class TestAssignedIds:
    """The socket of a pod that leaves user and groups to the cluster."""

    def test_is_reached_within_the_pod(self, render: Render) -> None:
        """It is of the fsGroup that the cluster gives, which the engine is in as well, as the same user or another."""
        with (
            emptied(0o3777, ASSIGNED) as folder,
            served(folder, ASSIGNED, 0, [ASSIGNED], render("assigned-ids")) as path,
        ):
            assert (path.stat().st_gid, path.stat().st_mode & 0o777) == (ASSIGNED, 0o660)
            assert become(ASSIGNED, 0, [ASSIGNED], lambda: connect(path))
            assert become(ENGINE, 0, [ASSIGNED], lambda: connect(path))
            assert not become(STRANGER, 0, [], lambda: connect(path))
