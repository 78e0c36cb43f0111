"""A sidecar that takes its files anew by itself."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from builders import make_bank

from monitor.sidecar import reload

OTHER = "version: 1\npolicies: [{name: other, stance: neutral, turn: {false_alarm_rate: 0.02}}]\n"
LINK = "..data"


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks more often than a deployment needs to."""
    monkeypatch.setattr(reload, "_SECONDS", 0.02)


def policies(sidecar: Any) -> list[str]:
    """Names of the policies in force."""
    return [policy.name for policy in sidecar.pipeline.policies.policies]


class TestReloadOnChange:
    """The setting ``reload_on_change``."""

    def test_takes_a_changed_policy(self, serve: Any, policy_file: Path, eventually: Any) -> None:
        """Nobody has to send a signal."""
        sidecar = serve(reload_on_change=True)
        assert policies(sidecar) == ["helpline", "desk"]
        policy_file.write_text(OTHER)
        eventually(lambda: policies(sidecar) == ["other"])

    def test_follows_a_mounted_config_map(self, serve: Any, tmp_path: Path, policy_file: Path, eventually: Any) -> None:
        """Kubernetes swaps a link to the folder of all files; the file itself is a link through it and stays."""
        for name, text in (("first", policy_file.read_text()), ("second", OTHER)):
            (tmp_path / name).mkdir()
            (tmp_path / name / "policy.yaml").write_text(text)
        (tmp_path / LINK).symlink_to("first")
        mounted = tmp_path / "mounted.yaml"
        mounted.symlink_to(f"{LINK}/policy.yaml")
        sidecar = serve(reload_on_change=True, policy=mounted)
        (tmp_path / "new").symlink_to("second")
        (tmp_path / "new").rename(tmp_path / LINK)
        eventually(lambda: policies(sidecar) == ["other"])

    def test_keeps_the_old_policy_where_the_new_one_is_bad(
        self, serve: Any, policy_file: Path, eventually: Any
    ) -> None:
        """A bad one is refused and told; the next good one is taken."""
        sidecar = serve(reload_on_change=True)
        policy_file.write_text("version: 1\npolicies: []\n")
        eventually(lambda: sidecar.metrics.value("affect_config_last_reload_successful") == 0)
        assert policies(sidecar) == ["helpline", "desk"]
        policy_file.write_text(OTHER)
        eventually(lambda: policies(sidecar) == ["other"])

    def test_takes_a_changed_bank(self, serve: Any, tmp_path: Path, eventually: Any) -> None:
        """The bank's files are followed as well."""
        folder = tmp_path / "bank"
        make_bank().save(folder)
        sidecar = serve(reload_on_change=True, bank=str(folder))
        other = make_bank(seed=1)
        other.save(folder)
        eventually(lambda: sidecar.pipeline.bank.card.bank_id == other.card.bank_id)

    def test_is_off_by_default(self, serve: Any) -> None:
        """A sidecar changes when it is told to, and nothing follows its files, unless the setting says otherwise."""
        serve()
        assert "follower" not in {thread.name for thread in threading.enumerate()}
